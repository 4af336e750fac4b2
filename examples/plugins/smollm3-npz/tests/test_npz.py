"""Tests: the promises of an exporter and of a loader (conformance kit), and that damaged archives are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from smollm3_npz.exporter import NpzExporter
from smollm3_npz.loader import NpzLoader
from smollm3_npz.options import NpzOptions

from smollm3_finetune.api import Exported, IncompatibleError, ModelError, NoOptions, directory_source, same_bits
from smollm3_finetune.testing import ExporterConformance, LoaderConformance, context, small_source, write_small_model


def exported(source: Any, out: Path, bits: Any = 32) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    NpzExporter(NpzOptions(bits=bits)).write(Exported(model=source, name="small"), out, context(out / "cache"))
    return out / "small.npz"


class TestExporter(ExporterConformance):
    component = "npz"


@pytest.mark.long
class TestExporterOf16Bits(ExporterConformance):
    component = "npz"
    options: ClassVar[Mapping[str, int]] = {"bits": 16}
    precision = 1e-3


class TestLoader(LoaderConformance):
    component = "npz"
    unknown = "nothing.npz"
    files = ()

    def reference(self, directory: Path, seed: int) -> str:
        return str(exported(small_source(seed=seed), directory))


def test_a_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    source = directory_source(write_small_model(tmp_path / "small"), ref="small")
    path = exported(source, tmp_path / "out")
    back = NpzLoader(NoOptions()).open(str(path), context(tmp_path / "cache"))
    ours, theirs = (s.load(dtype=torch.float32).state_dict() for s in (source, back))
    assert ours.keys() == theirs.keys()
    assert all(same_bits(ours[name], theirs[name]) for name in ours)


def test_a_changed_array_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = exported(small_source(), tmp_path)
    data = bytearray(path.read_bytes())
    at = data.index(np.load(path)["model.norm.weight"].tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match="Bad CRC-32"):
        NpzLoader(NoOptions()).open(str(path), context(tmp_path / "cache")).load(dtype=torch.float32)


def test_other_archives_and_weights_that_16_bits_cannot_hold_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "text.npz").write_text("text")
    for name in ("other.npz", "text.npz"):
        with pytest.raises(ModelError, match=f"the archive {name} cannot be read"):
            NpzLoader(NoOptions()).open(str(tmp_path / name), context(tmp_path / "cache"))
    model = small_source().load(dtype=torch.float32)
    model.model.norm.weight.data[0] = 1e6
    model.save_pretrained(tmp_path / "large")
    with pytest.raises(IncompatibleError, match=r"float16 cannot hold the values of model\.norm\.weight"):
        exported(directory_source(tmp_path / "large", ref="large"), tmp_path, bits=16)
