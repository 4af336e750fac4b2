"""Conformance tests for objectives: training and the held-out loss compute the same, in every kind of batch.

from smollm3_finetune.testing import ObjectiveConformance

class TestSmoothed(ObjectiveConformance):
    component = "smoothed"
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from smollm3_finetune.api import Conversation, CountedObjective, DataError, FlatObjective, RowObjective
from smollm3_finetune.api.data import BRANCHES
from smollm3_finetune.components.kinds import OBJECTIVE
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.data.needs import Needs
from smollm3_finetune.data.tokenization import ExampleBuilder
from smollm3_finetune.model.compare import relative_error
from smollm3_finetune.testing.conformance import demand, fail, outcome, skip
from smollm3_finetune.testing.objective_measures import MeasureTests
from smollm3_finetune.testing.objective_references import ReferenceTests
from smollm3_finetune.testing.objective_runs import Example, Lab, Step, lab
from smollm3_finetune.testing.small import small_source

MAX_LENGTH = 256
SHORT = 24
"""A length at which the kit's rows are cut."""
BATCHES = 3
"""The rows are also trained on in this number of batches, of which the last has fewer rows."""
LEAST_ROWS = 4
NORMALIZATION = 1e-5
"""Normalization is computed in float32 in every dtype, and its rounding depends on the shape of the input."""


def pair(question: str, chosen: str, rejected: str, desirable: bool | None = None) -> Conversation:
    """A question with a chosen and a rejected answer."""
    asked = {"role": "user", "content": question}
    answers = [(asked, {"role": "assistant", "content": answer}) for answer in (chosen, rejected)]
    return Conversation(messages=answers[0], rejected=answers[1], desirable=desirable)


ROWS = (
    ("What is 1 + 1?", "2", "It is either 3 or 4."),
    ("Name a color.", "Blue, the color of the sea.", "No."),
    ("Say hello.", "Hello, and welcome to all of you who came from far away today.", "Bye."),
    ("Who wrote it?", "Nobody knows.", "I wrote it, and then I lost it somewhere."),
    ("Is it late?", "Yes, it is late.", "Ask me again tomorrow."),
)


@dataclass(frozen=True)
class Measured:
    """What an objective computes with one kind of batches."""

    alone: Sequence[tuple[float, int]]
    """Held-out loss and terms of each row alone."""
    pairs: Mapping[tuple[int, int], tuple[float, int]]
    """The same of two rows in one batch."""
    together: tuple[float, int]
    """The same of all rows in one batch."""
    terms: int | None
    """What the method `terms` says of the batch of all rows."""
    rows: tuple[torch.Tensor, torch.Tensor] | None
    """What the method `row_losses` returns for the batch of all rows."""
    whole: Step
    """A step on all rows in one batch."""
    parts: Step
    """A step on all rows in several batches."""


_measured: dict[tuple[type, bool], tuple[Measured | None, Exception | None]] = {}


