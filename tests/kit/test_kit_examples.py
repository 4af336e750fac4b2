"""The plugins in examples/ pass the conformance kit; the adapters train on every bundled quantizer."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from smollm3_finetune.api import ConfigError, ModelError
from smollm3_finetune.testing import AdapterConformance, CommandConformance, ObjectiveConformance, plan, stub_base

pytest_plugins = ["smollm3_finetune.testing.fixtures"]

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
GPTQ = ROOT / "plugins" / "smollm3-gptq" / "tests" / "autogptq-0.7.1-4bit-32g"


@pytest.fixture(scope="module", autouse=True)
def separate_modules() -> Iterator[None]:
    """A plugin file becomes a module of the same name; another test's `scale_adapter` is restored afterwards."""
    names = [file.stem for file in EXAMPLES.glob("*.py")]
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


class TestNearBase(ObjectiveConformance):
    """Computes the model without its adapter in each loss."""

    component = "near-base"
    plugins = (EXAMPLES / "near_base.py",)


class TestBottleneck(AdapterConformance):
    component = "bottleneck"
    plugins = (EXAMPLES / "bottleneck_adapter.py",)


class TestWideBottleneckAfterEveryLayer(TestBottleneck):
    options: ClassVar = {"size": 48, "after": ("_proj",)}


class TestScale(AdapterConformance):
    component = "scale"
    plugins = (EXAMPLES / "scale_adapter.py",)


class TestLengths(CommandConformance):
    component = "lengths"
    plugins = (EXAMPLES / "lengths_command.py",)

    def works(self, directory: Path) -> Iterable[Sequence[str]]:
        return [[str(EXAMPLES / "rows.jsonl")]]

    def refused(self, directory: Path) -> Iterable[Sequence[str]]:
        numbers = directory / "numbers.jsonl"
        numbers.write_text('{"number": 5}\n')
        return [["no-such.jsonl"], [str(numbers)], [str(EXAMPLES / "rows.jsonl"), "--model", "no-such-model"]]


def bottlenecks(**options: Any) -> Any:
    return plan(
        "tiny", adapter="bottleneck", adapter_options=options, plugins=(str(EXAMPLES / "bottleneck_adapter.py"),)
    )


def test_a_bottleneck_equals_its_formula(tmp_path: Path) -> None:
    chosen = bottlenecks(size=3, after=["0.mlp.down_proj"])
    base = stub_base(chosen.adapter.component.spec.needs, "float64")
    adapted = chosen.adapter.create().attach(base, chosen.context, None)
    ((name, network),) = adapted.parts.items()
    network.double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    layer = base.model.get_submodule(name.removesuffix(".bottleneck"))
    x = torch.randn(5, base.ops_for(layer).shape[1], dtype=torch.float64)
    with adapted.disabled():
        y = layer(x)
    down, _, up = network
    hidden = y @ down.weight.T + down.bias
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    torch.testing.assert_close(layer(x), y + gelu @ up.weight.T + up.bias, rtol=1e-12, atol=1e-12)


def test_unknown_layers_and_bottlenecks_of_another_size_are_errors(tmp_path: Path) -> None:
    def on_a_base(**options: Any) -> Any:
        chosen = bottlenecks(**options)
        return chosen.adapter.create(), chosen.quantizer.create().load(chosen.source, chosen.context), chosen.context

    adapter, base, context = on_a_base(after=["nothing"])
    with pytest.raises(ConfigError, match="no linear layer's name ends with 'nothing'"):
        adapter.attach(base, context, None)
    adapter, base, context = on_a_base(size=2)
    adapter.attach(base, context, None).save(tmp_path / "saved")
    adapter, base, context = on_a_base(size=3)
    with pytest.raises(ModelError, match="has the shape"):
        adapter.restore(base, tmp_path / "saved", context, None)


BASES = {
    "none": (),
    "bnb-4bit": ("--quant", "bnb-4bit"),
    "bnb-8bit": ("--quant", "bnb-8bit"),
    "gptq": (
        "--model",
        str(GPTQ),
        "--max-length",
        "512",
    ),  # a checkpoint written by auto-gptq, which its quantizer recognizes
}
"""The base of the training run, as command-line options."""

RATES = {"bottleneck": "0.01", "scale": "0.05"}


@pytest.mark.plugins
@pytest.mark.parametrize("adapter", RATES)
@pytest.mark.parametrize("base", BASES)
def test_adapters_outside_peft_train_on_every_base(cli: Any, isolated: Path, base: str, adapter: str) -> None:
    """A few steps lower the held-out loss."""
    result = cli(
        "train", "-p", str(EXAMPLES / f"{adapter}_adapter.py"), "--adapter", adapter, *BASES[base], "--device", "cpu",
        "--max-steps", "8", "--batch-size", "4", "--learning-rate", RATES[adapter], "--output", "run", "--json",
        "--set", "train.sample_tokens=1", "--set", "data.held_out=0.05",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    report = json.loads(result.stdout)
    assert f"quantizer '{base}' + adapter '{adapter}'" in result.stderr
    before, after = (report[when]["held_out_loss"] for when in ("before", "after"))
    assert after < before - 0.1, (before, after)
