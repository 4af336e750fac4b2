"""The child process of architectures.py: builds one tiny model and measures its columns, one line of JSON for each.

A column works if its model is finite and can be used: trained by a step whose gradients are finite, merged within the
limits of the project, packed with rows that stay apart. An error that the project raises on purpose is a refusal.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smollm3_finetune.model.load import LoadedModel

COLUMNS = ("load", "lora", "dora", "bnb-4bit", "hqq", "torchao", "pack", "merge", "gptq")
QUANTIZERS = {
    "bnb-4bit": {"name": "bnb-4bit"},
    "hqq": {"name": "hqq", "group_size": 32},
    "torchao": {"name": "torchao-int8"},
    "gptq": {"name": "gptq", "group_size": 32},
}
SIZES = {
    "hidden_size": 64, "d_model": 64, "n_embd": 64, "dim": 64, "embed_dim": 64, "embedding_size": 64,
    "word_embed_proj_dim": 64,
    "intermediate_size": 128, "ffn_dim": 128, "n_inner": 128, "d_ff": 128, "ffn_hidden_size": 128, "d_inner": 128,
    "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64, "moe_shared_expert_intermediate_size": 64,
    "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "dim_feedforward": 128, "mlp_hidden_size": 128,
    "intermediate_size_mlp": 128, "shared_intermediate_size": 64, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2,
    "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2, "num_attention_heads": 4, "n_head": 4, "n_heads": 4,
    "num_heads": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "d_kv": 16, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16,
    "v_head_dim": 16, "qk_head_dim": 32, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "moe_num_experts": 4, "num_experts_per_tok": 2, "moe_k": 2, "moe_topk": 2, "n_group": 1, "topk_group": 1,
    "max_position_embeddings": 512, "n_positions": 512, "n_ctx": 512, "max_seq_len": 512, "sliding_window": 256,
    "state_size": 16, "mamba_d_state": 16, "mamba_n_heads": 8, "mamba_d_head": 16, "time_step_rank": 8,
    "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
    "full_attention_interval": 2, "mamba_d_ssm": 128, "mamba_expand": 2, "rotary_dim": 8, "n_embd_per_head": 16,
    "rnn_hidden_size": 64, "lru_width": 64, "attention_hidden_size": 64, "v_proj_dim": 64,
    "attention_dropout": 0.0, "hidden_dropout": 0.0, "dropout": 0.0, "layerdrop": 0.0,
}  # fmt: skip
"""Values of the attributes that families give the same name; a config takes those that it has."""
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v2": {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "head_dim": 16},
    "falcon_h1": {"mamba_d_head": 16, "mamba_n_heads": 8},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "moe_topk": [2, 2]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "marian": {"decoder_vocab_size": 2048},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"], "mamba_num_heads": 8,
                   "mamba_head_dim": 16, "n_groups": 1},
    "xmod": {"default_language": "en_XX"},
}  # fmt: skip
"""Values that a config of one type needs beside SIZES."""
SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
}  # fmt: skip
KINDS_OF_ATTENTION = ["sliding_attention", "full_attention"]
GEMMA4 = {
    **SMALL, "global_head_dim": 32, "sliding_window": 256, "layer_types": KINDS_OF_ATTENTION,
    "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 2048,
}  # fmt: skip
QWEN4 = {
    **SMALL, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64,
    "num_experts_per_tok": 2, "num_experts": 4, "layer_types": ["linear_attention", "full_attention"],
    "hc_lowrank": 16, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
CONSTRUCTED: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {**SMALL, "rope_parameters": dict.fromkeys(KINDS_OF_ATTENTION, ROPE),
                            "layer_types": KINDS_OF_ATTENTION},
    "dbrx": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 512, "attn_config": {"kv_n_heads": 2},
             "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 128, "moe_num_experts": 4, "moe_top_k": 2}},
    "dots1": {**SMALL, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
              "moe_intermediate_size": 64},
    "gemma3n_text": {**SMALL, "num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": 2 * KINDS_OF_ATTENTION,
                     "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 2048, "laurel_rank": 8,
                     "activation_sparsity_pattern": [0.0] * 4},
    "gemma4": {"text_config": GEMMA4, "vision_config": None, "audio_config": None},
    "gemma4_text": GEMMA4,
    "gemma4_unified": {"text_config": GEMMA4, "vision_config": None, "audio_config": None},
    "gemma4_unified_text": GEMMA4,
    "hrm_text": {**SMALL, "num_hidden_layers": 4},
    "hunyuan_v1_moe": {**SMALL, "num_experts": 4, "moe_topk": 2},
    "hy_v4": {**SMALL, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "q_lora_rank": 32,
              "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
              "moe_intermediate_size": 64, "index_topk": 16, "index_head_dim": 16, "index_n_heads": 2, "head_dim": 32},
    "prophetnet": {"hidden_size": 64, "num_encoder_layers": 2, "num_decoder_layers": 2, "encoder_ffn_dim": 128,
                   "decoder_ffn_dim": 128, "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4},
    "qwen4_exp": {"text_config": QWEN4},
    "qwen4_exp_text": QWEN4,
    "reformer": {"hidden_size": 64, "attention_head_size": 16, "num_attention_heads": 4, "feed_forward_size": 128,
                 "attn_layers": ["local", "lsh"], "axial_pos_embds": False, "local_attn_chunk_length": 16,
                 "lsh_attn_chunk_length": 16, "num_buckets": 4, "max_position_embeddings": 512},
    "xlnet": {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128},
    "xlstm": {"hidden_size": 64, "num_heads": 4, "num_hidden_layers": 2, "qk_dim_factor": 1.0},
    "zamba": {**SMALL, "num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 1},
    "zamba2": {**SMALL, "num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
               "n_mamba_heads": 8, "mamba_d_state": 16},
}  # fmt: skip
"""Arguments for configs that cannot be shrunk after they were made."""
MOST = 20_000_000
"""Parameters of a model that counts as tiny."""
REJECTED = "the shrunk config builds no model"


class NotTiny(Exception):
    """The architecture cannot be built small by shrinking its config."""


def build(kind: str, directory: Path) -> None:
    """Write a tiny random model of this type, with the tokenizer of the embedded model. Raises NotTiny."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    import smollm3_finetune

    embedded = Path(smollm3_finetune.__file__).parent / "builtin" / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(str(embedded))
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    errors = []
    for without in ((), ("head_dim",), ("num_key_value_heads",), ("num_key_value_heads", "head_dim")):
        try:
            config = AutoConfig.for_model(kind, **CONSTRUCTED.get(kind, {}))
            text = (config, config.get_text_config(decoder=True))
            for part in _parts(config):
                if kind not in CONSTRUCTED:
                    _shrink(part, {k: v for k, v in SIZES.items() if k not in without})
                if not any(part is t for t in text):
                    continue
                for name, value in {**ids, "vocab_size": len(tokenizer), **OWN.get(kind, {})}.items():
                    setattr(part, name, value)
            if hasattr(config, "is_decoder") and not getattr(config, "is_encoder_decoder", False):
                config.is_decoder = True
            torch.manual_seed(0)
            with torch.device("meta"):
                count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
            if count > MOST:
                errors.append(f"{count / 1e6:.0f} million parameters after shrinking")
                continue
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
            with torch.no_grad():
                if not bool(model(input_ids=torch.arange(3, 19)[None]).logits.isfinite().all()):
                    raise ValueError("its logits are not finite")
            model.save_pretrained(directory)
            AutoModelForCausalLM.from_pretrained(str(directory))
            tokenizer.save_pretrained(str(directory))
            return
        except Exception as e:
            shutil.rmtree(directory, ignore_errors=True)
            errors.append(f"{type(e).__name__}: {' '.join(str(e).split())[:150]}")
    raise NotTiny(f"{REJECTED}: {errors[0]}")


