"""`smollm3 data preview` and `data stats` show exactly the tokens that a run would train on."""

from __future__ import annotations

import itertools
import json
import os
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.data.preview import sampled
from smollm3_finetune.data.stats import Quantiles, histogram

REAL = os.environ.get("SMOLLM3_TEST_DATA")
HEAVY = ("torch", "transformers", "numpy", "datasets", "rich")
SYSTEM = "│ <|im_start|>system\n│ ## Metadata\n│\n│ Reasoning Mode: /no_think\n│ <|im_end|>\n"

SHORT = ("--max-length", "64", "--set", "data.history=strip", "--set", "data.held_out=0")

Cli = Callable[..., Any]
Write = Callable[..., str]


def talk(*contents: str, **columns: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)], **columns}


@pytest.fixture
def write(isolated: Path) -> Write:
    def make(*rows: Any, name: str = "rows.jsonl") -> str:
        Path(name).write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        return name

    return make


@pytest.fixture
def few(write: Write) -> str:
    """Seven rows. With `SHORT`, two are cut, one of them before its answer, and one has no supervised answer."""
    return write(
        talk("Hello", "Good day."),
        talk("word " * 80, "too late"),
        talk("And?", "on and on " * 40),
        talk("Why?", "<think>Because of that.</think>So.", "Thanks."),
        talk("How?", "Like this.", chat_template_kwargs={"enable_thinking": False}),
        talk("Again?", "Yes."),
        talk("No?", "No."),
    )


def stats(cli: Cli, *args: str) -> dict[str, Any]:
    result = cli("data", "stats", "--json", *args)
    assert result.code == 0, result.stderr
    about: dict[str, Any] = json.loads(result.stdout)
    return about


# ---------------------------------------------------------------------------------------------- preview


def test_supervised_text_is_between_marks_exactly(cli: Cli, write: Write) -> None:
    file = write(talk("Hello", "Good day.", "And you?", "Well."), talk("a", "b"))
    result = cli("data", "preview", "--data", file, "--rows", "1")
    assert result.code == 0, result.stderr
    shown = result.stdout.split("\n\nsource 0")[0]
    head, _, row = shown.partition("\n\n")
    assert head == (
        "model tiny, objective sft, data.max_length=1024 tokens\n"
        "legend: «supervised», the rest is context and not trained on"
    )
    place, _, text = row.partition("\n")
    assert re.fullmatch(r"rows\.jsonl:1  \d+ tokens, \d+ supervised, (train|held out)", place)
    assert text == (
        SYSTEM + "│ <|im_start|>user\n│ Hello<|im_end|>\n"
        "│ <|im_start|>assistant\n│ <think>\n│\n│ </think>\n│ «Good day.<|im_end|>»\n"
        "│ <|im_start|>user\n│ And you?<|im_end|>\n"
        "│ <|im_start|>assistant\n│ <think>\n│\n│ </think>\n│ «Well.<|im_end|>»"
    )


def test_other_marks_are_used_if_a_row_contains_the_default_ones(cli: Cli, write: Write) -> None:
    file = write(talk("«Bonjour»", "«Salut»"), talk("a", "b"))
    out = cli("data", "preview", "--data", file).stdout
    assert "legend: ⟦supervised⟧" in out
    assert "│ ⟦«Salut»<|im_end|>⟧\n" in out


