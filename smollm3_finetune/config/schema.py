"""The shape of a run's configuration: what may stand in `run.yaml`, with defaults and help.

Light: read for `--help`, so only the standard library. The sections `loader`, `quant`, `adapter`, `formatter` and
`objective` hold a component's name and that component's own options, which its plugin describes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from smollm3_finetune.api import option

if TYPE_CHECKING:
    from smollm3_finetune.config.options import OptionInfo

DEFAULT_ADAPTER = "lora"
DEFAULT_OBJECTIVE = "smollm3-finetune:sft"
"""With its distribution: a plugin that takes the name does not get the runs that name none."""
DEFAULT_MODEL = "tiny"


@dataclass(frozen=True, kw_only=True)
class ComponentConfig:
    """A component section: a name (None: chosen by what is there) and the component's own options."""

    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the rows come from and how much of them is used."""

    path: str | dict[str, Any] | tuple[str | dict[str, Any], ...] | None = option(
        None,
        "File, glob, directory or Hub id of training rows, or a list of them (as text, or as mappings with path, "
        "weight, formatter, split, subset, revision, limit); none: the small embedded chat dataset.",
    )
    held_out: float = option(0.1, "Fraction of rows kept out of training and used to measure it.", ge=0, lt=1)
    max_length: int = option(1024, "Longest example, in tokens; what is longer is cut at the end.", ge=8)
    limit: int | None = option(None, "Use only the first N rows of each source.", ge=1, le=10**12)
    template: str | None = option(None, "File with a chat template to use instead of the tokenizer's own.")
    enable_thinking: bool | None = option(
        None, "Reasoning mode of rows that do not state one; none: think for a row with a trace, else not."
    )
    history: Literal["keep", "strip"] = option(
        "keep", "The reasoning of answers before the last user message: kept, or stripped and not learned."
    )
    date: str | None = option(
        "2026-01-01", "What the template is told is today, YYYY-MM-DD, so that a run does not depend on its day."
    )


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """The rows on which a quantizer calibrates, where it does."""

    path: str | dict[str, Any] | tuple[str | dict[str, Any], ...] | None = option(
        None, "Rows of their own, given as data.path is; none: the run's training rows."
    )
    rows: int = option(128, "How many rows, chosen by the seed.", ge=1, le=1_000_000)
    length: int = option(512, "What is used of each row, in tokens.", ge=1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training loop."""

    max_steps: int | None = option(None, "Stop after this many optimizer steps; none: after `epochs`.", ge=1)
    epochs: float = option(1.0, "Passes over the rows.", gt=0)
    batch_size: int = option(8, "Rows in one forward pass, per device; with packing, sequences.", ge=1, le=1_000_000)
    padding: Literal["auto", "never", "always"] = option(
        "auto",
        "Whether the rows of a batch are padded to one length, or follow each other in one sequence without seeing "
        "each other; auto: padded only where model, adapter or objective need it.",
    )
    packing: bool = option(
        False, "Put rows together into sequences of at most data.max_length tokens, without padding; none is split."
    )
    group_by_length: bool = option(
        False, "Put rows of about one length into a batch, which helps where rows are padded; without packing."
    )
    logits: Literal["supervised", "all"] = option(
        "supervised", "Where the output layer is computed in training and measuring: for learned tokens, or for all."
    )
    gradient_accumulation: int = option(1, "Forward passes per optimizer step, of each process.", ge=1)
    learning_rate: float = option(2e-4, "Peak learning rate, per optimizer step.", gt=0)
    schedule: Literal["cosine_with_min_lr", "cosine", "linear", "constant", "constant_with_warmup"] = option(
        "cosine_with_min_lr", "How the learning rate falls."
    )
    min_learning_rate: float = option(0.1, "Where cosine_with_min_lr ends, as a fraction of the peak.", ge=0, le=1)
    warmup: float = option(0.03, "Fraction of the steps in which the learning rate rises.", ge=0, lt=1)
    weight_decay: float = option(0.0, "Decoupled weight decay.", ge=0)
    max_grad_norm: float = option(1.0, "Gradients are scaled down to this norm.", gt=0)
    optimizer: str = option("adamw_torch", "An optimizer name of transformers' Trainer.")
    gradient_checkpointing: bool = option(False, "Recompute activations in the backward pass: less memory, slower.")
    compile: bool = option(
        False, "Compile the model with torch.compile: slow first steps, and perhaps faster ones after them."
    )
    log_every: int = option(1, "Steps between lines of metrics.", ge=1)
    eval_every: int | None = option(
        None, "Steps between measurements of the held-out loss; none: it is measured before and after training.", ge=1
    )
    report_to: tuple[str, ...] = option(
        (), "Trackers of transformers' Trainer that get the metrics as well, such as wandb or tensorboard."
    )
    save_every: int | None = option(None, "Steps between checkpoints that a run can resume from.", ge=1)
    keep_checkpoints: int = option(2, "How many checkpoints stay on disk.", ge=1)
    sample_prompt: str | None = option(None, "Prompt answered before and after; none: one from the held-out rows.")
    sample_tokens: int = option(64, "Longest sample answer, in tokens.", ge=1)


DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run was asked to do."""

    model: str = option(DEFAULT_MODEL, "Hub id, directory or file of the model; `tiny` is embedded.")
    loader: ComponentConfig = field(default_factory=ComponentConfig, metadata={"help": "How the model is opened."})
    quant: ComponentConfig = field(default_factory=ComponentConfig, metadata={"help": "How its weights are loaded."})
    adapter: ComponentConfig = field(default_factory=ComponentConfig, metadata={"help": "What is trained on it."})
    objective: ComponentConfig = field(default_factory=ComponentConfig, metadata={"help": "What training minimizes."})
    formatter: ComponentConfig = field(default_factory=ComponentConfig, metadata={"help": "How rows are read."})
    data: DataConfig = field(default_factory=DataConfig, metadata={"help": "The rows."})
    calibration: CalibrationConfig = field(
        default_factory=CalibrationConfig, metadata={"help": "The rows on which a quantizer calibrates."}
    )
    train: TrainConfig = field(default_factory=TrainConfig, metadata={"help": "The training loop."})
    output: str | None = option(None, "Directory of the run; none: a fresh one under runs/.")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps, …")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = option(
        "auto", "Of unquantized weights and of the computation; auto: float32 on a CPU, bfloat16 on a GPU that has it."
    )
    seed: int = option(0, "Decides the split, the order of rows, dropout and initial values.", ge=0, le=2**32 - 1)
    plugins: tuple[str, ...] = option((), "Plugin files or modules (as -p), or no:NAME to leave one out.")


COMPONENT_SECTIONS = ("loader", "quant", "adapter", "objective", "formatter")
PLAIN_SECTIONS: Mapping[str, type] = {"data": DataConfig, "calibration": CalibrationConfig, "train": TrainConfig}


def key_info(key: Sequence[str]) -> OptionInfo:
    """What help says about a configuration key: `("train", "epochs")`, or `("quant", "name")` for a component."""
    from smollm3_finetune.config.options import OptionInfo, describe

    section, *rest = key
    if section in PLAIN_SECTIONS:
        return next(i for i in describe(PLAIN_SECTIONS[section]) if i.name == rest[0])
    info = next(i for i in describe(RunConfig) if i.name == section)
    if section in COMPONENT_SECTIONS:  # its name, not the whole section
        return OptionInfo(name=section, type="text or none", default=None, help=info.help, limits={})
    return info
