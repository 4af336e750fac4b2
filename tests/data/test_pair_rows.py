"""Rows of objectives that need a rejected answer or a label: left out, refused, shown, counted and measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PLUGIN = str(Path(__file__).parents[1] / "out_of_tree" / "pair_objectives.py")
ODD = [
    {"prompt": "Name a prime number.", "chosen": "Seven.", "rejected": "Seven."},
    {"prompt": "Name another one.", "chosen": "Five.", "rejected": "Five."},
    {"prompt": "Say hello.", "chosen": "Hello!", "rejected": "No.", "chosen_rating": 4, "rejected_rating": 4},
]
FRANCE = {"prompt": "What is the capital of France?", "chosen": "It is Paris.", "rejected": "It is Lyon, I believe."}
LONG = {"prompt": "What do bees make?", "chosen": "Honey.", "rejected": f"{'Bread, and more bread. ' * 9}"}
CHAT = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "B"}]} for q in ("A?", "C?")]
Cli = Callable[..., Any]


def write(*rows: Any, name: str = "rows.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"What is {n} plus {n}?", "chosen": f"It is {2 * n}.", "rejected": f"It is {n}, or more."}
        for n in range(count)
    ]


def command(*args: str, objective: str = "prefer") -> tuple[str, ...]:
    return (*args, "-p", PLUGIN, "--objective", objective, "--data", "rows.jsonl")


def counted(cli: Cli, *more: str, objective: str = "prefer") -> dict[str, Any]:
    result = cli(*command("data", "stats", "--json", *more, objective=objective))
    assert result.code == 0, result.stderr
    (source,) = json.loads(result.stdout)["sources"]
    return dict(source)


def test_rows_without_a_needed_field_are_counted_with_the_reason(cli: Cli) -> None:
    write(*pairs(6), *ODD, {"messages": CHAT[0]["messages"], "rejected_response": "C"})
    source = counted(cli)
    assert source["missing"] == {"the answers are equal": 2, "chosen_rating equals rejected_rating": 1}
    assert (source["rows"], source["train"] + source["held_out"], source["empty"]) == (10, 7, 0)
    result = cli(*command("train", "--dry-run", "--adapter", "full", "--device", "cpu"))
    assert result.code == 0, result.stderr
    reasons = "# 3 left out (the answers are equal: 2, chosen_rating equals rejected_rating: 1)\n"
    assert f"{reasons}" in result.stdout
    result = cli(*command("train", "--dry-run", "--json", "--adapter", "full", "--device", "cpu"))
    rows = json.loads(result.stdout)["rows"]
    assert (rows["train"] + rows["held_out"], sum(rows["missing"].values()), rows["undesirable"]) == (7, 3, 0)
    (turns,) = rows["turns"].values()
    assert (turns["answers"], turns["answers_missed"]) == (7, 0)


def test_the_default_objective_trains_on_the_chosen_answer_of_each_of_them(cli: Cli) -> None:
    write(*pairs(2), *ODD)
    source = counted(cli, objective="sft")
    assert (source["train"] + source["held_out"], source["missing"]) == (5, {})
    assert source["notes"] == {"rejected answer not compared": 2}


def test_rows_without_a_label_are_left_out_and_those_with_a_false_one_are_not(cli: Cli) -> None:
    labeled = [{"prompt": f"q{n}", "completion": "c", "label": n % 2 == 0} for n in range(4)]
    messages = {**CHAT[0], "label": False}
    write(*labeled, {"prompt": "q", "completion": "c"})
    source = counted(cli, objective="judge")
    assert (source["train"] + source["held_out"], source["undesirable"], source["missing"]) == (4, 0, {"no label": 1})
    write(messages, {**CHAT[1], "label": True})
    assert counted(cli, objective="judge")["train"] == 1  # of two rows, one is held out


@pytest.mark.parametrize(
    ("rows", "more", "error", "hint"),
    [
        (CHAT, (), "none of the 2 rows of rows.jsonl has a rejected answer, which objective 'prefer' needs",
         "--objective sft"),
        (CHAT[:1], (), "the only row of rows.jsonl has no rejected answer, which objective 'prefer' needs",
         "--objective sft"),
        ([{**row, "rejected_response": "C"} for row in CHAT], ("--formatter", "messages"),
         "none of the 2 rows of rows.jsonl has a rejected answer, which objective 'prefer' needs",
         "--formatter preference"),
        (ODD[:2], (),
         "none of the 2 rows of rows.jsonl has a rejected answer, which objective 'prefer' needs; the first is "
         "rows.jsonl:1: the answers are equal", "--objective sft"),
    ],
    ids=["none", "only row", "another format", "not pairs"],
)  # fmt: skip
def test_a_source_without_the_field_is_refused_before_it_is_tokenized(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, rows: Any, more: tuple[str, ...], error: str, hint: str
) -> None:
    monkeypatch.setattr("smollm3_finetune.data.tokenization.ExampleBuilder.__call__", pytest.fail)
    write(*rows)
    result = cli(*command("train", *more, "--adapter", "full", "--device", "cpu"))
    assert (result.code, result.stderr) == (5, f"error: {error}\n  hint: {hint}\n")


def test_each_source_needs_the_field(cli: Cli) -> None:
    write(*pairs(4))
    other = write(*CHAT, name="chat.jsonl")
    result = cli(*command("train", "--data", other, "--adapter", "full", "--device", "cpu"))
    assert (result.code, "none of the 2 rows of chat.jsonl has a rejected answer" in result.stderr) == (5, True)
    result = cli(*command("data", "stats", "--data", other))
    assert (result.code, "none of the 2 rows of chat.jsonl has a rejected answer" in result.stderr) == (5, True)


# ---------------------------------------------------------------------------------------- preview and stats


@pytest.mark.parametrize("objective", ["prefer", "two-sequences"])
def test_a_pair_is_shown_as_prompt_chosen_and_rejected(cli: Cli, objective: str) -> None:
    write(FRANCE, ODD[0])
    result = cli(*command("data", "preview", "--set", "data.held_out=0", objective=objective))
    assert result.code == 0, result.stderr
    first = result.stdout[result.stdout.index("rows.jsonl:1") : result.stdout.index("rows.jsonl:2")]
    lines = [line for line in first.splitlines() if line]
    about, shown = lines[0], "\n".join(lines[1:])
    sizes = {line.split(":")[0]: line.split(":")[1] for line in lines if line.startswith(("prompt", "chos", "rejec"))}
    assert list(sizes) == ["prompt", "chosen", "rejected"]
    prompt, chosen, rejected = (int(size.split()[0]) for size in sizes.values())
    assert about == (
        f"rows.jsonl:1  {prompt + chosen + rejected + (prompt if objective == 'two-sequences' else 1)} tokens, "
        f"{chosen - 1 + rejected - 1} supervised, train"
    )
    assert sizes["chosen"] == f"  {chosen} tokens, {chosen - 1} supervised"  # not the line break after the answer
    assert "│ What is the capital of France?<|im_end|>\n" in shown.partition("chosen:")[0]
    assert shown.partition("chosen:")[2].partition("rejected:")[0].endswith("│ «It is Paris.<|im_end|>»\n")
    assert shown.endswith("│ «It is Lyon, I believe.<|im_end|>»")
    assert shown.count("capital") == 1 and max(map(len, first.splitlines())) <= 80
    assert "rows.jsonl:2  0 tokens, 0 supervised, left out: the answers are equal\n" in result.stdout
    assert "  rows      2 = 1 training + 0 held out + 1 left out\n" in result.stdout
    assert "  lacking   1 row left out: the answers are equal\n" in result.stdout
    assert f"  answers   prompt {prompt}, chosen {chosen}, rejected {rejected} tokens (medians)\n" in result.stdout
    assert f"  length    {prompt + rejected} to {prompt + rejected} tokens before truncation" in result.stdout


def test_tokens_of_an_answer_are_numbered_after_those_of_the_prompt(cli: Cli) -> None:
    write(FRANCE)
    out = cli(*command("data", "preview", "--tokens", "--set", "data.held_out=0")).stdout
    rows = [line.split() for line in out.splitlines() if line[:7].strip().isdigit()]
    starts = [i for i, row in enumerate(rows) if i and int(row[0]) != int(rows[i - 1][0]) + 1]
    assert len(starts) == 1  # the rejected answer begins where the chosen one did
    prompt = int(rows[starts[0]][0])
    assert [row[2] for row in rows[:prompt]] == ["context"] * prompt
    assert rows[prompt][2] == rows[starts[0]][2] == "supervised"


# -------------------------------------------------------------------------------------------------- length


def lengths(cli: Cli) -> dict[str, int]:
    write(LONG)
    source = counted(cli, "--set", "data.held_out=0")
    return {name: part["max"] for name, part in source["parts"].items()} | {"whole": source["length"]["max"]}


def test_the_maximum_length_applies_to_the_prompt_with_each_answer(cli: Cli) -> None:
    size = lengths(cli)
    assert size["whole"] == size["prompt"] + size["rejected"] > size["prompt"] + size["chosen"]
    short = size["prompt"] + size["chosen"] + 3
    source = counted(cli, "--set", "data.held_out=0", "--max-length", str(short))
    assert (source["train"], source["cut"], source["tokens_cut"]) == (1, 1, size["whole"] - short)
    assert (
        source["parts"]["chosen"]["max"] == size["chosen"] and source["parts"]["rejected"]["max"] == size["chosen"] + 3
    )
    out = cli(*command("data", "preview", "--set", "data.held_out=0", "--max-length", str(short))).stdout
    assert out.count(f"│ … the rest is cut at data.max_length={short}") == 1
    assert f"; cut from {size['whole']} tokens\n" in out


def test_a_pair_that_is_too_long_names_the_length_of_its_longest_answer_with_the_prompt(cli: Cli) -> None:
    size = lengths(cli)
    room = size["prompt"] - 4
    result = cli(*command("train", "--max-length", str(room), "--adapter", "full", "--set", "data.held_out=0",
                          "--device", "cpu"))  # fmt: skip
    assert result.code == 5
    why = f"the supervised tokens of the chosen answer begin at token {size['prompt']}, past data.max_length={room}"
    assert f"error: the only training row has no supervised tokens: rows.jsonl:1: {why}\n" in result.stderr
    assert f"hint: --max-length {size['whole']}\n" in result.stderr


@pytest.mark.parametrize("verb", [("train", "--adapter", "full", "--device", "cpu"), ("data", "stats")], ids=" ".join)
def test_an_objective_that_leaves_out_cut_pairs_names_the_length_that_is_enough(
    cli: Cli, verb: tuple[str, ...]
) -> None:
    size = lengths(cli)
    room = size["whole"] - 5
    args = ("--max-length", str(room), "--set", "data.held_out=0")
    result = cli(*command(*verb, *args, objective="whole"))
    assert result.code == 5
    why = f"a prompt with its answer has {size['whole']} tokens, more than data.max_length={room}"
    assert f"error: the objective does not train on the only training row: rows.jsonl:1: {why}\n" in result.stderr
    assert f"hint: --max-length {size['whole']}\n" in result.stderr


def test_an_answer_with_reasoning_only_is_named(cli: Cli) -> None:
    write({"prompt": "q", "chosen": "Yes.", "rejected": "<think>\nhm\n</think>\n"})
    result = cli(*command("data", "stats", "--set", "data.held_out=0"))
    assert (result.code, "rows.jsonl:1: empty turn: an answer that is empty" in result.stdout) == (5, True)


def test_pairs_are_trained_on_and_packed_whole(cli: Cli) -> None:
    write(*pairs(12), *ODD)
    settings = ("--max-length", "56", "--set", "train.packing=true", "--set", "train.sample_tokens=2")
    result = cli(
        *command("train", "--adapter", "full", "--device", "cpu", "--max-steps", "2", "--output", "run", *settings)
    )
    assert result.code == 0, result.stderr
    report = json.loads(Path("run/report.json").read_text(encoding="utf-8"))
    (rows,) = report["rows"]
    assert (rows["train"] + rows["held_out"], sum(rows["missing"].values()), report["steps"]) == (12, 3, 2)
    data = json.loads(Path("run/data.json").read_text(encoding="utf-8"))
    assert [s["name"] for s in data["rows"][0]["sequences"]] == ["prompt", "chosen", "rejected"]
    longest = data["lengths"]["train"]["max"]
    assert longest > 56  # a prompt with both of its answers
    shown = result.stdout + result.stderr
    assert f"11 rows in 11 sequences of at most {longest} tokens" in shown
    assert "3 left out (the answers are equal: 2, chosen_rating equals rejected_rating: 1)" in shown
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert "2 rows left out: the answers are equal" in page
