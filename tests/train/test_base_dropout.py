"""`train.base_dropout`: the dropout that the base's config states is active in training, or off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from smollm3_finetune.model.dropout import switch_off
from smollm3_finetune.model.load import load_model
from smollm3_finetune.model_files.dropout import stated_dropout

Cli = Callable[..., Any]
SMALL = {
    "opt": {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "layerdrop": 0.5},
    "gpt_bigcode": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "xglm": {"d_model": 16, "ffn_dim": 32, "num_layers": 2, "attention_heads": 2, "layerdrop": 0.5},
    "biogpt": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2, "hidden_dropout": 0.2, "attention_dropout": 0.2},
    "falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_dropout": 0.2},
    "persimmon": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "hidden_dropout": 0.2, "attention_dropout": 0.2,
    },
    "seed_oss": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8,
    },
}  # fmt: skip


def small(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{"vocab_size": 40, "max_position_embeddings": 64, **SMALL[kind], **more})
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", SMALL)
def test_a_base_without_dropout_computes_in_training_what_it_computes_in_evaluation(kind: str) -> None:
    model, ids = small(kind), torch.arange(24).reshape(2, 12)
    assert stated_dropout(model.config.to_dict())
    saved = model.config.to_dict()
    with torch.no_grad():
        expected = model.eval()(input_ids=ids, use_cache=False).logits
        model.train()
        assert not torch.equal(model(input_ids=ids, use_cache=False).logits, expected)
        off = switch_off(model)
        for _ in range(3):
            assert torch.equal(model(input_ids=ids, use_cache=False).logits, expected)
    assert model.training
    assert stated_dropout(model.config.to_dict()) == {}
    with off.stated():
        assert model.config.to_dict() == saved
    assert stated_dropout(model.config.to_dict()) == {}


def test_the_defaults_of_a_model_type_count_as_stated() -> None:
    assert stated_dropout({"model_type": "gpt2"}) == {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    assert stated_dropout({"model_type": "gpt2", "resid_pdrop": 0, "embd_pdrop": 0.0, "attn_pdrop": 0.2}) == {
        "attn_pdrop": 0.2
    }
    assert stated_dropout({"model_type": "llama"}) == {}
    assert stated_dropout({"model_type": "unknown", "text_config": {"model_type": "x", "dropout": 0.3}}) == {
        "dropout": 0.3
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`opt` with dropout and `still`, the same weights with a config that states none."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = load_model("tiny").tokenizer
    for name, more in (("opt", {"dropout": 0.3, "layerdrop": 0.0}), ("still", {"dropout": 0.0, "layerdrop": 0.0})):
        model = small("opt", vocab_size=len(tokenizer), max_position_embeddings=256, word_embed_proj_dim=16, **more)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


QUICK = ("--adapter", "full", "--max-steps", "4", "--set", "data.limit=16", "--set", "train.sample_tokens=1",
         "--set", "data.max_length=128", "--set", "train.schedule=constant")  # fmt: skip
OFF = ("--set", "train.base_dropout=off")


def losses(run: str) -> list[float]:
    return [json.loads(line)["loss"] for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def test_without_dropout_a_run_equals_one_whose_base_states_none(cli: Cli, models: Path) -> None:
    def run(model: str, *more: str) -> Any:
        return cli("train", "--model", str(models / model), *QUICK, "--json", *more)

    still, off = run("still", "--output", "still"), run("opt", "--output", "off", *OFF)
    assert losses("off") == losses("still"), "bit for bit"
    assert off.report()["after"] == still.report()["after"]
    assert still.report()["base_dropout"] == off.report()["base_dropout"] == {}
    assert "dropout  of the base: off (its config states dropout 0.3)" in off.stderr
    assert "dropout  of" not in still.stderr
    saved = json.loads(Path("off/adapter/config.json").read_text())
    assert saved["dropout"] == 0.3, "a saved model keeps what its config states"


def test_the_dropout_of_the_base_is_active_reported_and_repeated_by_a_resumed_run(cli: Cli, models: Path) -> None:
    command = ("train", "--model", str(models / "opt"), *QUICK, "--json")
    whole = cli(*command, "--output", "whole")
    cli(*command, "--output", "off", *OFF, "--max-steps", "1").report()
    assert losses("whole")[0] != losses("off")[0]
    assert whole.report()["base_dropout"] == {"dropout": 0.3}
    assert "dropout  of the base: dropout 0.3; without it: --set train.base_dropout=off" in whole.stderr
    cli(*command, "--output", "part", "--max-steps", "2", "--set", "train.save_every=2").report()
    resumed = cli("train", "--resume", "part", "--max-steps", "4", "--json").report()
    assert losses("part") == losses("whole"), "bit for bit"
    assert resumed["after"] == whole.report()["after"]


def test_a_dry_run_shows_the_dropout_of_the_base(cli: Cli, models: Path) -> None:
    command = ("train", "--model", str(models / "opt"), *QUICK, "--dry-run")
    assert "# dropout of the base: dropout 0.3\n" in cli(*command).stdout
    assert json.loads(cli(*command, "--json").stdout)["base_dropout"] == {"dropout": 0.3}
    assert "dropout of the base" not in cli(*command, *OFF).stdout
