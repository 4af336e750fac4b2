"""Descriptors of the offered PEFT methods: the operations that each needs, and its properties.

The values were measured, not copied from papers: `needs` by counting reads of a quantized weight, the other properties
by `tests/test_methods.py`. This module imports neither torch nor peft.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from smollm3_finetune.api import AdapterCard, AdapterSpec, Env, Op, Requires
from smollm3_peft.roles import ROLES

# Views (linear_view.py) rely on how PEFT reads a base layer, and `LoraConfig._register_custom_module` is private. Test
# another minor version of PEFT before allowing it here.
PEFT = "peft>=0.21,<0.22"

FORWARDS = frozenset({Op.FORWARD, Op.GRAD_INPUT})
READS = FORWARDS | {Op.READ_WEIGHT}
"""The method reads base weights, at the start or in each forward."""
WRITES = READS | {Op.DENSE}
"""The method changes base weights or supports only plain `nn.Linear`."""


USAGE = 'from peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base, ".")'
TITLES = {"rslora": "rsLoRA"}
"""Names of methods whose summary does not begin with them."""


def _claims(method: str, about: Mapping[str, Any]) -> bool:
    """Whether an `adapter_config.json` is that of an adapter of `method`."""
    found = str(about.get("peft_type"))
    if found == "LORA":
        return method == ("dora" if about.get("use_dora") else "rslora" if about.get("use_rslora") else "lora")
    return found == peft_type(method)


def _read_options(options: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """The options that an `adapter_config.json` states, for the options class at a dotted path in this package."""
    module, _, name = options.partition(":")
    cls = getattr(importlib.import_module(f"smollm3_peft.{module}"), name)
    found = {}
    for field in dataclasses.fields(cls):
        key = cls.peft_names.get(field.name, "layers_to_transform" if field.name == "layers" else field.name)
        value = about.get(key)
        if value is None or (field.name == "target_modules" and isinstance(value, str)):
            continue  # a pattern for names is not an option here
        ours = cls.peft_values.get(field.name, {})
        same = (mine for mine, theirs in ours.items() if theirs == value and isinstance(value, type(theirs)))
        found[field.name] = next(same, value)
    return found


def _spec(name: str, summary: str, options: str, needs: Iterable[Op] = FORWARDS, **traits: Any) -> AdapterSpec:
    traits.setdefault("packs", True)
    title, colon, _ = summary.partition(": ")
    title = TITLES.get(name, title if colon else "")
    return AdapterSpec(
        name=name,
        same_since="0.1",
        summary=summary,
        factory=f"smollm3_peft.{traits.pop('factory', 'adapter:PeftAdapter')}",
        options=f"smollm3_peft.{options}",
        needs=needs,
        roles=set(ROLES[name].values()),
        requires=Requires(distributions=(PEFT,)),
        card=AdapterCard(title=title, library="peft", usage=USAGE),
        claims=partial(_claims, name),
        read_options=partial(_read_options, options),
        **traits,
        api=2,
    )


def refine_lora(spec: AdapterSpec, options: Any, env: Env) -> AdapterSpec:
    """PiSSA and OLoRA move part of the base into the adapter; MiCA reads it; a random B changes the output."""
    spec = dataclasses.replace(spec, ships=_ships(options))
    if options.init in ("pissa", "olora"):
        return dataclasses.replace(spec, needs=WRITES, disables=False)
    if options.init == "mica":
        return dataclasses.replace(spec, needs=READS)
    if options.init == "random":
        return dataclasses.replace(spec, identity_at_start=False)
    return spec


def refine_dora(spec: AdapterSpec, options: Any, env: Env) -> AdapterSpec:
    """Whether the merged weights are all that the adapter changes."""
    return dataclasses.replace(spec, ships=_ships(options))


def _ships(options: Any) -> bool:
    """Whether an adapter of the LoRA family changes only weights of linear layers, by PEFT's plain arithmetic.

    An input that is dropped has no counterpart in a merged weight.
    """
    more = (options.modules_to_save, getattr(options, "target_parameters", ()))
    plain = options.init in ("default", "gaussian", "orthogonal", "random")
    return plain and not options.dropout and options.bias == "none" and not any(more)


def refine_zeros(spec: AdapterSpec, options: Any, env: Env) -> AdapterSpec:
    """Only coefficients of zero initially leave the base model's output unchanged."""
    return dataclasses.replace(spec, identity_at_start=options.init == "zeros")


def _prompt(name: str, summary: str, options: str) -> AdapterSpec:
    """A method that trains a prompt: PEFT drops the position ids, so packed rows influence each other."""
    factory = "prompts:PromptAdapter"
    return _spec(name, summary, options, identity_at_start=False, packs=False, merges=False, factory=factory)


