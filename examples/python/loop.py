"""Train an adapter with a loop in plain PyTorch."""

import torch
from rows import supervised_rows
from transformers import DataCollatorForSeq2Seq

from smollm3_finetune import load_model

loaded = load_model("tiny", adapter={"name": "lora", "rank": 8}, purpose="train")
device, dtype = loaded.model.device, loaded.base.model.dtype
rows = supervised_rows("examples/rows.jsonl", loaded.tokenizer)
batches = torch.utils.data.DataLoader(rows, batch_size=4, collate_fn=DataCollatorForSeq2Seq(loaded.tokenizer))
trained = [p for p in loaded.model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)

loaded.model.train()
step = 0
for _epoch in range(3):
    for batch in batches:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = loaded.model(**batch.to(device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        loaded.adapted.on_step(step)  # counted from 1, before zero_grad: some adapters change during training
        optimizer.zero_grad()
        print(f"step {step}  loss {loss.item():.4f}")

loaded.save("tuned")
