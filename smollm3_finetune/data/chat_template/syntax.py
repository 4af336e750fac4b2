"""Checking the syntax of a chat template file before any row is rendered with it."""

from __future__ import annotations

from smollm3_finetune.errors import ConfigError


def check_syntax(template: str, name: str) -> None:
    """Raises ConfigError, with the line, if the text is not a Jinja template that transformers accepts.

    Uses the settings and extensions of transformers without importing it, which takes seconds. Its `generation` block
    is parsed as an ordinary block.
    """
    from jinja2 import TemplateSyntaxError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (so jinja2 declares it)

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    try:
        env.compile(template)
    except TemplateSyntaxError as e:
        raise ConfigError(
            f"the chat template {name}:{e.lineno} is not valid Jinja: {e.message}",
            hint="fix the file, or omit data.template to use the tokenizer's template",
        ) from e
    except (RecursionError, MemoryError, OverflowError) as e:
        raise ConfigError(f"the chat template {name} is nested too deeply to compile") from e
