"""`smollm3 chat` in tmux, as a user sees it: what is on the screen after streaming, undo, compare and Ctrl-C.

    python tests/cli/test_chat_tmux.py [COLUMNS]

prints the screens, for a reader who wants to look at them.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

TMUX = shutil.which("tmux")
PATIENCE = 180.0
ENDLESS = ("--temperature", "9", "--top-k", "0", "--top-p", "1", "--max-new-tokens", "1500")
BOTTLENECK = str(Path(__file__).parents[2] / "examples" / "bottleneck_adapter.py")


class Screen:
    """A tmux window in which `smollm3 ARGS` runs."""

    def __init__(self, columns: int, *args: str) -> None:
        self.socket = f"smollm3-{os.getpid()}-{id(self)}-{time.monotonic_ns()}"  # a server that ends refuses sessions
        passed = {k: v for k, v in os.environ.items() if k.startswith(("PYTHONPATH", "SMOLLM3", "HF_", "OMP_"))}
        command = shlex.join([sys.executable, "-m", "smollm3_finetune.main", *args])
        environment = shlex.join(["env", "-u", "COLUMNS", "-u", "LINES", *(f"{k}={v}" for k, v in passed.items())])
        self._tmux(
            "new-session", "-d", "-x", str(columns), "-y", "40", f"{environment} {command}; echo ended; sleep 600"
        )

    def _tmux(self, *args: str) -> str:
        assert TMUX is not None
        return subprocess.run([TMUX, "-L", self.socket, *args], capture_output=True, text=True, check=True).stdout

    def type(self, text: str, *keys: str) -> None:
        self._tmux("send-keys", "-l", text)
        self._tmux("send-keys", *keys) if keys else None

    def key(self, name: str) -> None:
        self._tmux("send-keys", name)

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._tmux("capture-pane", "-p").rstrip().splitlines())

    def wait_for(self, text: str, count: int = 1) -> str:
        deadline = time.monotonic() + PATIENCE
        while (found := self.text()).count(text) < count:
            assert time.monotonic() < deadline, f"{text!r} does not appear:\n{found}"
            time.sleep(0.1)
        return found

    def close(self) -> None:
        self._tmux("kill-server")


@pytest.fixture
def adapter(tmp_path: Path) -> str:
    return saved_adapter(tmp_path / "adapter")


def saved_adapter(path: Path) -> str:
    """An adapter that changes answers."""
    import torch

    from smollm3_finetune.model.load import load_model

    loaded = load_model("tiny", adapter="bottleneck", purpose="train", plugins=[BOTTLENECK], device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    loaded.save(path)
    return str(path)


def stop_an_answer(columns: int) -> Iterator[str]:
    """The screens of a chat whose answer is stopped and removed."""
    screen = Screen(columns, "chat", "tiny", "--no-plugins", "--device", "cpu", *ENDLESS)
    try:
        screen.wait_for("\n>")
        screen.type("Tell me all.", "Enter")
        before = screen.text()
        deadline = time.monotonic() + PATIENCE
        while len(screen.text()) < len(before) + 150:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        screen.key("C-c")
        yield screen.wait_for("[cut: what was generated is kept]")
        screen.wait_for("\n>", 2)
        screen.type("/undo", "Enter")
        yield screen.wait_for("removed the last turn: Tell me all.")
        screen.key("C-d")
        yield screen.wait_for("ended")
    finally:
        screen.close()


def compare(columns: int, adapter: str) -> Iterator[str]:
    """The screen after a compared answer."""
    screen = Screen(columns, "chat", "tiny", "--adapter-path", adapter, "-p", BOTTLENECK, "--compare", "--temperature",
                    "0", "--max-new-tokens", "24", "--device", "cpu")  # fmt: skip
    try:
        screen.wait_for("\n>")
        screen.type("What is the capital of France?", "Enter")
        yield screen.wait_for("\n>", 2)
    finally:
        screen.close()


@pytest.mark.long
@pytest.mark.skipif(TMUX is None, reason="tmux is not installed")
@pytest.mark.parametrize("columns", [60, 120])
def test_a_chat_in_tmux(columns: int, adapter: str) -> None:
    cut, undone, ended = stop_an_answer(columns)
    assert cut.count("Tell me all.") == 1, "the message is not drawn again"
    lines = cut.splitlines()
    answer = lines[lines.index("> Tell me all.") + 1 : lines.index("[cut: what was generated is kept]")]
    assert len("".join(answer)) > 100 and len(set(answer)) == len(answer), "no line of the live part is left behind"
    assert "..." not in "\n".join(answer[-1:]).split()
    assert undone.startswith(cut.rstrip("> \n")) and ended.endswith("ended")
    (compared,) = compare(columns, adapter)
    assert ("│ base" in compared) is (columns == 120)
    assert "with bottleneck" in compared and "The capital of France is Paris." in compared


if __name__ == "__main__":
    import tempfile

    width = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as folder:
        for shown in (*stop_an_answer(width), *compare(width, saved_adapter(Path(folder) / "adapter"))):
            print(shown, "-" * width, sep="\n")
