"""Train an adapter with transformers.Trainer."""

from rows import supervised_rows
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

from smollm3_finetune import load_model

loaded = load_model("tiny", adapter={"name": "lora", "rank": 8}, purpose="train")


class OnStep(TrainerCallback):
    """Calls the adapter after each optimizer step: some adapters change during training."""

    def on_optimizer_step(self, args, state, control, **kwargs):
        loaded.adapted.on_step(state.global_step + 1)


arguments = TrainingArguments(
    output_dir="checkpoints",
    num_train_epochs=3,
    per_device_train_batch_size=4,
    learning_rate=1e-3,
    lr_scheduler_type="constant",
    logging_steps=1,
    save_strategy="no",
    report_to=[],
)
trainer = Trainer(
    model=loaded.model,
    args=arguments,
    train_dataset=supervised_rows("examples/rows.jsonl", loaded.tokenizer),
    data_collator=DataCollatorForSeq2Seq(loaded.tokenizer),
    callbacks=[OnStep()],
)
trainer.train()
loaded.save("tuned")