def test_a_terminal_gets_color_and_no_marks(cli: Cli, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = cli("data", "preview", "--data", write(talk("Hello", "Good day."), talk("a", "b"))).stdout
    assert "│ \x1b[1;32mGood day.<|im_end|>\x1b[0m\n" in out
    assert "│ \x1b[2mHello<|im_end|>\x1b[0m\n" in out
    assert "«" not in out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "«Good day.<|im_end|>»" in cli("data", "preview", "--data", "rows.jsonl").stdout


def test_rows_cannot_command_the_terminal(cli: Cli, write: Write) -> None:
    file = write(talk("\x1b[31mred\u202eleft\r", "b"), talk("a", "b"))
    for more in ([], ["--tokens"]):
        out = cli("data", "preview", "--data", file, *more).stdout
        assert "│ \\x1b[31mred\\u202eleft\\r<|im_end|>\n" in out
        assert not set("\x1b\u202e\r") & set(out)


def test_tokens_are_shown_with_index_id_and_mask(cli: Cli, write: Write) -> None:
    file = write(talk("Hello", "Good é."), talk("a", "b"))
    out = cli("data", "preview", "--data", file, "--rows", "1", "--tokens").stdout
    table = out.partition("  index      id  mask        token\n")[2].partition("\n\n")[0].splitlines()
    parsed = [re.fullmatch(r" *(\d+) +(\d+)  (supervised|context) +(.+)", line) for line in table]
    assert all(parsed)
    rows = [m.groups() for m in parsed if m]
    assert [int(r[0]) for r in rows] == list(range(len(rows)))
    from smollm3_finetune.model_files.loading import load_tokenizer

    tiny = Path(__file__).parents[2] / "smollm3_finetune" / "builtin" / "tiny"
    text = load_tokenizer("tiny", tiny, {}).decode([int(r[1]) for r in rows])
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\nGood é.<|im_end|>\n")
    assert rows[0][2:] == ("context", '"<|im_start|>"')
    supervised = [r[3] for r in rows if r[2] == "supervised"]
    assert "".join(t.strip('"') for t in supervised if t.startswith('"')) == "Good .<|im_end|>"
    assert sum(t.endswith("(part of a character)") for t in supervised) == 2  # é is two tokens
    assert rows[-1][2:] == ("context", '"\\n"')
    assert f"{len(rows)} tokens, {len(supervised)} supervised" in out


def test_raw_text_is_supervised_except_for_its_first_token(cli: Cli, write: Write) -> None:
    file = write({"text": "Hello you."}, {"text": "Hello me."})
    out = cli("data", "preview", "--data", file, "--tokens").stdout
    rows = re.findall(r"^ +(\d+) +\d+  (supervised|context)", out, re.MULTILINE)
    assert [mask for index, mask in rows if index == "0"] == ["context", "context"]
    assert {mask for index, mask in rows if index != "0"} == {"supervised"}
    assert "you.<|im_end|>»" in out


def test_the_outcome_of_each_row_is_shown(cli: Cli, few: str) -> None:
    out = cli("data", "preview", "--data", few, "--rows", "7", *SHORT).stdout
    places = {m[1]: m[2] for m in re.finditer(r"^rows\.jsonl:(\d)  (.+)$", out, re.MULTILINE)}
    assert list(places) == list("1234567")
    assert re.search(
        r"64 tokens, 0 supervised, left out: the supervised tokens begin at token \d+, past data.max_length=64; "
        r"cut from \d+ tokens$",
        places["2"],
    )
    assert re.search(r"64 tokens, \d+ supervised, (train|held out); cut from \d+ tokens$", places["3"])
    assert places["4"].endswith(
        "0 supervised, left out: answers whose reasoning is stripped are not supervised (data.history=strip); "
        "earlier reasoning stripped"
    )
    assert "│ … the rest is cut at data.max_length=64\n" in out
    assert "│ So.<|im_end|>\n" in out
    assert "Because" not in out
    out = cli("data", "preview", "--data", few, "--rows", "4", "--set", "data.enable_thinking=false").stdout
    assert re.search(
        r"^rows\.jsonl:4  \d+ tokens, \d+ supervised, (train|held out); trace stripped$", out, re.MULTILINE
    )
    assert "│ «So.<|im_end|>»\n" in out


def test_preview_shows_counts_and_a_histogram_of_lengths(cli: Cli, few: str) -> None:
    out = cli("data", "preview", "--data", few, "--rows", "0", *SHORT).stdout
    assert "legend" not in out
    assert "source 0: rows.jsonl  (formatter messages)\n" in out
    assert "evenly spaced" not in out  # all rows were counted
    kept = re.search(r"rows      7 = (\d) training \+ (\d) held out \+ 2 left out", out)
    assert kept is not None
    assert sum(map(int, kept.groups())) == 5
    assert re.search(
        r"  left out  rows\.jsonl:2: the supervised .*\n            rows\.jsonl:4: answers whose reasoning", out
    )
    assert "  notes     earlier reasoning stripped: 1 row\n" in out
    assert "  truncated 2 rows to 64 tokens; " in out
    bars = re.findall(r"^ +([\d,]+)–[\d,]+  (█*) (\d+)", out, re.MULTILINE)
    assert sum(int(rows) for _, _, rows in bars) == 7
    assert max(len(blocks) for _, blocks, _ in bars) == 40
    assert all(bool(blocks) == (rows != "0") for _, blocks, rows in bars)
    assert out.count("rows longer than 64 are truncated") == 1


def test_a_sample_is_labeled_as_one(cli: Cli, write: Write) -> None:
    file = write(*(talk(f"Number {n}?", "Yes.") for n in range(30)))
    out = cli("data", "preview", "--data", file, "--rows", "0", "--sample", "10").stdout
    assert "  sample    10 of 30 rows, evenly spaced; the counts are of these\n  rows      10 = " in out


def test_one_source_of_several_can_be_chosen(cli: Cli, write: Write) -> None:
    one = write(talk("One?", "First."), talk("a", "b"), name="one.jsonl")
    two = write({"instruction": "Two?", "output": "Second."}, {"instruction": "c", "output": "d"}, name="two.jsonl")
    both = cli("data", "preview", "--data", one, "--data", two, "--rows", "1").stdout
    assert "«First." in both and "«Second." in both
    assert "source 0: one.jsonl  (formatter messages)" in both and "source 1: two.jsonl  (formatter alpaca)" in both
    second = cli("data", "preview", "--data", one, "--data", two, "--rows", "1", "--source", "1").stdout
    assert "«Second." in second and "one.jsonl" not in second and "source 1: two.jsonl" in second
    wrong = cli("data", "preview", "--data", one, "--data", two, "--source", "2")
    assert wrong.code == 2
    assert "--source 2: there is no source 2" in wrong.stderr
    assert "sources: 0 (one.jsonl), 1 (two.jsonl)" in wrong.stderr


PAIRS = """
from smollm3_finetune.api import NoOptions, ObjectiveSpec, hookimpl

class Pairs:
    def __init__(self, options): pass
    def prepare(self, conversation, renderer, max_length):
        one = renderer.encode(conversation, max_length)
        labels = list(one.labels)
        labels[-2] = -100  # not the end of the turn
        return {"chosen_input_ids": one.input_ids, "chosen_labels": one.labels,
                "rejected_input_ids": one.input_ids, "rejected_labels": labels}
    def collator(self, tokenizer): ...
    def trainer_class(self): ...
    def loss_sum(self, model, batch): ...

@hookimpl
def smollm3_objectives():
    return [ObjectiveSpec(name="pairs", summary="two of each", factory="pairs:Pairs", api=2)]
"""


def test_masks_of_another_objective_are_shown(cli: Cli, plugin_file: Any, write: Write) -> None:
    plugin = plugin_file("pairs", PAIRS)
    file = write(talk("Hello", "Good day."), talk("a", "b"))
    result = cli("data", "preview", "--data", file, "--rows", "1", "-p", str(plugin), "--objective", "pairs")
    assert result.code == 0, result.stderr
    chosen, rejected = result.stdout.partition("chosen:\n")[2].split("rejected:\n")
    assert "│ «Good day.<|im_end|>»\n" in chosen
    assert "│ «Good day.»<|im_end|>\n" in rejected


ODD = """
from smollm3_finetune.api import NoOptions, ObjectiveSpec, hookimpl

class Odd:
    def __init__(self, options):
        self.seen = 0
    def prepare(self, conversation, renderer, max_length):
        self.seen += 1
        ids = renderer.encode(conversation, max_length).input_ids
        return RESULT
    def collator(self, tokenizer): ...
    def trainer_class(self): ...
    def loss_sum(self, model, batch): ...

@hookimpl
def smollm3_objectives():
    return [ObjectiveSpec(name="odd", summary="not by the contract", factory="odd:Odd", api=2)]
"""


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ("[ids, ids]", "prepare() returned a list; expected a mapping or None"),
        ("{}", "prepare() returned an empty example; return None to skip a row"),
        ("{'input_ids': [], 'labels': []}", "prepare() returned an empty example; return None to skip a row"),
        ("{'input_ids': [i / 2 for i in ids]}", "prepare() returned 'input_ids', which is not a list of integers"),
        ("{'input_ids': ids, 'labels': [None] * 9}", "prepare() returned 'labels', which is not a list of integers"),
        ("{'input_ids': ids, 'labels': [2**40]}", "prepare() returned 'labels', which is not a list of integers"),
        (
            "{'input_ids': ids, f'labels{self.seen}': ids}",
            "prepare() returned the keys ['input_ids', 'labels2'], but ['input_ids', ",
        ),
    ],
)
def test_an_objective_that_returns_no_example_is_named_with_the_row(
    cli: Cli, plugin_file: Any, write: Write, result: str, said: str
) -> None:
    plugin = plugin_file("odd", ODD.replace("RESULT", result))
    file = write(talk("Hello", "Good day."), talk("a", "b"), talk("c", "d"))
    for command in (("data", "stats"), ("train", "--adapter", "full", "--set", "data.held_out=0")):
        failed = cli(*command, "--data", file, "-p", str(plugin), "--objective", "odd")
        assert failed.code != 0
        assert f"rows.jsonl:{2 if 'labels2' in said else 1}: objective 'odd'" in failed.stderr
        assert said in failed.stderr


