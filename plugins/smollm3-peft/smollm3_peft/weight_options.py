"""Options of the methods that change linear layers, except the LoRA family. Imports neither torch nor peft.

Defaults are PEFT's or the paper's, unless these do not fit SmolLM3's widths (2048, 512, 11008) or would
initially change the base model's output. The help of an option states the unit of lengths and counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from smollm3_finetune.api import option
from smollm3_peft.options import LayerOptions, TargetOptions

_RANK = "Rank R of the update."
_DROPOUT = "Probability that an input of the adapter is dropped in training."
_SEED = "Seed of the fixed random matrices, stored with the adapter."


@dataclass(frozen=True, kw_only=True)
class BeftOptions(TargetOptions):
    """BEFT: one learned bias for each target module."""

    method: ClassVar[str] = "beft"


@dataclass(frozen=True, kw_only=True)
class BoftOptions(LayerOptions):
    """BOFT: orthogonal rotations built from butterfly factors."""

    method: ClassVar[str] = "boft"
    block_size: int = option(
        4, "Width of a rotation block (input channels); must divide the input width of every layer.", ge=2
    )
    butterfly_factors: int = option(1, "Butterfly factors; 1 is OFT with blocks.", ge=1)
    dropout: float = option(0.0, "Probability that a block is the identity in training.", ge=0, lt=1)
    peft_names: ClassVar[Mapping[str, str]] = {
        "block_size": "boft_block_size",
        "butterfly_factors": "boft_n_butterfly_factor",
        "dropout": "boft_dropout",
    }


@dataclass(frozen=True, kw_only=True)
class C3aOptions(LayerOptions):
    """C3A: block-circular convolutions."""

    method: ClassVar[str] = "c3a"
    block_size: int = option(
        128, "Side of a circulant block (channels); must divide the input and output width of every layer.", ge=1
    )
    init: Literal["zeros", "xavier_uniform", "kaiming_uniform", "gaussian"] = option(
        "zeros", "Initialization of the kernels; only zeros initially leaves the base model's output unchanged."
    )
    peft_names: ClassVar[Mapping[str, str]] = {"init": "init_weights"}
    peft_values: ClassVar[Mapping[str, Mapping[Any, Any]]] = {"init": {"zeros": True}}


@dataclass(frozen=True, kw_only=True)
class DeftOptions(LayerOptions):
    """DEFT: removes a learned subspace of the weight and replaces it with a learned update."""

    method: ClassVar[str] = "deft"
    rank: int = option(8, _RANK, ge=1)
    dropout: float = option(0.0, _DROPOUT, ge=0, lt=1)
    decomposition: Literal["relu", "qr"] = option("relu", "How the subspace is computed.")
    peft_names: ClassVar[Mapping[str, str]] = {
        "rank": "r",
        "dropout": "deft_dropout",
        "decomposition": "decomposition_method",
    }


@dataclass(frozen=True, kw_only=True)
class DeloraOptions(LayerOptions):
    """DeLoRA: LoRA with a bounded distance from the base weight."""

    method: ClassVar[str] = "delora"
    rank: int = option(8, _RANK, ge=1)
    bound: float = option(15.0, "Initial bound of the update's norm (lambda in the paper).", gt=0)
    dropout: float = option(0.0, "Probability that the update of a module is skipped in training.", ge=0, lt=1)
    peft_names: ClassVar[Mapping[str, str]] = {"rank": "r", "bound": "delora_lambda", "dropout": "module_dropout"}


@dataclass(frozen=True, kw_only=True)
class FourierFtOptions(LayerOptions):
    """FourierFT: a few learned Fourier coefficients of the update."""

    method: ClassVar[str] = "fourierft"
    n_frequency: int = option(1000, "Coefficients per layer; at most outputs × inputs.", ge=1)
    scaling: float = option(150.0, "Scale of the update.", gt=0)
    init: Literal["zeros", "gaussian"] = option(
        "zeros",
        "Initialization of the coefficients; gaussian, PEFT's default, initially changes the base model's output.",
    )
    peft_names: ClassVar[Mapping[str, str]] = {"init": "init_weights"}
    peft_values: ClassVar[Mapping[str, Mapping[Any, Any]]] = {"init": {"zeros": True, "gaussian": False}}


@dataclass(frozen=True, kw_only=True)
class FrodOptions(LayerOptions):
    """FRoD: a rotation shared by all layers of a kind, with sparse learned factors."""

    method: ClassVar[str] = "frod"
    sparse_rate: float = option(0.01, "Fraction of the entries of each factor that are trained.", gt=0, le=1)
    dropout: float = option(0.0, _DROPOUT, ge=0, lt=1)
    peft_names: ClassVar[Mapping[str, str]] = {"dropout": "frod_dropout"}
    fixed: ClassVar[Mapping[str, Any]] = {"progressbar": False}


@dataclass(frozen=True, kw_only=True)
class GloraOptions(TargetOptions):
    """GLoRA: learned scale and shift of weights and biases."""

    method: ClassVar[str] = "glora"
    rank: int = option(8, _RANK, ge=1)
    peft_names: ClassVar[Mapping[str, str]] = {"rank": "r"}


@dataclass(frozen=True, kw_only=True)
class GraloraOptions(LayerOptions):
    """GraLoRA: LoRA on each block of the weight."""

    method: ClassVar[str] = "gralora"
    rank: int = option(32, _RANK + " A multiple of `blocks`.", ge=1)
    alpha: float = option(64.0, "The update is scaled by alpha / rank.", gt=0)
    blocks: int = option(2, "Blocks along each side of a weight; must divide its inputs and outputs.", ge=1)
    dropout: float = option(0.0, _DROPOUT, ge=0, lt=1)
    peft_names: ClassVar[Mapping[str, str]] = {"rank": "r", "blocks": "gralora_k", "dropout": "gralora_dropout"}


@dataclass(frozen=True, kw_only=True)
class HiraOptions(LayerOptions):
    """HiRA: the elementwise product of the weight and a low-rank matrix."""

    method: ClassVar[str] = "hira"
    rank: int = option(32, _RANK, ge=1)
    dropout: float = option(0.0, _DROPOUT, ge=0, lt=1)
    peft_names: ClassVar[Mapping[str, str]] = {"rank": "r", "dropout": "hira_dropout"}


@dataclass(frozen=True, kw_only=True)
class HraOptions(LayerOptions):
    """HRA: a chain of Householder reflections of the input."""

    method: ClassVar[str] = "hra"
    rank: int = option(
        8, "Reflections per layer; an even number, so that they cancel at the start.", ge=2, multiple_of=2
    )
    orthogonalize: bool = option(False, "Orthogonalize the vectors of the reflections (Gram-Schmidt).")
    peft_names: ClassVar[Mapping[str, str]] = {"rank": "r", "orthogonalize": "apply_GS"}


@dataclass(frozen=True, kw_only=True)
class Ia3Options(TargetOptions):
    """IA³: learned scales of keys, values and hidden units."""

    method: ClassVar[str] = "ia3"
    target_modules: tuple[str, ...] = option(
        ("k_proj", "v_proj", "down_proj"), "Modules that are scaled, each given by the end of its name."
    )
    feedforward_modules: tuple[str, ...] = option(
        ("down_proj",), "Target modules whose input is scaled instead of their output."
    )


@dataclass(frozen=True, kw_only=True)
class LnTuningOptions(TargetOptions):
    """Trains only the normalization layers."""

    method: ClassVar[str] = "ln-tuning"
    target_modules: tuple[str, ...] = option(
        ("all-norm",),
        "Modules to train, each given by the end of its name; `all-norm`: every normalization layer.",
    )


@dataclass(frozen=True, kw_only=True)
class LohaOptions(LayerOptions):
    """LoHa: the elementwise product of two low-rank matrices."""

    method: ClassVar[str] = "loha"
    rank: int = option(8, "Rank R of each of the two matrices.", ge=1)
    alpha: float = option(8.0, "The update is scaled by alpha / rank.", gt=0)
    rank_dropout: float = option(0.0, "Probability that a rank is dropped in training.", ge=0, lt=1)
    module_dropout: float = option(0.0, "Probability that the update of a module is skipped in training.", ge=0, lt=1)
    peft_names: ClassVar[Mapping[str, str]] = {"rank": "r"}


@dataclass(frozen=True, kw_only=True)
class LokrOptions(LohaOptions):
    """LoKr: the Kronecker product of two small matrices."""

    method: ClassVar[str] = "lokr"
    rank: int = option(8, "Rank R of the larger of the two matrices.", ge=1)
    decompose_both: bool = option(False, "Make both matrices low-rank.")


@dataclass(frozen=True, kw_only=True)
class MissOptions(LayerOptions):
    """MiSS: one matrix whose rows are shared by the shards of a weight."""

    method: ClassVar[str] = "miss"
    rank: int = option(64, _RANK, ge=1)
    dropout: float = option(0.0, _DROPOUT, ge=0, lt=1)
    peft_names: ClassVar[Mapping[str, str]] = {"rank": "r", "dropout": "miss_dropout"}


@dataclass(frozen=True, kw_only=True)
class OftOptions(LayerOptions):
    """OFT: orthogonal rotations of blocks of the input."""

    method: ClassVar[str] = "oft"
    block_size: int = option(
        32, "Width of a rotation block (input channels); must divide the input width of every layer.", ge=2
    )
    dropout: float = option(0.0, "Probability that a block is the identity in training.", ge=0, lt=1)
    constrained: bool = option(False, "Keep the rotations near the identity (COFT).")
    share_blocks: bool = option(False, "Use one rotation for all blocks of a layer.")
    peft_names: ClassVar[Mapping[str, str]] = {
        "block_size": "oft_block_size",
        "dropout": "module_dropout",
        "constrained": "coft",
        "share_blocks": "block_share",
    }


@dataclass(frozen=True, kw_only=True)
class OsfOptions(TargetOptions):
    """OSF: trains the small singular directions of every weight; needs memory for a dense copy of the targets."""

    method: ClassVar[str] = "osf"
    frozen_rank: int | None = option(
        None, "Number of the largest singular directions that stay frozen; none: half of them.", ge=1
    )
    peft_names: ClassVar[Mapping[str, str]] = {"frozen_rank": "effective_rank"}


@dataclass(frozen=True, kw_only=True)
class PeanutOptions(LayerOptions):
    """PEANuT: a small network computes the update from the weight."""

    method: ClassVar[str] = "peanut"
    rank: int = option(32, "Width R of the network.", ge=1)
    depth: int = option(0, "Pairs of hidden layers.", ge=0)
    scaling: float = option(1.0, "Scale of the update.", gt=0)
    peft_names: ClassVar[Mapping[str, str]] = {"rank": "r"}


@dataclass(frozen=True, kw_only=True)
class PsoftOptions(LayerOptions):
    """PSOFT: rotations inside the principal subspace of a weight."""

    method: ClassVar[str] = "psoft"
    rank: int = option(32, "Width R of the subspace.", ge=1)
    dropout: float = option(0.0, _DROPOUT, ge=0, lt=1)
    peft_names: ClassVar[Mapping[str, str]] = {"rank": "r", "alpha": "psoft_alpha", "dropout": "psoft_dropout"}


@dataclass(frozen=True, kw_only=True)
class RandLoraOptions(LayerOptions):
    """RandLoRA: full-rank updates from sums of fixed random matrices."""

    method: ClassVar[str] = "randlora"
    rank: int = option(32, "Rank R of each random matrix; a smaller rank trains more parameters.", ge=1)
    alpha: float = option(640.0, "The update is scaled by alpha / rank.", gt=0)
    dropout: float = option(0.0, _DROPOUT, ge=0, lt=1)
    projection_seed: int = option(0, _SEED, ge=0)
    peft_names: ClassVar[Mapping[str, str]] = {
        "rank": "r",
        "alpha": "randlora_alpha",
        "dropout": "randlora_dropout",
        "projection_seed": "projection_prng_key",
    }


@dataclass(frozen=True, kw_only=True)
class RoadOptions(TargetOptions):
    """RoAd: rotations and scales of pairs of outputs."""

    method: ClassVar[str] = "road"
    variant: Literal["road_1", "road_2", "road_4"] = option("road_1", "Parameters for each pair of outputs: 1, 2 or 4.")
    group_size: int = option(
        64, "Width of a group (output channels); must divide the output width of every layer.", ge=2
    )


@dataclass(frozen=True, kw_only=True)
class ShiraOptions(TargetOptions):
    """SHiRA: trains a sparse random subset of the weight's entries."""

    method: ClassVar[str] = "shira"
    rank: int = option(32, "Trains R × (inputs + outputs) entries of each weight.", ge=1)
    mask_seed: int = option(0, "Seed of the random selection of entries.", ge=0)
    peft_names: ClassVar[Mapping[str, str]] = {"rank": "r", "mask_seed": "random_seed"}


