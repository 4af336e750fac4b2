"""The built-in exporter and the example pass the kit; what `safetensors` must find is injected and found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from smollm3_finetune.api import BuildContext, ConfigError, Exported, IncompatibleError
from smollm3_finetune.builtin.exporters.safetensors import SafetensorsExporter, bytes_of
from smollm3_finetune.builtin.options import SafetensorsOptions
from smollm3_finetune.files.json import read_json, write_json
from smollm3_finetune.testing import ExporterConformance

EXAMPLE = Path(__file__).parents[2] / "examples" / "npz_export.py"


class TestSafetensors(ExporterConformance):
    component = "safetensors"


class TestSafetensorsInBfloat16(ExporterConformance):
    component = "safetensors"
    options: ClassVar = {"dtype": "bfloat16", "max_shard_size": "120KB"}
    precision = 4e-3


class TestNpz(ExporterConformance):
    component = "npz"
    plugins = (EXAMPLE,)
    options: ClassVar = {"bits": 16}
    precision = 1e-3


# ----------------------------------------------------------------------------------------------------- faults


def edited(name: str, **values: Any) -> Callable[[Path], None]:
    """Changes keys of a JSON file of an export."""
    return lambda out: write_json(out / name, {**read_json(out / name), **values})


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    """Changes the tensors of an export."""

    def apply(out: Path) -> None:
        state = load_file(str(out / "model.safetensors"))
        change(state)
        save_file(state, str(out / "model.safetensors"), metadata={"format": "pt"})

    return apply


def drop(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda state: state.__delitem__(name)


def shift_ids(out: Path) -> None:
    """Two tokens of the vocabulary change places."""
    about = json.loads((out / "tokenizer.json").read_text())
    vocabulary = about["model"]["vocab"]
    one, other = sorted(vocabulary, key=vocabulary.get)[300:302]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (out / "tokenizer.json").write_text(json.dumps(about))


NORM, PROJECTION = "model.layers.0.input_layernorm.weight", "model.layers.1.mlp.up_proj.weight"
FAULTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "tie": (edited("config.json", tie_word_embeddings=False), "config", "tie_word_embeddings"),
    "NoPE layers": (edited("config.json", no_rope_layers=[1, 1]), "config", "no_rope_layers"),
    "dropped tensor": (tensors(drop(NORM)), "weights", NORM),
    "added tensor": (tensors(lambda s: s.update({"lm_head.bias": torch.zeros(2048)})), "weights", "lm_head.bias"),
    "last bit": (tensors(lambda s: s[PROJECTION].view(torch.int32)[3, 3].add_(1)), "weights", PROJECTION),
    "stop token": (edited("generation_config.json", eos_token_id=[3]), "stop tokens", "[3, 4]"),
    "padding": (edited("generation_config.json", pad_token_id=9), "stop tokens", "pad_token_id"),
    "template": (lambda out: (out / "chat_template.jinja").write_text("{{ 1 }}") and None, "tokenizer", "template"),
    "token ids": (shift_ids, "tokenizer", "vocabulary"),
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Exported, Path, BuildContext]:
    case, place = TestSafetensors(), tmp_path_factory.mktemp("exported")
    subject = case.subject(place)
    return subject, case.written(place, subject), case.context(place)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_named(fault: str, exported: tuple[Exported, Path, BuildContext], tmp_path: Path) -> None:
    subject, right, context = exported
    inject, name, says = FAULTS[fault]
    out = tmp_path / "out"
    shutil.copytree(right, out)
    inject(out)
    checks = SafetensorsExporter(SafetensorsOptions()).verify(subject, out, context)
    failed = {c.name: c.says for c in checks if c.passed is False}
    assert says in failed[name], failed


def test_every_value_is_rounded_once_and_the_logits_are_those_of_the_rounded_weights(tmp_path: Path) -> None:
    case = TestSafetensorsInBfloat16()
    subject = case.subject(tmp_path)
    out = case.written(tmp_path, subject)
    assert len(list(out.glob("*.safetensors"))) >= 3 and (out / "model.safetensors.index.json").is_file()
    source = load_file(str(subject.model.path / "model.safetensors"))
    found = {k: v for f in out.glob("*.safetensors") for k, v in load_file(str(f)).items()}
    assert all(torch.equal(found[name], source[name].to(torch.bfloat16)) for name in source)
    assert read_json(out / "config.json")["dtype"] == "bfloat16"
    (logits,) = (c for c in case.checks(tmp_path, subject, out) if c.name == "logits")
    assert logits.passed and logits.figures["difference"] <= 1e-6


def test_values_that_a_dtype_cannot_represent_are_refused(tmp_path: Path) -> None:
    case = TestSafetensors()
    subject = case.subject(tmp_path)
    tensors(lambda s: s[PROJECTION].mul_(1e6))(subject.model.path)
    out = tmp_path / "out"
    out.mkdir()
    exporter = SafetensorsExporter(SafetensorsOptions(dtype="float16"))
    with pytest.raises(IncompatibleError, match=f"{PROJECTION} has values up to .*float16 cannot represent"):
        exporter.write(subject, out, case.context(tmp_path))


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("500 mb", 5 * 10**8), ("1.5GiB", 3 * 2**29), ("2000", 2000)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "GB", "five", "0", "-1GB", "5 parsecs"])
def test_other_texts_are_not_sizes(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a size such as 5GB"):
        bytes_of(text)