def test_a_row_that_an_objective_rejects_is_named_with_the_reason(cli: Cli, plugin_file: Any, write: Write) -> None:
    """A ValueError of `prepare` is a fault of the row, with the row and a hint; see test_containment for the others."""
    fault = "if self.seen == 2:\n            raise ValueError('the row has no rejected answer')\n        "
    plugin = plugin_file("odd", ODD.replace("return RESULT", f"{fault}return {{'input_ids': ids, 'labels': ids}}"))
    file = write(talk("Hello", "Good day."), talk("a", "b"), talk("c", "d"))
    for command in (("data", "stats"), ("train", "--adapter", "full", "--set", "data.held_out=0")):
        failed = cli(*command, "--data", file, "-p", str(plugin), "--objective", "odd")
        assert failed.code == 5
        assert "rows.jsonl:2: the row has no rejected answer\n" in failed.stderr
        assert "hint: fix the row, or remove it" in failed.stderr


@pytest.mark.parametrize(
    "result",
    [
        "{'input_ids': torch.tensor(ids), 'labels': torch.tensor(ids)}",
        "{'input_ids': np.array(ids), 'labels': [np.int64(i) for i in ids]}",
        "dict(list({'input_ids': ids, 'labels': ids}.items())[:: 1 if self.seen % 2 else -1])",
    ],
    ids=["tensors", "numpy", "names in another order"],
)
def test_any_container_of_integers_is_a_valid_example(
    cli: Cli, plugin_file: Any, write: Write, result: str, tmp_path: Path
) -> None:
    source = "import numpy as np, torch\n" + ODD.replace("RESULT", result)
    plain = ODD.replace("RESULT", "{'input_ids': ids, 'labels': ids}").replace('"odd', '"plain')
    file = write(talk("Hello", "Good day."), talk("a", "b"), talk("c", "d"))
    counted = []
    for name, text in (("odd", source), ("plain", plain)):
        plugin = plugin_file(name, text)
        counted.append(stats(cli, "--data", file, "-p", str(plugin), "--objective", name))
    assert counted[0]["total"] == counted[1]["total"]
    assert counted[0]["total"]["tokens"] > 20


