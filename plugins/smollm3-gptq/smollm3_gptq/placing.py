"""Find the layer of an architecture for each quantized layer, by name and shape. Imports no torch.

gptqmodel splits some layers of transformers before it quantizes: `gate_up_proj` becomes `gate_proj` and `up_proj`. The
rows of a fused weight are those of its parts, one part after the other, so the parts can be joined without rounding.
Layers that have no place, such as the single experts of a mixture whose experts are one tensor, cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, int]]
"""Name of a layer to (output features, input features)."""


class Unplaced(Exception):
    """A quantized layer has no place in the architecture; the message names and describes it."""


def place(quantized: Shapes, architecture: Shapes) -> dict[str, tuple[str, ...]]:
    """Name of each quantized layer of the architecture to the names of its parts, in the order of its outputs.

    Most layers are their own only part. Raises Unplaced for a layer without a place, or of another shape.
    """
    placed: dict[str, tuple[str, ...]] = {name: (name,) for name in quantized if name in architecture}
    for name in placed:
        if tuple(quantized[name]) != tuple(architecture[name]):
            raise Unplaced(
                f"a quantized layer {name!r} of shape {tuple(quantized[name])}, but the architecture has "
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
            raise Unplaced(f"a quantized layer {min(left)!r}, which the architecture lacks")
    return placed


def _parts(fused: str, names: Iterable[str]) -> tuple[str, ...]:
    """The layers whose names make up the name of a fused layer, in its order; empty if they do not.

    `gate_up_proj` has the parts `gate_proj` and `up_proj`, and `qkv_proj` has `q_proj`, `k_proj` and `v_proj`.
    """
    parent, _, own = fused.rpartition(".")
    stem, _, kind = own.rpartition("_")
    stems = {}
    for name in names:
        first, _, last = name.rpartition(".")[2].rpartition("_")
        if name.rpartition(".")[0] == parent and first and last == kind:
            stems[first] = name

    def spell(rest: str) -> tuple[str, ...] | None:
        if not rest:
            return ()
        for first, name in stems.items():
            if rest.startswith(first):
                more = spell(rest.removeprefix(first).removeprefix("_"))
                if more is not None:
                    return (name, *more)
        return None

    return (spell(stem) or ()) if stem else ()


def _fits(parts: list[tuple[int, int]], whole: tuple[int, int]) -> bool:
    return sum(out for out, _ in parts) == whole[0] and all(inputs == whole[1] for _, inputs in parts)


def linear_shapes(model: Any) -> dict[str, tuple[int, int]]:
    """The layers of a model that can be quantized: linear layers, and Conv1D, whose weight is (in, out)."""
    found = {}
    for name, module in model.named_modules():
        shape: tuple[int, ...] = tuple(getattr(getattr(module, "weight", None), "shape", ()))
        if len(shape) == 2 and _is_linear(type(module)):
            out, inputs = (shape[1], shape[0]) if hasattr(module, "nf") else (shape[0], shape[1])
            found[name] = (int(out), int(inputs))
    return found


def _is_linear(kind: type) -> bool:
    return any(c.__name__ in ("Linear", "Conv1D") for c in kind.__mro__)
