"""The base class of all conformance classes: finds the component, and fails tests with a sentence."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

from smollm3_finetune.api import BuildContext, Purpose
from smollm3_finetune.components.kinds import Kind
from smollm3_finetune.errors import SmolLM3Error, UnknownComponentError
from smollm3_finetune.model.compare import ROUNDING
from smollm3_finetune.testing.parts import context

if TYPE_CHECKING:
    from smollm3_finetune.components.registry import Registry
    from smollm3_finetune.components.selection import SelectedComponent

T = TypeVar("T")


def fail(message: str) -> NoReturn:
    """Fail the test with one sentence, without a traceback of the kit."""
    import pytest

    pytest.fail(message, pytrace=False)


def skip(reason: str) -> NoReturn:
    import pytest

    pytest.skip(reason)


def demand(kept: bool, message: str) -> None:
    """Fail the test with `message` unless `kept`."""
    if not kept:
        fail(message)


def outcome(call: Callable[..., T], *args: Any) -> tuple[T | None, Exception | None]:
    """The result of a call, or its exception. A test that fails outside `except` shows no chained tracebacks."""
    try:
        return call(*args), None
    except Exception as e:
        return None, e


def plugin_path(case: type, plugin: str | Path) -> Path:
    """The plugin file next to the test that names it, if it exists; otherwise the path unchanged."""
    try:
        near = Path(inspect.getfile(case)).parent / plugin
    except (OSError, TypeError):  # a class defined at a prompt
        return Path(plugin)
    return near if near.is_file() else Path(plugin)


@cache
def _registry(plugins: tuple[str, ...]) -> Registry:
    from smollm3_finetune.components.discovery import PluginSelection, discover

    return discover(PluginSelection(files=plugins))


class Conformance:
    """Subclass it and name a component; the tests are inherited."""

    component: ClassVar[str]
    """The `name` in the descriptor, as users type it."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Options of the component, as a user sets them."""
    plugins: ClassVar[Sequence[str | Path]] = ()
    """Plugin files, next to the test or as passed to `-p`; empty if the plugin is installed."""
    device: ClassVar[str] = os.environ.get("SMOLLM3_KIT_DEVICE", "cpu")
    dtype: ClassVar[str] = "float64"
    """float64, because its rounding hides no error; set `float32` if a kernel does not support float64."""
    kind: ClassVar[Kind]

    def choose(self, **options: Any) -> SelectedComponent:
        """The component with the options of the class and `options`; invalid options fail the test."""
        from smollm3_finetune.components.selection import choose

        def chosen() -> SelectedComponent:
            return choose(self.registry(), self.kind, self.component, {**self.options, **options})

        choice, error = outcome(chosen)
        if isinstance(error, SmolLM3Error):
            hint = f" ({error.hint})" if error.hint else ""
            install = "" if self.plugins else "; install the tested package: smollm3 plugins install ."
            fail(f"{error.message}{hint}{install if isinstance(error, UnknownComponentError) else ''}")
        if choice is None:
            assert error is not None
            raise error
        return choice

    def registry(self) -> Registry:
        """The installed components, and those of `plugins`."""
        return _registry(tuple(str(plugin_path(type(self), p)) for p in self.plugins))

    def spec(self) -> Any:
        """The descriptor."""
        return self.choose().component.spec

    def context(self, tmp_path: Path, purpose: Purpose = Purpose.TRAIN) -> BuildContext:
        """A context with its own cache."""
        return context(tmp_path / "cache", purpose=purpose, device=self.device, dtype=self.dtype)

    @property
    def rounding(self) -> float:
        """The limit for relative errors between two computations that should agree."""
        return ROUNDING[self.dtype]
