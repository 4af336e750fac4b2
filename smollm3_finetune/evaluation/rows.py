"""The held-out rows of an evaluation, as conversations and as the examples of one model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from smollm3_finetune.api import Conversation, Progress
from smollm3_finetune.api.data import IGNORE_INDEX
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.data.calibration import PlannedRows
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.data.rows import PositionedRow, Rows
from smollm3_finetune.data.tokenization import ExampleBuilder
from smollm3_finetune.errors import DataError, IncompatibleError

Example = Mapping[str, Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class HeldOutRows:
    """Held-out rows, source by source."""

    rows: Sequence[PositionedRow]
    titles: Sequence[str]
    """One for each source; `PositionedRow.source` is an index."""
    found: int
    """The number of held-out rows before `sampled` and `only`."""

    def conversations(self) -> list[Conversation]:
        return [row.conversation for row in self.rows]

    def sampled(self, limit: int | None, seed: int) -> HeldOutRows:
        """At most `limit` of the rows, the same for the same seed, in their order."""
        if limit is None or limit >= len(self.rows):
            return self
        chosen = sorted(random.Random(seed).sample(range(len(self.rows)), limit))
        return self.only(chosen)

    def only(self, chosen: Sequence[int]) -> HeldOutRows:
        """The rows at these indices."""
        return replace(self, rows=[self.rows[i] for i in chosen])


NO_ROWS = HeldOutRows(rows=(), titles=(), found=0)
"""Of a model that is measured on tasks only."""


def held_out_of_run(planned: PlannedRows) -> HeldOutRows:
    """The held-out rows of a run."""
    return _by_source(planned.rows, lambda row: planned.survey.holds_out(row))


def all_rows(rows: Rows, progress: Progress) -> HeldOutRows:
    """Every row of sources that are only evaluated on.

    Raises DataError if rows are invalid, or if none has a field that the objective needs.
    """
    with progress.task("reading rows") as task:

        def taken(row: PositionedRow) -> bool:
            task.advance()
            return True

        found = _by_source(rows, taken)
    if not found.rows and rows.needs.fields:
        problem = rows.survey(progress, must_train=False).problem
        if problem is not None:
            raise DataError(problem.message, hint="to use other rows: --data FILE.jsonl")
    return found


def _by_source(rows: Rows, taken: Callable[[PositionedRow], bool]) -> HeldOutRows:
    found = [row for row in rows.positioned() if not row.left_out and taken(row)]
    found.sort(key=lambda row: row.source)  # keeps the order within a source
    return HeldOutRows(rows=found, titles=[s.source.title for s in rows.sources], found=len(found))


def trained_rows(planned: PlannedRows) -> Iterator[tuple[str, Conversation]]:
    """The location and the conversation of each row that a run trained on."""
    for row in planned.rows.positioned():
        if not row.left_out and not planned.survey.holds_out(row):
            yield row.where, row.conversation


def examples_of(
    rows: HeldOutRows, objective: SelectedComponent, renderer: Renderer, max_length: int, *, chunk: bool
) -> list[list[dict[str, list[int]]]]:
    """The examples of each row, for a model with this renderer; a row without supervised tokens has none."""
    build = ExampleBuilder(objective, renderer, max_length, chunk=chunk)
    return [build(row) for row in rows.rows]


def check_same_tokens(
    rows: HeldOutRows, ours: Sequence[Sequence[Example]], theirs: Sequence[Sequence[Example]], other: str
) -> bool:
    """Whether two models also have the same prompts. Raises IncompatibleError if they predict different tokens."""
    for row, mine, yours in zip(rows.rows, ours, theirs, strict=True):
        if [_supervised(e) for e in mine] != [_supervised(e) for e in yours]:
            raise IncompatibleError(
                f"{row.where}: the supervised tokens differ from those of {other}, because the tokenizers or the chat "
                "templates differ: losses of different tokens cannot be compared",
                hint="evaluate each model alone, without --against",
            )
    return list(ours) == list(theirs)


def _supervised(example: Example) -> Mapping[str, Sequence[int]]:
    """The predicted tokens of an example; all its values if it has no labels."""
    labels = {name: [i for i in ids if i != IGNORE_INDEX] for name, ids in example.items() if name.endswith("labels")}
    return labels or example
