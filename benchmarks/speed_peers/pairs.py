"""The job of `benchmarks/preference.py`: pairs of answers, `smollm3 train --objective dpo` and `trl dpo`.

The settings are those of `job`. Both tools read the same model directory, with the weights and the tokenizer of the
given one and a chat template that ends after the last turn, without the line break of SmolLM2's template: trl trains on
that line break and `smollm3` does not, so that their losses would differ by it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from speed_peers.contestants import train_command, trl_arguments
from speed_peers.job import Job, chat, write_order
from speed_peers.measure import Observed, Result, observed

OURS, TRL = "smollm3 train --objective dpo", "trl dpo"
NAMES = (OURS, TRL)
BETA = 0.1
TEMPLATE = (
    "{% for message in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = 3
"""The prompt of a pair has one to so many earlier questions with their answers, and the question."""


@dataclass(frozen=True)
class Lengths:
    """The tokens of a pair."""

    prompt: int
    """The tokens that both answers have in common at their start."""
    chosen: int
    rejected: int

    @property
    def shared(self) -> int:
        """Positions, if the prompt is computed once."""
        return self.prompt + self.chosen + self.rejected

    @property
    def separate(self) -> int:
        """Positions, if the prompt is computed with each answer, without padding."""
        return self.shared + self.prompt

    @property
    def longest(self) -> int:
        return self.prompt + max(self.chosen, self.rejected)


@dataclass(frozen=True, kw_only=True)
class PairResult(Result):
    """The result of a run on pairs. The counts of tokens and positions are those of the model and its reference."""

    pairs: int
    """Pairs in all steps except the first."""
    gradients: list[float] = field(default_factory=list)
    """The norm of the gradient at each step."""
    margins: list[float] = field(default_factory=list)
    parameters: int = 0
    """Parameters in memory at the first step."""

    @property
    def speed(self) -> float:
        """Pairs per second of processor time, in all steps except the first."""
        return self.pairs / self.step_cpu


def make_model(model: Path, directory: Path) -> None:
    """The model directory of the job: links to the files of `model`, and its own chat template."""
    directory.mkdir(parents=True)
    for file in model.iterdir():
        if file.name != "chat_template.jinja":
            (directory / file.name).symlink_to(file.resolve())
    (directory / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


def pairs(alpaca: Path) -> list[dict[str, Any]]:
    """Pairs of chat rows: the earlier turns and the question, its answer, and the answer of the next pair's question.

    Each row of the file is used once as a turn or as a question, in the order of the file.
    """
    chats = [chat(row)["messages"] for row in json.loads(alpaca.read_text(encoding="utf-8"))]
    asked, start = [], 0
    for number in range(len(chats)):
        end = start + 1 + number % TURNS
        if end >= len(chats):
            break
        prompt = [message for turn in chats[start:end] for message in turn]
        asked.append(([*prompt, chats[end][0]], chats[end][1]))
        start = end + 1
    return [
        {"prompt": prompt, "chosen": [answer], "rejected": [other]} for (prompt, answer), (_, other) in pairwise(asked)
    ]


def lengths_of(pair: dict[str, Any], tokenizer: Any) -> Lengths:
    both = [
        tokenizer.apply_chat_template(pair["prompt"] + pair[answer], tokenize=True, return_dict=True)["input_ids"]
        for answer in ("chosen", "rejected")
    ]
    asked = tokenizer.apply_chat_template(
        pair["prompt"], tokenize=True, return_dict=True, add_generation_prompt=True
    )["input_ids"]  # fmt: skip
    prompt = sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, zip(asked, *both, strict=False)))
    return Lengths(prompt, *(len(ids) - prompt for ids in both))


def write(job: Job, model: Path, alpaca: Path, count: int) -> list[Lengths]:
    """Write the model directory and the files of the job; returns the lengths of the pairs in training order.

    The pairs are the first `count` of which no answer exceeds the maximum length, so that none is cut. The shortest
    ones of all come first: the first step is not counted.
    """
    from transformers import AutoTokenizer

    make_model(model, Path(job.model))
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    found: list[tuple[Lengths, dict[str, Any]]] = []
    for pair in pairs(alpaca):
        if len(found) == count:
            break
        if (lengths := lengths_of(pair, tokenizer)).longest <= job.max_length:
            found.append((lengths, pair))
    first = sorted(range(len(found)), key=lambda i: found[i][0].shared)[: job.batch]
    found = [*(found[i] for i in first), *(one for i, one in enumerate(found) if i not in first)]
    write_order(Path(job.directory), [pair for _, pair in found])
    return [lengths for lengths, _ in found]


def command(name: str, job: Job, output: Path, python_trl: Path) -> list[str]:
    """The command line to run; it writes to `output`, which must not exist."""
    if name == OURS:
        dpo = ("--objective", "dpo", "--objective-opt", f"beta={BETA}")
        return [sys.executable, "-m", "smollm3_finetune.main", *train_command(job, output, {}, job.batch), *dpo]
    own = ("--beta", str(BETA), "--loss_type", "sigmoid", "--max_length", str(job.max_length))
    return [str(python_trl.with_name("trl")), "dpo", *trl_arguments(job, output, job.batch), *own]


def run(
    name: str, job: Job, lengths: Sequence[Lengths], threads: int, python_trl: Path, *, profiled: bool = False
) -> PairResult:
    """Run one contestant and measure it."""
    more = {"SPEED_PARAMETERS": "1"}
    with observed(name, lambda out: command(name, job, out, python_trl), threads, profiled=profiled, more=more) as seen:
        return _result(job, lengths, seen)


def _result(job: Job, lengths: Sequence[Lengths], seen: Observed) -> PairResult:
    logs = [entry for entry in seen.logs() if "loss" in entry]
    margin = "margin" if seen.name == OURS else "rewards/margins"
    profiled = [lengths[m["step"] * job.batch :][: job.batch] for m in seen.of("profile")]
    return PairResult(
        **seen.fields(),
        tokens=sum(one.separate for one in lengths),
        losses=[entry["loss"] for entry in logs],
        step_tokens=sum(one.separate for one in lengths[job.batch :]),
        profile_tokens=sum(map(len, profiled)),
        pairs=len(lengths) - job.batch,
        gradients=[entry["grad_norm"] for entry in logs],
        margins=[entry[margin] for entry in logs],
        parameters=seen.of("parameters")[0]["count"],
    )
