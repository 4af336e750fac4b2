"""The procedure of a merge: load, copy densely, restore, fold in, save beside, reload, compare, and only then keep.

Merging goes through a dense copy of the base, never into a quantized layer: that would round the sum again and lose
what was trained. Whatever quantizer the base has, what is saved is an ordinary dense model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Adapter, Base, ModelSource, Quantizer, UnsupportedOp, options_dict
from smollm3_finetune.components.requirements import installed_version
from smollm3_finetune.components.selection import Choice, blamed_on
from smollm3_finetune.config.load import plain
from smollm3_finetune.errors import ConfigError, MissingWeightsError, ModelError
from smollm3_finetune.merge.card import card
from smollm3_finetune.merge.gate import Figures, Limits, coarsest, fault, finest, fixed_rows
from smollm3_finetune.merge.tensors import check_finite, check_reloaded, digests, keep_tied, named
from smollm3_finetune.model.compare import drift, logits_of_rows
from smollm3_finetune.model.dense_copy import dense_copy
from smollm3_finetune.model.load import LoadedModel, check_fingerprint, load_base, parts, restored
from smollm3_finetune.model.plan import ModelPlan
from smollm3_finetune.model_files.json_files import write_json
from smollm3_finetune.model_files.model_card import FILE as CARD
from smollm3_finetune.model_files.model_card import shown_ref
from smollm3_finetune.model_files.output import check_space, check_vacant, claimed, count_parameters, partial, publish
from smollm3_finetune.model_files.writing import FIGURES, generation_config, saved_dtype, write_model
from smollm3_finetune.quantize.requantize import Calibration, Requantizer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

LIBRARIES = ("torch", "transformers", "safetensors")


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """What is asked of a merge, besides which adapter on which base."""

    output: Path
    """Where the result will lie: empty or not there yet."""
    dtype: str | None = None
    """The number format to save in; None: the one that the base was published in."""
    max_drift: float | None = None
    """The bound on what the merge adds to the relative difference of the logits; None: by number format."""
    force: bool = False
    """Keep a merge that is over the bound."""
    check_base: bool = True
    """Refuse an adapter that was trained on other weights."""
    keep_dense: Path | None = None
    """With a requantizer: where the merged model itself will lie; None: it is not kept."""


@dataclass(frozen=True, kw_only=True)
class _Merged:
    """A merged model that is on disk, in `path`, and was reloaded from there."""

    path: Path
    own_base: bool | None
    """Whether the adapter was trained on these weights; None where its directory does not say."""
    figures: Figures
    limits: Limits
    computed: str
    """The number format in which the reloaded model was evaluated."""
    parameters: int
    rows: Sequence[Sequence[int]]
    logits: Sequence[Tensor]
    """Of the reloaded model, (T, V) for each row of T ids."""


def merge(
    plan: ModelPlan,
    settings: MergeSettings,
    requantizer: Requantizer | None = None,
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """Merge the plan's saved adapter into a dense copy of its base and write it to `settings.output`.

    `plan` was made for `Purpose.MERGE`. With a `requantizer`, the output is the quantized checkpoint that it makes of
    the merged model; `calibration` gives it rows of token ids. Returns the report, whose content is also in
    `merge.json` of the output.

    Nothing appears in the output unless all went well. Raises ConfigError where it is not vacant, SmolLM3Error where
    the disk is too small, ModelError where the merged model is refused, and what the components raise.
    """
    import transformers

    if plan.adapter is None or plan.saved is None:
        raise UnsupportedOp("there is no saved adapter to merge", hint="--adapter-path RUN/adapter")
    began = time.monotonic()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    bound = settings.max_drift
    if bound is not None and not (math.isfinite(bound) and bound > 0):
        raise ConfigError(f"--max-drift takes a number above 0, got {bound}", hint="--max-drift 0.01")
    homes = {"--output": settings.output}
    if settings.keep_dense is not None:
        if requantizer is None:
            raise ConfigError(
                "--keep-dense goes with --requantize: without it the merged model is the output", hint="--output DIR"
            )
        homes["--keep-dense"] = settings.keep_dense
        dense, out = settings.keep_dense.resolve(), settings.output.resolve()
        if dense.is_relative_to(out) or out.is_relative_to(dense):
            raise ConfigError("--keep-dense and --output lie one in the other", hint="--keep-dense ANOTHER")
    for flag, directory in homes.items():
        check_vacant(flag, directory)
    dtype = saved_dtype(settings.dtype, plan.source.config)
    quantizer, adapter = parts(plan)
    assert adapter is not None
    known = count_parameters(plan.source.config)
    if known is not None:
        check_space(settings.output, known, dtype, copies=1 if requantizer is None else 2)
    with contextlib.ExitStack() as held:
        for directory in homes.values():
            held.enter_context(claimed(directory))
        dense_home = settings.keep_dense or settings.output
        merged = _merged(plan, settings, dtype, quantizer, adapter, held.enter_context(partial(dense_home)))
        about = _about(plan, dtype, merged, settings)
        if about["fault"] is not None and not settings.force:
            raise ModelError(
                f"the merge was refused, and nothing was kept: {about['fault']}",
                hint="--dtype float32 rounds less, --max-drift X allows more, --force keeps it whatever it is",
            )
        if requantizer is None:
            _finish(about, merged.path, settings.output)
        else:
            about = _requantized(plan, settings, dtype, merged, about, requantizer, calibration, held)
    return {
        "output": str(settings.output),
        "dense": str(settings.keep_dense) if settings.keep_dense else None,
        "device": plan.context.device,
        **about,
        "seconds": round(time.monotonic() - began, 1),
    }


def _merged(
    plan: ModelPlan, settings: MergeSettings, dtype: str, quantizer: Quantizer, adapter: Adapter, out: Path
) -> _Merged:
    """Load, copy, restore, merge, save into `out`, reload and measure. At most two models are in memory at a time."""
    import torch

    assert plan.saved is not None
    assert plan.adapter is not None
    context, task = plan.context, plan.context.progress.task
    exact = "float64" if "float64" in (context.dtype, dtype) else "float32"
    computed = finest(context.dtype, dtype)
    with task(f"loading {plan.ref} with {plan.quantizer.offer.title}"):
        base = load_base(plan.quantizer, quantizer, plan.source, context)
    if settings.check_base:
        check_fingerprint(plan, base)
    trained_on = plan.saved.base_fingerprint
    own_base = None if trained_on is None else trained_on == base.fingerprint
    tied = bool(getattr(base.model.config, "tie_word_embeddings", False))
    tokenizer = LoadedModel(plan=plan, base=base, adapted=None).tokenizer
    generation = generation_config(base.model, plan.saved.path)
    with task("measuring the base and its dense copy"):
        rows = fixed_rows(tokenizer, _vocabulary(base.model))
        alone = logits_of_rows(base.model, rows)
        rounded_drift = None
        if coarsest(exact, dtype) != exact:
            rounded: Any = dense_copy(base, getattr(torch, dtype)).to(getattr(torch, computed))
            rounded_drift = drift(logits_of_rows(rounded, rows), alone)
            del rounded
        dense = dense_copy(base, getattr(torch, exact))
        dense_drift = drift(logits_of_rows(dense, rows), alone)
        limits = Limits.of(context.dtype, dtype, _forward_rtol(base), settings.max_drift)
    with task(f"measuring {plan.adapter.offer.title} on the base"):
        adapted = restored(plan, adapter, base)
        right = logits_of_rows(adapted.model, rows)
        del adapted, base
        _free()
    with task("merging and saving"):
        with blamed_on(plan.adapter):
            model = adapter.merge(dense, plan.saved.path)
            if not hasattr(model, "save_pretrained"):
                raise TypeError(f"merge() returned {type(model).__name__}, not a model")
        check_finite(model)
        keep_tied(model, tied)
        merged_drift = drift(logits_of_rows(model, rows), right)
        write_model(model, tokenizer, generation, dtype, out)
        wanted = digests(model, getattr(torch, dtype))
        architecture, parameters = type(model).__name__, sum(p.numel() for p in model.parameters())
        del model, dense
        _free()
    with task("reloading it from disk and comparing"):
        again = _loaded_again(plan, plan.source.at(out), computed)
        check_reloaded(architecture, wanted, digests(again, getattr(torch, dtype)))
        found = logits_of_rows(again, rows)
        del again
        _free()
    figures = Figures(
        positions=sum(map(len, rows)),
        moved=drift(right, alone),
        dense=dense_drift,
        merged=merged_drift,
        base=dense_drift if rounded_drift is None else rounded_drift,
        drift=drift(found, right),
    )
    return _Merged(
        path=out,
        own_base=own_base,
        figures=figures,
        limits=limits,
        computed=computed,
        parameters=parameters,
        rows=rows,
        logits=found,
    )


def _loaded_again(plan: ModelPlan, source: ModelSource, dtype: str) -> PreTrainedModel:
    """The model that was saved, through the run's own loader; its tokenizer is tried too."""
    import torch

    with blamed_on(plan.loader):
        source.tokenizer()
        try:
            model = source.load(dtype=getattr(torch, dtype))
        except MissingWeightsError as e:
            architecture = (source.config.get("architectures") or ["model"])[0]
            raise ModelError(f"the merged model lacks tensors that a {architecture} has: {named(e.names)}") from e
        model.to(plan.context.device)
    return model