@dataclass(frozen=True, kw_only=True)
class SuperTuningOptions(TargetOptions):
    """Super-Tuning: trains the largest entries of each weight."""

    method: ClassVar[str] = "supertuning"
    sparsity: float = option(0.99, "Fraction of the entries that stay frozen.", gt=0, lt=1)


@dataclass(frozen=True, kw_only=True)
class TinyLoraOptions(LayerOptions):
    """TinyLoRA: a few parameters for each layer, in the principal subspace of the base weight."""

    method: ClassVar[str] = "tinylora"
    rank: int = option(2, "Rank R of the principal subspace.", ge=1)
    size: int = option(64, "Trained parameters per group of layers.", ge=1)
    weight_tying: float = option(
        0.0, "Fraction of the layers that share one set of parameters: 0 none, 1 all.", ge=0, le=1
    )
    dropout: float = option(0.0, _DROPOUT, ge=0, lt=1)
    projection_seed: int = option(42, _SEED, ge=0)
    peft_names: ClassVar[Mapping[str, str]] = {"rank": "r", "size": "u", "dropout": "tinylora_dropout"}


@dataclass(frozen=True, kw_only=True)
class UniLoraOptions(LayerOptions):
    """Uni-LoRA: computes all LoRA matrices of the model from one short trained vector."""

    method: ClassVar[str] = "unilora"
    rank: int = option(4, _RANK, ge=1)
    size: int = option(256, "Trained parameters of the whole model.", ge=1)
    dropout: float = option(0.0, _DROPOUT, ge=0, lt=1)
    projection_seed: int = option(42, _SEED, ge=0)
    peft_names: ClassVar[Mapping[str, str]] = {
        "rank": "r",
        "size": "theta_d_length",
        "dropout": "unilora_dropout",
        "projection_seed": "proj_seed",
    }


