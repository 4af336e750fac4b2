"""Tests: the promises of the descriptor (conformance kit), and the formula of LoReFT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from smollm3_reft.adapter import Edit, ReftAdapter
from smollm3_reft.options import ReftOptions

from smollm3_finetune.api import ConfigError
from smollm3_finetune.testing import AdapterConformance, plan


class TestReft(AdapterConformance):
    component = "reft"


@pytest.mark.long
class TestReftOfOneBlock(AdapterConformance):
    component = "reft"
    options: ClassVar[Mapping[str, Any]] = {"rank": 1, "blocks": [1]}


def attached(**options: Any) -> Any:
    model = plan("tiny", adapter="reft")
    base = model.quantizer.create().load(model.source, model.context)
    return ReftAdapter(ReftOptions(**options)).attach(base, model.context, None)


@pytest.mark.parametrize(
    ("options", "reason"), [({"blocks": (-1,)}, "no block -1"), ({"rank": 10_000}, "more than the")]
)
def test_options_that_do_not_fit_the_model_are_an_error(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        attached(**options)


def test_only_the_named_blocks_are_edited() -> None:
    assert [name.rpartition(".")[0].rpartition(".")[2] for name in attached(blocks=(1, 0, 1)).parts] == ["1", "0"]


def test_the_edit_is_the_formula_of_the_paper_and_its_rows_stay_orthonormal(tmp_path: Path) -> None:
    edit: Edit = attached(rank=3, blocks=(0,)).parts["model.layers.0.reft"].double()
    for parameter in edit.parameters():
        parameter.data += torch.randn_like(parameter)
    rows = edit.subspace()
    torch.testing.assert_close(rows @ rows.T, torch.eye(3, dtype=torch.float64))
    h = torch.randn(5, rows.shape[1], dtype=torch.float64)
    expected = torch.stack([rows.T @ (edit.source @ one + edit.bias - rows @ one) for one in h])
    torch.testing.assert_close(edit(h), expected)
    torch.testing.assert_close(edit(h) - edit(h) @ rows.T @ rows, torch.zeros_like(h))  # nothing outside the subspace
