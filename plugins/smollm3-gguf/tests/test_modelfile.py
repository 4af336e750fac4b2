"""The Modelfile's template renders what the chat template renders, or is left out."""

from __future__ import annotations

import re

import pytest
from smollm3_gguf.check_template import CONVERSATIONS
from smollm3_gguf.modelfile import modelfile, turns_of
from smollm3_gguf.sampling import sampling_of

from smollm3_finetune.api import directory_source

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    + CHATML
)
OTHER_MARKS = (
    "{% for m in messages %}{% if m.role == 'user' %}### Human: {{ m.content }}\n{% elif m.role == 'system' %}"
    "{{ m.content }}\n\n{% else %}### Assistant: {{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:{% endif %}"
)


def go(template, messages):
    """Evaluate the part of Go's template language that a Modelfile uses here: range, if, else if, end, .Content."""
    parts = re.split(r"\{\{ (.*?) \}\}", template)
    texts, actions = parts[::2], parts[1::2]
    assert actions[0] == "range .Messages"
    assert actions[-2:] == ["end", "end"]
    branches, current = {}, None
    for action, text in zip(actions[1:-2], texts[2:-2], strict=True):
        if found := re.fullmatch(r'(?:else )?if eq \.Role "(\w+)"', action):
            current = found[1]
            branches[current] = [text]
        else:
            assert action == ".Content"
            branches[current].append(text)
    body = "".join(m["content"].join(branches[m["role"]]) for m in messages)
    return texts[0] + texts[1].join("" for _ in messages) + body + texts[-1]


@pytest.fixture
def tokenizer(exported):
    return directory_source(exported.TINY, ref="tiny").tokenizer()


@pytest.mark.parametrize(
    ("template", "default"), [(CHATML, None), (WITH_DEFAULT, "You are helpful."), (OTHER_MARKS, None)]
)
def test_the_template_renders_what_the_chat_template_renders(tokenizer, template, default):
    tokenizer.chat_template = template
    turns = turns_of(tokenizer)
    if template == OTHER_MARKS:  # after the prompt, an answer begins without the space that the template puts there
        assert turns.prompt == "### Assistant:"
    assert turns.default_system == default
    for conversation in CONVERSATIONS:
        if conversation[-1]["role"] != "user":
            continue
        messages = list(conversation)
        if default is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": default})
        expected = tokenizer.apply_chat_template(list(conversation), tokenize=False, add_generation_prompt=True)
        assert go(turns.template(), messages) == expected


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("m['content']", "m['content'] | trim"),
        CHATML.replace("{% for", "{{ bos_token }}{{ messages | length }}{% for", 1),
        "{% if messages | length > 1 %}{{ raise_exception('one message only') }}{% endif %}{{ messages[0].content }}",
        CHATML.replace("<|im_start|>", "{{"),
        "",
    ],
)
def test_a_template_that_is_more_than_fixed_texts_is_left_out(tokenizer, template):
    tokenizer.chat_template = template or None
    assert turns_of(tokenizer) is None


def test_text_of_the_modelfile(tokenizer):
    tokenizer.chat_template = WITH_DEFAULT
    text = modelfile("x-Q4_0.gguf", turns_of(tokenizer), ["<|im_end|>"], {"temperature": 0.6, "top_p": 0.95})
    assert text.splitlines()[0] == "FROM ./x-Q4_0.gguf"
    assert text.count('"""') == 4
    assert 'SYSTEM """You are helpful."""' in text
    assert text.endswith('PARAMETER stop "<|im_end|>"\nPARAMETER temperature 0.6\nPARAMETER top_p 0.95\n')
    assert "PARAMETER temp" not in modelfile("x", None, [], {"temperature": 0.6, "do_sample": False})


def test_a_generation_config_adds_no_line_of_its_own():
    generation = {"repetition_penalty": "1.1\nADAPTER ./x", "temperature": None, "top_p": float("nan"), "top_k": 2.5}
    text = modelfile("x", None, ["<end>", "a\nSYSTEM b", 'q"', "\x00"], generation)
    assert text == 'FROM ./x\nPARAMETER stop "<end>"\n'
    stated, omitted = sampling_of(generation | {"temperature": True, "top_k": 40.0})
    assert stated == {"top_k": 40}
    assert omitted == ["temperature = True", "top_p = nan", "repetition_penalty = '1.1\\nADAPTER ./x'"]


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("+ m['content'] +", "+ '{' + m['content'] +"),
        CHATML.replace("'<|im_end|>' + '\n'", "'<|im_end|>{'"),
        CHATML.replace("assistant\n' }}{% endif", "assistant\"' }}{% endif"),
        WITH_DEFAULT.replace("You are helpful.", 'Be "kind" now.'),
        WITH_DEFAULT.replace("You are helpful.", 'Be "kind"'),
    ],
    ids=[
        "brace before the content",
        "brace after it",
        "quote at the end",
        "quotes inside a system message",
        "at its end",
    ],
)
def test_texts_that_go_or_ollama_would_read_in_another_way(tokenizer, template, request):
    tokenizer.chat_template = template
    assert (turns_of(tokenizer) is None) == ("inside" not in request.node.callspec.id)


def test_omitted_values_are_said(exported, context, tmp_path):
    directory = exported.write_model(tmp_path / "model")
    exported.edit_json(directory / "generation_config.json", temperature="abc", top_k=10**400)
    ctx = context()
    file = exported.export(directory, tmp_path / "out", ctx, type="q8_0", modelfile=True)
    assert b"general.sampling" not in file.read_bytes()
    assert any("temperature = 'abc', top_k = 1000" in line for line in ctx.progress.said)
    exported.edit_json(directory / "generation_config.json", temperature=0.5, top_k=2, do_sample=False)
    assert b"general.sampling" not in exported.export(directory, tmp_path / "greedy", ctx, type="q8_0").read_bytes()


def test_the_file_is_written_beside_the_gguf(exported, context, tmp_path):
    directory = exported.write_model(tmp_path / "model")
    (directory / "chat_template.jinja").write_text(CHATML)
    file = exported.export(directory, tmp_path / "out", context(), type="q8_0", modelfile=True)
    assert sorted(p.name for p in file.parent.iterdir()) == ["Modelfile", "model-Q8_0.gguf"]
    text = (file.parent / "Modelfile").read_text()
    assert '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n' in text
    assert 'PARAMETER stop "<|im_end|>"\n' in text


def test_a_template_that_cannot_be_expressed_is_said(exported, context, tmp_path):
    directory = exported.write_model(tmp_path / "model")
    (directory / "chat_template.jinja").write_text(CHATML.replace("m['content']", "m['content'] | trim"))
    ctx = context()
    file = exported.export(directory, tmp_path / "out", ctx, type="q8_0", modelfile=True)
    assert "TEMPLATE" not in (file.parent / "Modelfile").read_text()
    assert any(line.startswith("the Modelfile has no TEMPLATE") for line in ctx.progress.said)
