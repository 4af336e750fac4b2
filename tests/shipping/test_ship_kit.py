"""The conformance kit on formats and adapters that ship: the right ones pass, and each fault is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import grid_quantizers
import pytest
import rank_one_adapter
import torch

from smollm3_finetune.testing import AdapterConformance
from smollm3_finetune.testing.exporters import ExporterConformance
from smollm3_finetune.testing.quantizers import QuantizerConformance
from smollm3_finetune.testing.round_trips import RoundTripTests

ROUND_TRIPS = [name for name in vars(RoundTripTests) if name.startswith("test_")]
SHIPS = ("test_a_merged_weight_is_what_a_merge_writes", "test_a_merged_weight_has_the_gradient_of_the_adapter")


class Grid(QuantizerConformance):
    component = "grid"
    plugins = ("grid_quantizers.py",)
    bits = 4


class GridFile(Grid):
    component = "grid-file"
    options: ClassVar = {"bits": 3, "embeddings": True}


class GridRows(Grid):
    component = "grid-rows"


class NoTrip(Grid):
    component = "no-trip"


class GridExport(ExporterConformance):
    component = "grid-export"
    plugins = ("grid_quantizers.py",)


class RankOne(AdapterConformance):
    component = "rank-one"
    plugins = ("rank_one_adapter.py",)


@pytest.mark.parametrize("case", [Grid, GridFile, GridRows, GridExport])
@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_the_round_trips_of_the_tests_pass(case: Any, name: str, tmp_path: Path) -> None:
    getattr(case(), name)(tmp_path)


def test_a_quantizer_without_a_round_trip_is_not_tested(tmp_path: Path) -> None:
    for name in ROUND_TRIPS:
        with pytest.raises(pytest.skip.Exception, match="no round trip is declared"):
            getattr(NoTrip(), name)(tmp_path)


@pytest.mark.parametrize("name", [*SHIPS, "test_starts_as_the_base_where_declared"])
def test_an_adapter_outside_peft_ships(name: str, tmp_path: Path) -> None:
    getattr(RankOne(), name)(tmp_path)


def _floor(self: Any, layer: str, weight: torch.Tensor, grid: Any) -> torch.Tensor:
    scale = self.scale(weight)
    return (weight / scale).floor() * scale


def _in_place(self: Any, layer: str, weight: torch.Tensor, grid: Any) -> torch.Tensor:
    return weight.round_()


def _random(self: Any, layer: str, weight: torch.Tensor, grid: Any) -> torch.Tensor:
    return weight + torch.rand_like(weight)


@pytest.mark.parametrize(
    ("apply", "name", "says"),
    [
        (_in_place, "test_a_round_trip_is_pure_and_deterministic", "apply() changed its arguments"),
        (_random, "test_a_round_trip_is_pure_and_deterministic", "returned two results"),
    ],
)
def test_a_faulty_round_trip_is_named(
    apply: Any, name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid_quantizers.Rounding, "apply", apply)
    with pytest.raises(pytest.fail.Exception) as failed:
        getattr(Grid(), name)(tmp_path)
    assert says in str(failed.value)


def test_a_round_trip_that_is_not_what_is_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(grid_quantizers.Rounding):
        apply = _floor

    monkeypatch.setattr(grid_quantizers.Grid, "round_trip", lambda self, source, ctx: Other(self.options))
    with pytest.raises(pytest.fail.Exception, match=r"weights of model\.layers\.0\.\S+ in the written model differ"):
        Grid().test_a_round_trip_is_what_the_written_model_computes_with(tmp_path)


@pytest.mark.parametrize(
    ("merged", "says"),
    [
        (
            lambda part, weight: weight + 1.0001 * part.up.unsqueeze(1) * part.down.unsqueeze(0),
            "differs from the weight",
        ),
        (lambda part, weight: weight.add_(1), "changed the weight that it was given"),
    ],
)
def test_a_wrong_merged_weight_is_named(
    merged: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = rank_one_adapter.merged
    monkeypatch.setattr(rank_one_adapter, "merged", merged)
    monkeypatch.setattr(
        rank_one_adapter.RankOneAdapter, "merge", _merge_with(right, rank_one_adapter.RankOneAdapter.merge, monkeypatch)
    )
    with pytest.raises(pytest.fail.Exception) as failed:
        RankOne().test_a_merged_weight_is_what_a_merge_writes(tmp_path)
    assert says in str(failed.value)


def _merge_with(right: Any, merge: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    def merged_rightly(self: Any, dense: Any, path: Path) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(rank_one_adapter, "merged", right)
            return merge(self, dense, path)

    return merged_rightly
