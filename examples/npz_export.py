"""Exporter `npz`: the weights of a model as one NumPy archive.

smollm3 export RUN -p examples/npz_export.py --to npz --bits 16
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smollm3_finetune.api import Check, ExporterSpec, ModelError, hookimpl, open_checkpoint, option


@dataclass(frozen=True, kw_only=True)
class NpzOptions:
    bits: Literal[16, 32] = option(32, "Bits of each weight.")


@hookimpl
def smollm3_exporters():
    return [
        ExporterSpec(
            name="npz",
            summary="the weights as one NumPy archive",
            factory="npz_export:NpzExporter",
            options="npz_export:NpzOptions",
            api=2,
        )
    ]


class NpzExporter:
    def __init__(self, options):
        self.dtype = f"float{options.bits}"

    def rounded(self, subject):
        return {
            name: tensor.float().numpy().astype(self.dtype) for name, tensor in open_checkpoint(subject.model).items()
        }

    def write(self, subject, out, ctx):
        import numpy as np

        np.savez(out / f"{subject.name}.npz", **self.rounded(subject))

    def read(self, subject, out):
        import zipfile

        import numpy as np

        try:
            with open(out / f"{subject.name}.npz", "rb") as file, np.load(file) as archive:
                return dict(archive)
        except (OSError, ValueError, zipfile.BadZipFile) as e:
            raise ModelError(f"the archive cannot be read: {e}") from e

    def verify(self, subject, out, ctx):
        import numpy as np

        wanted, found = self.rounded(subject), self.read(subject, out)
        odd = set(wanted) ^ set(found) or {n for n in wanted if not np.array_equal(wanted[n], found[n])}
        says = (
            f"{min(odd)} differs from the model's" if odd else f"{len(wanted)} arrays equal the model's in {self.dtype}"
        )
        return [Check(name="weights", passed=not odd, says=says, figures={"arrays": len(found)})]

    def reload(self, subject, out, ctx):
        import torch

        model = subject.model.load(dtype=torch.float32)
        state = {name: torch.from_numpy(array).float() for name, array in self.read(subject, out).items()}
        model.load_state_dict(state, strict=False)  # a tied head is stored once
        model.tie_weights()
        return model.to(ctx.device)
