"""What a stage depends on counts by its content, and is read once."""

from __future__ import annotations

from pathlib import Path

import pytest

from smollm3_finetune.api import Progress
from smollm3_finetune.cli.session import find_plugins
from smollm3_finetune.files.json import file_sha256
from smollm3_finetune.pipeline.run import Pipeline, open_pipeline
from smollm3_finetune.progress import Silent
from smollm3_finetune.testing import write_small_model

TWO = """\
model: model
device: cpu
stages:
  - name: one
    adapter: full
  - name: two
    adapter: full
    train: {max_steps: 2}
  - name: check
    model: model
    data: {path: rows.jsonl}
    eval: {against: other.gguf}
"""


@pytest.fixture
def pipeline(isolated: Path) -> Pipeline:
    write_small_model(Path("model"))
    Path("rows.jsonl").write_text('{"prompt": "2 + 2", "completion": "4"}\n', encoding="utf-8")
    Path("other.gguf").write_bytes(b"1")
    Path("p.yaml").write_text(TWO, encoding="utf-8")
    return opened()


def opened() -> Pipeline:
    progress: Progress = Silent()
    return open_pipeline("p.yaml", find_plugins=lambda names: find_plugins(names, True), progress=progress, warn=print)


def inputs(pipeline: Pipeline, name: str) -> dict[str, str]:
    return dict(pipeline.inputs(pipeline.file.stage(name), {}))


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja", "model.safetensors", "config.json"])
def test_every_file_of_a_local_model_counts(pipeline: Pipeline, name: str) -> None:
    before = inputs(pipeline, "one")
    file = Path("model") / name
    file.write_bytes((file.read_bytes() if file.exists() else b"") + b" ")
    assert changed(before, inputs(pipeline, "one")) == {"model"}
    Path("model/README.md").write_text("another card", encoding="utf-8")
    assert changed(before, inputs(opened(), "one")) == {"model"}


def test_a_card_and_a_license_do_not_count(pipeline: Pipeline) -> None:
    before = inputs(pipeline, "one")
    for name in ("README.md", "LICENSE", "LICENSE.txt"):
        (Path("model") / name).write_text("x", encoding="utf-8")
    assert inputs(opened(), "one") == before


def test_a_file_to_compare_with_counts_by_its_content(pipeline: Pipeline) -> None:
    before = inputs(pipeline, "check")
    Path("other.gguf").write_bytes(b"2")
    assert changed(before, inputs(pipeline, "check")) == {"against"}


def test_weights_are_read_once_for_all_stages_until_they_change(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(path: str | Path) -> str:
        read.append(Path(path).name)
        return file_sha256(path)

    for module in ("model_files.source", "pipeline.contents"):
        monkeypatch.setattr(f"smollm3_finetune.{module}.file_sha256", counted)
    first = [inputs(pipeline, name) for name in ("one", "two", "check")]
    assert first == [inputs(pipeline, name) for name in ("one", "two", "check")]
    assert first[0]["model"] == first[1]["model"] == first[2]["model"]
    assert (read.count("model.safetensors"), read.count("other.gguf")) == (1, 1)
    weights = Path("model/model.safetensors")
    weights.write_bytes(weights.read_bytes() + b" ")
    assert inputs(pipeline, "one")["model"] != first[0]["model"]
    assert read.count("model.safetensors") == 2
