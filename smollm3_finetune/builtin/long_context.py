"""A longer context for models with rope: YaRN (Peng et al., 2023), as implemented in transformers.

With `s = context / native`, YaRN divides the slow rope frequencies by `s`, keeps the fast ones, interpolates between
them, and multiplies the rotated queries and keys by `0.1 ln(s) + 1` each. The factor is the same for sequences of any
length. Layers without rope (`no_rope_layers` of SmolLM3) are not changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import BuildContext, ModelSource, fingerprint
from smollm3_finetune.errors import IncompatibleError, ModelError
from smollm3_finetune.model_files.context_length import context_of, rope_type, yarn_problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def with_context(source: ModelSource, context: int, ctx: BuildContext, *, remote_code: bool) -> ModelSource:
    """The source with its context extended to `context` tokens; the source itself if its context is long enough.

    Reports what it did. Raises IncompatibleError for a model that does not support YaRN.
    """
    native = context_of(source.config)
    if native is not None and context <= native:
        ctx.progress.say(f"context={context} has no effect: {source.ref} already takes {native} tokens")
        return source
    problem = yarn_problem(source.config, source.ref)
    if problem is not None:
        raise problem
    assert native is not None
    extended = YarnSource(inner=source, native=native, context=context, remote_code=remote_code)
    ctx.progress.say(
        f"warning: YaRN extends {source.ref} from {native} to {context} tokens (factor {extended.factor:g}); it is "
        "static, so it also changes results for short texts: use it only if your rows are that long"
    )
    return extended


@dataclass(frozen=True, kw_only=True)
class YarnSource:
    """A `ModelSource` that wraps another one and scales its rope by YaRN."""

    inner: ModelSource
    native: int
    """The context without scaling, in tokens."""
    context: int
    remote_code: bool

    @property
    def factor(self) -> float:
        return self.context / self.native

    @property
    def yarn(self) -> dict[str, Any]:
        return {"rope_type": "yarn", "factor": self.factor, "original_max_position_embeddings": self.native}

    @property
    def ref(self) -> str:
        return self.inner.ref

    @property
    def config(self) -> Mapping[str, Any]:
        config = {k: v for k, v in self.inner.config.items() if k != "rope_scaling"}
        rope = {k: v for k, v in (self.inner.config.get("rope_parameters") or {}).items() if k != "type"}
        if config.get("rope_theta") is not None:
            rope.setdefault("rope_theta", config["rope_theta"])
        return {**config, "max_position_embeddings": self.context, "rope_parameters": {**rope, **self.yarn}}

    @property
    def path(self) -> Path:
        return self.inner.path

    @property
    def directory(self) -> Path | None:
        return getattr(self.inner, "directory", None)

    @property
    def pins(self) -> Mapping[str, Any]:
        pins: Mapping[str, Any] = getattr(self.inner, "pins", {})
        return pins

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.inner.fingerprint, self.yarn)

    def has_file(self, name: str) -> bool:
        return self.inner.has_file(name)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.inner.tokenizer()

    def load(self, **kwargs: Any) -> PreTrainedModel:
        return self.inner.load(config=self._model_config(), **kwargs)

    def at(self, path: Path) -> ModelSource:
        return replace(self, inner=self.inner.at(path))

    def _model_config(self) -> Any:
        """The config that transformers reads from config.json, with YaRN added and other rope parameters kept."""
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(str(self.path), trust_remote_code=self.remote_code)
        except (OSError, ValueError, KeyError) as e:
            raise ModelError(f"the config of {self.ref!r} does not load: {e}") from e
        rope = dict(getattr(config, "rope_parameters", None) or {})
        if rope_type({"rope_parameters": rope}) == "nested" or not rope:
            raise IncompatibleError(
                f"the layers of {self.ref!r} have different kinds of rope, which YaRN does not support",
                hint="omit context",
            )
        config.rope_parameters = {**rope, **self.yarn}
        config.max_position_embeddings = self.context
        return config
