"""Replays a traced step of a model with more layers than were traced, allocation by allocation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smollm3_finetune.memory.heap import Heap

if TYPE_CHECKING:
    from smollm3_finetune.memory.reduce import Stack
    from smollm3_finetune.memory.trace import Segment

STEPS = 2
"""Steps that are replayed: holes of the first step take part in the second."""
LAYERS = (4, 8)
"""Numbers of layers that are replayed if a model has more; what the heap keeps grows evenly with the layers."""
Place = tuple[str, int]
"""Forward or backward pass and the layer of the complete model; -1: what is not in a layer."""
Handle = tuple[Place, int]


@dataclass(frozen=True, kw_only=True)
class Before:
    """What is on the heap when training begins, and what the first step adds to it: sizes of tensors in bytes."""

    resident: Sequence[int]
    after_first_step: Sequence[int]
    threshold: int
    share: float = 1.0
    """Small objects take this share of the pieces of the heap; see `memory.heap`."""
    huge_pages: bool = False
    """Whether torch allocates large tensors in huge pages."""


def kept_by_heap(segments: list[Segment], stack: Stack, before: Before, live: int) -> int:
    """Bytes that the heap takes at most beside `live`, the most that is allocated in a step of the complete model.

    `live` is without what is in `before`.
    """
    chain = stack.chain
    if len(chain) <= LAYERS[1]:
        return max(_resident(segments, stack.name, chain, before) - live - _sum(before), 0)
    few, many = (_shortened(chain, n) for n in LAYERS)
    slacks = [
        _resident(segments, stack.name, part, before) - _live(segments, stack.name, part) - _sum(before)
        for part in (few, many)
    ]
    each = (slacks[1] - slacks[0]) / (LAYERS[1] - LAYERS[0])
    return max(int(slacks[1] + each * (len(chain) - LAYERS[1])), 0)


def _sum(before: Before) -> int:
    return sum(before.resident) + sum(before.after_first_step)


def _shortened(chain: tuple[int, ...], count: int) -> tuple[int, ...]:
    return (*chain[:2], *chain[len(chain) - count + 2 :])


def _live(segments: list[Segment], name: str, chain: tuple[int, ...]) -> int:
    live = peak = 0
    for _, segment in ordered(segments, name, chain):
        peak = max(peak, live + segment.rise)
        live += segment.kept
    return peak


def ordered(segments: list[Segment], name: str, chain: tuple[int, ...]) -> Iterator[tuple[Place, Segment]]:
    """The segments of a model with this chain of layers, in the order in which it runs."""
    by_name = {s.name: s for s in segments}
    first = next((i for i, s in enumerate(segments) if s.name.startswith(f"forward {name}.")), len(segments))
    yield from ((("forward", -1), s) for s in segments[:first])
    for position, index in enumerate(chain):
        if (segment := by_name.get(f"forward {name}.{index}")) is not None:
            yield ("forward", position), segment
    yield from (((s.name.partition(" ")[0], -1), s) for s in segments[first:] if f" {name}." not in s.name)
    for position, index in reversed([*enumerate(chain)]):
        if (segment := by_name.get(f"backward {name}.{index}")) is not None:
            yield ("backward", position), segment


def _resident(segments: list[Segment], name: str, chain: tuple[int, ...], before: Before) -> int:
    """The most that the heap takes while the steps are replayed."""
    heap = Heap(before.threshold, before.share, huge_pages=before.huge_pages)
    for number, size in enumerate(before.resident):
        heap.allocate(("before", number), size)
    names = _Names(segments, name, chain)
    for step in range(STEPS):
        made: list[Handle] = []
        pieces = backward = 0
        parts = [*ordered(segments, name, chain)]
        count = sum(len(s.events) for place, s in parts if place[0] == "backward")
        for place, segment in parts:
            for number, size in segment.events:
                if size >= 0:
                    handle = names.made(place, number)
                    heap.allocate(handle, max(size, 1))
                    made.append(handle)
                else:
                    heap.release(names.freed(place, number))
                if place[0] == "forward":
                    pieces = heap.pieces
                else:  # the objects of the graph are freed while it is walked back
                    backward += 1
                    heap.release_pieces(heap.pieces - max(int(pieces * (1 - backward / max(count, 1))), 0))
        if not step:
            for number, size in enumerate(before.after_first_step):
                heap.allocate(("state", number), size)
        for handle in made:
            heap.release(handle)
        heap.release_pieces(heap.pieces)
    return heap.peak


class _Names:
    """Finds the tensor of the complete model that corresponds to a tensor of the trace.

    A tensor that another layer frees, such as the output of a layer, corresponds to the one that is made in the same
    order by the layer in its place.
    """

    def __init__(self, segments: list[Segment], name: str, chain: tuple[int, ...]) -> None:
        self.chain = chain
        self.origin: dict[int, tuple[str, int]] = {}
        """The pass and the kept layer in which a tensor was made."""
        ends: dict[int, tuple[str, int]] = {}
        for segment in segments:
            direction, _, place = segment.name.partition(" ")
            layer = int(place.removeprefix(f"{name}.")) if place.startswith(f"{name}.") else -1
            for number, size in segment.events:
                if size >= 0:
                    self.origin[number] = direction or "forward", layer
                else:
                    ends[number] = direction or "forward", layer
        self.escaping: dict[tuple[str, int], list[int]] = defaultdict(list)
        for number, origin in self.origin.items():
            if ends.get(number, (None, None))[1] != origin[1]:
                self.escaping[origin].append(number)

    def made(self, place: Place, number: int) -> Handle:
        return (place[0], place[1]), number

    def freed(self, place: Place, number: int) -> Handle:
        direction, layer = self.origin.get(number, ("forward", -1))
        if layer < 0:
            return (direction, -1), number
        position = place[1]
        if position < 0:
            position = len(self.chain) - 1
            distance = 0
        else:
            distance = layer - self.chain[position]
        there = position + max(-1, min(1, distance))
        if not 0 <= there < len(self.chain):
            return (direction, -2), number
        index = self.chain[there]
        if index != layer:
            own, other = self.escaping[(direction, layer)], self.escaping[(direction, index)]
            if number in own and own.index(number) < len(other):
                number = other[own.index(number)]
        return (direction, there), number
