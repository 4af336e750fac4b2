"""A chat template cannot take more time or memory than the limits, and the limits change no rendering."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import smollm3_finetune
from smollm3_finetune.data.chat_template.renderer import Renderer, RenderOptions
from smollm3_finetune.data.chat_template.sandbox import MARK, limited
from smollm3_finetune.errors import DataError

TEMPLATES = [
    Path(smollm3_finetune.__file__).parent / "builtin" / "tiny" / "chat_template.jinja",
    *sorted((Path(__file__).parent / "templates").glob("*.jinja")),
]
LONG, LARGE = "takes more than 1 seconds", "makes more than 1 MB"
HOSTILE = {
    "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = b %}{% endfor %}{% endfor %}": LONG,
    "{% macro f(n) %}{% if n %}{% set a = f(n - 1) %}{% set a = f(n - 1) %}{% endif %}{% endmacro %}{{ f(60) }}": LONG,
    "{% set c = cycler('a') %}{% for a in range(9999) %}{% for b in range(9999) %}{% if c.next() %}{% endif %}"
    "{% endfor %}{% endfor %}": LONG,
    "{% set x = 'ab' %}" + "{% set x = x ~ x %}" * 60: LARGE,
    "{% set x = 'ab' %}" + "{% set x = x + x %}" * 60: LARGE,
    "{% set x %}ab{% endset %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60: LARGE,
    "{% set x = [1] %}" + "{% set x = x + x %}" * 60: LARGE,
    "{% set x = [1] %}" + "{% set x = [x, x] %}" * 60 + "{{ x }}": LARGE,
    "{% set x = [1] %}" + "{% set x = [x, x] | list %}" * 60 + "{{ x | tojson }}": LARGE,
    "{% set x = [1] %}" + "{% set x = [x, x][:] %}" * 60 + "{{ x }}": LARGE,
    "{% set x = [1] %}" + "{% set x = {'a': x, 'b': x} %}" * 60 + "{{ x }}": LARGE,
    "{% set x = [1] %}" + "{% set x = dict(a=x, b=x) %}" * 60 + "{{ x }}": LARGE,
    "{{ 2 ** 100000000000 }}": LARGE,
    "{{ 'a' * 10 ** 10 }}": LARGE,
    "{{ [1] * 10 ** 10 }}": LARGE,
    "{{ 'a' | center(10 ** 10) }}": LARGE,
    "{{ 'a'.center(10 ** 10) }}": LARGE,
    "{{ '%9999999999d' % 1 }}": LARGE,
    "{{ '%*d' % (10 ** 10, 1) }}": LARGE,
    "{{ '%9999999999d' | format(1) }}": LARGE,
    "{{ '{:9999999999}'.format(1) }}": LARGE,
    "{{ '{:{w}}'.format(1, w=10 ** 11) }}": LARGE,
    "{% set x = 'a' * 1000 %}{% set x = x.replace('a', x) %}{{ x.replace('a', x) }}": LARGE,
    "{% set x = 'a' * 1000 %}{% set x = x | replace('a', x) %}{{ x | replace('a', x) }}": LARGE,
    "{{ 'a' | indent(10 ** 11, first=true) }}": LARGE,
    "{% set x = 'a' * 10000 %}{{ ([x] * 1000) | join }}": LARGE,
    "{% set x = 'a' * 1000 %}{{ x.join(range(9999) | map('string') | list) }}": LARGE,
    "{% set x = 'a' * 1000 %}{{ x.translate({97: x + x}) }}": LARGE,
    "{% for i in range(99999) %}" + "y" * 1000 + "{% endfor %}": LARGE,
    "{{ [1] | batch(10 ** 10, 'x') | list }}": LARGE,
    "{{ messages | tojson(indent=10 ** 10) }}": LARGE,
    "{{ 1.5 | round(10 ** 10) }}": LARGE,
    "{{ ([[1]] * 15000) | sum(start=[]) }}": LARGE,
    "{{ ('a ' * 50000) | title }}": LARGE,
    "{{ lipsum(n=10 ** 9) }}": "'lipsum' is undefined",
    "{{ range(10 ** 9) }}": "Range too big",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "maximum recursion depth",
}


def tokenizer(template: str) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), eos_token="a", bos_token="<s>",
        chat_template=template,
    )  # fmt: skip


@pytest.mark.parametrize(("template", "problem"), HOSTILE.items(), ids=[text[:50] for text in HOSTILE])
def test_a_template_beyond_a_limit_is_refused_by_name(
    template: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMOLLM3_MAX_SECONDS", "1")
    monkeypatch.setenv("SMOLLM3_MAX_TEXT_MB", "1")
    renderer = Renderer(tokenizer(template), RenderOptions(date=None))
    with pytest.raises(DataError, match=problem) as e:
        renderer.prompt([{"role": "user", "content": "hi"}])
    if problem in (LONG, LARGE):
        assert str(e.value.hint).startswith("if you trust the file: SMOLLM3_MAX_")


TALK = [
    {"role": "system", "content": "Be brief. /no_think"},
    {"role": "user", "content": "Hi %s {x} \n twice "},
    {"role": "assistant", "content": "<think>\nhm\n</think>\nHo", "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": {"a": [1, {"b": None}]}}}]},
    {"role": "user", "content": "More"},
]  # fmt: skip
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
EXPRESSIONS = """{%- set ns = namespace(a=1, seen=[]) %}
{%- for m in messages if m.content %}{% set ns.a = ns.a + loop.index * 2 ** 2 % 3 %}
{%- set ns.seen = ns.seen + [m.role ~ '-' ~ m['content'][:3] | trim] %}
{{ '%s|%5d' % (m.role, ns.a) }} {{ '{}/{:>4}'.format(m.role, ns.a) }} {{ m.role | upper | replace('U', 'u') }}
{% endfor %}
{{ ns.seen | join(', ') }} {{ ns.seen[1:] | tojson(indent=2) }} {{ ({'a': ns.a, 'b': (1, 'x')}) | items | list }}
{{ ns.undefined_thing }}{{ none }}{{ true }}{{ 1.0 }}{{ [] }}{{ messages | length * 2 }}{{ 'a,b'.split(',') | last }}
{% macro block(x) %}<{{ x }}{{ caller() if caller }}>{% endmacro %}{{ block('y') }}{% call block('z') %}in{% endcall %}
{% generation %}{{ bos_token }}{% endgeneration %}{{ messages | map(attribute='role') | list }}  \n"""


@pytest.mark.parametrize(
    "text", [*(f.read_text("utf-8") for f in TEMPLATES), EXPRESSIONS, "x\n", "  {% if 1 %}\ny{% endif %}\n\n"]
)
@pytest.mark.parametrize("arguments", [{}, {"tools": [TOOL], "xml_tools": [TOOL], "enable_thinking": True}])
def test_the_limits_change_no_rendering(text: str, arguments: dict[str, Any]) -> None:
    made = tokenizer("").apply_chat_template
    for prompt in (False, True):
        plain = made(TALK, tokenize=False, add_generation_prompt=prompt, chat_template=text, **arguments)
        with limited():
            counted = made(TALK, tokenize=False, add_generation_prompt=prompt, chat_template=MARK + text, **arguments)
        assert counted == plain


def test_the_sandbox_of_transformers_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for template in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ namespace(_x=1) }}"):
        with pytest.raises(DataError, match="refuses a conversation"):
            Renderer(tokenizer(template), RenderOptions(date=None)).prompt([{"role": "user", "content": "hi"}])
