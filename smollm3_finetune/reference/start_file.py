"""The initial values of the trained parameters in the directory of a run, which a resumed run reads."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from smollm3_finetune.api import load_parameters, save_parameters
from smollm3_finetune.errors import ModelError
from smollm3_finetune.files.checksums import CHECKSUMS, damage, write_checksums
from smollm3_finetune.files.partial import unfinished
from smollm3_finetune.files.writing import sync_entry, sync_tree
from smollm3_finetune.reference.start import trained_parameters

if TYPE_CHECKING:
    from torch import Tensor, nn

FILE = "trained.safetensors"


def write_start(directory: Path, values: Mapping[str, Tensor]) -> None:
    """Write the values and their checksums; `directory` appears whole or not at all."""
    with unfinished(directory) as partial:
        save_parameters(partial / FILE, values)
        write_checksums(partial)
        sync_tree(partial)
        shutil.rmtree(directory, ignore_errors=True)
        partial.rename(directory)
        sync_entry(directory.parent)


def read_start(directory: Path, model: nn.Module, again: str) -> dict[str, Tensor]:
    """The values of the trained parameters of `model` at the start of a run.

    Raises ModelError, with the hint `again`, if the file is missing or damaged, or has other parameters: a run that
    took its current weights for the reference would train on another loss. If no parameter of the model is trained, as
    in an evaluation, the file decides which ones were.
    """
    file = directory / FILE
    what = f"the reference of the run, its weights before the first step ({file}),"
    if not file.is_file() or not (directory / CHECKSUMS).is_file():
        raise ModelError(f"{what} is missing", hint=again)
    if (found := damage(directory)) is not None:
        raise ModelError(f"{what} is damaged: {found}", hint=again)
    values, named = load_parameters(file), dict(model.named_parameters())
    trained = trained_parameters(model) or {name: named[name] for name in values if name in named}
    for name in sorted({*values, *trained}):
        if name not in values or name not in trained or values[name].shape != trained[name].shape:
            raise ModelError(f"{what} does not fit the trained parameters: {name} differs", hint=again)
    return values


def start_again(run: Path) -> str:
    """The command that starts a run again, for a hint."""
    return f"start a new run: smollm3 train --config {shlex.quote(str(run / 'run.yaml'))}"