def _requantized(
    plan: ModelPlan,
    settings: MergeSettings,
    dtype: str,
    merged: _Merged,
    about: dict[str, Any],
    requantizer: Requantizer,
    calibration: Calibration | None,
    held: contextlib.ExitStack,
) -> dict[str, Any]:
    """Make the quantized checkpoint of a merged model and put it in its place; returns what is said about it."""
    path = merged.path
    if settings.keep_dense is not None:
        path = settings.keep_dense
        _finish(about, merged.path, path)
    context = replace(plan.context, dtype=dtype)
    out = held.enter_context(partial(settings.output))
    title = requantizer.choice.offer.title
    with context.progress.task(f"quantizing the merged model with {title}"):
        requantizer.write(plan.source.at(path), out, context, calibration)
    with context.progress.task("reloading the checkpoint and comparing"):
        there = plan.source.at(out)
        measured = requantizer.drift(there, merged.rows, merged.logits, replace(context, dtype=merged.computed))
    choice = requantizer.choice
    again = {"quantizer": choice.offer.spec.name, "options": _given(choice), "drift": _finite(measured)}
    versions = {**about["versions"], choice.offer.distribution: choice.offer.version}
    about = {**about, "requantized": again, "versions": versions}
    _finish(about, out, settings.output)
    return about


