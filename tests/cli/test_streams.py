"""A full or closed standard output, and invalid devices and templates."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.builtin.tiny_loader import DIRECTORY
from smollm3_finetune.data.chat_template.syntax import check_syntax
from smollm3_finetune.errors import ConfigError, IncompatibleError
from smollm3_finetune.model.device import KINDS, check_device, resolve_device

COMMAND = [sys.executable, "-m", "smollm3_finetune.main"]
WRITING = (["--help"], ["config", "show"], ["config", "schema"], ["plugins", "list"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("args", WRITING, ids=" ".join)
def test_a_full_disk_is_one_sentence(args: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, *args], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 8
    message, hint = done.stderr.splitlines()
    assert message == "error: the output or a file cannot be written: the disk is full"
    assert hint.startswith("  hint: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_an_error_that_cannot_be_printed_keeps_its_exit_code() -> None:
    with open("/dev/full", "w") as full:
        args = ["train", "--resume", "gone"]
        done = subprocess.run([*COMMAND, *args], stdout=subprocess.PIPE, stderr=full, text=True, check=False)
    assert (done.returncode, done.stdout) == (6, "")


@pytest.mark.parametrize("args", WRITING, ids=" ".join)
def test_a_closed_pipe_is_not_an_error(args: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*COMMAND, *args], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.stderr == ""
    assert done.returncode in (1, 141)


QUICK = ("--adapter", "full", "--device", "cpu", "--max-steps", "1", "--set", "data.limit=20", "--set",
         "train.sample_tokens=2")  # fmt: skip


@pytest.mark.parametrize(
    "encoding", ["latin-1", *(pytest.param(name, marks=pytest.mark.long) for name in ("koi8-r", "cp1252"))]
)
def test_an_output_that_is_not_utf_8_gets_every_line(encoding: str) -> None:
    Path("rows.jsonl").write_text('{"text": "a…é→😀b"}\n' * 3)
    args = ["data", "preview", "--data", "rows.jsonl", "--set", "data.held_out=0"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([*COMMAND, *args], capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode(encoding)
    assert "\\u2192\\ud83d\\ude00b" in shown
    assert ("…é" if encoding == "cp1252" else "\\u2026é" if encoding == "latin-1" else "\\u2026\\u00e9") in shown


def test_json_output_is_valid_in_every_encoding() -> None:
    args = ["config", "show", "--json", "--output", "…é→😀"]
    environment = {**os.environ, "PYTHONIOENCODING": "koi8-r", "PYTHONUTF8": "1"}
    done = subprocess.run([*COMMAND, *args], capture_output=True, check=False, env=environment)
    assert json.loads(done.stdout.decode("koi8-r"))["config"]["output"] == "…é→😀"


CHATTY = """
print('hello from its hooks')
from smollm3_finetune.api import ALL_OPS, AdapterSpec, FormatterSpec, QuantizerSpec, hookimpl

@hookimpl
def smollm3_quantizers():
    return [QuantizerSpec(name='chatty', summary='q', factory='chatty_parts:Chatty', provides=ALL_OPS, api=2)]

@hookimpl
def smollm3_formatters():
    return [FormatterSpec(name='chatty', summary='f', factory='chatty_parts:Rows', claims=lambda row: True, rank=9,
                          api=2)]
"""
CHATTY_PARTS = """
print('hello from its library')
from smollm3_finetune.api import Base, Conversation

class Rows:
    def __init__(self, options): ...
    def __call__(self, row):
        print('hello from a row')
        return Conversation(text=str(row['text']))

class Chatty:
    def __init__(self, options): ...
    def load(self, source, ctx):
        print('hello from load')
        return Base(model=source.load(dtype=ctx.torch_dtype).to(ctx.device).requires_grad_(False), fingerprint='x')
    def write(self, source, out, ctx):
        print('hello from write')
        source.load().save_pretrained(str(out))
