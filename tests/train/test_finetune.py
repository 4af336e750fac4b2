"""`finetune` is `smollm3 train` as a function: the same run, the same report."""

from __future__ import annotations

import errno
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file

from smollm3_finetune import finetune
from smollm3_finetune.config.load import assemble, file_settings
from smollm3_finetune.errors import ConfigError, SmolLM3Error, WriteError
from smollm3_finetune.testing.commands import Result

SMALL: dict[str, Any] = {"adapter": "full", "device": "cpu", "quiet": True}
TIMES = ("memory", "seconds", "checkpoints", "seconds_to_first_step", "run", "adapter")


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in report.items() if k not in TIMES}


def test_a_run_from_python_is_the_run_of_the_command(
    cli: Callable[..., Result], isolated: Path, rows_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = finetune(
        "tiny", **SMALL, data=rows_file, output="python", seed=3, train={"max_steps": 2, "batch_size": 2},
    )  # fmt: skip
    assert report["steps"] == 2
    assert report == json.loads(Path("python/report.json").read_text())
    out = capsys.readouterr()
    assert (out.out, "step 1/2" in out.err) == ("", False)
    command = cli(
        "train", "--adapter", "full", "--data", rows_file, "--device", "cpu", "--output", "command", "--seed", "3",
        "--max-steps", "2", "--batch-size", "2", "--json",
    )  # fmt: skip
    assert without_times(command.report()) == without_times(report)
    one, other = (assemble([file_settings(Path(name) / "run.yaml")]).config for name in ("python", "command"))
    assert one == other


def test_arguments_override_a_file_and_sections_are_mappings(isolated: Path, rows_file: Path) -> None:
    Path("run.yaml").write_text("train: {max_steps: 9, batch_size: 3}\nquant: none\nseed: 5\n")
    plan = finetune(
        **SMALL, config=Path("run.yaml"), dry_run=True, train={"max_steps": 4}, loader={"name": "tiny"},
        data={"path": [rows_file, {"path": str(rows_file), "weight": 2}], "max_length": 64},
    )  # fmt: skip
    config = plan["config"]
    assert (config["train"]["max_steps"], config["train"]["batch_size"], config["seed"]) == (4, 3, 5)
    assert config["data"]["max_length"] == 64
    assert [entry["path"] for entry in config["data"]["path"]] == [str(rows_file)] * 2
    assert plan["rows"]["train"] + plan["rows"]["held_out"] == 8
    assert [p.name for p in isolated.iterdir()] == ["run.yaml"]


def test_a_run_is_resumed(isolated: Path, rows_file: Path) -> None:
    finetune(**SMALL, data=rows_file, output="run", train={"max_steps": 1, "save_every": 1})
    report = finetune(resume="run", train={"max_steps": 2}, quiet=True)
    assert report["steps"] == 2
    with pytest.raises(
        ConfigError, match=r"finetune\(\): train\.learning_rate cannot be used with resume: the run uses its saved"
    ):
        finetune(resume="run", train={"learning_rate": 1e-3}, quiet=True)


ANNEALED = Path(__file__).parents[1] / "out_of_tree" / "annealed_adapter.py"


@pytest.mark.parametrize("version", [2, 1])
def test_an_adapter_with_a_schedule_follows_the_steps_of_the_extended_run(
    isolated: Path, rows_file: Path, version: int
) -> None:
    """In version 1 of the plugin API, restore() is not told the number of steps."""
    text = ANNEALED.read_text()
    if version == 1:
        text = text.replace("api=2", "api=1").replace("path, ctx, total_steps):", "path, ctx):")
        text = text.replace("attach(base, ctx, total_steps).restored", "attach(base, ctx, 2).restored")
    Path("annealed_adapter.py").write_text(text)
    few = {**SMALL, "adapter": "annealed", "plugins": ["annealed_adapter.py"]}
    finetune("tiny", **few, data=rows_file, output="run", train={"max_steps": 2, "save_every": 2, "sample_tokens": 1})
    finetune(resume="run", train={"max_steps": 4}, plugins=["annealed_adapter.py"], quiet=True)
    strengths = load_file("run/adapter/adapter.safetensors")["strengths"].tolist()
    assert strengths[1:5] == ([0.5, 0, 0.25, 0] if version == 2 else [0.5, 0, -0.5, -1])


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), WriteError, "the disk is full"),
        (SafetensorError(f"I/O error: No space left (os error {errno.ENOSPC})"), WriteError, "the disk is full"),
        (MemoryError(), SmolLM3Error, "out of memory: Python cannot allocate more"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            SmolLM3Error,
            "out of",
        ),
    ],
)
def test_a_full_disk_and_too_little_memory_are_errors_of_this_package(
    rows_file: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[SmolLM3Error], text: str
) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr("smollm3_finetune.train.run.compose", fails)
    with pytest.raises(kind, match=text) as caught:
        finetune(**SMALL, data=rows_file, train={"max_steps": 1})
    assert caught.value.hint
    assert caught.value.__cause__ is error


def test_other_exceptions_are_not_hidden(rows_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smollm3_finetune.train.run.compose", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        finetune(**SMALL, data=rows_file, train={"max_steps": 1})


def test_a_broken_plugin_is_logged(fake_distribution: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    fake_distribution("acme", "1.0", {"acme_hooks": "import gone_module\n"}, {"acme": "acme_hooks"})
    with caplog.at_level(logging.WARNING, "smollm3_finetune"):
        finetune(**SMALL, dry_run=True)
    assert "the plugin 'acme' (acme 1.0) is broken and was skipped" in caplog.text


def test_progress_is_printed_on_standard_error(capsys: pytest.CaptureFixture[str], rows_file: Path) -> None:
    finetune(**{**SMALL, "quiet": False}, data=rows_file, train={"max_steps": 1})
    out = capsys.readouterr()
    assert "step 1/1" in out.err
    assert out.out == ""


def test_importing_the_name_imports_no_torch() -> None:
    code = "import sys, smollm3_finetune; smollm3_finetune.finetune; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
