"""Writes a new plugin from the templates of this package: a separate distribution, or one file for `-p`.

The generated plugin works and passes its tests unchanged; the author replaces the body of the implementation.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from smollm3_finetune.api import API_VERSION
from smollm3_finetune.components.contract import NAME
from smollm3_finetune.components.kinds import (
    ADAPTER,
    COMMAND,
    EVALUATOR,
    EXPORTER,
    FORMATTER,
    KINDS,
    LAUNCHER,
    LOADER,
    OBJECTIVE,
    OPTIMIZER,
    QUANTIZER,
    TRACKER,
    Kind,
)
from smollm3_finetune.errors import ConfigError
from smollm3_finetune.files.failures import writing
from smollm3_finetune.paths import check_below_directories, user_path
from smollm3_finetune.version import __version__

TEMPLATES = Path(__file__).with_name("templates")
HOST = f"smollm3-finetune>={__version__}"
TORCH = "torch>=2.6"
LINE_LENGTH = 120
OPTIONS_ROW = "| `{package}/options.py` | the options with defaults, ranges and help; must not import torch either |\n"


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """The values for the templates of a kind."""

    summary: str
    dependencies: tuple[str, ...]
    use: str
    """The arguments of `smollm3` that use the component; `{name}` stands for its name."""


SAMPLES: Mapping[Kind, _Sample] = {
    LOADER: _Sample(
        summary="models of a folder, as NAME://MODEL",
        dependencies=(HOST,),
        use="train --model {name}://MODEL --loader-opt folder=DIR",
    ),
    QUANTIZER: _Sample(
        summary="groups of weights rounded to the nearest integer, while loading",
        dependencies=(HOST, TORCH),
        use="train --quant {name} --quant-opt bits=4",
    ),
    ADAPTER: _Sample(
        summary="a learned factor for each output of chosen layers",
        dependencies=("safetensors>=0.5", HOST, TORCH),
        use="train --adapter {name}",
    ),
    FORMATTER: _Sample(
        summary="rows with a question and its answer",
        dependencies=(HOST,),
        use="train --formatter {name} --data ROWS.jsonl",
    ),
    OBJECTIVE: _Sample(
        summary="cross-entropy over the assistant's tokens, with smoothed labels",
        dependencies=(HOST, TORCH, "transformers>=5.14"),
        use="train --objective {name}",
    ),
    EVALUATOR: _Sample(
        summary="answers to the prompts of a JSONL file, compared with references",
        dependencies=(HOST,),
        use="eval RUN --evaluator {name} --tasks TASK.jsonl",
    ),
    EXPORTER: _Sample(
        summary="the weights of a model as one NumPy archive",
        dependencies=("numpy>=1.26", HOST, TORCH),
        use="export RUN --to {name} --to-opt bits=16",
    ),
    LAUNCHER: _Sample(
        summary="several processes on this machine, with a low priority",
        dependencies=(HOST, TORCH),
        use="train --launcher {name} --launcher-opt processes=2",
    ),
    OPTIMIZER: _Sample(
        summary="steps of the sign of a moving average of the gradient",
        dependencies=(HOST, TORCH),
        use="train --optimizer {name} --learning-rate 1e-3",
    ),
    TRACKER: _Sample(
        summary="a CSV file with a line for each value",
        dependencies=(HOST,),
        use="train --tracker {name}",
    ),
    COMMAND: _Sample(
        summary="show the lowest loss of a run, and its step",
        dependencies=("click>=8.2", HOST),
        use="{name} RUN",
    ),
}
KIND_NAMES = tuple(k.name for k in KINDS)


@dataclass(frozen=True, kw_only=True)
class Scaffold:
    """A plugin to be written: its kind, its name and its path."""

    kind: Kind
    name: str
    path: Path
    single: bool
    """Whether the plugin is one file for `-p`, not a distribution."""

    @property
    def package(self) -> str:
        """The module that holds the hooks."""
        return self.path.stem if self.single else self.distribution.replace("-", "_")

    @property
    def distribution(self) -> str:
        return f"smollm3-{self.name}"

    @property
    def has_options(self) -> bool:
        """Whether the plugin has a module with options; commands declare theirs with click."""
        return self.kind is not COMMAND

    @property
    def use(self) -> str:
        """The command that uses the component."""
        file = f"-p {shlex.quote(str(self.path))} " if self.single else ""
        if self.kind is COMMAND:
            return f"smollm3 {file}{SAMPLES[self.kind].use.format(name=self.name)}"
        command, _, rest = SAMPLES[self.kind].use.format(name=self.name).partition(" ")
        return f"smollm3 {command} {file}{rest}"

    def write(self) -> list[Path]:
        """Write all files or none, and return them. Raises WriteError if they cannot be written."""
        partial = self.path.with_name(f"{self.path.name}.partial-{uuid.uuid4().hex[:8]}")
        files = {partial: self._text("single")} if self.single else self._files(partial)
        try:
            with writing(self.path, left="nothing was kept", elsewhere="--output PATH"):
                for file, text in files.items():
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(text, encoding="utf-8")
                if self.single:
                    self.path.hardlink_to(partial)  # unlike a rename, this never replaces an existing file
                else:
                    partial.rename(self.path)
        finally:
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    partial.unlink()
        return [self.path] if self.single else [self.path / f.relative_to(partial) for f in files]

    def _files(self, root: Path) -> dict[Path, str]:
        package = root / self.package
        return {
            root / "pyproject.toml": self._text("pyproject.toml", "package"),
            root / "README.md": self._text("README.md", "package"),
            package / "__init__.py": self._text("hooks"),
            **({package / "options.py": self._text("options")} if self.has_options else {}),
            package / f"{self.kind.name}.py": self._text("implementation"),
            package / "py.typed": "",
            root / "tests" / f"test_{self.kind.name}.py": self._text("test"),
        }

    def _text(self, template: str, folder: str | None = None) -> str:
        file = f"{template}.tmpl" if folder else f"{template}.py.tmpl"
        text = (TEMPLATES / (folder or self.kind.name) / file).read_text(encoding="utf-8")
        sample = SAMPLES[self.kind]
        filled = Template(text).substitute(
            name=self.name,
            package=self.package,
            distribution=self.distribution,
            kind=self.kind.name,
            Kind=self.kind.name.capitalize(),
            Class="".join(word.capitalize() for word in self.name.split("-")),
            function=self.name.replace("-", "_"),
            file=self.path.name,
            options=OPTIONS_ROW.format(package=self.package) if self.has_options else "",
            summary=sample.summary.replace("NAME", self.name),
            dependencies="\n".join(f'  "{d}",' for d in sample.dependencies),
            use=self.use,
            api=API_VERSION,
        )
        return filled if folder else _with_short_imports(filled)


def plan_scaffold(kind_name: str, name: str, output: str | None, *, single: bool) -> Scaffold:
    """The plugin that `plugins new` will write. Raises ConfigError for an invalid name or an existing path."""
    kind = next(k for k in KINDS if k.name == kind_name)
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"the name {name!r} must be lower-case words joined by single hyphens", hint=f"{_as_name(name)!r}"
        )
    if name in kind.reserved:
        raise ConfigError(f"the {kind.name} {name!r} is built in", hint=f"smollm3 plugins new {kind_name} my-{name}")
    default = f"{name.replace('-', '_')}_{kind.name}.py" if single else f"smollm3-{name}"
    path = user_path(output or default, "--output")
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path} already exists", hint="choose another --output or another name")
    check_below_directories("--output", path)
    if single:
        _check_module_name(path)
    return Scaffold(kind=kind, name=name, path=path, single=single)


def _with_short_imports(source: str) -> str:
    """The source with one imported name on each line where a long name of the plugin makes the line too long."""

    def shortened(line: re.Match[str]) -> str:
        if len(line[0]) <= LINE_LENGTH:
            return line[0]
        names = "".join(f"    {name},\n" for name in line["names"].split(", "))
        return f"from {line['module']} import (\n{names})"

    return re.sub(r"^from (?P<module>\S+) import (?P<names>[\w, ]+)$", shortened, source, flags=re.MULTILINE)


def _as_name(text: str) -> str:
    """The nearest valid component name."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in text.lower()).split()
    near = "-".join(words).lstrip("0123456789-")
    return near or "my-plugin"


def _check_module_name(path: Path) -> None:
    """Raises ConfigError if a plugin file could not be imported under its own name."""
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise ConfigError(
            f"--output {path} must be a Python file whose name is a valid module name", hint="--output my_plugin.py"
        )
    if path.stem in sys.stdlib_module_names or path.stem == "smollm3_finetune":
        raise ConfigError(
            f"--output {path}: the name {path.stem!r} is taken by another module", hint="choose another name"
        )