# ------------------------------------------------------------------------------------------------ stats


def test_the_json_has_this_shape_and_adds_up(cli: Cli, few: str) -> None:
    about = stats(cli, "--data", few, *SHORT)
    assert list(about) == [
        "model", "objective", "max_length", "held_out", "validation", "seed", "warning", "sources", "total",
    ]  # fmt: skip
    assert (about["model"], about["objective"], about["max_length"]) == ("tiny", "smollm3-finetune:sft", 64)
    (source,) = about["sources"]
    assert list(source) == [
        "title", "formatter", "weight", "validation", "rows", "train", "held_out", "empty", "undesirable",
        "missing", "empty_rows", "rows_per_pass", "cut", "chunks", "notes", "not_read", "new_tokens", "answers",
        "answers_missed", "tool_calls", "tool_calls_missed", "tokens", "tokens_supervised", "tokens_cut", "parts",
        "length", "longest_row",
    ]  # fmt: skip
    assert source["rows"] == 7 == source["train"] + source["held_out"] + source["empty"]
    assert (source["empty"], source["cut"], source["rows_per_pass"]) == (2, 2, source["train"])
    assert source["notes"] == {"earlier reasoning stripped": 1}
    assert source["answers"] > source["answers_missed"] > 0
    assert [(e["where"], e["why"].split(" at ")[0]) for e in source["empty_rows"]] == [
        ("rows.jsonl:2", "the supervised tokens begin"),
        ("rows.jsonl:4", "answers whose reasoning is stripped are not supervised (data.history=strip)"),
    ]
    assert 0 < source["tokens_supervised"] < source["tokens"]
    assert list(source["length"]) == ["min", "median", "mean", "p95", "max"]
    assert source["longest_row"] in ("rows.jsonl:2", "rows.jsonl:3")
    assert about["total"]["rows"] == 7


