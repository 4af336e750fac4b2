"""`smollm3 data preview|stats`: what `train` would make of the rows. No weights are read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from smollm3_finetune.cli.options import run_options
from smollm3_finetune.cli.session import find_plugins, load_configuration, working

if TYPE_CHECKING:
    from smollm3_finetune.api import Progress
    from smollm3_finetune.components.registry import Registry
    from smollm3_finetune.components.selection import Choice
    from smollm3_finetune.config.load import Loaded
    from smollm3_finetune.data.preview import Inspector
    from smollm3_finetune.data.stats import SourceStats

F = TypeVar("F", bound=Callable[..., Any])

HIDDEN = (
    "quant", "quant_opt", "adapter", "adapter_opt", "dtype", "device", "max_steps", "epochs", "batch_size",
    "learning_rate", "output",
)  # fmt: skip
"""Options of `train` that are taken, so that its command line can be reused, and change nothing here."""


def data_options(f: F) -> F:
    """The options of `train`; help shows those that decide what rows become."""
    f = run_options(f)
    for parameter in getattr(f, "__click_params__", ()):
        if parameter.name in HIDDEN:
            parameter.hidden = True
    return f


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def data() -> None:
    """Show what training rows become: text, tokens, mask, counts.

    Both verbs take every option of `smollm3 train`, so its command line can be reused as it is; they read no weights
    and write nothing.
    """


@data.command()
@data_options
@click.option("--rows", type=click.IntRange(min=0), default=3, show_default=True, help="Rows shown of each source.")
@click.option("--source", type=click.IntRange(min=0), metavar="INDEX", help="Only this source, counted from 0.")
@click.option("--tokens", is_flag=True, help="Show the tokens of each row too: index, id, mask, text.")
@click.option(
    "--sample", type=click.IntRange(min=1), default=1000, show_default=True, metavar="ROWS",
    help="Rows counted of each source, evenly spaced; `data stats` counts all.",
)  # fmt: skip
def preview(rows: int, source: int | None, tokens: bool, sample: int, **values: Any) -> None:
    """Show the first rows as they are trained on, then how long rows are and what was cut or left out.

    What is learned is in color on a terminal. Elsewhere it stands between « and », or between ⟦ and ⟧ where a row
    itself holds one of those; the legend says which. The first token of a row is never learned: nothing comes
    before it that could predict it.

    \b
    Examples:
      smollm3 data preview
      smollm3 data preview --data rows.jsonl --rows 1 --tokens
      smollm3 data preview --data a.jsonl --data b.jsonl --source 1 --max-length 2048
    """
    from smollm3_finetune.cli.output.rows import Page, head, show_row, show_stats
    from smollm3_finetune.data.stats import refuse_if_nothing_is_learned

    page = Page()
    with working():
        look = _look(values)
        chosen = look.sources(source)
        shown = {i: look.first(i, rows) for i in chosen}
    page.choose_marks(look.inspector.renderer.tokenizer, [row for some in shown.values() for row in some])
    head(page, look.about, legend=bool(rows))
    for i in chosen:
        for row in shown[i]:
            show_row(page, row, look.inspector.renderer.tokenizer, look.about.max_length, tokens=tokens)
    with working():
        counted = {i: look.count(i, sample) for i in chosen}
    for i, stats in counted.items():
        show_stats(page, i, stats, total=look.total(i), max_length=look.about.max_length, bars=True)
    if source is None and all(look.total(i) == s.rows for i, s in counted.items()):
        refuse_if_nothing_is_learned(list(counted.values()), look.survey)


@data.command()
@data_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stats(as_json: bool, **values: Any) -> None:
    """Count all rows: kept, held out, left out, cut, their tokens and lengths, by source.

    Ends with exit code 5 where nothing would be left to train on or to measure with.
    """
    from smollm3_finetune.cli.output.rows import Page, head, show_stats, show_total, totals
    from smollm3_finetune.data.stats import refuse_if_nothing_is_learned

    with working():
        look = _look(values)
        counted = [look.count(i) for i in look.sources(None)]
    if as_json:
        about = {"sources": [s.as_dict() for s in counted], "total": totals(counted)}
        click.echo(json.dumps({**look.about.as_dict(), **about}, ensure_ascii=False))
    else:
        page = Page()
        head(page, look.about, legend=False)
        for i, one in enumerate(counted):
            show_stats(page, i, one, total=one.rows, max_length=look.about.max_length, bars=False)
        if len(counted) > 1:
            show_total(page, totals(counted))
    refuse_if_nothing_is_learned(counted, look.survey)


@dataclass(frozen=True, kw_only=True)
class About:
    """What decides the tokens."""

    model: str
    objective: str
    max_length: int
    held_out: float
    seed: int

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Look:
    """Rows, ready to be looked at."""

    about: About
    inspector: Inspector
    survey: Any
    progress: Progress

    def sources(self, wanted: int | None) -> list[int]:
        """The indices to show. Raises ConfigError for one that is not there."""
        from smollm3_finetune.errors import ConfigError

        titles = [s.source.title for s in self.inspector.rows.sources]
        if wanted is None:
            return list(range(len(titles)))
        if wanted >= len(titles):
            known = ", ".join(f"{i} ({title})" for i, title in enumerate(titles))
            raise ConfigError(f"--source {wanted}: there is no such source", hint=f"sources: {known}")
        return [wanted]

    def total(self, source: int) -> int:
        return int(self.survey.train[source] + self.survey.held_out[source])

    def first(self, source: int, rows: int) -> list[Any]:
        from itertools import islice

        from smollm3_finetune.data.preview import sampled

        total = self.total(source)
        placed = self.inspector.placed(source, sampled(total, total))
        return [self.inspector.prepare(row) for row in islice(placed, rows)]

    def count(self, source: int, sample: int | None = None) -> SourceStats:
        """The counts of a source, over about `sample` evenly spaced rows or over all."""
        from smollm3_finetune.data.preview import sampled
        from smollm3_finetune.data.stats import SourceStats

        about = self.inspector.rows.sources[source]
        total = self.total(source)
        stats = SourceStats(
            title=about.source.title, formatter=about.formatter.offer.full_name, weight=about.source.config.weight
        )
        wanted = total if sample is None else min(sample, total)
        with self.progress.task(f"counting {about.source.title}", wanted) as task:
            for row in self.inspector.placed(source, sampled(total, wanted)):
                stats.add(self.inspector.prepare(row))
                task.advance()
        return stats


def _look(values: Mapping[str, Any]) -> Look:
    """Everything that `train` would settle about the rows. Raises every independent problem together."""
    from smollm3_finetune.components.kinds import OBJECTIVE
    from smollm3_finetune.components.selection import choose
    from smollm3_finetune.config.schema import DEFAULT_OBJECTIVE
    from smollm3_finetune.data.plan import find_rows, render_options
    from smollm3_finetune.errors import Collector
    from smollm3_finetune.progress import for_stream

    loaded = load_configuration(values)
    config = loaded.config
    registry = find_plugins([*config.plugins, *values["plugin"]], values["no_plugins"])
    collect = Collector()
    name = config.objective.name or DEFAULT_OBJECTIVE
    objective = collect.run(lambda: choose(registry, OBJECTIVE, name, config.objective.options, loaded.origins))
    render = collect.run(lambda: render_options(config.data))
    rows = collect.run(lambda: find_rows(registry, config, loaded.origins))
    survey = collect.run(rows.survey) if rows is not None else None
    model = collect.run(lambda: _open(registry, loaded))
    named = collect.run(lambda: _named(registry, loaded))
    collect.finish()
    assert objective is not None and render is not None and rows is not None and survey is not None
    assert model is not None and named is not None
    loader, source = model
    chosen = [objective, *(s.formatter for s in rows.sources), *named, loader]

    import transformers

    from smollm3_finetune.components.selection import blamed_on
    from smollm3_finetune.components.suggestions import with_suggestions
    from smollm3_finetune.data.chat_template.renderer import Renderer
    from smollm3_finetune.data.preview import Inspector

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    max_length = with_suggestions(loaded, chosen).config.data.max_length
    with blamed_on(loader):
        tokenizer = source.tokenizer()
    inspector = Inspector(rows, survey, objective, Renderer(tokenizer, render), max_length)
    about = About(
        model=config.model,
        objective=objective.offer.full_name,
        max_length=max_length,
        held_out=config.data.held_out,
        seed=config.seed,
    )
    return Look(about=about, inspector=inspector, survey=survey, progress=for_stream())


def _open(registry: Registry, loaded: Loaded) -> tuple[Choice, Any]:
    """The loader and the opened model, for its tokenizer. The packages of a quantizer or an adapter are not needed."""
    from smollm3_finetune.api import BuildContext, Purpose
    from smollm3_finetune.cache.store import Cache
    from smollm3_finetune.components.requirements import requirement_problems
    from smollm3_finetune.errors import raise_all
    from smollm3_finetune.model.plan import ModelRequest, choose_loader, open_source
    from smollm3_finetune.progress import for_stream

    config = loaded.config
    request = ModelRequest(ref=config.model, loader=config.loader, origins=loaded.origins)
    loader = choose_loader(registry, request)
    raise_all(requirement_problems(loader.offer.title, loader.offer.spec.requires, "cpu"))
    context = BuildContext(
        purpose=Purpose.TRAIN, device="cpu", dtype="float32", seed=config.seed, cache=Cache.default(),
        progress=for_stream(),
    )  # fmt: skip
    source, _ = open_source(loader, config.model, context)
    return loader, source


def _named(registry: Registry, loaded: Loaded) -> list[Choice]:
    """The adapter and the quantizer, for the values they suggest; of the default adapter only where it is there."""
    from smollm3_finetune.components.kinds import ADAPTER, QUANTIZER
    from smollm3_finetune.components.selection import choose
    from smollm3_finetune.config.schema import DEFAULT_ADAPTER
    from smollm3_finetune.errors import SmolLM3Error

    config = loaded.config
    found = []
    if config.adapter.name is not None:
        found.append(choose(registry, ADAPTER, config.adapter.name, config.adapter.options, loaded.origins))
    else:
        with contextlib.suppress(SmolLM3Error):
            found.append(choose(registry, ADAPTER, DEFAULT_ADAPTER, config.adapter.options, loaded.origins))
    if config.quant.name is not None:
        found.append(choose(registry, QUANTIZER, config.quant.name, config.quant.options, loaded.origins))
    return found
