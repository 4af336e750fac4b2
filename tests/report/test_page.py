"""The page of a run: what it shows, what it leaves out, and that it is safe whatever the run contains."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.errors import ConfigError, WriteError
from smollm3_finetune.evaluation.line import change_of
from smollm3_finetune.files.locks import locked
from smollm3_finetune.report.page import TEMPLATES
from smollm3_finetune.report.recorded import add_warnings
from smollm3_finetune.report.write import MOST_RUNS, write_report
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.traces import LOCK

MakeRun = Callable[..., RunDir]
Parsed = Callable[[Path], Any]
OPTIONAL = ("data.json", "origins.json", "warnings.jsonl", "samples.jsonl")
"""Files that runs of earlier versions do not have."""


def values_of(page: Any) -> dict[str, Any]:
    """The values that the page's script shows."""
    found: dict[str, Any] = json.loads(page.scripts[0])
    return found


def test_the_page_shows_every_part_of_a_finished_run(make_run: MakeRun, parsed: Parsed) -> None:
    page = parsed(write_report([make_run()]))
    verdict = page.section("Is it better?")
    assert "✓ better held-out loss 1.885 → 1.851 (−0.034 ± 0.011) On the" in verdict
    assert "95 % interval −0.045 to −0.023" in verdict
    assert "held-out rows compared 73 supervised tokens in them 880 " in verdict
    assert "can reliably show (80 % of the time) 0.016 nats rows needed to show half of that, 0.008 nats 292" in verdict
    assert "chat.jsonl ✓ better 1.900 → 1.822 (−0.078 ± 0.014) math.jsonl ≈ cannot tell 1.870 →" in verdict
    assert "finished tiny quantization none · adapter full · objective sft" in page.section("")
    assert "60 tokens trained on 29,615" in page.section("Run") and "1 min 21 s" in page.section("Run")
    assert (
        page.section("Warnings")
        == "Warnings warning the gradient norm of step 25 is 3.1e+04, 24,723 times the median of the steps before"
    )
    for title in ("Loss", "Learning rate", "Gradient norm", "Speed", "Memory"):
        assert title in page.section("Curves")
    assert (page.marked["del"], page.marked["ins"]) == (["before training", "blue."], ["after training", "green, see?"])
    assert "Answers during training (2)" in page.section("Answers") and "answer 40" in page.section("Answers")
    data = page.section("Data")
    assert "160 training rows, 37 held-out rows" in data and "no answer: 2 rows" in data
    assert "3 rows cut to the length limit; columns not read: id (198 rows)" in data
    assert "shortest 45; median 55; 95th percentile 94; longest 109" in data and "50–59 170" in data
    assert "chat.jsonl:1 109 tokens, 98 supervised; train; cut from 131 tokens" in data
    assert page.marked["mark"] == ["supervised text", "A leaf is green."]
    config = page.section("Configuration")
    assert "train.learning_rate 0.0002 --learning-rate" in config and "train.max_steps 60 run.yaml:7" in config
    assert "data.held_out 0.1" in config.partition("values that are defaults")[2]
    assert page.section("Versions") == "Versions smollm3-finetune 0.1.0 torch 2.13.0"


def test_a_run_that_kept_its_best_adapter(make_run: MakeRun, parsed: Parsed) -> None:
    page = parsed(write_report([make_run(best={"step": 40, "held_out_loss": 1.851, "below_base": True})]))
    assert "adapter of step 40, which had the lowest held-out loss" in page.section("Run")
    held_out = values_of(page)["loss"]["curves"][-1]["points"]
    assert [40, 1.851] in held_out and held_out[-1][0] == 60 and held_out[-1][1] != 1.851


def test_the_commands_of_the_page_can_be_used(make_run: MakeRun, parsed: Parsed) -> None:
    """With the plugin file of the run; more steps need a checkpoint, and more patience if the run ended early."""
    run = make_run()
    run.versions.write_text(json.dumps({"plugin_files": {"/my plugins/own.py": "0"}}))
    commands = parsed(write_report([run])).section("How to continue")
    assert "-p '/my plugins/own.py' --prompt" in commands and "smollm3 train --resume" not in commands
    run.saved.at(60).mkdir(parents=True)
    assert "own.py' --max-steps 120" in parsed(write_report([run])).section("How to continue")
    early = {"stopped_early": {"planned_steps": 90, "reason": "x"}}
    run.report.write_text(json.dumps({**json.loads(run.report.read_text()), **early}))
    run.config.write_text(run.config.read_text().replace("train: {", "train: {stop_after: 3, "))
    commands = parsed(write_report([run])).section("How to continue")
    assert "own.py' --set train.stop_after=6" in commands and "--max-steps" not in commands


