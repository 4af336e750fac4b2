"""The tokenizer of a file is that of the model; what llama.cpp has no equal of is refused by name."""

from __future__ import annotations

import json
import shutil

import pytest
from smollm3_gguf.check_tokens import check_tokens
from smollm3_gguf.fuzz import texts
from smollm3_gguf.header import Header
from smollm3_gguf.pretokenizers import KNOWN, LLAMA3, recognized
from smollm3_gguf.rebuilt import for_transformers, rebuilt
from smollm3_gguf.vocabulary import CONTROL, UNUSED, USER_DEFINED, check_tokenizer, vocabulary_in, vocabulary_of

from smollm3_finetune.api import IncompatibleError, ModelError, directory_source

LLAMA3_STEPS = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}
WORDS = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.fixture
def directory(exported, tmp_path):
    """A copy of the embedded model's directory without its weights."""
    out = tmp_path / "model"
    out.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"):
        shutil.copy(exported.TINY / name, out / name)
    return out


@pytest.fixture
def changed(exported, directory):
    """Loads the tokenizer after `change` edited its definition."""

    def load(change):
        defined = json.loads((directory / "tokenizer.json").read_text())
        change(defined)
        (directory / "tokenizer.json").write_text(json.dumps(defined))
        return directory_source(directory, ref="model").tokenizer()

    return load


@pytest.mark.parametrize(
    ("steps", "ignore_merges", "name"),
    [(WORDS, False, "gpt-2"), (LLAMA3_STEPS, False, "smaug-bpe"), (LLAMA3_STEPS, True, "llama-bpe")],
)
def test_each_pre_tokenizer_is_recognized_and_rebuilt(changed, context, steps, ignore_merges, name):
    def change(defined):
        defined["pre_tokenizer"] = steps
        defined["model"]["ignore_merges"] = ignore_merges

    tokenizer = changed(change)
    vocabulary = vocabulary_of(tokenizer, 2048, [4])
    assert vocabulary.pre == name
    assert check_tokens(vocabulary, tokenizer, [], 500, context().progress).passed


def test_looking_up_words_makes_another_tokenizer(changed, context):
    """Why SmolLM3's tokenizer is `llama-bpe` if it has `ignore_merges`: with `smaug-bpe`, some words differ."""

    def change(defined):
        defined["pre_tokenizer"] = LLAMA3_STEPS
        defined["model"]["ignore_merges"] = True
        defined["model"]["vocab"]["xyzzy"] = max(defined["model"]["vocab"].values()) + 1

    tokenizer = changed(change)
    vocabulary = vocabulary_of(tokenizer, 2060, [4])
    assert check_tokens(vocabulary, tokenizer, ["xyzzy"], 100, context().progress).passed
    import dataclasses

    other = dataclasses.replace(vocabulary, pre="smaug-bpe")
    check = check_tokens(other, tokenizer, ["xyzzy"], 0, context().progress)
    assert not check.passed
    assert "the text 'xyzzy' has the ids" in check.says


def test_every_name_is_recognized_from_its_own_definition():
    for name, (steps, whole_words) in KNOWN.items():
        assert recognized({"type": "Sequence", "pretokenizers": steps}, whole_words) == name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), r'is not one that can be exported.*"Whitespace"'),
        (lambda d: d["model"].update(ignore_merges=True), r"with ignore_merges: .*Digits"),
        (lambda d: d.update(normalizer={"type": "NFC"}), r"the normalizer of this model's tokenizer \(NFC\)"),
        (lambda d: d["added_tokens"][5].update(lstrip=True), r"the token '<think>' .* it has lstrip"),
        (lambda d: d["model"].update(byte_fallback=True), "only byte-level BPE.*it has byte_fallback"),
    ],
)
def test_what_llama_cpp_has_no_equal_of_is_refused(changed, directory, change, says):
    with pytest.raises(IncompatibleError, match=says):
        vocabulary_of(changed(change), 2048, [4])
    with pytest.raises(IncompatibleError, match=says):
        check_tokenizer(json.loads((directory / "tokenizer.json").read_text()))


