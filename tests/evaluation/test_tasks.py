"""Tasks: which evaluator is used, how scores are paired and judged, and errors before weights are read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.api import DocumentScore
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.errors import ConfigError, PluginError
from smollm3_finetune.evaluation.task_results import TaskResult, paired, unpaired
from smollm3_finetune.evaluation.tasks import run_tasks, select_evaluator, task_references
from smollm3_finetune.model.load import LoadedModel, load_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "exact_match.py"


def registry_of(*files: Path) -> Registry:
    return discover(PluginSelection.of([str(f) for f in files], no_plugins=True))


def scores(values: Sequence[float], *, task: str = "t", **more: Any) -> list[DocumentScore]:
    return [
        DocumentScore(task=task, document=str(n), value=value, **{"metric": "acc", **more})
        for n, value in enumerate(values)
    ]


def judged(before: Sequence[DocumentScore], after: Sequence[DocumentScore]) -> list[TaskResult]:
    return paired("evaluator 'e'", before, after, seed=0)


# ------------------------------------------------------------------------------------------------ statistics

HALF, MOST = [0.0, 1.0] * 50, [1.0] * 95 + [0.0] * 5


def test_a_higher_accuracy_is_better_and_a_lower_one_worse() -> None:
    (up,), (down,) = judged(scores(HALF), scores(MOST)), judged(scores(MOST), scores(HALF))
    assert (up.verdict, up.before, up.after, up.difference) == ("better", 0.5, 0.95, pytest.approx(0.45))
    assert (down.verdict, down.difference) == ("worse", pytest.approx(-0.45))
    assert up.low is not None and up.high is not None and down.low is not None and down.high is not None
    assert 0 < up.low < 0.45 < up.high
    assert (down.low, down.high) == (pytest.approx(-up.high), pytest.approx(-up.low))
    assert up.line().startswith("t acc 0.500 → 0.950 (+0.450 ± 0.1")


def test_for_an_error_rate_lower_is_better() -> None:
    lower = {"metric": "error", "higher_is_better": False}
    (up,), (down,) = (
        judged(scores(HALF, **lower), scores(MOST, **lower)),
        judged(scores(MOST, **lower), scores(HALF, **lower)),
    )
    assert (up.verdict, down.verdict) == ("worse", "better")
    assert up.difference == pytest.approx(0.45)
    assert up.low is not None and up.low > 0


def test_equal_scores_cannot_tell_and_have_no_negative_zero() -> None:
    (same,) = judged(scores(HALF), scores(HALF))
    assert (same.verdict, same.difference, same.low, same.high) == ("cannot tell", 0.0, 0.0, 0.0)
    assert "-0" not in same.line()
    assert math.copysign(1, same.difference) == 1


def test_under_thirty_documents_cannot_tell_and_say_so() -> None:
    (few,) = judged(scores([0.0] * 20), scores([1.0] * 19 + [0.0]))
    assert few.verdict == "cannot tell"
    assert few.line().endswith("cannot tell: 20 of at least 30 documents)")


def losses(values: Sequence[float], words: Sequence[int]) -> list[DocumentScore]:
    return [
        DocumentScore(task="t", document=str(n), metric="nll", value=value, terms=terms, higher_is_better=False)
        for n, (value, terms) in enumerate(zip(values, words, strict=True))
    ]


def test_a_metric_over_words_is_a_ratio() -> None:
    (found,) = judged(losses([10.0, 40.0], [5, 10]), losses([5.0, 40.0], [5, 10]))
    assert (found.before, found.after) == (pytest.approx(50 / 15), pytest.approx(45 / 15))
    (alone,) = unpaired(losses([10.0, 40.0], [5, 10]))
    assert (alone.after, alone.before, alone.verdict) == (pytest.approx(50 / 15), None, None)


def test_the_tasks_of_a_group_are_also_judged_together() -> None:
    def of(a: Sequence[float], b: Sequence[float]) -> list[DocumentScore]:
        return [*scores(a, task="a", group="g"), *scores(b, task="b", group="g"), *scores(a, task="alone")]

    found = {r.task: r for r in judged(of(HALF, HALF[:40]), of(MOST, HALF[:40]))}
    assert list(found) == ["g", "a", "b", "alone"]
    assert (found["g"].documents, found["g"].tasks, found["a"].tasks) == (140, ("a", "b"), ())
    assert found["g"].after == pytest.approx((95 + 20) / 140)
    assert [found[t].verdict for t in found] == ["better", "better", "cannot tell", "better"]
    document = found["a"].as_json()["by_document"][0]
    assert (document["before"], document["after"], document["document"]) == (0.0, 1.0, "0")
    assert "by_document" not in found["g"].as_json()
    assert json.loads(json.dumps([r.as_json() for r in found.values()]))


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (scores([1.0]), "acc of document 1 of t for one model only"),
        (scores([1.0, 1.0], metric="other"), "of t for one model only"),
        (scores([1.0, 1.0], terms=3), "has different terms for the two models: 1 and 3"),
    ],
)
def test_other_documents_for_the_second_model_are_an_error(after: list[DocumentScore], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        judged(scores([1.0, 0.0]), after)


# ------------------------------------------------------------------------------------------- which evaluator


def test_references_are_separated_by_commas_and_named_once() -> None:
    assert task_references(["a, ./b.yaml", "a", "c"]) == ["a", "./b.yaml", "c"]
    for wrong in ([""], ["a,,b"], []):
        with pytest.raises(ConfigError, match="expected names or files separated by commas"):
            task_references(wrong)


def offering(name: str, claims: str, rank: int = 0) -> str:
    return (
        "from smollm3_finetune.api import EvaluatorSpec, hookimpl\n@hookimpl\ndef smollm3_evaluators():\n"
        f"    return [EvaluatorSpec(name={name!r}, summary='s', factory='x:Y', claims={claims}, rank={rank}, api=2)]\n"
    )


def test_the_evaluator_that_claims_the_tasks_is_used_and_a_tie_is_an_error(plugin_file: Any) -> None:
    other = plugin_file("other", offering("other", "lambda task: task.endswith('.jsonl')"))
    higher = plugin_file("higher", offering("higher", "lambda task: task.endswith('.jsonl')", rank=1))
    registry = registry_of(EXAMPLE)
    assert select_evaluator(registry, ["a.jsonl"], ComponentConfig()).spec.name == "exact-match"
    with pytest.raises(ConfigError, match=r"several evaluators recognize the task 'a\.jsonl'") as tie:
        select_evaluator(registry_of(EXAMPLE, other), ["a.jsonl"], ComponentConfig())
    assert tie.value.hint == "--evaluator exact_match:exact-match or --evaluator other:other"
    assert select_evaluator(registry_of(EXAMPLE, higher), ["a.jsonl"], ComponentConfig()).spec.name == "higher"
    named = select_evaluator(registry_of(EXAMPLE, other), ["a.jsonl"], ComponentConfig(name="exact-match"))
    assert named.spec.name == "exact-match"


def test_a_task_that_nobody_claims_names_the_evaluators(plugin_file: Any) -> None:
    with pytest.raises(ConfigError, match="no installed evaluator recognizes the task 'arc_easy'") as caught:
        select_evaluator(registry_of(EXAMPLE), ["arc_easy"], ComponentConfig())
    assert caught.value.hint == "--evaluator exact-match or pip install ./plugins/smollm3-lm-eval"


def test_tasks_of_two_evaluators_are_an_error(plugin_file: Any) -> None:
    names = plugin_file("names", offering("names", "lambda task: '.' not in task"))
    with pytest.raises(ConfigError, match=r"'a\.jsonl' is for evaluator 'exact-match', and 'b' for evaluator 'names'"):
        select_evaluator(registry_of(EXAMPLE, names), ["a.jsonl", "b"], ComponentConfig())


def test_an_unknown_option_is_an_error_that_names_the_evaluator() -> None:
    config = ComponentConfig(name="exact-match", options={"max_tokens": 3})
    with pytest.raises(ConfigError, match="max_tokens"):
        select_evaluator(registry_of(EXAMPLE), ["a.jsonl"], config)


# --------------------------------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """The embedded model, without an adapter."""
    return load_model("tiny", quant="none", device="cpu")


def test_answers_of_a_model_are_compared_with_those_of_another(loaded: LoadedModel, isolated: Path) -> None:
    prompts = ["What is the capital of France?", "Say hello.", "Count to three."]
    registry = registry_of(EXAMPLE)
    Path("empty.jsonl").write_text("".join(json.dumps({"prompt": p, "reference": ""}) + "\n" for p in prompts))
    evaluator = select_evaluator(registry, ["empty.jsonl"], ComponentConfig(options={"max_new_tokens": 8}))
    (first,) = run_tasks(loaded, evaluator, ["empty.jsonl"])
    assert (first.task, first.metric, first.documents, first.before) == ("empty.jsonl", "exact_match", 3, None)
    answers = [d.after_answer for d in first.by_document]
    rows = [{"prompt": p, "reference": a} for p, a in zip(prompts, answers, strict=True)]
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = load_model("tiny", quant="none", device="cpu")
    for parameter in other.model.parameters():  # answers nothing
        parameter.data.zero_()
    (own,) = run_tasks(loaded, evaluator, ["own.jsonl"], base=other, limit=2)
    assert (own.documents, own.before, own.after, own.verdict) == (2, 0.0, 1.0, "cannot tell")


RETURNS = """
from smollm3_finetune.api import DocumentScore, EvaluatorSpec, hookimpl

