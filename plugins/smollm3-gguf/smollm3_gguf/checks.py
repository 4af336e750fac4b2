"""The gates of an exported file that need nothing but its metadata and its source."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from smollm3_finetune.api import BuildContext, Check, Exported, open_checkpoint, read_json
from smollm3_gguf.architectures import implied_config
from smollm3_gguf.check_template import check_stops, check_template
from smollm3_gguf.check_tokens import check_tokens
from smollm3_gguf.check_weights import check_weights
from smollm3_gguf.families import settled
from smollm3_gguf.reading import open_gguf
from smollm3_gguf.vocabulary import vocabulary_in

COMPUTING = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "attention_bias", "mlp_bias",
    "no_rope_layers",
)  # fmt: skip
"""Values of a config that decide what the model computes."""


def check_file(subject: Exported, file: Path, option: str, fuzzed: int, ctx: BuildContext) -> list[Check]:
    """Compare a written file with its source: weights, config, tokens, chat template, stop tokens."""
    header = open_gguf(file)
    source, config = open_checkpoint(subject.model), subject.model.config
    vocabulary, tokenizer = vocabulary_in(header), subject.model.tokenizer()
    return [
        check_weights(source, config, file, header, option, ctx.progress),
        check_config_of(file, subject),
        check_tokens(vocabulary, tokenizer, subject.texts(), fuzzed, ctx.progress),
        check_template(vocabulary, tokenizer),
        check_stops(vocabulary, stops_of(subject), tokenizer),
    ]


def check_config_of(file: Path, subject: Exported) -> Check:
    """See that the metadata imply the config of the source: sizes, norms, RoPE."""
    from smollm3_gguf.header import read_header
    from smollm3_gguf.tensors import read_tensor

    with file.open("rb") as stream:
        header = read_header(stream)
    implied = implied_config(header, "float32", file.name, lambda name: read_tensor(file, header, name))
    found, expected = settled(implied), settled(subject.model.config)
    for key in COMPUTING:
        ours, theirs = expected.get(key), found.get(key)
        if key == "rope_parameters":
            ours, theirs = _plain(ours), _plain(theirs)
        if key == "no_rope_layers" and ours is not None:
            ours = list(ours)[: expected["num_hidden_layers"]]
        if key in expected and not _same(ours, theirs):
            says = f"{key} is {theirs!r:.120} according to the file, but {ours!r:.120} in the model"
            return Check(name="config", passed=False, says=says)
    return Check(name="config", passed=True, says="sizes, norms and RoPE that the file states are the model's")


def _same(a: Any, b: Any) -> bool:
    """Whether two values are equal; numbers up to the float32 of the file."""
    if isinstance(a, dict) and isinstance(b, dict):
        return set(a) == set(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-6)
    return bool(a == b)


def _plain(rope: Any) -> dict[str, Any]:
    """RoPE parameters without values that are the default anyway."""
    neutral = {"beta_fast": 32.0, "beta_slow": 1.0, "partial_rotary_factor": 1.0, "truncate": True}
    return {k: v for k, v in (rope or {}).items() if v is not None and neutral.get(k) != v}


def generation_of(subject: Exported) -> dict[str, Any]:
    """The generation config of the exported model; empty if it has none."""
    file = subject.model.path / "generation_config.json"
    return read_json(file) if file.is_file() else {}


def stops_of(subject: Exported) -> list[int]:
    """The stop tokens of the exported model: of its generation config, otherwise of its config."""
    stated = generation_of(subject).get("eos_token_id")
    if stated is None:
        stated = subject.model.config.get("eos_token_id")
    found = stated if isinstance(stated, list) else [stated]
    return [i for i in found if isinstance(i, int)]
