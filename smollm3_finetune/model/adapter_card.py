"""The model card of a saved adapter: method, base, license, how to use it, and how it was trained.

Core writes it for the adapters of all plugins. An adapter adds `AdapterSpec.card`, and a training run adds `Training`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from smollm3_finetune.api import AdapterCard, Op, options_dict
from smollm3_finetune.components.discovery import CORE_DISTRIBUTION
from smollm3_finetune.components.requirements import installed_version
from smollm3_finetune.config.load import plain
from smollm3_finetune.errors import first_line, is_resource_error
from smollm3_finetune.files.writing import write_text
from smollm3_finetune.model.plan import NO_QUANTIZER, ModelPlan
from smollm3_finetune.model_files.card_mark import is_generated, marked
from smollm3_finetune.model_files.model_card import (
    FILE,
    Metadata,
    beginning,
    facts,
    is_on_hub,
    is_path,
    license_of,
    linked,
    public,
    shown_ref,
    with_options,
)

OF_FROM_PRETRAINED = ("revision", "trust_remote_code")
"""Loader options that are also arguments of transformers' `from_pretrained`."""
LIBRARIES = ("torch", "transformers")
PLUGIN_FILE = "0+"
"""How the version of a plugin that is not installed begins."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a run knows about the training of its adapter; no local path."""

    datasets: Sequence[str] = ()
    """Hub ids."""
    sources: Sequence[tuple[str, int, int, str]] = ()
    """Each source of rows, with its numbers of training and held-out rows, and what identifies its content."""
    settings: Sequence[tuple[str, str]] = ()
    """Hyperparameters."""
    results: Sequence[tuple[str, str]] = ()
    """Losses and the like."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """`loss` and `perplexity` on the held-out rows after training, for the metadata."""


def edited_card(directory: Path) -> str | None:
    """The card in a directory, if there is one that this package did not write or that a user edited."""
    try:
        text = (directory / FILE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return None if is_generated(text) else text


def write_card(
    plan: ModelPlan,
    directory: Path,
    training: Training | None = None,
    edited: str | None = None,
    *,
    loads_alone: bool = True,
) -> None:
    """Write the card of the adapter in `directory`; `edited` is written instead if it is given.

    `loads_alone`: whether `AdapterCard.usage` holds for this adapter on this base.
    If a component fails while it is described, this is reported: a trained adapter must not be lost for its card.
    """
    text = edited
    if text is None:
        try:
            text = adapter_card(plan, training, loads_alone=loads_alone)
        except Exception as e:
            if is_resource_error(e):
                raise
            plan.context.progress.say(f"warning: the model card was not written: {type(e).__name__}: {first_line(e)}")
            return
    write_text(directory / FILE, text)


def adapter_card(plan: ModelPlan, training: Training | None = None, *, loads_alone: bool = True) -> str:
    """The text of `README.md`."""
    assert plan.adapter is not None
    component, card = plan.adapter.component, _own(plan)
    method = card.title or component.spec.name
    metadata = Metadata(
        base=plan.ref,
        tag=component.spec.name,
        relation="finetune" if card.complete else "adapter",
        library=_library(plan, loads_alone),
        license=license_of(plan.source.path),
        datasets=training.datasets if training else (),
        tags=card.tags,
        losses=training.losses if training else {},
    )
    base, name = _base(plan)
    if card.complete:
        title, how = f"{name}, {method}", f"{base} after {method}, trained with smollm3-finetune."
    else:
        title, how = f"{name}, {method} adapter", f"A {method} adapter for {base}, trained with smollm3-finetune."
    lines = [
        *beginning(metadata, title, how),
        *facts(_composition(plan)),
        "",
        *_usage(plan, loads_alone),
    ]
    lines += _training(training) if training else ()
    return marked("\n".join(lines).rstrip("\n") + "\n")


def _library(plan: ModelPlan, loads_alone: bool) -> str:
    """The library that loads the adapter on its base without this package; this package if none does.

    A base that is quantized while it is loaded can be loaded unquantized too. For a checkpoint that is quantized
    already, core does not know which adapters the library attaches to its layers.
    """
    card = _own(plan)
    alone = card.usage and loads_alone and (card.complete or _opens_alone(plan))
    checkpoint = plan.quantizer.spec.name != NO_QUANTIZER and _is_quantized(plan)
    return card.library if alone and not checkpoint else CORE_DISTRIBUTION


def _own(plan: ModelPlan) -> AdapterCard:
    """The adapter's own part of the card."""
    assert plan.adapter is not None
    own: AdapterCard = plan.adapter.component.spec.card  # type: ignore[attr-defined]
    return own


def _base(plan: ModelPlan) -> tuple[str, str]:
    """The base as Markdown, and its name in the title: for a merged base, those of the model that was merged into."""
    earlier = plan.earlier
    if earlier is None or plan.ref == earlier.model:
        return linked(shown_ref(plan.ref)), shown_ref(plan.ref).rpartition("/")[2]
    merged = ", ".join(f"`{stage.run}`" for stage in earlier.earlier() if stage.merged)
    model = shown_ref(earlier.model)
    return f"{linked(model)} with the merged adapter of {merged}", f"{model.rpartition('/')[2]} (merged)"


