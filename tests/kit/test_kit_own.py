"""The built-in components and those in tests/out_of_tree pass the conformance kit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from smollm3_finetune.api import ModelSource, Purpose, directory_source
from smollm3_finetune.testing import (
    AdapterConformance,
    LoaderConformance,
    QuantizerConformance,
    small_source,
    write_small_model,
)

pytest_plugins = ["smollm3_finetune.testing.fixtures"]

OUT_OF_TREE = Path(__file__).parents[1] / "out_of_tree"


def test_the_small_model_is_written_once_and_loads(small_model: Path) -> None:
    assert small_model == Path(small_source().path)
    model = small_source().load()
    assert model.config.num_hidden_layers == 2
    assert sum(name.endswith("bias") for name, _ in model.named_parameters()) == 14, (
        "seven layers in each of two blocks"
    )
    assert model.lm_head.weight is model.get_input_embeddings().weight


class TestNone(QuantizerConformance):
    component = "none"
    bits = 32  # nothing is rounded


class TestRowsInt8(QuantizerConformance):
    component = "rows-int8"
    plugins = (OUT_OF_TREE / "one_way_quantizer.py",)
    bits = 8
    altering = ({"bits": 4},)


class Unpinned(TestRowsInt8):
    component = "rows-int8-unpinned"
    __test__ = False


def test_a_kernel_that_is_repacked_fails_the_kit(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"no gradient flows to the input of .* \(after an evaluation\)"):
        Unpinned().test_gradients_stay_right_through_a_run(tmp_path)


def test_without_bits_the_bound_is_that_of_three_bits(tmp_path: Path) -> None:
    class Unstated(TestRowsInt8):
        bits = None

    class Coarse(Unstated):
        options: ClassVar = {"bits": 2}

    Unstated().test_forward_is_near_the_dense_model(tmp_path)
    with pytest.raises(pytest.fail.Exception, match="3 bits, because `bits` is not set"):
        Coarse().test_forward_is_near_the_dense_model(tmp_path)


class TestRounding(QuantizerConformance):
    """Loads its own checkpoints into ordinary layers."""

    component = "rounding"
    plugins = (OUT_OF_TREE / "rounding_quantizer.py",)
    bits = 8

    def written(self, tmp_path: Path, seed: int) -> ModelSource:
        out = tmp_path / f"rounded-{seed}"
        if not out.exists():
            out.mkdir()
            dense = directory_source(write_small_model(tmp_path / f"dense-{seed}", seed=seed), ref="dense")
            self.choose().create().write(dense, out, self.context(tmp_path, Purpose.QUANTIZE))
        return directory_source(out, ref="rounded")

    def source(self, tmp_path: Path) -> ModelSource:
        return self.written(tmp_path, 0)

    def other_source(self, tmp_path: Path) -> ModelSource:
        return self.written(tmp_path, 1)


class TestFull(AdapterConformance):
    component = "full"


class TestFullOfNorms(AdapterConformance):
    component = "full"
    options: ClassVar = {"parameters": ("*norm.weight",)}


class TestScale(AdapterConformance):
    component = "scale"
    plugins = (OUT_OF_TREE / "scale_adapter.py",)


class TestHF(LoaderConformance):
    component = "hf"
    unknown = "/nowhere/nothing"

    def reference(self, directory: Path, seed: int) -> str:
        return str(write_small_model(directory / "small", seed=seed))


class TestVault(LoaderConformance):
    component = "vault"
    plugins = (OUT_OF_TREE / "vault_loader.py",)
    unknown = "vault://nothing"

    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def reference(self, directory: Path, seed: int) -> str:
        write_small_model(directory / "small", seed=seed)
        self.monkeypatch.setenv("VAULT", str(directory))
        return "vault://small"


def test_watching_for_weights_leaves_the_libraries_as_they_were() -> None:
    """Also in a process in which transformers' models were never imported before."""
    code = (
        "from smollm3_finetune.testing.loaders import reads_no_weights\n"
        "with reads_no_weights('open()'):\n"
        "    import transformers.modeling_utils as m\n"
        "import safetensors; assert m.safe_open is safetensors.safe_open\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