def test_types_of_tokens_and_rows_without_a_token(changed):
    def change(defined):
        defined["added_tokens"][5]["special"] = False

    vocabulary = vocabulary_of(changed(change), 2050, [4, 1])
    assert vocabulary.types[4] == CONTROL
    assert vocabulary.types[5] == USER_DEFINED
    assert vocabulary.tokens[2048:] == ["[PAD2048]", "[PAD2049]"]
    assert vocabulary.types[2048:] == [UNUSED, UNUSED]
    assert vocabulary.special == {"bos": 0, "eos": 4, "eot": 4, "eom": 1, "padding": 2}
    assert len(rebuilt(vocabulary).get_vocab()) == 2048


def test_an_added_token_is_one_token_in_the_file(directory, context):
    tokenizer = directory_source(directory, ref="model").tokenizer()
    tokenizer.add_tokens(["<weather>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|call|>"]})
    vocabulary = vocabulary_of(tokenizer, 2050, [4])
    assert vocabulary.tokens[2048:] == ["<weather>", "<|call|>"]
    assert vocabulary.types[2048:] == [USER_DEFINED, CONTROL]
    rows = ["ask <weather> now", "<|call|><weather>"]
    assert check_tokens(vocabulary, tokenizer, rows, 500, context().progress).passed
    assert 2048 in for_transformers(vocabulary)("ask <weather> now")["input_ids"]


def test_a_tokenizer_of_another_model_is_refused(directory):
    tokenizer = directory_source(directory, ref="model").tokenizer()
    with pytest.raises(ModelError, match="the tokenizer has the token 2047, but the embeddings have only 2000 rows"):
        vocabulary_of(tokenizer, 2000, [4])


def test_bos_and_eos_that_the_tokenizer_adds_are_stated(changed, context):
    def change(defined):
        ids = {"<|begin_of_text|>": 0, "<|im_end|>": 4}
        defined["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in ids.items()},
        }

    tokenizer = changed(change)
    vocabulary = vocabulary_of(tokenizer, 2048, [4])
    assert (vocabulary.add_bos, vocabulary.add_eos) == (True, True)
    assert check_tokens(vocabulary, tokenizer, ["hello"], 200, context().progress).passed


def test_the_tokenizer_read_back_is_the_same_in_transformers(directory):
    tokenizer = directory_source(directory, ref="model").tokenizer()
    again = for_transformers(vocabulary_of(tokenizer, 2048, [4]))
    for name in ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template"):
        assert getattr(again, name) == getattr(tokenizer, name), name
    assert again.get_vocab() == tokenizer.get_vocab()
    rows = list(texts(50, ["<|im_end|>"]))
    assert again(rows)["input_ids"] == tokenizer(rows)["input_ids"]
    ids = tokenizer("a <think>b</think> 日本<|im_end|>")["input_ids"]
    for skip in (False, True):
        assert again.decode(ids, skip_special_tokens=skip) == tokenizer.decode(ids, skip_special_tokens=skip)


def test_fuzzed_texts_are_the_same_each_time_and_hold_special_tokens():
    first = list(texts(2000, ["<|im_end|>"]))
    assert first == list(texts(2000, ["<|im_end|>"]))
    assert sum("<|im_end|>" in text for text in first) > 100
    assert len({c for text in first for c in text}) > 3000
    assert any("\x00" in text or "\x01" in text for text in first)


@pytest.mark.parametrize(
    ("pre", "adds"), [("llama-bpe", True), ("llama3", True), ("llama-v3", True), ("smollm", False)]
)
def test_whether_bos_is_added_if_a_file_does_not_say(pre, adds):
    stated = {"tokens": ["a"], "merges": [], "pre": pre}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in stated.items()}
    assert vocabulary_in(Header(metadata=metadata, tensors={}, data_start=0)).add_bos is adds


def test_named_templates_are_kept(directory):
    tokenizer = directory_source(directory, ref="model").tokenizer()
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    vocabulary = vocabulary_of(tokenizer, 2048, [4])
    assert vocabulary.templates == {"": "{{ messages }}", "tool_use": "{{ tools }}"}
    assert for_transformers(vocabulary).chat_template == tokenizer.chat_template
