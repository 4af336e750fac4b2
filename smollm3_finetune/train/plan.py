"""Everything about a training run that can be known before weights are read and before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smollm3_finetune.api import BuildContext, Conversation, Objective, Purpose, options_dict
from smollm3_finetune.config.load import Loaded, Setting, assemble
from smollm3_finetune.config.schema import DEFAULT_ADAPTER, DEFAULT_OBJECTIVE, ComponentConfig, RunConfig
from smollm3_finetune.data.chat import check_template
from smollm3_finetune.data.formatting import format_rows, recognise
from smollm3_finetune.data.reading import Row, read_rows
from smollm3_finetune.data.split import split
from smollm3_finetune.errors import DataError
from smollm3_finetune.kinds import ADAPTER, FORMATTER, LOADER, OBJECTIVE, QUANTIZER
from smollm3_finetune.plan import Choice, Collector, ModelPlan, ModelRequest, choose, plan_model
from smollm3_finetune.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Tokenised rows."""

    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    empty: int
    """Rows left out because nothing in them is supervised."""
    prompt: Sequence[Mapping[str, Any]]
    """The messages that the sample answers, before and after, reply to."""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run, ready to be carried out."""

    config: RunConfig
    """With every name resolved to `distribution:name` and every option filled in."""
    origins: Mapping[str, str]
    model: ModelPlan
    objective: Choice
    formatter: Choice
    train_rows: list[Conversation]
    held_out_rows: list[Conversation]


def plan_run(registry: Registry, loaded: Loaded, context: BuildContext, checkpoint: Path | None = None) -> RunPlan:
    """Check a run and read its rows. Raises every independent problem together, or a DataError for the rows."""
    config = loaded.config
    adapter = config.adapter
    if adapter.name is None:
        adapter = replace(adapter, name=DEFAULT_ADAPTER)
    request = ModelRequest(
        ref=config.model,
        loader=config.loader,
        quant=config.quant,
        adapter=adapter,
        adapter_path=checkpoint,
        purpose=Purpose.TRAIN,
        origins=loaded.origins,
    )
    collect = Collector()
    objective_name = config.objective.name or DEFAULT_OBJECTIVE
    objective = collect.run(
        lambda: choose(registry, OBJECTIVE, objective_name, config.objective.options, loaded.origins)
    )
    rows = collect.run(lambda: read_rows(config.data.path, config.data.limit))
    formatter = collect.run(lambda: _formatter(registry, config, rows, loaded.origins))
    conversations = None
    if rows is not None and formatter is not None:
        conversations = collect.run(lambda: format_rows(formatter.create(), rows))
    model = collect.run(lambda: plan_model(registry, request, context))
    collect.finish()
    assert objective is not None
    assert formatter is not None
    assert model is not None
    assert conversations is not None
    train_rows, held_out_rows = split(conversations, config.data.held_out, config.seed)
    components = [c for c in (objective, formatter, model.adapter, model.quantizer, model.loader) if c is not None]
    settled = _with_suggestions(loaded, components)
    return RunPlan(
        config=_resolved(settled.config, model, objective, formatter),
        origins=settled.origins,
        model=model,
        objective=objective,
        formatter=formatter,
        train_rows=train_rows,
        held_out_rows=held_out_rows,
    )


def _formatter(
    registry: Registry, config: RunConfig, rows: Sequence[Row] | None, origins: Mapping[str, str]
) -> Choice | None:
    name = config.formatter.name
    if name is None:
        if rows is None:
            return None
        name = recognise(registry, rows).full_name
    return choose(registry, FORMATTER, name, config.formatter.options, origins)


def _with_suggestions(loaded: Loaded, components: Sequence[Choice]) -> Loaded:
    """The configuration again, with what the chosen components suggest beneath what the user set."""
    layers = [
        [
            Setting(key=tuple(key.split(".")), value=value, origin=f"suggested by {c.offer.title}")
            for key, value in c.offer.spec.suggests.items()
        ]
        for c in components
    ]
    set_by_user = {s.key for s in loaded.settings}
    if ("train", "epochs") in set_by_user:  # a suggested number of steps must not cut the asked-for passes short
        layers = [[s for s in layer if s.key != ("train", "max_steps")] for layer in layers]
    return assemble([*layers, loaded.settings])


def _resolved(config: RunConfig, model: ModelPlan, objective: Choice, formatter: Choice) -> RunConfig:
    """Full names and complete options in every component section, so that the run can be repeated as it was."""

    def section(choice: Choice) -> ComponentConfig:
        return ComponentConfig(name=choice.offer.full_name, options=options_dict(choice.options))

    assert model.adapter is not None
    chosen = {
        LOADER: model.loader,
        QUANTIZER: model.quantizer,
        ADAPTER: model.adapter,
        OBJECTIVE: objective,
        FORMATTER: formatter,
    }
    resolved = {kind.section: section(choice) for kind, choice in chosen.items()}
    data = config.data
    if data.path is not None:
        data = replace(data, path=str(Path(data.path).expanduser().resolve()))
    changes: dict[str, Any] = {
        **resolved,
        "data": data,
        "device": model.context.device,
        "dtype": model.context.dtype,
    }
    return replace(config, **changes)


def tokenise(plan: RunPlan, objective: Objective, tokenizer: Any) -> Examples:
    """The rows as tokens. Raises DataError where no row has anything supervised."""
    check_template(tokenizer, plan.model.ref)
    length = plan.config.data.max_length
    train = objective.prepare(plan.train_rows, tokenizer, length)
    held_out = objective.prepare(plan.held_out_rows, tokenizer, length)
    if not train:
        raise DataError(
            f"none of the {len(plan.train_rows)} training rows has a token to learn within "
            f"data.max_length={length} tokens",
            hint=f"--max-length {length * 2}",
        )
    if plan.held_out_rows and not held_out:
        raise DataError(
            f"none of the {len(plan.held_out_rows)} held-out rows has a token to learn within "
            f"data.max_length={length} tokens",
            hint=f"--max-length {length * 2}",
        )
    empty = len(plan.train_rows) + len(plan.held_out_rows) - len(train) - len(held_out)
    return Examples(train=train, held_out=held_out, empty=empty, prompt=_sample_prompt(plan))


def _sample_prompt(plan: RunPlan) -> Sequence[Mapping[str, Any]]:
    """The configured prompt, or a row's messages up to its first answer; the shortest, so that it is quick."""
    text = plan.config.train.sample_prompt
    if text is not None:
        return [{"role": "user", "content": text}]
    rows = plan.held_out_rows or plan.train_rows
    candidates = []
    for row in rows:
        first = next((i for i, m in enumerate(row.messages) if m["role"] == "assistant"), 0)
        if first and row.messages[first - 1]["role"] == "user":
            candidates.append(list(row.messages[:first]))
    if not candidates:
        return [{"role": "user", "content": "Hello!"}]
    return min(candidates, key=lambda messages: (len(messages), len(str(messages))))
