"""The procedure of a merge: load, copy densely, restore, merge, save, reload, compare, and only then keep.

An adapter is merged into a dense copy of the base, never into a quantized layer: that would round the sum again and
lose most of the training. The saved model is an ordinary dense model for every quantizer of the base.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial as partial_function
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Adapter, ModelSource, Quantizer, UnsupportedOp
from smollm3_finetune.components.registry import attributed_to
from smollm3_finetune.data.chat_template.stops import stop_ids
from smollm3_finetune.errors import ConfigError, MissingWeightsError, ModelError
from smollm3_finetune.evaluation.retained import Retained, retained, retained_warning, unknown
from smollm3_finetune.evaluation.row_losses import RowLosses
from smollm3_finetune.merge.gate import Figures, Limits, coarsest, finest, fixed_rows
from smollm3_finetune.merge.prediction import PredictedRows, fixed_texts, predictions
from smollm3_finetune.merge.remedy import ship_as_command
from smollm3_finetune.merge.report import (
    Merged,
    MergeSettings,
    finite_or_none,
    merge_report,
    publish_merge,
)
from smollm3_finetune.merge.shipped import ShippedMerge
from smollm3_finetune.merge.tensors import (
    check_finite,
    check_reloaded,
    digest,
    digests,
    keep_tied,
    named,
    set_tied,
    ties,
    untie,
)
from smollm3_finetune.model.compare import drift, logits_of_rows
from smollm3_finetune.model.dense_copy import dense_copy
from smollm3_finetune.model.device import free_memory
from smollm3_finetune.model.load import LoadedModel, load_planned_base, parts, restored
from smollm3_finetune.model.plan import ModelPlan
from smollm3_finetune.model.quantized_layers import forward_rtol
from smollm3_finetune.model.trained_context import check_trained_context
from smollm3_finetune.model_files.loading import quiet_transformers
from smollm3_finetune.model_files.output import check_space, check_vacant, claimed, partial
from smollm3_finetune.model_files.skeleton import count_parameters
from smollm3_finetune.model_files.stops import as_ids, joined
from smollm3_finetune.model_files.writing import copy_rest, generation_config, saved_dtype, write_model
from smollm3_finetune.quantize.requantize import Calibration, Requantizer
from smollm3_finetune.shipping.gate import DifferentWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def merge(
    plan: ModelPlan,
    settings: MergeSettings,
    requantizer: Requantizer | None = None,
    calibration: Calibration | None = None,
    held_out: PredictedRows | None = None,
) -> dict[str, Any]:
    """Merge the plan's saved adapter into a dense copy of its base and write it to `settings.output`.

    `plan` must be made for `Purpose.MERGE`. With a `requantizer`, the output is a quantized checkpoint of the merged
    model; `calibration` returns rows of token ids for it, and both models are measured on the `held_out` rows (default:
    fixed texts). Returns the report, whose content is also in `merge.json` of
    the output.

    The output is created only if everything succeeded. Raises ConfigError if it is not empty, SmolLM3Error if the disk
    is too small, ModelError if the merged model is refused, and the errors of the components.
    """
    if plan.adapter is None or plan.saved is None:
        raise UnsupportedOp("there is no saved adapter to merge", hint="--adapter-path RUN/adapter")
    began = time.monotonic()
    if settings.check_base:
        check_trained_context(plan)
    quiet_transformers()
    bound = settings.max_drift
    if bound is not None and not (math.isfinite(bound) and bound > 0):
        raise ConfigError(f"--max-drift must be a positive number, not {bound}", hint="--max-drift 0.01")
    directories = {"--output": settings.output}
    if settings.keep_dense is not None:
        if requantizer is None:
            raise ConfigError(
                "--keep-dense needs --requantize: without it, the merged model is the output", hint="--output DIR"
            )
        directories["--keep-dense"] = settings.keep_dense
        dense, out = settings.keep_dense.resolve(), settings.output.resolve()
        if dense.is_relative_to(out) or out.is_relative_to(dense):
            raise ConfigError("--keep-dense and --output must not contain each other", hint="--keep-dense OTHER_DIR")
    for flag, directory in directories.items():
        check_vacant(flag, directory)
    dtype = saved_dtype(settings.dtype, plan.source.config)
    if (shipped := ShippedMerge.of(plan)) is not None:
        _check_ship_dtype(shipped, requantizer, dtype)
    quantizer, adapter = parts(plan)
    assert adapter is not None
    known = count_parameters(plan.source.config)
    if known is not None:
        check_space(settings.output, known, dtype, copies=1 if requantizer is None else 2)
    with contextlib.ExitStack() as held:
        held.enter_context(_forceable())
        for directory in directories.values():
            held.enter_context(claimed(directory))
        dense_directory = settings.keep_dense or settings.output
        merged = merge_and_reload(
            plan,
            settings,
            dtype,
            quantizer,
            adapter,
            held.enter_context(partial(dense_directory)),
            predicted=held_out,
            predict=requantizer is not None,
            ships=shipped is not None
            and (shipped.loads_format(dtype) if requantizer is None else requantizer.ship is not None),
        )
        about = merge_report(plan, dtype, merged, settings)
        if shipped is not None:
            about["warnings"] += shipped.notices(
                dtype,
                merged.own_base,
                None if requantizer is None else (requantizer.choice.spec.name, requantizer.ship is not None),
            )
        if not settings.force:
            check_merge(
                about,
                merged,
                hint="to round less: --dtype float32; to raise the limit: --max-drift X; to keep it anyway: --force",
            )
        if requantizer is None:
            publish_merge(about, merged.path, settings.output, plan.saved.path)
        else:
            about = _requantize(plan, settings, dtype, merged, about, requantizer, calibration, held)
    return {
        "output": str(settings.output),
        "dense": str(settings.keep_dense) if settings.keep_dense else None,
        "device": plan.context.device,
        "remedy": None,
        **about,
        "seconds": round(time.monotonic() - began, 1),
    }


@contextlib.contextmanager
def _forceable() -> Iterator[None]:
    """Names `--force` in the hint of a refusal for weights that differ from those of training."""
    try:
        yield
    except DifferentWeights as e:
        keep = "to keep it anyway: --force"
        raise DifferentWeights(e.found, hint=keep if e.hint is None else f"{e.hint}; {keep}") from e


def check_merge(about: dict[str, Any], merged: Merged, *, hint: str) -> None:
    """Raises ModelError, with `hint`, if the `merge_report` of a merge states a fault."""
    if about["fault"] is None:
        return
    if merged.tie_changed:
        raise ModelError(
            f"the merge was refused and nothing was kept: {about['fault']}; the adapter changes the embeddings, which "
            "the base ties to its head",
            hint="to write embeddings and head as two matrices: --untie",
        )
    raise ModelError(f"the merge was refused and nothing was kept: {about['fault']}", hint=hint)


def merge_and_reload(
    plan: ModelPlan,
    settings: MergeSettings,
    dtype: str,
    quantizer: Quantizer,
    adapter: Adapter,
    out: Path,
    *,
    predicted: PredictedRows | None,
    predict: bool,
    ships: bool = False,
) -> Merged:
    """Load, copy, restore, merge, save into `out`, reload and measure. At most two models are in memory at a time.

    The losses on the `predicted` rows, by default fixed texts, are measured only if `predict`. `ships`: the result is
    the format that the adapter was trained for, so that a difference from the weights of training refuses it.
    """
    import torch

    gate = shipped = ShippedMerge.of(plan, strict=ships and not settings.force)
    plan = plan if shipped is None else shipped.plan
    assert plan.saved is not None
    assert plan.adapter is not None
    context, task = plan.context, plan.context.progress.task
    exact = "float64" if "float64" in (context.dtype, dtype) else "float32"
    exact = exact if shipped is None else shipped.record.merged_in
    computed = finest(context.dtype, dtype)
    with task(f"loading {plan.ref} with {plan.quantizer.component.title}"):
        base = load_planned_base(plan, quantizer, check_base=settings.check_base)
    trained_on = plan.saved.base_fingerprint
    own_base = None if trained_on is None else trained_on == base.fingerprint
    tied = ties(base.model)
    tokenizer = LoadedModel(plan=plan, base=base, adapted=None).tokenizer
    stops = as_ids(base.model.generation_config.eos_token_id)
    generation = generation_config(base.model, plan.saved.path)
    generation.eos_token_id = joined(stops, as_ids(generation.eos_token_id), stop_ids(tokenizer)) or None
    with task("measuring the base and its dense copy"):
        rows = fixed_rows(tokenizer, _vocabulary(base.model))
        predicted = predicted or fixed_texts(tokenizer, _vocabulary(base.model))
        alone = logits_of_rows(base.model, rows)
        learned = predict and predicted.not_learned is None
        base_losses = predicted.base_losses(base.model) if learned else None
        rounded_drift = None
        if coarsest(exact, dtype) != exact:
            rounded: Any = dense_copy(base, getattr(torch, dtype)).to(getattr(torch, computed))
            rounded_drift = drift(logits_of_rows(rounded, rows), alone)
            del rounded
        dense = dense_copy(base, getattr(torch, exact))
        dense_drift = drift(logits_of_rows(dense, rows), alone)
        limits = Limits.of(context.dtype, dtype, forward_rtol(base), settings.max_drift)
    with task(f"measuring {plan.adapter.component.title} on the base"):
        adapted = restored(plan, adapter, base)
        reference = logits_of_rows(adapted.model, rows)
        if own_base is False:
            shipped = None  # the grids are those of another base
        adapter_losses = None
        if shipped is not None:
            as_trained = shipped.install(base, adapted)
            if learned:
                adapter_losses = predicted.losses(as_trained.model)
            before = len(shipped.warnings)
            shipped.tolerant(partial_function(shipped.check_restored, as_trained))
            shipped = shipped if len(shipped.warnings) == before else None  # what follows would differ too
            del as_trained
        del adapted, base
        free_memory()
    with task("merging and saving"):
        untying, embedded = tied and settings.untie, _embeddings_digest(dense)
        if untying:
            set_tied(dense, False)
        with attributed_to(plan.adapter.component):
            model = adapter.merge(dense, plan.saved.path)
            if not hasattr(model, "save_pretrained"):
                raise TypeError(f"merge() returned {type(model).__name__}, not a model")
        check_finite(model)
        separate = untying and untie(model)
        if not untying:
            keep_tied(model, tied)
        merged_drift = drift(logits_of_rows(model, rows), reference)
        tie_changed = tied and not untying and embedded != _embeddings_digest(model)
        write_model(model, tokenizer, generation, dtype, out)
        copy_rest(plan.source.path, out, context.progress.say, tokenizer=False)
        wanted = digests(model, getattr(torch, dtype))
        architecture, parameters = type(model).__name__, sum(p.numel() for p in model.parameters())
        del model, dense
        free_memory()
    with task("reloading and comparing"):
        reloaded = reload_merged(plan, plan.source.at(out), computed)
        check_reloaded(architecture, wanted, digests(reloaded, getattr(torch, dtype)))
        found = logits_of_rows(reloaded, rows)
        losses = predicted.losses(reloaded) if predict else None
        compared = None
        if shipped is not None:
            compared = shipped.tolerant(partial_function(shipped.check_merged, reloaded, dtype))
        del reloaded
        free_memory()
        if compared is not None and shipped is not None and shipped.loads_format(dtype):
            compared = shipped.tolerant(partial_function(shipped.check_loaded, plan.source.at(out)))
            free_memory()
    figures = Figures(
        positions=sum(map(len, rows)),
        moved=drift(reference, alone),
        dense=dense_drift,
        merged=merged_drift,
        base=dense_drift if rounded_drift is None else rounded_drift,
        drift=drift(found, reference),
    )
    return Merged(
        path=out,
        own_base=own_base,
        tie_changed=tie_changed,
        untied=separate if untying else None,
        figures=figures,
        limits=limits,
        computed=computed,
        parameters=parameters,
        rows=rows,
        logits=found,
        predicted=predicted,
        losses=losses,
        base_losses=base_losses,
        adapter_losses=adapter_losses,
        shipped=compared,
        shipped_warnings=tuple(gate.warnings) if gate is not None else (),
    )


def _check_ship_dtype(shipped: ShippedMerge, requantizer: Requantizer | None, dtype: str) -> None:
    """Raises ConfigError if the format would be written from weights in another dtype than in training."""
    if requantizer is not None and requantizer.ship is not None and dtype != shipped.record.ship_dtype:
        raise ConfigError(
            f"--dtype {dtype}: the run was trained for a checkpoint that is written from weights in "
            f"{shipped.record.ship_dtype}",
            hint="omit --dtype",
        )


def retained_by(merged: Merged, shipped: RowLosses) -> Retained:
    """The share of the gain of training that a model keeps which was written from the merged one."""
    if merged.base_losses is None or merged.losses is None:
        return unknown(merged.predicted.not_learned or "the losses were not measured")
    if merged.adapter_losses is not None:
        return retained(merged.base_losses, merged.adapter_losses, shipped, as_shipped=True)
    return retained(merged.base_losses, merged.losses, shipped)


def reload_merged(plan: ModelPlan, source: ModelSource, dtype: str) -> PreTrainedModel:
    """The saved model, loaded with the plan's loader; its tokenizer is loaded as a check."""
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


