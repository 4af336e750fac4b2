"""The example evaluator passes the kit; variants of it with one fault each fail with a sentence that names it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest

from smollm3_finetune.testing import EvaluatorConformance

EXAMPLE = Path(__file__).parents[2] / "examples" / "exact_match.py"


class TestExactMatch(EvaluatorConformance):
    component = "exact-match"
    plugins = (EXAMPLE,)
    options: ClassVar = {"max_new_tokens": 4}
    unknown = "no-such-file.jsonl"

    def task(self, directory: Path) -> str:
        file = directory / "sums.jsonl"
        rows = [{"prompt": f"{n} + 1 =", "reference": str(n + 1)} for n in range(5)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(file)


SCORE = "yield DocumentScore("
FAULTS = {
    "test_claims_its_task_and_no_nonsense": ('task.endswith(".jsonl")', "True", "claims('') is true"),
    "test_claims_is_light": ("import json\n", "import json, numpy\n", "imports numpy"),
    "test_an_unknown_task_is_an_error_with_a_hint": (', hint="--tasks FILE.jsonl"', "", "refuses without a hint"),
    "test_every_document_has_a_score_and_the_limit_takes_the_first": ("[: ctx.limit]", "", "with a limit of 2"),
    "test_a_second_measurement_and_other_batches_give_the_same": (
        "float(answer", "next(COUNT) + float(answer", "a second measurement gives document 0 another value",
    ),
    "test_two_models_are_compared_by_document": (
        "document=str(number)", "document=str(next(COUNT))", "for one model only",
    ),
    "test_the_model_is_as_before": (
        "for task, rows", "model.model.tie_weights()\n        for task, rows", "do not call tie_weights()",
    ),
    "test_it_is_quiet": (SCORE, 'print("scored")\n                yield DocumentScore(', "it prints 'scored"),
}  # fmt: skip


@pytest.mark.parametrize("test", FAULTS)
def test_a_fault_fails_with_a_sentence(
    test: str, plugin_file: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    right, wrong, sentence = FAULTS[test]
    source = EXAMPLE.read_text().replace("exact_match:", f"faulty_{test}:")
    assert right in source
    source = source.replace(right, wrong).replace("\n\n\n", "\n\nfrom itertools import count\n\nCOUNT = count()\n\n", 1)
    file = plugin_file(f"faulty_{test}", source)

    class Faulty(TestExactMatch):
        plugins = (file,)

    method, arguments = getattr(Faulty(), test), {"tmp_path": tmp_path}
    if test == "test_it_is_quiet":
        arguments["capfd"] = capfd  # type: ignore[assignment]
    with pytest.raises(pytest.fail.Exception, match=re.escape(sentence)):
        method(**arguments)