def _parts(config: Any) -> list[Any]:
    """A config and the configs inside it: of the text model, of a vision tower."""
    inner = [v for v in vars(config).values() if hasattr(v, "to_diff_dict") or hasattr(v, "sub_configs")]
    return [config, *(part for value in inner for part in _parts(value))]


def _shrink(config: Any, sizes: dict[str, Any]) -> None:
    """Set the sizes that a config has, through the names of its attributes, and shorten its lists of layers."""
    layers = None
    for name, value in sizes.items():
        old = getattr(config, name, None)
        if isinstance(old, int | float) and not isinstance(old, bool):
            setattr(config, name, min(old, value) if value else value)
            if name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
                layers = min(old, value)
    lists = {
        name: old
        for name, old in list(vars(config).items())
        if layers and isinstance(old, list | tuple) and len(old) > layers and ("layer" in name or "block" in name)
    }
    kept = _kept_layers(list(lists.values()), layers or 0)
    for name, old in lists.items():
        setattr(config, name, type(old)(old[i] for i in kept if i < len(old)))


def _kept_layers(lists: list[Any], count: int) -> list[int]:
    """Which layers to keep: the first ones, or the first of each kind if a list names several kinds of layers."""
    for named in sorted(lists, key=lambda kinds: not any("attention" in str(kind) for kind in kinds)):
        first = {kind: i for i, kind in reversed(list(enumerate(named))) if isinstance(kind, str)}
        if len(first) > 1:
            kinds = sorted(first.values())[:count]
            return sorted([*kinds, *[i for i in range(len(named)) if i not in kinds][: count - len(kinds)]])
    return list(range(count))


