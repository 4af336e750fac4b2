"""Conformance tests for evaluators: what they open, what they return, and a model that is afterwards as before.

from smollm3_finetune.testing import EvaluatorConformance

class TestExactMatch(EvaluatorConformance):
    component = "exact-match"
    unknown = "no-such-file.jsonl"

    def task(self, directory):
        file = directory / "task.jsonl"
        file.write_text('{"prompt": "1 + 1 =", "reference": "2"}\n' * 6)
        return str(file)
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from smollm3_finetune.api import ConfigError, DataError, DocumentScore, EvaluationContext
from smollm3_finetune.components.kinds import EVALUATOR
from smollm3_finetune.evaluation.tasks import PlannedTasks, check_scores, compare_tasks, measure_tasks
from smollm3_finetune.model.load import LoadedModel, load_model
from smollm3_finetune.progress import Silent
from smollm3_finetune.testing.conformance import Conformance, demand, fail, outcome, plugin_path, skip
from smollm3_finetune.testing.light import check_light
from smollm3_finetune.testing.loaders import reads_no_weights
from smollm3_finetune.testing.small import small_model_directory

NONSENSE = ("", "a task that nobody has", "a\nb", "\0")
"""References that no evaluator may claim."""
LEAST_DOCUMENTS = 4
SEED = 17


class EvaluatorConformance(Conformance):
    """Subclass it, name the evaluator and write a task for it in `task`; the tests are inherited."""

    kind = EVALUATOR
    dtype = "float32"
    unknown: ClassVar[str]
    """A reference of this evaluator to a task that does not exist."""
    nonsense: ClassVar[Sequence[str]] = NONSENSE
    """References that the evaluator must not claim."""
    rtol: ClassVar[float] = 1e-4
    """The largest relative difference of a value between two batch sizes."""

    def task(self, directory: Path) -> str:
        """Write a task of four documents or more into `directory`, and return the reference to it."""
        raise NotImplementedError

    # --------------------------------------------------------------------------------------- parts

    def evaluation(self, limit: int | None = None, batch_size: int = 2) -> EvaluationContext:
        return EvaluationContext(limit=limit, batch_size=batch_size, seed=SEED, progress=Silent())

    def open(self, tmp_path: Path, limit: int | None = None, batch_size: int = 2) -> PlannedTasks:
        chosen = self.choose()
        opened = chosen.create().open([self.task(tmp_path)], self.evaluation(limit, batch_size))
        chosen.component.check_methods(opened, ("evaluate",), "open()")
        return PlannedTasks(evaluator=chosen, opened=opened, batch_size=batch_size, seed=SEED)

    def model(self, seed: int = 0) -> LoadedModel:
        """A random SmolLM3 of two layers."""
        return load_model(small_model_directory(seed=seed), quant="none", device=self.device, dtype=self.dtype)

    def scores(self, planned: PlannedTasks, model: LoadedModel) -> list[DocumentScore]:
        found, error = outcome(lambda: measure_tasks(model, planned))
        if error is not None:
            fail(f"evaluate() failed: {error}")
        assert found is not None
        return found

    # ---------------------------------------------------------------------------------------- claims

    def test_claims_its_task_and_no_nonsense(self, tmp_path: Path) -> None:
        claims = self.spec().claims
        if claims is None:
            skip("the descriptor has no claims(): users pass --evaluator")
        task = self.task(tmp_path)
        demand(bool(claims(task)), f"claims({task!r}) is false, but this evaluator opens the task")
        for nonsense in self.nonsense:
            claimed, error = outcome(claims, nonsense)
            named = type(error).__name__
            demand(error is None, f"claims({nonsense!r}) raised {named}: it must return a bool for every text")
            demand(not claimed, f"claims({nonsense!r}) is true: it must be false for tasks of other evaluators")

    def test_claims_is_light(self, tmp_path: Path) -> None:
        if self.spec().claims is None:
            skip("the descriptor has no claims()")
        plugins = [str(plugin_path(type(self), p)) for p in self.plugins]
        check_light(self.kind, plugins, self.component, self.task(tmp_path))

    # ------------------------------------------------------------------------------------------ open

    def test_opening_reads_no_weights(self, tmp_path: Path) -> None:
        with reads_no_weights("open()"):
            self.open(tmp_path)

    def test_an_unknown_task_is_an_error_with_a_hint(self, tmp_path: Path) -> None:
        evaluator = self.choose().create()
        opened, error = outcome(lambda: evaluator.open([self.unknown], self.evaluation()))
        must = "raise ConfigError for a task that does not exist, and DataError if its documents cannot be read"
        demand(error is not None, f"open([{self.unknown!r}]) returned a {type(opened).__name__}: {must}")
        demand(
            isinstance(error, ConfigError | DataError),
            f"open([{self.unknown!r}]) raised {type(error).__name__} ({error}): {must}",
        )
        assert isinstance(error, ConfigError | DataError)
        demand(bool(error.hint), f"open([{self.unknown!r}]) refuses without a hint: {error.message}")

    # ---------------------------------------------------------------------------------------- scores

    def test_every_document_has_a_score_and_the_limit_takes_the_first(self, tmp_path: Path) -> None:
        model = self.model()
        scores = self.scores(self.open(tmp_path), model)
        check_scores(self.choose().component, scores)
        names = list(dict.fromkeys(s.document for s in scores))
        demand(len(names) >= LEAST_DOCUMENTS, f"task() has {len(names)} documents; these tests need {LEAST_DOCUMENTS}")
        for score in scores:
            _, error = outcome(lambda s=score: json.dumps(s.answer, allow_nan=False))
            demand(error is None, f"the answer of document {score.document} cannot be written as JSON: {error}")
        first = self.scores(self.open(tmp_path, limit=2), model)
        demand(
            {s.document for s in first} == set(names[:2]),
            f"with a limit of 2, the documents are {sorted({s.document for s in first})}, not {names[:2]}",
        )
        values = {(s.metric, s.document): s.value for s in scores}
        odd = [s for s in first if not _near(s.value, values.get((s.metric, s.document)), self.rtol)]
        named = odd[0].document if odd else ""
        demand(not odd, f"with a limit, document {named} has another value: documents must not depend on each other")

    def test_a_second_measurement_and_other_batches_give_the_same(self, tmp_path: Path) -> None:
        model, planned = self.model(), self.open(tmp_path, batch_size=1)
        once = self.scores(planned, model)
        for what, other in (("a second measurement", planned), ("a larger batch", self.open(tmp_path, batch_size=3))):
            again = {(s.task, s.metric, s.document): s.value for s in self.scores(other, model)}
            odd = [s for s in once if not _near(s.value, again.get((s.task, s.metric, s.document)), self.rtol)]
            named = odd[0].document if odd else ""
            demand(
                not odd and len(again) == len(once),
                f"{what} gives document {named} another value: seed what is random, and do not let documents of a "
                "batch influence each other",
            )

    def test_two_models_are_compared_by_document(self, tmp_path: Path) -> None:
        planned = self.open(tmp_path)
        before, after = (self.scores(planned, self.model(seed)) for seed in (0, 1))
        found, error = outcome(lambda: compare_tasks(planned, before, after))
        if error is not None or not found:
            fail(f"the scores of two models cannot be compared: {error}")
        for result in found:
            expected = [s.value for s in after if (s.task, s.metric) == (result.task, result.metric)]
            if not result.tasks:
                demand(result.documents == len(expected), f"{result.metric} has {result.documents} pairs")

    # ----------------------------------------------------------------------------------- the model

    def test_the_model_is_as_before(self, tmp_path: Path) -> None:
        loaded, planned = self.model(), self.open(tmp_path)
        model = loaded.base.model
        head = torch.nn.Parameter(model.lm_head.weight.detach() + 0.1)  # trained, so no longer tied to the embeddings
        model.lm_head.weight = head
        model.train()
        model.model.layers[0].eval()
        modes = {name: module.training for name, module in model.named_modules()}
        state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        about = model.config.to_dict(), model.generation_config.to_dict(), repr(loaded.tokenizer)
        torch.manual_seed(1)
        before = random.getstate(), _numpy_state(), torch.get_rng_state()
        self.scores(planned, loaded)
        demand(model.lm_head.weight is head, "lm_head.weight is another parameter: do not call tie_weights()")
        changed = [name for name, value in model.state_dict().items() if not torch.equal(value, state[name])]
        demand(not changed, f"the model's {', '.join(changed[:3])} changed")
        now = {name: module.training for name, module in model.named_modules()}
        odd = [name for name in modes if modes[name] != now.get(name)]
        demand(not odd, f"the module {', '.join(odd[:3])} is in another mode (training or evaluation)")
        after = model.config.to_dict(), model.generation_config.to_dict(), repr(loaded.tokenizer)
        for what, old, new in zip(("config", "generation_config", "tokenizer"), about, after, strict=True):
            demand(old == new, f"the {what} of the model changed")
        states = random.getstate(), _numpy_state(), torch.get_rng_state()
        same = before[0] == states[0] and np.array_equal(before[1], states[1]) and torch.equal(before[2], states[2])
        demand(same, "a random state of Python, numpy or torch changed")

    def test_it_is_quiet(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        logger = logging.getLogger()
        handlers, level = list(logger.handlers), logger.level
        model = self.model()
        capfd.readouterr()
        self.scores(self.open(tmp_path), model)
        said = capfd.readouterr()
        demand(not said.out + said.err, f"it prints {(said.out + said.err).strip()[:200]!r}: use `ctx.progress`")
        demand(logger.level == level and logger.handlers == handlers, "it changes the root logger")


def _near(value: float, other: float | None, rtol: float) -> bool:
    return other is not None and abs(value - other) <= rtol * max(1.0, abs(value), abs(other))


def _numpy_state() -> np.ndarray[Any, Any]:
    state: Any = np.random.get_state()
    return np.array(state[1])
