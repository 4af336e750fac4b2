"""Parts of a model that methods for linear layers leave alone are counted and named, in plan, run and report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import smollm3_finetune
from smollm3_finetune import load_model
from smollm3_finetune.model.left_alone import EXPERTS, left_alone, parts

TINY = Path(smollm3_finetune.__file__).parent / "builtin" / "tiny"
SCALE, ROWS_INT8 = (
    str(Path(__file__).parents[1] / "out_of_tree" / f"{name}.py") for name in ("scale_adapter", "one_way_quantizer")
)
INT8_ROWS = str(Path(__file__).parents[2] / "examples" / "int8_rows.py")
SIZES: dict[str, Any] = {
    "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 1024, "bos_token_id": 0, "eos_token_id": 4,
    "pad_token_id": 2,
}  # fmt: skip
STACKS = 2 * 4 * (2 * 64 * 32 + 32 * 64)
"""Two layers of four experts, each with gate, up and down."""


def mixtral_config(**changes: Any) -> Any:
    return transformers.MixtralConfig(num_local_experts=4, num_experts_per_tok=2, **{**SIZES, **changes})


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small mixture of experts with the tokenizer of the embedded model."""
    path = tmp_path_factory.mktemp("models") / "mixtral"
    torch.manual_seed(0)
    transformers.MixtralForCausalLM(mixtral_config()).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (TINY / name).exists():
            shutil.copyfile(TINY / name, path / name)
    return path


def test_experts_are_counted_by_hand() -> None:
    (part,) = parts(mixtral_config().to_dict())
    assert part.title == EXPERTS
    assert part.parameters == STACKS
    attention = 2 * (32 * 32 + 2 * 16 * 32 + 32 * 32)
    rest = 2 * 2048 * 32 + attention + 2 * 4 * 32 + 5 * 32
    assert part.share == pytest.approx(STACKS / (STACKS + rest))
    assert part.modules == ("model.layers.0.mlp.experts", "model.layers.1.mlp.experts")


def test_parts_that_text_does_not_reach_are_counted() -> None:
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = transformers.Gemma3Config(text_config=SIZES, vision_config=vision, mm_tokens_per_image=4)
    model = transformers.Gemma3ForConditionalGeneration(config)
    found = {part.title: part.parameters for part in parts(config.to_dict())}
    assert found == {
        f"model.{name}": sum(p.numel() for p in getattr(model.model, name).parameters())
        for name in ("vision_tower", "multi_modal_projector")
    }


@pytest.mark.parametrize("make", [
    lambda: transformers.LlamaConfig(**SIZES),
    lambda: transformers.Mamba2Config(hidden_size=32, num_heads=4, head_dim=16, state_size=8, n_groups=1),
])  # fmt: skip
def test_other_models_have_no_such_parts(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from smollm3_finetune.model_files.skeleton import skeleton

    config = make().to_dict()
    assert parts(config) == []
    monkeypatch.setattr("smollm3_finetune.model.left_alone._mentions_parts", lambda config: True)
    assert skeleton(config) is not None and parts(config) == []
    assert parts({"model_type": "nothing-of-the-kind", "num_experts": 4}) == []


def test_a_loaded_model_says_what_is_left_alone(mixtral: Path) -> None:
    def lines(adapter: str, quant: str | None = None) -> list[str]:
        loaded = load_model(
            mixtral, adapter=adapter, quant=quant, purpose="train", plugins=[SCALE, ROWS_INT8, INT8_ROWS]
        )
        return [left.line for left in left_alone(loaded)]

    share = f"{parts(mixtral_config().to_dict())[0].share:.1%}"
    assert lines("scale") == [f"the experts ({share} of the weights) are not linear layers: not trained"]
    assert lines("full") == []
    assert lines("scale", "rows-int8") == [
        f"the experts ({share} of the weights) are not linear layers: neither quantized nor trained"
    ]
    assert lines("scale", "int8-rows") == lines("scale")


def test_plan_run_and_report_name_the_experts(cli: Callable[..., Any], mixtral: Path, rows_file: Path) -> None:
    asked = ("train", "--model", mixtral, "--adapter", "scale", "--data", rows_file, "--max-steps", "1", "-p", SCALE)
    asked = (*asked, "--set", "train.sample_tokens=1", "--output", "run")
    done = cli(*asked, "--dry-run")
    assert done.code == 0, done.stderr
    share = f"{parts(mixtral_config().to_dict())[0].share:.1%}"
    experts = f"the experts ({share} of the weights) are not linear layers"
    assert f"# {experts}, and not every method reaches them: the report states whether" in done.stdout
    done = cli(*asked)
    assert done.code == 0, done.stderr
    assert f"{experts}: not trained" in done.stderr
    assert f"left alone     {experts}: not trained\n" in done.stdout
    (entry,) = json.loads((Path("run") / "report.json").read_text())["left_alone"]
    assert (entry["parameters"], entry["quantized"], entry["trained"]) == (STACKS, None, False)
