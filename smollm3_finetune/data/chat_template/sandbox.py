"""A limit of time and of size for chat templates, which come with a model and are programs.

Jinja's sandbox keeps a template from Python's internals, but a template can still loop for years, or double a text
until the memory is full. `limited` makes transformers compile templates in an environment that counts: every loop and
call takes time, and every text, list and operation that could grow is measured before it is made.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from smollm3_finetune.files.limits import SECONDS, TEXT_SIZE, BeyondLimit

MARK = "{#+ limited #}\n"
"""A comment, which removes its line break, so that the template still begins a line.

transformers keeps compiled templates by their text, and another user of the same template may not count.
"""
NULL = "\U0010ffffnull"
"""The content that a template sees as null: transformers leaves out what is None, and a template may ask for it."""
ITEM = 64
"""Bytes counted for an item of a list or mapping."""
MOST = 1_000_000
"""The largest number that a template may pass where it is a width or a repetition."""
BITS = 100_000
"""Bits of the largest integer."""
OF_DICT = frozenset(dir(dict))
"""The attributes that a dict has beside its keys."""
PADDING = ("center", "ljust", "rjust", "zfill", "expandtabs")
SLOW = ("title", "urlize", "urlencode", "wordcount", "wordwrap", "striptags")
"""Filters that take a second for a few megabytes."""
WIDTH = re.compile(r"\d{6}|[*]|:[^}]*\{")
"""A width in a format that is large, or that an argument gives."""


class Meter:
    """The time and the size that the current rendering has used."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.most, self.seconds = TEXT_SIZE.size, SECONDS.value()
        self.end = time.thread_time() + self.seconds
        self.calls = self.emitted = 0
        self.known: dict[int, tuple[Any, int]] = {}
        """The last lists and mappings that were measured, with their size."""

    def tick(self, emitted: int = 0) -> None:
        """Count a call or a pass of a loop, and characters of output. Raises BeyondLimit."""
        self.calls = calls = self.calls + 1
        if emitted:
            self.emitted += emitted
            if self.emitted > self.most:
                raise self.too_large()
        if not calls % 64 and time.thread_time() > self.end:
            raise BeyondLimit(f"it takes more than {self.seconds} seconds", SECONDS)

    def too_large(self) -> BeyondLimit:
        return BeyondLimit(f"it makes more than {TEXT_SIZE.value()} MB", TEXT_SIZE)

    def emit(self, value: Any) -> Any:
        """Count the output of an expression, and return it."""
        self.tick(len(value) if isinstance(value, str) else self.size(value))
        return value

    def room_for(self, size: int) -> None:
        if size > self.most:
            raise self.too_large()

    def sized(self, value: Any) -> Any:
        """The value, whose size is checked."""
        if type(value) is str:
            if len(value) > self.most:
                raise self.too_large()
        elif isinstance(value, str | list | tuple | Mapping):
            self.size(value)
        return value

    def size(self, value: Any) -> int:
        """Bytes of a value written out: what is in it twice counts twice. Raises BeyondLimit as soon as it is too much.

        Without the check, `a = [a, a]` forty times is a small list whose text has no end.
        """
        total, rest = 0, [value]
        while rest:
            one = rest.pop()
            if isinstance(one, str):
                total += len(one)
            elif isinstance(one, list | tuple | Mapping):
                if (seen := self.known.get(id(one))) is not None and seen[0] is one:
                    total += seen[1]
                else:
                    total += ITEM * len(one)
                    rest += [*one, *one.values()] if isinstance(one, Mapping) else one
            if total > self.most:
                raise self.too_large()
        if isinstance(value, list | tuple | Mapping):
            if len(self.known) >= 256:
                self.known.clear()
            self.known[id(value)] = (value, total)
        return total


