"""What users read about `compressed-tensors`; the conformance kit tests what every quantizer promises."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ["smollm3_finetune.testing.fixtures"]  # for `cli`

pytestmark = pytest.mark.plugins
NAME = "compressed-tensors"


def test_the_help_shows_every_option(cli: Any) -> None:
    shown = cli("plugins", "info", NAME, "--device", "cpu")
    assert shown.code == 0, shown.stderr
    for text in ("scheme", "group_size", "skip_modules"):
        assert text in shown.stdout


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("scheme=W3A16", "scheme"),
        ("group_size=24", "groups of 24 do not divide the 128 in_features of model.layers.0.mlp.down_proj"),
        ("group_size=0", "a group needs at least one input feature"),
        ("bits=4", "bits"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(cli: Any, small_model: Any, option: str, said: str) -> None:
    done = cli("config", "validate", "--model", small_model, "--quant", NAME, "--quant-opt", option)
    assert done.code == 2, done.stdout
    assert said in done.stderr


def test_a_float_scheme_takes_no_groups(cli: Any, small_model: Any) -> None:
    options = ("--quant-opt", "scheme=FP8A16", "--quant-opt", "group_size=64")
    done = cli("config", "validate", "--model", small_model, "--quant", NAME, *options)
    assert done.code == 2
    assert "FP8A16 has a scale per row, and no groups" in done.stderr


def test_a_quantized_checkpoint_takes_no_options(cli: Any, small_model: Any, tmp_path: Path) -> None:
    stored = tmp_path / "stored"
    shutil.copytree(small_model, stored)
    config = json.loads((stored / "config.json").read_text())
    group = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int"}}
    config["quantization_config"] = {
        "quant_method": NAME, "format": "pack-quantized", "config_groups": {"group_0": group},
    }  # fmt: skip
    (stored / "config.json").write_text(json.dumps(config))
    done = cli("config", "validate", "--model", str(stored), "--max-length", "128")  # claimed without --quant
    assert done.code == 0, done.stderr
    done = cli("config", "validate", "--model", str(stored), "--quant", NAME, "--quant-opt", "scheme=W8A16")
    assert done.code == 2
    assert "is already quantized, so it takes no scheme" in done.stderr