def test_the_line_of_the_verdict_is_that_of_the_run(make_run: MakeRun, parsed: Parsed) -> None:
    small = {"rows": 43, "before": 1.88512, "after": 1.8846, "difference": -0.00052, "low": -0.00112, "high": 0.00008,
             "verdict": "cannot tell"}  # fmt: skip
    line = change_of(small)
    assert line == "1.88512 → 1.88460 (−0.00052 ± 0.00060, cannot tell)"
    run = make_run(comparison=small)
    page = parsed(write_report([run]))
    assert f"held-out loss {line.replace(', cannot tell', '')} " in page.section("Is it better?")
    several = parsed(write_report([run, run])).section("Runs")
    assert "1.88512 → 1.88460 ≈ cannot tell −0.00052 (−0.00112 to +0.00008)" in several


def test_fewer_than_thirty_rows_are_too_few(make_run: MakeRun, parsed: Parsed) -> None:
    few = {"rows": 12, "terms": 90, "before": 1.9, "after": 1.8, "difference": -0.1, "low": None, "high": None,
           "verdict": "cannot tell", "smallest_difference": None, "rows_for_half": None}  # fmt: skip
    page = parsed(write_report([make_run(comparison=few)]))
    verdict = page.section("Is it better?")
    assert "≈ cannot tell held-out loss 1.900 → 1.800 (−0.100)" in verdict
    assert "too few held-out rows for a verdict: 30 are needed" in verdict and "interval" not in verdict


def test_a_loss_of_terms_other_than_tokens_has_no_nats(make_run: MakeRun, parsed: Parsed) -> None:
    pairs = {"rows": 43, "terms": 43, "per_token": False, "before": 0.693, "after": 0.6, "difference": -0.093,
             "low": -0.12, "high": -0.066, "verdict": "better", "smallest_difference": 0.04,
             "rows_for_half": 172}  # fmt: skip
    run = make_run(comparison=pairs)
    verdict = parsed(write_report([run])).section("Is it better?")
    assert "after minus before, per term: −0.093" in verdict and "half of that, 0.02 172" in verdict
    assert not {"nats", "tokens", "perplexity"} & set(verdict.replace(",", "").split())
    assert "the held-out loss (per term), and its" in parsed(write_report([run, run])).section("Runs")


def test_the_values_of_the_curves_are_those_of_the_metrics(make_run: MakeRun, parsed: Parsed) -> None:
    run = make_run()
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    loss, mean, held_out = values_of(parsed(write_report([run])))["loss"]["curves"]
    assert loss["points"] == [[r["step"], float(f"{r['loss']:.6g}")] for r in rows if "loss" in r]
    first = sum(r["loss"] for r in rows if r["step"] <= 5 and "loss" in r) / 5
    assert mean["points"][2] == [3, pytest.approx(first, rel=1e-5)]
    measured = [r["step"] for r in rows if "held_out_loss" in r]
    assert [s for s, _ in held_out["points"]] == [0, *measured]
    assert held_out["points"][0] == [0, 1.885] and held_out["points"][-1] == [60, 1.851], "of before and after"


def test_learning_rates_of_other_groups_are_in_the_chart_of_the_first(make_run: MakeRun, parsed: Parsed) -> None:
    run = make_run()
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    more = [row | ({"learning_rate_up": 16 * row["learning_rate"]} if "loss" in row else {}) for row in rows]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in more))
    charts = values_of(parsed(write_report([run])))
    assert [curve["label"] for curve in charts["learning_rate"]["curves"]][-1] == "up"
    assert not any(name.startswith("own-") for name in charts)


def test_each_warning_is_kept_once_however_many_there_are(make_run: MakeRun, parsed: Parsed) -> None:
    run, warnings = make_run(without=("warnings.jsonl",)), [f"number {i} of many" for i in range(150)]
    for _ in range(2):
        add_warnings(run, warnings)
    assert len(run.warnings.read_text().splitlines()) == 150
    assert parsed(write_report([run])).section("Warnings").count("of many") == 100


def test_a_run_without_held_out_rows(make_run: MakeRun, parsed: Parsed) -> None:
    nothing = {"held_out_loss": None, "perplexity": None, "sample": "Hello."}
    run = make_run(comparison=None, before=nothing, after=nothing)
    run.metrics.write_text("".join(f"{line}\n" for line in run.metrics.read_text().splitlines() if "held" not in line))
    page = parsed(write_report([run]))
    assert "No rows were held out" in page.section("Is it better?")
    assert "held-out loss" not in page.section("Curves")
    assert "The answer did not change: Hello." in page.section("Answers")