def _requantize(
    plan: ModelPlan,
    settings: MergeSettings,
    dtype: str,
    merged: Merged,
    about: dict[str, Any],
    requantizer: Requantizer,
    calibration: Calibration | None,
    held: contextlib.ExitStack,
) -> dict[str, Any]:
    """Write and measure the quantized checkpoint of a merged model; returns the content of its `merge.json`."""
    assert plan.saved is not None
    path, left = merged.path, "nothing was kept"
    if settings.keep_dense is not None:
        path, left = settings.keep_dense, f"the merged model in {settings.keep_dense} is complete"
        publish_merge(about, merged.path, path, plan.saved.path)
    context = replace(plan.context, dtype=dtype)
    out = held.enter_context(partial(settings.output, left))
    title = requantizer.choice.component.title
    with context.progress.task(f"quantizing the merged model with {title}"):
        if merged.own_base is False:
            requantizer = replace(requantizer, ship=None)
            if requantizer.needs_calibration and calibration is None and plan.saved.calibration is None:
                raise ConfigError(
                    f"{title} needs calibration rows on a base that the adapter was not trained on, and there are none",
                    hint="merge a run, which provides rows",
                )
        requantizer.write(plan.source.at(path), out, context, calibration)
    compared = merged.shipped
    with context.progress.task("reloading the checkpoint and comparing"):
        checkpoint = plan.source.at(out)
        model = requantizer.load(checkpoint, replace(context, dtype=merged.computed))
        measured = drift(logits_of_rows(model, merged.rows), merged.logits)
        losses = merged.predicted.losses(model)
        assert merged.losses is not None
        predicted = predictions(merged.predicted, merged.losses.loss, losses.loss)
        kept = retained_by(merged, losses)
        del model
        free_memory()
        if requantizer.ship is not None and (gate := ShippedMerge.of(plan, strict=not settings.force)) is not None:
            reloaded = requantizer.load_base(checkpoint, replace(context, dtype="float32"))
            compared = gate.tolerant(partial_function(gate.checkpoint, reloaded))
            del reloaded
            free_memory()
            about["warnings"] = list(dict.fromkeys([*about["warnings"], *gate.warnings]))
    choice = requantizer.choice
    requantized = {
        "quantizer": choice.component.spec.name,
        "options": choice.changed_options(),
        "drift": finite_or_none(measured),
        "predictions": predicted,
        "retained": kept.as_json(),
    }
    versions = {**about["versions"], choice.component.distribution: choice.component.version}
    warnings = [*about["warnings"], *filter(None, [predicted["warning"], retained_warning(kept)])]
    about = {**about, "requantized": requantized, "versions": versions, "warnings": warnings, "shipped": compared}
    publish_merge(about, out, settings.output, plan.saved.path)
    return {**about, "remedy": None if kept.enough else ship_as_command(plan, choice)}


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _embeddings_digest(model: Any) -> str:
    weight = model.get_input_embeddings().weight
    return digest(weight, weight.dtype)
