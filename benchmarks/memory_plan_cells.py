"""The configurations whose memory `memory_plan.py` measures, their models and their rows."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MODELS = ("tiny", "smollm2", "smollm3-shaped")
QUANTIZERS = ("none", "bnb-4bit", "gptq", "hqq", "torchao-int8")
ADAPTERS = ("lora", "dora", "full")
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
BATCHES = (1, 2, 4, 8)
STEPS = 2

LONGEST = {"tiny": 2048, "smollm2": 1024, "smollm3-shaped": 4096}
MOST_TOKENS = {"tiny": 4096, "smollm2": 1024, "smollm3-shaped": 2048}
"""Tokens of the largest batch; twice as many with gradient checkpointing, except for SmolLM2, which takes minutes."""
WEIGHTS = {"tiny": 3, "smollm2": 1, "smollm3-shaped": 2}
"""How often each model comes about, relative to the others."""

WORD = " the"
"""A text of N of these words is N tokens in each of the tokenizers."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One configuration."""

    model: str
    quant: str
    adapter: str
    length: int
    batch: int
    checkpointing: bool
    packing: bool

    @property
    def key(self) -> str:
        extra = (" checkpointing" * self.checkpointing) + (" packing" * self.packing)
        return f"{self.model} {self.quant} {self.adapter} {self.length}x{self.batch}{extra}"

    @property
    def tokens(self) -> int:
        return self.length * self.batch

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def all_cells() -> list[Cell]:
    """Every configuration that exists and that this kind of machine can measure."""
    found = []
    for model, quant, adapter, length, batch, checkpointing, packing in itertools.product(
        MODELS, QUANTIZERS, ADAPTERS, LENGTHS, BATCHES, (False, True), (False, True)
    ):
        if adapter == "full" and quant != "none":
            continue  # quantized weights cannot be trained
        if quant == "gptq" and model != "tiny":
            continue  # minutes of calibration, which says nothing about training
        room = MOST_TOKENS[model] * (2 if checkpointing and model != "smollm2" else 1)
        if length > LONGEST[model] or length * batch > room:
            continue
        found.append(
            Cell(
                model=model, quant=quant, adapter=adapter, length=length, batch=batch,
                checkpointing=checkpointing, packing=packing,
            )
        )  # fmt: skip
    return found


def long_cells() -> list[Cell]:
    """The longest batch of SmolLM2, which takes minutes."""
    about: dict[str, Any] = {"model": "smollm2", "batch": 1, "checkpointing": True, "packing": False}
    return [Cell(quant="none", adapter="lora", length=2048, **about)]


def cost(cell: Cell) -> float:
    """The time of a configuration, roughly, to measure the quickest first."""
    each = {"tiny": 1.0, "smollm2": 100.0, "smollm3-shaped": 4.0}[cell.model]
    return each * cell.tokens * (1.4 if cell.checkpointing else 1.0) * (1 + cell.length / 4096)


def is_quick(cell: Cell) -> bool:
    """Whether it takes less than minutes."""
    return cell.model != "smollm2" or cell.tokens <= 512


def chosen(count: int, seed: int, cells: Iterable[Cell], without: Iterable[Cell] = ()) -> list[Cell]:
    """`count` of `cells` at random, such that the values of each factor come about equally often.

    Each next one is the best of twelve random ones: the one whose values have been chosen least often.
    """
    draw, taken, found = random.Random(seed), set(without), list[Cell]()
    counts: dict[tuple[str, Any], int] = {}
    pool = [cell for cell in cells if cell not in taken]

    def factors(cell: Cell) -> list[tuple[str, Any]]:
        about = cell.as_json()
        method = (about.pop("quant"), about.pop("adapter"))
        return [*about.items(), ("method", method)]

    def used(cell: Cell) -> float:
        return sum(counts.get(item, 0) / (WEIGHTS[cell.model] if item[0] == "model" else 2) for item in factors(cell))

    while pool and len(found) < count:
        best = min(draw.sample(pool, min(12, len(pool))), key=used)
        pool.remove(best)
        found.append(best)
        for item in factors(best):
            counts[item] = counts.get(item, 0) + 1
    return found


def write_shaped_model(directory: Path) -> Path:
    """Write a random model that has SmolLM3's architecture and its 128,256 tokens, with four narrow layers."""
    import torch
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    if (directory / "model.safetensors").is_file():
        return directory
    config = SmolLM3Config(
        vocab_size=128256, hidden_size=64, intermediate_size=192, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, no_rope_layers=[1, 1, 1, 0], max_position_embeddings=8192,
        bos_token_id=0, eos_token_id=4, pad_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = SmolLM3ForCausalLM(config)
    model.save_pretrained(directory)
    import smollm3_finetune

    embedded = Path(smollm3_finetune.__file__).parent / "builtin" / "tiny"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(embedded / name, directory / name)
    return directory


def write_rows(file: Path, cell: Cell, added: int) -> None:
    """Write rows of which every batch has exactly `cell.length` × `cell.batch` tokens, all of them supervised.

    With packing, four rows fill a sequence. A row has `added` tokens beside its text.
    """
    words = cell.length // (4 if cell.packing else 1) - added
    count = STEPS * cell.batch * (4 if cell.packing else 1)
    with file.open("w", encoding="utf-8") as stream:
        for _ in range(count):
            stream.write(json.dumps({"text": WORD * words}) + "\n")
