"""A bare loop in PyTorch and PEFT that computes what `smollm3 train` computes, and nothing else. Frozen: see below.

No padding: the rows of a batch follow each other in one sequence, each with its own positions, and attention is called
once per row. Logits are computed at supervised tokens only, in pieces of at most 64 MiB. The backward pass of each
piece runs immediately after its loss, so only one piece is in memory at a time and none is computed twice. No
evaluation, no samples, no checkpoints, no logs except the losses.

It imports nothing from smollm3_finetune, so that slow code there does not slow it down. It was written before the first
measurement. Do not change it together with the code that it is compared with.
"""

from __future__ import annotations

import json
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from speed_peers.job import Job, job_from_command_line, quantization, tokenized_rows

LOGIT_BYTES = 2**26


def attention(module: Any, query: Any, key: Any, value: Any, mask: Any, borders: Any = None, **kwargs: Any) -> Any:
    """SDPA on each row alone. query (1, H, T, D); borders: the start of each row, and the end of the last one."""
    kwargs.pop("position_ids", None)
    pieces = [
        sdpa_attention_forward(module, query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], None, **kwargs)[0]
        for a, b in pairwise(borders)
    ]
    return torch.cat(pieces, dim=1), None


AttentionInterface.register("bare", attention)
AttentionMaskInterface.register("bare", lambda *args, **kwargs: None)


def backward(head: Any, hidden: Any, targets: Any) -> float:
    """The mean cross-entropy over supervised tokens; also runs its backward pass. hidden (N, H), targets (N,)."""
    leaf = hidden.detach().requires_grad_()
    size, total = LOGIT_BYTES // (4 * head.out_features), 0.0
    for piece, wanted in zip(leaf.split(size), targets.split(size), strict=True):
        loss = F.cross_entropy(head(piece).float(), wanted, reduction="sum") / len(targets)
        loss.backward()
        total += loss.item()
    hidden.backward(leaf.grad)
    return total


def main(job: Job) -> None:
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    rows = tokenized_rows(job, tokenizer)
    about = quantization(job)
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32, attn_implementation="bare", **about)
    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=job.rank, lora_alpha=2 * job.rank, lora_dropout=0.0, target_modules=list(job.modules)
    )
    model = get_peft_model(model, config)
    model.train()
    body, head = model.base_model.model.model, model.base_model.model.lm_head
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job.learning_rate, weight_decay=0.0)
    losses, tokens = [], 0
    for start in range(0, len(rows), job.batch):
        batch = rows[start : start + job.batch]
        ids = torch.tensor([[i for r in batch for i in r.ids]])  # (1, T)
        labels = torch.tensor([i for r in batch for i in (*r.labels[1:], -100)])  # (T,): the label of the next token
        places = torch.tensor([[i for r in batch for i in range(len(r.ids))]])
        borders = [0, *accumulate(len(r.ids) for r in batch)]
        hidden = body(input_ids=ids, position_ids=places, use_cache=False, borders=borders)[0][0]
        where = labels != -100
        losses.append(backward(head, hidden[where], labels[where]))
        torch.nn.utils.clip_grad_norm_(trained, job.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        tokens += ids.numel()
    Path(job.output).mkdir(parents=True, exist_ok=True)
    model.save_pretrained(job.output)
    (Path(job.output) / "bare.json").write_text(json.dumps({"losses": losses, "tokens": tokens}))


if __name__ == "__main__":
    main(job_from_command_line())
