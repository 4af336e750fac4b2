"""`CommandTools.rows` and `source`: the rows and the tokenizer of a model, as `data stats` and `train` have them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.api.data import IGNORE_INDEX
from smollm3_finetune.cli.tools import Tools
from smollm3_finetune.errors import ConfigError, DataError, ModelError, SmolLM3Error

Cli = Callable[..., Any]
EXAMPLE = Path(__file__).parents[2] / "examples" / "lengths_command.py"
QUESTION = {"role": "user", "content": "What is 2 + 2?"}
ROWS: Mapping[str, list[dict[str, Any]]] = {
    "messages": [
        {"messages": [QUESTION, {"role": "assistant", "content": "It is 4."}]},
        {"messages": [QUESTION, {"role": "assistant", "content": "<think>\n2 + 2\n</think>\n\nIt is 4."}] * 2},
        {"messages": [QUESTION, {"role": "assistant", "content": "four " * 90}]},
        {"messages": [{"role": "user", "content": "long " * 90}, {"role": "assistant", "content": "Yes."}]},
    ],
    "alpaca": [
        {"instruction": "Add the numbers.", "input": "2, 3", "output": "5"},
        {"instruction": "Say hello.", "input": "", "output": "Hello."},
    ],
    "labels": [
        {"prompt": "1 + 1?", "completion": "It is 2.", "label": True},
        {"prompt": "2 + 2?", "completion": "It is 5.", "label": False},
    ],
    "text": [{"text": "one two three"}, {"text": "four five six " * 60}],
}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def data(isolated: Path) -> list[str]:
    """A source of each kind, in the order of `ROWS`."""
    return [write(isolated / f"{name}.jsonl", rows) for name, rows in ROWS.items()]


def counts(tools: Tools, data: Any, **settings: Any) -> dict[str, Any]:
    """What `data stats` counts, from the rows of `tools`."""
    rows = list(tools.rows(data, **settings))
    return {
        "rows": len(rows),
        "kept": sum(not row.left_out for row in rows),
        "tokens": sum(row.tokens for row in rows),
        "supervised": sum(row.supervised for row in rows),
        "longest": max(row.length for row in rows),
    }


def stated(cli: Cli, *args: str) -> dict[str, Any]:
    """The same from `smollm3 data stats`."""
    report = cli("data", "stats", "--json", *args).report()
    total = report["total"]
    return {
        "rows": total["rows"],
        "kept": total["train"] + total["held_out"],
        "tokens": total["tokens"],
        "supervised": total["tokens_supervised"],
        "longest": max(source["length"]["max"] for source in report["sources"]),
    }


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_length": 96}, {"max_length": 96, "long_text": "cut", "history": "strip", "enable_thinking": False}],
    ids=["default", "short", "cut"],
)
def test_rows_have_the_counts_of_data_stats(cli: Cli, data: list[str], settings: dict[str, Any]) -> None:
    flags = [word for path in data for word in ("--data", path)]
    flags += [word for name, value in settings.items() for word in ("--set", f"data.{name}={json.dumps(value)}")]
    assert counts(Tools("mine"), data, model="tiny", **settings) == stated(cli, "--model", "tiny", *flags)


def test_each_formatter_gives_the_counts_of_data_stats(cli: Cli, data: list[str]) -> None:
    all_train = ("--set", "data.held_out=0")
    for path in data:
        assert counts(Tools("mine"), path, model="tiny") == stated(cli, "--data", path, *all_train), path


def test_a_row_has_its_conversation_its_tokens_and_the_mask(data: list[str]) -> None:
    tools = Tools("mine")
    template = Path("dated.jinja")
    template.write_text(
        "{{ strftime_now('%d %B %Y') }}\n{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    first, *_, last = tools.rows(data[0], model="tiny", max_length=96, template=template, date="2026-02-03")
    tokenizer = tools.source("tiny").tokenizer()
    assert first.where.endswith("messages.jsonl:1") and first.conversation.messages[0] == QUESTION
    encoded = first.sequences[""]
    assert tokenizer.decode(encoded.input_ids).startswith("03 February 2026")
    trained = [label for label in encoded.labels if label != IGNORE_INDEX]
    assert (len(encoded.input_ids), len(trained)) == (first.tokens, first.supervised)
    assert tokenizer.decode(trained).startswith("It is 4.")
    assert "past data.max_length=96" in last.left_out and (last.tokens, last.supervised) == (0, 0)
    assert last.length > len(last.sequences[""].input_ids) == 96
    *_, chunked = tools.rows(data[3], model="tiny", max_length=96)
    assert next(iter(chunked.sequences)) == f"chunk 1 of {len(chunked.sequences)}"
    assert chunked.tokens == sum(len(s.input_ids) for s in chunked.sequences.values())


def test_rows_without_a_model_import_no_torch(data: list[str]) -> None:
    code = (
        "import sys; from smollm3_finetune.cli.tools import Tools\n"
        "rows = [*Tools('mine').rows(sys.argv[1:])]\n"
        "print(len(rows), [r.left_out[:18] for r in rows if r.left_out], rows[0].sequences)\n"
        "print(sorted({'torch', 'transformers'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code, *data], capture_output=True, text=True, check=False)
    assert done.stdout == "10 ['its label is false'] {}\n[]\n", done.stderr


def test_rows_are_read_when_they_are_reached(isolated: Path) -> None:
    path = isolated / "rows.jsonl"
    write(path, ROWS["alpaca"])
    path.write_text(path.read_text() + '{"instruction": 5}\n')
    rows = Tools("mine").rows(path)
    assert [next(rows).conversation.messages[0]["role"] for _ in range(2)] == ["user", "user"]
    with pytest.raises(DataError, match=r"rows\.jsonl:3"):
        next(rows)


@pytest.mark.parametrize(
    ("settings", "problem", "hint"),
    [
        ({"max_lenght": 8}, "rows(): unknown setting 'max_lenght'", "did you mean 'max_length'?"),
        ({"max_length": 1}, "max_length", None),
        ({"formatter": "alpacca"}, "alpacca", "did you mean 'alpaca'?"),
        ({"model": "no-such-model"}, "no-such-model", None),
        ({"data": "gone/rows.jsonl"}, "gone", "smollm3 data stats --data FILE.jsonl"),
    ],
)
def test_wrong_settings_are_refused_in_the_call(
    data: list[str], settings: dict[str, Any], problem: str, hint: str | None
) -> None:
    with pytest.raises(SmolLM3Error) as caught:
        Tools("mine").rows(**{"data": data, **settings})
    assert problem in caught.value.message and (hint is None or caught.value.hint == hint)


def test_what_a_formatter_prints_is_not_in_the_result(
    isolated: Path, plugin_file: Callable[[str, str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = plugin_file(
        "talks",
        "from smollm3_finetune.api import Conversation, FormatterSpec, hookimpl\n"
        "@hookimpl\n"
        "def smollm3_formatters():\n"
        "    return [FormatterSpec(name='talks', summary='Talks.', factory='talks:make', api=2)]\n"
        "def make(options):\n"
        "    return lambda row: print('noise') or Conversation(text=row['text'])\n",
    )
    tools = Tools("mine", plugins=(str(plugin),))
    for row in tools.rows(write(isolated / "rows.jsonl", ROWS["text"]), formatter="talks"):
        tools.print(row.conversation.text[:4] if row.conversation.text else "")
    assert capsys.readouterr().out == "one \nfour\n"


def test_the_example_of_the_documentation_counts_tokens(cli: Cli, data: list[str]) -> None:
    first, *others = cli("-p", EXAMPLE, "lengths", data[0]).stdout.splitlines()
    (row, *_) = Tools("mine").rows(data[0], model="tiny")
    assert first == f"{data[0]}:1  {row.length} tokens, {row.supervised} trained on" and len(others) == 3
    assert cli("-p", EXAMPLE, "lengths", "--longer", row.length, data[0]).stdout.splitlines() == others
    assert cli("-p", EXAMPLE, "lengths", "none.jsonl").code == 5


# -------------------------------------------------------------------------------------- source


def test_a_source_reads_no_weights(model_directory: Path) -> None:
    tools = Tools("mine")
    tools.source("tiny").tokenizer().save_pretrained(model_directory)  # its weight file is invalid
    source = tools.source(model_directory)
    assert source.path.samefile(model_directory) and source.config["model_type"] == "smollm3"
    assert len(source.tokenizer()("Hello there.")["input_ids"]) > 1
    with pytest.raises(ConfigError, match=r"source\(\): unknown setting 'quant'"):
        tools.source("tiny", quant="none")
    with pytest.raises(ModelError, match="no-such-model"):
        tools.source("no-such-model")


def test_a_run_has_its_base_and_its_own_tokenizer(cli: Cli, data: list[str]) -> None:
    tools = Tools("mine")
    rows = {"path": data[1], "held_out": 0, "add_tokens": ["<tool>"]}
    tools.train({"adapter": "full", "device": "cpu", "data": rows, "output": "runs/a",
                 "train": {"max_steps": 1, "sample_tokens": 2}})  # fmt: skip
    source, base = tools.source("runs/a"), tools.source("tiny")
    assert (source.ref, source.config, source.fingerprint) == ("tiny", base.config, base.fingerprint)
    (token,) = source.tokenizer()("<tool>", add_special_tokens=False)["input_ids"]
    assert len(base.tokenizer()("<tool>", add_special_tokens=False)["input_ids"]) > 1
    marked = write(Path("marked.jsonl"), [{"text": "<tool> one"}, {"text": "two <tool>"}])
    assert counts(tools, marked, model="runs/a") == stated(cli, "--from", "runs/a", "--data", marked)
    assert token in next(tools.rows(marked, model="runs/a")).sequences[""].input_ids
    with pytest.raises(ConfigError, match="--loader cannot be used with the run"):
        tools.source("runs/a", loader="hf")
