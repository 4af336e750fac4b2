"""The rows of a configuration, with everything that determines their tokens; no weights and no rows are read yet."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from smollm3_finetune.api import BuildContext, Progress, Purpose
from smollm3_finetune.cache.store import Cache
from smollm3_finetune.components.kinds import ADAPTER, QUANTIZER
from smollm3_finetune.components.registry import Registry, attributed_to
from smollm3_finetune.components.requirements import requirement_problems
from smollm3_finetune.components.selection import SelectedComponent, choose
from smollm3_finetune.components.suggestions import with_suggestions
from smollm3_finetune.config.load import LoadedConfig
from smollm3_finetune.config.schema import DEFAULT_ADAPTER
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.data.plan import select_rows
from smollm3_finetune.data.rows import Rows
from smollm3_finetune.errors import Collector, SmolLM3Error, raise_all
from smollm3_finetune.model.new_tokens import NewToken, added_tokens, declared_tokens, rows_of, split_known
from smollm3_finetune.model.plan import ModelRequest, choose_loader, open_source
from smollm3_finetune.model.start_from import continued_tokenizer
from smollm3_finetune.model_files.loading import load_tokenizer, quiet_transformers
from smollm3_finetune.model_files.vocabulary import embeddings_of
from smollm3_finetune.runs.start_from import Started


@dataclass(frozen=True, kw_only=True)
class PlannedRows:
    """Rows, and how they become tokens."""

    rows: Rows
    objective: SelectedComponent
    renderer: Renderer
    max_length: int
    chunk: bool
    """Whether raw text longer than `max_length` becomes several examples."""
    declared: Sequence[str]
    """The tokens of `data.add_tokens`."""
    new_tokens: Sequence[NewToken]
    """Those of them that the model gets, and those of the adapter that the run starts from."""


def plan_rows(registry: Registry, loaded: LoadedConfig, progress: Progress, start: Started | None) -> PlannedRows:
    """Select the rows as `train` would: names first, then the model's tokenizer, then the rows.

    `start` is what the run starts from; `loaded` is its configuration then.

    Reads no weights, and does not need the packages of a quantizer or an adapter. Raises the independent problems of
    each step together.
    """
    config = loaded.config
    ref, opened_by = (config.model, config.loader) if start is None else start.source()
    request = ModelRequest(ref=ref, loader=opened_by, origins=loaded.origins)
    collect = Collector()
    about_rows = collect.run(lambda: select_rows(registry, loaded))
    loader = collect.run(lambda: choose_loader(registry, request))
    suggesting = collect.run(lambda: _choose_suggesting(registry, loaded))
    declared = collect.run(lambda: declared_tokens(config.data.add_tokens, config.data.add_tokens_file))
    collect.finish()
    assert about_rows is not None and loader is not None and suggesting is not None and declared is not None
    raise_all(requirement_problems(loader.component.title, loader.component.spec.requires, "cpu"))
    context = BuildContext(
        purpose=Purpose.TRAIN,
        device="cpu",
        dtype="float32",
        seed=config.seed,
        cache=Cache.default().reporting(progress.say),
        progress=progress,
    )
    source, _ = open_source(loader, ref, context)
    rows = about_rows.rows(registry)
    selected = [about_rows.objective, *(s.formatter for s in rows.sources), *suggesting, loader]
    max_length = with_suggestions(loaded, selected).config.data.max_length

    quiet_transformers()
    with attributed_to(loader.component):
        tokenizer = source.tokenizer()
    if start is not None and (start.saved.path / "tokenizer_config.json").exists():
        tokenizer = continued_tokenizer(tokenizer, load_tokenizer(config.model, start.saved.path, {}))
    earlier = () if start is None else start.saved.new_tokens
    embeddings = rows_of(embeddings_of(source.config), earlier)
    tokens = added_tokens(tokenizer, split_known(tokenizer, declared, embeddings)[1], embeddings)
    return PlannedRows(
        rows=rows,
        objective=about_rows.objective,
        renderer=Renderer(tokenizer, about_rows.render, embeddings=rows_of(embeddings, tokens)),
        max_length=max_length,
        chunk=config.data.long_text == "chunk",
        declared=declared,
        new_tokens=(*earlier, *tokens),
    )


def _choose_suggesting(registry: Registry, loaded: LoadedConfig) -> list[SelectedComponent]:
    """The adapter and the quantizer, for their suggested values; the default adapter only if it is installed."""
    config = loaded.config
    found = []
    if config.adapter.name is not None:
        found.append(choose(registry, ADAPTER, config.adapter.name, config.adapter, loaded.origins))
    else:
        with contextlib.suppress(SmolLM3Error):
            found.append(choose(registry, ADAPTER, DEFAULT_ADAPTER, config.adapter, loaded.origins))
    if config.quant.name is not None:
        found.append(choose(registry, QUANTIZER, config.quant.name, config.quant, loaded.origins))
    return found
