"""A source whose files are converted into a directory before they are loaded: see `converted_source`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api.models import BuildContext
from smollm3_finetune.model_files.source import DirectorySource

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class ConvertedSource:
    """The `ModelSource` that `converted_source` returns."""

    ref: str
    ctx: BuildContext
    kind: str
    described: Mapping[str, Any]
    key: Callable[[], Mapping[str, Any]]
    convert: Callable[[Path], None]
    identity: Callable[[], str]
    pinned: Callable[[], Mapping[str, Any]] | None = None
    load_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> Mapping[str, Any]:
        """The config that the original files imply, or the converted `config.json` once it exists."""
        return self._converted.config if "path" in self.__dict__ else self.described

    @cached_property
    def path(self) -> Path:
        """The converted copy, which is built at the first access and kept in the cache."""
        return self.ctx.cache.get_or_build(self.kind, self.key(), self.convert)

    @property
    def directory(self) -> Path | None:
        """The converted copy, if it exists."""
        return self.path if "path" in self.__dict__ else None

    @property
    def pins(self) -> Mapping[str, Any]:
        return {} if self.pinned is None else self.pinned()

    @cached_property
    def fingerprint(self) -> str:
        return self.identity()

    def has_file(self, name: str) -> bool:
        """Always False: the original is not a checkpoint with files of this name."""
        return False

    @cached_property
    def _converted(self) -> DirectorySource:
        return self._at(self.path, self.fingerprint)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._converted.tokenizer()

    def load(self, **kwargs: Any) -> PreTrainedModel:
        return self._converted.load(**kwargs)

    def at(self, path: Path) -> DirectorySource:
        return self._at(path, None)

    def _at(self, path: Path, fingerprint: str | None) -> DirectorySource:
        return DirectorySource(
            ref=self.ref, directory=path, known_fingerprint=fingerprint, load_kwargs=self.load_kwargs
        )
