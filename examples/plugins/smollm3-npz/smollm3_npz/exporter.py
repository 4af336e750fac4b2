"""The exporter: it writes an archive, verifies what is in it, and reads it back as a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smollm3_finetune.api import BuildContext, Check, Exported, IncompatibleError, model_files, open_checkpoint
from smollm3_npz.archive import FILE, Array, open_archive, weights, write_archive
from smollm3_npz.options import NpzOptions


class NpzExporter:
    def __init__(self, options: NpzOptions) -> None:
        self.dtype = f"float{options.bits}"

    def write(self, subject: Exported, out: Path, ctx: BuildContext) -> None:
        """Write the archive. Raises IncompatibleError if a weight is too large for 16 bits."""
        write_archive(out / f"{subject.name}.npz", self._arrays(subject))

    def verify(self, subject: Exported, out: Path, ctx: BuildContext) -> Sequence[Check]:
        """Compare each array and each file in the archive with the model."""
        odd, count = "", 0
        with open_archive(out / f"{subject.name}.npz") as archive:
            pairs = zip_longest(self._arrays(subject), archive.items(), fillvalue=("an array", np.array(None)))
            for count, ((name, wanted), (stored, found)) in enumerate(pairs, 1):  # noqa: B007
                if not odd and (name != stored or not np.array_equal(wanted, found)):
                    odd = name
        says = f"{odd} differs from the model's" if odd else f"{count} arrays equal the model's in {self.dtype}"
        return [Check(name="contents", passed=not odd, says=says, figures={"arrays": count})]

    def reload(self, subject: Exported, out: Path, ctx: BuildContext) -> Any:
        """The written model in float32, to measure what rounding costs."""
        model: Any = subject.model.load(dtype=torch.float32)
        with open_archive(out / f"{subject.name}.npz") as archive:
            state = {name: torch.from_numpy(array).float() for name, array in weights(archive)}
        model.load_state_dict(state, strict=False)  # a tied head is stored once
        model.tie_weights()
        return model.to(ctx.device)

    def _arrays(self, subject: Exported) -> Iterator[tuple[str, Array]]:
        """What the archive holds, in its order."""
        directory = subject.model.path
        for file in (directory / "config.json", *model_files(directory)):
            yield f"{FILE}{file.name}", np.frombuffer(file.read_bytes(), np.uint8)
        for name, tensor in open_checkpoint(subject.model).items():
            with np.errstate(over="ignore"):
                array = tensor.float().numpy().astype(self.dtype)
            if not np.isfinite(array).all():
                raise IncompatibleError(f"npz: {self.dtype} cannot hold the values of {name}", hint="--to-opt bits=32")
            yield name, array