METHODS: tuple[AdapterSpec, ...] = (
    _spec(
        "lora",
        "LoRA: a low-rank update beside each linear layer",
        "options:LoraOptions",
        refine=refine_lora,
        training_options=("dropout",),
        ships=True,
        trains_new_tokens=True,
    ),
    _spec(
        "dora",
        "DoRA: LoRA with a learned magnitude of each output",
        "options:DoraOptions",
        READS,
        refine=refine_dora,
        training_options=("dropout",),
        ships=True,
        trains_new_tokens=True,
    ),
    _spec(
        "rslora",
        "LoRA scaled by alpha / √rank, for large ranks",
        "options:RsLoraOptions",
        refine=refine_lora,
        training_options=("dropout",),
        ships=True,
        trains_new_tokens=True,
    ),
    _spec(
        "adalora",
        "AdaLoRA: gives more rank to the layers that need it",
        "options:AdaLoraOptions",
        factory="adalora:AdaLoraAdapter",
        shards=False,
    ),
    _spec("beft", "BEFT: one learned bias for each target module", "weight_options:BeftOptions", merges=False),
    _spec("boft", "BOFT: butterfly-factored rotations of the input", "weight_options:BoftOptions"),
    _spec("c3a", "C3A: block-circular convolutions", "weight_options:C3aOptions", refine=refine_zeros),
    _spec("deft", "DEFT: replaces a learned subspace of the weight", "weight_options:DeftOptions", READS),
    _spec("delora", "DeLoRA: LoRA at a bounded distance from the base", "weight_options:DeloraOptions", READS),
    _spec("fourierft", "FourierFT: a few Fourier coefficients", "weight_options:FourierFtOptions", refine=refine_zeros),
    _spec("frod", "FRoD: sparse factors in a rotation shared by layers", "weight_options:FrodOptions", READS),
    _spec("glora", "GLoRA: learned scale and shift of weights", "weight_options:GloraOptions", WRITES),
    _spec("gralora", "GraLoRA: LoRA on each block of the weight", "weight_options:GraloraOptions"),
    _spec("hira", "HiRA: the weight times a low-rank matrix, elementwise", "weight_options:HiraOptions", READS),
    _spec("hra", "HRA: a chain of Householder reflections", "weight_options:HraOptions", READS),
    _spec("ia3", "IA³: learned scales of keys, values and hidden units", "weight_options:Ia3Options"),
    _spec("ln-tuning", "trains only the normalization layers", "weight_options:LnTuningOptions"),
    _spec("loha", "LoHa: the elementwise product of two low-rank matrices", "weight_options:LohaOptions"),
    _spec("lokr", "LoKr: the Kronecker product of two small matrices", "weight_options:LokrOptions"),
    _spec("miss", "MiSS: one matrix shared by the shards of a weight", "weight_options:MissOptions"),
    _spec("oft", "OFT: orthogonal rotations of blocks of the input", "weight_options:OftOptions"),
    _spec("osf", "OSF: trains the small singular directions", "weight_options:OsfOptions", READS, shards=False),
    _spec(
        "peanut", "PEANuT: a small network computes the update from the weight", "weight_options:PeanutOptions", READS
    ),
    _spec("psoft", "PSOFT: rotations inside the principal subspace", "weight_options:PsoftOptions", READS),
    _spec("pvera", "PVeRA: VeRA with sampled hidden values", "weight_options:PveraOptions"),
    _spec("randlora", "RandLoRA: sums of fixed random matrices", "weight_options:RandLoraOptions"),
    _spec("road", "RoAd: rotations and scales of pairs of outputs", "weight_options:RoadOptions"),
    _spec("shira", "SHiRA: trains a random subset of the weight's entries", "weight_options:ShiraOptions", READS),
    _spec(
        "supertuning", "Super-Tuning: trains the weight's largest entries", "weight_options:SuperTuningOptions", READS
    ),
    _spec(
        "tinylora", "TinyLoRA: a few parameters for each layer", "weight_options:TinyLoraOptions", READS, shards=False
    ),
    _spec(
        "unilora",
        "Uni-LoRA: all updates computed from one short vector",
        "weight_options:UniLoraOptions",
        identity_at_start=False,
        shards=False,
    ),
    _spec(
        "vblora",
        "VB-LoRA: updates composed from a bank of vectors",
        "weight_options:VbLoraOptions",
        identity_at_start=False,
        shards=False,
    ),
    _spec("vera", "VeRA: learned scales of fixed random matrices", "weight_options:VeraOptions"),
    _spec("waveft", "WaveFT: a few wavelet coefficients of the update", "weight_options:WaveFtOptions"),
    _spec("trainable-tokens", "trains the embeddings of some tokens", "prompt_options:TrainableTokensOptions"),
    _prompt("prompt-tuning", "trains embeddings prepended to every input", "prompt_options:PromptTuningOptions"),
    _prompt("p-tuning", "trains a network that computes prepended embeddings", "prompt_options:PTuningOptions"),
    _prompt("prefix-tuning", "trains keys and values prepended in every layer", "prompt_options:PrefixTuningOptions"),
)

BY_NAME = {spec.name: spec for spec in METHODS}


def peft_type(method: str) -> str:
    """The name of a method in `adapter_config.json`."""
    return "LORA" if method in ("dora", "rslora") else method.upper().replace("-", "_")


def component(peft_type: str) -> str:
    """The component name for a PEFT type, even if the component is not offered."""
    return peft_type.lower().replace("_", "-")


def refined(method: str, options: Any) -> AdapterSpec:
    """The descriptor of a method for these options; none of its fields depends on the machine."""
    spec = BY_NAME[method]
    return spec.refine(spec, options, Env(device="cpu")) if spec.refine is not None else spec
