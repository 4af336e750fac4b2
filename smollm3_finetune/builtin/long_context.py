"""A longer context for models with rope: YaRN (Peng et al., 2023), as transformers computes it.

With `s = context / native`, YaRN divides the slow rope frequencies by `s`, keeps the fast ones, blends between, and
multiplies the rotated queries and keys by `0.1 ln(s) + 1` each. The factor is the same for every sequence, whatever
its length. Layers without rope (`no_rope_layers` of SmolLM3) are not touched.
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
    """The source with its rope stretched to `context` tokens; itself where it takes as many already.

    Tells what it did. Raises IncompatibleError for a model that YaRN is not for.
    """
    native = context_of(source.config)
    if native is not None and context <= native:
        ctx.progress.say(f"context={context} changes nothing: {source.ref} takes {native} tokens as it is")
        return source
    problem = yarn_problem(source.config, source.ref)
    if problem is not None:
        raise problem
    assert native is not None
    stretched = YarnSource(inner=source, native=native, context=context, remote_code=remote_code)
    ctx.progress.say(
        f"warning: YaRN stretches {source.ref} from {native} to {context} tokens (factor {stretched.factor:g}); it is "
        "static and changes short texts too, so use it only if rows are that long"
    )
    return stretched


@dataclass(frozen=True, kw_only=True)
class YarnSource:
    """`ModelSource` of another one, its rope scaled by YaRN."""

    inner: ModelSource
    native: int
    """What the model takes without scaling, in tokens."""
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
        """What transformers makes of config.json, with everything else that it says of rope kept."""
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(str(self.path), trust_remote_code=self.remote_code)
        except (OSError, ValueError, KeyError) as e:
            raise ModelError(f"the config of {self.ref!r} does not load: {e}") from e
        rope = dict(getattr(config, "rope_parameters", None) or {})
        if rope_type({"rope_parameters": rope}) == "nested" or not rope:
            raise IncompatibleError(
                f"the layers of {self.ref!r} have ropes of several kinds, and YaRN would not be right for all",
                hint="leave context out",
            )
        config.rope_parameters = {**rope, **self.yarn}
        config.max_position_embeddings = self.context
        return config
