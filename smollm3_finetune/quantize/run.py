"""`smollm3 quantize`: writes a quantized checkpoint of a full-precision model, with any quantizer that writes them."""

from __future__ import annotations

import hashlib
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smollm3_finetune.api import BuildContext, CheckpointQuantizer, Purpose, options_dict, refuse_quantized
from smollm3_finetune.components.kinds import QUANTIZER
from smollm3_finetune.components.registry import Registry, attributed_to
from smollm3_finetune.config.load import LoadedConfig, plain
from smollm3_finetune.data.calibration import Calibration, plan_calibration
from smollm3_finetune.data.chat_template.stops import stop_ids
from smollm3_finetune.data.plan import SelectedRows, select_rows
from smollm3_finetune.data.rows import Rows
from smollm3_finetune.errors import Collector, ConfigError, IncompatibleError
from smollm3_finetune.model.adapter_card import StatedTraining, stated_training
from smollm3_finetune.model.plan import ModelPlan, ModelRequest, plan_model, select_model
from smollm3_finetune.model_files.card_mark import marked
from smollm3_finetune.model_files.model_card import FILE as CARD
from smollm3_finetune.model_files.model_card import (
    Metadata,
    beginning,
    facts,
    license_of,
    linked,
    shown_ref,
    usage,
    with_options,
)
from smollm3_finetune.model_files.output import check_vacant, claimed, partial, publish
from smollm3_finetune.model_files.stops import keep_stops
from smollm3_finetune.model_files.writing import copy_rest
from smollm3_finetune.paths import user_path
from smollm3_finetune.quantize.requantize import made_when_loaded, writers
from smollm3_finetune.runs.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class QuantizePlan:
    """A checked quantization, ready to be executed."""

    model: ModelPlan
    quantizer: CheckpointQuantizer
    output: Path
    pipeline: Mapping[str, str] | None = None
    """The `pipeline` and the `stage` that this is, if it is a stage."""
    rows: Rows | None = None
    """The rows that the calibration data are selected from."""


def plan_quantize(
    registry: Registry,
    loaded: LoadedConfig,
    make_context: Callable[[], BuildContext],
    output: Path,
    pipeline: Mapping[str, str] | None = None,
) -> QuantizePlan:
    """Check everything before weights are read and before anything is written."""
    config = loaded.config
    if config.quant.name is None:
        raise ConfigError(
            f"{QUANTIZER.flag} is required",
            hint=f"{QUANTIZER.flag} NAME; to see the names: smollm3 plugins list",
        )
    _refuse_run(config.model, config.quant.name, output)
    check_vacant("--output", output)
    request = ModelRequest(
        ref=config.model,
        loader=config.loader,
        quant=config.quant,
        purpose=Purpose.QUANTIZE,
        origins=loaded.origins,
    )
    collect = Collector()
    about_model = collect.run(lambda: select_model(registry, request))
    about_rows: SelectedRows | None = None
    if about_model is None or getattr(about_model.quantizer and about_model.quantizer.spec, "needs_calibration", False):
        about_rows = collect.run(lambda: select_rows(registry, loaded))
    collect.finish()
    assert about_model is not None
    model = plan_model(registry, about_model, make_context())
    refuse_quantized(model.quantizer.component.spec.name, model.source)
    made = model.quantizer.create()
    if not isinstance(made, CheckpointQuantizer):
        raise IncompatibleError(
            f"{QUANTIZER.flag} {config.quant.name} does not write checkpoints: {made_when_loaded(model.quantizer)}",
            hint=f"quantizers that write checkpoints: {', '.join(writers(registry)) or 'none is installed'}",
        )
    rows: Rows | None = None
    if about_rows is not None:
        calibration = plan_calibration(registry, about_rows, loaded, model.context.progress)
        model = replace(model, context=replace(model.context, calibration=calibration.ids(model)))
        rows = calibration.own or calibration.planned.rows
    return QuantizePlan(model=model, quantizer=made, output=output, pipeline=pipeline, rows=rows)


def _refuse_run(ref: str, quantizer: str, output: Path) -> None:
    """Raises ConfigError if a run is named where a model is needed; the hint merges it with the same quantizer."""
    if RunDir(user_path(ref, "the model")).config.exists():
        command = shlex.join(["smollm3", "merge", ref, "--requantize", quantizer, "--output", str(output)])
        raise ConfigError(f"{ref!r} is a run, not a model", hint=f"to quantize the merged model: {command}")


