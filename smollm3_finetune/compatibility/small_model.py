"""The model on which pairs are measured: a random SmolLM3 of two layers, written without torch.

The figures compare computations, so random weights are sufficient. The weights have a larger standard deviation than
usual initializations, with which every layer is nearly linear and errors do not show.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from smollm3_finetune.builtin.tiny_loader import DIRECTORY as EMBEDDED

STD = 0.08
LAYERS, WIDTH, INNER, HEADS, KV_HEADS, HEAD = 2, 128, 256, 4, 2, 64


def write_small_model(directory: Path) -> Path:
    """Write the model, with the tokenizer of the embedded model, into `directory`, and return `directory`."""
    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    config = json.loads((EMBEDDED / "config.json").read_text(encoding="utf-8"))
    config |= {
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "no_rope_layers": [1, 0],
        "layer_types": ["full_attention"] * LAYERS,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    shapes = {"model.embed_tokens": (config["vocab_size"], WIDTH)}
    for layer in range(LAYERS):
        shapes |= {
            f"model.layers.{layer}.{name}": shape
            for name, shape in {
                "self_attn.q_proj": (HEADS * HEAD, WIDTH),
                "self_attn.k_proj": (KV_HEADS * HEAD, WIDTH),
                "self_attn.v_proj": (KV_HEADS * HEAD, WIDTH),
                "self_attn.o_proj": (WIDTH, HEADS * HEAD),
                "mlp.gate_proj": (INNER, WIDTH),
                "mlp.up_proj": (INNER, WIDTH),
                "mlp.down_proj": (WIDTH, INNER),
            }.items()
        }
    tensors = {f"{n}.weight": rng.normal(0, STD, shape).astype(np.float32) for n, shape in shapes.items()}
    norms = [f"model.layers.{i}.{n}" for i in range(LAYERS) for n in ("input_layernorm", "post_attention_layernorm")]
    tensors |= {f"{n}.weight": np.ones(WIDTH, np.float32) for n in (*norms, "model.norm")}
    shutil.copytree(EMBEDDED, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", "*.md"))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return directory