class ObjectiveConformance(MeasureTests, ReferenceTests):
    """Subclass it and name the objective; the tests are inherited."""

    kind = OBJECTIVE
    conversations: ClassVar[Sequence[Conversation]] = ()
    """Rows of different lengths that the objective trains on, four or more; empty: questions with a chosen and a
    rejected answer, and with labels if the descriptor has `uses_labels`."""
    same_held_out_loss: ClassVar[bool] = True
    """Whether the held-out loss is the loss of training; False if the objective leaves a part of it out on purpose."""

    # ------------------------------------------------------------------------------------------ rows

    def rows(self) -> Sequence[Conversation]:
        labels = [True, False] if self.spec().uses_labels else [None]
        return self.conversations or [pair(*row, labels[n % len(labels)]) for n, row in enumerate(ROWS)]

    def odd_rows(self) -> Sequence[Conversation]:
        """Rows of unusual kinds, among those that the objective gets: with every field that its descriptor needs."""
        needs = Needs(fields=tuple(self.spec().fields))
        return [row for row in _odd(self.rows()[0]) if not needs.missing(row)]

    def renderer(self) -> Renderer:
        return Renderer(small_source().tokenizer(), embeddings=2048)

    def examples(self) -> list[Example]:
        """The examples of the rows; fails if they are too few."""
        objective, renderer = self.choose().create(), self.renderer()
        found: list[Example] = []
        for n, row in enumerate(self.rows()):
            made, error = outcome(objective.prepare, row, renderer, MAX_LENGTH)
            demand(error is None, f"prepare() raised {_named(error)} for row {n}")
            if made is not None:
                found.append({name: [int(v) for v in values] for name, values in made.items()})
        demand(
            len(found) >= LEAST_ROWS,
            f"prepare() makes examples of {len(found)} rows; the tests need {LEAST_ROWS}: set `conversations` of the "
            "class to rows that the objective trains on",
        )
        return found

    # ---------------------------------------------------------------------------------------- prepare

    def test_examples_have_the_same_names(self) -> None:
        builder = ExampleBuilder(self.choose(), self.renderer(), MAX_LENGTH, chunk=False)
        named: list[str] | None = None
        odd = [*self.rows(), *self.odd_rows()]
        for n, row in enumerate(odd):
            before = copy.deepcopy(row)
            made, error = outcome(builder.objective.prepare, row, builder.renderer, MAX_LENGTH)
            if error is not None or made is None:
                continue  # see the test of exceptions
            checked, error = outcome(builder._checked, made)
            demand(error is None, f"{error}: give every example the same names, with an empty list for no value")
            assert checked is not None
            named = named or list(made)
            demand(
                named[0] == "input_ids",
                f"the first name of an example is {named[0]!r}: it must be 'input_ids', whose length is the example's",
            )
            demand(row == before, f"prepare() changed row {n}: it must leave the conversation as it is")
            again = builder.objective.prepare(row, builder.renderer, MAX_LENGTH)
            demand(
                again is not None and builder._checked(again) == checked,
                f"prepare() makes another example of row {n} the second time: it must depend on the row alone",
            )
        demand(named is not None, "prepare() returns None for every row: set `conversations` of the class")

    def test_prepare_keeps_to_the_maximum_length(self) -> None:
        objective, renderer = self.choose().create(), self.renderer()
        for n, row in enumerate(self.rows()):
            made, error = outcome(objective.prepare, row, renderer, SHORT)
            demand(
                error is None or isinstance(error, ValueError | DataError),
                f"prepare() raised {_named(error)} for row {n} with max_length={SHORT}: return None to skip the row",
            )
            for name, tokens in _lengths(made or {}).items():
                demand(
                    tokens <= SHORT,
                    f"prepare() returned {tokens} tokens in {name!r} with max_length={SHORT}: pass max_length to "
                    "renderer.encode",
                )

    def test_prepare_raises_only_for_faults_of_the_row(self) -> None:
        objective, renderer = self.choose().create(), self.renderer()
        for row in self.odd_rows():
            _, error = outcome(objective.prepare, row, renderer, MAX_LENGTH)
            demand(
                error is None or isinstance(error, ValueError | DataError),
                f"prepare() raised {_named(error)} for {_about(row)}, which would be reported as a fault of the "
                "plugin: return None to skip the row, or raise ValueError with the reason",
            )
            demand(
                error is None or bool(str(error).strip()),
                f"prepare() raised {type(error).__name__} without a reason for {_about(row)}: users see the text",
            )

    # ---------------------------------------------------------------------------------------- batches

    def test_batches_are_tensors_of_the_rows(self) -> None:
        objective, examples, tokenizer = self.choose().create(), self.examples(), small_source().tokenizer()
        for name in ("collator", "flat_collator"):
            if not hasattr(objective, name):
                continue
            collate, before = getattr(objective, name)(tokenizer), copy.deepcopy(examples)
            batch, error = outcome(collate, examples)
            demand(error is None, f"the function of {name}() raised {_named(error)}")
            demand(examples == before, f"the function of {name}() changed its examples: they are used in every pass")
            demand(isinstance(batch, Mapping) and "input_ids" in batch, f"the batch of {name}() has no 'input_ids'")
            assert isinstance(batch, Mapping)
            tensors = {n: t for n, t in batch.items() if isinstance(t, torch.Tensor)}
            demand("input_ids" in tensors, f"'input_ids' of {name}() is not a tensor")
            elsewhere = [n for n, t in tensors.items() if t.device.type != "cpu"]
            demand(not elsewhere, f"{name}(): {elsewhere} are not on the CPU; smollm3 moves batches to the model")
            shape = tuple(tensors["input_ids"].shape)
            demand(len(shape) == 2, f"'input_ids' of {name}() has the shape {shape}; expected (rows, tokens)")
            if name == "flat_collator":
                demand(shape[0] == 1, f"'input_ids' of flat_collator() has {shape[0]} rows: put all into one sequence")
                continue
            demand(
                shape[0] % len(examples) == 0,
                f"the batch of {len(examples)} examples has {shape[0]} rows: give each example the same number of rows",
            )
            mask = tensors.get("attention_mask")
            demand(
                mask is None or tuple(mask.shape) == shape,
                f"attention_mask has the shape {tuple(mask.shape) if mask is not None else ()}; input_ids has {shape}",
            )

    def test_padded_rows_do_not_depend_on_each_other(self) -> None:
        self._check_rows_apart(self._measure(flat=False), "its batch", "padding must not count in the loss")

    def test_flat_rows_do_not_see_each_other(self) -> None:
        self._need_flat()
        self._check_rows_apart(
            self._measure(flat=True), "its sequence",
            "flat_collator() must give the positions and row boundaries of flatten_rows, and ignore the first label of "
            "each row",
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------ losses

    def test_the_held_out_loss_is_a_sum_and_a_count(self) -> None:
        with self._lab(flat=False) as made:
            batch = made.batch(made.examples)
            made.model.eval()
            with torch.no_grad():
                found, error = outcome(made.objective.loss_sum, made.model, batch)
        demand(error is None, f"loss_sum() raised {_named(error)}")
        valid = isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], int)
        demand(valid, f"loss_sum() returned {found!r}; expected a float and an int")
        assert found is not None
        total, terms = found
        demand(isinstance(total, float), f"loss_sum() returned a {type(total).__name__} as the sum; use float(loss)")
        demand(math.isfinite(total) and terms > 0, f"loss_sum() returned {total} over {terms} terms")

    def test_the_held_out_loss_is_that_of_training(self) -> None:
        for flat in self._kinds():
            found = self._measure(flat)
            total, terms = found.together
            if found.terms is not None:
                demand(
                    found.terms == terms,
                    f"terms() counts {found.terms} terms in {_kind(flat)} rows, but loss_sum() {terms}: both must "
                    "count the terms of the loss",
                )
            counted = found.whole.counted
            demand(
                counted is None or counted == terms,
                f"training divides the loss of {_kind(flat)} rows by num_items_in_batch = {counted or 0:g}, but "
                f"loss_sum() counts {terms} terms: if a term is not a supervised token, define the method terms(batch)",
            )
            if not self.same_held_out_loss:
                continue
            mean, loss = total / terms, found.whole.loss
            demand(
                _apart(loss, mean) <= self._bound,
                f"the loss of training on {_kind(flat)} rows is {loss:.6g}, but loss_sum() gives {mean:.6g} "
                "on the same rows: compute both with one function, or set same_held_out_loss = False if they differ on "
                "purpose",
            )

    def test_row_losses_are_those_of_single_rows(self) -> None:
        if not isinstance(self.choose().create(), RowObjective):
            skip("the objective has no row_losses(): its rows are measured one by one")
        for flat in self._kinds():
            measured = self._measure(flat)
            found = measured.rows
            valid = isinstance(found, tuple) and len(found) == 2 and all(isinstance(v, torch.Tensor) for v in found)
            demand(valid, f"row_losses() returned {found!r}; expected two tensors")
            assert found is not None
            shapes, count = [tuple(v.shape) for v in found], len(measured.alone)
            demand(
                shapes == [(count,), (count,)],
                f"row_losses() returned the shapes {shapes[0]} and {shapes[1]} for {count} examples in {_kind(flat)} "
                f"rows; both must be ({count},)",
            )
            for n, (total, terms) in enumerate(measured.alone):
                own, counted = float(found[0][n]), int(found[1][n])
                demand(
                    _apart(own, total) <= self._bound and counted == terms,
                    f"row_losses() gives {own:.6g} over {counted} terms for row {n} of {count} {_kind(flat)} rows, but "
                    f"loss_sum() gives {total:.6g} over {terms} for that row alone: both must compute the same",
                )

    # --------------------------------------------------------------------------------------- gradients

    def test_flat_gradients_are_those_of_padded_rows(self) -> None:
        self._need_flat()
        flat, padded = self._measure(True), self._measure(False)
        error = _apart(flat.together[0], padded.together[0])
        demand(
            error <= self._bound and flat.together[1] == padded.together[1],
            f"the held-out loss of flat rows is {flat.together[0]:.6g} over {flat.together[1]} terms, that of padded "
            f"rows {padded.together[0]:.6g} over {padded.together[1]}: both collators must supervise the same tokens",
        )
        error = self._distance(flat.whole, padded.whole)
        demand(
            error <= self._bound,
            f"the gradients of flat rows differ from those of padded rows by {error:.2g} (limit {self._bound:.2g})",
        )

    def test_accumulated_gradients_are_those_of_one_batch(self) -> None:
        for flat in self._kinds():
            found = self._measure(flat)
            error = self._distance(found.parts, found.whole)
            demand(
                error <= self._bound,
                f"the gradients of {_kind(flat)} rows in {BATCHES} batches with different numbers of terms differ from "
                f"those of one batch by {error:.2g} (limit {self._bound:.2g}): divide the sum of the loss by "
                "num_items_in_batch; if its terms are not supervised tokens, define the method terms(batch)",
            )
            error = _apart(found.parts.loss, found.whole.loss)
            demand(
                error <= self._bound,
                f"the losses of {BATCHES} batches sum to {found.parts.loss:.6g}, but one batch of the same rows has "
                f"{found.whole.loss:.6g}: divide the sum of the loss by num_items_in_batch",
            )

    def test_evaluation_leaves_the_model_as_it_is(self) -> None:
        with self._lab(self._kinds()[-1]) as made:
            before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
            trained = {n for n, p in made.model.named_parameters() if p.requires_grad}
            made.model.train()
            first = made.held_out(made.examples)
            modes = {m.training for m in made.model.modules()}
            second = made.held_out(made.examples)
            after = dict(made.model.named_parameters())
            gradients = [n for n, p in after.items() if p.grad is not None]
        demand(first == second, f"loss_sum() returned {first}, then {second} for the same rows")
        changed = [n for n, p in before.items() if n not in after or not torch.equal(after[n].detach(), p)]
        demand(not changed, f"loss_sum() changes parameters of the model: {', '.join(changed[:3])}")
        demand(not gradients, f"loss_sum() leaves gradients in {', '.join(gradients[:3])}")
        kept = {n for n, p in after.items() if p.requires_grad} == trained and modes == {True}
        demand(kept, "loss_sum() leaves the model in another mode, or other parameters trained")

    def test_a_resumed_run_gives_the_same(self) -> None:
        flat = self._kinds()[-1]
        with tempfile.TemporaryDirectory(prefix="smollm3-kit-") as directory:
            with self._lab(flat) as made:
                trainer = made.trainer(Path(directory), 4, accumulation=2, save_every=2)
                _, error = outcome(trainer.train)
                demand(error is None, f"training raised {_named(error)}")
                right, checkpoint = _trained(made), trainer.checkpoints.at(2)
            with self._lab(flat, saved=checkpoint) as made:
                trainer = made.trainer(Path(directory), 4, accumulation=2)
                _, error = outcome(lambda: trainer.train(resume_from_checkpoint=str(checkpoint)))
                demand(error is None, f"the resumed run raised {_named(error)}")
                distance = relative_error(_trained(made), right)
        demand(
            distance <= self._bound * 1e-2,
            f"the weights of a run that was interrupted after step 2 and resumed differ by {distance:.2g} (limit "
            f"{self._bound * 1e-2:.2g}): the loss must depend on the model, the batch and self.state.global_step, not "
            "on values that the objective or its Trainer keeps between steps",
        )

    # ---------------------------------------------------------------------------------------- measuring

    @property
    def _bound(self) -> float:
        return max(10 * self.rounding, NORMALIZATION)

    def _need_flat(self) -> None:
        if not isinstance(self.choose().create(), FlatObjective):
            skip("the objective has no flat_collator(): its rows are padded")

    def _kinds(self) -> tuple[bool, ...]:
        """Whether batches are flat: padded ones, and flat ones if the objective has them."""
        return (False, True) if isinstance(self.choose().create(), FlatObjective) else (False,)

    def _distance(self, found: Step, right: Step) -> float:
        """The relative error of the gradients; fails if a step has none."""
        demand(
            bool(right.gradients) and any(bool(g.any()) for g in right.gradients.values()),
            "a training step has no gradients: the loss does not depend on the trained weights",
        )
        demand(set(found.gradients) == set(right.gradients), "the trained weights that have gradients differ")
        return relative_error(found.gradients, right.gradients)

    def _check_rows_apart(self, found: Measured, what: str, hint: str) -> None:
        for (a, b), (total, terms) in found.pairs.items():
            moved = _apart(total - found.alone[b][0], found.alone[a][0])
            demand(
                moved <= self._bound,
                f"the loss of row {a} changes by {moved:.2g} of its value if row {b} shares {what} (limit "
                f"{self._bound:.2g}): {hint}",
            )
            expected = found.alone[a][1] + found.alone[b][1]
            demand(terms == expected, f"two rows in one batch have {terms} terms, and {expected} alone: {hint}")
        total, terms = sum(t for t, _ in found.alone), sum(n for _, n in found.alone)
        demand(
            _apart(found.together[0], total) <= self._bound and found.together[1] == terms,
            f"all rows in one batch have the loss {found.together[0]:.6g} over {found.together[1]} terms, but the sum "
            f"over single rows is {total:.6g} over {terms}: {hint}",
        )

    @contextmanager
    def _lab(self, flat: bool, saved: Path | None = None) -> Iterator[Lab]:
        with tempfile.TemporaryDirectory(prefix="smollm3-kit-") as cache:
            objective, examples = self.choose().create(), self.examples()
            about = {"device": self.device, "dtype": self.dtype, "reference": self._reference()}
            with lab(objective, examples, Path(cache), **about, flat=flat, saved=saved) as made:
                yield made

    def _measure(self, flat: bool) -> Measured:
        """The measurements of one kind of batches, made once for each class."""
        key = (type(self), flat)
        if key not in _measured:
            examples = self.examples()  # its failures are those of the kit
            demand(bool(examples), "there are no examples")
            _measured[key] = outcome(self._measured_now, flat)
        found, error = _measured[key]
        if found is None:
            fail(f"a step on {_kind(flat)} rows, or their held-out loss, raised {_named(error)}")
        return found

    def _measured_now(self, flat: bool) -> Measured:
        with self._lab(flat) as made:
            rows = made.examples
            alone = [made.held_out([row]) for row in rows]
            neighbors = [(0, 1), (0, 2), (1, 0), (3, 2)]
            pairs = {(a, b): made.held_out([rows[b], rows[a]]) if a == 0 else made.held_out([rows[a], rows[b]])
                     for a, b in neighbors}  # fmt: skip
            together = made.held_out(rows)
            batch = made.batch(rows)
            terms = int(made.objective.terms(batch)) if isinstance(made.objective, CountedObjective) else None
            rows_of_all, error = outcome(made.row_losses, rows)
            demand(error is None, f"row_losses() raised {_named(error)}")
            start = _trained(made)
            whole = made.step()
            with torch.no_grad():
                for name, parameter in made.model.named_parameters():
                    if name in start:
                        parameter.copy_(start[name])
            parts = made.step(accumulation=BATCHES)
        return Measured(alone, pairs, together, terms, rows_of_all, whole, parts)


