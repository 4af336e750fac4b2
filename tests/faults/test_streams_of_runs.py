"""Closed, full and abandoned standard streams do not end a run, and do not get into its files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults import COMMAND

QUICK = ("--adapter", "full", "--device", "cpu", "--max-steps", "3", "--set", "data.limit=20", "--set",
         "train.sample_tokens=2", "--set", "train.save_every=1")  # fmt: skip
STREAMS = {
    "closed": "<&- >&- 2>&-",
    "full": ">/dev/full 2>/dev/full",
    "abandoned": "2>&1 | head -c 20 >/dev/null",
}
pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


def shell(command: str) -> int:
    """The exit code of a command of bash; of a pipe, that of its first part."""
    return subprocess.run(["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], check=False, timeout=300).returncode


def quoted(*arguments: object) -> str:
    return " ".join(f"'{part}'" for part in (*COMMAND, *arguments))


@pytest.mark.parametrize("streams", ["closed", "full", pytest.param("abandoned", marks=pytest.mark.long)])
def test_a_run_completes_whatever_its_streams_are(streams: str) -> None:
    assert shell(f"{quoted('train', *QUICK, '--output', 'run')} {STREAMS[streams]}") == 0
    run = Path("run")
    assert json.loads((run / "report.json").read_text())["steps"] == 3
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
    assert (run / "checkpoints" / "checkpoint-3" / "trainer_state.json").exists()
    files = [f for f in run.rglob("*") if f.is_file()]
    assert (run / "adapter" / "smollm3.json") in files
    for file in files:  # a closed stream's number is not that of a file of the run
        assert b"held-out loss before:" not in file.read_bytes(), file
    if streams == "closed":
        assert shell(f"{quoted('merge', 'run')} {STREAMS[streams]}") == 0
        assert (run / "merged" / "model.safetensors").exists()


REPORTING = """
import click
from smollm3_finetune import main
from smollm3_finetune.cli.session import prints_report

@click.command()
@prints_report
def command():
    return "the report"

main.cli = command
main.main([])
"""


@pytest.mark.parametrize(
    ("stream", "warning"),
    [
        (">/dev/full", "warning: the report cannot be printed: No space left on device; all files are complete\n"),
        ("| true", ""),
        (">&-", ""),
    ],
)
def test_a_report_that_cannot_be_printed_is_not_a_failure(stream: str, warning: str) -> None:
    Path("program.py").write_text(REPORTING)
    assert shell(f"(sleep 0.2; {sys.executable} program.py 2>log) {stream}") == 0
    assert Path("log").read_text() == warning


def test_a_slow_reader_that_does_not_block_the_writer_gets_what_it_can_take() -> None:
    """Standard error of programs under some process managers is a pipe that does not block."""
    code = (
        "import sys; from smollm3_finetune.cli import streams; streams.PATIENCE = 0.01; streams.prepare_streams()\n"
        "for n in range(40): print('x' * 5000, file=sys.stderr)\n"
        "print('done')"
    )
    read, write = os.pipe()
    os.set_blocking(write, False)
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=write, text=True, check=False)
    os.close(write)
    os.close(read)
    assert (done.returncode, done.stdout) == (0, "done\n")
