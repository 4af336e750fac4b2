"""Exporter `peft`: the adapter alone, in the files that PEFT reads. The base is not needed, and nothing is merged."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smollm3_finetune.api import (
    BuildContext,
    Check,
    Exported,
    IncompatibleError,
    ModelError,
    NoOptions,
    copy_model_files,
    file_digest,
    model_files,
    open_tensors,
    read_json,
    same_bits,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


class PeftExporter:
    def __init__(self, options: NoOptions) -> None:
        pass

    def write(self, subject: Exported, out: Path, ctx: BuildContext) -> None:
        adapter = _adapter(subject)
        if not (adapter / WEIGHTS).is_file() or not _peft_type(adapter):
            raise IncompatibleError(
                f"the adapter in {adapter} is not saved in PEFT's format: it needs {CONFIG} with a peft_type, and "
                f"{WEIGHTS}",
                hint="export the merged model instead: --to safetensors",
            )
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(adapter / name, out / name)
        copy_model_files(adapter, out, ctx.progress.say)

    def verify(self, subject: Exported, out: Path, ctx: BuildContext) -> Sequence[Check]:
        return [_weights(subject, out), _config(subject, out), _others(subject, out), _loads(out)]

    def reload(self, subject: Exported, out: Path, ctx: BuildContext) -> PreTrainedModel | None:
        return None  # an adapter alone is not a model


def _adapter(subject: Exported) -> Path:
    assert subject.adapter is not None, "an exporter that takes an adapter gets one"
    return subject.adapter


def _peft_type(adapter: Path) -> str | None:
    """The method that the config of a saved adapter states."""
    if not (adapter / CONFIG).is_file():
        return None
    stated = read_json(adapter / CONFIG).get("peft_type")
    return stated if isinstance(stated, str) else None


def _weights(subject: Exported, out: Path) -> Check:
    """Every tensor of the adapter is there, bit for bit."""
    try:
        with open_tensors(_adapter(subject) / WEIGHTS) as wanted, open_tensors(out / WEIGHTS) as found:
            names, written = sorted(wanted.keys()), sorted(found.keys())
            if odd := sorted({*names} ^ {*written}):
                return Check(name="weights", passed=False, says=f"{odd[0]} is only in one of the two adapters")
            changed = [name for name in names if not same_bits(wanted.get_tensor(name), found.get_tensor(name))]
    except ModelError as e:
        return Check(name="weights", passed=False, says=e.message)
    if changed:
        return Check(name="weights", passed=False, says=f"the values of {changed[0]} differ from the adapter's")
    says = f"{len(names)} tensors equal the adapter's, bit for bit"
    return Check(name="weights", passed=True, says=says, figures={"tensors": len(names)})


def _config(subject: Exported, out: Path) -> Check:
    """The config is the adapter's."""
    try:
        same = read_json(out / CONFIG) == read_json(_adapter(subject) / CONFIG)
    except ModelError as e:
        return Check(name="config", passed=False, says=e.message)
    return Check(name="config", passed=same, says=f"{CONFIG} {'is' if same else 'is not'} the adapter's")


def _others(subject: Exported, out: Path) -> Check:
    """The tokenizer, the template and the other files beside the weights are the adapter's."""
    names = [file.name for file in model_files(_adapter(subject))]
    odd = [
        name for name in names if not (out / name).is_file() or _digest(out, name) != _digest(_adapter(subject), name)
    ]
    says = f"{odd[0]} differs from the adapter's" if odd else f"{len(names)} other files are the adapter's"
    return Check(name="tokenizer", passed=not odd, says=says)


def _digest(directory: Path, name: str) -> str:
    return file_digest(directory / name)


def _loads(out: Path) -> Check:
    """PEFT reads the config."""
    from peft import PeftConfig

    try:
        method = str(PeftConfig.from_pretrained(str(out)).peft_type.value)
    except Exception as e:  # whatever PEFT raises for a config of another version
        return Check(name="loads in PEFT", passed=False, says=f"PEFT does not read {CONFIG}: {type(e).__name__}: {e}")
    return Check(name="loads in PEFT", passed=True, says=f"PEFT reads {CONFIG} as {method}")
