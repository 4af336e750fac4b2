"""The output file of `smollm3 generate --prompts`: rows in the order of the prompts, kept by an interrupted command.

Beside `answers.jsonl`, `answers.settings.json` has the model and the options that the answers depend on. The command
continues after the rows of the file if they are answers to the first prompts with the same settings.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smollm3_finetune.errors import ConfigError
from smollm3_finetune.files.failures import writing
from smollm3_finetune.files.json import json_object, read_json, write_json
from smollm3_finetune.files.limits import parse_json
from smollm3_finetune.files.locks import locked
from smollm3_finetune.files.writing import append_text
from smollm3_finetune.inference.decoding import Answer
from smollm3_finetune.inference.prompt_rows import COUNTED, PromptRow


def output_line(row: PromptRow, answers: Sequence[Answer]) -> str:
    """The input row with `answer` and `finish_reason`; with `answers`, a list of such objects, if there are several."""
    found = [{"answer": a.text, "finish_reason": a.finish} for a in answers]
    whole = {**row.value, **(found[0] if len(found) == 1 else {"answers": found})}
    return json.dumps(whole, ensure_ascii=False, default=str) + "\n"


@dataclass
class InOrder:
    """Writes a line for each row in the order of the rows, however their answers arrive."""

    rows: Sequence[PromptRow]
    write: Callable[[str], None]
    written: int = 0
    """The rows that are written; those before the first `add` are of an earlier command."""
    _waiting: dict[int, str] = field(default_factory=dict)

    def add(self, index: int, answers: Sequence[Answer]) -> None:
        """Write the answers to a row as soon as all rows before it are written."""
        if index < self.written:
            return
        self._waiting[index] = output_line(self.rows[index], answers)
        ready: list[str] = []
        while (line := self._waiting.pop(self.written + len(ready), None)) is not None:
            ready.append(line)
        if ready:
            self.write("".join(ready))
            self.written += len(ready)


@dataclass
class AnswersFile:
    """An output file and what its answers depend on."""

    path: Path
    rows: Sequence[PromptRow]
    settings: Mapping[str, Any]
    """JSON values."""

    @property
    def settings_file(self) -> Path:
        return _settings_file(self.path)

    def check(self) -> int:
        """The number of rows that are written already. Raises ConfigError if the file is not an output to continue."""
        if self.path.is_dir():
            raise ConfigError(
                f"--output: {str(self.path)!r} is a directory", hint=f"--output {self.path}/answers.jsonl"
            )
        if not self.path.absolute().parent.is_dir():
            raise ConfigError(f"--output: the directory {str(self.path.parent)!r} does not exist", hint="create it")
        if not self.path.exists():
            if self.settings_file.exists() and not json_object(self.settings_file).keys() >= {"model", "num_return"}:
                raise ConfigError(
                    f"--output: {self.settings_file}, the file for the settings of {self.path.name}, exists and was "
                    "not written by smollm3 generate",
                    hint=f"--output {_other(self.path)}",
                )
            return 0
        self._check_settings()
        return len(self._whole_lines())

    def _check_settings(self) -> None:
        if not self.settings_file.exists():
            if not self.path.stat().st_size:
                return
            raise ConfigError(
                f"--output: {self.path} exists and is not the output of smollm3 generate: {self.settings_file.name} "
                "is missing",
                hint=f"--output {_other(self.path)}",
            )
        before = read_json(self.settings_file)
        now = json.loads(json.dumps(self.settings))
        if changed := [key for key in {**before, **now} if before.get(key) != now.get(key)]:
            key = changed[0]
            raise ConfigError(
                f"--output: {self.path} has answers with other settings: {key} was {json.dumps(before.get(key))}, now "
                f"{json.dumps(now.get(key))}",
                hint=f"--output {_other(self.path)}",
            )

    def _whole_lines(self) -> list[str]:
        """The complete lines of the file, which are answers to the first rows."""
        *lines, _ = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        if len(lines) > len(self.rows):
            raise self._other_rows(f"it has {len(lines)} rows, and --prompts has {len(self.rows)}")
        for number, (line, row) in enumerate(zip(lines, self.rows, strict=False), 1):
            try:
                found = parse_json(line)
            except ValueError as e:
                raise self._other_rows(f"line {number} is not JSON") from e
            before = {k: v for k, v in found.items() if k not in COUNTED} if isinstance(found, dict) else found
            if before != json.loads(json.dumps(dict(row.value), default=str)):
                raise self._other_rows(f"line {number} does not answer {row.where}")
        return lines

    def _other_rows(self, why: str) -> ConfigError:
        return ConfigError(
            f"--output: {self.path} has answers to other prompts: {why}", hint=f"--output {_other(self.path)}"
        )

    @contextlib.contextmanager
    def open(self) -> Iterator[InOrder]:
        """Hold the file for this process and continue it; an unfinished last line of a killed one is removed."""
        with locked(self.path.with_name(f".{self.path.name}.lock"), f"{self.path} is being written", remove=True):
            written = self.check()  # another process may have written to it since
            with writing(self.path):
                write_json(self.settings_file, dict(self.settings))
                if self.path.exists():
                    whole = sum(len(line.encode()) + 1 for line in self._whole_lines())
                    with self.path.open("r+b") as stream:
                        stream.truncate(whole)
                else:
                    self.path.touch()
            yield InOrder(self.rows, self._append, written)

    def _append(self, text: str) -> None:
        with writing(self.path, left="the rows that are written are complete"):
            append_text(self.path, text)


def recorded_date(path: Path) -> str | None:
    """The date that the chat template got for the answers in an output file; None if there are none, or no date."""
    if not path.is_file() or not path.stat().st_size:
        return None
    date = json_object(_settings_file(path)).get("date")
    with contextlib.suppress(ValueError):
        return datetime.date.fromisoformat(date).isoformat() if isinstance(date, str) else None
    return None


def _settings_file(path: Path) -> Path:
    return path.with_suffix(".settings.json")


def _other(path: Path) -> Path:
    """A similar path that does not exist."""
    return next(p for n in range(2, 10_000) if not (p := path.with_stem(f"{path.stem}-{n}")).exists())