"""


def test_output_of_libraries_does_not_enter_the_result_of_a_command(
    cli: Callable[..., Any], fake_distribution: Any
) -> None:
    modules = {"chatty_hooks": CHATTY, "chatty_parts": CHATTY_PARTS}
    fake_distribution("chatty", "1.0", modules, {"chatty": "chatty_hooks"})
    Path("rows.jsonl").write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(8)))
    rows = ("--data", "rows.jsonl", "--set", "data.held_out=0.25")
    quant = ("--quant", "chatty")
    tiny = str(DIRECTORY)
    commands: Mapping[str, tuple[tuple[str, ...], str]] = {
        "stats": (("data", "stats", *rows), "its library"),
        "dry": (("train", "--model", tiny, *rows, *quant, *QUICK, "--dry-run"), "a row"),
        "train": (("train", "--model", tiny, *rows, *quant, *QUICK, "--output", "run"), "load"),
        "generate": (("generate", "run", "--prompt", "Hello!", "--max-new-tokens", "2"), "load"),
        "merge": (("merge", "run"), "load"),
        "quantize": (("quantize", tiny, *quant, "--output", "written"), "write"),
    }
    for name, (command, where) in commands.items():
        result = cli(*command, "--json")
        assert result.code == 0, (name, result.stderr)
        assert isinstance(json.loads(result.stdout), dict), name
        assert f"hello from {where}\n" in result.stderr, name
    shown = cli("data", "preview", *rows)
    assert "hello" not in shown.stdout
    assert shown.stdout.startswith("model tiny, objective sft")
    assert cli("config", "validate", *rows, *quant, "--adapter", "full").stdout.startswith("ok: ")
    assert cli("generate", "run", "--prompt", "Hello!", "--max-new-tokens", "2").stdout.count("\n") == 1


@pytest.mark.parametrize(("device", "near"), [("distributed", None), ("cudaa", "cuda"), ("gpu", "cuda"), ("jit", None),
                                              ("autp", "auto"), ("nn", None), ("utils", None)])  # fmt: skip
def test_invalid_devices_are_refused(cli: Callable[..., Any], device: str, near: str | None) -> None:
    result = cli("train", "--adapter", "full", "--device", device, "--dry-run")
    assert (result.code, result.stdout) == (2, "")
    message, hint = result.stderr.splitlines()
    assert message == f"error: --device must be a torch device, not {device!r}"
    assert hint.startswith("  hint: did you mean" if near else "  hint: use --device cpu")
    assert near is None or repr(near) in hint


def test_devices_of_torch_are_accepted() -> None:
    for name in ("auto", "cpu", "cuda", "cuda:1", "mps", "xpu:0", "npu", "hpu"):
        check_device(name)
    assert resolve_device("cpu") == "cpu"
    for kind in KINDS:  # none is confused with another attribute of torch
        with contextlib.suppress(IncompatibleError):
            assert resolve_device(kind).partition(":")[0] == kind
    with pytest.raises(ConfigError):
        check_device("auto:1")


BROKEN: Mapping[str, tuple[str, int]] = {
    "a block that does not end": ("a\n{% for m in messages %}\n{{ m.content }}", 3),
    "an unknown tag": ("{# c #}\n\n{% fro m in messages %}{% endfor %}", 3),
    "an unknown filter": ("\n{{ messages | nosuchfilter }}", 2),
    "an expression that does not end": ("{{ messages[0 }}", 1),
    "a generation block that does not end": ("{% for m in messages %}\n{% generation %}{% endfor %}", 2),
}


@pytest.mark.parametrize("wrong", BROKEN)
@pytest.mark.parametrize("command", ["train --dry-run", "data preview", "config validate"])
def test_a_broken_template_is_named_with_its_line(cli: Callable[..., Any], wrong: str, command: str) -> None:
    text, line = BROKEN[wrong]
    Path("mine.jinja").write_text(text)
    result = cli(*command.split(), "--adapter", "full", "--set", "data.template=mine.jinja")
    assert (result.code, result.stdout) == (2, "")
    message, hint = result.stderr.splitlines()
    assert message.startswith(f"error: the chat template mine.jinja:{line} is not valid Jinja: ")
    assert hint.startswith("  hint: ")


def test_templates_that_transformers_accepts_are_accepted() -> None:
    """Its generation block, loop controls and filters, and templates that are in use."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    texts = [
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% generation %}{{ m | tojson }}"
        "{% endgeneration %}{% break %}{% endfor %}{{ raise_exception('no') if false }}{{ strftime_now('%Y') }}",
        (DIRECTORY / "chat_template.jinja").read_text(),
    ]
    for text in texts:
        _compile_jinja_template(text)
        check_syntax(text, "template")