def _trained(made: Lab) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in made.model.named_parameters() if p.requires_grad}


def _odd(row: Conversation) -> list[Conversation]:
    """Rows that a run may have: without an answer or a rejected one, raw text, and empty ones."""
    user = {"role": "user", "content": "Well?"}
    return [
        Conversation(messages=row.messages or (user,), desirable=row.desirable),
        Conversation(messages=(user,)),
        Conversation(messages=(user, {"role": "assistant", "content": ""}), desirable=row.desirable),
        Conversation(text="Some text that is not a conversation."),
        Conversation(messages=(user, {"role": "assistant", "content": "Yes."}), supervised=()),
        Conversation(
            messages=(user, {"role": "assistant", "content": "Yes."}),
            rejected=(user, {"role": "assistant", "content": ""}),
            desirable=row.desirable,
        ),
    ]


def _lengths(example: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The tokens of each sequence of an example; of branches, those of the prefix with the longest branch."""
    if BRANCHES in example:
        prefix, *branches = example[BRANCHES]
        return {"input_ids": prefix + max(branches)}
    return {name: len(values) for name, values in example.items() if name.endswith("input_ids")}


def _about(row: Conversation) -> str:
    if row.text is not None:
        return "a row of raw text"
    if row.supervised == ():
        return "a row without supervised messages"
    if row.rejected is not None:
        return "a pair whose rejected answer is empty"
    last = row.messages[-1]
    if last["role"] != "assistant":
        return "a row without an answer"
    return "a row without a rejected answer" if last["content"] else "a row with an empty answer"


def _apart(found: float, right: float) -> float:
    """The relative error of a number; infinite if it is not finite."""
    if not math.isfinite(found):
        return math.inf
    return abs(found - right) / max(abs(right), 1e-12)


def _kind(flat: bool) -> str:
    return "flat" if flat else "padded"


def _named(error: Exception | None) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else '(no text)'}"