def test_a_run_of_an_earlier_version(make_run: MakeRun, parsed: Parsed) -> None:
    page = parsed(write_report([make_run(comparison=None, without=OPTIONAL)]))
    assert "held-out loss 1.885 → 1.851 This run did not record an interval" in page.section("Is it better?")
    assert "160 training rows, 37 held-out rows" in page.section("Data"), "from report.json"
    assert "Warnings" not in page.sections and page.marked["mark"] == []
    config = page.section("Configuration").partition("defaults, or were resolved")
    assert "train.max_steps 60" in config[0] and "set by" not in config[0] and "data.held_out 0.1" in config[2]


@pytest.mark.parametrize("steps", [60, 0], ids=["after some steps", "before the first step"])
def test_an_interrupted_run(make_run: MakeRun, parsed: Parsed, steps: int) -> None:
    run = make_run(without=("report.json", "trained.json", *(() if steps else ("metrics.jsonl", "before.json"))))
    page = parsed(write_report([run]))
    assert "interrupted" in page.section("")
    shown = page.section("The run was interrupted")
    assert ("Step 60 of 60 is the last one that was logged" if steps else "No step was logged") in shown
    assert "Is it better?" not in page.sections and ("Curves" in page.sections) == bool(steps)
    if steps:
        assert "held-out loss 1.885 before training" in page.section("Run")
        answers = "user Which color has a leaf? before training A leaf is blue. There is no answer after training"
        assert f"Answers {answers}: the run was interrupted." in page.section("Answers")
    else:
        assert "before training" not in page.text and "no answer after training" in page.section("Answers"), "samples"
    assert "smollm3 train --config" in page.section("How to continue"), "there is no checkpoint"


def test_a_failed_run_shows_its_error(make_run: MakeRun, parsed: Parsed) -> None:
    run = make_run(without=("report.json",))
    run.error.write_text(json.dumps({"message": "the loss exploded from 4 to 33", "hint": "a lower learning rate"}))
    page = parsed(write_report([run]))
    assert page.section("The run failed").endswith("the loss exploded from 4 to 33 Hint: a lower learning rate")
    assert "There is no answer after training: the run failed." in page.section("Answers")
    assert "start it again, with the same settings smollm3 train --config" in page.section("How to continue")


@pytest.mark.parametrize("about", [{"message": "unexpected KeyError: 'rows'"}, {"hint": "smollm3 doctor"}, {}])
def test_a_failed_run_without_a_message_or_a_hint_has_a_page(
    make_run: MakeRun, parsed: Parsed, about: dict[str, str]
) -> None:
    run = make_run(without=("report.json",))
    run.error.write_text(json.dumps(about))
    shown = parsed(write_report([run])).sections.get("The run failed", "")
    assert all(text in shown for text in about.values()) and ("Hint" in shown) == ("hint" in about)
    assert about.get("message", "") in parsed(write_report([run, run])).text


def test_a_running_run_is_shown_as_running_unless_its_own_process_ends_it(make_run: MakeRun, parsed: Parsed) -> None:
    run = make_run()
    with locked(run.path / LOCK, "busy", remove=True):
        assert "The run is not finished" in parsed(write_report([run])).sections
        assert "finished tiny" in parsed(write_report([run], ended=True)).section("")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sources": 3, "before": [], "plugins": "x", "step": "a"}', "\0é"])
def test_damaged_files_leave_their_part_out(make_run: MakeRun, parsed: Parsed, content: str) -> None:
    run = make_run()
    for file in (*run.path.glob("*.json"), *run.path.glob("*.jsonl")):
        file.write_text(content, encoding="utf-8")
    page = parsed(write_report([run]))
    assert "The run is damaged" in page.sections and "Curves" not in page.sections


def test_numbers_of_any_size_are_drawn(make_run: MakeRun, parsed: Parsed) -> None:
    run = make_run()
    odd = (None, 1e308, -1e308, 1e-300, 10**400, True, "x", [], 0.0, -5.0)
    rows = [{"step": i + 1, "loss": v, "learning_rate": 1e-12, "grad_norm": v} for i, v in enumerate(odd)]
    run.metrics.write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"step": 99999999999999, "loss": 1}\nx\n')
    page = parsed(write_report([run]))
    assert values_of(page)["loss"]["curves"][0]["points"] == [[4, 1e-300], [9, 0.0], [10, -5.0], [99999999999999, 1.0]]
    assert "2 logged values are missing or not finite" in page.section("Curves"), "null, in two curves"
    assert not re.search(r"\b(nan|inf)\b", page.html)


