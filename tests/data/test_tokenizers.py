"""Tokenizers of other shapes than the embedded model's: what is a token, what is supervised, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    PreTrainedTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

import smollm3_finetune
from smollm3_finetune.api import IGNORE_INDEX, Conversation
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.errors import ModelError
from smollm3_finetune.model_files.vocabulary import embeddings_of

Cli = Callable[..., Any]
TINY = Path(smollm3_finetune.__file__).parent / "builtin" / "tiny"
BEGIN, END, TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|im_end|>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


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
    renderer = Renderer(base(f"{BEGIN} $A {END}", template="{{ bos_token }}" + CHATML))
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


def talked(tokenizer: PreTrainedTokenizerBase, *texts: str) -> tuple[str, list[str]]:
    """The text of the row's tokens, and its supervised tokens; `texts` are questions and answers in turn."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    found = Renderer(tokenizer).encode(Conversation(messages=tuple(turns)), 1000)
    assert len(found.labels) == len(found.input_ids)
    whole = tokenizer.decode(found.input_ids, clean_up_tokenization_spaces=False)
    return whole, [tokenizer.convert_ids_to_tokens(i) for i in found.labels if i != IGNORE_INDEX]


SPACED = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
HEADED = (
    "{% for m in messages %}{{ '### ' + m.role | capitalize + ':\n' + m.content + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
TALK = ("Where is Oslo?", "I know it.", "Is it far?", "It is not.")


def trained(kind: str, template: str) -> PreTrainedTokenizerFast:
    """A small tokenizer of one kind: how it treats the space before a word and line breaks behind it."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    if kind.startswith("metaspace"):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind.rpartition(" ")[2])
        backend.decoder = decoders.Metaspace(prepend_scheme=kind.rpartition(" ")[2])
    elif kind == "prepend":  # Llama 2 as converted from SentencePiece
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        split = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
        bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(split, "isolated"), bytes_of_words])
        if kind == "bytes with a space":
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        if kind == "bytes without spaces in offsets":
            backend.post_processor = processors.ByteLevel(trim_offsets=True)
        backend.decoder = decoders.ByteLevel()
    texts = ["USER: Where is Oslo? ASSISTANT: I know it.", "### User:\nIs it far?\n\n### Assistant:\nIt is not.\n\n"]
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts * 20, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    made.chat_template = template
    return made


KINDS = ["metaspace always", "metaspace first", "prepend", "bytes", "bytes with a space"]


@pytest.mark.parametrize("kind", [*KINDS, "bytes without spaces in offsets"])
def test_a_prompt_that_ends_in_a_space_keeps_it_and_the_answer_has_none_of_its_own(kind: str) -> None:
    tokenizer = trained(kind, SPACED)
    whole, words = talked(tokenizer, *TALK)
    text = "USER: Where is Oslo? ASSISTANT: I know it.</s>USER: Is it far? ASSISTANT: It is not.</s>"
    if kind in (
        "metaspace always",
        "prepend",
        "bytes with a space",
    ):  # they put a space before the text after a special token
        text = text.replace("</s>USER", "</s> USER")
    assert whole.removeprefix(" ") == text
    answers = "".join(words).replace("▁", " ").replace("Ġ", " ")
    assert answers == "I know it.</s>It is not.</s>"
    backend = tokenizer.backend_tokenizer
    assert talked(tokenizer, *TALK)[0] == whole
    assert backend.to_str() == trained(kind, SPACED).backend_tokenizer.to_str(), "the tokenizer is as it was"


@pytest.mark.parametrize("kind", ["bytes", "bytes without spaces in offsets"])
def test_a_word_that_the_tokenizer_joins_with_line_breaks_is_supervised_without_them(kind: str) -> None:
    tokenizer = trained(kind, HEADED)
    assert any(t.startswith(".Ċ") for t in tokenizer.get_vocab()), "the tokenizer joins them"
    whole, words = talked(tokenizer, *TALK)
    assert whole.startswith("### User:\nWhere is Oslo?\n\n### Assistant:\nI know it.\n\n### User:\nIs it far?\n\n")
    assert "".join(words).replace("Ġ", " ") == "I know it.It is not.</s>"


class Longest(PreTrainedTokenizer):
    """A tokenizer in Python: the longest known word at each place; with `space`, each text begins with a space."""

    def __init__(self, space: bool = False, **more: Any) -> None:
        known = [*map(chr, range(32, 127)), "\n", "Where", "know", " I", "?\n\n", ".\n\n", ": I", ": ", "I know"]
        self.known = {word: i for i, word in enumerate(known)}
        self.space = space
        super().__init__(eos_token="</s>", **more)

    @property
    def vocab_size(self) -> int:
        return len(self.known)

    def get_vocab(self) -> dict[str, int]:
        return {**self.known, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        found, text = [], " " + text if self.space else text
        while text:
            found.append(max((w for w in self.known if text.startswith(w)), key=len))
            text = text[len(found[-1]) :]
        return found

    def _convert_token_to_id(self, token: str) -> int:
        return self.known[token]

    def _convert_id_to_token(self, index: int) -> str:
        return list(self.known)[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (SPACED, ["I know", " ", "i", "t", ".", "</s>"]),  # ": I" would be merged at the border
        (HEADED, ["I know", " ", "i", "t", ".", "</s>"]),  # ".\n\n" would be merged at the end
    ],
)
def test_a_tokenizer_without_offsets_supervises_the_same_text(template: str, wanted: list[str]) -> None:
    tokenizer = Longest()
    tokenizer.chat_template = template
    assert not tokenizer.is_fast
    fast = trained("bytes", template)
    whole, words = talked(tokenizer, *TALK[:2])
    assert whole == talked(fast, *TALK[:2])[0]
    assert words == wanted
    more = talked(tokenizer, *TALK)
    assert more[0] == talked(fast, *TALK)[0]
    assert "".join(more[1]) == "".join(talked(fast, *TALK)[1]).replace("Ġ", " ")


def test_a_tokenizer_without_offsets_that_cannot_be_cut_is_refused_by_name(cli: Cli) -> None:
    tokenizer = Longest(space=True, name_or_path="some/model")
    tokenizer.chat_template = SPACED
    with pytest.raises(ModelError, match=r"'some/model' \(Longest\) gives no offsets") as refused:
        talked(tokenizer, *TALK)
    assert refused.value.exit_code == 6
    tokenizer.chat_template = CHATML
    _, words = talked(tokenizer, "Where?", "I know it.")
    assert "".join(words) == "I know it.<|im_end|>", "no token crosses a border, so nothing is cut"


def test_byt5_rows_are_prepared_and_shown(cli: Cli) -> None:
    folder = Path(shutil.copytree(TINY, "bytes", ignore=lambda *_: ["tokenizer.json", "tokenizer_config.json"]))
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(str(folder))
    shown = cli("data", "preview", "--model", str(folder), "--data", written("rows.jsonl", *PLAIN), "--rows", "1")
    assert shown.code == 0, shown.stderr
    assert "«It is 0.<|im_end|>»" in shown.stdout
