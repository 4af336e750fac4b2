"""The full-precision model that an exporter of models writes: merged, dequantized, or the model as it is."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from smollm3_finetune.api import ModelSource, Purpose
from smollm3_finetune.data.chat_template.stops import stop_ids
from smollm3_finetune.errors import ModelError
from smollm3_finetune.export.plan import PlannedExport
from smollm3_finetune.files.json import read_json
from smollm3_finetune.merge.gate import Limits, fixed_rows
from smollm3_finetune.merge.report import Merged, MergeSettings, merge_report
from smollm3_finetune.merge.run import check_merge, merge_and_reload, reload_merged
from smollm3_finetune.merge.tensors import check_finite, check_reloaded, digests
from smollm3_finetune.model.compare import drift, logits_of_rows
from smollm3_finetune.model.dense_copy import dense_copy
from smollm3_finetune.model.device import free_memory
from smollm3_finetune.model.load import load_base, parts
from smollm3_finetune.model.plan import OWN_NO_QUANTIZER, ModelPlan
from smollm3_finetune.model.quantized_layers import forward_rtol
from smollm3_finetune.model_files.output import partial
from smollm3_finetune.model_files.stops import as_ids, joined
from smollm3_finetune.model_files.writing import copy_rest, published_dtype, write_model
from smollm3_finetune.shipping.target import same_format

REFUSED = "the export was refused and nothing was kept"


def exact_dtype(plan: ModelPlan) -> str:
    """The dtype in which a merge or a dense copy is written: float32, or float64 for a base of that dtype."""
    return "float64" if published_dtype(plan.source.config) == "float64" else "float32"


def full_precision(
    planned: PlannedExport, held: contextlib.ExitStack
) -> tuple[ModelSource, Merged | None, dict[str, Any] | None]:
    """The model that is exported, and if an adapter was merged, the merge and the content of its report.

    What has to be written first is written to a directory that `held` deletes.
    """
    if planned.merges:
        merged, about = _merged(planned, held.enter_context(partial(planned.settings.output)))
        return planned.plan.source.at(merged.path), merged, about
    if planned.spec.takes == "adapter" or is_dense(planned.plan):
        return planned.plan.source, None, None
    out = held.enter_context(partial(planned.settings.output))
    write_dense(planned.plan, out)
    return planned.plan.source.at(out), None, None


def is_dense(plan: ModelPlan) -> bool:
    """Whether the files of the model are what is loaded: nothing is quantized, nothing is changed by its loader."""
    if plan.quantizer.component.full_name != OWN_NO_QUANTIZER or "quantization_config" in plan.source.config:
        return False
    path = plan.source.path
    return any(path.glob("*.safetensors")) and read_json(path / "config.json") == dict(plan.source.config)


def _merged(planned: PlannedExport, out: Path) -> tuple[Merged, dict[str, Any]]:
    """Merge into `out`, through the merge check. Raises ModelError if it is refused."""
    plan, settings = planned.plan, planned.settings
    about_merge = MergeSettings(
        output=settings.output,
        max_drift=settings.max_drift,
        untie=settings.untie,
        check_base=settings.check_base,
        pipeline=settings.pipeline,
    )
    quantizer, adapter = parts(plan)
    assert adapter is not None
    dtype, held_out = exact_dtype(plan), planned.rows.held_out
    merged = merge_and_reload(
        plan,
        about_merge,
        dtype,
        quantizer,
        adapter,
        out,
        predicted=held_out,
        predict=held_out is not None,
        ships=plan.ship is not None and plan.ship.record is not None and same_format(planned.choice, plan.ship.record),
    )
    about = merge_report(plan, dtype, merged, about_merge)
    check_merge(about, merged, hint="to raise the limit: --max-drift X")
    return merged, about


def write_dense(plan: ModelPlan, out: Path) -> None:
    """Write the dequantized model into `out`; it computes what the quantized one computes, up to rounding.

    Raises ModelError if it does not, and UnsupportedOp if the weight of a layer cannot be read.
    """
    import torch

    dtype, task = exact_dtype(plan), plan.context.progress.task
    context = replace(plan.context, purpose=Purpose.MERGE, dtype=dtype)
    quantizer, _ = parts(plan)
    with task(f"loading {plan.ref} with {plan.quantizer.component.title}"):
        base = load_base(plan.quantizer, quantizer, plan.source, context)
    tokenizer = plan.tokenizer()
    generation = base.model.generation_config
    own = as_ids(generation.eos_token_id)
    generation.eos_token_id = joined(own, stop_ids(tokenizer)) or None
    with task("writing and comparing its dense copy"):
        rows = fixed_rows(tokenizer, int(base.model.get_input_embeddings().weight.shape[0]))
        alone = logits_of_rows(base.model, rows)
        limit = Limits.of(dtype, dtype, forward_rtol(base), None).dense
        dense = dense_copy(base, getattr(torch, dtype))
        del base
        free_memory()
        difference = drift(logits_of_rows(dense, rows), alone)
        if not difference <= limit:
            raise ModelError(
                f"{REFUSED}: the dense copy of the model differs from it by {difference:.2g} (limit {limit:.2g}): "
                f"{plan.quantizer.component.title} reads other weights than it multiplies by"
            )
        check_finite(dense)
        write_model(dense, tokenizer, generation, dtype, out)
        copy_rest(plan.source.path, out, plan.context.progress.say, tokenizer=False)
        wanted, architecture = digests(dense, getattr(torch, dtype)), type(dense).__name__
        del dense
        free_memory()
        reloaded = reload_merged(plan, plan.source.at(out), dtype)
        check_reloaded(architecture, wanted, digests(reloaded, getattr(torch, dtype)))
