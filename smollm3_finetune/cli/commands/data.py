"""`smollm3 data preview|stats`: the rows as `train` would use them. Reads no weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from smollm3_finetune.cli.options import run_options
from smollm3_finetune.cli.parsing import CommandGroup, RowsCommand
from smollm3_finetune.cli.session import find_plugins, load_configuration, stdout_to_stderr

if TYPE_CHECKING:
    from smollm3_finetune.data.preview import Preview


F = TypeVar("F", bound=Callable[..., Any])

HIDDEN = (
    "quant", "quant_opt", "adapter", "adapter_opt", "dtype", "device", "max_steps", "epochs", "batch_size",
    "learning_rate", "output",
)  # fmt: skip
"""Options of `train` that have no effect here. They are accepted so that its command line can be reused."""


def data_options(f: F) -> F:
    """The options of `train`; help shows only those that affect the rows."""
    f = run_options(f)
    for parameter in getattr(f, "__click_params__", ()):
        if parameter.name in HIDDEN:
            parameter.hidden = True
    return f


@click.group(
    cls=CommandGroup,
    for_path="smollm3 data stats --data",
    context_settings={"help_option_names": ["-h", "--help"]},
)
def data() -> None:
    """Preview training rows: text, tokens, loss mask, counts.

    Both commands accept all options of `smollm3 train`, so you can reuse its command line. They read no weights and
    write no files.
    """


@data.command(cls=RowsCommand, short_help="Show rows as they are trained on, and their lengths.")
@data_options
@click.option("--rows", type=click.IntRange(min=0), default=3, show_default=True, help="Rows to show from each source.")
@click.option("--source", type=click.IntRange(min=0), metavar="INDEX", help="Show only this source; the first is 0.")
@click.option("--tokens", is_flag=True, help="Also show the tokens of each row: index, id, mask, text.")
@click.option(
    "--sample", type=click.IntRange(min=1), default=1000, show_default=True, metavar="ROWS",
    help="Rows to count from each source, evenly spaced; `data stats` counts all.",
)  # fmt: skip
def preview(rows: int, source: int | None, tokens: bool, sample: int, **values: Any) -> None:
    """Show the first rows as they are trained on, then row lengths and how many rows are truncated or left out.

    Supervised text, on which the loss is computed, is colored on a terminal. Elsewhere it is between « and », or
    between ⟦ and ⟧ if a row contains one of those; the legend shows which. The first token of a row is never
    supervised, because no token precedes it.

    \b
    Examples:
      smollm3 data preview
      smollm3 data preview --data rows.jsonl --rows 1 --tokens
      smollm3 data preview --data a.jsonl --data b.jsonl --source 1 --max-length 2048
    """
    from smollm3_finetune.cli.output.rows import Page, head, show_problem, show_row, show_stats
    from smollm3_finetune.data.left_out import refuse_if_nothing_is_supervised
    from smollm3_finetune.data.stats import sides

    page = Page()
    with stdout_to_stderr():
        look = _plan(values)
        chosen = look.sources(source)
        shown = {i: look.first(i, rows) for i in chosen}
    page.choose_marks(look.inspector.renderer.tokenizer, [row for some in shown.values() for row in some])
    head(page, look.about, legend=bool(rows))
    for i in chosen:
        for row in shown[i]:
            show_row(page, row, look.inspector.renderer.tokenizer, look.about.max_length, tokens=tokens)
    with stdout_to_stderr():
        counted = {i: look.count(i, sample) for i in chosen}
    for i, stats in counted.items():
        show_stats(page, i, stats, total=look.total(i), max_length=look.about.max_length, bars=True)
    if look.survey.problem is not None:
        show_problem(page, look.survey.problem)
    elif source is None and all(look.total(i) == s.rows for i, s in counted.items()):
        refuse_if_nothing_is_supervised(sides(list(counted.values()), look.survey), look.inspector.rows)


@data.command(cls=RowsCommand, short_help="Count all rows and their tokens, by source.")
@data_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stats(as_json: bool, **values: Any) -> None:
    """Count all rows by source: training, held out, left out and truncated, with their tokens and lengths.

    The exit code is 5 if no rows would be left to train on or to evaluate.
    """
    from smollm3_finetune.cli.output.rows import Page, head, show_stats, show_total, totals
    from smollm3_finetune.data.left_out import refuse_if_nothing_is_supervised
    from smollm3_finetune.data.stats import sides

    with stdout_to_stderr():
        look = _plan(values)
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
    if look.survey.problem is not None:
        raise look.survey.problem
    refuse_if_nothing_is_supervised(sides(counted, look.survey), look.inspector.rows)


def _plan(values: Mapping[str, Any]) -> Preview:
    """The plan that `train` would make for the rows. Raises all independent problems together."""
    from smollm3_finetune.data.preview import plan_preview
    from smollm3_finetune.progress import for_stream
    from smollm3_finetune.runs.start_from import started

    loaded = load_configuration(values)
    start = started(loaded)
    loaded = loaded if start is None else start.loaded
    registry = find_plugins([*loaded.config.plugins, *values["plugin"]], values["no_plugins"])
    return plan_preview(registry, loaded, for_stream(), start)
