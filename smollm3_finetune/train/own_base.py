"""The base that a run makes for itself, in `RUN/base`: a merged model, or a copy of the base of an earlier run."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import BuildContext, ModelSource, Purpose
from smollm3_finetune.cache.store import Cache
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.errors import ModelError
from smollm3_finetune.files.failures import writing
from smollm3_finetune.files.room import check_room, shown_size, size_of
from smollm3_finetune.merge.gate import finest
from smollm3_finetune.model.device import resolve_dtype
from smollm3_finetune.model.plan import ModelPlan, ModelRequest, plan_model, plan_tokenizer, select_model
from smollm3_finetune.model_files.output import SIZES, SPARE, claimed, partial, publish
from smollm3_finetune.model_files.skeleton import count_parameters
from smollm3_finetune.model_files.vocabulary import with_embeddings
from smollm3_finetune.model_files.writing import published_dtype
from smollm3_finetune.runs.base import base_of
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.start_from import Started

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class OwnBase:
    """How a run makes the base in its directory."""

    merge: ModelPlan | None
    """The adapter that is merged, on its base; None: `copied` is copied."""
    copied: Path | None
    bytes: float | None
    """Its size; None if the architecture is not known to transformers."""
    dtype: str
    """The dtype of the merged weights."""

    def shown(self) -> str:
        """What is made and its size, as a phrase: `merged base in float32, 2.1 MB`."""
        size = f", {shown_size(self.bytes)}" if self.bytes is not None else ""
        return f"merged base in {self.dtype}{size}" if self.merge is not None else f"copy of {self.copied}{size}"

    def check_room(self, run: RunDir) -> None:
        """Raises WriteError if it does not fit on the disk of the run."""
        if self.bytes is not None:
            what = "the merged base" if self.merge is not None else "the copy of the base"
            check_room(run.path, SPARE * self.bytes, what, hint="choose an --output on another disk")

    def make(self, run: RunDir) -> None:
        """Write it into the directory of the run; it appears whole. Raises ModelError if the merge is refused."""
        if base_of(run) is not None:
            return
        self.check_room(run)
        if self.merge is not None:
            self._merge(self.merge, run.base)
            return
        assert self.copied is not None
        with writing(run.base, elsewhere="--output DIR"), claimed(run.base), partial(run.base) as out:
            shutil.copytree(self.copied, out, dirs_exist_ok=True)
            publish(out, run.base)

    def _merge(self, plan: ModelPlan, output: Path) -> None:
        from smollm3_finetune.merge.report import MergeSettings
        from smollm3_finetune.merge.run import merge

        assert plan.saved is not None
        try:
            report = merge(plan, MergeSettings(output=output, dtype=self.dtype))
        except ModelError as e:
            if not e.message.startswith("the merge was refused"):
                raise
            earlier = plan.saved.path
            around = RunDir(earlier.parent)
            target = (
                f"{shlex.quote(str(around.path))}"
                if around.config.is_file()
                else (f"{shlex.quote(plan.ref)} --adapter-path {shlex.quote(str(earlier))}")
            )
            raise ModelError(
                e.message,
                hint=f"merge it with other limits: smollm3 merge {target} --output DIR --dtype float32; "
                "then: smollm3 train --model DIR",
            ) from e
        for warning in report["warnings"]:
            plan.context.progress.say(f"warning: {warning}")


def plan_own_base(registry: Registry, start: Started, context: BuildContext) -> OwnBase | None:
    """The base that a run with `from` makes; None if it uses the base of the earlier run. Reads no weights.

    Raises IncompatibleError if the adapter cannot be merged.
    """
    if not start.earlier.fresh:
        copied = start.base if start.source()[0] == str(start.base) else None
        return None if copied is None else OwnBase(merge=None, copied=copied, bytes=size_of(copied), dtype="")
    ref, loader = start.source()
    recorded = start.saved.adapter
    request = ModelRequest(
        ref=ref,
        loader=loader,
        quant=_earlier_quantizer(start),
        adapter=recorded if recorded is not None else ComponentConfig(),
        adapter_path=start.saved.path,
        purpose=Purpose.MERGE,
    )
    merging = replace(
        context,
        purpose=Purpose.MERGE,
        seed=0,
        dtype=resolve_dtype(start.dtype or "auto", context.device),
        cache=Cache(context.cache.root).reporting(context.progress.say),  # the run does not depend on these entries
    )
    plan = plan_model(registry, select_model(registry, request), merging)
    dtype = finest(context.dtype, published_dtype(plan.source.config))  # rounded no more than the run itself does
    parameters = count_parameters(_without_quantization(plan.source.config))
    size = None if parameters is None else float(parameters * SIZES[dtype])
    return OwnBase(merge=plan, copied=None, bytes=size, dtype=dtype)


def _earlier_quantizer(start: Started) -> ComponentConfig:
    """The quantizer of the base that the adapter was trained on."""
    return start.saved.quant or ComponentConfig()


def _without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "quantization_config"}


class ToBeMerged:
    """The `ModelSource` of a merged model that does not exist yet: a dense model with the config of its base."""

    def __init__(self, merge: ModelPlan) -> None:
        self._merge = merge
        self.ref = merge.ref
        self.config: Mapping[str, Any] = with_embeddings(_without_quantization(merge.source.config), merge.embeddings)

    @property
    def pins(self) -> Mapping[str, Any]:
        pins: Mapping[str, Any] = getattr(self._merge.source, "pins", {})
        return pins

    @property
    def path(self) -> Path:
        return self._merge.source.path

    @property
    def fingerprint(self) -> str:
        raise ModelError("the merged base does not exist yet")

    def has_file(self, name: str) -> bool:
        return name == "config.json"

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return plan_tokenizer(self._merge)

    def load(self, **kwargs: Any) -> PreTrainedModel:
        raise ModelError("the merged base does not exist yet")

    def at(self, path: Path) -> ModelSource:
        return self._merge.source.at(path)
