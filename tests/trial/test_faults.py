"""`smollm3 doctor --try` finds each seeded fault of out_of_tree/faulty_trials.py, and says in one sentence what it is.

The faults of layers and of saving are found in this process, in a second or two; the long tests run the command.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.api import Purpose
from smollm3_finetune.compatibility.measure import Bench
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.testing.small import small_model_directory

FAULTY = Path(__file__).parents[1] / "out_of_tree" / "faulty_trials.py"
LAYER = "layer model.layers.0.self_attn."
LAYERS = {
    "sound": None,
    "one-way": f"{LAYER}q_proj: no gradient reaches its input after an evaluation",
    "transposed": "read_weight() returns the transposed weight",
    "half": f"{LAYER}q_proj: read_weight() returns float16, not float32 or wider",
    "scaled": f"{LAYER}q_proj: the forward is 1.01 times the product with read_weight()",
    "stale": f"{LAYER}q_proj: read_weight() returns other values after a training step",
    "random": f"{LAYER}q_proj: two forwards of one input in evaluation mode differ by ",
    "opposite": f"{LAYER}q_proj: the gradient of its input has the opposite sign, -1 times the right one",
}
"""What is said about the layers of each faulty quantizer."""
QUANTIZERS = {
    "missing": "quantizer 'missing-rows' requires acme-kernels>=2, but it is not installed",
    "unimportable": "No module named 'acme_kernels_that_nobody_installed'",
    **LAYERS,
}
ADAPTERS = {
    "steady": None,
    "dropping": "start: two evaluations with the adapter differ: the logits by ",
    "losing": "resume: after saving and restoring, model.layers.0.self_attn.o_proj.matrix_b is zero, unlike the one",
    "unscaled": "merge: before saving, the merged model differs from the adapter on its base by ",
    "frozen": "train: no gradient reached model.layers.0.self_attn.q_proj.matrix_b",
}


@cache
def registry() -> Any:
    return discover(PluginSelection.of((str(FAULTY),), no_plugins=True))


def plan(tmp_path: Path, quantizer: str, adapter: str = "steady") -> Any:
    bench = Bench(registry=registry(), model=small_model_directory(biases=True), device="cpu", work=tmp_path)
    return bench.plan(f"{quantizer}-rows", f"{adapter}-matrix", {}, Purpose.TRAIN)


@pytest.mark.parametrize("fault", LAYERS)
def test_a_faulty_layer_is_named_with_its_fault(fault: str, tmp_path: Path) -> None:
    import torch

    from smollm3_finetune.model.load import load_base
    from smollm3_finetune.trial.layers import layer_fault

    made = plan(tmp_path, fault)
    base = load_base(made.quantizer, made.quantizer.create(), made.source, made.context)
    figures: dict[str, float] = {}
    found = layer_fault(base, made.source.load(dtype=torch.float32), 1e-4, figures)
    expected = LAYERS[fault]
    if expected is None:
        assert found is None
        assert figures["layers"] == 14
        assert figures["forward"] < 1e-6
        assert figures["grad_input"] < 1e-6
    else:
        assert found is not None
        assert expected in found


def test_a_tensor_that_is_not_saved_is_named(tmp_path: Path) -> None:
    from smollm3_finetune.trial.measure import Cell, compare_with_dense_copy
    from smollm3_finetune.trial.results import Step

    cell = Cell()
    compare_with_dense_copy(cell, plan(tmp_path, "sound", "losing"), 1e-4)
    assert cell.faults[Step.TRAIN] is None, "only what was saved is wrong"
    assert cell.outcome()["sentence"].startswith(str(ADAPTERS["losing"]))
    sound = Cell()
    compare_with_dense_copy(sound, plan(tmp_path, "sound"), 1e-4)
    assert sound.outcome()["sentence"] is None
    assert sound.figures["gradients"] < 1e-5


@pytest.mark.long
def test_the_command_reports_each_seeded_fault_in_one_sentence(run_cli: Any, tmp_path: Path) -> None:
    file = tmp_path / "faults.json"
    words = ("doctor", "--try", "--device", "cpu", "--no-plugins", "-p", str(FAULTY))
    quantizers = [word for name in QUANTIZERS for word in ("--quant", f"{name}-rows")]
    done = run_cli(*words, *quantizers, "--adapter", "steady-matrix", "--report", str(file), timeout=900)
    assert done.code == 1, done.stderr
    found = {c["quantizer"].partition(":")[2]: c for c in json.loads(file.read_text())["cells"]}
    adapters = [word for name in ADAPTERS for word in ("--adapter", f"{name}-matrix")]
    done = run_cli(*words, "--quant", "sound-rows", *adapters, "--report", str(file), timeout=900)
    assert done.code == 1, done.stderr
    found |= {c["adapter"].partition(":")[2]: c for c in json.loads(file.read_text())["cells"]}
    expected = {f"{n}-rows": s for n, s in QUANTIZERS.items()} | {f"{n}-matrix": s for n, s in ADAPTERS.items()}
    assert found.keys() == expected.keys()
    for name, says in expected.items():
        one = found[name]
        if says is None:
            assert (one["status"], one["sentence"]) == ("works", None), name
            continue
        assert one["status"] == "fails", name
        assert says in one["sentence"], (name, one["sentence"])
        assert "\n" not in one["sentence"], name
    shown = run_cli("compat", "--no-plugins", "-p", str(FAULTY), "--evidence", str(file), timeout=120)
    assert "Of 5 pairs: 1 work, 4 fail, none are refused." in shown.stdout


@pytest.mark.long
@pytest.mark.plugins
def test_the_usual_adapters_work_on_an_unquantized_model(run_cli: Any, tmp_path: Path) -> None:
    file = tmp_path / "here.json"
    done = run_cli("doctor", "--try", "--device", "cpu", "--quant", "none", "--report", str(file), timeout=600)
    assert done.code == 0, done.stdout + done.stderr
    about = json.loads(file.read_text())
    assert [c["adapter"].partition(":")[2] for c in about["cells"]] == ["lora", "dora"]
    for cell in about["cells"]:
        assert set(cell["steps"].values()) == {True}
        assert cell["figures"]["gradients"] < 1e-5
        assert cell["figures"]["resumed"] == 0
        assert cell["figures"]["tokens_per_second"] > 0
    assert about["machine"]["name"]
    text = file.read_text()
    assert str(Path.home()) not in text
    assert str(tmp_path) not in text
