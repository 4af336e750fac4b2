"""The metadata of an exported file: sizes, RoPE, the tokenizer, sampling defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smollm3_gguf.families import family_of, settled
from smollm3_gguf.rope import llama3_factors
from smollm3_gguf.sampling import sampling_of

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter

    from smollm3_gguf.vocabulary import Vocabulary

FILE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "bf16": 32,
}  # fmt: skip
"""`general.file_type` of the types that are written here."""


def add_sizes(writer: GGUFWriter, source_config: Mapping[str, Any], name: str, option: str) -> None:
    """State what the model computes. `source_config` passed `check_config`."""
    config = settled(source_config)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES.get(option, FILE_TYPES["f32"]))
    writer.add_quantization_version(2)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    rope = config.get("rope_parameters") or {}
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    if family_of(source_config).architecture == "smollm3":
        _note_nope(writer)
    _add_scaling(writer, rope, config["max_position_embeddings"])


def _note_nope(writer: GGUFWriter) -> None:
    """State for readers what GGUF has no key for."""
    writer.add_description("RoPE is not used in every fourth layer (3, 7, 11, ...), as llama.cpp's smollm3 computes.")


def _add_scaling(writer: GGUFWriter, rope: Mapping[str, Any], context: int) -> None:
    from gguf import Keys, RopeScalingType

    kind = rope.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if kind == "yarn":
        original, factor = rope.get("original_max_position_embeddings") or context, float(rope["factor"])
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(factor)
        writer.add_rope_scaling_orig_ctx_len(int(original))
        for key, add in (("beta_fast", "fast"), ("beta_slow", "slow")):
            if rope.get(key) is not None:
                getattr(writer, f"add_rope_scaling_yarn_beta_{add}")(float(rope[key]))
        if rope.get("attention_factor") is not None:  # llama.cpp multiplies its own with it
            own = 0.1 * math.log(factor) + 1
            key = Keys.Rope.SCALING_ATTN_FACTOR.format(arch=writer.arch)
            writer.add_float32(key, float(rope["attention_factor"]) / own)


def rope_factors(source_config: Mapping[str, Any]) -> np.ndarray[Any, Any] | None:
    """The values of `rope_freqs.weight`; None if the model has no llama3 RoPE scaling."""
    import numpy as np

    config = settled(source_config)
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") != "llama3":
        return None
    return np.array(llama3_factors(float(rope["rope_theta"]), config["head_dim"], rope), dtype=np.float32)


def add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    """State tokens, merges, special tokens and the chat template."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    for key, token in vocabulary.special.items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", token)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    for name, template in vocabulary.templates.items():
        writer.add_string("tokenizer.chat_template" + (f".{name}" if name else ""), template)
    if more := [name for name in vocabulary.templates if name]:
        writer.add_array("tokenizer.chat_templates", more)


def add_sampling(writer: GGUFWriter, generation: Mapping[str, Any]) -> Sequence[str]:
    """State the sampling defaults of a generation config; returns those that are omitted because they are no numbers.

    Readers always sample with stated values, so there are none if the model does not sample by default.
    """
    stated, omitted = sampling_of(generation)
    if (value := stated.get("temperature")) is not None:
        writer.add_sampling_temp(float(value))
    if (value := stated.get("top_p")) is not None:
        writer.add_sampling_top_p(float(value))
    if (value := stated.get("top_k")) is not None:
        writer.add_sampling_top_k(int(value))
    return omitted
