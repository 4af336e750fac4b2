"""New tokens: added to the tokenizer and to the base, trained beside LoRA, saved small, restored and merged right."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PhiConfig, PhiForCausalLM

from smollm3_finetune import load_model
from smollm3_finetune.api import Base, Purpose
from smollm3_finetune.batching.head import supervised_logits
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.errors import ConfigError, IncompatibleError, ModelError
from smollm3_finetune.merge.gate import fixed_rows
from smollm3_finetune.merge.report import MergeSettings
from smollm3_finetune.merge.run import merge
from smollm3_finetune.model.load import LoadedModel, build_context
from smollm3_finetune.model.new_tokens import NewToken, declared_tokens, with_new_rows, without_new
from smollm3_finetune.model.plan import ModelPlan, ModelRequest, plan_model, select_model
from smollm3_finetune.model.saved_adapter import SavedAdapter
from smollm3_finetune.testing.small import small_model, small_model_directory

TOKENS = ["<tool>", "</tool>"]
IDS = (2048, 2049)
ROWS = torch.tensor([[5, 2048, 300, 2049, 7, 2048, 9, 11], [2049, 40, 41, 2048, 2048, 43, 44, 45]])
PAIRS = [("none", "lora"), ("bnb-4bit", "dora")]
MORE = [("none", "dora"), ("bnb-4bit", "lora"), ("gptq", "lora"), ("gptq", "dora")]
EXACT = 1e-5
"""float32: the same products in another order."""


def calibration() -> list[list[int]]:
    """Rows with new tokens, as those of a run have."""
    generator = torch.Generator().manual_seed(2)
    rows: list[list[int]] = torch.randint(3, 2050, (8, 48), generator=generator).tolist()
    return rows


def quantizer(name: str) -> dict[str, Any]:
    return {"name": name, "group_size": 32} if name == "gptq" else {"name": name}


def untied(directory: Path, rows: int = 2048) -> Path:
    """A model whose head has a weight of its own, and `rows` embeddings."""
    model = small_model()
    model.config.tie_word_embeddings = False
    with torch.random.fork_rng():
        torch.manual_seed(4)
        head = nn.Linear(64, 2048, bias=False)
    head.weight.requires_grad_(False)
    model.lm_head = head
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(small_model_directory() / name, directory / name)
    return directory


def adapted(directory: Path, quant: str = "none", adapter: Any = "lora", **more: Any) -> LoadedModel:
    more = {"dtype": "float32", "purpose": "train", "add_tokens": TOKENS, "calibration": calibration, **more}
    return load_model(directory, quant=quantizer(quant), adapter=adapter, **more)


def logits(model: Any, ids: Tensor = ROWS) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=ids, use_cache=False).logits
    return found.double()


def step(model: Any, steps: int = 3) -> None:
    """Steps of AdamW on rows with new tokens."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ROWS, labels=ROWS, use_cache=False).loss.backward()
        optimizer.step()


def off(found: Tensor, right: Tensor) -> float:
    return float((found - right).norm() / right.norm())


def planned(directory: Path, path: Path, purpose: Purpose = Purpose.MERGE, quant: str = "none") -> ModelPlan:
    request = ModelRequest(ref=str(directory), adapter_path=path, purpose=purpose)
    registry = discover(PluginSelection.of(()))
    context = build_context(purpose, "cpu", "float32", 0, calibration if quant == "gptq" else None)
    return plan_model(registry, select_model(registry, request), context)


# ------------------------------------------------------------------------------------------------------------- planning


def test_tokens_come_from_the_list_and_the_file_once_each(isolated: Path) -> None:
    Path("tokens.txt").write_text("<a>\n\n  <b> \n<tool>\n")
    assert declared_tokens(["<tool>", "<c>"], "tokens.txt") == ("<tool>", "<c>", "<a>", "<b>")
    for wrong in ("", " <tool>", "two\nlines"):
        with pytest.raises(ConfigError, match="cannot be a token"):
            declared_tokens([wrong], None)
    for file, content, message in (("none.txt", None, "does not exist"), ("empty.txt", b"\n", "has no tokens"),
                                   ("bytes.txt", b"\xff\xfe\x00", "cannot be read")):  # fmt: skip
        if content is not None:
            Path(file).write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            declared_tokens([], file)


