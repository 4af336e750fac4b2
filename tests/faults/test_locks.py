"""Locks: released whoever dies, and an error says who holds one."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.errors import ConfigError, WriteError
from smollm3_finetune.files.locks import is_held, locked

HOLD = """
import sys, time
from pathlib import Path
from smollm3_finetune.files.locks import locked
with locked(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(file: Path) -> subprocess.Popen[str]:
    """A process that holds a lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_error_names_the_process_that_holds_the_lock_until_it_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with holder(file) as process:
        with pytest.raises(ConfigError) as caught, locked(file, "the run is being trained", instead="use another run"):
            pass
        process.kill()
        process.wait()
        assert re.match(
            rf"the run is being trained \(process {process.pid}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d: -c .*lock\)$",
            caught.value.message,
        )
        hint = f"wait for it to finish, or stop it: kill {process.pid}; or use another run"
        assert caught.value.hint == hint
    with locked(file, "busy", remove=True):
        assert str(os.getpid()) in file.read_text()
    assert not file.exists()


def test_a_holder_on_another_computer_is_named_without_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "lock"
    with locked(file, "busy"):
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        with pytest.raises(ConfigError, match=rf"^busy \(process {os.getpid()} on ") as caught, locked(file, "busy"):
            pass
    assert "kill" not in str(caught.value.hint)


@pytest.mark.parametrize("content", ["", "{", "{}", "garbage", '{"pid": "x"}', "[1]"])
def test_a_lock_file_with_other_content_is_still_a_lock(tmp_path: Path, content: str) -> None:
    file = tmp_path / "lock"
    with locked(file, "busy"):
        file.write_text(content)
        with pytest.raises(ConfigError, match=r"^busy\n"), locked(file, "busy"):
            pass


def test_a_dead_holder_is_recognized_on_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*args: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", missing)
    file = tmp_path / "lock"
    dead = subprocess.Popen([sys.executable, "-c", HOLD.replace("from pathlib", NO_FLOCK + "from pathlib"), str(file)],
                            stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert dead.stdout is not None
    with dead:
        assert dead.stdout.readline() == "held\n"
        with (
            pytest.warns(UserWarning, match="flock"),
            pytest.raises(ConfigError, match=rf"process {dead.pid}"),
            locked(file, "busy"),
        ):
            pass
        assert is_held(file)
        dead.send_signal(signal.SIGKILL)
        dead.wait()
    assert file.exists()
    assert not is_held(file)
    with pytest.warns(UserWarning, match="flock"), locked(file, "busy"):
        pass


NO_FLOCK = """
import fcntl, warnings
warnings.simplefilter("ignore")
def missing(*args):
    raise OSError(38, "Function not implemented")
fcntl.flock = missing
"""


def test_examining_a_lock_changes_nothing_and_never_keeps_another_process_from_it(tmp_path: Path) -> None:
    """The examination takes the lock for an instant, for which `locked` waits."""
    file = tmp_path / "lock"
    assert not is_held(file)
    assert not file.exists()
    with locked(file, "busy"):
        about = file.read_text()
        assert is_held(file)
        assert file.read_text() == about
    assert not is_held(file)  # the file is left, as by a killed process
    examined = os.open(file, os.O_RDONLY)
    fcntl.flock(examined, fcntl.LOCK_SH)
    ended = threading.Timer(0.05, os.close, [examined])
    ended.start()
    with locked(file, "busy"):
        assert is_held(file)
    ended.join()


def test_a_lock_that_cannot_be_created_is_a_write_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(WriteError, match=r"x' cannot be written: .*file is not a directory"),
        locked(tmp_path / "file" / "x", "busy"),
    ):
        pass
