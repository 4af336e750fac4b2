"""`smollm3 eval`: the rows, the models that are compared, the verdict and its exit code."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smollm3_finetune
from smollm3_finetune.builtin.tiny_loader import DIRECTORY
from smollm3_finetune.cli.output.eval import shown_evaluation
from smollm3_finetune.data.sources import EMBEDDED
from smollm3_finetune.errors import VerdictError
from smollm3_finetune.evaluation import run as evaluation
from smollm3_finetune.evaluation.row_losses import measure_rows
from smollm3_finetune.evaluation.rows import HeldOutRows
from smollm3_finetune.evaluation.run import check_verdict
from smollm3_finetune.testing.commands import smollm3

EXAMPLES = Path(smollm3_finetune.__file__).parents[1] / "examples"
PLUGIN = ("-p", EXAMPLES / "bottleneck_adapter.py")
ALONE = ("--answers", "0", "--no-null-adapter")
SMALL = ("--set", "data.limit=90", "--set", "data.held_out=0.5", "--batch-size", "4")

Cli = Callable[..., Any]


def trained(output: Path, *args: Any) -> Path:
    result = smollm3("train", "--max-steps", "3", "--set", "train.sample_tokens=1", *SMALL, "--output", output, *args)
    assert result.code == 0, result.stderr
    return output


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `bottleneck` and `full`, which tests must not change."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMOLLM3_CACHE", str(folder / "cache"))
        trained(folder / "bottleneck", "--adapter", "bottleneck", *PLUGIN)
        trained(folder / "full", "--adapter", "full")
    return folder


@pytest.fixture
def run(kept: Path) -> Path:
    return kept / "bottleneck"


@pytest.fixture(scope="module")
def reports(kept: Path) -> dict[str, Any]:
    """The complete reports of both runs."""
    few = ("--json", "--answers", "4", "--max-new-tokens", "4", "--overlap", "exact", *PLUGIN)
    return {name: smollm3("eval", kept / name, *few).report() for name in ("bottleneck", "full")}


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "compose", lambda *a, **k: pytest.fail("weights were read"))
    monkeypatch.setattr(evaluation, "composed_with_notes", lambda *a, **k: pytest.fail("weights were read"))


def rows_of(numbers: Sequence[int], file: str = "rows.jsonl") -> str:
    """A file with these rows of the built-in dataset."""
    lines = EMBEDDED.read_text(encoding="utf-8").splitlines(keepends=True)
    Path(file).write_text("".join(lines[i] for i in numbers), encoding="utf-8")
    return file


def mean(report: dict[str, Any], when: str) -> float:
    """The loss over all rows, those that are left out of the comparison included."""
    rows = report["row_losses"]
    return float(sum(r[when] for r in rows) / sum(r["terms"] for r in rows))


@pytest.mark.parametrize("adapter", ["bottleneck", "full"])
def test_a_run_is_compared_with_its_base_on_its_own_held_out_rows(
    reports: dict[str, Any], kept: Path, adapter: str
) -> None:
    """An adapter is disabled; after full fine-tuning, the base is loaded again. Both are as training measured them."""
    report, own = reports[adapter], json.loads((kept / adapter / "report.json").read_text())
    count = sum(source["held_out"] for source in own["rows"])
    assert count >= 30
    for when in ("before", "after"):
        assert mean(report, when) == pytest.approx(own[when]["held_out_loss"], abs=1e-5)
    assert report["rows"] == {"found": count, "measured": count, "own": True, "limit": None, "seed": 0, "empty": 0}
    compared = report["comparison"]
    assert (compared["rows"], compared["excluded_rows"], compared["verdict"]) == (count, 0, "better")
    for when in ("before", "after"):
        assert report[when]["held_out_loss"] == pytest.approx(compared[when])
        assert report[when]["perplexity"] == pytest.approx(np.exp(compared[when]))
        assert set(report["answers"][when]) == {"ended", "loops", "empty", "mean_tokens"}
    null = report["null_adapter"]["comparison"]
    assert null["before"] == pytest.approx(compared["before"])
    assert 0 < abs(null["difference"]) < abs(compared["difference"]) / 3
    assert len(report["answers"]["samples"]) == 3 and report["warnings"] == []


def test_the_report_as_text(reports: dict[str, Any], run: Path) -> None:
    report = reports["bottleneck"]
    text = shown_evaluation(report)
    found = dict(line.split(None, 1) for line in text.splitlines() if line[:1].strip())
    assert found["model"].startswith(f"{run}: tiny (quantizer 'none' + adapter 'bottleneck', ")
    assert found["rows"] == f"{report['rows']['found']} held-out rows of the run"
    assert found["held-out"].endswith(" better)") and "rows can show a difference of" in text
    assert found["answers"].startswith("4 answers of at most 4 tokens: ended 0% → 0%, in a loop 0% → 0%, empty 0% →")
    assert found["null"].startswith("adapter   held-out loss")
    assert found["verdict"] == "better than its base"


@pytest.mark.parametrize(
    ("exact", "near", "text"),
    [
        (1, 0, "1 of 9 held-out rows is a copy of a training row and is left out: rows:0 and train:0"),
        (0, 2, "2 of 9 held-out rows are near duplicates of training rows and are left out: near:0 and train:0, …"),
        (2, 1, "3 of 9 held-out rows are copies (2) or near duplicates (1) of training rows and are left out: rows:0"),
    ],
)
def test_rows_that_are_left_out_are_counted(reports: dict[str, Any], exact: int, near: int, text: str) -> None:
    def rows(count: int, name: str) -> list[dict[str, str]]:
        return [{"row": f"{name}:{i}", "training_row": f"train:{i}"} for i in range(count)]

    report = {**reports["full"], "overlap": {"exact": rows(exact, "rows"), "near": rows(near, "near")}}
    report["rows"] = {**report["rows"], "measured": 9}
    assert text in shown_evaluation(report)


def test_a_sample_that_is_too_small_for_a_verdict(cli: Cli, reports: dict[str, Any], run: Path) -> None:
    failed = cli("eval", run, "--limit", "10", *ALONE, *PLUGIN, "--fail-if", "not-better")
    count = reports["bottleneck"]["rows"]["found"]
    assert f"10 held-out rows of the run, a sample of {count} (--limit 10, seed 0)" in failed.stdout
    assert "cannot tell whether it is better than its base" in failed.stdout
    assert failed.code == 9
    assert failed.stderr.endswith("error: --fail-if not-better: the verdict is 'cannot tell', compared with its base\n")


@pytest.mark.parametrize(
    ("verdict", "fail_if", "fails"),
    [
        ("worse", "worse", True),
        ("worse", "not-better", True),
        ("cannot tell", "worse", False),
        ("cannot tell", "not-better", True),
        ("better", "not-better", False),
        ("worse", None, False),
    ],
)
def test_which_verdict_fails(verdict: str, fail_if: str | None, fails: bool) -> None:
    report = {"comparison": {"verdict": verdict}, "against": "its base"}
    with pytest.raises(VerdictError) if fails else contextlib.nullcontext():
        check_verdict(report, fail_if)


def test_a_report_without_a_comparison_fails_only_if_a_verdict_was_asked_for() -> None:
    report = {"comparison": None, "against": None}
    check_verdict(report, None)
    with pytest.raises(VerdictError, match="--fail-if worse: there is no verdict, because no rows were compared"):
        check_verdict(report, "worse")


def test_the_sample_is_the_same_for_the_same_seed() -> None:
    rows = HeldOutRows(rows=list(range(50)), titles=["rows"], found=50)  # type: ignore[arg-type]
    first, again, other = (rows.sampled(10, seed).rows for seed in (1, 1, 2))
    assert first == again == sorted(first) != other and len(set(first)) == 10
    assert rows.sampled(50, 1) is rows.sampled(None, 1) is rows


def test_a_run_is_compared_with_another(cli: Cli, kept: Path) -> None:
    result = cli(
        "eval", kept / "full", "--against", kept / "bottleneck", *ALONE, *PLUGIN, "--json", "--fail-if", "worse"
    )
    report = json.loads(result.stdout)
    assert result.code == 9
    assert report["comparison"]["verdict"] == "worse"
    for when, name in (("before", "bottleneck"), ("after", "full")):
        own = json.loads((kept / name / "report.json").read_text())
        assert mean(report, when) == pytest.approx(own["after"]["held_out_loss"], abs=1e-5)


def test_a_model_without_an_adapter_has_a_loss_and_no_verdict(cli: Cli, no_weights: None) -> None:
    """It gets a verdict from a comparison with another model; `--fail-if` alone is refused."""
    refused = cli("eval", "tiny", "--data", EMBEDDED, "--fail-if", "worse")
    assert (refused.code, refused.stdout) == (2, "")
    assert "--fail-if worse needs a verdict, but 'tiny' has no adapter" in refused.stderr


def test_a_saved_adapter_is_measured_as_its_run(cli: Cli, kept: Path, reports: dict[str, Any]) -> None:
    held_out = [int(r["row"].rpartition(":")[2]) - 1 for r in reports["full"]["row_losses"]]
    report = cli("eval", kept / "full" / "adapter", "--data", rows_of(held_out), "--json", *ALONE).report()
    for when in ("before", "after"):
        assert mean(report, when) == pytest.approx(mean(reports["full"], when), abs=1e-5)
    assert report["rows"]["own"] is False


@pytest.mark.long
def test_a_merged_model_a_saved_adapter_and_its_run_have_the_same_loss(cli: Cli, kept: Path) -> None:
    shutil.copytree(kept / "full", "run")
    assert cli("merge", "run", "--dtype", "float32").code == 0
    data = ("--data", EMBEDDED, "--limit", "12", "--overlap", "keep", *ALONE)
    alone = cli("eval", "run/merged", *data, "--json").report()
    assert (alone["comparison"], alone["before"], alone["against"]) == (None, None, None)
    named = ("run", "run/adapter", ("tiny", "--adapter-path", "run/adapter"))
    for target in named:
        report = cli("eval", *([target] if isinstance(target, str) else target), *data, "--json").report()
        assert report["after"]["held_out_loss"] == pytest.approx(alone["after"]["held_out_loss"], abs=1e-5)
        assert report["comparison"]["rows"] == 12
    against = cli("eval", "run/merged", "--against", "tiny", *data, "--json").report()
    assert against["comparison"]["difference"] == pytest.approx(report["comparison"]["difference"], abs=1e-5)


def test_rows_of_data_that_the_run_trained_on_are_left_out(cli: Cli, run: Path, reports: dict[str, Any]) -> None:
    report = reports["bottleneck"]
    held_out = [int(r["row"].rpartition(":")[2]) - 1 for r in report["row_losses"]]
    seen = [i for i in range(90) if i not in held_out][:10]
    mixed = cli(
        "eval", run, "--data", rows_of([*held_out, *seen]), *ALONE, *PLUGIN, "--json", "--overlap", "exact"
    ).report()
    assert len(mixed["overlap"]["exact"]) == 10 and mixed["overlap"]["near"] == []
    assert sum(r["left_out"] for r in mixed["row_losses"]) == 10
    same = ("rows", "terms", "before", "after", "difference", "low", "high")
    assert [mixed["comparison"][k] for k in same] == pytest.approx([report["comparison"][k] for k in same], rel=1e-5)
    assert mixed["comparison"]["excluded_rows"] == 10


@pytest.mark.parametrize(("overlap", "code"), [("near", 5), ("exact", 5), ("keep", 0)])
def test_rows_that_are_all_in_the_training_rows_are_refused(
    cli: Cli, run: Path, reports: dict[str, Any], monkeypatch: pytest.MonkeyPatch, overlap: str, code: int
) -> None:
    monkeypatch.setattr(evaluation, "evaluate", lambda planned, progress: reports["full"])
    held_out = [int(r["row"].rpartition(":")[2]) - 1 for r in reports["bottleneck"]["row_losses"]]
    seen = rows_of([i for i in range(90) if i not in held_out][:5])
    result = cli("eval", run, "--data", seen, "--overlap", overlap, *PLUGIN)
    assert result.code == code
    if code:
        assert "all 5 held-out rows are also training rows" in result.stderr
        assert "--overlap keep" in result.stderr


def test_sources_have_losses_of_their_own(cli: Cli) -> None:
    data = [word for i in range(2) for word in ("--data", rows_of(range(20 * i, 20 * i + 20), f"rows{i}.jsonl"))]
    report = cli("eval", "tiny", *data, *ALONE, "--json").report()
    parts = report["after"]["by_source"]
    assert [p["rows"] for p in parts.values()] == [20, 20] and list(parts) == ["rows0.jsonl", "rows1.jsonl"]
    total = sum(p["held_out_loss"] * p["terms"] for p in parts.values())
    assert report["after"]["held_out_loss"] == pytest.approx(total / report["after"]["terms"])
    shown = shown_evaluation(report)
    assert "rows1.jsonl: 20 rows, loss " in shown and ", perplexity " in shown


def test_a_row_that_is_split_into_chunks_counts_as_one(cli: Cli) -> None:
    Path("texts.jsonl").write_text("".join(json.dumps({"text": f"{n} birds sing. " * 40}) + "\n" for n in range(3)))
    report = cli("eval", "tiny", "--data", "texts.jsonl", "--max-length", "32", "--json").report()
    assert report["rows"]["measured"] == len(report["row_losses"]) == 3
    assert min(r["terms"] for r in report["row_losses"]) > 100
    assert report["answers"] is None  # there is no question to answer


def test_rows_without_supervised_tokens_are_left_out(cli: Cli) -> None:
    Path("rows.jsonl").write_text(
        "".join(
            json.dumps(
                {"messages": [{"role": "user", "content": "word " * n}, {"role": "assistant", "content": "Yes."}]}
            )
            + "\n"
            for n in (1, 400)
        )
    )
    report = cli("eval", "tiny", "--data", "rows.jsonl", "--max-length", "64", *ALONE, "--json").report()
    assert (report["rows"]["measured"], report["rows"]["empty"]) == (1, 1)


def edited_run(run: Path, old: str, new: str) -> Path:
    """A copy of a run whose configuration is changed."""
    shutil.copytree(run, "edited")
    config = Path("edited/run.yaml")
    text = config.read_text()
    assert text.count(old) == 1
    config.write_text(text.replace(old, new))
    return Path("edited")


def test_a_run_without_held_out_rows_needs_others(cli: Cli, run: Path, no_weights: None) -> None:
    refused = cli("eval", edited_run(run, "held_out: 0.5", "held_out: 0.0"), *PLUGIN)
    assert refused.code == 5
    assert refused.stderr.endswith(
        "error: the run edited holds out no rows\n  hint: to use other rows: --data FILE.jsonl\n"
    )


def test_a_run_whose_rows_have_changed_is_measured_with_a_warning(cli: Cli, run: Path) -> None:
    changed = edited_run(run, "held_out: 0.5", "held_out: 0.6")
    result = cli("eval", changed, *ALONE, *PLUGIN, "--limit", "2")
    assert result.code == 0
    assert "the rows of edited, or their rendering, have changed since it was trained" in result.stderr


def test_a_run_whose_rows_are_gone_is_measured_on_others(cli: Cli, run: Path) -> None:
    changed = edited_run(run, "  path: null\n  validation", "  path: gone.jsonl\n  validation")
    refused = cli("eval", changed, *PLUGIN)
    assert refused.code == 5 and "hint: to use other rows: --data FILE.jsonl" in refused.stderr
    result = cli("eval", changed, "--data", rows_of(range(3)), *ALONE, *PLUGIN)
    assert result.code == 0
    assert "the training rows of edited cannot be read" in result.stderr


def test_models_that_predict_other_tokens_are_not_compared(cli: Cli, no_weights: None) -> None:
    shutil.copytree(DIRECTORY, "longer")
    template = Path("longer/chat_template.jinja")
    template.write_text(template.read_text().replace("<|im_end|>", "<|im_end|><|im_end|>"))
    refused = cli("eval", "tiny", "--against", "longer", "--data", rows_of(range(5)))
    assert refused.code == 3
    assert "rows.jsonl:1: the supervised tokens differ from those of longer" in refused.stderr


def test_models_with_other_prompts_are_compared_with_a_warning(cli: Cli) -> None:
    own = (DIRECTORY / "chat_template.jinja").read_text()
    shutil.copytree(DIRECTORY, "greeted")
    Path("greeted/chat_template.jinja").write_text("Hello. " + own)
    result = cli("eval", "tiny", "--against", "greeted", "--data", rows_of(range(5)), *ALONE)
    assert result.code == 0
    assert "tiny and greeted have different chat templates, so their prompts differ" in result.stderr


def test_wrong_names_are_reported_together_before_weights_are_read(cli: Cli, no_weights: None) -> None:
    refused = cli("eval", "tiny", "--quant", "nonne", "--against", "./runs/none", "--data", "gone.jsonl")
    assert (refused.code, refused.stdout) == (2, "")
    for message in ("no quantizer 'nonne'", "model directory './runs/none'", "data file 'gone.jsonl' does not exist"):
        assert message in refused.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "'tiny' is not a run, so it has no held-out rows"),
        (("--formatter", "text"), "--formatter sets how the rows of --data are read, and --data is not given"),
        (("--data", "x.jsonl", "--set", "train.max_steps=3"), "only keys of data and formatter can be set"),
    ],
)
def test_options_that_do_not_fit_are_refused(cli: Cli, no_weights: None, args: tuple[str, ...], message: str) -> None:
    refused = cli("eval", "tiny", *args)
    assert (refused.code, refused.stdout) == (2, "")
    assert message in refused.stderr


def test_a_plugin_file_that_has_changed_is_not_executed(cli: Cli, run: Path) -> None:
    file = Path(PLUGIN[1])
    changed = Path(file.name)
    changed.write_text(f"open('executed', 'w').close()\n{file.read_text()}")
    for named in ((run,), ("tiny", "--against", run)):
        refused = cli("eval", *named, "-p", changed)
        assert (refused.code, f"{file.name} differs from" in refused.stderr) == (3, True), refused.stderr
    assert not Path("executed").exists()


def test_a_directory_inside_a_run_names_the_run(cli: Cli, kept: Path) -> None:
    refused = cli("eval", kept / "full" / "adapter")
    assert f"hint: smollm3 eval {kept / 'full'}, or --data FILE.jsonl" in refused.stderr


def test_an_interrupted_evaluation_prints_no_result(cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "measure_rows", interrupted)
    result = cli("eval", run, *PLUGIN)
    assert (result.code, result.stdout) == (130, "")
    assert result.stderr.endswith("smollm3: interrupted\n")


def test_a_loss_that_is_not_a_number_is_an_error(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*args: Any, **kwargs: Any) -> Any:
        found = measure_rows(*args, **kwargs)
        return replace(found, sums=found.sums * np.nan)

    monkeypatch.setattr(evaluation, "measure_rows", damaged)
    result = cli("eval", "tiny", "--data", rows_of(range(5)), *ALONE)
    assert (result.code, result.stdout) == (6, "")
    assert "the held-out loss of tiny is not a finite number" in result.stderr


@pytest.mark.long
@pytest.mark.plugins
@pytest.mark.parametrize(
    ("quant", "adapter"),
    [("none", "lora"), ("none", "dora"), ("bnb-4bit", "lora"), ("bnb-4bit", "dora"), ("gptq", "lora")],
)
def test_quantizers_and_adapters(cli: Cli, quant: str, adapter: str) -> None:
    made = trained(Path("run"), "--quant", quant, "--adapter", adapter, "--set", "calibration.rows=8")
    report = cli("eval", made, "--json", "--answers", "2", "--max-new-tokens", "3").report()
    own = json.loads((made / "report.json").read_text())
    for when in ("before", "after"):
        assert mean(report, when) == pytest.approx(own[when]["held_out_loss"], abs=2e-2 if quant == "gptq" else 1e-4)
    assert report["comparison"]["verdict"] == "better"
    null = report["null_adapter"]["comparison"]
    assert abs(null["difference"]) < abs(report["comparison"]["difference"]) / 5


# --------------------------------------------------------------------------------------------------------- tasks

TASKS = ("-p", EXAMPLES / "exact_match.py", "--tasks", "sums.jsonl", "--evaluator-opt", "max_new_tokens=2")


def test_tasks_are_measured_with_both_models_and_paired(run: Path, isolated: Path) -> None:
    rows = [{"prompt": f"{n} + 1 =", "reference": str(n + 1)} for n in range(5)]
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = smollm3("eval", run, *ALONE, *PLUGIN, *TASKS, "--limit", "3", "--overlap", "exact", "--json")
    assert done.code == 0, done.stderr
    (task,) = done.report()["tasks"]
    assert (task["task"], task["metric"], task["documents"], task["verdict"]) == (
        *("sums.jsonl", "exact_match", 3), "cannot tell",
    )  # fmt: skip
    assert [d["document"] for d in task["by_document"]] == ["0", "1", "2"]
    assert "\ntasks" in shown_evaluation(done.report())
    assert task["line"] in shown_evaluation(done.report())


def test_a_model_without_rows_is_measured_on_tasks_only(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("sums.jsonl").write_text('{"prompt": "1 + 1 =", "reference": "2"}\n' * 3)
    model = smollm3("eval", "tiny", *ALONE, *TASKS, "--json").report()
    (task,) = model["tasks"]
    assert (task["documents"], task["before"], model["comparison"], model["after"]["held_out_loss"]) == (
        *(3, None, None, None),
    )  # fmt: skip
    text = shown_evaluation(model)
    assert task["line"] in text and "held-out" not in text and "verdict" not in text and "perplexity" not in text
    adapter = smollm3("eval", run / "adapter", *ALONE, *PLUGIN, *TASKS, "--json").report()
    (task,) = adapter["tasks"]
    assert (task["verdict"], adapter["null_adapter"], adapter["row_losses"]) == ("cannot tell", None, [])
    monkeypatch.setattr(evaluation, "compose", lambda *a, **k: pytest.fail("weights were read"))
    judged = smollm3("eval", run / "adapter", *ALONE, *PLUGIN, *TASKS, "--fail-if", "worse")
    assert (judged.code, "only tasks are measured" in judged.stderr) == (2, True)
    rows = smollm3("eval", "tiny", *ALONE)
    assert (rows.code, "hint: --data FILE.jsonl" in rows.stderr) == (2, True)


def test_tasks_have_the_reasoning_mode_in_which_the_run_answers(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `generate`: for rows without reasoning, the template's default would be another mode than that of training."""
    shutil.copytree(run, "edited")
    report = Path("edited/report.json")
    report.write_text(json.dumps({**json.loads(report.read_text()), "enable_thinking": False}))
    Path("sums.jsonl").write_text('{"prompt": "1 + 1 =", "reference": "2"}\n')
    seen: list[Any] = []
    monkeypatch.setattr(evaluation, "measure_tasks", lambda *a, **k: seen.append(k["template_kwargs"]) or [])
    done = smollm3("eval", "edited", *ALONE, *PLUGIN, *TASKS, "--limit", "2", "--overlap", "keep")
    assert done.code == 0, done.stderr
    assert seen == [{"enable_thinking": False}] * 2, "of both models"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (TASKS, "the task file 'sums.jsonl' cannot be read"),
        (("--evaluator", "lm-eval"), "an evaluator needs tasks, and --tasks is not given"),
        (("--tasks", "a,,b"), "expected names or files separated by commas"),
        (("--tasks", "a.txt"), "no installed evaluator recognizes the task 'a.txt'"),
    ],
)
def test_a_faulty_task_is_an_error_before_weights_are_read(
    arguments: tuple[Any, ...], message: str, run: Path, no_weights: None
) -> None:
    done = smollm3("eval", run, *ALONE, *PLUGIN, *arguments)
    assert done.code in (2, 5)
    assert message in done.stderr


def test_help_shows_the_options_of_the_named_evaluator() -> None:
    done = smollm3("eval", *TASKS[:2], "--evaluator", "exact-match", "--help")
    assert "--evaluator-opt max_new_tokens=integer  [default: 32]" in done.stdout
