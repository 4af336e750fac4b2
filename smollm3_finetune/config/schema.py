"""The keys of a run's configuration (`run.yaml`), with their defaults and help.

`--help` imports this module, so it uses only the standard library. The sections of `COMPONENT_SECTIONS` hold the name
of a component and its options, which its plugin describes.
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
"""Includes its distribution, so that a plugin that offers another `sft` does not become the default."""
DEFAULT_LAUNCHER = "smollm3-finetune:none"
"""The run is executed by the calling process."""
DEFAULT_MODEL = "tiny"


@dataclass(frozen=True, kw_only=True)
class ComponentConfig:
    """A component section: its name (None: chosen from the model or the rows) and the component's options."""

    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    given: frozenset[str] | None = None
    """The options that a user set; None: all of `options`."""

    def set_options(self) -> frozenset[str]:
        return frozenset(self.options) if self.given is None else self.given


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """An entry of `data.path`, `data.validation` or `calibration.path`, as a mapping."""

    path: str = option("", "File, glob, directory or Hub ID.")
    weight: float = option(
        1.0, "How often each row is used per pass: 0.5 uses half of the rows, 2 uses each row twice.", gt=0, le=1000
    )
    formatter: str | None = option(None, "Formatter of these rows; none: detected.")
    split: str = option("train", "Split of a Hub dataset, or of a directory that `datasets` saved.")
    subset: str | None = option(None, "Subset (configuration) of a Hub dataset.")
    revision: str | None = option(None, "Revision of a Hub dataset.")
    limit: int | None = option(None, "Use only the first N rows.", ge=1)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training rows, and how they are used."""

    path: str | dict[str, Any] | tuple[str | dict[str, Any], ...] | None = option(
        None,
        "Training rows: a file, glob, directory or Hub ID. In YAML, also a list; each item is a string or a mapping "
        "with the keys path, weight, formatter, split, subset, revision and limit. Default: the built-in chat dataset.",
    )
    validation: str | dict[str, Any] | tuple[str | dict[str, Any], ...] | None = option(
        None,
        "Separate held-out rows, from the same kinds of sources as data.path; no row of data.path is then held out. "
        "Default: a fraction of the rows, data.held_out.",
    )
    held_out: float = option(
        0.1, "Fraction of the rows to hold out: used to measure the held-out loss, not for training.", ge=0, lt=1
    )
    seed: int = option(
        0,
        "Random seed of the held-out split, of the rows that a weight below 1 selects, and of the calibration rows. "
        "Separate from --seed, so that runs with different seeds have the same held-out rows.",
        ge=0,
        le=2**32 - 1,
    )
    max_length: int = option(
        1024, "Maximum length of a row, in tokens; see data.long_text for longer rows.", ge=8, le=10**9
    )
    long_text: Literal["chunk", "cut"] = option(
        "chunk",
        "Rows of raw text longer than data.max_length: split into chunks, or cut. Conversations are always cut.",
    )
    limit: int | None = option(None, "Use only the first N rows of each source of data.path.", ge=1, le=10**12)
    ignore_columns: tuple[str, ...] = option(
        (), "Columns to remove from the rows before they are read, such as a column that a formatter refuses."
    )
    template: str | None = option(None, "File with a chat template that replaces the tokenizer's own.")
    add_tokens: tuple[str, ...] = option(
        (),
        "Texts that become tokens of their own, such as <tool>: those that the tokenizer lacks are added to it, and "
        "the adapter trains their embeddings.",
    )
    add_tokens_file: str | None = option(None, "File with more texts for data.add_tokens, one on each line.")
    enable_thinking: bool | None = option(
        None,
        "Reasoning mode for rows that do not specify one; default: on for rows with a reasoning trace, off for others.",
    )
    history: Literal["keep", "strip"] = option(
        "keep",
        "Reasoning in answers before the last user message: keep it, or strip it and do not train on it.",
    )
    date: str | None = option(
        "2026-01-01", "Date the chat template sees as today (YYYY-MM-DD); fixed for reproducibility."
    )


SOURCE_KEYS = ("path", "weight", "formatter", "split", "subset", "revision", "limit")
"""The keys of an entry of `data.path`: the fields of `data.sources.SourceConfig`."""


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """The calibration data, for quantizers that calibrate."""

    path: str | dict[str, Any] | tuple[str | dict[str, Any], ...] | None = option(
        None, "Separate calibration data, from the same kinds of sources as data.path; default: the training rows."
    )
    rows: int = option(128, "Number of calibration rows; data.seed selects them.", ge=1, le=1_000_000)
    length: int = option(512, "Tokens used from each row.", ge=1, le=10**9)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training loop."""

    max_steps: int | None = option(
        None, "Stop after this many optimizer steps; default: determined by --epochs.", ge=1, le=10**12
    )
    epochs: float = option(1.0, "Number of passes over the training rows.", gt=0, le=10**9)
    batch_size: int = option(
        8, "Rows per forward pass on each device (with packing: packed sequences).", ge=1, le=1_000_000
    )
    padding: Literal["auto", "never", "always"] = option(
        "auto",
        "Whether the rows of a batch are padded to equal length, or concatenated without attending to each other. "
        "auto: pad only if the model, adapter or objective requires it.",
    )
    packing: bool = option(
        False,
        "Pack several rows into each sequence of at most data.max_length tokens, without padding; no row is split.",
    )
    group_by_length: bool = option(
        False, "Batch rows of similar length, which saves padding. Cannot be combined with packing."
    )
    logits: Literal["supervised", "all"] = option(
        "supervised", "Tokens for which the output layer computes logits: the supervised ones, or all."
    )
    reference: Literal["each-step", "once"] = option(
        "each-step",
        "For objectives that compare the model with another one, the reference: compute its values in each step, or "
        "once before the first step and store them in the cache, from which other runs take them.",
    )
    ship_as: str | dict[str, Any] | None = option(
        None,
        "Format that the trained model is shipped in: a quantizer or an exporter, by its name, or in YAML a mapping "
        "with its name and options. Training then computes with the weights that this format will have.",
    )
    gradient_accumulation: int = option(1, "Forward passes per optimizer step, in each process.", ge=1, le=1_000_000)
    learning_rate: float = option(
        2e-4, "Peak learning rate; the adapter or the built-in model may suggest a different default.", gt=0, le=1000
    )
    schedule: Literal["cosine_with_min_lr", "cosine", "linear", "constant", "constant_with_warmup"] = option(
        "cosine_with_min_lr", "Learning rate schedule."
    )
    min_learning_rate: float = option(
        0.1, "Final learning rate of cosine_with_min_lr, as a fraction of the peak.", ge=0, le=1
    )
    warmup: float = option(0.03, "Fraction of the steps used for learning rate warmup.", ge=0, lt=1)
    weight_decay: float = option(0.0, "Decoupled weight decay.", ge=0)
    base_dropout: Literal["model", "off"] = option(
        "model",
        "Dropout of the base in training. model: what its config states, as in the transformers Trainer; off: none. "
        "Dropout of an adapter is an option of the adapter.",
    )
    max_grad_norm: float = option(1.0, "Maximum gradient norm; larger gradients are clipped to it.", gt=0)
    optimizer: str = option("adamw_torch", "Optimizer, by its name in the transformers Trainer.")
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass: uses less memory, but is slower."
    )
    compile: bool = option(
        False, "Compile the model with torch.compile: the first steps are slow, later ones may be faster."
    )
    log_every: int = option(1, "Steps between logged metrics.", ge=1, le=10**12)
    eval_every: int | None = option(
        None,
        "Steps between evaluations of the held-out loss; default: only before and after training.",
        ge=1,
        le=10**12,
    )
    keep_best: bool = option(
        False,
        "Save the adapter of the measurement with the lowest held-out loss, instead of that of the last step. "
        "Needs eval_every.",
    )
    stop_after: int | None = option(
        None,
        "End the run early after this many measurements in a row without a lower held-out loss. Needs eval_every.",
        ge=1,
        le=10**12,
    )
    sample_every: int | None = option(
        None,
        "Steps between answers to the sample prompt, which are displayed and written to samples.jsonl; default: only "
        "before and after training.",
        ge=1,
        le=10**12,
    )
    report: bool = option(
        True,
        "Write report.html, a page about the run, into the run directory, and data.json for it, which contains the "
        "text of three rows. false: write neither.",
    )
    report_to: tuple[str, ...] = option(
        (), "Experiment trackers of the transformers Trainer that receive the metrics, such as wandb or tensorboard."
    )
    max_time: str | None = option(
        None,
        "Time limit of the command, such as 55m, 1h30m or 2d. The run saves a checkpoint before the limit and exits "
        "with code 75.",
    )
    save_minutes: float | None = option(
        10.0,
        "Minutes between checkpoints, from which --resume continues; one more is saved after the last step. "
        "off: no checkpoints, except those of save_every.",
        gt=0,
    )
    save_every: int | None = option(None, "Steps between checkpoints, in addition to save_minutes.", ge=1, le=10**12)
    keep_checkpoints: int = option(2, "Number of most recent checkpoints to keep.", ge=1, le=10**12)
    sample_prompt: str | None = option(None, "Prompt answered before and after training; default: a held-out row's.")
    sample_tokens: int = option(64, "Maximum length of the sample answer, in tokens.", ge=1, le=10**9)


DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The configuration of a run."""

    model: str = option(
        DEFAULT_MODEL, "Model to fine-tune: Hub ID, directory or file, or `tiny` for the built-in model."
    )
    start_from: str | None = field(
        default=None,
        metadata={
            "key": "from",
            "help": "Run, or directory of a saved adapter, whose adapter is trained further on its own base; default: "
            "a new adapter.",
        },
    )
    fresh_adapter: bool = option(
        False, "Merge the adapter of `from` into its base first, and train a new adapter on the result."
    )
    loader: ComponentConfig = field(
        default_factory=ComponentConfig,
        metadata={"help": "Loader that opens the model; default: the one that recognizes it."},
    )
    quant: ComponentConfig = field(
        default_factory=ComponentConfig,
        metadata={
            "help": "Quantizer that loads the weights; default: the one that wrote the checkpoint, otherwise `none`."
        },
    )
    adapter: ComponentConfig = field(
        default_factory=ComponentConfig,
        metadata={"help": f"Adapter to train; default: {DEFAULT_ADAPTER}."},
    )
    objective: ComponentConfig = field(
        default_factory=ComponentConfig, metadata={"help": "Objective (loss); default: sft, supervised fine-tuning."}
    )
    formatter: ComponentConfig = field(
        default_factory=ComponentConfig,
        metadata={"help": "Formatter that reads the rows; default: detected from the first row."},
    )
    launcher: ComponentConfig = field(
        default_factory=ComponentConfig,
        metadata={"help": "Launcher that starts the processes of the run; default: none, a single process."},
    )
    optimizer: ComponentConfig = field(
        default_factory=ComponentConfig,
        metadata={"help": "Optimizer of a plugin; default: train.optimizer, an optimizer of the transformers Trainer."},
    )
    tracker: ComponentConfig = field(
        default_factory=ComponentConfig,
        metadata={"help": "Tracker of a plugin that receives the metrics, in addition to train.report_to."},
    )
    data: DataConfig = field(default_factory=DataConfig, metadata={"help": "Training data."})
    calibration: CalibrationConfig = field(
        default_factory=CalibrationConfig, metadata={"help": "Calibration data for quantizers."}
    )
    train: TrainConfig = field(default_factory=TrainConfig, metadata={"help": "The training loop."})
    preset: tuple[str, ...] = option(
        (), "Presets: published settings beneath all others; smollm3 config presets lists them."
    )
    output: str | None = option(None, "Run directory; default: a new one under runs/.")
    device: str = option("auto", "Device: auto, cpu, cuda, cuda:1, mps, …")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = option(
        "auto",
        "Dtype of unquantized weights and of computation. auto: float32 on CPU, bfloat16 on a GPU that supports it.",
    )
    seed: int = option(
        0,
        "Random seed for the order of rows, dropout and parameter initialization; see also data.seed.",
        ge=0,
        le=2**32 - 1,
    )
    plugins: tuple[str, ...] = option((), "Plugin files or modules, as with -p; no:NAME disables a plugin.")
    given: tuple[str, ...] | None = option(
        None,
        "Options of components that were set, such as quant.bits, if this configuration has other options with their "
        "defaults: a run writes it. none: all were set.",
    )


COMPONENT_SECTIONS = ("loader", "quant", "adapter", "objective", "formatter", "launcher", "optimizer", "tracker")
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
