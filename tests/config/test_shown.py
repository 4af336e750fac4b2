"""A configuration that is shown is read again as the same configuration."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.cli.output.configuration import with_origins
from smollm3_finetune.config.load import Setting, as_dict, assemble, file_settings
from smollm3_finetune.config.schema import RunConfig
from smollm3_finetune.config.yaml12 import dump_yaml, parse_value, read_yaml
from smollm3_finetune.testing.commands import Result

PIECES = (
    "#", " #", "# ", ": ", ":", "- ", "-", "'", '"', "\n", "\r", "\r\n", "\t", " ", "é", "漢", "😀", "\u2028", "\x85",
    "\ufeff", "\x07", "\x00", "\x7f", "\udcff", "\\", "%", "@", "`", "&a", "*a", "!x", "|", ">", "?", "? ", "[", "]",
    "{", "}", ",", "~", "null", "none", "None", "yes", "no", "true", "1", "1.5", "2e-5", "1e5", "0x1F", "0o7", "1_000",
    "012", "2026-01-01", "2026-01-01 10:00:00", "=", "<<", "---", "...", ".", "word", "x" * 130,
)  # fmt: skip
"""Parts of text that YAML reads in a special way, or cannot print."""
NUMBERS = (0, 1, -5, 10**20, 0.0, 1.5, 2e-5, 1e300, -1e-300, 1e16, float("inf"))


class Values:
    """Random values; the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def text(self) -> str:
        return "".join(self.random.choice(PIECES) for _ in range(self.random.choice((0, 1, 1, 2, 3, 5))))

    def any(self, depth: int = 0) -> Any:
        kind = self.random.randrange(10 if depth < 3 else 6)
        if kind < 3:
            return self.text()
        if kind < 6:
            return self.random.choice((*NUMBERS, None, True, False))
        if kind < 8:
            return [self.any(depth + 1) for _ in range(self.random.randrange(4))]
        return {self.text(): self.any(depth + 1) for _ in range(self.random.randrange(4))}

    def settings(self) -> list[Setting]:
        """Valid settings of a run: every kind of key, options of components, odd origins."""
        chance, choice, text = self.random.random, self.random.choice, self.text
        entries: list[Any] = [choice((text(), {"path": text(), text(): self.any()})) for _ in range(3)]
        values: dict[tuple[str, ...], Any] = {
            ("model",): text(), ("output",): text(), ("device",): text(), ("seed",): choice((0, 7, 2**32 - 1)),
            ("plugins",): [text(), text()], ("data", "path"): choice((text(), None, entries[0], entries)),
            ("data", "held_out"): choice((0, 0.25, 1e-9)), ("data", "template"): choice((text(), None)),
            ("data", "enable_thinking"): choice((True, None)), ("data", "date"): choice((None, text(), "2026-01-01")),
            ("calibration", "path"): entries, ("train", "max_steps"): choice((None, 10)),
            ("train", "learning_rate"): choice((2e-5, 1e-300, 1, 123.0625)), ("train", "optimizer"): text(),
            ("train", "report_to"): [text(), text()], ("train", "sample_prompt"): choice((None, text(), text() * 40)),
        }  # fmt: skip
        for section in ("loader", "quant", "adapter", "objective", "formatter"):
            values[(section, "name")] = choice((None, text()))
            values |= {(section, text()): self.any() for _ in range(2)}
            values.pop((section, ""), None)
        kept = {key: value for key, value in values.items() if chance() < 0.7}
        return [Setting(key=key, value=value, origin=f"--set {text()}:7") for key, value in kept.items()]


@pytest.fixture
def read_again(isolated: Path) -> Callable[[str], RunConfig]:
    def read(text: str) -> RunConfig:
        Path("shown.yaml").write_bytes(text.encode())
        return assemble([file_settings(Path("shown.yaml"))]).config

    return read


@pytest.mark.parametrize(
    ("encoding", "seeds"),
    [
        ("utf-8", range(40)),
        ("ascii", range(40, 80)),
        *(pytest.param(name, range(200), marks=pytest.mark.long) for name in ("utf-8", "ascii", "cp1252")),
    ],
)
def test_a_configuration_is_read_again_as_it_was_shown(
    encoding: str, seeds: range, read_again: Callable[[str], RunConfig]
) -> None:
    for seed in seeds:
        loaded = assemble([Values(seed).settings()])
        shown = with_origins(loaded.config, loaded.origins, encoding)
        if encoding != "utf-8":  # comments may have other characters: the output stream escapes them
            shown = shown.encode(encoding, "backslashreplace").decode(encoding)
        again = read_again(shown)
        assert repr(as_dict(again)) == repr(as_dict(loaded.config)), f"seed {seed}:\n{shown}"
        assert again == loaded.config


def test_every_value_with_an_origin_shows_it(read_again: Callable[[str], RunConfig]) -> None:
    for seed in range(50):
        settings = Values(seed).settings()
        marked = [Setting(key=s.key, value=s.value, origin=f"<<{at}>>") for at, s in enumerate(settings)]
        loaded = assemble([marked])
        shown = with_origins(loaded.config, loaded.origins)
        assert all(f"# {s.origin}" in shown for s in loaded.settings), f"seed {seed}"


def test_values_are_read_again_from_a_file_and_from_a_command_line(isolated: Path) -> None:
    for seed in range(300):
        values = Values(seed)
        wanted = {values.text(): values.any() for _ in range(3)}
        Path("values.yaml").write_text(dump_yaml(wanted), encoding="utf-8")
        assert repr(read_yaml(Path("values.yaml"))[0]) == repr(wanted), f"seed {seed}"
        for encoding in ("utf-8", "ascii"):
            typed = dump_yaml(wanted, flow=True, encoding=encoding).strip()
            assert "\n" not in typed
            assert repr(parse_value(typed)) == repr(wanted), f"seed {seed}: {typed}"


ODD = (
    "--set",
    "train.sample_prompt=What is # this: 'a'?\n\n- \"b\" é",
    "--quant",
    "none",
    "--adapter",
    "full",
    "--output",
    "run #1: x\n#",
)


@pytest.mark.parametrize("command", [("config", "show"), ("train", "--dry-run")])
def test_what_a_command_shows_is_the_configuration_of_the_same_command(
    command: tuple[str, ...], cli: Callable[..., Result], isolated: Path, rows_file: Path
) -> None:
    long = isolated / ("directory " * 12) / f"{'x' * 60} #1.jsonl"
    long.parent.mkdir()
    long.write_bytes(rows_file.read_bytes())
    arguments = ("--data", str(long), "--data", str(rows_file), *ODD, "--set", "data.held_out=2e-1", "--lr", "2e-5")
    shown = cli(*command, *arguments)
    assert shown.code == 0, shown.stderr
    Path("shown.yaml").write_text(shown.stdout, encoding="utf-8")
    again = cli(*command, "--config", "shown.yaml", "--json")
    first = cli(*command, *arguments, "--json")
    assert json.loads(again.stdout)["config"] == json.loads(first.stdout)["config"]
    assert cli("config", "validate", "--config", "shown.yaml").code == 0


def test_a_shown_configuration_is_valid_in_an_output_without_unicode(
    run_cli: Callable[..., Result], isolated: Path
) -> None:
    shown = run_cli("config", "show", "--set", "train.sample_prompt=é😀 漢", PYTHONIOENCODING="ascii")
    Path("shown.yaml").write_text(shown.stdout, encoding="ascii")
    assert assemble([file_settings(Path("shown.yaml"))]).config.train.sample_prompt == "é😀 漢"