# ---------------------------------------------------------------------------------------------- hostile text

HOSTILE = (
    "<script>alert(1)</script></style></script><img src=x onerror=alert(2)>\"'{{ 7 * 7 }}{% raw %}"
    "\u202e\u2066\u2028\u0000\u001b[31m<!-- ]]> &lt;b&gt;"
)


def test_text_of_a_run_is_never_markup(make_run: MakeRun, parsed: Parsed) -> None:
    answer = {"held_out_loss": 1.0, "sample": HOSTILE}
    run = make_run(
        name="<b>'\"&",
        prompt=[{"role": HOSTILE, "content": HOSTILE}],
        before=answer,
        after={"held_out_loss": 1.0, "sample": f"other {HOSTILE}"},
        comparison={
            "before": 1,
            "after": 1,
            "difference": 0,
            "verdict": "better",
            "low": -1,
            "high": 1,
            "by_source": {
                HOSTILE: {"before": 1, "after": 1, "difference": 0, "verdict": "better"},
                "b": {"before": 1, "after": 1, "difference": 0, "verdict": "worse"},
            },
        },
    )
    row = {"where": HOSTILE, "side": HOSTILE, "notes": [HOSTILE], "tokens": 1, "supervised": 1,
           "sequences": [{"name": HOSTILE, "segments": [[HOSTILE, True], [HOSTILE, False]]}]}  # fmt: skip
    source = {"title": HOSTILE, "notes": {HOSTILE: 1}, "not_read": {HOSTILE: 1}}
    run.data.write_text(json.dumps({"sources": [source], "rows": [row]}))
    run.origins.write_text(json.dumps({"seed": HOSTILE}))
    run.warnings.write_text(json.dumps({"warning": HOSTILE}))
    run.error.write_text(json.dumps({"message": HOSTILE, "hint": HOSTILE}))
    run.versions.write_text(json.dumps({"plugins": {HOSTILE: HOSTILE}, "plugin_files": {}}))
    run.config.write_text(f"model: {json.dumps(HOSTILE)}\nseed: 0\ntrain: {{x: {json.dumps(HOSTILE)}}}\n")
    with run.metrics.open("a") as stream:
        stream.write(json.dumps({"step": 60, "loss": 1, HOSTILE: 3, "__proto__": 2}) + "\n")
    (run.path / "samples.jsonl").write_text(json.dumps({"step": 1, "prompt": HOSTILE, "answer": HOSTILE}))
    for file in (write_report([run]), write_report([run, run], run.path / "two.html")):
        check_is_safe(parsed(file))


def check_is_safe(page: Any) -> None:
    """Only the page's own scripts and styles, no handlers, no addresses, and no characters that reorder text."""
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 2 and tags.count("style") == 1
    assert not {"img", "iframe", "object", "embed", "form", "base", "a"} & set(tags)
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy and "default-src 'none'" in policy
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        addresses = [v or "" for k, v in attributes.items() if k in ("href", "src", "xlink:href", "action")]
        assert all(v.startswith("#") or v == "data:," for v in addresses)
    assert not set("\u202e\u2066\u2028\u0000\u001b") & set(page.html)
    assert "\\u202e" in page.html, "they are shown as escapes"
    json.loads(page.scripts[0])


