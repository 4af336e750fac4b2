"""Find the layer of an architecture for each quantized layer of a checkpoint, by name and shape. Imports no torch.

Some checkpoints split layers of transformers: `gate_up_proj` is stored as `gate_proj` and `up_proj`. The rows of a
fused weight are those of its parts, one part after the other, so the parts can be joined without rounding. The experts
of a mixture, which are one tensor `experts.gate_up_proj`, are stored as `experts.0.gate_proj` and so on; each expert
gets a place `experts.gate_up_proj.0`. Checkpoints with layers that have no place cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from smollm3_finetune.errors import ModelError

StoredShapes = Mapping[str, tuple[int, int] | None]
"""Name of a layer to (output features, input features); None if they are not known."""
Shapes = Mapping[str, tuple[int, int]]
Stacks = Mapping[str, tuple[int, int, int]]
"""Name of the stacked weight of experts to (experts, output features, input features)."""

OLD_PARENTS = {"block_sparse_moe": "mlp"}
"""Names of modules in checkpoints of earlier versions of transformers, and their names now."""
OLD_EXPERTS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
"""Names of the layers of an expert, and their names in Mixtral's checkpoints."""


def place(quantized: StoredShapes, architecture: Shapes, stacks: Stacks) -> dict[str, tuple[str, ...]]:
    """See `smollm3_finetune.api.place_layers`."""
    experts = _place_experts(quantized, stacks)
    used = {part for parts in experts.values() for part in parts}
    return experts | _place_layers({n: s for n, s in quantized.items() if n not in used}, architecture)


def _place_experts(quantized: StoredShapes, stacks: Stacks) -> dict[str, tuple[str, ...]]:
    by_parent: dict[str, dict[str, str]] = {}
    for name in quantized:
        parent, _, own = name.rpartition(".")
        for known_as in (parent, *(parent.replace(f".{old}.", f".{new}.") for old, new in OLD_PARENTS.items())):
            by_parent.setdefault(known_as, {})[own] = name
    placed = {}
    for stack, (count, out, inputs) in stacks.items():
        owner, _, own = stack.rpartition(".")
        found = {}
        for expert in range(count):
            layers = by_parent.get(f"{owner}.{expert}", {})
            layers = {now: layers[old] for now, old in OLD_EXPERTS.items() if old in layers} or layers
            parts = (own,) if own in layers else _spelled(own, tuple(layers))
            names = tuple(layers[part] for part in parts)
            if names and _fits([quantized[n] for n in names], (out, inputs)):
                found[f"{stack}.{expert}"] = names
        if len(found) == count:
            placed.update(found)
    return placed


def _place_layers(quantized: StoredShapes, architecture: Shapes) -> dict[str, tuple[str, ...]]:
    placed: dict[str, tuple[str, ...]] = {name: (name,) for name in quantized if name in architecture}
    for name in placed:
        shape = quantized[name]
        if shape is not None and tuple(shape) != tuple(architecture[name]):
            raise ModelError(
                f"the checkpoint has a quantized layer {name!r} of shape {tuple(shape)}, but the architecture has "
                f"{tuple(architecture[name])}"
            )
    absent: dict[str, list[str]] = {}
    for name in quantized:
        if name not in placed:
            absent.setdefault(name.rpartition(".")[0], []).append(name)
    siblings: dict[str, list[str]] = {}
    for name in architecture:
        parent = name.rpartition(".")[0]
        if parent in absent and name not in placed:
            siblings.setdefault(parent, []).append(name)
    for parent, names in absent.items():
        left = set(names)
        for fused in siblings.get(parent, ()):
            parts = _parts(fused, sorted(left))
            if parts and _fits([quantized[p] for p in parts], architecture[fused]):
                placed[fused] = parts
                left -= set(parts)
        if left:
            raise ModelError(f"the checkpoint has a quantized layer {min(left)!r}, which the architecture lacks")
    return placed


def _parts(fused: str, names: Iterable[str]) -> tuple[str, ...]:
    """The layers whose names make up the name of a fused layer, in its order; empty if they do not.

    `gate_up_proj` has the parts `gate_proj` and `up_proj`, and `qkv_proj` has `q_proj`, `k_proj` and `v_proj`.
    """
    parent, _, own = fused.rpartition(".")
    children = [name.rpartition(".")[2] for name in names if name.rpartition(".")[0] == parent]
    return tuple(f"{parent}.{part}" for part in _spelled(own, children))


def _spelled(own: str, children: Iterable[str]) -> tuple[str, ...]:
    """The children whose names make up the name `own`, in its order; empty if they do not."""
    stem, _, kind = own.rpartition("_")
    stems = {}
    for child in children:
        first, _, last = child.rpartition("_")
        if first and last == kind:
            stems[first] = child

    def spell(rest: str) -> tuple[str, ...] | None:
        if not rest:
            return ()
        for first, child in stems.items():
            if rest.startswith(first):
                more = spell(rest.removeprefix(first).removeprefix("_"))
                if more is not None:
                    return (child, *more)
        return None

    return (spell(stem) or ()) if stem else ()


def _fits(parts: list[tuple[int, int] | None], whole: tuple[int, int]) -> bool:
    known = [part for part in parts if part is not None]
    outputs, complete = sum(out for out, _ in known), len(known) == len(parts)
    return all(inputs == whole[1] for _, inputs in known) and (outputs == whole[0] if complete else outputs < whole[0])


def linear_shapes(model: Any) -> dict[str, tuple[int, int]]:
    """See `smollm3_finetune.api.linear_shapes`."""
    found = {}
    for name, module in model.named_modules():
        shape: tuple[int, ...] = tuple(getattr(getattr(module, "weight", None), "shape", ()))
        if len(shape) == 2 and any(c.__name__ in ("Linear", "Conv1D") for c in type(module).__mro__):
            out, inputs = (shape[1], shape[0]) if hasattr(module, "nf") else (shape[0], shape[1])
            found[name] = (int(out), int(inputs))
    return found
