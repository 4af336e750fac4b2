"""The heap of glibc, from which torch takes the tensors of a CPU: what stays resident beside the tensors themselves.

glibc gives a large block pages of its own if the block is at least as large as a threshold, which rises to the size of
each such block that is freed (to 32 MiB at most). Smaller blocks come from the heap, best fit first. torch aligns
tensors to 64 bytes, and large ones to pages where it uses huge pages. For 64 bytes, glibc needs 96 bytes more than the
tensor has, and returns what is left before and behind it. Small objects take some of these pieces. A freed block whose
pieces are taken cannot hold another tensor of the same size: it stays resident, and the next tensor is placed behind
it. Source: glibc 2.36, malloc/malloc.c.
"""

from __future__ import annotations

import bisect
from collections.abc import Hashable

SMALLEST = 32
PAGE = 4096
PADDING = 128 * 1024
"""What the heap grows by beside the block that needs it, and the first threshold."""
HIGHEST_THRESHOLD = 32 * 2**20
ALIGNMENT = 64
LARGE, LARGE_ALIGNMENT = 2 * 2**20, PAGE
"""Tensors of this size are aligned to pages where torch allocates huge pages (torch 2.13)."""
SMALL = 200
"""Pieces up to this size go to small objects."""


class Heap:
    """Blocks by their handles; `resident` is what they and the holes between them take."""

    def __init__(self, threshold: int = PADDING, share: float = 1.0, *, huge_pages: bool = False) -> None:
        """Small objects take this share of the pieces."""
        self.threshold, self.share, self.huge_pages = threshold, share, huge_pages
        self._cut = 0.0
        self.peak = 0
        self._top = self._end = PAGE
        self._size: dict[int, int] = {}
        self._previous: dict[int, int] = {}
        self._free: set[int] = set()
        self._holes: list[tuple[int, int]] = []
        """Size and place of each free block, the smallest first."""
        self._own: dict[int, int] = {}
        """Blocks with pages of their own."""
        self._pages = 0
        self._blocks: dict[Hashable, int] = {}
        self._pieces: list[int] = []
        self._next = -1

    @property
    def resident(self) -> int:
        return self._end - PAGE + self._pages

    @property
    def pieces(self) -> int:
        """The number of pieces that small objects have taken."""
        return len(self._pieces)

    def allocate(self, handle: Hashable, size: int) -> None:
        """Place a tensor of `size` bytes."""
        wanted = max(SMALLEST, _rounded(size + 8))
        alignment = LARGE_ALIGNMENT if self.huge_pages and size >= LARGE else ALIGNMENT
        place = self._place(max(SMALLEST, _rounded(size + alignment + SMALLEST + 8)))
        if place is None:
            place, self._next = self._next, self._next - 1
            self._own[place] = -(-(size + alignment + SMALLEST + 16) // PAGE) * PAGE
            self._pages += self._own[place]
        else:
            place = self._aligned(place, wanted, alignment)
        self._blocks[handle] = place
        self.peak = max(self.peak, self.resident)

    def release(self, handle: Hashable) -> None:
        """Free a tensor; a handle that is not known is ignored."""
        place = self._blocks.pop(handle, None)
        if place is None:
            return
        if place < 0:
            pages = self._own.pop(place)
            self._pages -= pages
            if self.threshold < pages <= HIGHEST_THRESHOLD:
                self.threshold = pages
            return
        self._give_back(place)

    def release_pieces(self, count: int) -> None:
        """Free the last `count` pieces that small objects have taken."""
        for _ in range(min(count, len(self._pieces))):
            self._give_back(self._pieces.pop())

    def _set(self, place: int, size: int) -> None:
        self._size[place] = size
        self._previous[place + size] = place

    def _place(self, size: int) -> int | None:
        """A block of `size` bytes; None if it needs pages of its own."""
        index = bisect.bisect_left(self._holes, (size, 0))
        if index < len(self._holes):
            found, place = self._holes.pop(index)
            self._free.discard(place)
            if found - size >= SMALLEST:
                self._set(place, size)
                self._set(place + size, found - size)
                self._add_hole(place + size)
            return place
        if self._end - self._top < size + SMALLEST:
            if size >= self.threshold:
                return None
            missing = size + PADDING + SMALLEST - (self._end - self._top)
            self._end += -(-missing // PAGE) * PAGE
        place = self._top
        self._set(place, size)
        self._top = place + size
        return place

    def _aligned(self, place: int, wanted: int, alignment: int) -> int:
        """Cut what is before and behind the aligned tensor off a block."""
        size = self._size[place]
        before = -(place + 16) % alignment
        before += alignment if 0 < before < SMALLEST else 0
        if before:
            self._set(place, before)
            self._set(place + before, size - before)
            self._cut_off(place)
            place, size = place + before, size - before
        if size > wanted + SMALLEST:
            behind = place + wanted
            self._set(place, wanted)
            if behind + size - wanted == self._top:
                self._top = behind
            else:
                self._set(behind, size - wanted)
                self._cut_off(behind)
        return place

    def _cut_off(self, place: int) -> None:
        before = self._cut
        self._cut += self.share
        if self._size[place] <= SMALL and int(self._cut) > int(before):
            self._pieces.append(place)
        else:
            self._give_back(place)

    def _add_hole(self, place: int) -> None:
        self._free.add(place)
        bisect.insort(self._holes, (self._size[place], place))

    def _remove_hole(self, place: int) -> None:
        self._free.discard(place)
        self._holes.pop(bisect.bisect_left(self._holes, (self._size[place], place)))

    def _give_back(self, place: int) -> None:
        """Free a block of the heap, and join it with free neighbors."""
        size = self._size[place]
        before = self._previous.get(place)
        if before is not None and before in self._free:
            self._remove_hole(before)
            size += self._size[before]
            del self._size[place]
            place = before
        behind = place + size
        if behind in self._free:
            self._remove_hole(behind)
            size += self._size.pop(behind)
        if place + size == self._top:
            self._top = place
            self._size.pop(place, None)
        else:
            self._set(place, size)
            self._add_hole(place)
        if size >= 65536 and self._end - self._top > 2 * self.threshold:
            self._end = -(-(self._top + PADDING + SMALLEST) // PAGE) * PAGE


def _rounded(size: int) -> int:
    return -(-size // 16) * 16