def test_tokens_and_lengths_are_those_of_the_rows(cli: Cli, few: str) -> None:
    (whole,) = stats(cli, "--data", few)["sources"]
    (cut,) = stats(cli, "--data", few, "--max-length", "64")["sources"]
    assert whole["cut"] == whole["tokens_cut"] == 0
    assert whole["length"] == cut["length"]  # before cutting
    out = cli("data", "preview", "--data", few, "--rows", "7").stdout
    rows = [[int(n) for n in m] for m in re.findall(r"^rows\S+  (\d+) tokens, (\d+) supervised", out, re.MULTILINE)]
    lengths, supervised = [length for length, _ in rows], [n for _, n in rows]
    assert whole["length"] == {
        "min": min(lengths), "median": statistics.median(lengths), "mean": round(statistics.mean(lengths), 2),
        "p95": max(lengths), "max": max(lengths),
    }  # fmt: skip
    assert whole["tokens"] == sum(length for length, n in rows if n)
    assert whole["tokens_supervised"] == sum(supervised)
    assert cut["tokens_cut"] == sum(max(length - 64, 0) for length in lengths)


def test_weights_and_totals_of_several_sources(cli: Cli, write: Write) -> None:
    write(*(talk(f"One {n}?", "Yes.") for n in range(40)), name="one.jsonl")
    write(*(talk(f"Two {n}?", "No.") for n in range(10)), name="two.jsonl")
    config = "data:\n  path:\n    - {path: one.jsonl, weight: 0.5}\n    - {path: two.jsonl, weight: 2}\n"
    Path("run.yaml").write_text(config, encoding="utf-8")
    about = stats(cli, "--config", "run.yaml")
    one, two = about["sources"]
    assert (one["weight"], two["weight"]) == (0.5, 2)
    assert 0 < one["rows_per_pass"] < one["train"]
    assert two["rows_per_pass"] == 2 * two["train"]
    assert about["total"].pop("missing") == 0 and one["missing"] == two["missing"] == {}
    for name, value in about["total"].items():
        assert value == one[name] + two[name]
    out = cli("data", "stats", "--config", "run.yaml").stdout
    assert f"  weight    2: {two['rows_per_pass']} rows seen in each pass\n" in out
    assert "all sources\n  rows      50 = " in out
    assert "█" not in out


def test_without_supervised_tokens_the_exit_code_is_5_and_the_counts_are_shown(cli: Cli, write: Write) -> None:
    file = write(*(talk(f"{n} " + "word " * 60, "late") for n in range(4)))
    for command in (["stats"], ["stats", "--json"], ["preview"]):
        result = cli("data", *command, "--data", file, "--max-length", "32")
        assert result.code == 5
        assert "error: none of the 3 training rows has supervised tokens; the first is rows.jsonl:" in result.stderr
        assert "error: the only held-out row has no supervised tokens: rows.jsonl:" in result.stderr
        assert "the supervised tokens begin at token " in result.stderr
        assert "rows.jsonl:4" in result.stdout
        if "--json" in command:
            assert json.loads(result.stdout)["total"]["empty"] == 4
    enough = re.findall(r"hint: --max-length (\d+)\n", result.stderr)
    assert len(enough) == 2
    assert cli("data", "stats", "--data", file, "--max-length", max(enough, key=int)).code == 0


def test_a_row_that_the_template_refuses_is_named_by_file_and_line(cli: Cli, write: Write) -> None:
    Path("no.jinja").write_text("{{ raise_exception('not this one') }}", encoding="utf-8")
    file = write(talk("a", "b"), talk("c", "d"))
    for command in ("preview", "stats"):
        result = cli("data", command, "--data", file, "--set", "data.template=no.jinja")
        assert result.code == 5
        assert "rows.jsonl:1: the chat template refuses a conversation: not this one" in result.stderr


