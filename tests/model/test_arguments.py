"""Wrong arguments of the Python functions are SmolLM3Errors that name the argument, and read no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from smollm3_finetune import finetune, load_model
from smollm3_finetune.errors import ConfigError, SmolLM3Error

WRONG_FOR_LOADING: tuple[tuple[dict[str, Any], str], ...] = (
    ({"ref": 5}, "ref: expected text or a path, got 5"),
    ({"ref": b"tiny"}, "ref: expected text or a path"),
    ({"ref": None}, "ref: expected text or a path, got None"),
    ({"ref": ""}, "there is no model ''"),
    ({"ref": "a\0b"}, "NUL"),
    ({"ref": "gone"}, "there is no model 'gone'"),
    ({"purpose": "tune"}, "purpose: expected train|infer|merge|quantize|export, got 'tune'"),
    ({"purpose": None}, "purpose: expected"),
    ({"purpose": ["train"]}, "purpose: expected"),
    ({"quant": 4}, "quant: expected a name, got 4"),
    ({"quant": "nnone"}, "there is no quantizer 'nnone'"),
    ({"quant": {"name": 4}}, "quant: expected a name, got 4"),
    ({"quant": "none", "quant_options": 5}, "quant_options: expected a mapping, got 5"),
    ({"quant": "none", "quant_options": {"bits": 4}}, "has no option 'bits'"),
    ({"quant": "none", "quant_options": {4: 4}}, "has no option '4'"),
    ({"adapter": 5}, "adapter: expected a name, got 5"),
    ({"adapter": ""}, "there is no adapter ''"),
    ({"adapter": False}, "adapter: expected a name, got False"),
    ({"adapter": {"rank": 8}}, "adapter: options are given without a name"),
    ({"adapter_options": {"rank": 8}}, "adapter: options are given without a name"),
    ({"adapter": {"name": "full", "parameters": 7.5}}, "parameters"),
    ({"loader": ["hf"]}, "loader: expected a name"),
    ({"loader": "hf", "loader_options": {"revision": ["a"]}}, "revision"),
    ({"adapter_path": 5}, "adapter_path: expected text or a path, got 5"),
    ({"adapter_path": "gone"}, "there is no adapter directory 'gone'"),
    ({"adapter_path": ""}, "adapter"),
    ({"adapter_path": "~nobody-here/x"}, "has no home directory"),
    ({"device": 0}, "device: expected text, got 0"),
    ({"device": "gpuu"}, "gpuu"),
    ({"device": None}, "device: expected text, got None"),
    ({"dtype": 16}, "dtype: expected text, got 16"),
    ({"dtype": "bf61"}, "bf61"),
    ({"dtype": torch.int8}, "int8"),
    ({"seed": "x"}, "seed: expected an integer, got 'x'"),
    ({"seed": -1}, "seed: expected an integer (at least 0, at most 4294967295), got -1"),
    ({"seed": True}, "seed: expected an integer, got True"),
    ({"total_steps": 0}, "total_steps: expected an integer (at least 1), got 0"),
    ({"total_steps": 1.5}, "total_steps: expected an integer, got 1.5"),
    ({"calibration": [[1, 2]]}, "calibration: expected a function"),
    ({"plugins": 5}, "plugins: expected a list of files or modules, got 5"),
    ({"plugins": [5]}, "plugins: expected text or a path, got 5"),
    ({"plugins": "gone.py"}, "gone.py"),
    ({"registry": "x"}, "registry: expected an object of"),
    ({"cache": "x"}, "cache: expected an object of"),
)
WRONG_FOR_TRAINING: tuple[tuple[dict[str, Any], str], ...] = (
    ({"model": 5}, "model: expected text or a path, got 5"),
    ({"model": "gone"}, "there is no model 'gone'"),
    ({"data": 5}, "the data file '5' does not exist"),
    ({"data": True}, "data.path: expected"),
    ({"data": "gone.jsonl"}, "the data file 'gone.jsonl' does not exist"),
    ({"data": {"max_lenght": 5}}, "unknown key 'data.max_lenght'"),
    ({"data": [{"path": "rows.jsonl", "wieght": 2}]}, "wieght"),
    ({"data": []}, "data.path is an empty list"),
    ({"output": 5}, "output: expected text or a path, got 5"),
    ({"output": "rows.jsonl"}, "is a file"),
    ({"quant": 5}, "quant.name: expected text, got 5"),
    ({"quant": {"name": "none", "bits": 4}}, "has no option 'bits'"),
    ({"adapter": ["full"]}, "adapter.name: expected text"),
    ({"adapter": "fll"}, "there is no adapter 'fll'"),
    ({"objective": "sfft"}, "there is no objective 'sfft'"),
    ({"train": 5}, "expected a mapping for train, got 5"),
    ({"train": {"max_steps": 0}}, "train.max_steps: expected integer (at least 1) or none, got 0"),
    ({"train": {"learning_rate": float("nan")}}, "train.learning_rate"),
    ({"train": {"optimizer": "adamm"}}, "adamm"),
    ({"calibration": "rows.jsonl"}, "expected a mapping for calibration"),
    ({"device": 0}, "device: expected text, got 0"),
    ({"device": "gpuu"}, "gpuu"),
    ({"dtype": "bf61"}, "dtype: expected"),
    ({"seed": "x"}, "seed: expected integer"),
    ({"config": 5}, "config: expected text or a path, got 5"),
    ({"config": "gone.yaml"}, "the configuration file gone.yaml does not exist"),
    ({"resume": 5}, "resume: expected text or a path, got 5"),
    ({"resume": "gone"}, "the run directory 'gone' does not exist"),
    ({"plugins": 5}, "plugins: expected a list"),
    ({"plugins": "gone.py"}, "gone.py"),
)


@pytest.mark.parametrize(("arguments", "said"), WRONG_FOR_LOADING, ids=lambda v: str(v)[:60])
def test_load_model_raises_its_own_errors(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(SmolLM3Error) as caught:
        load_model(**arguments)
    assert said in str(caught.value)


@pytest.mark.parametrize(("arguments", "said"), WRONG_FOR_TRAINING, ids=lambda v: str(v)[:60])
def test_finetune_raises_its_own_errors(arguments: dict[str, Any], said: str, isolated: Path, rows_file: Path) -> None:
    (isolated / "rows.jsonl").write_bytes(rows_file.read_bytes())
    with pytest.raises(SmolLM3Error) as caught:
        finetune(**{"adapter": "full", "device": "cpu", **arguments}, quiet=True)
    assert said in str(caught.value)
    assert sorted(p.name for p in isolated.iterdir()) == ["rows.jsonl"]


def test_a_similar_purpose_is_suggested() -> None:
    with pytest.raises(ConfigError) as caught:
        load_model(purpose="trian")
    assert caught.value.hint == "did you mean 'train'?"


def test_torch_objects_name_a_device_and_a_dtype() -> None:
    loaded = load_model(device=torch.device("cpu"), dtype=torch.bfloat16)
    assert next(loaded.model.parameters()).dtype is torch.bfloat16
    assert str(loaded.plan.context.device) == "cpu"


def test_an_adapter_is_saved_into_a_directory_named_by_text(isolated: Path) -> None:
    loaded = load_model(adapter="full", purpose="train", device="cpu")
    loaded.save("first/adapter")
    again = load_model(adapter_path="first/adapter", device="cpu")
    assert again.adapted is not None
    (isolated / "file").write_text("")
    for wrong, said in (
        ("file", "is a file"),
        ("file/inside", "is a file"),
        (5, "path: expected text or a path"),
        ("a\0", "NUL"),
    ):
        with pytest.raises(ConfigError, match=said):
            loaded.save(wrong)  # type: ignore[arg-type]
