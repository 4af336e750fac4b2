"""transformers.Trainer and PEFT, as in their documentation: padded batches, the loss on the assistant's tokens."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from speed_peers.job import Job, job_from_command_line, quantization, tokenized_rows


def main(job: Job, collator: Any = None) -> None:
    """Train with `collator`; None: one that pads."""
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    rows: Any = [{"input_ids": r.ids, "labels": r.labels} for r in tokenized_rows(job, tokenizer)]
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.dtype), **quantization(job))
    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=job.rank, lora_alpha=2 * job.rank, lora_dropout=0.0, target_modules=list(job.modules)
    )
    args = TrainingArguments(
        output_dir=job.output,
        num_train_epochs=1,
        per_device_train_batch_size=job.batch,
        learning_rate=job.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=job.max_grad_norm,
        optim="adamw_torch",
        train_sampling_strategy="sequential",
        include_num_input_tokens_seen="non_padding" if collator is None else "all",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=job.device == "cpu",
        bf16=job.dtype == "bfloat16",
        seed=0,
    )
    trainer = Trainer(
        model=get_peft_model(model, config),
        args=args,
        train_dataset=rows,
        data_collator=collator or DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(job.output)


if __name__ == "__main__":
    main(job_from_command_line())
