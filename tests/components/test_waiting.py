"""A slow plugin is named while it is waited for; one that hangs is an error that says how to leave it out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.components import waiting
from smollm3_finetune.errors import ConfigError, PluginTimeoutError

Cli = Callable[..., Any]
DRY = ("train", "--dry-run", "--device", "cpu", "--adapter", "full", "--quant", "acme")
SOURCE = """
import os
import time
from smollm3_finetune.api import ALL_OPS, QuantizerSpec, hookimpl

def slow(where):
    time.sleep(0.3 if where == SLOW else 0)
    while where == HANGS and not os.path.exists(STOP):
        time.sleep(0.05)

def claims(config):
    slow("claims")
    return False

def refine(spec, options, env):
    slow("refine")
    return spec

def check(options, source):
    slow("check")

@hookimpl
def smollm3_quantizers():
    slow("smollm3_quantizers")
    return [QuantizerSpec(name="acme", summary="q", factory="acme_hooks:Acme", provides=ALL_OPS, claims=claims,
                          refine=refine, check=check, api=1)]

slow("import")
"""
DOING = {
    "import": "its import",
    "smollm3_quantizers": "smollm3_quantizers",
    "claims": "claims of quantizer 'acme'",
    "refine": "refine of quantizer 'acme'",
    "check": "check of quantizer 'acme'",
}


@pytest.fixture
def stop(tmp_path: Path) -> Iterator[Path]:
    """A file that ends the calls which hang, so that their threads do not outlive the test."""
    yield tmp_path / "stop"
    (tmp_path / "stop").touch()
    for thread in threading.enumerate():
        if thread.name.startswith("smollm3 plugin"):
            thread.join(timeout=10)


@pytest.fixture
def installed(fake_distribution: Any, monkeypatch: pytest.MonkeyPatch, stop: Path) -> Callable[..., None]:
    def make(*, slow: str = "", hangs: str = "") -> None:
        source = f"SLOW, HANGS, STOP = {slow!r}, {hangs!r}, {str(stop)!r}\n{SOURCE}"
        fake_distribution("acme-quant", "1.2", {"acme_hooks": source}, {"acme": "acme_hooks"})

    monkeypatch.setattr(waiting, "NAMED_AFTER", 0.1)
    return make


@pytest.mark.parametrize("where", DOING)
def test_a_slow_function_is_named_while_it_is_waited_for(where: str, installed: Callable[..., None], cli: Cli) -> None:
    installed(slow=where)
    done = cli(*DRY)
    assert done.code == 0, done.stderr
    assert f"waiting for plugin acme: {DOING[where]}\n" in done.stderr
    assert {line for line in done.stderr.splitlines() if "waiting" in line} == {
        f"waiting for plugin acme: {DOING[where]}"
    }


@pytest.mark.parametrize("where", DOING)
def test_a_function_that_hangs_ends_in_an_error_that_says_how_to_leave_the_plugin_out(
    where: str, installed: Callable[..., None], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(hangs=where)
    monkeypatch.setenv("SMOLLM3_MAX_PLUGIN_SECONDS", "1")
    done = cli(*DRY)
    assert done.code == 7, done.stderr
    assert done.stderr.splitlines()[-2:] == [
        f"error: plugin 'acme': {DOING[where]} did not return within 1 s",
        "  hint: to disable it: -p no:acme; to wait longer: SMOLLM3_MAX_PLUGIN_SECONDS=10",
    ]
    left_out = cli(*DRY[:-2], "-p", "no:acme")
    assert left_out.code == 0, left_out.stderr


def test_a_hanging_file_is_left_out_by_omitting_it(
    plugin_file: Callable[[str, str], Path], cli: Cli, monkeypatch: pytest.MonkeyPatch, stop: Path
) -> None:
    source = f"import os, time\nwhile not os.path.exists({str(stop)!r}):\n    time.sleep(0.05)\n"
    file = plugin_file("mine", source)
    monkeypatch.setattr(waiting, "NAMED_AFTER", 0.1)
    monkeypatch.setattr(waiting, "SECONDS", 1)
    done = cli("plugins", "list", "-p", str(file))
    assert done.code == 7
    assert f"omit -p {file.resolve()}" in done.stderr


def test_what_a_function_raises_and_returns_is_that_of_the_call() -> None:
    about: dict[str, Any] = {"plugin": "acme", "origin": "entry point", "doing": "claims"}

    def nested() -> int:
        return waiting.waited(threading.get_ident, **about)

    assert waiting.waited(nested, **about) != threading.get_ident()

    def fails() -> None:
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone") as caught:
        waiting.waited(fails, **about)
    assert any(frame.name == "fails" for frame in caught.traceback)
    assert not [t for t in threading.enumerate() if t.name == "smollm3 plugin acme" and not t.daemon]


def test_it_works_in_a_thread_of_a_python_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "NAMED_AFTER", 0.05)
    monkeypatch.setattr(waiting, "SECONDS", 1)
    found: list[BaseException] = []
    stop = threading.Event()

    def use() -> None:
        try:
            waiting.waited(lambda: stop.wait(60), plugin="acme", origin="entry point", doing="claims")
        except PluginTimeoutError as e:
            found.append(e)

    began = time.monotonic()
    thread = threading.Thread(target=use)
    thread.start()
    thread.join(timeout=20)
    stop.set()
    assert len(found) == 1
    assert time.monotonic() - began < 20


def test_a_limit_that_is_not_a_number_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "NAMED_AFTER", 0.01)
    monkeypatch.setenv("SMOLLM3_MAX_PLUGIN_SECONDS", "soon")
    with pytest.raises(ConfigError, match="SMOLLM3_MAX_PLUGIN_SECONDS must be a positive integer, got 'soon'"):
        waiting.waited(lambda: time.sleep(0.2), plugin="acme", origin="entry point", doing="claims")