@pytest.mark.parametrize("command", ["preview", "stats"])
@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--max-length", "4"], 2, "--max-length: expected integer (at least 8), got 4"),
        (["--objective", "sfd"], 2, "there is no objective 'sfd'"),
        (["--formatter", "mesages"], 2, "did you mean 'messages'?"),
        (["--set", "data.maxlength=9"], 2, "unknown key 'data.maxlength'"),
        (["--data", "none.jsonl"], 5, "the data file 'none.jsonl' does not exist"),
        (["--model", "none.here"], 6, "there is no model 'none.here'"),
        (["--adapter", "fulll"], 2, "there is no adapter 'fulll'"),
        (["--nothing"], 2, "No such option"),
    ],
)
def test_wrong_options_are_errors_as_in_train(command: str, args: list[str], code: int, message: str, cli: Cli) -> None:
    result = cli("data", command, *args)
    assert result.code == code
    assert message in result.stderr
    assert not result.stdout


def test_problems_are_reported_together(cli: Cli) -> None:
    result = cli("data", "stats", "--objective", "sfd", "--data", "none.jsonl", "--model", "none.here")
    for message in ("no objective 'sfd'", "'none.jsonl' does not exist", "there is no model 'none.here'"):
        assert message in result.stderr


def test_options_of_train_are_accepted_and_nothing_is_written(cli: Cli, write: Write, isolated: Path) -> None:
    file = write(talk("Hello", "Good day."), talk("a", "b"))
    args = ["--adapter", "full", "--quant", "none", "--epochs", "3", "--batch-size", "2", "--learning-rate", "1e-3"]
    args += ["--output", "out", "--device", "cpu", "--dtype", "float32", "--max-steps", "2", "--seed", "3"]
    assert stats(cli, "--data", file, *args)["seed"] == 0, "--seed does not move the held-out rows"
    assert stats(cli, "--data", file, *args, "--set", "data.seed=3")["seed"] == 3
    assert [f.name for f in isolated.iterdir()] == ["rows.jsonl"]


SUGGESTS = """
from smollm3_finetune.api import ObjectiveSpec, hookimpl

@hookimpl
def smollm3_objectives():
    return [ObjectiveSpec(name="short", summary="short rows", suggests={"data.max_length": 64},
                          factory="smollm3_finetune.builtin.sft:SupervisedFineTuning", api=2)]
"""


def test_suggestions_of_components_apply_as_in_train(cli: Cli, plugin_file: Any, write: Write) -> None:
    args = ["--data", write(talk("Hello", "Good day."), talk("a", "b")), "-p", str(plugin_file("short", SUGGESTS))]
    assert stats(cli, *args, "--objective", "short")["max_length"] == 64
    assert stats(cli, *args, "--objective", "short", "--max-length", "128")["max_length"] == 128


def test_a_component_may_not_suggest_data_options(cli: Cli, plugin_file: Any, write: Write) -> None:
    late = str(plugin_file("late", SUGGESTS.replace('"data.max_length": 64', '"data.held_out": 0.5')))
    rows = ("--data", write(talk("Hello", "Good day."), talk("a", "b")), "-p", late, "--objective", "short")
    for command in (("data", "stats"), ("train", "--adapter", "full", "--dry-run")):
        result = cli(*command, *rows)
        assert result.code == 7
        assert "objective 'short' suggests data.held_out, but components may only suggest train.…" in result.stderr


