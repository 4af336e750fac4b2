"""Random models of a given shape, written layer by layer, and conversations of a given length.

The tokenizer is that of the built-in model, whose 2048 tokens are the first rows of a larger vocabulary. Random weights
take as long and as much memory as trained ones.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from speed_peers.job import MESSAGE

BUILT_IN = Path(__file__).parents[1] / "smollm3_finetune" / "builtin"
TEMPLATE = (
    "{% for message in messages %}{{"
    + MESSAGE
    + "}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STD = 0.02


@dataclass(frozen=True, kw_only=True)
class Shape:
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        head = self.width // self.heads
        attention = 2 * self.width * head * (self.heads + self.kv_heads)
        return self.vocabulary * self.width + self.layers * (attention + 3 * self.width * self.inner)


SMOLLM3 = Shape(layers=36, width=2048, inner=11008, heads=16, kv_heads=4, vocabulary=128256)
"""SmolLM3-3B."""
SMALL = Shape(layers=30, width=576, inner=1536, heads=9, kv_heads=3, vocabulary=49152)
"""SmolLM2-135M."""
SHRUNKEN = Shape(layers=4, width=128, inner=256, heads=2, kv_heads=1, vocabulary=2048)
"""What a rehearsal on a CPU takes for both."""


def write_model(shape: Shape, directory: Path, dtype: str) -> Path:
    """Write a SmolLM3 with random weights, a file for each layer, so that only one layer is in memory."""
    import torch
    from safetensors.torch import save_file

    shutil.copytree(
        BUILT_IN / "tiny", directory, ignore=shutil.ignore_patterns("*.safetensors", "*.json.index", "README.md")
    )
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config |= {
        "hidden_size": shape.width, "intermediate_size": shape.inner, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.width // shape.heads, "vocab_size": shape.vocabulary, "max_position_embeddings": 4096,
        "no_rope_layers": [int((i + 1) % 4 != 0) for i in range(shape.layers)],
        "layer_types": ["full_attention"] * shape.layers, "tie_word_embeddings": True,
        "dtype": dtype, "torch_dtype": dtype,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (directory / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}
    for number, shapes in enumerate(_pieces(shape)):
        file = f"model-{number:05}.safetensors"
        made = {
            name: torch.ones(size, dtype=getattr(torch, dtype)) if len(size) == 1
            else (STD * torch.randn(size, generator=generator)).to(getattr(torch, dtype))
            for name, size in shapes.items()
        }  # fmt: skip
        save_file(made, str(directory / file), metadata={"format": "pt"})
        places |= dict.fromkeys(made, file)
    index = {"metadata": {}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return directory


def _pieces(shape: Shape) -> Iterator[dict[str, tuple[int, ...]]]:
    """The tensors of each file."""
    head = shape.width // shape.heads
    yield {"model.embed_tokens.weight": (shape.vocabulary, shape.width), "model.norm.weight": (shape.width,)}
    for i in range(shape.layers):
        linear = {
            "self_attn.q_proj": (shape.heads * head, shape.width),
            "self_attn.k_proj": (shape.kv_heads * head, shape.width),
            "self_attn.v_proj": (shape.kv_heads * head, shape.width),
            "self_attn.o_proj": (shape.width, shape.heads * head),
            "mlp.gate_proj": (shape.inner, shape.width),
            "mlp.up_proj": (shape.inner, shape.width),
            "mlp.down_proj": (shape.width, shape.inner),
        }
        norms = dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (shape.width,))
        yield {f"model.layers.{i}.{n}.weight": size for n, size in {**linear, **norms}.items()}


def conversations(count: int, tokens: int) -> list[dict[str, Any]]:
    """Rows of the built-in chat dataset, joined to conversations of more than `tokens` tokens each."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BUILT_IN / "tiny")
    lines = (BUILT_IN / "chat.jsonl").read_text(encoding="utf-8").splitlines()
    turns = [m for line in lines for m in json.loads(line)["messages"] if m["role"] in ("user", "assistant")]
    pairs = [(a, b) for a, b in pairwise(turns) if (a["role"], b["role"]) == ("user", "assistant")]
    lengths = [len(tokenizer(a["content"] + b["content"]).input_ids) for a, b in pairs]
    found, at = [], 0
    for _ in range(count):
        messages: list[Any] = []
        length = 0
        while length <= tokens:
            messages += pairs[at % len(pairs)]
            length += lengths[at % len(pairs)]
            at += 1
        found.append({"messages": messages})
    return found