def loaded(model: Path, **more: Any) -> LoadedModel:
    from smollm3_finetune.model import load_model

    return load_model(model, device="cpu", dtype="float32", **more)


def rows() -> list[list[int]]:
    import torch

    generator = torch.Generator().manual_seed(1)
    rows: list[list[int]] = torch.randint(5, 1000, (4, 32), generator=generator).tolist()
    return rows


def check_step(model: LoadedModel) -> None:
    """One step: a finite loss, finite gradients, and at least one that is not zero. Raises ValueError."""
    import torch

    ids = torch.tensor(rows())
    loss = model.model.train()(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    gradients = [p.grad for p in model.model.parameters() if p.requires_grad and p.grad is not None]
    if not bool(loss.isfinite()) or not all(bool(g.isfinite().all()) for g in gradients):
        raise ValueError("the loss or a gradient is not finite")
    if not any(bool(g.any()) for g in gradients):
        raise ValueError("every gradient is zero")


def load(model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.tensor(rows())
    with torch.no_grad():
        right = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32).eval()(input_ids=ids).logits
        found = loaded(model).model.eval()(input_ids=ids).logits
    if not torch.allclose(found, right, rtol=1e-4, atol=1e-4):
        raise ValueError("the logits differ from those of transformers")


def adapted(adapter: str) -> Callable[[Path], None]:
    return lambda model: check_step(loaded(model, adapter=adapter, purpose="train"))


def quantized(name: str) -> Callable[[Path], None]:
    def run(model: Path) -> None:
        found = loaded(model, quant=QUANTIZERS[name], adapter="lora", purpose="train", calibration=rows)
        check_step(found)

    return run


def merge(model: Path) -> None:
    from smollm3_finetune.api import Purpose
    from smollm3_finetune.compatibility.measure import Bench, measure
    from smollm3_finetune.components.discovery import discover

    bench = Bench(registry=discover(), model=model, device="cpu", work=model.parent)
    found = measure(bench, "none", "lora", {}, Purpose.MERGE, force=False)
    if found.fault is not None:
        raise ValueError(found.fault)


def pack(model: Path) -> None:
    from smollm3_finetune.batching.attention import attention_within_rows
    from smollm3_finetune.batching.probe import RowProbe

    base = loaded(model).model
    probe = RowProbe(base, 1000)
    with attention_within_rows(base):
        probe.check(1e-3, 1e-5)


CELLS: dict[str, Callable[[Path], None]] = {
    "load": load, "lora": adapted("lora"), "dora": adapted("dora"), "pack": pack, "merge": merge,
    **{name: quantized(name) for name in QUANTIZERS},
}  # fmt: skip


def main(kind: str, work: Path, answers: Path, columns: list[str]) -> None:
    from smollm3_finetune.batching.attention import RowsNotApart
    from smollm3_finetune.errors import SmolLM3Error
    from smollm3_finetune.model_files.loading import quiet_transformers

    quiet_transformers()
    unbuilt = None
    if not (work / "model").exists():
        try:
            build(kind, work / "model")
        except NotTiny as e:
            unbuilt = str(e)
    for column in columns:
        state, note = ("unbuilt", unbuilt) if unbuilt else ("works", None)
        if unbuilt is None:
            try:
                CELLS[column](work / "model")
            except (SmolLM3Error, RowsNotApart) as e:
                state, note = "refused", getattr(e, "message", str(e))
            except Exception as e:
                state, note = "fails", f"{type(e).__name__}: {e}"
        text = " ".join(note.replace(str(work), "").split())[:300] if note else None
        with contextlib.closing(answers.open("a", encoding="utf-8")) as stream:
            stream.write(json.dumps({"column": column, "state": state, "note": text}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
