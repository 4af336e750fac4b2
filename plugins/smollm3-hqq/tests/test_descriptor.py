"""What the plugin offers and refuses, without what it needs to do it."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from smollm3_hqq import check, smollm3_quantizers
from smollm3_hqq.options import HQQOptions

from smollm3_finetune.api import ConfigError, IncompatibleError, Op

pytest_plugins = ["smollm3_finetune.testing.fixtures"]
pytestmark = pytest.mark.plugins

LIGHT = """
import sys
for name in ("torch", "transformers", "hqq", "numpy", "accelerate"):
    sys.modules[name] = None  # any import of it raises
from types import SimpleNamespace
import smollm3_hqq, smollm3_hqq.options
(spec,) = smollm3_hqq.smollm3_quantizers()
spec.check(smollm3_hqq.options.HQQOptions(), SimpleNamespace(ref="m", config={"hidden_size": 64}))
print(spec.name)
"""


def test_descriptor_options_and_check_import_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "hqq"


def test_every_operation_is_provided_or_has_a_reason():
    (spec,) = smollm3_quantizers()
    assert spec.provides == {Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT}
    assert spec.provides | set(spec.absent) == set(Op)


def test_the_help_shows_every_option(cli):
    shown = cli("plugins", "info", "hqq", "--device", "cpu")
    assert shown.code == 0, shown.stderr
    assert "hqq>=0.2.8,<0.3" in shown.stdout
    assert "forward, grad-input, read-weight" in shown.stdout
    for option in ("bits", "group_size", "axis", "skip_modules"):
        assert option in shown.stdout


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("bits=5", "bits"),
        ("group_size=12", "group_size"),
        ("group_size=0", "group_size"),
        ("axis=2", "axis"),
        ("nbits=4", "nbits"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(cli, small_model, option, says):
    done = cli("config", "validate", "--model", small_model, "--quant", "hqq", "--quant-opt", option, "--device", "cpu")
    assert done.code == 2, done.stdout
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_group_size_that_does_not_fit_is_said_by_a_dry_run(cli, small_model):
    done = cli("config", "validate", "--model", small_model, "--quant", "hqq", "--quant-opt", "group_size=24")
    assert done.code == 2
    assert "groups of 24 do not divide the 64 features" in done.stderr
    assert "--quant-opt group_size=64" in done.stderr


@pytest.mark.parametrize("about", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "hqq"}, {}])
def test_a_source_that_is_quantized_already_is_refused(about):
    source = SimpleNamespace(ref="org/model", config={"quantization_config": about})
    with pytest.raises(IncompatibleError, match="already quantized by") as caught:
        check(HQQOptions(), source)
    assert caught.value.hint


def test_sizes_that_a_config_does_not_state_are_left_to_the_model():
    check(HQQOptions(), SimpleNamespace(ref="m", config={}))
    check(HQQOptions(skip_modules=("mlp",)), SimpleNamespace(ref="m", config={"hidden_size": 100}))
    with pytest.raises(ConfigError, match="of 64 do not divide the 100 features") as caught:
        check(HQQOptions(), SimpleNamespace(ref="m", config={"hidden_size": 100}))
    assert caught.value.hint == "--quant-opt group_size=none takes whole rows"


def test_methods_that_need_a_dense_weight_are_refused_with_the_reason(cli, small_model):
    done = cli("config", "validate", "--model", small_model, "--quant", "hqq", "--adapter", "full", "--device", "cpu")
    assert done.code != 0
    assert "codes of few bits" in done.stderr