def quantize(plan: QuantizePlan) -> dict[str, Any]:
    """Write the checkpoint with its tokenizer and a model card; returns the report.

    The directory appears complete or not at all; leftovers of a killed process are removed.
    """
    began = time.monotonic()
    model = plan.model
    with claimed(plan.output), partial(plan.output) as out:
        with attributed_to(model.quantizer.component):
            plan.quantizer.write(model.source, out, model.context)
        tokenizer = model.tokenizer()
        tokenizer.save_pretrained(str(out))
        copy_rest(model.source.path, out, model.context.progress.say)
        keep_stops(model.source.path, out, stop_ids(tokenizer))
        report = _report(plan, out)
        (out / CARD).write_text(_card(report, stated_training(model.source.path)), encoding="utf-8")
        publish(out, plan.output)
    return {**report, "output": str(plan.output), "seconds": round(time.monotonic() - began, 1)}


def _report(plan: QuantizePlan, out: Path) -> dict[str, Any]:
    model = plan.model
    calibration = model.context.calibration
    used = calibration.used if isinstance(calibration, Calibration) else None
    return {
        "model": shown_ref(model.ref),
        "weights": model.source.fingerprint,
        "license": license_of(model.source.path),
        "quantizer": model.quantizer.component.spec.name,
        "options": _stated_options(out) or plain(options_dict(model.quantizer.options)),
        "bytes_before": _weight_bytes(model.source.path),
        "bytes": _weight_bytes(out),
        "calibration_rows": None if used is None else len(used),
        "calibration_tokens": None if used is None else sum(map(len, used)),
        "calibration_content": None if used is None or plan.rows is None else _content(plan.rows),
        "versions": {c.component.distribution: c.component.version for c in (model.loader, model.quantizer)},
        **({} if plan.pipeline is None else {"pipeline": dict(plan.pipeline)}),
    }


def _stated_options(out: Path) -> dict[str, Any]:
    """The quantization options in the checkpoint's own `config.json`, simple values only."""
    from smollm3_finetune.files.json import read_json

    about = read_json(out / "config.json").get("quantization_config") or {}
    return {k: v for k, v in about.items() if isinstance(v, int | float | str)}


def _content(rows: Rows) -> str:
    """The SHA-256 of the file of the rows, or that of the sorted SHA-256 of several; or the commit of a Hub dataset."""
    contents = sorted(content for source in rows.sources for content in source.contents)
    return contents[0] if len(contents) == 1 else hashlib.sha256("".join(contents).encode()).hexdigest()


def _weight_bytes(directory: Path) -> int:
    return sum(f.stat().st_size for f in directory.glob("*.safetensors"))


def _card(report: Mapping[str, Any], training: StatedTraining) -> str:
    """The text of the checkpoint's `README.md`; it repeats the `training` that the card of the model states."""
    base = report["model"]
    rows = [
        ("base", f"{linked(base)}, fingerprint `{report['weights'][:16]}`"),
        ("quantizer", with_options(report["quantizer"], report["options"])),
        ("weights", f"{report['bytes'] / 1e6:.1f} MB; {report['bytes_before'] / 1e6:.1f} MB before quantization"),
    ]
    if report["calibration_rows"] is not None:
        rows.append(("calibrated on", f"{report['calibration_rows']} rows, {report['calibration_tokens']:,} tokens"))
        if (content := report["calibration_content"]) is not None:
            rows.append(("calibration content", f"`{content if content.startswith('hub:') else content[:16]}`"))
    if (stage := report.get("pipeline")) is not None:
        rows.append(("pipeline", f"stage `{stage['stage']}` of `{stage['pipeline']}`"))
    title = f"{base.rpartition('/')[2]}, quantized by {report['quantizer']}"
    about = Metadata(base=base, tag=report["quantizer"], relation="quantized", license=report["license"])
    head = beginning(about, title, "Written by `smollm3 quantize`.")
    lines = [*head, *facts(rows), "", *usage(report["quantizer"])]
    lines += ["", training.section] if training.section else []
    return marked("\n".join(lines).rstrip("\n") + "\n")
