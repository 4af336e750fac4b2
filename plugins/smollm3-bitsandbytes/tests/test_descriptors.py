"""The plugin's descriptors, which work without its dependencies."""

from __future__ import annotations

import subprocess
import sys

import pytest
from smollm3_bitsandbytes import smollm3_quantizers

from smollm3_finetune.api import Env, Op, Purpose

LIGHT = """
import sys
for name in ("torch", "transformers", "bitsandbytes", "numpy", "accelerate"):
    sys.modules[name] = None  # any import of it raises
import smollm3_bitsandbytes, smollm3_bitsandbytes.options
from smollm3_finetune.api import Env
for spec in smollm3_bitsandbytes.smollm3_quantizers():
    assert spec.claims({}) is False
    spec.refine(spec, smollm3_bitsandbytes.options.Bnb4bitOptions(), Env(device="cpu"))
print(len(smollm3_bitsandbytes.smollm3_quantizers()))
"""


def test_descriptors_and_options_import_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2"


@pytest.mark.parametrize("spec", smollm3_quantizers(), ids=lambda s: s.name)
def test_every_operation_is_provided_or_has_a_reason(spec):
    assert spec.provides | set(spec.absent) == set(Op)
    assert not spec.provides & set(spec.absent)


@pytest.mark.parametrize("spec", smollm3_quantizers(), ids=lambda s: s.name)
def test_a_device_without_kernels_has_no_operations(spec):
    for purpose in Purpose:
        assert spec.refine(spec, None, Env(device="cpu", purpose=purpose)) == spec
        assert spec.refine(spec, None, Env(device="cuda", purpose=purpose)) == spec
    absent = spec.refine(spec, None, Env(device="tpu")).absent
    assert set(absent) == set(Op)
    assert "no" in absent[Op.FORWARD]
    assert "tpu" in absent[Op.FORWARD]
