"""Time per token and memory by sequence length, batch, rank and vocabulary, compared with transformers.Trainer.

The model is a SmolLM3 with random weights, small except for its vocabulary. The rows are generated: every fourth has
the full sequence length, the others a quarter of it.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from speed_peers.contestants import OURS, PADDED
from speed_peers.job import MESSAGE, Job, tokenized_rows, write_rows
from speed_peers.measure import Result, run

STEPS = 4
TEMPLATE = (
    "{% for message in messages %}{{" + MESSAGE + "}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Point:
    length: int = 256
    batch: int = 4
    rank: int = 16
    vocabulary: int = 128256


AXES: dict[str, tuple[int, ...]] = {
    "length": (64, 256, 1024),
    "batch": (1, 4, 16),
    "rank": (4, 16, 64),
    "vocabulary": (8192, 49152, 128256),
}


def points() -> list[Point]:
    """All points that vary one axis and keep the others at their defaults, without duplicates."""
    return list(dict.fromkeys(replace(Point(), **{axis: v}) for axis, values in AXES.items() for v in values))


Pair = tuple[Result, Result]
"""The result of `smollm3 train` and that of transformers.Trainer."""


def growth(rounds: int, threads: int, out: Path | None) -> int:
    """Print a table of medians, and write all runs as JSON to `out`, if given."""
    print("| length | batch | rank | vocabulary | ms per token | Trainer | GB above floor | Trainer |")
    print("|---" * 8 + "|")
    found = []
    for point in points():
        pairs = measured(point, rounds, threads)
        floor = min(one.floor_gb for pair in pairs for one in pair)
        peaks = _medians(pairs, lambda r: r.peak_gb)
        numbers = (*_medians(pairs, lambda r: 1000 / r.speed), *(peak - floor for peak in peaks))
        cells = [*map(str, asdict(point).values()), *(f"{n:.2f}" for n in numbers)]
        print("| " + " | ".join(cells) + " |", flush=True)
        found.append({**asdict(point), "pairs": [[asdict(one) for one in pair] for pair in pairs]})
        if out:
            out.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def _medians(pairs: Sequence[Pair], get: Callable[[Result], float]) -> tuple[float, float]:
    ours, theirs = zip(*pairs, strict=True)
    return statistics.median(map(get, ours)), statistics.median(map(get, theirs))


def measured(point: Point, rounds: int, threads: int) -> list[Pair]:
    """One pair of runs for each round, in alternating order. Raises SystemExit if they did not do the same job."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        _make_model(directory / "model", point.vocabulary)
        tokenizer = AutoTokenizer.from_pretrained(directory / "model")
        job = Job(
            model=str(directory / "model"), directory=str(directory / "job"), batch=point.batch, rank=point.rank,
            max_length=point.length,
        )  # fmt: skip
        write_rows(job, [_row(i, point.length) for i in range(STEPS * point.batch)])
        lengths = [len(r.ids) for r in tokenized_rows(job, tokenizer)]
        pairs = []
        for number in range(rounds):
            names = (OURS, PADDED) if number % 2 else (PADDED, OURS)
            found = {name: run(name, job, lengths, threads, Path(sys.executable)) for name in names}
            pairs.append((found[OURS], found[PADDED]))
    for ours, theirs in pairs:
        if abs(ours.losses[0] - theirs.losses[0]) > 1e-5 * theirs.losses[0] or ours.tokens != theirs.tokens:
            raise SystemExit(f"{point}: not the same job: {ours.losses}, {theirs.losses}")
    return pairs


def _row(number: int, length: int) -> dict[str, Any]:
    """A chat row with more tokens than fit, so that it is cut to its length."""
    words = length if number % 4 == 0 else length // 4
    answer = " ".join(f"word{(number * 7919 + i) % 997}" for i in range(words))
    if number % 4:
        answer = answer[: 2 * words]  # about two letters per token
    return {"messages": [{"role": "user", "content": "Say."}, {"role": "assistant", "content": answer}]}


def _make_model(directory: Path, vocabulary: int) -> None:
    """Write a SmolLM3 with random weights, the tokenizer of the embedded model and a plain ChatML template."""
    import torch
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    import smollm3_finetune

    config = SmolLM3Config(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=1,
        vocab_size=vocabulary, max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=1,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    SmolLM3ForCausalLM(config).save_pretrained(directory)
    for file in (Path(smollm3_finetune.__file__).parent / "builtin" / "tiny").glob("tokenizer*"):
        shutil.copy(file, directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