@dataclass(frozen=True, kw_only=True)
class VbLoraOptions(LayerOptions):
    """VB-LoRA: LoRA matrices composed from a bank of vectors shared by the model."""

    method: ClassVar[str] = "vblora"
    rank: int = option(4, _RANK, ge=1)
    num_vectors: int = option(256, "Vectors in the bank.", ge=2)
    vector_length: int = option(
        128, "Length of a vector (channels); must divide the input and output width of every layer.", ge=1
    )
    topk: int = option(2, "Vectors mixed for each piece of a LoRA matrix.", ge=1)
    dropout: float = option(0.0, _DROPOUT, ge=0, lt=1)
    peft_names: ClassVar[Mapping[str, str]] = {"rank": "r", "dropout": "vblora_dropout"}


@dataclass(frozen=True, kw_only=True)
class VeraOptions(LayerOptions):
    """VeRA: fixed random A and B for all layers, with learned scales."""

    method: ClassVar[str] = "vera"
    rank: int = option(256, "Rank R of the random matrices.", ge=1)
    dropout: float = option(0.0, _DROPOUT, ge=0, lt=1)
    d_initial: float = option(0.1, "Initial value of the scales of A.")
    projection_seed: int = option(0, _SEED, ge=0)
    peft_names: ClassVar[Mapping[str, str]] = {
        "rank": "r",
        "dropout": "vera_dropout",
        "projection_seed": "projection_prng_key",
    }


@dataclass(frozen=True, kw_only=True)
class PveraOptions(VeraOptions):
    """PVeRA: VeRA that trains a distribution of the hidden values and samples from it in training."""

    method: ClassVar[str] = "pvera"
    peft_names: ClassVar[Mapping[str, str]] = {
        "rank": "r",
        "dropout": "pvera_dropout",
        "projection_seed": "projection_prng_key",
    }


@dataclass(frozen=True, kw_only=True)
class WaveFtOptions(LayerOptions):
    """WaveFT: a few learned wavelet coefficients of the update."""

    method: ClassVar[str] = "waveft"
    n_frequency: int = option(2592, "Coefficients per layer; at most outputs × inputs.", ge=1)
    scaling: float = option(25.0, "Scale of the update.", gt=0)
    wavelet: str = option("db1", "Wavelet family (db1, sym2, coif1, …).")
    peft_names: ClassVar[Mapping[str, str]] = {"wavelet": "wavelet_family"}
