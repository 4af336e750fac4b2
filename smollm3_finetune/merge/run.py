"""The procedure of a merge: load, copy densely, restore, fold in, save beside, reload, compare, and only then keep.

Merging goes through a dense copy of the base, never into a quantized layer: that would round the sum again and lose
what was trained. Whatever quantizer the base has, what is saved is an ordinary dense model.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Adapter, Base, ModelSource, Quantizer, UnsupportedOp
from smollm3_finetune.components.registry import attributed_to
from smollm3_finetune.errors import ConfigError, MissingWeightsError, ModelError
from smollm3_finetune.merge.gate import Figures, Limits, coarsest, finest, fixed_rows
from smollm3_finetune.merge.report import (
    Merged,
    MergeSettings,
    finite_or_none,
    given_options,
    merge_report,
    publish_merge,
)
from smollm3_finetune.merge.tensors import check_finite, check_reloaded, digests, keep_tied, named
from smollm3_finetune.model.compare import drift, logits_of_rows
from smollm3_finetune.model.dense_copy import dense_copy
from smollm3_finetune.model.load import LoadedModel, check_fingerprint, load_base, parts, restored
from smollm3_finetune.model.plan import ModelPlan
from smollm3_finetune.model_files.loading import quiet_transformers
from smollm3_finetune.model_files.output import check_space, check_vacant, claimed, count_parameters, partial
from smollm3_finetune.model_files.writing import generation_config, saved_dtype, write_model
from smollm3_finetune.quantize.requantize import Calibration, Requantizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    if plan.adapter is None or plan.saved is None:
        raise UnsupportedOp("there is no saved adapter to merge", hint="--adapter-path RUN/adapter")
    began = time.monotonic()
    quiet_transformers()
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
        about = merge_report(plan, dtype, merged, settings)
        if about["fault"] is not None and not settings.force:
            raise ModelError(
                f"the merge was refused, and nothing was kept: {about['fault']}",
                hint="--dtype float32 rounds less, --max-drift X allows more, --force keeps it whatever it is",
            )
        if requantizer is None:
            publish_merge(about, merged.path, settings.output)
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
) -> Merged:
    """Load, copy, restore, merge, save into `out`, reload and measure. At most two models are in memory at a time."""
    import torch

    assert plan.saved is not None
    assert plan.adapter is not None
    context, task = plan.context, plan.context.progress.task
    exact = "float64" if "float64" in (context.dtype, dtype) else "float32"
    computed = finest(context.dtype, dtype)
    with task(f"loading {plan.ref} with {plan.quantizer.component.title}"):
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
    with task(f"measuring {plan.adapter.component.title} on the base"):
        adapted = restored(plan, adapter, base)
        right = logits_of_rows(adapted.model, rows)
        del adapted, base
        _free()
    with task("merging and saving"):
        with attributed_to(plan.adapter.component):
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
    return Merged(
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

    with attributed_to(plan.loader.component):
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
    merged: Merged,
    about: dict[str, Any],
    requantizer: Requantizer,
    calibration: Calibration | None,
    held: contextlib.ExitStack,
) -> dict[str, Any]:
    """Make the quantized checkpoint of a merged model and put it in its place; returns what is said about it."""
    path = merged.path
    if settings.keep_dense is not None:
        path = settings.keep_dense
        publish_merge(about, merged.path, path)
    context = replace(plan.context, dtype=dtype)
    out = held.enter_context(partial(settings.output))
    title = requantizer.choice.component.title
    with context.progress.task(f"quantizing the merged model with {title}"):
        requantizer.write(plan.source.at(path), out, context, calibration)
    with context.progress.task("reloading the checkpoint and comparing"):
        there = plan.source.at(out)
        measured = requantizer.drift(there, merged.rows, merged.logits, replace(context, dtype=merged.computed))
    choice = requantizer.choice
    again = {
        "quantizer": choice.component.spec.name,
        "options": given_options(choice),
        "drift": finite_or_none(measured),
    }
    versions = {**about["versions"], choice.component.distribution: choice.component.version}
    about = {**about, "requantized": again, "versions": versions}
    publish_merge(about, out, settings.output)
    return about


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
