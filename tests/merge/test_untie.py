"""Adapters that change only one of tied embeddings and head; files beside the weights; the method by its config."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import smollm3_finetune
from smollm3_finetune import load_model

HERE = Path(__file__).parents[1] / "out_of_tree"
PAIR, SCALE = (str(HERE / f"{name}.py") for name in ("one_of_a_pair", "scale_adapter"))
TINY = Path(smollm3_finetune.__file__).parent / "builtin" / "tiny"
IDS = torch.randint(3, 2000, (2, 20), generator=torch.Generator().manual_seed(7))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model.eval()(input_ids=IDS, use_cache=False).logits
    return out.double()


@pytest.fixture
def doubled() -> Path:
    """A saved adapter of the method `embeddings-only`, described only by `adapter_config.json`."""
    path = Path("adapter")
    path.mkdir()
    (path / "adapter_config.json").write_text('{"peft_type": "DOUBLED"}')
    return path


def test_a_merge_that_the_tie_makes_wrong_is_refused_without_force(cli: Callable[..., Any], doubled: Path) -> None:
    done = cli("merge", "tiny", "--adapter-path", doubled, "--output", "merged", "-p", PAIR)
    assert done.code == 6
    assert "the adapter changes the embeddings, which the base ties to its head" in done.stderr
    assert "--untie" in done.stderr and "--force" not in done.stderr
    assert not Path("merged").exists()


def test_with_untie_both_matrices_are_written_and_files_beside_them_are_kept(
    cli: Callable[..., Any], doubled: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    beside = {"preprocessor_config.json": '{"image_processor_type": "X"}', "processor_config.json": "{}", "NOTICE": "n"}
    for name, text in {**beside, ".env": "SECRET=1", "rows.jsonl": "{}", "other.bin": "x"}.items():
        (model / name).write_text(text)
    right = logits(load_model(model, adapter="embeddings-only", plugins=[PAIR], dtype="float32").model)
    asked = ("merge", model, "--adapter-path", doubled, "--output", "merged", "--dtype", "float32", "-p", PAIR)
    done = cli(*asked, "--untie", "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["untied"] is True
    merged = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float32)
    assert not merged.config.tie_word_embeddings
    head, embeddings = merged.get_output_embeddings().weight, merged.get_input_embeddings().weight
    assert head.data_ptr() != embeddings.data_ptr() and torch.equal(2 * head, embeddings)
    assert float((logits(merged) - right).norm() / right.norm()) <= 1e-6
    files = {p.name: p.read_text(errors="replace") for p in Path("merged").iterdir()}
    assert beside.items() <= files.items()
    assert not {".env", "rows.jsonl", "other.bin"} & set(files)


def test_untie_without_need_is_said(cli: Callable[..., Any]) -> None:
    load_model("tiny", adapter="scale", purpose="train", plugins=[SCALE]).save("adapter")
    asked = ("merge", "tiny", "--adapter-path", "adapter", "--dtype", "float32", "-p", SCALE)
    done = cli(*asked, "--output", "merged", "--untie", "--json")
    assert done.code == 0, done.stderr
    kept = "the adapter keeps embeddings and head equal: the same model is smaller without --untie"
    assert kept in json.loads(done.stdout)["warnings"]
    done = cli("merge", "merged", *asked[2:], "--any-base", "--output", "again", "--untie", "--json")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    assert "the base does not tie its head to its embeddings: --untie changes nothing" in report["warnings"]
    assert report["untied"] is False


def test_an_adapter_config_that_no_method_recognizes_is_named(cli: Callable[..., Any], doubled: Path) -> None:
    (doubled / "adapter_config.json").write_text('{"peft_type": "TRIPLED"}')
    done = cli("merge", "tiny", "--adapter-path", doubled, "--output", "merged", "-p", PAIR)
    assert done.code == 6
    assert "no installed plugin recognizes the adapter that 'adapter/adapter_config.json' describes" in done.stderr
    assert "--adapter NAME" in done.stderr
