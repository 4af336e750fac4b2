"""A tuned model stops at the end of its turn, in `smollm3 generate` and if the saved model is loaded elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import smollm3_finetune
from smollm3_finetune.errors import ModelError
from smollm3_finetune.model_files.stops import stated_stops

TINY = Path(smollm3_finetune.__file__).parent / "builtin" / "tiny"
TURN, TEXT = "<|im_end|>", "<|end_of_text|>"
IDS = {TURN: 4, TEXT: 1}
QUESTIONS = ("What is the capital of France?", "What is the opposite of big?")
MOST = 64
"""Limit of the tokens of an answer; several times as many as needed."""


def base_that_stops_at(token: str) -> str:
    """A copy of the embedded model with only one end token."""
    folder = Path(shutil.copytree(TINY, "base"))
    for name, key, value in (
        ("config.json", "eos_token_id", IDS[token]),
        ("generation_config.json", "eos_token_id", IDS[token]),
        ("tokenizer_config.json", "eos_token", token),
    ):
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    return str(folder)


def template_that_ends_turns_with(token: str) -> str:
    """A copy of the embedded template with another end token of the assistant's turns."""
    source = (TINY / "chat_template.jinja").read_text(encoding="utf-8")
    assert source.count(f"calls.text + '{TURN}'") == 2
    Path("other.jinja").write_text(source.replace(f"calls.text + '{TURN}'", f"calls.text + '{token}'"))
    return "other.jinja"


def written(folder: str, question: str, *, endless: bool = False) -> list[int]:
    """The answer tokens of a saved model if transformers alone decides when to stop."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    if endless:
        model.generation_config.eos_token_id = None
    tokenizer = AutoTokenizer.from_pretrained("out/adapter")
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**prompt, max_new_tokens=MOST, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    ids: list[int] = out[0, prompt["input_ids"].shape[1] :].tolist()
    return ids


@pytest.mark.parametrize(("known", "end"), [(TEXT, TURN), (TURN, TEXT)])
def test_a_tuned_model_stops_at_the_end_of_its_turn(known: str, end: str, cli: Callable[..., Any]) -> None:
    """The base stops at `known` alone; the turns it is tuned on end with `end`.

    With the embedded template the base writes the end of a turn already, and goes on. With the other one it has to
    learn it, which it only can from a mask that holds it.
    """
    base = base_that_stops_at(known)
    other = ("--set", f"data.template={template_that_ends_turns_with(end)}") if end != TURN else ()
    quick = ("--max-steps", "12", "--learning-rate", "2e-3", "--set", "data.limit=40", "--set", "train.sample_tokens=4")
    trained = cli("train", "--model", base, "--adapter", "full", *quick, *other, "--output", "out")
    assert trained.code == 0, trained.stderr
    tokenizer = AutoTokenizer.from_pretrained("out/adapter")
    assert tokenizer.eos_token == end
    for question in QUESTIONS:
        answered = cli("generate", "out", "--prompt", question, "--max-new-tokens", str(MOST), "--json")
        assert answered.code == 0, answered.stderr
        alone = written("out/adapter", question)
        assert (alone.count(IDS[end]), alone[-1]) == (1, IDS[end]), "the end of the turn is written once, last"
        assert 1 < len(alone) < MOST / 2
        assert json.loads(answered.stdout)["answer"] == tokenizer.decode(alone[:-1]).strip()
        endless = written("out/adapter", question, endless=True)
        assert endless[: len(alone)] == alone
        assert len(endless) == MOST, "nothing but the end of the turn stops it"
        untuned = written(base, question)
        assert untuned[-1] != IDS[end]


ROUNDING = str(Path(__file__).parents[1] / "out_of_tree" / "rounding_quantizer.py")


def stops_of(folder: str) -> set[int]:
    found = json.loads(Path(folder, "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    return set(found) if isinstance(found, list) else {found}


def test_all_stop_tokens_are_kept_in_run_merge_and_quantized_checkpoint(cli: Callable[..., Any]) -> None:
    """The base's generation config, its tokenizer's end and the template's end; the base stops after one token."""
    base = base_that_stops_at(TEXT)
    first = written_by_base(base)
    config = Path(base, "generation_config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token_id": first}))
    Path(base, "config.json").write_text(
        json.dumps({**json.loads(Path(base, "config.json").read_text()), "eos_token_id": None})
    )
    union = {first, IDS[TEXT], IDS[TURN]}
    quick = ("--adapter", "full", "--max-steps", "1", "--set", "data.limit=20", "--set", "train.sample_tokens=2")
    commands = {
        "out/adapter": ("train", "--model", base, *quick, "--output", "out"),
        "merged": ("merge", "out", "--output", "merged", "--dtype", "float32"),
        "requantized": ("merge", "out", "--requantize", "rounding", "--output", "requantized", "-p", ROUNDING),
        "again": ("quantize", "merged", "--quant", "rounding", "--output", "again", "-p", ROUNDING),
        "quantized": ("quantize", base, "--quant", "rounding", "--output", "quantized", "-p", ROUNDING),
    }
    for folder, command in commands.items():
        done = cli(*command)
        assert done.code == 0, done.stderr
        assert stops_of(folder) == union, folder
    for model in (base, "out", "merged"):
        asked = cli("generate", model, "--prompt", QUESTIONS[0], "--max-new-tokens", "12", "--json")
        assert asked.code == 0, asked.stderr
        answer = json.loads(asked.stdout)["answer"]
        assert len(AutoTokenizer.from_pretrained(base)(answer).input_ids) == 1, f"{model} stops after one token"


def written_by_base(folder: str) -> int:
    """The first token of the base's answer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": QUESTIONS[0]}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(**prompt).logits
    return int(logits[0, -1].argmax())


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, '"x"'])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_a_damaged_config_is_named_when_stop_tokens_are_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=name):
        stated_stops(tmp_path)
