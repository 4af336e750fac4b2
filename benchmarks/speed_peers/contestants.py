"""The command of each contestant. Settings that the job does not fix have the default of each tool."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from speed_peers.job import SEED, UNCUT, Job

OURS, OURS_PACKED, BARE, PADDED = "smollm3 train", "smollm3 train, packing", "bare loop", "transformers.Trainer"
FLATTENED = f"{PADDED}, flattening"
TRL, TRL_PACKED, TRL_FREE = "trl sft", "trl sft, packing", "trl sft, padding-free"
OURS_CHECKPOINTING, OURS_COMPILED, OURS_BF16 = f"{OURS}, checkpointing", f"{OURS}, compiled", f"{OURS}, bfloat16"
SETTINGS = {
    OURS: {},
    OURS_PACKED: {"train.packing": "true"},
    OURS_CHECKPOINTING: {"train.gradient_checkpointing": "true"},
    OURS_COMPILED: {"train.compile": "true"},
    OURS_BF16: {"dtype": "bfloat16"},
}
"""The settings of each variant of `smollm3 train`."""
HUGE = ", huge pages"
"""Suffix of a name: an environment variable puts tensors into huge pages, as `smollm3` does by itself."""
FLOAT32 = ", float32 adapter"
"""Suffix of a name: an adapter that the tool creates in bfloat16 is cast to float32 before the first step, as in the
job."""
BARE_HUGE, PADDED_HUGE, FLATTENED_HUGE = BARE + HUGE, PADDED + HUGE, FLATTENED + HUGE
TRL_HUGE, TRL_PACKED_HUGE, TRL_FREE_HUGE = TRL + HUGE, TRL_PACKED + HUGE, TRL_FREE + HUGE
TRL_32, TRL_PACKED_32 = TRL + FLOAT32, TRL_PACKED + FLOAT32
DEFAULT = (OURS, BARE_HUGE, PADDED, TRL, TRL_PACKED, OURS_PACKED)
ALL = (*DEFAULT, BARE, PADDED_HUGE, FLATTENED, FLATTENED_HUGE, TRL_HUGE, TRL_PACKED_HUGE, TRL_FREE, TRL_FREE_HUGE)
QUANTIZED = (OURS, BARE_HUGE, PADDED, TRL, TRL_32, TRL_PACKED_32, OURS_PACKED)
"""The contestants on a 4-bit model; trl keeps its adapter in bfloat16."""
ALL = (*ALL, TRL_32, TRL_PACKED_32, OURS_CHECKPOINTING, OURS_COMPILED, OURS_BF16)
FLAT = (*SETTINGS, BARE, FLATTENED, TRL_PACKED, TRL_FREE)
"""Contestants that compute no padding."""
PACKED = (OURS_PACKED, TRL_PACKED)
ROUNDED = (OURS_BF16,)
"""Contestants whose losses are too coarse for an exact comparison."""


def own_name(name: str) -> str:
    """The name of the contestant without suffixes."""
    return name.removesuffix(HUGE).removesuffix(FLOAT32)


MODULES = {BARE: "bare", PADDED: "padded", FLATTENED: "flattened"}


def command(name: str, job: Job, output: Path, python_trl: Path) -> list[str]:
    """The command line to run; it writes to `output`, which must not exist."""
    name = own_name(name)
    if name in MODULES:
        return [sys.executable, "-m", f"speed_peers.{MODULES[name]}", job.directory, str(output)]
    if name in SETTINGS:
        return [sys.executable, "-m", "smollm3_finetune.main", *_ours(name, job, output)]
    return [str(python_trl.with_name("trl")), *_trl(name, job, output)]


def _ours(name: str, job: Job, output: Path) -> list[str]:
    return train_command(job, output, SETTINGS[name], job.packed if name in PACKED else job.batch)


def train_command(job: Job, output: Path, settings: Mapping[str, object], batch: int) -> list[str]:
    """The arguments of `smollm3` for the job, whatever the objective."""
    settings = {
        "dtype": job.dtype,
        "data.held_out": 0,
        "data.max_length": job.max_length,
        "train.schedule": "constant",
        "train.warmup": 0,
        "train.max_grad_norm": job.max_grad_norm,
        **settings,
    }
    return [
        *("train", "--model", job.model, "--data", f"{job.directory}/smollm3.jsonl", "--output", str(output)),
        *("--quant", job.quant, "--adapter", "lora", "--adapter-opt", f"rank={job.rank}"),
        *("--adapter-opt", f"alpha={2 * job.rank}", "--device", job.device, "--epochs", "1"),
        *("--batch-size", str(batch), "--seed", str(SEED)),
        *("--learning-rate", str(job.learning_rate)),
        *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")),
    ]


def _trl(name: str, job: Job, output: Path) -> list[str]:
    packing = name == TRL_PACKED
    longest = ("--max_length", str(job.max_length))
    nf4 = ("--load_in_4bit", "true", "--bnb_4bit_quant_type", "nf4", "--use_bnb_nested_quant", "true")
    return [
        *("sft", *trl_arguments(job, output, job.packed if packing else job.batch)),
        *("--chat_template_path", f"{job.directory}/template.jinja", "--assistant_only_loss", "true"),
        *(nf4 if job.quant == "bnb-4bit" else ()),  # trl computes in --dtype
        *(("--packing", "true", "--packing_strategy", "bfd") if packing else ()),
        # without padding, trl cuts no row, and warns; no row of the job is cut, as the token counts confirm
        *(("--padding_free", "true", "--config", f"{job.directory}/{UNCUT}") if name == TRL_FREE else longest),
    ]


def trl_arguments(job: Job, output: Path, batch: int) -> list[str]:
    """The arguments of each command of trl for the job."""
    return [
        *("--model_name_or_path", job.model, "--dataset_name", f"{job.directory}/rows"),
        *("--output_dir", str(output), "--num_train_epochs", "1"),
        *("--use_peft", "--lora_r", str(job.rank), "--lora_alpha", str(2 * job.rank), "--lora_dropout", "0"),
        *("--lora_target_modules", *job.modules, "--dtype", job.dtype),
        *("--bf16", "true" if job.dtype == "bfloat16" else "false"),
        *(
            "--gradient_checkpointing",
            "false",
            "--use_cpu",
            "true" if job.device == "cpu" else "false",
            "--optim",
            "adamw_torch",
        ),
        *("--learning_rate", str(job.learning_rate), "--lr_scheduler_type", "constant"),
        *("--max_grad_norm", str(job.max_grad_norm), "--train_sampling_strategy", "sequential"),
        *("--per_device_train_batch_size", str(batch)),
        *("--logging_steps", "1", "--save_strategy", "no", "--report_to", "none", "--seed", str(SEED)),
    ]
