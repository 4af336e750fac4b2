"""Hostile variants of a valid file: changed bytes, changed JSON values, and texts that break parsers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

TEXTS = (
    "", " ", "\0", "\ud800", "ä" * 300, "x" * 5000, "../../etc/passwd", "/dev/zero", "(x+x+)+y", "{{ 1 }}", "null",
    "NaN", "-1", "1e999", "[", "{", "&a [*a]", "*a", "!!python/object:os.system x", "2026-13-45", "%", "\u202e", "\n",
)  # fmt: skip
NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan"))


def value(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value, with a preference for those that programs forget."""
    kind = rng.randrange(8 if depth < 3 else 4)
    if kind == 0:
        return rng.choice(TEXTS)
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice((None, True, False, [], {}))
    if kind == 3:
        return "".join(
            chr(rng.choice((rng.randrange(32, 127), rng.randrange(0xD800)))) for _ in range(rng.randrange(20))
        )
    if kind == 4 and not rng.randrange(8):
        return nested(rng.choice((50, 101, 400)), rng.random() < 0.5)
    if kind < 6:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {str(rng.choice((*TEXTS[:8], "name", "a"))): value(rng, depth + 1) for _ in range(rng.randrange(4))}


def nested(levels: int, lists: bool) -> Any:
    found: Any = 1
    for _ in range(levels):
        found = [found] if lists else {"a": found}
    return found


def changed_value(about: Any, rng: random.Random) -> Any:
    """A copy of JSON data in which a few values, at any level, are replaced, deleted, renamed or repeated."""
    about = json.loads(json.dumps(about))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(about))
        if not places:
            return value(rng)
        where, key = rng.choice(places)
        action = rng.randrange(6)
        if action == 0 and isinstance(where, dict):
            del where[key]
        elif action == 1 and isinstance(where, dict):
            where[rng.choice(TEXTS)] = where.pop(key)
        elif action == 2 and isinstance(where, list):
            where.extend([where[key]] * rng.choice((1, 1000)))
        else:
            where[key] = value(rng)
    return about if rng.randrange(20) else value(rng)


def _places(about: Any) -> Any:
    if isinstance(about, dict | list):
        for key in list(about) if isinstance(about, dict) else range(len(about)):
            yield about, key
            yield from _places(about[key])


def changed_bytes(data: bytes, rng: random.Random, within: int | None = None) -> bytes:
    """A copy with a few bits or bytes changed, a part deleted, repeated or inserted; in the first `within` bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(max(min(len(out), within or len(out)), 1))
        action = rng.randrange(7)
        size = rng.choice((1, 4, 8, 64, 1000))
        if action <= 1 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif action == 2:
            out[at : at + size] = rng.randbytes(size)
        elif action == 3:
            out[at : at + 8] = rng.choice(
                (b"\xff" * 8, b"\0" * 8, (2**31).to_bytes(8, "little"), b"\xff" * 7 + b"\x7f")
            )
        elif action == 4:
            del out[at : at + size]
        elif action == 5:
            out[at:at] = out[at : at + size] * rng.choice((1, 50))
        else:
            out[at:at] = rng.choice((b"[" * 300, b"{" * 300, b"\xef\xbb\xbf", b"\r", b"\0", b'"', b",", b"\n", b"\xff"))
    return bytes(out[: rng.randrange(len(out) + 1)] if not rng.randrange(12) else out)


def json_text(about: Any, rng: random.Random) -> bytes:
    """JSON text of changed data, or changed text of the data."""
    if rng.randrange(3):
        return json.dumps(changed_value(about, rng)).encode("utf-8", "surrogatepass")
    return changed_bytes(json.dumps(about, indent=rng.choice((None, 2))).encode(), rng)


def template(rng: random.Random) -> str:
    """A chat template of random statements, many of which repeat, nest or enlarge."""
    names = ("x", "y", "m", "messages", "ns.a", "[x, x]", "{'a': x}", "messages[0].content", "range(9999)", "1", "'ab'")
    filters = (
        "list", "join(x)", "replace('a', x)", "tojson", "tojson(indent=9999)", "center(99999)", "indent(9999)", "upper",
        "title", "map('string')", "batch(9, x)", "sort", "first", "length", "format(x)", "wordwrap(1)", "urlize", "sum",
        "sum(start=[])", "groupby('a')", "dictsort", "pprint", "xmlattr", "round(99)", "trim", "unique", "string",
    )  # fmt: skip
    operators = ("+", "~", "*", "**", "%", "==", "-", "//", "in", "<")

    def expression(depth: int = 0) -> str:
        if depth > 3 or not rng.randrange(3):
            return rng.choice(names)
        called = rng.choice(("f", "f", "dict", "range"))
        make: Callable[[], str] = rng.choice(
            (
                lambda: f"({expression(depth + 1)}) {rng.choice(operators)} ({expression(depth + 1)})",
                lambda: f"({expression(depth + 1)}) | {rng.choice(filters)}",
                lambda: f"({expression(depth + 1)})[{rng.choice((':', '1:', ':2'))}]",
                lambda: f"{called}({expression(depth + 1)})",
            )
        )
        return make()

    def statement(depth: int = 0) -> str:
        inner = "" if depth > 3 else "".join(statement(depth + 1) for _ in range(rng.randrange(3)))
        return rng.choice((
            f"{{{{ {expression()} }}}}", f"{{% set x = {expression()} %}}", f"{{% set y %}}{inner}{{% endset %}}",
            f"{{% for m in {expression()} %}}{inner}{{% endfor %}}", f"{{% if {expression()} %}}{inner}{{% endif %}}",
            f"{{% macro f(x) %}}{inner}{{% endmacro %}}", f"{{% set ns.a = {expression()} %}}", "text\n",
            f"{{% filter {rng.choice(filters)} %}}{inner}{{% endfilter %}}", f"{{{{ f({expression()}) }}}}",
        ))  # fmt: skip

    times = rng.choice((1, 1, 40))
    start = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% set x = ['ab'] %}"
    start += "{% macro f(x) %}{{ x }}{% endmacro %}{% set ns = namespace(a=x) %}"
    return start + "".join(statement() for _ in range(rng.randrange(3))) + statement() * times
