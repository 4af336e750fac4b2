"""What a stage depends on counts by its content, and is read once."""

from __future__ import annotations

from pathlib import Path

import pytest

from smollm3_finetune.api import Progress
from smollm3_finetune.cli.session import find_plugins
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.files.json import file_sha256
from smollm3_finetune.model.saved_adapter import SavedAdapter
from smollm3_finetune.pipeline.run import Pipeline, open_pipeline
from smollm3_finetune.progress import Silent
from smollm3_finetune.testing import write_small_model

ROUNDING = Path(__file__).parents[1] / "out_of_tree" / "rounding_quantizer.py"
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


FRESH = """\
plugins: ["{plugin}"]
device: cpu
stages:
  - name: one
    from: start
    fresh_adapter: true
    calibration: {{rows: {rows}, path: rows.jsonl}}
"""


@pytest.mark.parametrize(("method", "counts"), [("rounding-rows", True), ("rounding", False)])
def test_calibration_counts_if_the_quantizer_of_the_merged_adapter_reads_it(
    pipeline: Pipeline, method: str, counts: bool
) -> None:
    Path("start").mkdir()
    quant = ComponentConfig(name=method)
    parts = {"loader": ComponentConfig(name="hf"), "quant": quant, "adapter": ComponentConfig(name="full")}
    SavedAdapter(path=Path("start"), model="model", **parts).write()

    def with_rows(rows: int) -> dict[str, str]:
        Path("p.yaml").write_text(FRESH.format(plugin=ROUNDING, rows=rows), encoding="utf-8")
        return inputs(opened(), "one")

    before = with_rows(8)
    assert changed(before, with_rows(9)) == ({"configuration"} if counts else set())
    with Path("rows.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"prompt": "3 + 3", "completion": "6"}\n')
    assert changed(before, with_rows(8)) == ({"rows"} if counts else set())
