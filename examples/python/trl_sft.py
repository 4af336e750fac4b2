"""Train an adapter with TRL's SFTTrainer."""

from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

from smollm3_finetune import load_model

loaded = load_model("tiny", adapter={"name": "lora", "rank": 8}, purpose="train")
arguments = SFTConfig(
    output_dir="checkpoints",
    num_train_epochs=3,
    per_device_train_batch_size=4,
    learning_rate=1e-3,
    assistant_only_loss=True,  # the default trains on the prompts too
    bf16=False,  # SFTConfig enables bfloat16 and gradient checkpointing by default
    gradient_checkpointing=False,
    logging_steps=1,
    save_strategy="no",
    report_to=[],
)
trainer = SFTTrainer(
    model=loaded.model,
    args=arguments,
    train_dataset=load_dataset("json", data_files="examples/rows.jsonl", split="train"),
    processing_class=loaded.tokenizer,
)
trainer.train()
loaded.save("tuned")
