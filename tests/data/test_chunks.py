"""Raw text longer than the maximum length: every token is a target exactly once, in chunks of one row."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.api import IGNORE_INDEX, Conversation, NoOptions
from smollm3_finetune.builtin.tiny_loader import TinyLoader
from smollm3_finetune.cache.store import Cache
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import OBJECTIVE
from smollm3_finetune.components.selection import choose
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.data.rows import Rows, with_formatter
from smollm3_finetune.data.sources import find_sources
from smollm3_finetune.data.tokenization import Tokens, tokenize
from smollm3_finetune.progress import Silent
from smollm3_finetune.testing import context

Make = Callable[..., Tokens]


@pytest.fixture
def renderer(tmp_path: Path) -> Renderer:
    return Renderer(TinyLoader(NoOptions()).open("tiny", context(tmp_path)).tokenizer())


@pytest.fixture
def make(renderer: Renderer, tmp_path: Path) -> Make:
    """Tokens of the rows of a file."""
    registry = discover(PluginSelection.of([], no_plugins=True))

    def made(*rows: Any, max_length: int = 64, held_out: float = 0.0, chunk: bool = True, weight: float = 1) -> Tokens:
        Path("rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        (source,) = find_sources({"path": "rows.jsonl", "weight": weight})
        all_rows = Rows(sources=(with_formatter(registry, source, None, None),), seed=0, held_out=held_out)
        objective, cache = choose(registry, OBJECTIVE, "sft", {}), Cache(tmp_path / "cache")
        return tokenize(all_rows, all_rows.survey(), objective, renderer, max_length, cache, Silent(), chunk=chunk)

    return made


def text(seed: int, words: int) -> dict[str, str]:
    numbers = random.Random(seed)
    return {"text": f"{seed}: " + " ".join(str(numbers.randrange(10**6)) for _ in range(words))}


def items(examples: Any) -> list[dict[str, list[int]]]:
    return [examples[i] for i in range(len(examples))]


def targets(chunk: dict[str, list[int]]) -> list[int]:
    """The tokens that the loss of a chunk predicts: its first token is never one of them."""
    return [label for label in chunk["labels"][1:] if label != IGNORE_INDEX]


@pytest.mark.parametrize("max_length", [8, 9, 64, 1000])
def test_every_token_of_a_long_text_is_a_target_exactly_once(max_length: int, make: Make, renderer: Renderer) -> None:
    row = text(1, 100)
    whole = renderer.encode(Conversation(text=row["text"]), 10**9).input_ids
    end = renderer.tokenizer.eos_token_id
    assert len(whole) > 200 and whole[-1] == end and end not in whole[:-1]
    tokens = make(row, max_length=max_length)
    chunks = items(tokens.train)
    assert all(len(c["input_ids"]) <= max_length for c in chunks)
    assert [t for c in chunks for t in targets(c)] == whole[1:]
    assert all(len(c["input_ids"]) == max_length for c in chunks[:-1])
    for before, after in itertools.pairwise(chunks):  # the only token that two chunks share is context
        assert after["input_ids"][0] == before["input_ids"][-1]
        assert after["labels"][0] == IGNORE_INDEX


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_only_text_longer_than_the_maximum_is_split(extra: int, make: Make, renderer: Renderer) -> None:
    row = text(2, 30)
    length = len(renderer.encode(Conversation(text=row["text"]), 10**9).input_ids)
    tokens = make(row, max_length=length + extra)
    assert len(tokens.train) == (2 if extra < 0 else 1)
    (counts,) = tokens.counts
    assert (counts.train, counts.chunks, dict(counts.notes)) == ((1, 2, {"chunked": 1}) if extra < 0 else (1, 0, {}))


def test_the_end_token_is_in_the_last_chunk_only_and_no_begin_token_is_added(make: Make, renderer: Renderer) -> None:
    chunks = items(make(text(3, 200)).train)
    end, begin = renderer.tokenizer.eos_token_id, renderer.tokenizer.bos_token_id
    assert [c["input_ids"].count(end) for c in chunks] == [0] * (len(chunks) - 1) + [1]
    assert targets(chunks[-1])[-1] == end
    if begin is not None and begin != end:
        assert not any(begin in c["input_ids"] for c in chunks)


def test_the_chunks_of_a_row_are_on_one_side_of_the_split_and_counted(make: Make, renderer: Renderer) -> None:
    rows = [text(n, 60 + n) for n in range(20)]
    tokens = make(*rows, held_out=0.3)
    (counts,) = tokens.counts
    assert counts.train + counts.held_out == len(rows)
    assert counts.held_out > 2
    assert counts.notes["chunked"] == len(rows)
    assert counts.chunks == len(tokens.train) + len(tokens.held_out[0]) > 3 * len(rows)
    train, held_out = (Counter(t for c in items(e) for t in targets(c)) for e in (tokens.train, tokens.held_out[0]))
    expected: Counter[int] = Counter()
    for row in rows:
        expected.update(renderer.encode(Conversation(text=row["text"]), 10**9).input_ids[1:])
    assert train + held_out == expected


def test_a_weight_repeats_all_chunks_of_a_row(make: Make) -> None:
    rows = [text(4, 100)]
    once, twice = items(make(*rows).train), items(make(*rows, weight=2).train)
    assert twice == once * 2


def test_cut_keeps_the_beginning_only(make: Make, renderer: Renderer) -> None:
    row = text(5, 100)
    tokens = make(row, chunk=False)
    (only,) = items(tokens.train)
    assert only["input_ids"] == renderer.encode(Conversation(text=row["text"]), 10**9).input_ids[:64]
    assert (tokens.counts[0].chunks, dict(tokens.counts[0].notes)) == (0, {"cut": 1})
    assert make(row).identity != tokens.identity, "a resumed run does not mix the two"


def test_conversations_are_cut_not_split(make: Make) -> None:
    long = {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "word " * 300}]}
    tokens = make(long)
    assert len(tokens.train) == 1
    assert dict(tokens.counts[0].notes) == {"cut": 1}


PLUGIN = """
from smollm3_finetune.api import NoOptions, ObjectiveSpec, hookimpl
from smollm3_finetune.builtin.sft import SupervisedFineTuning

