"""The file of a pipeline is read whole: every problem has file and line, and references are to earlier stages only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from smollm3_finetune.errors import ConfigError, Problems, SmolLM3Error
from smollm3_finetune.pipeline.file import read_pipeline
from smollm3_finetune.pipeline.layout import PipelineDir

CHAIN = """\
model: tiny
train: {max_steps: 2}
stages:
  - name: sft
    data: {limit: 20}
  - name: apo
    from: sft
    train:
      learning_rate: 1e-6
  - name: merged
    from: apo
    merge: true
  - name: q
    from: merged
    quantize: {name: gptq, bits: 8}
  - name: both
    from: sft
    merge: {dtype: float32}
    quantize: gptq
  - name: on-q
    model: {stage: q}
  - name: check
    from: apo
    eval: {against: sft, answers: 0}
"""
Write = Callable[[str], Path]


@pytest.fixture
def write(isolated: Path) -> Write:
    def to_file(text: str) -> Path:
        Path("p.yaml").write_text(text, encoding="utf-8")
        return Path("p.yaml")

    return to_file


def problems(path: Path) -> list[SmolLM3Error]:
    with pytest.raises(ConfigError) as caught:
        read_pipeline(path)
    return [caught.value]


def test_kinds_references_and_settings_of_stages(write: Write) -> None:
    read = read_pipeline(write(CHAIN))
    assert [(s.name, s.kind) for s in read.stages] == [
        ("sft", "train"), ("apo", "train"), ("merged", "merge"), ("q", "quantize"), ("both", "merge"),
        ("on-q", "train"), ("check", "eval"),
    ]  # fmt: skip
    assert [s.stages() for s in read.stages] == [[], ["sft"], ["apo"], ["merged"], ["sft"], ["q"], ["apo", "sft"]]
    assert [(s.key, s.value, s.origin) for s in read.stage("apo").settings] == [
        (("train", "learning_rate"), 1e-6, "p.yaml:9")
    ]
    assert [(s.key, s.value) for s in read.defaults] == [(("model",), "tiny"), (("train", "max_steps"), 2)]
    quantize = read.stage("q").quantize
    assert quantize is not None
    assert (quantize.name, quantize.options) == ("gptq", {"bits": 8})
    assert read.stage("both").quantize is not None
    assert read.name == "p"
    assert PipelineDir.of(read).path == Path("runs/pipelines/p")


def stages(*entries: str) -> str:
    return "stages:\n" + "".join(f"  - {entry}\n" for entry in entries)


SFT, MERGED = "{name: sft}", "{name: merged, from: sft, merge: true}"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("model: tiny\n", "p.yaml is not a pipeline: it has no stages", "smollm3 train --config p.yaml"),
        ("stages: {}\n", "p.yaml:1: stages must be a list of stages, each with a name", "stages: [{name: sft}]"),
        (stages("sft"), "p.yaml:2: expected a stage, got 'sft'", "- name: sft"),
        (stages("{merge: true}"), "p.yaml:2: the stage has no name", "name: sft"),
        (
            stages("{name: a b}"),
            "p.yaml:2: the name of a stage has letters, digits, - and _, got 'a b'", None,
        ),
        (stages(SFT, SFT), "p.yaml:3: two stages are called 'sft'", "name: sft-2"),
        ("modell: tiny\n" + stages(SFT), "p.yaml:1: unknown key 'modell'", "did you mean 'model'?"),
        (stages("{name: sft, quantise: gptq}"), "p.yaml:2: unknown key 'quantise'", "did you mean 'quantize'?"),
        ("from: x\n" + stages(SFT), "p.yaml:1: from is a key of a stage, not a default", "stages: from: …"),
        (
            stages("{name: sft, output: x}"),
            "p.yaml:2: the pipeline decides the output of a stage", "output: DIRECTORY at the top level",
        ),
        (
            stages("{name: apo, from: sft}", SFT),
            "p.yaml:2: from needs an earlier stage, and 'sft' comes later", "move the stages",
        ),
        (
            stages("{name: sft, from: sft}"),
            "p.yaml:2: from needs an earlier stage, and 'sft' is this stage", "move the stages",
        ),
        (
            stages(SFT, "{name: apo, from: stf}"),
            "p.yaml:3: from: there is no earlier stage or path 'stf'", "did you mean 'sft'?",
        ),
        (stages(SFT, "{name: m, merge: true}"),
         "p.yaml:3: the stage 'm' needs from, the stage whose result it takes", "from: sft"),
        (
            stages(SFT, MERGED, "{name: apo, from: merged}"),
            "p.yaml:4: from trains the adapter of a train stage further, and 'merged' writes a model",
            "to train a new adapter on it: model: {stage: merged}",
        ),
        (
            stages(SFT, "{name: apo, model: {stage: sft}}"),
            "p.yaml:3: the stage 'sft' writes no model", "to train its adapter further: from: sft",
        ),
        (
            stages(SFT, "{name: apo, model: {path: sft}}"),
            "p.yaml:3: model must be text or {stage: NAME}", "model: {stage: NAME}",
        ),
        (
            stages(SFT, "{name: q, from: sft, quantize: gptq}"),
            "p.yaml:3: 'sft' is a train stage, and quantize needs a model",
            "to merge and quantize: merge: true in the same stage",
        ),
        (
            stages(SFT, "{name: m, from: sft, merge: true, eval: true}"),
            "p.yaml:3: a stage cannot merge and eval", "eval in a stage of its own",
        ),
        (
            stages(SFT, "{name: m, from: sft, merge: true, train: {max_steps: 3}}"),
            "p.yaml:3: the merge stage 'm' has no key 'train'",
            "train belongs to a train stage; keys here: loader, device",
        ),
        (
            stages(SFT, "{name: m, from: sft, merge: {dtyp: float32}}"),
            "p.yaml:3: unknown key 'merge.dtyp'", "did you mean 'merge.dtype'?",
        ),
        (
            stages(SFT, "{name: m, from: sft, merge: float32}"),
            "p.yaml:3: merge must be true or a mapping of options, got 'float32'", "merge: true",
        ),
        (
            stages(SFT, MERGED, "{name: q, from: merged, quantize: {bits: 4}}"),
            "p.yaml:4: quantize must be a quantizer, or a mapping with name and options, got {'bits': 4}",
            "quantize: NAME; to see the names: smollm3 plugins list",
        ),
        (
            stages(SFT, "{name: c, from: sft, eval: {limit: 0}}"),
            "p.yaml:3: eval.limit: expected integer (at least 1) or none, got 0", None,
        ),
        ("name: a b\n" + stages(SFT), "p.yaml:1: the name of a pipeline has letters, digits, - and _, got 'a b'", None),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_its_line(write: Write, text: str, message: str, hint: str | None) -> None:
    (error,) = problems(write(text))
    assert error.message == message
    if hint is not None:
        assert error.hint == hint


def test_problems_of_several_stages_are_reported_together(write: Write) -> None:
    path = write("modell: tiny\n" + stages("{name: sft, adaptor: lora}", "{name: apo, from: sft, oputput: x}"))
    with pytest.raises(Problems) as caught:
        read_pipeline(path)
    assert [p.message for p in caught.value.problems] == [
        "p.yaml:1: unknown key 'modell'", "p.yaml:3: unknown key 'adaptor'", "p.yaml:4: unknown key 'oputput'",
    ]  # fmt: skip


def test_a_directory_of_somebody_else_is_refused(write: Write) -> None:
    path = write("output: mine\n" + stages(SFT))
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="the directory mine is not empty, and holds no pipeline"):
        PipelineDir.of(read_pipeline(path))
    Path("mine/notes.txt").unlink()
    other = Path("other.yaml")
    other.write_text(path.read_text(), encoding="utf-8")
    Path("mine/pipeline.json").write_text(f'{{"file": "{other.absolute()}"}}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"the directory mine holds the pipeline of .*other\.yaml"):
        PipelineDir.of(read_pipeline(path))
    other.unlink()  # the file was renamed
    assert PipelineDir.of(read_pipeline(path)).path == Path("mine")


def test_a_file_is_the_same_by_another_spelling(write: Write) -> None:
    path = write("output: mine\n" + stages(SFT)).absolute()
    Path("mine").mkdir()
    Path("linked").symlink_to(path.parent)
    for spelling in (path.parent / "mine" / ".." / path.name, Path("linked").absolute() / path.name):
        Path("mine/pipeline.json").write_text(f'{{"file": "{spelling}"}}', encoding="utf-8")
        assert PipelineDir.of(read_pipeline(path)).path == Path("mine")
