"""Every hook and every version of the contract has its dates, and a removal its notice."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from smollm3_finetune.api import API_VERSION
from smollm3_finetune.components.kinds import KINDS
from smollm3_finetune.components.lifetimes import API_VERSIONS, HOOKS, Lifetime


def test_every_hook_and_every_version_has_its_dates() -> None:
    assert list(HOOKS) == [kind.hook for kind in KINDS]
    assert list(API_VERSIONS) == list(range(1, API_VERSION + 1))
    assert API_VERSIONS[API_VERSION].deprecated is None


@pytest.mark.parametrize("life", [*HOOKS.values(), *API_VERSIONS.values()])
def test_what_is_deprecated_has_a_replacement_and_a_year_of_notice(life: Lifetime) -> None:
    assert life.since <= date.today()
    assert bool(life.instead) == (life.deprecated is not None)
    if life.deprecated is not None and life.until is not None:
        assert life.deprecated >= life.since
        assert life.until - life.deprecated >= timedelta(days=365)