@hookimpl
def smollm3_evaluators():
    return [EvaluatorSpec(name="odd", summary="s", factory="odd_{n}:Odd", claims=lambda t: True, api=2{more})]

class Odd:
    def __init__(self, options):
        pass

    def open(self, tasks, ctx):
        return {opened}

    def evaluate(self, model):
        return {scores}
"""
SCORE = "DocumentScore(task='t', document='0', metric='acc', value={value})"
ANSWERED = "[DocumentScore(task='t', document='0', metric='acc', value=1.0, answer={})]"
WRONG = {
    "is nan with 1 terms": {"scores": f"[{SCORE.format(value='float(chr(110) + chr(97) + chr(110))')}]"},
    "was returned twice": {"scores": f"[{SCORE.format(value=1)}] * 2"},
    "returned an object of type float, not a DocumentScore": {"scores": "[0.5]"},
    "acc of document 0 of t cannot be written as JSON: Object of type set": {"scores": ANSWERED.format("{1}")},
    "cannot be written as JSON: Out of range float values": {"scores": ANSWERED.format("[1e999]")},
    "cannot be written as JSON: 'utf-8' codec can't encode": {"scores": ANSWERED.format("chr(0xD800)")},
    "evaluate() returned no scores": {"scores": "[]"},
    "has no method 'evaluate'": {"opened": "tasks"},
    "failed in evaluate(): ZeroDivisionError": {"scores": "1 / 0"},
    "requires no-such-package": {"more": ", requires=Requires(distributions=('no-such-package',))"},
}


@pytest.mark.parametrize("message", WRONG)
def test_a_faulty_evaluator_is_named_with_its_fault(message: str, loaded: LoadedModel, plugin_file: Any) -> None:
    number = list(WRONG).index(message)
    source = RETURNS.format(**{"n": number, "more": "", "opened": "self", "scores": "[]", **WRONG[message]})
    file = plugin_file(f"odd_{number}", source.replace("hookimpl\n", "Requires, hookimpl\n", 1))
    evaluator = select_evaluator(registry_of(file), ["t"], ComponentConfig())
    with pytest.raises(Exception, match="evaluator 'odd'") as caught:
        run_tasks(loaded, evaluator, ["t"])
    assert message in str(caught.value)


Run = Callable[..., Any]


def test_an_evaluator_is_listed_described_and_checked(cli: Run) -> None:
    listed = cli("plugins", "list", "-p", str(EXAMPLE), "--no-plugins")
    assert "evaluator exact-match" in listed.stdout
    shown = cli("plugins", "info", "exact-match", "-p", str(EXAMPLE))
    assert "--evaluator-opt max_new_tokens=integer  [default: 32]" in shown.stdout
    checked = cli("plugins", "check", str(EXAMPLE), "--json")
    (report,) = json.loads(checked.stdout)
    checks = {c["check"]: c["ok"] for c in report["checks"]}
    assert checks["open refuses a task that does not exist with a hint"]
    assert checks["its methods accept the protocol's arguments"]
    assert all(checks.values()), checks
