"""A tiny SmolLM3, a stub quantizer, and one run of a method that records everything its descriptor claims."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from smollm3_peft.methods import BY_NAME
from torch import Tensor, nn
from transformers import SmolLM3Config, SmolLM3ForCausalLM, Trainer

from smollm3_finetune.api import AdapterSpec, Base, BuildContext, Op, Purpose, UnsupportedOp
from smollm3_finetune.testing import trained_parameters

SMALL: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "dora": {"rank": 4},
    "rslora": {"rank": 4},
    "adalora": {"rank": 3, "initial_rank": 6, "warmup_steps": 0, "final_steps": 2},
    "c3a": {"block_size": 32},
    "fourierft": {"n_frequency": 100},
    "miss": {"rank": 16},
    "osf": {"frozen_rank": 8},
    "psoft": {"rank": 8},
    "pvera": {"rank": 16},
    "randlora": {"rank": 8},
    "road": {"group_size": 32},
    "shira": {"rank": 4},
    "vblora": {"num_vectors": 32, "vector_length": 32},
    "vera": {"rank": 16},
    "waveft": {"n_frequency": 100},
    "trainable-tokens": {"token_ids": (3, 5, 7)},
    "prompt-tuning": {"virtual_tokens": 4},
    "p-tuning": {"virtual_tokens": 4, "encoder_width": 32},
    "prefix-tuning": {"virtual_tokens": 4},
}
"""Options that fit widths of 64 and 128."""

LEARNING_RATE = {"unilora": 0.5}
"""For AdamW; default 0.01. Uni-LoRA's one vector starts at 0.02 and changes the logits little."""


class StubLinear(nn.Module):
    """A quantized layer that no library knows: an int8 weight and one scale for each output."""

    reads = 0

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.register_buffer("scale", weight.abs().amax(dim=1, keepdim=True) / 127)
        self.register_buffer("codes", torch.round(weight / self.scale).to(torch.int8))
        self.bias = linear.bias

    def dense(self) -> Tensor:
        return self.codes.to(self.scale.dtype) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dense().to(x.dtype), self.bias)


@dataclasses.dataclass(frozen=True)
class StubOps:
    layer: StubLinear
    ops: frozenset[Op] = frozenset({Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT})
    forward_rtol: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.layer.codes.shape)

    def read_weight(self) -> Tensor:
        if Op.READ_WEIGHT not in self.ops:
            raise UnsupportedOp("this stub cannot be read")
        StubLinear.reads += 1
        return self.layer.dense()


def stub_ops(layer: nn.Module) -> StubOps | None:
    return StubOps(layer) if isinstance(layer, StubLinear) else None


def stub_ops_without_read(layer: nn.Module) -> StubOps | None:
    ops = frozenset({Op.FORWARD, Op.GRAD_INPUT})
    return StubOps(layer, ops) if isinstance(layer, StubLinear) else None


def tiny(dtype: torch.dtype = torch.float64, **changes: Any) -> SmolLM3ForCausalLM:
    """A random SmolLM3 with tied embeddings and one layer without RoPE."""
    config = SmolLM3Config(
        **{
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "intermediate_size": 128,
            "vocab_size": 128,
            "no_rope_layers": [1, 0],
            "max_position_embeddings": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": True,
            "attn_implementation": "eager",
            **changes,
        }
    )
    torch.manual_seed(0)
    model = SmolLM3ForCausalLM(config).to(dtype).eval()
    model.requires_grad_(False)
    model.__dict__["name_or_path"] = "someone/tiny-model"
    return model


def swap_linears(model: nn.Module, kind: type, make: Any) -> nn.Module:
    for name, module in list(model.named_modules()):
        if isinstance(module, kind) and not name.endswith("lm_head"):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, make(module))
    return model


def make_dense(stub: StubLinear) -> nn.Linear:
    weight = stub.dense()
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=stub.bias is not None, dtype=weight.dtype)
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if stub.bias is not None:
        linear.bias = nn.Parameter(stub.bias.detach().clone(), requires_grad=False)
    return linear


def dense_copy(model: nn.Module) -> Any:
    return swap_linears(copy.deepcopy(model), StubLinear, make_dense)


def make_base(kind: str, dtype: torch.dtype = torch.float64, model: Any = None) -> Base:
    """`none`: ordinary layers; `stub`: every linear layer except the head is quantized."""
    model = tiny(dtype) if model is None else model
    if kind == "none":
        return Base(model=model, fingerprint="none")
    return Base(model=swap_linears(model, nn.Linear, StubLinear), fingerprint="stub", ops_for=stub_ops)


def context(dtype: torch.dtype = torch.float64, purpose: Purpose = Purpose.TRAIN) -> BuildContext:
    name = str(dtype).removeprefix("torch.")
    none: Any = None
    return BuildContext(purpose=purpose, device="cpu", dtype=name, seed=3, cache=none, progress=none)


def load(dotted: str) -> Any:
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)


