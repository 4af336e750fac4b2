"""Planning goes one way: names and options, then packages, pairing and device, then the model, then the rows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
MODULES_OF = """
import contextlib, io, json, sys
from smollm3_finetune.main import main
code = 0
try:
    main(sys.argv[1:])
except SystemExit as e:
    code = e.code
print(json.dumps([code, sorted(sys.modules)]))
"""

WRONG_NAMES = [
    ("train", "--quant", "gtpq"),
    ("train", "--adapter", "lroa", "--no-plugins"),
    ("train", "--adapter", "full", "--formatter", "mesages"),
    ("train", "--adapter", "full", "--objective", "stf"),
    ("train", "--adapter", "full", "--loader", "hff"),
    ("train", "--adapter", "full", "--set", "train.epoch=2"),
    ("train", "--adapter", "full", "--quant", "none", "--quant-opt", "bits=4"),
    ("data", "stats", "--formatter", "mesages"),
    ("quantize", "tiny", "--quant", "gtpq", "--output", "out"),
    ("generate", "tiny", "--quant", "gtpq", "--prompt", "Hi"),
]


@pytest.mark.parametrize("command", WRONG_NAMES, ids=" ".join)
def test_a_wrong_name_imports_no_torch(command: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-c", MODULES_OF, *command], capture_output=True, text=True, check=True)
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 2, done.stderr
    assert not {"torch", "transformers", "datasets", "pyarrow"} & set(modules)


@pytest.fixture
def no_row_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: Any) -> Any:
        pytest.fail("a row was read")

    monkeypatch.setattr("smollm3_finetune.data.rows.read_file", opened)
    monkeypatch.setattr("smollm3_finetune.data.hub.commit_of", opened)


WRONG_FOR_ROWS = [
    ("--objective", "stf"),
    ("--formatter", "mesages"),
    ("--model", "./nowhere"),
    ("--set", "data.date=yesterday"),
    ("--quant", "gtpq"),
]
WRONG_OPTIONS = [
    *((command, wrong) for command in ("train", "data stats", "config validate") for wrong in WRONG_FOR_ROWS),
    ("train", ("--device", "gpu")),
    ("config validate", ("--device", "gpu")),
]


@pytest.mark.usefixtures("no_row_is_read")
@pytest.mark.parametrize(("command", "wrong"), WRONG_OPTIONS)
def test_a_wrong_option_reads_no_row(cli: Cli, rows_file: Path, command: str, wrong: tuple[str, str]) -> None:
    result = cli(*command.split(), "--adapter", "full", "--data", str(rows_file), *wrong)
    assert result.code in (2, 6), result.stderr


@pytest.mark.usefixtures("no_row_is_read")
def test_a_model_that_cannot_be_opened_reads_no_row(cli: Cli, rows_file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = cli("train", "--adapter", "full", "--data", str(rows_file), "--model", str(tmp_path / "empty"))
    assert result.code == 6, result.stderr


def test_rows_are_read_once_everything_else_is_right(
    cli: Cli, rows_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fixture above would notice: the same command without a mistake does read."""
    from smollm3_finetune.data import rows

    read, seen = rows.read_file, []
    monkeypatch.setattr("smollm3_finetune.data.rows.read_file", lambda f: [seen.append(f), *read(f)][1:])
    result = cli("train", "--adapter", "full", "--data", str(rows_file), "--dry-run")
    assert result.code == 0, result.stderr
    assert seen


def test_wrong_names_of_all_components_are_reported_together(cli: Cli) -> None:
    result = cli(
        "train", "--quant", "gtpq", "--adapter", "lroa", "--formatter", "mesages", "--objective", "stf",
        "--loader", "hff", "--data", "nowhere.jsonl", "--set", "data.date=yesterday",
    )  # fmt: skip
    assert result.code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    for word in ("gtpq", "lroa", "mesages", "stf", "hff", "nowhere.jsonl", "yesterday"):
        assert any(word in line for line in errors), (word, result.stderr)


def test_a_plugin_to_leave_out_that_is_not_installed_imports_no_plugin(
    cli: Cli, fake_distribution: Callable[..., Path]
) -> None:
    source = "import pathlib\npathlib.Path('imported').touch()\n"
    fake_distribution("acme", "1.0", {"acme_hooks": source}, {"acme": "acme_hooks"})
    result = cli("plugins", "list", "-p", "no:TYPO")
    assert (result.code, "there is no plugin 'TYPO' to disable" in result.stderr) == (2, True), result.stderr
    assert not Path("imported").exists()
    cli("plugins", "list")
    assert Path("imported").exists()