def test_the_tokenizer_has_them_as_one_token_each_and_keeps_them_in_text() -> None:
    loaded = load_model(small_model_directory(), add_tokens=[*TOKENS, "<|im_end|>"])
    tokenizer = loaded.tokenizer
    assert [token.text for token in loaded.plan.new_tokens] == TOKENS  # the template's own token is there already
    assert [token.id for token in loaded.plan.new_tokens] == list(IDS)
    ids = tokenizer("a<tool>b</tool>c<tool><tool>", add_special_tokens=False).input_ids
    assert [i for i in ids if i >= 2048] == [2048, 2049, 2048, 2048]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<tool>b</tool>c<tool><tool>"
    assert loaded.plan.embeddings == 2050 == loaded.base.model.config.vocab_size
    assert max(max(row) for row in fixed_rows(tokenizer, 2050)) < 2050


def test_a_token_of_the_model_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    known = load_model(small_model_directory(), add_tokens=["<|im_end|>", "<think>"])
    plain = load_model(small_model_directory())
    assert not known.plan.new_tokens
    assert known.plan.context.new_tokens == ()
    assert known.tokenizer.backend_tokenizer.to_str() == plain.tokenizer.backend_tokenizer.to_str()
    mine, theirs = known.base.model.state_dict(), plain.base.model.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_rows_start_as_the_mean_of_the_pieces() -> None:
    plain, loaded = load_model(small_model_directory()), load_model(small_model_directory(), add_tokens=TOKENS)
    old, new = (one.base.model.get_input_embeddings().weight for one in (plain, loaded))
    pieces = plain.tokenizer("<tool>", add_special_tokens=False).input_ids
    assert len(pieces) > 1
    assert torch.equal(new[:2048], old)
    assert torch.allclose(new[2048], old[pieces].mean(dim=0), atol=1e-7)
    assert loaded.base.model.get_output_embeddings().weight is new
    assert loaded.base.fingerprint == plain.base.fingerprint
    assert not any(p.requires_grad for p in loaded.base.model.parameters())


def test_rows_beyond_the_vocabulary_are_used_first(tmp_path: Path) -> None:
    directory = untied(tmp_path, rows=2056)
    loaded = load_model(directory, add_tokens=TOKENS)
    model: Any = loaded.base.model
    assert model.config.vocab_size == 2056 == loaded.plan.embeddings
    assert not loaded.plan.adds_rows
    old = load_file(directory / "model.safetensors")
    pieces = list(loaded.plan.new_tokens[0].pieces)
    for name, weight in (("model.embed_tokens.weight", model.model.embed_tokens.weight),
                         ("lm_head.weight", model.lm_head.weight)):  # fmt: skip
        assert torch.allclose(weight[2048], old[name][pieces].mean(dim=0), atol=1e-7)
        assert torch.equal(weight[2050:], old[name][2050:])
        assert torch.equal(weight[:2048], old[name][:2048])