class Lengths(SupervisedFineTuning):
    def prepare(self, conversation, renderer, max_length):
        renderer.note("seen")
        encoded = renderer.encode(conversation, max_length)
        return {"input_ids": encoded.input_ids, "lengths": [len(encoded.input_ids)]}

@hookimpl
def smollm3_objectives():
    return [ObjectiveSpec(name="lengths", summary="lengths", factory="lengths:Lengths", api=2)]
"""


def test_an_objective_of_a_plugin_gets_each_chunk_and_its_notes_count_rows(cli: Any, plugin_file: Any) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(text(n, 60)) + "\n" for n in range(4)), encoding="utf-8")
    plugin = str(plugin_file("lengths", PLUGIN))
    args = ("--data", "rows.jsonl", "--max-length", "64", "-p", plugin, "--objective", "lengths")
    shown = cli("data", "stats", "--json", *args)
    (source,) = json.loads(shown.stdout)["sources"]
    assert source["notes"] == {"chunked": 4, "seen": 4}
    assert source["chunks"] > 8
    assert source["tokens_cut"] == 0


def test_preview_and_stats_show_the_chunks(cli: Any) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(text(n, 200)) + "\n" for n in range(2)), encoding="utf-8")
    args = ("--data", "rows.jsonl", "--max-length", "64", "--set", "data.held_out=0")
    out = cli("data", "preview", "--rows", "1", *args).stdout
    (source,) = json.loads(cli("data", "stats", "--json", *args).stdout)["sources"]
    assert (source["rows"], source["train"], source["cut"], source["tokens_cut"]) == (2, 2, 0, 0)
    count = source["chunks"]
    assert f"  chunked   2 rows of long text into {count} chunks of at most 64 tokens\n" in out
    assert "chunk 1 of " in out and "chunk 3 of " in out and "chunk 4 of " not in out
    assert " more chunks" in out
    assert "rows longer than 64 are chunked" in out
    (cut,) = json.loads(cli("data", "stats", "--json", *args, "--set", "data.long_text=cut").stdout)["sources"]
    assert (cut["chunks"], cut["cut"]) == (0, 2)
    assert cut["tokens_cut"] > 0


def test_a_run_trains_on_all_chunks_and_reports_them(cli: Any) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(text(n, 60)) + "\n" for n in range(4)), encoding="utf-8")
    args = ("--data", "rows.jsonl", "--max-length", "64", "--adapter", "full", "--batch-size", "4", "--epochs", "1")
    done = cli("train", *args, "--set", "train.sample_tokens=1", "--json")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    (rows,) = report["rows"]
    assert (rows["train"], rows["held_out"]) == (3, 1)
    assert rows["chunks"] > 8
    assert f"chunked: 4 (into {rows['chunks']} chunks)" in done.stderr
    assert report["steps"] > 1, "a pass is over chunks"


def test_the_chunks_of_a_held_out_text_are_one_row_of_the_verdict(cli: Callable[..., Any], make: Make) -> None:
    rows = [text(seed, 2) for seed in range(30)] + [text(seed, 40) for seed in range(30, 40)]
    tokens = make(*rows, max_length=32, held_out=0.5)
    for _ in range(2):  # built, then from the cache
        (counts,), (examples,) = tokens.held_out_rows, tokens.held_out
        assert (len(counts), sum(counts)) == (tokens.counts[0].held_out, len(examples))
        assert max(counts) > 2 and min(counts) == 1
        tokens = make(*rows, max_length=32, held_out=0.5)
    report = cli(
        *("train", "--data", "rows.jsonl", "--set", "data.max_length=32", "--set", "data.held_out=0.5"),
        *("--adapter", "full", "--max-steps", "2", "--set", "train.sample_tokens=1", "--output", "run", "--json"),
    ).report()
    assert report["comparison"]["rows"] == report["rows"][0]["held_out"] == len(counts)
    evaluated = cli("eval", "run", "--answers", "0", "--no-null-adapter", "--overlap", "keep", "--json").report()
    assert evaluated["comparison"]["rows"] == len(counts)
    for name in ("difference", "low", "high"):
        assert evaluated["comparison"][name] == pytest.approx(report["comparison"][name], rel=1e-3)
