"""The command of each contestant. What the job does not fix is left at each tool's own default."""

from __future__ import annotations

import sys
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
"""What is set for each of ours."""
HUGE = ", huge pages"
"""After a name: told from outside to put tensors into huge pages, as `smollm3` does by itself."""
FLOAT32 = ", float32 adapter"
"""After a name: an adapter that the tool makes bfloat16 is made float32 before the first step, as the job says."""
BARE_HUGE, PADDED_HUGE, FLATTENED_HUGE = BARE + HUGE, PADDED + HUGE, FLATTENED + HUGE
TRL_HUGE, TRL_PACKED_HUGE, TRL_FREE_HUGE = TRL + HUGE, TRL_PACKED + HUGE, TRL_FREE + HUGE
TRL_32, TRL_PACKED_32 = TRL + FLOAT32, TRL_PACKED + FLOAT32
DEFAULT = (OURS, BARE_HUGE, PADDED, TRL, TRL_PACKED, OURS_PACKED)
ALL = (*DEFAULT, BARE, PADDED_HUGE, FLATTENED, FLATTENED_HUGE, TRL_HUGE, TRL_PACKED_HUGE, TRL_FREE, TRL_FREE_HUGE)
QUANTIZED = (OURS, BARE_HUGE, PADDED, TRL, TRL_32, TRL_PACKED_32, OURS_PACKED)
"""Of a model of 4 bits, whose adapter trl keeps in bfloat16."""
ALL = (*ALL, TRL_32, TRL_PACKED_32, OURS_CHECKPOINTING, OURS_COMPILED, OURS_BF16)
FLAT = (*SETTINGS, BARE, FLATTENED, TRL_PACKED, TRL_FREE)
"""Those that compute no padding."""
PACKED = (OURS_PACKED, TRL_PACKED)
ROUNDED = (OURS_BF16,)
"""Those whose losses are not to be compared digit by digit."""


def own_name(name: str) -> str:
    """The contestant without what it is told from outside."""
    return name.removesuffix(HUGE).removesuffix(FLOAT32)


MODULES = {BARE: "bare", PADDED: "padded", FLATTENED: "flattened"}


def command(name: str, job: Job, output: Path, python_trl: Path) -> list[str]:
    """What is run, with its output in `output`, which is not there yet."""
    name = own_name(name)
    if name in MODULES:
        return [sys.executable, "-m", f"speed_peers.{MODULES[name]}", job.directory, str(output)]
    if name in SETTINGS:
        return [sys.executable, "-m", "smollm3_finetune.main", *_ours(name, job, output)]
    return [str(python_trl.with_name("trl")), *_trl(name, job, output)]


def _ours(name: str, job: Job, output: Path) -> list[str]:
    settings = {
        "dtype": "float32",
        "data.held_out": 0,
        "data.max_length": job.max_length,
        "train.schedule": "constant",
        "train.warmup": 0,
        "train.max_grad_norm": job.max_grad_norm,
        **SETTINGS[name],
    }
    return [
        *("train", "--model", job.model, "--data", f"{job.directory}/smollm3.jsonl", "--output", str(output)),
        *("--quant", job.quant, "--adapter", "lora", "--adapter-opt", f"rank={job.rank}"),
        *("--adapter-opt", f"alpha={2 * job.rank}", "--device", "cpu", "--epochs", "1"),
        *("--batch-size", str(job.packed if name in PACKED else job.batch), "--seed", str(SEED)),
        *("--learning-rate", str(job.learning_rate)),
        *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")),
    ]


def _trl(name: str, job: Job, output: Path) -> list[str]:
    packing = name == TRL_PACKED
    longest = ("--max_length", str(job.max_length))
    nf4 = ("--load_in_4bit", "true", "--bnb_4bit_quant_type", "nf4", "--use_bnb_nested_quant", "true")
    return [
        *("sft", "--model_name_or_path", job.model, "--dataset_name", f"{job.directory}/rows"),
        *("--output_dir", str(output), "--chat_template_path", f"{job.directory}/template.jinja"),
        *("--assistant_only_loss", "true", "--num_train_epochs", "1"),
        *("--use_peft", "--lora_r", str(job.rank), "--lora_alpha", str(2 * job.rank), "--lora_dropout", "0"),
        *("--lora_target_modules", *job.modules, "--dtype", "float32", "--bf16", "false"),
        *("--gradient_checkpointing", "false", "--use_cpu", "true", "--optim", "adamw_torch"),
        *("--learning_rate", str(job.learning_rate), "--lr_scheduler_type", "constant"),
        *("--max_grad_norm", str(job.max_grad_norm), "--train_sampling_strategy", "sequential"),
        *("--per_device_train_batch_size", str(job.packed if packing else job.batch)),
        *("--logging_steps", "1", "--save_strategy", "no", "--report_to", "none", "--seed", str(SEED)),
        *(nf4 if job.quant == "bnb-4bit" else ()),  # which computes in --dtype
        *(("--packing", "true", "--packing_strategy", "bfd") if packing else ()),
        # without padding trl cuts no row, and says so: nothing is cut here either, which is checked with the tokens
        *(("--padding_free", "true", "--config", f"{job.directory}/{UNCUT}") if name == TRL_FREE else longest),
    ]
