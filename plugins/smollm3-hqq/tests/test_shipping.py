"""A run that is trained as hqq ships it, by commands: the checkpoint is that of training, bit for bit."""

from __future__ import annotations

import json

import pytest

from smollm3_finetune.model import load_model

pytest_plugins = ["smollm3_finetune.testing.fixtures"]
pytestmark = pytest.mark.plugins


def test_a_checkpoint_has_the_weights_of_training(cli, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    done = cli(
        *("train", "--model", "tiny", "--adapter", "dora", "--max-steps", "2", "--batch-size", "2", "--lr", "1e-2"),
        *("--ship-as", "hqq", "--ship-as-opt", "bits=3", "--set", "data.limit=24", "--set", "data.held_out=0.3"),
        *("--max-length", "48", "--set", "train.sample_tokens=1", "--set", "train.report=false", "--output", run),
    )
    assert done.code == 0, done.stderr
    layers = json.loads((run / "adapter" / "shipped.json").read_text())["layers"]
    done = cli("merge", run, "--requantize", "hqq", "--requantize-opt", "bits=3", "--output", out, "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["shipped"]["layers"] == len(layers) > 0
    loaded = load_model(out)
    assert loaded.plan.quantizer.component.spec.name == "hqq"
    assert loaded.base.ops_for(loaded.model.model.layers[0].mlp.up_proj) is not None
