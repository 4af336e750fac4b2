"""`smollm3 plan` with its questions, on a predictor whose figures are known."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.memory.memory_plan import MemoryPlan
from smollm3_finetune.memory.records import MemoryRecord, record_run, records_file
from smollm3_finetune.train.plan import RunPlan

MB = 10**6
QUICK = ("--no-plugins", "--adapter", "full", "--device", "cpu", "--set", "data.limit=20")

Cli = Callable[..., Any]


class Known:
    """Predicts 500 MB and 10 kB for each token, a fifth of that with gradient checkpointing."""

    unknown: tuple[str, ...] = ()

    def __init__(self, plan: RunPlan, registry: Any) -> None:
        self.each = 2000 if plan.config.train.gradient_checkpointing else 10_000

    def __call__(self, *, length: int, batch: int) -> MemoryPlan:
        parts = {} if self.unknown else {"weights": 500 * MB, "activations": self.each * length * batch}
        peak = sum(parts.values())
        return MemoryPlan(
            device="cpu",
            length=length,
            batch=batch,
            parts=parts,
            low=peak,
            high=round(1.1 * peak),
            unknown=self.unknown,
        )


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch) -> type[Known]:
    monkeypatch.setattr("smollm3_finetune.memory.predictor.Estimator", Known)
    return Known


@pytest.mark.usefixtures("predictor")
def test_fit(cli: Cli) -> None:
    args = ("plan", *QUICK, "--max-length", "512", "--batch-size", "2")
    about = cli(*args, "--fit", "0.6GB", "--json").report()
    fits = 6 * 10**8 / 1.1  # 4,545 tokens
    assert about["memory"]["peak"] == 510_240_000
    assert about["fit"]["fits"]
    assert about["fit"]["longest"] == {"length": 2048, "batch": 2}, "the context of the built-in model"
    assert about["fit"]["largest"] == {"length": 512, "batch": int((fits - 500 * MB) / 10_000 / 512)}
    text = cli(*args, "--fit", "0.6GB").stdout
    assert "fits into 600 MB: 512 tokens, batch 2 takes at most 561 MB" in text
    assert "longest rows   2,048 tokens at batch 2: --max-length 2048" in text
    assert "largest batch  8 rows at 512 tokens: --batch-size 8" in text
    assert "      1024              4" in text


@pytest.mark.usefixtures("predictor")
def test_what_does_not_fit(cli: Cli) -> None:
    args = ("plan", *QUICK, "--max-length", "512", "--batch-size", "8")
    text = cli(*args, "--fit", "560MB").stdout
    assert "does not fit into 560 MB: at most 595 MB for 512 tokens, batch 8" in text
    assert "--max-length 64" in text
    assert "largest batch  1 row at 512 tokens: --batch-size 1" in text
    text = cli(*args, "--fit", "500MB").stdout
    assert "nothing fits into 500 MB: one row of 8 tokens takes at most 550 MB" in text


def test_fit_needs_a_prediction(cli: Cli, predictor: type[Known], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "unknown", ("the memory of 'x' was not measured",))
    done = cli("plan", *QUICK, "--fit", "1GB")
    assert done.code == 2
    assert "--fit has no prediction to search: the memory of 'x' was not measured" in done.stderr
    assert "--probe 3" in done.stderr
    text = cli("plan", *QUICK).stdout
    assert "the memory is unknown" in text and "the memory of 'x' was not measured" in text


@pytest.mark.usefixtures("predictor")
def test_compare(cli: Cli) -> None:
    args = ("plan", *QUICK, "--max-length", "512", "--batch-size", "2", "--compare")
    about = cli(*args, "--json").report()["comparison"]
    assert [(c["gradient_checkpointing"], c["batch_size"]) for c in about["ranked"][:3]] == [
        (True, 1), (True, 2), (True, 4),
    ]  # fmt: skip
    assert sum(c["own"] for c in about["ranked"]) == 1
    text = cli(*args, "--fit", "560MB").stdout
    assert "quantizer" in text and "fits" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--fit", "24"), "--fit '24' is less than a megabyte: the unit is missing"),
        (("--fit", "much"), "--fit 'much' is not a size of memory"),
        (("--probe", "1"), "--probe must be from 2 to 1000 steps, got 1"),
        (("--with-adapter", "lora"), "--with-adapter adds to a comparison"),
        (("--compare", "--with-adapter", "lroa"), "lroa"),
    ],
)
@pytest.mark.usefixtures("predictor")
def test_mistakes(cli: Cli, args: tuple[str, ...], message: str) -> None:
    done = cli("plan", *QUICK, *args)
    assert done.code == 2
    assert message in done.stderr
    assert "hint" in done.stderr


@pytest.mark.usefixtures("predictor")
def test_finished_runs_correct_the_prediction(cli: Cli, tmp_path: Path) -> None:
    import json

    args = ("plan", *QUICK, "--max-length", "512", "--batch-size", "2")
    assert "corrected" not in cli(*args).stdout
    about = {"device": "cpu", "machine": platform.node(), "tokens": 1024, "key": "k", "run": "runs/x"}
    record = MemoryRecord(**about, predicted=500 * MB, measured=550 * MB)
    file = records_file(tmp_path / "cache")
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(record.as_json()) + "\n")
    text = cli(*args).stdout
    assert "corrected by +10.0% by the measured memory of 1 finished run on this machine" in text
    file.write_text(json.dumps({**record.as_json(), "measured": 450 * MB}) + "\n")
    assert "correction    -51.0 MB" in cli(*args).stdout
    file.write_text(json.dumps(record.as_json()) + "\n")
    corrected = cli(*args, "--json").report()["memory"]
    assert corrected["peak"] == round(510_240_000 * 1.1)
    assert corrected["correction"] == {"runs": 1, "factor": 1.1, "same_settings": 0, "measured": None}
    assert cli(*args, "--uncorrected", "--json").report()["memory"]["peak"] == 510_240_000


@pytest.mark.usefixtures("predictor")
def test_a_finished_run_is_remembered_without_delay_or_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from smollm3_finetune.components.discovery import PluginSelection, discover
    from smollm3_finetune.config.load import assignment
    from smollm3_finetune.memory.predictor import remember
    from smollm3_finetune.progress import Silent
    from smollm3_finetune.train.start import plan_training

    about = {"adapter.name": "full", "data.limit": 20, "device": "cpu"}
    planned = plan_training(
        [assignment(f"{key}={value}", "the test") for key, value in about.items()],
        find_plugins=lambda names: discover(PluginSelection.of(tuple(names), no_plugins=True)),
        progress=Silent(),
        warn=print,
    )
    memory = {"device": "cpu", "peak": 600 * MB, "floor": 1, "batch_tokens": 77}
    report: dict[str, Any] = {"run": "runs/x", "seconds": 61, "memory": memory}
    found = remember(planned.plan, planned.registry, report)
    assert found is not None and found.measured == 600 * MB
    others: list[dict[str, Any]] = [{"seconds": 59}, {"memory": {**memory, "peak": MB}}, {"memory": {}}]
    for other in others:
        assert remember(planned.plan, planned.registry, {**report, **other}) is None
    assert remember(planned.plan, planned.registry, {}) is None

    def fails(*args: Any) -> None:
        print("a library says something")
        raise RuntimeError

    monkeypatch.setattr("smollm3_finetune.memory.predictor.Estimator", fails)
    assert remember(planned.plan, planned.registry, report) is None
    assert tuple(capsys.readouterr()) == ("", "")


def test_a_record_is_of_the_settings_and_not_of_the_batches(tmp_path: Path) -> None:
    from smollm3_finetune.components.discovery import PluginSelection, discover
    from smollm3_finetune.config.load import assignment
    from smollm3_finetune.memory.records import key_of, read_records
    from smollm3_finetune.progress import Silent
    from smollm3_finetune.train.start import plan_training

    def plan(**settings: Any) -> RunPlan:
        about = {"adapter.name": "full", "data.limit": 20, "device": "cpu", **settings}
        return plan_training(
            [assignment(f"{key}={value}", "the test") for key, value in about.items()],
            find_plugins=lambda names: discover(PluginSelection.of(tuple(names), no_plugins=True)),
            progress=Silent(),
            warn=print,
        ).plan

    one, other = plan(), plan(**{"train.batch_size": 3, "data.max_length": 64, "train.max_steps": 2})
    assert key_of(one) == key_of(other) != key_of(plan(**{"train.gradient_checkpointing": "true"}))
    memory = {"device": "cpu", "peak": 300 * MB, "floor": 1, "batch_tokens": 77}
    predicted = MemoryPlan(device="cpu", length=77, batch=1, parts={"weights": 290 * MB}, low=1, high=2)
    record = record_run(one, memory, predicted, "runs/x")
    assert record is not None and (record.predicted, record.measured, record.tokens) == (290 * MB, 300 * MB, 77)
    assert read_records(tmp_path / "cache", "cpu") == [record]
    assert record_run(one, {"batch_tokens": 77}, predicted, "runs/x") is None, "its memory was not measured"
    assert read_records(tmp_path / "cache", "cpu") == [record]
