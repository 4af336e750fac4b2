"""Opens a model without its weights: as its loader does, or as the base of a saved adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import BuildContext, ModelSource, Progress, Purpose
from smollm3_finetune.cache.store import Cache
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.requirements import requirement_problems
from smollm3_finetune.errors import raise_all
from smollm3_finetune.model.new_tokens import add_to
from smollm3_finetune.model.plan import ModelRequest, choose_loader, open_source
from smollm3_finetune.model.saved_adapter import SavedAdapter
from smollm3_finetune.model_files.loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class AdapterSource:
    """The base of a saved adapter, with the tokenizer of the adapter."""

    base: ModelSource
    saved: SavedAdapter

    def __getattr__(self, name: str) -> Any:
        """The optional attributes of a source, such as `pins`."""
        if name.startswith("__"):  # of copy and pickle, before there is a base
            raise AttributeError(name)
        return getattr(self.base, name)

    @property
    def ref(self) -> str:
        return self.base.ref

    @property
    def config(self) -> Mapping[str, Any]:
        return self.base.config

    @property
    def path(self) -> Path:
        return self.base.path

    @property
    def fingerprint(self) -> str:
        return self.base.fingerprint

    def has_file(self, name: str) -> bool:
        return self.base.has_file(name)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        own = (self.saved.path / "tokenizer_config.json").exists()
        found = load_tokenizer(self.ref, self.saved.path, {}) if own else self.base.tokenizer()
        add_to(found, self.saved.new_tokens)
        return found

    def load(self, **kwargs: Any) -> PreTrainedModel:
        return self.base.load(**kwargs)

    def at(self, path: Path) -> ModelSource:
        return AdapterSource(self.base.at(path), self.saved)


def opened_source(registry: Registry, request: ModelRequest, progress: Progress) -> ModelSource:
    """The source of a request. Needs no packages of a quantizer or an adapter. Raises a SmolLM3Error."""
    saved = SavedAdapter.read(request.adapter_path) if request.adapter_path is not None else None
    loader = choose_loader(registry, request)
    raise_all(requirement_problems(loader.component.title, loader.component.spec.requires, "cpu"))
    cache = Cache.default().reporting(progress.say)
    context = BuildContext(purpose=Purpose.INFER, device="cpu", dtype="float32", seed=0, cache=cache, progress=progress)
    source, _ = open_source(loader, request.ref, context)
    return source if saved is None else AdapterSource(source, saved)