def _composition(plan: ModelPlan) -> Iterator[tuple[str, str]]:
    assert plan.adapter is not None
    revision = _loader_options(plan).get("revision")
    yield "base", _base(plan)[0] + (f" at `{revision}`" if revision else "")
    name = with_options(plan.quantizer.spec.name, plan.quantizer.changed_options())
    if plan.quantizer.spec.name == NO_QUANTIZER:
        yield "quantization", "none"
    elif _is_quantized(plan):
        yield "quantization", f"the base is a checkpoint quantized by {name}"
    else:
        calibrated = " on rows of the training run" if _needs_calibration(plan) else ""
        yield "quantization", f"the base was quantized by {name}{calibrated} when it was loaded"
    options = {k: v for k, v in plain(options_dict(plan.adapter.options)).items() if v not in (None, [], "")}
    yield "adapter", with_options(plan.adapter.spec.name, options)
    if plan.ship is not None:
        name = with_options(plan.ship.name, plan.ship.chosen.changed_options())
        yield "trained for", f"{name}: without `smollm3`, the adapter computes with weights that are not rounded"
    yield "computed in", plan.context.dtype
    yield "versions", ", ".join(f"{name} {version}" for name, version in _versions(plan).items())


def _versions(plan: ModelPlan) -> dict[str, str]:
    """The distributions of the components and the libraries that they require."""
    assert plan.adapter is not None
    components = [c.component for c in (plan.loader, plan.quantizer, plan.adapter)]
    required = [Requirement(r).name for c in components for r in c.spec.requires.distributions]
    libraries = {name: installed_version(name) for name in (*required, *LIBRARIES)}
    found = {c.distribution: c.version for c in components} | {n: v for n, v in libraries.items() if v is not None}
    return {CORE_DISTRIBUTION: installed_version(CORE_DISTRIBUTION) or "", **found}


# --------------------------------------------------------------------------------------------------------------- usage


def _usage(plan: ModelPlan, loads_alone: bool) -> Iterator[str]:
    card, ref = _own(plan), _typed(plan.ref)
    yield from ("## Use", "")
    installed = ", ".join(f"`{name}`" for name in _installed_distributions(plan))
    yield f"Run the commands in this directory, with {installed} installed."
    if is_path(plan.ref):
        yield f"Replace `{ref}` with the directory or file of the base."
    for file in _plugin_files(plan):
        yield f"`{Path(file).name}` is a plugin file that is not in this directory: replace `{file}` with its path."
    if _needs_calibration(plan) and not _is_quantized(plan):
        yield from (
            "",
            f"**First:** the base was quantized by `{plan.quantizer.spec.name}` on rows of the training run, which are "
            "not in this directory. The commands quantize it again and need `calibration.json` of the run, in the "
            "directory above this one. If it is missing, run this command where the run is, and use `merged`, an "
            "ordinary model, instead of this directory:",
            "", "```console", "smollm3 merge RUN --output merged", "```",
        )  # fmt: skip
    flags = "".join(f" -p {shlex.quote(file)}" for file in _plugin_files(plan))
    options = "".join(f" --loader-opt {shlex.quote(f'{k}={_flag_value(v)}')}" for k, v in _loader_options(plan).items())
    loader = f" --loader {plan.loader.component.full_name}" if _foreign_loader(plan) else ""
    prompt = f"{flags}{loader}{options} --dtype {plan.context.dtype} --prompt 'What is the capital of France?'"
    yield from ("", "```console", f"smollm3 generate {shlex.quote(ref)} --adapter-path .{prompt}", "```")
    yield from ("", "```python", *_python(plan, ref), "```", "")
    alone = card.usage and loads_alone and (card.complete or _opens_alone(plan))
    if alone and plan.quantizer.spec.name == NO_QUANTIZER:
        yield from (f"Without smollm3-finetune, with `{card.library}`:", "", "```python", *_alone(plan, ref), "```", "")
    elif _merges(plan):
        other = plan.quantizer.spec.name != NO_QUANTIZER
        yield from (
            "Without smollm3-finetune: first merge the adapter into its base. The result is an ordinary model of "
            "transformers." + (" On the unquantized base, this adapter computes something else." if other else ""),
            "", "```console", f"smollm3 merge {shlex.quote(ref)} --adapter-path .{flags}{loader}{options} "
            "--output ../merged", "```", "",
        )  # fmt: skip


def _python(plan: ModelPlan, ref: str) -> Iterator[str]:
    arguments = [json.dumps(ref), 'adapter_path="."', f'dtype="{plan.context.dtype}"']
    if _foreign_loader(plan):
        arguments.append(f"loader={plan.loader.component.full_name!r}")
    if options := _loader_options(plan):
        arguments.append(f"loader_options={options!r}")
    if files := _plugin_files(plan):
        arguments.append(f"plugins={files!r}")
    yield "from smollm3_finetune import load_model"
    yield ""
    yield f"loaded = load_model({', '.join(arguments)})"
    yield "model, tokenizer = loaded.model, loaded.tokenizer"


