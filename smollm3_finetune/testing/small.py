"""A random SmolLM3 of two layers, for tests that need a complete but untrained model."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import ModelSource, seeded
from smollm3_finetune.model_files.source import DirectorySource

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

STD = 0.08
"""Standard deviation of weights. With the usual 0.02, every layer is nearly linear and errors do not show."""
BIAS_STD = 0.5
"""Standard deviation of biases: as large as the output of a weight, so that a dropped bias is a large error."""
EMBEDDED = Path(__file__).parents[1] / "builtin" / "tiny"
KEPT: list[tempfile.TemporaryDirectory[str]] = []
"""Directories that are removed when Python ends."""


def write_small_model(directory: Path, *, seed: int = 0, biases: bool = True) -> Path:
    """Write the model in float32, with the tokenizer of the embedded model, into `directory`, and return `directory`.

    The model has two layers, the second without RoPE; width 64, MLP 128, 2 heads and 1 key-value head, tied embeddings,
    2048 tokens. The query and output projections are square, so a transposed weight has the right shape. With `biases`,
    every linear layer has a bias.
    """
    import shutil

    import torch
    from safetensors.torch import save_file
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    config = SmolLM3Config(
        vocab_size=2048, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, no_rope_layers=[1, 0], max_position_embeddings=256, bos_token_id=0,
        eos_token_id=4, pad_token_id=2, tie_word_embeddings=True, attention_bias=biases, mlp_bias=biases,
    )  # fmt: skip
    with seeded(seed):
        model = SmolLM3ForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or parameter.dim() == 2:
                parameter.normal_(0, BIAS_STD if name.endswith("bias") else STD, generator=generator)
    directory.mkdir(parents=True, exist_ok=True)
    config.architectures, config.dtype = ["SmolLM3ForCausalLM"], torch.float32
    config.save_pretrained(directory)
    weights = {n: p.detach() for n, p in model.named_parameters()}  # a tied weight once
    save_file(weights, str(directory / "model.safetensors"), metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(EMBEDDED / name, directory / name)
    return directory


def small_model_directory(*, seed: int = 0, biases: bool = True) -> Path:
    """The directory of the model, written once per process. Copy it before you modify it."""
    return _written(seed, biases)


@cache
def _written(seed: int, biases: bool) -> Path:
    KEPT.append(tempfile.TemporaryDirectory(prefix="smollm3-small-"))
    return write_small_model(Path(KEPT[-1].name) / "small", seed=seed, biases=biases)


class SmallSource(DirectorySource):
    """Copies the model in memory if `load` receives only a dtype, which is much faster than reading it."""

    def load(self, **kwargs: Any) -> PreTrainedModel:
        if set(kwargs) == {"dtype"} and self.directory in _directories():
            model: PreTrainedModel = copy.deepcopy(_loaded(self.directory, kwargs["dtype"]))
            return model
        return super().load(**kwargs)


def small_source(*, seed: int = 0, biases: bool = True) -> ModelSource:
    """The model as an opened source."""
    return SmallSource(ref="small", directory=small_model_directory(seed=seed, biases=biases))


def _directories() -> set[Path]:
    """The directories of `small_model_directory`, which nobody modifies."""
    return {Path(kept.name) / "small" for kept in KEPT}


@cache
def _loaded(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    return DirectorySource(ref="small", directory=directory).load(dtype=dtype)


def small_model(dtype: str = "float32") -> PreTrainedModel:
    """The model with biases, frozen, in evaluation mode; each call returns a new copy."""
    import torch

    model = small_source().load(dtype=getattr(torch, dtype))
    model.requires_grad_(False)
    return model.eval()


def mixture_source() -> ModelSource:
    """A random Mixtral of two layers with four experts each, two of them used for each token, as an opened source.

    Width 64, experts 128 wide, 2048 tokens, and the tokenizer of the embedded model. Its experts are two stacked
    weights in each layer: `gate_up_proj` (4, 256, 64) and `down_proj` (4, 64, 128).
    """
    return SmallSource(ref="small-mixture", directory=_mixture())


@cache
def _mixture() -> Path:
    import shutil

    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=2048, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=256,
        bos_token_id=0, eos_token_id=4, pad_token_id=2, sliding_window=None,
    )  # fmt: skip
    with seeded(0):
        model = MixtralForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, STD, generator=generator)
    KEPT.append(tempfile.TemporaryDirectory(prefix="smollm3-mixture-"))
    directory = Path(KEPT[-1].name) / "small"
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(EMBEDDED / name, directory / name)
    return directory


SIZES: Mapping[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "vocab_size": 96, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
"""Arguments of a config of most architectures, for a model that trains in milliseconds."""


def random_model(
    dtype: torch.dtype | None = None,
    config: Any = None,
    *,
    std: float | None = None,
    attention: str | None = None,
    **changes: Any,
) -> PreTrainedModel:
    """A random model without a tokenizer, the same at each call: a SmolLM3 of `SIZES`, or one of another `config`.

    The SmolLM3 has tied embeddings, and its second layer has no RoPE; `changes` are arguments of its config. `dtype` is
    float64 by default. `std` is the standard deviation of the matrices; None: the architecture's own initialization.
    `attention` is an implementation in transformers; None: its default.
    """
    import torch
    from transformers import AutoModelForCausalLM, SmolLM3Config

    if config is None:
        config = SmolLM3Config(**{**SIZES, "no_rope_layers": [1, 0], "tie_word_embeddings": True, **changes})
    named = {} if attention is None else {"attn_implementation": attention}
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **named)
    model.to(dtype or torch.float64)
    if std is not None:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, std)
    return model


def token_ids(rows: int = 2, length: int = 12, *, vocabulary: int = 2048, seed: int = 0) -> Tensor:
    """Random token ids (rows, length), without special tokens."""
    import torch

    return torch.randint(5, vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))