@pytest.mark.parametrize("args", [["data"], ["data", "preview"], ["data", "stats"]], ids=" ".join)
def test_help_imports_nothing_heavy_and_hides_what_does_not_matter(args: list[str]) -> None:
    code = (
        "import sys\nfrom smollm3_finetune.main import main\ntry:\n    main([*sys.argv[1:], '--help'])\n"
        f"except SystemExit:\n    print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    *text, modules = done.stdout.strip().splitlines()
    assert modules == "[]"
    if args[1:]:
        assert all(flag in done.stdout for flag in ("--data", "--formatter", "--max-length", "--set", "--plugin"))
        assert not any(flag in done.stdout for flag in ("--epochs", "--quant ", "--output"))
    assert text


# -------------------------------------------------------------------------------------- equal to training


def trained_on(rows: Path, max_length: int, **data: Any) -> tuple[dict[str, Any], int, int]:
    """(counts, tokens, supervised tokens) of the examples of one source that training would read."""
    from smollm3_finetune.api import Purpose
    from smollm3_finetune.components.discovery import PluginSelection, discover
    from smollm3_finetune.config.load import Setting, assemble
    from smollm3_finetune.data.chat_template.renderer import Renderer
    from smollm3_finetune.data.tokenization import tokenize
    from smollm3_finetune.model.load import build_context
    from smollm3_finetune.train.plan import plan_run

    values: dict[tuple[str, ...], Any] = {("data", "path"): str(rows), ("adapter", "name"): "full"}
    values |= {("data", key): value for key, value in {"max_length": max_length, **data}.items()}
    loaded = assemble([[Setting(key=k, value=v, origin="test") for k, v in values.items()]])
    context = build_context(Purpose.TRAIN, "cpu", "float32", 0)
    plan = plan_run(discover(PluginSelection.of(())), loaded, lambda: context)
    renderer = Renderer(plan.model.source.tokenizer(), plan.render)
    chunk = plan.config.data.long_text == "chunk"
    made = tokenize(
        plan.rows, plan.survey, plan.objective, renderer, max_length, context.cache, context.progress, chunk=chunk
    )
    examples = [e[i] for e in (made.train, *made.held_out) for i in range(len(e))]
    tokens = sum(len(e["input_ids"]) for e in examples)
    supervised = sum(label != -100 for e in examples for label in e["labels"][1:])
    return asdict(made.counts[0]), tokens, supervised


def check_against_training(cli: Cli, file: Path, max_length: int, **data: Any) -> dict[str, Any]:
    """Assert that the statistics of a file equal those of the examples that training gets; return them."""
    options = ["--max-length", str(max_length), *(f"--set=data.{key}={value}" for key, value in data.items())]
    (source,) = stats(cli, "--data", str(file), *options)["sources"]
    counts, tokens, supervised = trained_on(file, max_length, **data)
    assert {k: source[k] for k in ("train", "held_out", "empty")} == {
        k: counts[k] for k in ("train", "held_out", "empty")
    }
    assert {**source["notes"], **({"cut": source["cut"]} if source["cut"] else {})} == counts["notes"]
    assert (source["tokens"], source["tokens_supervised"]) == (tokens, supervised)
    return source


def test_the_counts_equal_those_of_the_training_examples(cli: Cli, few: str) -> None:
    assert check_against_training(cli, Path(few).absolute(), 64, history="strip", held_out=0)["empty"] == 2


@pytest.mark.skipif(REAL is None, reason="SMOLLM3_TEST_DATA names no folder with the real rows")
@pytest.mark.parametrize(
    ("name", "formatter", "rows", "max_length"),
    [
        ("alpaca_en_demo.json", "alpaca", 999, 1024),
        ("v1_sft_demo.jsonl", "messages", 500, 64),
        ("c4_demo.jsonl", "text", 300, 1024),
        pytest.param("alpaca_en_demo.json", "alpaca", 999, 64, marks=pytest.mark.long),
        pytest.param("v1_sft_demo.jsonl", "messages", 500, 1024, marks=pytest.mark.long),
        pytest.param("c4_demo.jsonl", "text", 300, 64, marks=pytest.mark.long),
    ],
)
def test_all_real_rows_are_read_and_the_counts_add_up(
    name: str, formatter: str, rows: int, max_length: int, cli: Cli
) -> None:
    file = Path(str(REAL)) / name
    source = check_against_training(cli, file, max_length)
    text = file.read_text(encoding="utf-8")
    assert rows == (len(json.loads(text)) if file.suffix == ".json" else len(text.splitlines()))
    assert source["formatter"] == f"smollm3-finetune:{formatter}"
    assert source["rows"] == rows == source["train"] + source["held_out"] + source["empty"]
    assert source["empty"] == 0 or max_length == 64
    assert len(source["empty_rows"]) == min(source["empty"], 5)
    chunked = source["notes"].get("chunked", 0)
    assert 0 < source["cut"] + chunked < rows
    assert source["length"]["max"] > max_length
    read = source["tokens"] + source["tokens_cut"] + max_length * source["empty"]  # the skipped rows were all cut
    read -= source["chunks"] - chunked  # a chunk begins with the last token of the chunk before it
    assert read == pytest.approx(source["length"]["mean"] * rows, abs=0.005 * rows)  # the mean has two decimals


# ------------------------------------------------------------------------------------------------- numbers


def test_a_sample_is_evenly_spaced_and_has_the_requested_size() -> None:
    for total, wanted in ((1, 1), (7, 3), (10, 10), (10, 99), (1000, 7)):
        taken = [i for i, one in enumerate(sampled(total, wanted)) if one]
        assert len(taken) == min(total, wanted)
        gaps = {b - a for a, b in itertools.pairwise(taken)}
        assert max(gaps, default=0) - min(gaps, default=0) <= 1


@pytest.mark.parametrize("values", [[5], [1, 2], [3, 1, 2], list(range(1, 21)), [7] * 9 + [100]])
def test_quantiles_of_counts_are_those_of_the_values(values: list[int]) -> None:
    q = Quantiles(Counter(values))
    assert q.median() == statistics.median(values)
    assert q.mean() == pytest.approx(statistics.mean(values))
    assert sum(v <= q.p95() for v in values) >= 0.95 * len(values) > sum(v < q.p95() for v in values)


@pytest.mark.parametrize(
    "lengths", [[5], [5, 5], [55, 66, 70], [1, 100_000], list(range(1000)), [*range(200, 300), 19_000]]
)
def test_bars_hold_every_row_once_and_are_few(lengths: list[int]) -> None:
    bars = histogram(Counter(lengths))
    assert sum(bar.rows for bar in bars) == len(lengths)
    assert 1 <= len(bars) <= 13
    assert all(a.high + 1 == b.low for a, b in itertools.pairwise(bars))
    assert bars[0].low <= min(lengths) and max(lengths) <= bars[-1].high
    assert bars[0].rows or len(lengths) < 4


HISTORY = {"instruction": "And two?", "output": "Four.", "history": [["One?", "Two."]]}


def supervised(result: Any) -> int:
    assert result.code == 0, result.stderr
    return int(json.loads(result.stdout)["total"]["tokens_supervised"])


def test_options_reach_the_formatter_that_recognizes_the_rows(cli: Cli, write: Write) -> None:
    file = write(*({**HISTORY, "output": f"{n}."} for n in range(8)))
    common = ("data", "stats", "--data", file, "--json")
    with_history, without = supervised(cli(*common)), supervised(cli(*common, "--set", "formatter.learn_history=false"))
    named = cli(*common, "--set", "formatter.learn_history=false", "--formatter", "alpaca")
    assert supervised(named) == without < with_history
    wrong = cli(*common, "--set", "formatter.learn_histroy=false")
    assert wrong.code == 2
    assert "learn_history" in wrong.stderr


def test_options_of_a_formatter_need_its_name_if_there_are_several(cli: Cli, write: Write) -> None:
    one = write(talk("One?", "First."), talk("a", "b"), name="one.jsonl")
    two = write(HISTORY, {**HISTORY, "output": "c"}, name="two.jsonl")
    common = ("data", "stats", "--data", one, "--data", two, "--json", "--set", "formatter.learn_history=false")
    refused = cli(*common)
    assert refused.code == 2
    assert "the sources use several formatters (smollm3-finetune:alpaca, smollm3-finetune:messages)" in refused.stderr
    assert "--formatter alpaca" in refused.stderr


def test_a_repeated_run_of_several_sources_has_the_same_options(cli: Cli, write: Write) -> None:
    one = write(HISTORY, {**HISTORY, "output": "c"}, name="one.jsonl")
    two = write({**HISTORY, "output": "d"}, {**HISTORY, "output": "e"}, name="two.jsonl")
    option = ("--formatter", "alpaca", "--set", "formatter.learn_history=false")
    planned = cli("train", "--adapter", "full", "--data", one, "--data", two, *option, "--dry-run", "--json")
    assert planned.code == 0, planned.stderr
    Path("again.yaml").write_text(json.dumps(json.loads(planned.stdout)["config"]))
    asked = supervised(cli("data", "stats", "--data", one, "--data", two, *option, "--json"))
    assert supervised(cli("data", "stats", "--config", "again.yaml", "--json")) == asked
    assert supervised(cli("data", "stats", "--data", one, "--data", two, "--json")) > asked


def test_preference_rows_report_that_sft_ignores_the_rejected_answer(cli: Cli, write: Write) -> None:
    file = write(*({"prompt": f"{n}?", "chosen": "Yes.", "rejected": "No."} for n in range(4)))
    about = stats(cli, "--data", file)
    assert about["sources"][0]["notes"] == {"rejected answer not compared": 4}
