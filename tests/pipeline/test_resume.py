"""A pipeline that is ended anywhere is continued, and its files are those of a pipeline that was not disturbed."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.files.json import file_sha256
from smollm3_finetune.train import display

Cli = Callable[..., Any]
Status = Callable[[], dict[str, dict[str, Any]]]
PLACES = {
    ("pipeline.run", "write_state"): (1, 4),
    ("pipeline.run", "measured"): (1, 3, 5, 7, 9),
    ("train.run", "check_weights"): (1,),
    ("merge.run", "check_reloaded"): (1,),
    ("quantize.run", "publish"): (1,),
    ("pipeline.evaluating", "write_json"): (1,),
}
"""Functions, and the calls of each at which the process dies: before, in and after the work of every stage."""


class Killed(BaseException):
    """As a kill: no handler of the project sees it."""


def weights(pipe: Path) -> Mapping[str, str]:
    """The SHA-256 of every file with tensors, and of the configs of models."""
    found = [*pipe.glob("*/adapter/*.safetensors"), *pipe.glob("*/*.safetensors"), *pipe.glob("*/config.json")]
    return {f.relative_to(pipe).as_posix(): file_sha256(f) for f in found}


def test_a_pipeline_that_dies_at_every_stage_is_continued(
    cli: Cli, finished: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch, status: Status
) -> None:
    calls: Counter[tuple[str, str]] = Counter()
    died: list[tuple[tuple[str, str], int]] = []

    def fragile(place: tuple[str, str]) -> Callable[..., Any]:
        whole = getattr(import_module(f"smollm3_finetune.{place[0]}"), place[1])

        def call(*args: Any, **values: Any) -> Any:
            calls[place] += 1
            if calls[place] in PLACES[place]:
                died.append((place, calls[place]))
                raise Killed
            return whole(*args, **values)

        return call

    for module, name in PLACES:
        monkeypatch.setattr(f"smollm3_finetune.{module}.{name}", fragile((module, name)))
    for _ in range(20):
        try:
            result = cli("pipeline", "resume" if Path("pipe/pipeline.json").exists() else "run", "p.yaml")
        except Killed:
            continue
        assert result.code == 0, result.stderr
        break
    assert sorted(died) == sorted((place, call) for place, numbers in PLACES.items() for call in numbers)
    assert {s["state"] for s in status().values()} == {"finished"}
    assert {p.name for p in Path("pipe").iterdir()} == {"pipeline.json", "sft", "more", "merged", "q", "check"}
    assert weights(Path("pipe")) == weights(finished / "pipe")


class Stops(display.NoDisplay):
    """Sends SIGTERM to this process after step 1, which ends the run after step 2."""

    def step(self, row: Mapping[str, Any]) -> None:
        if row["step"] == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_saves_the_stage_and_resume_continues_from_its_checkpoint(
    cli: Cli, finished: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch, status: Status
) -> None:
    text = Path("p.yaml").read_text(encoding="utf-8")
    Path("p.yaml").write_text(text[: text.index("  - name: more")], encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(display, "for_stream", Stops)
        stopped = cli("pipeline", "run", "p.yaml")
    assert stopped.code == 128 + signal.SIGTERM
    assert "stage sft: stopped by SIGTERM; step 2 is saved" in stopped.stderr
    assert "to continue: smollm3 pipeline resume p.yaml" in stopped.stderr
    found = status()["sft"]
    assert (found["state"], found["next"], found["reason"]) == ("interrupted", "continue", "from step 2")
    result = cli("pipeline", "resume", "p.yaml")
    assert result.code == 0, result.stderr
    adapter = "sft/adapter/model.safetensors"
    assert weights(Path("pipe"))[adapter] == weights(finished / "pipe")[adapter]


def test_a_stage_that_failed_says_why_and_is_tried_again(
    cli: Cli, finished: Path, copied: Path, monkeypatch: pytest.MonkeyPatch, status: Status
) -> None:
    from smollm3_finetune.errors import ModelError
    from smollm3_finetune.pipeline import quantizing

    def fails(*args: Any) -> None:
        raise ModelError("the weights are bad", hint="use others")

    with monkeypatch.context() as patch:
        patch.setattr(quantizing, "quantize", fails)
        failed = cli("pipeline", "run", "p.yaml", "--again", "q")
    assert failed.code == 6
    assert "stage q: the weights are bad" in failed.stderr
    assert "stage q failed; after the fault is fixed: smollm3 pipeline resume p.yaml" in failed.stderr
    found = status()["q"]
    assert (found["state"], found["error"], found["next"]) == ("failed", "the weights are bad", "continue")
    result = cli("pipeline", "resume", "p.yaml")
    assert result.code == 0, result.stderr
    assert file_sha256(copied / "q-2/model.safetensors") == file_sha256(copied / "q/model.safetensors")
