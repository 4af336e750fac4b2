"""The display of a run on real pseudo-terminals of several widths."""

from __future__ import annotations

import os
import re
import select
import struct
import subprocess
import sys
import time

import pytest

from smollm3_finetune.train.display import fitted

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")

ROW = {"loss": 2.10431, "learning_rate": 1.8e-3, "tokens_per_second": 48651.0, "memory_gb": 21.67}

TRAINING = f"""
import time
from smollm3_finetune.train.display import for_stream
shown = for_stream()
shown.begin(12345, 0)
for step in (1, 2, 1234):
    shown.step({{"step": step, **{ROW!r}}})
    time.sleep(0.3)
shown.end()
"""
TASK = """
import time
from smollm3_finetune.progress import for_stream
with for_stream().task("measuring the held-out loss", 10) as task:
    for _ in range(5):
        task.advance()
        time.sleep(0.15)
"""


def frames(code: str, columns: int) -> list[str]:
    """The lines that a program draws on a terminal of this width, without control sequences."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")} | {"TERM": "xterm"}
    child = subprocess.Popen([sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    drawn, end = b"", time.monotonic() + 60
    while time.monotonic() < end and select.select([ours], [], [], 60)[0]:
        try:
            read = os.read(ours, 65536)
        except OSError:  # Linux: the program has closed the terminal
            break
        if not read:
            break
        drawn += read
    os.close(ours)
    assert child.wait(30) == 0, drawn.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


@pytest.mark.parametrize(
    ("columns", "parts"),
    [
        (120, ["━", "loss 2.1043", "lr 1.80e-03", "48651 tokens/s", "21.67 GB"]),
        (60, ["loss 2.1043", "48651 tokens/s"]),
        (40, ["loss 2.1043"]),
        (30, []),
    ],
)
def test_steps_and_time_left_are_shown_at_every_width(columns: int, parts: list[str]) -> None:
    lines = frames(TRAINING, columns)
    last = lines[-1]
    assert re.search(r"step 1234/12345\b.*\b(\d+ s|\d+:\d\d(:\d\d)?) left$", last.strip()), last
    assert "…" not in last and max(map(len, lines)) <= columns
    everything = ["━", "loss", "lr", "tokens/s", "GB"]
    shown = [word for word in everything if word in last]
    assert shown == [next(w for w in everything if w in part) for part in parts] and all(p in last for p in parts)


@pytest.mark.parametrize(("columns", "times"), [(120, 2), (60, 2), (43, 2), (40, 1)])
def test_the_remaining_time_of_a_task_is_shown_at_every_width(columns: int, times: int) -> None:
    lines = frames(TASK, columns)
    time_or_unknown = r" +(\d:\d\d:\d\d|-:--:--)"
    assert all(re.fullmatch(rf"measuring the held-out loss[ ━╸╺]*{time_or_unknown * times} *", x) for x in lines), lines
    assert max(map(len, lines)) <= columns


def test_measures_are_omitted_in_the_order_of_their_importance() -> None:
    texts = [fitted(7, 10, ROW, 187.4, width) for width in range(100, 0, -1)]
    assert all(text.startswith("step 7/10") and text.endswith("3:07 left") for text in texts)
    assert all(len(text) <= width for text, width in zip(texts, range(100, 21, -1), strict=False))
    assert list(dict.fromkeys(texts)) == [
        "step 7/10  loss 2.1043  lr 1.80e-03  48651 tokens/s  21.67 GB  3:07 left",
        "step 7/10  loss 2.1043  lr 1.80e-03  48651 tokens/s  3:07 left",
        "step 7/10  loss 2.1043  48651 tokens/s  3:07 left",
        "step 7/10  loss 2.1043  3:07 left",
        "step 7/10  3:07 left",
    ]


def test_before_the_first_step_the_line_has_no_measures() -> None:
    assert fitted(0, 10, None, None, 60) == "step 0/10"