def make_adapter(method: str, **options: Any) -> Any:
    spec: AdapterSpec = BY_NAME[method]
    return load(spec.factory)(load(spec.options)(**{**SMALL.get(method, {}), **options}))


IDS = torch.randint(3, 128, (2, 10), generator=torch.Generator().manual_seed(1))


def logits(model: Any, ids: Tensor = IDS, **kwargs: Any) -> Tensor:
    """Logits (B, T, V) in eval mode, without the positions of a learned prompt."""
    model.eval()
    with torch.no_grad():
        out: Tensor = model(input_ids=ids, use_cache=False, **kwargs).logits
    return out[:, -ids.shape[1] :]


def gradients(model: Any) -> tuple[float, dict[str, Tensor]]:
    """The loss, and the gradient of every trained parameter, in train mode."""
    model.train()
    model.zero_grad()
    torch.manual_seed(7)
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    return loss.item(), grads


def distance(a: Tensor, b: Tensor) -> float:
    """Relative norm of the difference."""
    return float((a - b).norm() / b.norm())


def gradient_distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert set(a) == set(b), "different parameters are trained"
    flat = [torch.cat([grads[k].flatten() for k in sorted(grads)]) for grads in (a, b)]
    return distance(*flat)


def packing_leak(model: Any) -> float:
    """How much the logits of the second of two packed rows change if the first row changes."""
    positions = torch.arange(10).repeat(2)[None]
    rows = IDS.reshape(1, -1)
    changed = rows.clone()
    changed[0, :10] = (changed[0, :10] + 17) % 128
    a, b = (logits(model, r, position_ids=positions)[:, 10:] for r in (rows, changed))
    return distance(a, b)


def run(method: str, kind: str, dtype: torch.dtype, tmp: Path) -> SimpleNamespace:
    """Evaluate, train, evaluate, save, train, restore; compare the gradients with a dense copy's at each step."""
    r = SimpleNamespace(method=method, kind=kind, dtype=dtype, spec=BY_NAME[method], gradient=[], losses=[])
    base = make_base(kind, dtype)
    base_ids = {id(t) for t in base.model.parameters()}
    r.layers = {"", *(name for name, _ in base.model.named_modules())}
    before = logits(base.model)
    StubLinear.reads = 0
    adapted = make_adapter(method).attach(base, context(dtype), 20)
    model = adapted.model
    r.roles = {p.name: p for p in trained_parameters(adapted)}
    r.decaying = set(Trainer.get_decay_parameter_names(None, model))
    r.identity = distance(logits(model), before)
    gradients(model)
    r.reads = StubLinear.reads
    model.zero_grad()
    trained = [p for p in model.parameters() if p.requires_grad]
    r.trains_base = any(id(p) in base_ids for p in trained)
    r.trained_dtypes = {p.dtype for p in trained}

    adapted.save(tmp / "start")
    dense = Base(model=dense_copy(make_base(kind, dtype).model), fingerprint="dense")
    reference = make_adapter(method).restore(dense, tmp / "start", context(dtype), None).model

    def train(model: Any) -> float:
        """Compare gradients with those of the dense copy (on ordinary layers, the base itself); return the loss."""
        loss, grads = gradients(model)
        if kind == "none" and model is adapted.model:
            return loss
        parameters = dict(reference.named_parameters())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameters[name].copy_(parameter)
        r.gradient.append(gradient_distance(grads, gradients(reference)[1]))
        return loss

    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE.get(method, 1e-2))
    for step in (1, 2, 3):
        r.losses.append(train(model))
        optimizer.step()
        adapted.on_step(step)
        after = logits(model)
        adapted.save(tmp / "between")
    r.losses.append(gradients(model)[0])
    model.zero_grad()
    r.moved = distance(after, before)
    r.leak = packing_leak(model)
    if r.spec.disables:
        flags = [p.requires_grad for p in model.parameters()]
        with adapted.disabled():
            r.disabled = distance(logits(model), before)
        r.enabled = distance(logits(model), after)
        r.flags_kept = flags == [p.requires_grad for p in model.parameters()]
    path = tmp / "saved"
    adapted.save(path)
    r.files = sorted(p.name for p in path.iterdir())
    for purpose in (Purpose.INFER, Purpose.TRAIN):
        restored = make_adapter(method).restore(make_base(kind, dtype), path, context(dtype, purpose), None)
        setattr(r, f"restored_{purpose}", distance(logits(restored.model), after))
        count = sum(p.numel() for p in restored.model.parameters() if p.requires_grad)
        setattr(r, f"trained_{purpose}", count / sum(p.numel() for p in trained))
    train(restored.model)
    r.path, r.adapted, r.after = path, adapted, after
    return r


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def lab() -> SimpleNamespace:
    """The helpers above: test modules cannot import each other."""
    return SimpleNamespace(**{name: value for name, value in globals().items() if not name.startswith("_")})