METER = Meter()


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which everything is counted by `METER`."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"finalize": METER.emit, **kwargs})
        self.globals.pop("lipsum", None)  # makes random text of any length
        self.filters.update(OWN_FILTERS)

    def compile(self, source: Any, name: Any = None, filename: Any = None, *args: Any, **kwargs: Any) -> Any:
        for key, function in self.filters.items():
            if not hasattr(function, "limited") and key not in OWN_FILTERS:
                self.filters[key] = _limited(key, function)
        if isinstance(source, str):
            source = _counting(self.parse(source, name, filename))
        return super().compile(source, name, filename, *args, **kwargs)

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute in obj and attribute not in OF_DICT:
            value = obj[attribute]  # what the sandbox does after a failed getattr
        else:
            value = super().getattr(obj, attribute)
        return None if type(value) is str and value == NULL else value

    def getitem(self, obj: Any, argument: Any) -> Any:
        try:
            value = obj[argument]  # what the sandbox does first
        except (TypeError, LookupError):
            value = super().getitem(obj, argument)
        return None if type(value) is str and value == NULL else value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and type(left) is str and type(right) is str:  # most operations of a template
            if len(left) + len(right) > METER.most:
                raise METER.too_large()
            METER.tick()
            return left + right
        if operator == "%":
            _check_format(left, (right,) if not isinstance(right, tuple) else right)
        elif isinstance(left, int) and isinstance(right, int):
            _check_integers(operator, left, right)
        elif operator == "*":
            _check_repeated(left, right)
        elif isinstance(left, str) and isinstance(right, str):
            METER.room_for(len(left) + len(right))
        METER.tick()
        return METER.sized(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        METER.tick()
        method = getattr(__obj, "__wrapped__", __obj)
        if isinstance(text := getattr(method, "__self__", None), str):
            _check_text_method(method.__name__, text, args, kwargs)
        value = METER.sized(super().call(__context, __obj, *args, **kwargs))
        return None if type(value) is str and value == NULL else value


def _counting(tree: nodes.Template) -> nodes.Template:
    """The template, changed to count the passes of its loops, joined texts, and lists with values in them."""
    for loop in tree.find_all(nodes.For):
        emitted = sum(len(data.data) for part in loop.body for data in _all(part, nodes.TemplateData))
        loop.body.insert(0, nodes.ExprStmt(_call("_tick", nodes.Const(emitted))))
    _replace(tree)
    tree.set_environment(tree.environment)  # type: ignore[arg-type]
    for node in tree.find_all(nodes.Node):
        node.lineno = node.lineno or 1
    return tree


def _all(node: nodes.Node, kind: type[Any]) -> Iterator[Any]:
    if isinstance(node, kind):
        yield node
    yield from node.find_all(kind)


def _call(name: str, first: nodes.Expr, *others: nodes.Expr) -> nodes.Filter:
    """A call of one of the filters below. A filter is called directly, a function through the sandbox."""
    return nodes.Filter(first, name, list(others), [], None, None)


def _replace(node: nodes.Node) -> None:
    """Replace the expressions below a node that build values, in place."""
    for field, value in node.iter_fields():
        if isinstance(value, list):
            value[:] = [_counted(item) if isinstance(item, nodes.Node) else item for item in value]
        elif isinstance(value, nodes.Node):
            setattr(node, field, _counted(value))


def _counted(node: nodes.Node) -> nodes.Node:
    _replace(node)
    if isinstance(node, nodes.Concat):
        return _call("_concat", *node.nodes)
    builds = isinstance(node, nodes.List | nodes.Dict) or (isinstance(node, nodes.Tuple) and node.ctx == "load")
    if (builds and node.find(nodes.Name)) or (isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)):
        return _call("_sized", node)  # type: ignore[arg-type]
    return node


@pass_context  # a filter that needs no context is called once, by the compiler
def _tick(context: Any, emitted: int) -> None:
    METER.tick(emitted)


def _sized(value: Any) -> Any:
    return METER.sized(value)