def test_tokens_of_the_tokenizer_without_an_embedding_are_added_by_name(tmp_path: Path) -> None:
    directory = shutil.copytree(small_model_directory(), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens(["<a>", "<b>"])
    tokenizer.save_pretrained(directory)
    with pytest.raises(IncompatibleError, match=r"beyond the 2,048 embeddings of the model, .*: '<b>'") as raised:
        load_model(directory, add_tokens=["<a>", "<tool>"])
    assert raised.value.hint == "add them to data.add_tokens too"
    found = load_model(directory, add_tokens=["<b>", "<a>", "<tool>"])
    assert [token.id for token in found.plan.new_tokens] == [2049, 2048, 2050]
    assert all(max(token.pieces) < 2048 and len(token.pieces) > 1 for token in found.plan.new_tokens)
    assert found.base.model.config.vocab_size == 2051


def test_random_numbers_are_those_of_a_run_without_tokens() -> None:
    states = []
    for tokens in ((), TOKENS):
        torch.manual_seed(1)
        load_model(small_model_directory(), add_tokens=tokens)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_calibration_rows_have_the_pieces_of_new_tokens() -> None:
    token = NewToken("<tool>", 2048, (1, 2, 3))
    assert without_new(lambda: [[7, 2048, 8, 9], [2048]], [token])() == [[7, 1, 2, 3], [1]]
    rows = calibration
    assert without_new(rows, ()) is rows


def test_a_wrong_request_is_refused_before_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smollm3_finetune.model.load.load_base", lambda *args: pytest.fail("weights are read"))
    with pytest.raises(ConfigError, match="contains '<think>', which is a token of the model already"):
        load_model(small_model_directory(), add_tokens=["<think>x"])
    with pytest.raises(ConfigError, match="expected a list of texts"):
        load_model(small_model_directory(), add_tokens="<tool>")
    with pytest.raises(IncompatibleError, match="--adapter full does not train the rows") as raised:
        load_model(small_model_directory(), adapter={"name": "full", "parameters": ["*mlp*"]}, add_tokens=TOKENS)
    assert raised.value.hint == "--adapter full with its default options"


@pytest.mark.plugins
def test_an_adapter_that_does_not_train_them_is_refused_by_name() -> None:
    with pytest.raises(IncompatibleError, match="--adapter vera does not train the rows of new tokens") as raised:
        adapted(small_model_directory(), adapter="vera")
    assert raised.value.hint == "--adapter dora or --adapter full or --adapter lora or --adapter rslora"
    assert adapted(small_model_directory(), adapter="vera", add_tokens=["<|im_end|>"]).plan.new_tokens == ()


def test_quantized_embeddings_are_refused_by_name() -> None:
    model = small_model()
    some: Any = object()
    quantized = Base(model=model, fingerprint="", ops_for=lambda m: some if isinstance(m, nn.Embedding) else None)
    token = NewToken("<tool>", 2048, (1, 2))
    with pytest.raises(IncompatibleError, match=r"adds rows to the embeddings .* which quantizer 'q' quantizes"):
        with_new_rows(quantized, [token], "quantizer 'q'")
    with pytest.raises(ModelError, match="go up to the id 90000, but they do not follow the 2,048 embeddings"):
        with_new_rows(Base(model=model, fingerprint=""), [NewToken("<tool>", 90000, (1,))], "")
    with pytest.raises(ModelError, match="go up to the id 9000, but the model has 2,048 embeddings"):
        with_new_rows(Base(model=model, fingerprint=""), [NewToken("<tool>", 2048, (9000,))], "")


def test_a_damaged_description_is_refused(tmp_path: Path) -> None:
    for wrong in ({"token": "", "id": 1, "pieces": [1]}, {"token": "a", "id": -1, "pieces": [1]},
                  {"token": "a", "id": 1, "pieces": []}, {"token": "a", "id": True, "pieces": [1]}, "a"):  # fmt: skip
        SavedAdapter(path=tmp_path, model="tiny", adapter=ComponentConfig(name="lora")).write()
        about = json.loads((tmp_path / "smollm3.json").read_text())
        assert "new_tokens" not in about
        (tmp_path / "smollm3.json").write_text(json.dumps({**about, "new_tokens": [wrong]}))
        with pytest.raises(ModelError, match="is damaged"):
            SavedAdapter.read(tmp_path)


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.plugins
@pytest.mark.parametrize(
    ("quant", "adapter"), [*PAIRS, *(pytest.param(*pair, marks=pytest.mark.long) for pair in MORE)]
)
def test_they_are_trained_saved_restored_and_merged(quant: str, adapter: str, tmp_path: Path) -> None:
    directory = small_model_directory()
    loaded = adapted(directory, quant, {"name": adapter, "rank": 4})
    start = logits(loaded.model)
    plain = load_model(directory, quant=quantizer(quant), dtype="float32", add_tokens=TOKENS, calibration=calibration)
    assert off(start, logits(plain.model)) <= EXACT
    step(loaded.model)
    after = logits(loaded.model)
    assert off(after, start) > 0.01
    with loaded.disabled():
        assert off(logits(loaded.model), start) <= EXACT
    loaded.save(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    rows = {name: value for name, value in saved.items() if "embed" in name or "head" in name}
    assert [tuple(value.shape) for value in rows.values()] == [(2, 64)]
    described = SavedAdapter.read(tmp_path / "adapter")
    assert [token.text for token in described.new_tokens] == TOKENS
    more = {"dtype": "float32", "adapter_path": tmp_path / "adapter", "calibration": calibration}
    for purpose in ("infer", "train"):
        again = load_model(directory, purpose=purpose, **more)
        assert torch.equal(logits(again.model), after)
        assert again.tokenizer.convert_tokens_to_ids(TOKENS) == list(IDS)
    step(loaded.model, 1)
    merge(planned(directory, tmp_path / "adapter", quant=quant), MergeSettings(output=tmp_path / "merged"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert off(logits(merged), after) <= 1e-4
    assert merged.config.vocab_size == 2050
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer("<tool>", add_special_tokens=False).input_ids == [2048]


@pytest.mark.plugins
@pytest.mark.parametrize("adapter", ["lora", *(pytest.param(a, marks=pytest.mark.long) for a in ("dora", "rslora"))])
def test_a_head_of_its_own_gets_rows_of_its_own(adapter: str, tmp_path: Path) -> None:
    directory = untied(tmp_path / "base")
    loaded = adapted(directory, adapter={"name": adapter, "rank": 4})
    step(loaded.model)
    after = logits(loaded.model)
    loaded.save(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    rows = [value for name, value in saved.items() if "trainable_tokens" in name]
    assert [tuple(value.shape) for value in rows] == [(2, 64), (2, 64)]
    assert not torch.equal(*rows)
    again = load_model(directory, dtype="float32", adapter_path=tmp_path / "adapter")
    assert torch.equal(logits(again.model), after)
    merge(planned(directory, tmp_path / "adapter"), MergeSettings(output=tmp_path / "merged"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert off(logits(merged), after) <= 1e-4


def test_full_fine_tuning_keeps_them(tmp_path: Path) -> None:
    directory = small_model_directory()
    loaded = adapted(directory, adapter="full")
    step(loaded.model)
    after = logits(loaded.model)
    loaded.save(tmp_path / "adapter")
    again = load_model(directory, dtype="float32", adapter_path=tmp_path / "adapter")
    assert torch.equal(logits(again.model), after)
    merge(planned(directory, tmp_path / "adapter"), MergeSettings(output=tmp_path / "merged"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert off(logits(merged), after) <= 1e-4


@pytest.mark.plugins
@pytest.mark.long
@pytest.mark.parametrize("tied", [True, False])
def test_untying_in_the_merge_keeps_the_rows(tied: bool, tmp_path: Path) -> None:
    directory = small_model_directory() if tied else untied(tmp_path / "base")
    loaded = adapted(directory)
    step(loaded.model)
    after = logits(loaded.model)
    loaded.save(tmp_path / "adapter")
    merge(planned(directory, tmp_path / "adapter"), MergeSettings(output=tmp_path / "merged", untie=True))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert off(logits(merged), after) <= 1e-4
    assert not merged.config.tie_word_embeddings


@pytest.mark.plugins
@pytest.mark.parametrize("adapter", ["lora", "dora"])
@pytest.mark.parametrize("tied", [True, False])
def test_only_the_new_rows_move_and_their_gradients_are_right(adapter: str, tied: bool, tmp_path: Path) -> None:
    directory = small_model_directory() if tied else untied(tmp_path)
    loaded = adapted(directory, adapter={"name": adapter, "rank": 4}, dtype="float64")
    model: Any = loaded.model
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad and "trainable_tokens" in n}
    assert len(trained) == (1 if tied else 2)
    assert all(p.dtype == torch.float64 for p in trained.values())
    weights = dict(loaded.base.model.named_parameters())
    before = {n: p.detach().clone() for n, p in weights.items() if not p.requires_grad}

    def loss_of(one: Any) -> Tensor:
        found: Tensor = one.train()(input_ids=ROWS, use_cache=False).logits
        return nn.functional.cross_entropy(found[:, :-1].flatten(0, 1), ROWS[:, 1:].flatten())

    loss_of(model).backward()
    plain: Any = load_model(directory, dtype="float64", add_tokens=TOKENS).base.model
    layers = [plain.get_input_embeddings(), *([] if tied else [plain.get_output_embeddings()])]
    for layer in layers:
        layer.weight.requires_grad_(True)
    loss_of(plain).backward()
    for (name, parameter), layer in zip(trained.items(), layers, strict=True):
        assert ("embed" in name) == isinstance(layer, nn.Embedding)
        assert parameter.grad is not None and layer.weight.grad is not None
        assert off(parameter.grad, layer.weight.grad[list(IDS)]) <= 1e-12
    model.zero_grad()
    step(model)
    assert all(torch.equal(weights[n].detach(), value) for n, value in before.items())
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    with torch.no_grad():
        one = torch.eye(64, dtype=torch.float64)[None]
        used = head(one)[0].T  # (V, D): the weight that the head multiplies by
        looked_up = embeddings(torch.tensor([list(IDS)]))[0]
    if tied:
        assert torch.equal(used[list(IDS)], looked_up)
    own = next(v for n, v in before.items() if ("embed_tokens" if tied else "lm_head") in n)
    assert torch.equal(used[:2048], own[:2048])
    assert not torch.equal(looked_up, own[list(IDS)])


@pytest.mark.plugins
def test_in_half_precision_the_rows_are_trained_in_float32(tmp_path: Path) -> None:
    loaded = adapted(small_model_directory(), dtype="bfloat16")
    rows = [p for n, p in loaded.model.named_parameters() if "trainable_tokens" in n]
    assert [p.dtype for p in rows] == [torch.float32]
    with torch.autocast("cpu", torch.bfloat16):
        step(loaded.model, 1)
    with torch.autocast("cpu", torch.bfloat16):  # a new one: it keeps casts of weights
        after = logits(loaded.model)
    loaded.save(tmp_path / "adapter")
    again = load_model(small_model_directory(), dtype="bfloat16", adapter_path=tmp_path / "adapter", purpose="train")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(again.model), after)


@pytest.mark.plugins
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("pieces", [False, True])
def test_the_head_at_supervised_positions_uses_the_trained_rows(tied: bool, pieces: bool, tmp_path: Path) -> None:
    loaded = adapted(small_model_directory() if tied else untied(tmp_path), dtype="float64")
    step(loaded.model)
    model: Any = loaded.model.train()
    labels = torch.where(torch.arange(8) % 3 == 1, -100, ROWS)
    found = []
    for supervised in (False, True):
        model.zero_grad()
        if supervised:
            with supervised_logits(loaded.base.model, 3 * 2050 * 8 if pieces else None) as replaced:
                assert replaced
                loss = model(input_ids=ROWS, labels=labels, use_cache=False).loss
                loss.backward()
        else:
            whole = model(input_ids=ROWS, use_cache=False).logits
            loss = nn.functional.cross_entropy(whole[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            loss.backward()
        found.append((loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (right, expected), (ours, gradients) = found
    assert abs(float(ours - right)) <= 1e-12 * float(right)
    assert any("trainable_tokens" in name for name in expected) and expected.keys() == gradients.keys()
    for name, gradient in expected.items():
        assert off(gradients[name], gradient) <= 1e-11, name


@pytest.mark.plugins
def test_the_same_adapter_without_tokens_is_the_same(tmp_path: Path) -> None:
    saved = []
    for tokens in ((), ("<|im_end|>",)):
        loaded = adapted(small_model_directory(), add_tokens=tokens)
        loaded.save(tmp_path / f"adapter-{len(tokens)}")
        saved.append({f.name: f.read_bytes() for f in (tmp_path / f"adapter-{len(tokens)}").iterdir()})
    assert saved[0] == saved[1]
    assert b"new_tokens" not in saved[0]["smollm3.json"]
    assert json.loads(saved[0]["adapter_config.json"])["trainable_token_indices"] is None


@pytest.mark.plugins
def test_modules_that_are_trained_whole_are_refused() -> None:
    for options in ({"modules_to_save": ["embed_tokens"]}, {"target_modules": ["q_proj", "lm_head"]}):
        with pytest.raises(ConfigError, match=r"as a whole, whose rows data\.add_tokens trains"):
            adapted(small_model_directory(), adapter={"name": "lora", **options})


@pytest.mark.plugins
def test_a_head_with_a_bias_is_refused_by_lora_and_trained_by_full(tmp_path: Path) -> None:
    config = PhiConfig(vocab_size=2048, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
                       num_attention_heads=2, max_position_embeddings=64)  # fmt: skip
    model = PhiForCausalLM(config)
    assert model.lm_head.bias is not None
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(small_model_directory() / name, tmp_path / name)
    with pytest.raises(IncompatibleError, match="cannot train single rows of 'lm_head', because it has a bias"):
        adapted(tmp_path)
    loaded = adapted(tmp_path, adapter="full")
    step(loaded.model, 1)
    assert logits(loaded.model).isfinite().all()


# ------------------------------------------------------------------------------------------------- continuing, the card


@pytest.mark.plugins
def test_a_saved_adapter_keeps_its_tokens_and_takes_no_others(tmp_path: Path) -> None:
    directory = small_model_directory()
    loaded = adapted(directory)
    loaded.save(tmp_path / "with")
    adapted(directory, add_tokens=()).save(tmp_path / "without")
    more: dict[str, Any] = {"dtype": "float32", "adapter_path": tmp_path / "with"}
    assert load_model(directory, add_tokens=[*TOKENS, "<|im_end|>"], **more).plan.new_tokens == loaded.plan.new_tokens
    with pytest.raises(IncompatibleError, match=r"names '<tol>', but the adapter .* was trained without it") as raised:
        load_model(directory, add_tokens=["<tol>"], **more)
    assert raised.value.hint == "did you mean '<tool>'?"
    with pytest.raises(IncompatibleError, match="was trained without them"):
        load_model(directory, add_tokens=TOKENS, dtype="float32", adapter_path=tmp_path / "without")


def saved_with_usage(tied: bool, directory: Path) -> tuple[str, Tensor]:
    """An adapter in `directory`, the statements of its card for PEFT alone, and its logits."""
    base = directory / "base"
    if tied:
        shutil.copytree(small_model_directory(), base)
    else:
        untied(base)
    loaded = adapted(base)
    step(loaded.model)
    loaded.save(directory / "adapter")
    text = (directory / "adapter" / "README.md").read_text()
    assert "| new tokens | `<tool>` (2048), `</tool>` (2049) |" in text
    (usage,) = re.findall(r"Without smollm3-finetune, with `peft`:\n\n```python\n(.*?)```", text, re.DOTALL)
    assert "base.resize_token_embeddings(2050, mean_resizing=False)" in usage
    placed = usage.replace(f"path/to/{base.name}", str(base))
    assert placed != usage
    return placed, logits(loaded.model)


@pytest.mark.plugins
@pytest.mark.parametrize("tied", [True, False])
def test_the_usage_of_the_card_gives_the_same_logits(
    tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, expected = saved_with_usage(tied, tmp_path)
    monkeypatch.chdir(tmp_path / "adapter")
    found: dict[str, Any] = {}
    with warnings.catch_warnings(action="ignore"):  # those of libraries
        exec(usage, found)
    assert off(logits(found["model"]), expected) <= EXACT
    assert found["tokenizer"]("<tool>", add_special_tokens=False).input_ids == [2048]


@pytest.mark.plugins
@pytest.mark.long
def test_the_usage_of_the_card_needs_only_peft(tmp_path: Path) -> None:
    usage, expected = saved_with_usage(True, tmp_path)
    check = (
        f"\nimport sys, torch\nfrom safetensors.torch import save_file\nids = torch.tensor({ROWS.tolist()})\n"
        "model.eval()\nwith torch.no_grad():\n    found = model(input_ids=ids, use_cache=False).logits.contiguous()\n"
        "save_file({'logits': found}, sys.argv[1])\n"
        "assert not [m for m in sys.modules if m.startswith('smollm3')]\n"
    )
    command = [sys.executable, "-c", usage + check, str(tmp_path / "out.safetensors")]
    subprocess.run(command, check=True, cwd=tmp_path / "adapter", capture_output=True)
    found = load_file(tmp_path / "out.safetensors")
    assert off(found["logits"].double(), expected) <= EXACT
