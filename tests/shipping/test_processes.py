"""Under several processes, every one computes with the grids of the first."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from shipped_models import trained

pytest.importorskip("peft")


def test_the_grids_are_those_of_the_first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = trained("grid-export").adapted
    assert alone is not None
    other = {name: {k: 2 * v for k, v in grid.items()} for name, grid in alone.grids().items()}  # type: ignore[attr-defined]

    def receive(values: list[object]) -> None:
        assert values == [None], "only the first process sends"
        values[0] = other

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "broadcast_object_list", receive)
    found = trained("grid-export").adapted
    assert found is not None
    grids = found.grids()  # type: ignore[attr-defined]
    assert grids.keys() == other.keys()
    for name, grid in other.items():
        assert torch.equal(grids[name]["scale"], grid["scale"])
        assert torch.equal(found.layers[name].grid["scale"], grid["scale"])  # type: ignore[attr-defined]