def _concat(*parts: Any) -> str:
    for part in parts:
        METER.sized(part)
    texts = [str(part) for part in parts]
    METER.room_for(sum(map(len, texts)))
    return "".join(texts)


OWN_FILTERS: dict[str, Callable[..., Any]] = {"_tick": _tick, "_sized": _sized, "_concat": _concat}
"""The filters that the compiled template calls to count: their results need no limits."""


def _limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that checks its arguments and the size of its result."""

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        METER.tick()
        values = args[1:] if hasattr(function, "jinja_pass_arg") else args
        if values and isinstance(values[0], str):
            _check_text_method(name, values[0], values[1:], kwargs)
        elif values:
            if name == "join":
                _check_joined(values[1] if values[1:] else kwargs.get("d", ""), values[0])
            if name == "sum" and isinstance(values[0], list | tuple):  # of lists: copies the sum for each item
                METER.room_for(len(values[0]) ** 2 if any(isinstance(v, list) for v in values[0]) else 0)
            _check_numbers((*values[1:], *kwargs.values()))
        return METER.sized(function(*args, **kwargs))

    limited.limited = True  # type: ignore[attr-defined]
    return limited


def _check_text_method(name: str, text: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Check a method of a text, or a filter of one, before it makes another text."""
    values = (*args, *kwargs.values())
    if name == "replace":
        old, new = (str(v) for v in (*args, "", "")[:2])
        METER.room_for(len(text) + (len(text) // max(len(old), 1) + 1) * len(new))
    elif name == "join":
        _check_joined(text, args[0] if args else ())
    elif name == "translate":
        longest = max((len(v) for v in values[0].values() if isinstance(v, str)), default=1) if values else 1
        METER.room_for(len(text) * longest)
    elif name in ("format", "format_map"):
        _check_format(text, values)
    elif name == "indent":
        width = next((v for v in values if isinstance(v, int | str)), 4)
        METER.room_for(len(text) + (text.count("\n") + 1) * (len(width) if isinstance(width, str) else width))
    elif name in SLOW:
        METER.room_for(len(text) * 50)
    elif name in PADDING:
        _check_numbers(values)
    elif name in ("split", "rsplit", "splitlines", "list", "batch", "slice"):
        METER.room_for(len(text) * 4)
        _check_numbers(values)


def _check_joined(separator: Any, items: Any) -> None:
    if isinstance(items, list | tuple | Mapping):
        METER.room_for(METER.size(items) + len(str(separator)) * len(items))


def _check_numbers(values: tuple[Any, ...]) -> None:
    if any(isinstance(v, int) and v > MOST for v in values):
        raise METER.too_large()


def _check_format(text: Any, values: tuple[Any, ...]) -> None:
    if isinstance(text, str):
        if re.search(r"\d{7}", text):
            raise METER.too_large()
        if WIDTH.search(text):
            _check_numbers(values)
        METER.room_for(len(text) + sum(METER.size(v) for v in values) * max(text.count("%"), text.count("{"), 1))


def _check_integers(operator: str, left: int, right: int) -> None:
    bits = left.bit_length()
    if (operator == "**" and right > 0 and bits * right > BITS) or (
        operator == "*" and bits + right.bit_length() > BITS
    ):
        raise METER.too_large()


def _check_repeated(left: Any, right: Any) -> None:
    if isinstance(left, int):
        left, right = right, left
    if isinstance(right, int) and isinstance(left, str | list | tuple):
        METER.room_for(METER.size(left) * max(right, 0))


@contextmanager
def limited() -> Iterator[None]:
    """Inside the context, transformers compiles templates in a `LimitedEnvironment`; the counts begin at zero.

    Put `MARK` before the template.
    """
    from transformers.utils import chat_template_utils as templates

    original = templates.ImmutableSandboxedEnvironment
    templates.ImmutableSandboxedEnvironment = LimitedEnvironment
    METER.start()
    try:
        yield
    finally:
        templates.ImmutableSandboxedEnvironment = original
