"""Runs with new tokens: configuration, resuming, `--from`, merging, evaluation, quantized bases, undeclared marks."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from smollm3_finetune import finetune, load_model
from smollm3_finetune.errors import IncompatibleError
from smollm3_finetune.testing.small import small_model_directory

pytestmark = pytest.mark.plugins
Cli = Callable[..., Any]
TOKENS = ["<tool>", "</tool>"]
CUT = {"long_text": "cut", "max_length": 64}
FAST = {"max_steps": 2, "sample_tokens": 1, "warmup": 0, "schedule": "constant", "report": False, "batch_size": 4}


def row(i: int) -> dict[str, Any]:
    answer = f"<tool>add {i}</tool> done <|mark|>"
    return {"messages": [{"role": "user", "content": f"Number {i}?"}, {"role": "assistant", "content": answer}]}


@pytest.fixture(autouse=True)
def rows(isolated: Path) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(8)))
    Path("held.jsonl").write_text(json.dumps(row(90)) + "\n")
    Path("tokens.txt").write_text("</tool>\n<|im_end|>\n")
    shutil.copytree(small_model_directory(), "model")


def train(output: str, tokens: Any = TOKENS, **more: Any) -> dict[str, Any]:
    data = {
        "path": "rows.jsonl",
        "validation": "held.jsonl",
        "add_tokens": tokens,
        "max_length": 256,
        **more.pop("data", {}),
    }
    settings = {**FAST, **more.pop("train", {})}
    return finetune("model", output=output, data=data, train=settings, quiet=True, **more)


def weights(run: str) -> dict[str, torch.Tensor]:
    return load_file(Path(run) / "adapter" / "adapter_model.safetensors")


def test_a_run_keeps_its_tokens_and_resumes_bit_for_bit() -> None:
    train("part", ["<tool>"], data={"add_tokens_file": "tokens.txt"})
    config = yaml.safe_load(Path("part/run.yaml").read_text())
    assert config["data"]["add_tokens"] == ["<tool>", "</tool>", "<|im_end|>"]
    assert config["data"]["add_tokens_file"] is None
    Path("tokens.txt").unlink()
    finetune(resume="part", train={"max_steps": 3}, quiet=True)
    train("whole", [*TOKENS, "<|im_end|>"], train={"max_steps": 3})
    one, other = weights("part"), weights("whole")
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    (rows,) = (value for name, value in one.items() if "trainable_tokens" in name)
    assert tuple(rows.shape) == (2, 64)


def test_sharded_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(IncompatibleError, match="was not tested with FSDP"):
        train("run", dry_run=True)


@pytest.mark.long
def test_a_run_is_continued_merged_and_evaluated(cli: Cli) -> None:
    first = train("first")
    second = train("second", (), start_from="first")
    assert second["before"]["held_out_loss"] == pytest.approx(first["after"]["held_out_loss"], rel=1e-6)
    assert [t.text for t in load_model("model", adapter_path="second/adapter").plan.new_tokens] == TOKENS
    with pytest.raises(IncompatibleError, match="was trained without it"):
        train("third", ["<other>"], start_from="first")
    fresh = train("fresh", ["<other>"], start_from="first", fresh_adapter=True)
    assert fresh["before"]["held_out_loss"] == pytest.approx(first["after"]["held_out_loss"], rel=1e-4)
    assert json.loads(Path("fresh/adapter/smollm3.json").read_text())["new_tokens"][0]["id"] == 2050
    finetune(resume="fresh", train={"max_steps": 3}, quiet=True)
    report = json.loads(cli("eval", "first", "--answers", "1", "--max-new-tokens", "2", "--json").stdout)
    assert report["after"]["held_out_loss"] == pytest.approx(first["after"]["held_out_loss"], rel=1e-5)
    assert cli("generate", "first", "--prompt", "<tool>", "--max-new-tokens", "2").code == 0
    assert cli("push", "first", "someone/model", "--dry-run").code == 0
    assert cli("merge", "fresh", "--output", "merged").code == 0
    tokenizer = AutoTokenizer.from_pretrained("merged")
    ids = [tokenizer(t, add_special_tokens=False).input_ids for t in (*TOKENS, "<other>")]
    assert ids == [[2048], [2049], [2050]]
    assert AutoModelForCausalLM.from_pretrained("merged").config.vocab_size == 2051


@pytest.mark.long
@pytest.mark.parametrize("quant", ["bnb-4bit", "gptq"])
@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_a_quantized_base_is_that_of_a_run_without_tokens(quant: str, adapter: str, cli: Cli) -> None:
    chosen = {"name": quant, "group_size": 32} if quant == "gptq" else quant
    more: dict[str, Any] = {"calibration": {"rows": 8}} if quant == "gptq" else {}
    report = train("run", adapter=adapter, quant=chosen, **more)
    merged = cli("merge", "run", "--output", "merged")
    assert merged.code == 0, merged.stderr
    figures = json.loads(Path("merged/merge.json").read_text())["figures"]
    assert figures["merged_excess"] <= 1e-4 and figures["drift"] <= 1e-2
    again = load_model("model", adapter_path="run/adapter", dtype="float32")
    assert again.base.fingerprint == json.loads(Path("run/adapter/smollm3.json").read_text())["base_fingerprint"]
    finetune(resume="run", train={"max_steps": 3}, quiet=True)
    if quant == "bnb-4bit":
        plain = load_model("model", quant=quant, dtype="float32")
        assert plain.base.fingerprint == again.base.fingerprint
    assert report["after"]["held_out_loss"] < report["before"]["held_out_loss"]


def test_a_token_that_no_training_row_has_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """A held-out row and the end of a long row do not count: nothing there is trained on."""
    Path("held.jsonl").write_text(json.dumps({"text": "<held>"}) + "\n")
    Path("rows.jsonl").write_text(
        "".join(json.dumps({"text": f"<tool> {i} {'word ' * 300}<cut>"}) + "\n" for i in "ab")
    )
    tokens = ["<tool>", "<held>", "<cut>"]
    report = finetune(
        "model",
        output="run",
        data={"path": "rows.jsonl", "validation": "held.jsonl", "add_tokens": tokens, **CUT},
        train=FAST,
    )
    assert report["new_tokens"] == report["rows"][0]["new_tokens"] == {"<tool>": 2, "<held>": 0, "<cut>": 0}
    said = capsys.readouterr().err
    assert "3 new tokens: '<tool>' (2 rows), '<held>' (0 rows), '<cut>' (0 rows)" in said
    assert "no training row has '<held>', '<cut>', so the model learns only not to predict them: add rows, or" in said


def test_marks_that_were_not_declared_are_counted(cli: Cli) -> None:
    shown = cli(
        "data",
        "stats",
        "--model",
        "model",
        "--max-length",
        "256",
        "--data",
        "rows.jsonl",
        "--set",
        "data.add_tokens=[<tool>]",
    )
    assert shown.code == 0, shown.stderr
    line = "'<|mark|>' (8 rows) is several tokens; to make it one: --set 'data.add_tokens=[<tool>, <|mark|>]'"
    assert line in shown.stdout
    declared = cli(
        "data",
        "stats",
        "--model",
        "model",
        "--max-length",
        "256",
        "--data",
        "rows.jsonl",
        "--set",
        "data.add_tokens=[<|mark|>]",
    )
    assert "several tokens" not in declared.stdout
    (kept,) = re.findall(r"rows +8 = (\d) training", shown.stdout)
    assert f"new tokens '<tool>' ({kept} rows)" in shown.stdout and "no training row has" not in shown.stdout
    assert f"new tokens '<|mark|>' ({kept} rows)" in declared.stdout
    settings = ("--max-length", "256", "--set", "data.add_tokens=[<tool>]")
    plan = cli("train", "--model", "model", "--data", "rows.jsonl", *settings, "--dry-run", "--json")
    assert [t["token"] for t in json.loads(plan.stdout)["new_tokens"]] == ["<tool>"]
