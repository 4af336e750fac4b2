"""What users read about `torchao-int8`; the conformance kit tests what every quantizer promises."""

from __future__ import annotations

import pytest

pytest_plugins = ["smollm3_finetune.testing.fixtures"]
pytestmark = pytest.mark.plugins


def test_the_help_shows_every_option(cli):
    shown = cli("plugins", "info", "torchao-int8", "--device", "cpu")
    assert shown.code == 0, shown.stderr
    assert "torchao>=0.18,<0.19" in shown.stdout
    for option in ("group_size", "skip_modules"):
        assert option in shown.stdout


@pytest.mark.parametrize("option", ["group_size=12", "group_size=0", "bits=8"])
def test_wrong_options_are_refused_in_one_sentence(cli, small_model, option):
    done = cli("config", "validate", "--model", small_model, "--quant", "torchao-int8", "--quant-opt", option)
    assert done.code == 2, done.stdout
    assert option.partition("=")[0] in done.stderr


@pytest.mark.parametrize("adapter", ["full", "glora"])
def test_methods_that_need_a_dense_weight_are_refused_though_the_layer_is_an_nn_linear(cli, small_model, adapter):
    where = ("--model", small_model, "--device", "cpu")
    done = cli("config", "validate", *where, "--quant", "torchao-int8", "--adapter", adapter)
    assert done.code != 0
    assert "a tensor of torchao's own class" in done.stderr
