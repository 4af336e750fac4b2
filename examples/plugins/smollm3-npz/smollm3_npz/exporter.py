"""The exporter: it writes, it verifies what is in the files, and it reads them back as a model."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from smollm3_finetune.api import BuildContext, Check, Exported, ModelError, open_checkpoint

from smollm3_npz.options import NpzOptions

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


class NpzExporter:
    def __init__(self, options: NpzOptions) -> None:
        self.dtype = f"float{options.bits}"

    def write(self, subject: Exported, out: Path, ctx: BuildContext) -> None:
        """Write the model into the empty directory `out`. The same model must give the same bytes."""
        arrays: Any = self.rounded(subject)
        np.savez(out / f"{subject.name}.npz", **arrays)

    def verify(self, subject: Exported, out: Path, ctx: BuildContext) -> Sequence[Check]:
        """Compare the files in `out` with the model. The export is deleted if one check has passed=False."""
        wanted, found = self.rounded(subject), self.read(subject, out)
        if odd := sorted(set(wanted) ^ set(found)):
            return [Check(name="weights", passed=False, says=f"{odd[0]} is only in one of the two")]
        if odd := [name for name in wanted if not np.array_equal(wanted[name], found[name])]:
            return [Check(name="weights", passed=False, says=f"{odd[0]} differs from the model's")]
        says = f"{len(found)} arrays equal the model's in {self.dtype}"
        return [Check(name="weights", passed=True, says=says, figures={"arrays": len(found)})]

    def reload(self, subject: Exported, out: Path, ctx: BuildContext) -> Any:
        """The written model, in float32, to measure what rounding costs; None if it cannot be read back."""
        model: Any = subject.model.load(dtype=torch.float32)
        state = {name: torch.from_numpy(array).float() for name, array in self.read(subject, out).items()}
        model.load_state_dict(state, strict=False)  # a tied head is stored once
        model.tie_weights()
        return model.to(ctx.device)

    def rounded(self, subject: Exported) -> Arrays:
        """The weights as they are written, by name."""
        stored = open_checkpoint(subject.model)
        return {name: tensor.float().numpy().astype(self.dtype) for name, tensor in stored.items()}

    def read(self, subject: Exported, out: Path) -> Arrays:
        """The arrays in the file. Raises ModelError if it is damaged."""
        try:
            with open(out / f"{subject.name}.npz", "rb") as file, np.load(file) as archive:
                return dict(archive)
        except (OSError, ValueError, zipfile.BadZipFile) as e:
            raise ModelError(f"the archive cannot be read: {e}") from e