def test_nothing_in_the_page_names_another_host(make_run: MakeRun) -> None:
    html = write_report([make_run()]).read_text()
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+|@import|url\(", html)


def test_huge_texts_and_long_runs_give_a_bounded_page(make_run: MakeRun, parsed: Parsed) -> None:
    huge = "word " * 400_000
    answer = {"held_out_loss": 1.0, "sample": huge}
    run = make_run(before=answer, after={**answer, "sample": huge[1:]}, prompt=[{"role": "user", "content": huge}])
    text = "".join(f'{{"step": {step}, "loss": {2 + step % 7 / 10}}}\n' for step in range(1, 100_001))
    run.metrics.write_text(text.replace('"step": 54321, "loss": 2.1', '"step": 54321, "loss": 77.5'))
    file = write_report([run])
    assert file.stat().st_size < 500_000
    page = parsed(file)
    points = values_of(page)["loss"]["curves"][0]["points"]
    assert len(points) <= 800
    assert [54321, 77.5] in points and points[0][0] == 1 and points[-1][0] == 100_000
    assert "100,000 logged steps are drawn as at most 800 points for each curve" in page.section("Curves")
    assert "1,996,000 more characters" in page.section("Answers")


# ---------------------------------------------------------------------------------------------- colors

PAIRS = (
    ("ink", "card"), ("ink", "page"), ("soft", "card"), ("soft", "page"), ("good-ink", "good"), ("bad-ink", "bad"),
    ("mid-ink", "mid"), ("good-ink", "card"), ("bad-ink", "card"), ("mid-ink", "card"), ("ink", "mark"),
)  # fmt: skip
"""Colors of text on colors behind it."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_curves_have_the_contrast_that_wcag_asks_for(scheme: str) -> None:
    """4.5 (level AA), also for curves, whose letters have the same color."""
    style = (TEMPLATES / "style.css").read_text()
    block = style.partition(f"macro {scheme}()")[2].partition("endmacro")[0]
    colors = dict(re.findall(r"--([\w-]+): (#\w+);", block))

    def luminance(name: str) -> float:
        digits = colors[name][1:]
        digits = digits if len(digits) == 6 else "".join(2 * d for d in digits)
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        high, low = sorted((luminance(one), luminance(other)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    assert {(a, b): round(contrast(a, b), 2) for a, b in PAIRS if contrast(a, b) < 4.5} == {}
    assert {n: contrast(n, "card") for n in (*(f"c{i}" for i in range(8)), "accent") if contrast(n, "card") < 4.5} == {}


# ---------------------------------------------------------------------------------------------- several runs


def test_several_runs_are_drawn_over_each_other(make_run: MakeRun, parsed: Parsed) -> None:
    runs = [make_run(), make_run("second", steps=30), make_run("third", without=("report.json",))]
    runs[1].config.write_text(runs[1].config.read_text().replace("0.0002", "0.001"))
    file = write_report(runs)
    assert file == Path("runs-report.html")
    page = parsed(file)
    assert "A first finished tiny none + full 60 1.885 → 1.851 ✓ better −0.034" in page.section("Runs")
    assert "C third interrupted tiny none + full 60 1.885 before training — —" in page.section("Runs")
    assert "A change below 0 is an improvement" in page.section("Runs")
    assert page.section("Answers after training").endswith("Runs without an answer after training: C.")
    differing = page.section("Configuration differences")
    assert "train.learning_rate 0.0002 0.001 0.0002" in differing and "seed" not in differing
    curves = values_of(page)["loss"]["curves"]
    assert [c["label"] for c in curves] == ["A first", "B second", "C third"]
    assert [c["points"][-1][0] for c in curves] == [60, 30, 60]
    styles = {a["class"] for t, a in page.elements if t == "path" and "curve" in (a.get("class") or "")}
    assert styles == {"curve run0", "curve run1", "curve run2"}
    dashes = re.findall(r"\.run\d { stroke: [^;]*; stroke-dasharray: ([^;]*);", page.html)
    assert len(set(dashes)) == MOST_RUNS, "lines differ without their colors"
    letters = len(re.findall(r'class="letter run1"[^>]*>B<', page.html))
    assert letters == 2 * len(values_of(page)) - 1, "on it and at its end; not on the noisy norm"
    with pytest.raises(ConfigError, match=f"at most {MOST_RUNS} runs"):
        write_report([runs[0]] * (MOST_RUNS + 1))


# ---------------------------------------------------------------------------------------------- the file


def test_only_a_report_is_replaced(make_run: MakeRun, tmp_path: Path) -> None:
    run, mine = make_run(), tmp_path / "mine.html"
    mine.write_text("<html>")
    with pytest.raises(ConfigError, match="exists and is not a report"):
        write_report([run], mine)
    assert mine.read_text() == "<html>"
    with pytest.raises(ConfigError, match="is a directory"):
        write_report([run], tmp_path)
    there = tmp_path / "new" / "there.html"
    assert write_report([run], there) == write_report([run], there) == there


def test_a_page_that_cannot_be_written_leaves_the_former_one(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    former = write_report([run]).read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WriteError, match="the disk is full"):
        write_report([run])
    assert run.page.read_text() == former
    assert not list(run.path.glob(".partial-*"))


def test_the_command_names_the_run_that_does_not_exist(make_run: MakeRun, cli: Any) -> None:
    make_run()
    refused = cli("runs", "report", "frist", "--runs", "../runs")
    assert refused.code != 0 and "did you mean ../runs/first?" in refused.stderr
    done = cli("runs", "report", "first", "--runs", "../runs", "--output", "here.html")
    assert done.stdout == "here.html\n" and Path("here.html").exists()
