"""What the conformance classes of loaders, quantizers and adapters share: finding the component, and failing."""

from __future__ import annotations

import inspect
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
    """Fail the test with one sentence and no traceback of the kit."""
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
    """What a call gives, or what it raises: a failure told outside of `except` has no chain of tracebacks."""
    try:
        return call(*args), None
    except Exception as e:
        return None, e


def beside(case: type, plugin: str | Path) -> Path:
    """A plugin file that lies beside the test which names it, else the path as it is."""
    try:
        near = Path(inspect.getfile(case)).parent / plugin
    except (OSError, TypeError):  # a class that was made at a prompt
        return Path(plugin)
    return near if near.is_file() else Path(plugin)


@cache
def _registry(plugins: tuple[str, ...]) -> Registry:
    from smollm3_finetune.components.discovery import PluginSelection, discover

    return discover(PluginSelection(files=plugins))


class Conformance:
    """Name a component; the tests are inherited."""

    component: ClassVar[str]
    """What users type: the descriptor's `name`."""
    options: ClassVar[Mapping[str, Any]] = {}
    """The component's options, as a user would set them."""
    plugins: ClassVar[Sequence[str | Path]] = ()
    """Plugin files, beside the test or as `-p` takes them; nothing for a plugin that is installed."""
    device: ClassVar[str] = "cpu"
    dtype: ClassVar[str] = "float64"
    """In float64 rounding hides nothing; `float32` for kernels that have no float64."""
    kind: ClassVar[Kind]

    def choose(self, **options: Any) -> SelectedComponent:
        """The component with its options, those of the class and these; what is wrong with them fails the test."""
        from smollm3_finetune.components.selection import choose

        def chosen() -> SelectedComponent:
            registry = _registry(tuple(str(beside(type(self), p)) for p in self.plugins))
            return choose(registry, self.kind, self.component, {**self.options, **options})

        choice, error = outcome(chosen)
        if isinstance(error, SmolLM3Error):
            hint = f" ({error.hint})" if error.hint else ""
            install = "" if self.plugins else "; is the package that is tested installed? pip install -e ."
            fail(f"{error.message}{hint}{install if isinstance(error, UnknownComponentError) else ''}")
        if choice is None:
            assert error is not None
            raise error
        return choice

    def spec(self) -> Any:
        """The descriptor."""
        return self.choose().component.spec

    def context(self, tmp_path: Path, purpose: Purpose = Purpose.TRAIN) -> BuildContext:
        """A context with a cache of its own."""
        return context(tmp_path / "cache", purpose=purpose, device=self.device, dtype=self.dtype)

    @property
    def rounding(self) -> float:
        """The bound on relative errors where two computations should be the same."""
        return ROUNDING[self.dtype]