def _finish(about: Mapping[str, Any], path: Path, directory: Path) -> None:
    """Write the card and the figures into a directory that is else complete, and give it its name."""
    (path / CARD).write_text(card(about), encoding="utf-8")
    write_json(path / FIGURES, about)
    publish(path, directory)


def _about(plan: ModelPlan, dtype: str, merged: _Merged, settings: MergeSettings) -> dict[str, Any]:
    """What `merge.json` holds: no path of this machine, since it goes with the model."""
    assert plan.adapter is not None
    figures, limits = merged.figures, merged.limits
    wrong = fault(figures, limits, plan.quantizer.offer.title)
    warnings = []
    if figures.moved == 0.0:
        warnings.append("the adapter moves nothing: with it the logits are those of the base alone")
    if merged.own_base is False:
        warnings.append("the adapter was trained on other weights than those of this base")
    chosen = [plan.loader, plan.quantizer, plan.adapter]
    versions = {c.offer.distribution: c.offer.version for c in chosen}
    versions |= {name: installed_version(name) or "" for name in LIBRARIES}
    numbers = {**dataclasses.asdict(figures), "merged_excess": figures.merged_excess, "excess": figures.excess}
    ref = shown_ref(plan.ref)
    return {
        "title": f"{ref.rpartition('/')[2]}, {plan.adapter.offer.spec.name}, merged",
        "model": ref,
        "own_base": merged.own_base,
        "quantizer": plan.quantizer.offer.spec.name,
        "quantizer_options": _given(plan.quantizer),
        "adapter": plan.adapter.offer.spec.name,
        "adapter_options": _given(plan.adapter),
        "dtype": dtype,
        "computed_in": merged.computed,
        "parameters": merged.parameters,
        "figures": {name: _finite(value) for name, value in numbers.items()},
        "limits": dataclasses.asdict(limits),
        "fault": wrong,
        "forced": wrong is not None and settings.force,
        "warnings": warnings,
        "requantized": None,
        "versions": versions,
    }


def _given(choice: Choice) -> dict[str, Any]:
    """The options of a component that are not its defaults."""
    usual = options_dict(choice.offer.options_class()())
    chosen = options_dict(choice.options)
    return {k: v for k, v in plain(chosen).items() if chosen[k] != usual.get(k)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _forward_rtol(base: Base) -> float:
    """The largest of the base's layers."""
    views = (base.ops_for(layer) for layer in base.model.modules())
    return max((ops.forward_rtol for ops in views if ops is not None), default=0.0)


def _free() -> None:
    """Give back the memory of models that were deleted: adapters put cycles into them."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
