"""What users read about `hqq`; the conformance kit tests what every quantizer promises."""

from __future__ import annotations

import pytest

pytest_plugins = ["smollm3_finetune.testing.fixtures"]
pytestmark = pytest.mark.plugins


def test_the_help_shows_every_option(cli):
    shown = cli("plugins", "info", "hqq", "--device", "cpu")
    assert shown.code == 0, shown.stderr
    assert "hqq>=0.2.8,<0.3" in shown.stdout
    for option in ("bits", "group_size", "axis", "skip_modules"):
        assert option in shown.stdout


@pytest.mark.parametrize("option", ["bits=5", "group_size=12", "group_size=0", "axis=2", "nbits=4"])
def test_wrong_options_are_refused_in_one_sentence(cli, small_model, option):
    done = cli("config", "validate", "--model", small_model, "--quant", "hqq", "--quant-opt", option)
    assert done.code == 2, done.stdout
    assert option.partition("=")[0] in done.stderr


def test_a_group_size_that_does_not_fit_is_reported_by_a_dry_run(cli, small_model):
    done = cli("config", "validate", "--model", small_model, "--quant", "hqq", "--quant-opt", "group_size=24")
    assert done.code == 2
    assert "groups of 24 do not divide the 128 in_features of model.layers.0.mlp.down_proj" in done.stderr
    assert "--quant-opt group_size=64" in done.stderr


def test_methods_that_need_a_dense_weight_are_refused_with_the_reason(cli, small_model):
    done = cli("config", "validate", "--model", small_model, "--quant", "hqq", "--adapter", "full", "--device", "cpu")
    assert done.code != 0
    assert "codes of few bits" in done.stderr
