"""`shipped.json` and `grids.safetensors`: what an adapter was trained to be shipped as, saved beside its weights."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.config.load import plain
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.errors import ModelError
from smollm3_finetune.files.limits import load_json
from smollm3_finetune.files.writing import write_text
from smollm3_finetune.model_files.tensors import open_tensors

if TYPE_CHECKING:
    from torch import Tensor

FILE = "shipped.json"
GRIDS = "grids.safetensors"
VERSION = 1
"""The version of the files; a higher one is refused."""
DTYPES = ("float32", "bfloat16", "float16", "float64")
DIGEST = re.compile(r"[0-9a-f]{64}")

Grids = Mapping[str, Mapping[str, "Tensor"]]
"""Layer to its grid: name to tensor."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What `shipped.json` states."""

    kind: str
    """`quantizer` or `exporter`."""
    config: ComponentConfig
    """The full name of the format, and its options."""
    ship_dtype: str
    """The dtype in which merged weights are rounded before the format rounds them."""
    merged_in: str
    """The dtype in which weights and adapters are added: float32, or float64 if the run computed in it."""
    computed_in: str
    """The dtype in which the run loaded its base."""
    device: str
    """The type of the device that the run computed on."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the shipped weight of each covered layer: its float32 values, row by row, little-endian."""
    grids: tuple[str, ...] = ()
    """The layers that have a grid, which is in `grids.safetensors`."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """The version of the distribution that offers the format."""

    def write(self, path: Path, grids: Grids) -> None:
        """Write both files into the directory `path`."""
        from safetensors.torch import save_file

        about = {
            "version": VERSION,
            "kind": self.kind,
            "format": {"name": self.config.name, **plain(self.config.options)},
            "given": sorted(self.config.set_options()),
            "ship_dtype": self.ship_dtype,
            "merged_in": self.merged_in,
            "computed_in": self.computed_in,
            "device": self.device,
            "versions": dict(self.versions),
            "grids": sorted(layer for layer, grid in grids.items() if grid),
            "layers": dict(self.digests),
        }
        tensors = {
            f"{layer}/{name}": tensor.detach().cpu().contiguous().clone()
            for layer, grid in sorted(grids.items())
            for name, tensor in sorted(grid.items())
        }
        if tensors:
            save_file(tensors, str(path / GRIDS), metadata={"format": "pt"})
        write_text(path / FILE, json.dumps(about, indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """The record in the directory of an adapter; None if it was not trained for a format.

        Raises ModelError if the file is damaged or of a later version.
        """
        file = path / FILE
        if not file.is_file():
            if (path / GRIDS).exists():
                raise ModelError(f"{path} has {GRIDS}, but {FILE} is missing", hint="copy the adapter again")
            return None
        try:
            about = load_json(file)
            version = about["version"]
            if not isinstance(version, int) or isinstance(version, bool):
                raise TypeError("version must be a whole number")
            if version > VERSION:
                raise ModelError(
                    f"{file} has version {version}, which this version of smollm3 does not read (it reads {VERSION})",
                    hint="pip install --upgrade smollm3-finetune",
                )
            record = cls._of(about)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
            raise ModelError(f"{file} is damaged: {type(e).__name__}: {e}", hint="copy the adapter again") from e
        if record.grids and not (path / GRIDS).is_file():
            raise ModelError(f"{path} lacks {GRIDS}, which {FILE} names", hint="copy the adapter again")
        return record

    @classmethod
    def _of(cls, about: Mapping[str, Any]) -> Record:
        values = dict(about["format"])
        name, given, layers = values.pop("name"), about["given"], about["layers"]
        texts = [name, *(about[key] for key in ("kind", "ship_dtype", "merged_in", "computed_in", "device"))]
        if not all(isinstance(text, str) for text in (*texts, *given, *about["grids"])):
            raise TypeError("format, dtypes, device and names of grids must be text")
        versions = about["versions"]
        if not isinstance(versions, dict) or not all(isinstance(text, str) for text in versions.values()):
            raise TypeError("versions must be text by name")
        if about["kind"] not in ("quantizer", "exporter"):
            raise ValueError(f"unknown kind {about['kind']!r}")
        for key in ("ship_dtype", "merged_in", "computed_in"):
            if about[key] not in DTYPES:
                raise ValueError(f"unknown {key} {about[key]!r}")
        if not layers or not all(isinstance(d, str) and DIGEST.fullmatch(d) for d in layers.values()):
            raise ValueError("layers must have a SHA-256 each")
        if unknown := sorted(set(about["grids"]) - set(layers)):
            raise ValueError(f"there is a grid for {unknown[0]!r}, which is not among the layers")
        return cls(
            kind=about["kind"],
            config=ComponentConfig(name=name, options=values, given=frozenset(given)),
            ship_dtype=about["ship_dtype"],
            merged_in=about["merged_in"],
            computed_in=about["computed_in"],
            device=about["device"],
            digests=layers,
            grids=tuple(about["grids"]),
            versions=versions,
        )

    def read_grids(self, path: Path, device: str = "cpu") -> dict[str, dict[str, Tensor]]:
        """The grids in the directory `path`, by layer; layers without one are not in it.

        Raises ModelError if the file is damaged, or has other layers than the record names.
        """
        found: dict[str, dict[str, Tensor]] = {}
        if not self.grids:
            return found
        with open_tensors(path / GRIDS, device) as tensors:
            for key in tensors.keys():  # noqa: SIM118  (not a mapping)
                layer, _, name = key.rpartition("/")
                found.setdefault(layer, {})[name] = tensors.get_tensor(key)
        if different := sorted(set(found) ^ set(self.grids)):
            raise ModelError(
                f"{path / GRIDS} and {FILE} differ in the grid of layer {different[0]!r}",
                hint="copy the adapter again",
            )
        return found


def digest(weight: Tensor) -> str:
    """SHA-256 of the values of a weight as float32, row by row, little-endian; zero has no sign."""
    import torch

    values = weight.detach().to("cpu", torch.float32).contiguous() + 0.0
    return hashlib.sha256(values.numpy().astype("<f4", copy=False)).hexdigest()
