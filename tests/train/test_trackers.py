"""Real trackers: what they give back is what metrics.jsonl holds. Skipped where one is not installed.

`nox -s trackers` installs all of them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

RUN = (
    "train", "--adapter", "full", "--device", "cpu", "--max-steps", "5", "--set", "data.limit=40",
    "--set", "train.sample_tokens=2", "--set", "train.eval_every=2", "--output", "run",
)  # fmt: skip
STEP = "train/global_step"
OF_STEPS = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_gb")
MEASURED = {"loss": "held_out_loss", "perplexity": "perplexity"}
Found = dict[tuple[str, int], float]
"""Values by their name in the tracker and by step."""


def expected(prefixes: tuple[str, str]) -> Found:
    """The values of metrics.jsonl, by the names that transformers gives them in a tracker."""
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    training, evaluation = prefixes
    found = {(training + name, r["step"]): r[name] for r in rows if "loss" in r for name in OF_STEPS}
    measured = [r for r in rows if "held_out_loss" in r]
    assert [r["step"] for r in measured] == [2, 4, 5]
    return found | {(evaluation + n, r["step"]): r[ours] for r in measured for n, ours in MEASURED.items()}


def train(tracker: str, **environment: str) -> None:
    """A run in a process of its own, as a user starts it."""
    assert importlib.util.find_spec(tracker) is not None
    done = subprocess.run(
        [sys.executable, "-m", "smollm3_finetune.main", *RUN, "--set", f"train.report_to={tracker}"],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower()


def compare(found: Found, prefixes: tuple[str, str] = ("train/", "eval/"), *, single: bool = False) -> None:
    """Every value of metrics.jsonl is there, at its step; `single`: in single precision."""
    wanted = expected(prefixes)
    assert len(wanted) == 5 * len(OF_STEPS) + 3 * len(MEASURED)
    assert wanted.keys() <= found.keys()
    for key, value in wanted.items():
        assert found[key] == (pytest.approx(value, rel=1e-7) if single else value), key
    print(f"{len(wanted)} values", "in single precision" if single else "equal")


def of_rows(rows: Iterator[dict[str, Any]]) -> Found:
    """The values of rows that have a step of their own."""
    return {(name, int(row[STEP])): value for row in rows for name, value in row.items() if name != STEP}


def test_tensorboard() -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train("tensorboard")
    events = EventAccumulator("run/tensorboard").Reload()
    assert len(list(Path("run/tensorboard").iterdir())) == 1, "one file, which the last measurement is in too"
    compare({(name, e.step): e.value for name in events.Tags()["scalars"] for e in events.Scalars(name)}, single=True)


def test_trackio(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    train("trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    code = (
        "import json; from trackio.sqlite_storage import SQLiteStorage; "
        "print(json.dumps(SQLiteStorage.get_logs('huggingface', 'run')))"
    )
    read = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = [{k: v for k, v in row.items() if k not in ("timestamp", "step")} for row in json.loads(read.stdout)]
    assert len(rows) >= 8
    compare(of_rows(iter(rows)))


@pytest.mark.parametrize("store", ["file:mlruns", "sqlite:///mlflow.db"])
def test_mlflow(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    train("mlflow", MLFLOW_TRACKING_URI=store)
    client = mlflow.MlflowClient(tracking_uri=store)
    (run,) = client.search_runs(["0"])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    names = [*OF_STEPS, *(f"eval_{name}" for name in MEASURED)]
    history = {name: client.get_metric_history(run.info.run_id, name) for name in names}
    compare({(name, m.step): m.value for name, values in history.items() for m in values}, ("", "eval_"))


def test_wandb() -> None:
    """Offline; W&B offers no function that reads such a file, so its own messages are read from it."""
    pytest.importorskip("wandb")
    train("wandb", WANDB_MODE="offline", WANDB_SILENT="true")
    (file,) = Path("wandb").glob("offline-run-*/*.wandb")
    compare(of_rows(history_of(file)))


def history_of(file: Path) -> Iterator[dict[str, Any]]:
    """The logged rows in a file of an offline W&B run: a log in LevelDB's format, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, block, whole = file.read_bytes(), 7, 32768, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if block - at % block < 7:  # too short for the header of a record
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record, whole = Record.FromString(whole), b""
            if record.WhichOneof("record_type") == "history":
                items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                yield {k: v for k, v in items.items() if not k.startswith("_")}
