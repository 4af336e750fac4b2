"""Tokenizers of other shapes than the embedded model's: what is a token, what is supervised, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import smollm3_finetune
from smollm3_finetune.api import IGNORE_INDEX, Conversation
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.data.vocabulary import embeddings_of

Cli = Callable[..., Any]
TINY = Path(smollm3_finetune.__file__).parent / "builtin" / "tiny"
BEGIN, END, TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|im_end|>"


def words(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    return [tokenizer.decode([i]) for i in ids]


def supervised(tokenizer: PreTrainedTokenizerBase, labels: list[int]) -> list[str]:
    return words(tokenizer, [i for i in labels if i != IGNORE_INDEX])


def written(name: str, *rows: dict[str, Any]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def question(text: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]}


PLAIN = [question(f"What is {i}?", f"It is {i}.") for i in range(8)]


def with_added_tokens(*tokens: str, **special: str) -> str:
    """The embedded model with tokens that have no embedding."""
    folder = Path(shutil.copytree(TINY, "added"))
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.add_tokens(list(tokens))
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(str(folder))
    return str(folder)


def test_a_token_without_an_embedding_is_refused_by_row_and_rows_without_it_are_used(cli: Cli) -> None:
    model = with_added_tokens("<NEW1>", "<NEW2>", pad_token="<NEWPAD>")
    quick = ("--adapter", "full", "--max-steps", "1", "--set", "train.sample_tokens=2")
    rows = written("rows.jsonl", *PLAIN, question("Where?", "Here <NEW2> is."))
    for command in (["data", "stats"], ["train", *quick, "--output", "refused"]):
        found = cli(*command, "--model", model, "--data", rows)
        assert found.code == 6
        assert "the token '<NEW2>' (id 2049) of rows.jsonl:9 is beyond the 2048 embeddings" in found.stderr
        assert "model.resize_token_embeddings(2051)" in found.stderr
    assert not Path("refused").exists()
    trained = cli("train", *quick, "--model", model, "--data", written("plain.jsonl", *PLAIN), "--output", "run")
    assert trained.code == 0, trained.stderr
    assert "the pad token '<NEWPAD>' (id 2050) is beyond the 2048 embeddings of the model" in trained.stderr
    asked = cli("generate", model, "--prompt", "Is <NEW1> a word?")
    assert (asked.code, "(id 2048) of the prompt is beyond the 2048 embeddings" in asked.stderr) == (6, True)


def test_the_cache_of_rows_depends_on_the_embeddings(cli: Cli) -> None:
    """Rows that were tokenized for a model with more embeddings are checked again."""
    model, rows = with_added_tokens("<NEW1>"), written("rows.jsonl", *PLAIN[:7], question("Where?", "<NEW1>"))
    config = Path(model, "config.json")
    about = json.loads(config.read_text())
    quick = ("--adapter", "full", "--max-steps", "1", "--set", "train.sample_tokens=2", "--set", "data.held_out=0")
    for size, code in ((4096, 1), (2048, 6)):  # with 4096, the rows are tokenized, and the weights do not fit
        config.write_text(json.dumps({**about, "vocab_size": size}))
        found = cli("train", *quick, "--model", model, "--data", rows, "--output", f"run{size}")
        assert found.code != 0
        assert ("is beyond the 2048 embeddings" in found.stderr) == (code == 6), found.stderr


def test_the_embeddings_of_a_multimodal_model_are_those_of_its_text() -> None:
    assert embeddings_of({"vocab_size": 9, "text_config": {"vocab_size": 7}}) == 7
    assert embeddings_of({"vocab_size": 9, "text_config": {}}) == 9
    assert embeddings_of({"hidden_size": 9}) is None


def base(single: str, *, template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer that adds special tokens to each text, as `single` says."""
    backend = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(t, backend.token_to_id(t)) for t in single.split() if t != "$A"]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BEGIN, eos_token=END)
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    "text", ["The town is old.", f"{BEGIN}The town is old.", f"The town is old.{END}", f"{BEGIN}The town is old.{END}"]
)
@pytest.mark.parametrize(
    ("single", "before"), [("$A", 0), (f"{BEGIN} $A", 1), (f"{BEGIN} $A {END}", 1), (f"{TURN} {BEGIN} $A", 2)]
)
def test_raw_text_has_the_begin_tokens_and_the_end_token_once(single: str, before: int, text: str) -> None:
    tokenizer = base(single)
    renderer = Renderer(tokenizer)
    found = renderer.encode(Conversation(text=text), 100)
    begin = {0: "", 1: BEGIN, 2: TURN + BEGIN}[before] or (BEGIN if text.startswith(BEGIN) else "")
    assert tokenizer.decode(found.input_ids) == f"{begin}The town is old.{END}"
    assert found.labels[:before] == [IGNORE_INDEX] * before
    assert found.labels[before:] == found.input_ids[before:]
    if text == "The town is old.":
        assert found.input_ids[: len(tokenizer(text).input_ids)] == tokenizer(text).input_ids
        prompt = renderer.prompt_ids([{"role": "user", "content": text}])
        assert prompt == [*found.input_ids[:before], *tokenizer(text, add_special_tokens=False).input_ids]


def test_chunks_of_raw_text_have_one_begin_token() -> None:
    tokenizer = base(f"{BEGIN} $A")
    text = Conversation(text="one two three " * 20)
    chunks = Renderer(tokenizer).chunks(text, 16)
    ids = chunks[0].input_ids + [i for c in chunks[1:] for i in c.input_ids[1:]]
    assert ids == [*tokenizer(text.text).input_ids, tokenizer.eos_token_id]
    assert ids.count(tokenizer.bos_token_id) == 1


def test_chats_have_the_begin_token_of_the_template_only() -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    renderer = Renderer(base(f"{BEGIN} $A {END}", template=template))
    found = renderer.encode(Conversation(messages=tuple(question("Hi", "Yes")["messages"])), 100)
    prompt = renderer.prompt_ids([{"role": "user", "content": "Hi"}])
    assert found.input_ids[: len(prompt)] == prompt
    assert found.input_ids.count(0) == prompt.count(0) == 1
    assert 1 not in found.input_ids


def test_generation_without_a_template_gets_the_begin_token(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from smollm3_finetune.inference.generate import answer

    tokenizer = base(f"{BEGIN} $A")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model, seen = LlamaForCausalLM(LlamaConfig(vocab_size=2048, **sizes)), []
    forward = model.forward

    def recorded(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["input_ids"][0].tolist())
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", recorded)
    answer(model, tokenizer, [{"role": "user", "content": "The town"}], max_new_tokens=1)
    assert seen[0] == tokenizer("The town").input_ids
    assert seen[0][0] == tokenizer.bos_token_id