def _alone(plan: ModelPlan, ref: str) -> Iterator[str]:
    """The adapter's own statements, after the ones that load the base with transformers."""
    card = _own(plan)
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    yield ""
    if not card.complete:
        options = "".join(f", {k}={v!r}" for k, v in _loader_options(plan).items())
        dtype = f'dtype="{plan.context.dtype}"'
        yield f"base = AutoModelForCausalLM.from_pretrained({json.dumps(ref)}, {dtype}{options})"
    yield from card.usage.strip().splitlines()
    yield 'tokenizer = AutoTokenizer.from_pretrained(".")'


def _typed(ref: str) -> str:
    """The reference as a reader must type it: a placeholder for a local path."""
    return f"path/to/{shown_ref(ref)}" if is_path(ref) else ref


def _opens_alone(plan: ModelPlan) -> bool:
    """Whether transformers' `from_pretrained` loads the same base."""
    named = is_on_hub(plan.ref) or (Path(plan.ref).expanduser() / "config.json").is_file()
    return named and not _foreign_loader(plan) and set(_loader_options(plan)) <= set(OF_FROM_PRETRAINED)


def _loader_options(plan: ModelPlan) -> dict[str, Any]:
    """The loader options that open the same weights again, without defaults and local paths."""
    pins: Mapping[str, Any] = getattr(plan.source, "pins", {})
    options: dict[str, Any] = public({**plan.loader.changed_options(), **pins})
    return options


def _flag_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _foreign_loader(plan: ModelPlan) -> bool:
    return plan.loader.component.distribution != CORE_DISTRIBUTION


def _is_quantized(plan: ModelPlan) -> bool:
    """Whether the source is itself a quantized checkpoint."""
    markers = getattr(plan.quantizer.spec, "marker_files", ())
    present = any((plan.source.path / name).is_file() for name in markers)  # `has_file` may use the network
    return present or bool(plan.source.config.get("quantization_config"))


def _needs_calibration(plan: ModelPlan) -> bool:
    return bool(getattr(plan.quantizer.spec, "needs_calibration", False))


def _merges(plan: ModelPlan) -> bool:
    assert plan.adapter is not None
    quantizer: Any = plan.quantizer.spec
    readable = Op.READ_WEIGHT in quantizer.provides and Op.READ_WEIGHT not in quantizer.absent
    return bool(plan.adapter.spec.merges) and (quantizer.name == NO_QUANTIZER or readable)


def _installed_distributions(plan: ModelPlan) -> list[str]:
    assert plan.adapter is not None
    components = [c.component for c in (plan.loader, plan.quantizer, plan.adapter)]
    own = [c.distribution for c in components if not c.version.startswith(PLUGIN_FILE)]
    return list(dict.fromkeys((CORE_DISTRIBUTION, *own)))


def _plugin_files(plan: ModelPlan) -> list[str]:
    """Placeholders for the paths of the plugin files that offer the components."""
    assert plan.adapter is not None
    components = [c.component for c in (plan.loader, plan.quantizer, plan.adapter)]
    names = [c.distribution.rpartition(".")[2] for c in components if c.version.startswith(PLUGIN_FILE)]
    return [f"path/to/{name}.py" for name in dict.fromkeys(names)]


# ------------------------------------------------------------------------------------------------------------ training

TRAINING = "## Training"
"""The heading of the section, which the card of a merged model repeats."""


@dataclass(frozen=True, kw_only=True)
class StatedTraining:
    """The training as the card of a saved adapter states it."""

    datasets: Sequence[str] = ()
    """Hub ids."""
    section: str = ""
    """Markdown from the heading to the end of the section; empty if there is none."""


def stated_training(directory: Path) -> StatedTraining:
    """The training in the card of a saved adapter, edited or not; empty if the card is missing or not valid."""
    from huggingface_hub import ModelCard

    try:
        card = ModelCard((directory / FILE).read_text(encoding="utf-8"))
    except Exception:  # of the YAML library, or of huggingface_hub
        return StatedTraining()
    found = re.search(rf"^{TRAINING}\n.*?(?=^## |\Z)", card.text, re.MULTILINE | re.DOTALL)
    datasets = card.data.get("datasets") or []
    return StatedTraining(
        datasets=[d for d in datasets if isinstance(d, str)] if isinstance(datasets, list) else [],
        section=found[0].strip() if found else "",
    )


def _training(training: Training) -> Iterator[str]:
    yield from (TRAINING, "")
    if training.sources:
        yield from ("| data | training rows | held-out rows | content |", "|---|---|---|---|")
        yield from (
            f"| {title} | {train:,} | {held_out:,} | {content} |"
            for title, train, held_out, content in training.sources
        )
        yield ""
    if training.settings:
        yield from ("| hyperparameter | value |", "|---|---|")
        yield from (f"| {name} | {value} |" for name, value in training.settings)
        yield ""
    if training.results:
        yield from ("| result | value |", "|---|---|")
        yield from (f"| {name} | {value} |" for name, value in training.results)
