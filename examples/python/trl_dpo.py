"""Train an adapter on preferences with TRL's DPOTrainer."""

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from smollm3_finetune import load_model

PAIRS = [
    ("What is the opposite of hot?", "Ahoy! The opposite of hot is cold.", "Cold."),
    ("What is the opposite of big?", "Ahoy! The opposite of big is small.", "Small."),
]

loaded = load_model("tiny", adapter={"name": "lora", "rank": 8}, purpose="train")
rows = [
    {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
    for question, chosen, rejected in PAIRS
]
arguments = DPOConfig(
    output_dir="checkpoints",
    max_steps=6,
    per_device_train_batch_size=2,
    learning_rate=1e-3,
    bf16=False,  # DPOConfig enables bfloat16 and gradient checkpointing by default
    gradient_checkpointing=False,
    logging_steps=1,
    save_strategy="no",
    report_to=[],
)
trainer = DPOTrainer(
    model=loaded.model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=loaded.tokenizer
)
trainer.train()
loaded.model.delete_adapter("ref")  # DPOTrainer's copy of the adapter before training, its reference
loaded.save("tuned")
