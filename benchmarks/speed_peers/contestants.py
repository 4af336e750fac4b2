"""The command of each contestant. What the job does not fix is left at each tool's own default."""

from __future__ import annotations

import sys
from pathlib import Path

from speed_peers.job import SEED, Job

OURS, OURS_PACKED, BARE, PADDED = "smollm3 train", "smollm3 train, packing", "bare loop", "transformers.Trainer"
BARE_HUGE, PADDED_HUGE = f"{BARE}, huge pages", f"{PADDED}, huge pages"
TRL, TRL_PACKED = "trl sft", "trl sft, packing"
ALL = (OURS, BARE, BARE_HUGE, PADDED, PADDED_HUGE, TRL, TRL_PACKED, OURS_PACKED)
FLAT = (OURS, BARE, BARE_HUGE, OURS_PACKED, TRL_PACKED)
"""Those that compute no padding."""
HUGE = (BARE_HUGE, PADDED_HUGE)
"""Those that are told from outside to put tensors into huge pages, as `smollm3` does by itself."""
PACKED = (OURS_PACKED, TRL_PACKED)


def command(name: str, job: Job, output: Path, python_trl: Path) -> list[str]:
    """What is run, with its output in `output`, which is not there yet."""
    if name in (BARE, BARE_HUGE, PADDED, PADDED_HUGE):
        module = "speed_peers.bare" if name in (BARE, BARE_HUGE) else "speed_peers.padded"
        return [sys.executable, "-m", module, job.directory, str(output)]
    if name in (OURS, OURS_PACKED):
        return [sys.executable, "-m", "smollm3_finetune.main", *_ours(job, output, packing=name == OURS_PACKED)]
    return [str(python_trl.with_name("trl")), *_trl(job, output, packing=name == TRL_PACKED)]


def _ours(job: Job, output: Path, *, packing: bool) -> list[str]:
    settings = {
        "data.held_out": 0,
        "data.max_length": job.max_length,
        "train.schedule": "constant",
        "train.warmup": 0,
        "train.max_grad_norm": job.max_grad_norm,
        **({"train.packing": "true"} if packing else {}),
    }
    return [
        *("train", "--model", job.model, "--data", f"{job.directory}/smollm3.jsonl", "--output", str(output)),
        *("--quant", job.quant, "--adapter", "lora", "--adapter-opt", f"rank={job.rank}"),
        *("--adapter-opt", f"alpha={2 * job.rank}", "--device", "cpu", "--dtype", "float32", "--epochs", "1"),
        *("--batch-size", str(job.packed if packing else job.batch), "--seed", str(SEED)),
        *("--learning-rate", str(job.learning_rate)),
        *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")),
    ]


def _trl(job: Job, output: Path, *, packing: bool) -> list[str]:
    return [
        *("sft", "--model_name_or_path", job.model, "--dataset_name", f"{job.directory}/rows"),
        *("--output_dir", str(output), "--chat_template_path", f"{job.directory}/template.jinja"),
        *("--assistant_only_loss", "true", "--max_length", str(job.max_length), "--num_train_epochs", "1"),
        *("--use_peft", "--lora_r", str(job.rank), "--lora_alpha", str(2 * job.rank), "--lora_dropout", "0"),
        *("--lora_target_modules", *job.modules, "--dtype", "float32", "--bf16", "false"),
        *("--gradient_checkpointing", "false", "--use_cpu", "true", "--optim", "adamw_torch"),
        *("--learning_rate", str(job.learning_rate), "--lr_scheduler_type", "constant"),
        *("--max_grad_norm", str(job.max_grad_norm), "--train_sampling_strategy", "sequential"),
        *("--per_device_train_batch_size", str(job.packed if packing else job.batch)),
        *("--logging_steps", "1", "--save_strategy", "no", "--report_to", "none", "--seed", str(SEED)),
        *(("--packing", "true", "--packing_strategy", "bfd") if packing else ()),
    ]
