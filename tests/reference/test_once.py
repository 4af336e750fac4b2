"""Values that are computed once, before the first step, and found in the cache afterwards."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from toy_runs import Run, assert_same_run, losses

from smollm3_finetune import finetune
from smollm3_finetune.errors import ConfigError, IncompatibleError, ModelError, WriteError
from smollm3_finetune.reference.stored import Stored, write


def entries(tmp_path: Path) -> list[Path]:
    return sorted(p for p in (tmp_path / "cache" / "reference").glob("*") if p.is_dir())


def reset(toy: ModuleType) -> None:
    toy.seen.clear()
    toy.forwards.clear()


CASES = [
    pytest.param("scale", "base", {}, id="base-flat", marks=pytest.mark.long),
    pytest.param("scale", "base", {"padding": "always"}, id="base-padded", marks=pytest.mark.long),
    pytest.param("scale", "base", {"packing": True}, id="base-packed"),
    pytest.param("scale", "base", {"group_by_length": True}, id="base-grouped", marks=pytest.mark.long),
    pytest.param("full", "start", {"learning_rate": 1e-3}, id="start", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("adapter", "reference", "settings"), CASES)
def test_once_is_each_step_up_to_rounding_and_runs_no_forward_the_second_time(
    run: Run, toy: ModuleType, tmp_path: Path, adapter: str, reference: str, settings: dict[str, Any]
) -> None:
    run("each", adapter, reference=reference, **settings)
    each = [r for _, _, r in toy.seen]
    assert len(toy.forwards) == len(each) and not entries(tmp_path)
    reset(toy)
    run("once", adapter, reference=reference, when="once", **settings)
    once = [r for _, _, r in toy.seen]
    assert sum(toy.forwards) == 12, "each pair is computed once"
    assert len(once) == len(each)
    for found, right in zip(once, each, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-4)
    assert losses("once") == pytest.approx(losses("each"), rel=1e-3)
    reset(toy)
    run("again", adapter, reference=reference, when="once", **settings)
    assert toy.forwards == [], "the values are found in the cache"
    assert_same_run("once", "again")
    assert len(entries(tmp_path)) == 1


def killed_and_resumed(run: Run, toy: ModuleType, adapter: Any, **settings: Any) -> None:
    """The runs `whole`, and `killed`, which is killed after its checkpoint and resumed."""
    run("whole", adapter, save_every=2, **settings)
    reset(toy)
    toy.stop_before[0] = 4
    with pytest.raises(Exception, match="killed"):
        run("killed", adapter, save_every=2, **settings)
    toy.stop_before[0] = None
    reset(toy)


@pytest.mark.long
@pytest.mark.parametrize(("adapter", "reference"), [("scale", "base"), ("full", "start")])
def test_a_run_that_was_killed_and_resumed_is_the_same(
    run: Run, toy: ModuleType, tmp_path: Path, adapter: str, reference: str
) -> None:
    killed_and_resumed(run, toy, adapter, reference=reference, when="once")
    run("killed", resume=True)
    assert toy.forwards == []
    assert_same_run("whole", "killed")


@pytest.mark.long
def test_a_resumed_run_whose_values_were_deleted_computes_the_same(run: Run, toy: ModuleType, tmp_path: Path) -> None:
    killed_and_resumed(run, toy, "full", reference="start", when="once", learning_rate=1e-3)
    (entry,) = entries(tmp_path)
    shutil.rmtree(entry)
    run("killed", resume=True)
    assert sum(toy.forwards) == 12
    assert entries(tmp_path) == [entry], "the key is the same, although the weights have moved"
    assert_same_run("whole", "killed")


def test_values_that_a_run_refers_to_are_not_cleaned(run: Run, cli: Any, tmp_path: Path) -> None:
    run("runs/one", when="once")
    (entry,) = entries(tmp_path)
    about = json.loads(Path("runs/one/reference.json").read_text())
    assert about["entry"] == f"reference/{entry.name}"
    assert about["entry"] in json.loads(Path("runs/one/cache.json").read_text())["entries"]
    assert cli("cache", "clean", "--yes", "--kind", "reference").code == 0
    assert entries(tmp_path) == [entry]
    shutil.rmtree("runs/one")
    assert cli("cache", "clean", "--yes", "--kind", "reference").code == 0
    assert entries(tmp_path) == []


@pytest.mark.long
def test_other_options_rows_and_precisions_have_their_own_values(
    run: Run, toy: ModuleType, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(toy.Pairs, "reference_options", ("reference",))
    run("one", when="once", max_steps=1)
    run("other beta", when="once", max_steps=1, objective={"beta": 0.1})
    assert len(entries(tmp_path)) == 1, "the values do not depend on beta"
    run("start", when="once", max_steps=1, reference="start")
    assert len(entries(tmp_path)) == 2, "an option of reference_options"
    run("bfloat16", when="once", max_steps=1, dtype="bfloat16")
    assert len(entries(tmp_path)) == 3


# ------------------------------------------------------------------------------------------- another model


@pytest.fixture
def teacher(isolated: Path) -> Path:
    """The embedded model with other weights."""
    from transformers import AutoModelForCausalLM

    from smollm3_finetune.testing.small import EMBEDDED

    shutil.copytree(EMBEDDED, isolated / "teacher")
    model = AutoModelForCausalLM.from_pretrained(isolated / "teacher")
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(0.5)
    model.save_pretrained(isolated / "teacher")
    return isolated / "teacher"


def test_another_model_is_evaluated_and_freed_before_the_trained_one_is_loaded(
    run: Run, toy: ModuleType, teacher: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    from smollm3_finetune.train import run as module

    compose, alive = module.compose, []
    teachers: list[Any] = []
    values_of = toy.Pairs.reference_values

    def noted(self: Any, model: Any, batch: Any) -> Any:
        if not any(seen() is model for seen in teachers):
            teachers.append(weakref.ref(model))
        return values_of(self, model, batch)

    def student(*args: Any, **kwargs: Any) -> Any:
        alive.append([seen() for seen in teachers if seen() is not None])
        return compose(*args, **kwargs)

    monkeypatch.setattr(toy.Pairs, "reference_values", noted)
    monkeypatch.setattr(module, "compose", student)
    report = run("run", reference="model", objective={"model": str(teacher)})
    assert len(teachers) == 1 and alive == [[]], "the teacher is freed"
    assert sum(toy.forwards) == 12
    assert report["reference"] == {"kind": "model", "computed": "once", "model": str(teacher)}
    assert "| reference of the loss | `teacher` |" in Path("run/adapter/README.md").read_text()
    (entry,) = entries(tmp_path)
    assert len(Stored(entry / "train")) + len(Stored(entry / "held_out-0")) == 12
    _, margin, _ = next(s for s in toy.seen if s[0])
    assert float(margin.abs().min()) > 1e-3, "the models differ"
    assert report["before"]["held_out_loss"] != pytest.approx(0.6931, abs=1e-3)
    gc.collect()
    reset(toy)
    monkeypatch.setattr("smollm3_finetune.reference.other_model.loaded_model", None)
    run("again", reference="model", objective={"model": str(teacher)})
    assert toy.forwards == [] and len(teachers) == 1, "the second run does not load the teacher"
    assert_same_run("run", "again")


@pytest.mark.long
def test_the_own_unquantized_model_is_the_default(run: Run, toy: ModuleType) -> None:
    run("run", reference="model")
    _, margin, _ = next(s for s in toy.seen if s[0])
    assert float(margin.abs().max()) < 1e-4, "the model is its own reference"


def test_a_model_with_another_vocabulary_is_refused(run: Run, toy: ModuleType, teacher: Path) -> None:
    file = teacher / "tokenizer.json"
    about = json.loads(file.read_text())
    vocabulary = about["model"]["vocab"]
    one, other = sorted(vocabulary, key=vocabulary.get)[300:302]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    file.write_text(json.dumps(about))
    with pytest.raises(IncompatibleError) as refused:
        run("run", reference="model", objective={"model": str(teacher)})
    assert refused.value.message == (
        f"the reference model {str(teacher)!r} has another vocabulary than 'tiny': 4 entries differ"
    )
    assert refused.value.hint == "--objective-opt model=MODEL, a model with the tokenizer of 'tiny'"
    assert not Path("run").exists()


@pytest.mark.long
def test_a_resumed_run_refuses_a_model_with_other_weights(run: Run, toy: ModuleType, teacher: Path) -> None:
    killed_and_resumed(run, toy, "scale", reference="model", objective={"model": str(teacher)})
    run("killed", resume=True)
    assert toy.forwards == []
    assert_same_run("whole", "killed")
    Path("killed/report.json").unlink()
    file = teacher / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ModelError, match="has other weights than when the run killed started"):
        finetune(resume="killed", quiet=True, plugins=("toy_pairs.py", "scale_adapter.py"), train={"max_steps": 6})


def test_once_needs_an_objective_with_values(run: Run, toy: ModuleType, isolated: Path) -> None:
    with pytest.raises(ConfigError, match="needs an objective with a reference") as refused:
        run("run", reference="none", when="once")
    assert refused.value.hint == "--set train.reference=each-step"


def test_values_that_do_not_fit_on_the_disk_are_refused_after_the_first_examples(
    run: Run, toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two float32 values for each of the 12 pairs: 96 bytes."""
    from smollm3_finetune.files import room

    def free(needed: int) -> None:
        monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed))
        monkeypatch.setattr("smollm3_finetune.reference.whole.BLOCK", 3)

    free(95)
    with pytest.raises(WriteError, match=r"the reference of 12 examples needs 96 B, but .* has 95 B free") as refused:
        run("run", when="once", max_steps=1)
    assert refused.value.hint == "choose another disk: SMOLLM3_CACHE=DIR"
    assert sum(toy.forwards) == 3, "the others are not computed"
    assert not entries(tmp_path)


# ------------------------------------------------------------------------------------------------ the files


def test_values_of_any_shape_and_dtype_are_read_as_they_were_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = [
        {
            "scalar": torch.randn(()),
            "tokens": torch.randn(n % 4).to(torch.bfloat16),
            "top": torch.randint(0, 9, (n % 3, 5)),
        }
        for n in range(1100)
    ]
    write(tmp_path / "values", [made[:512], made[512:1024], made[1024:]])
    stored = Stored(tmp_path / "values")
    assert len(stored) == 1100
    for n in (*range(0, 1100, 7), -1):
        for name, value in made[n].items():
            found = stored[n][name]
            assert found.dtype == value.dtype and found.shape == value.shape and torch.equal(found, value)
    with pytest.raises(IndexError):
        stored[1100]
