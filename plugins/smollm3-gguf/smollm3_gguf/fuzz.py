"""Random texts for the comparison of two tokenizers: the same for every export. Imports only the standard library."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

SEED = 20240711
SCRIPTS = (
    (0x20, 0x7E), (0x20, 0x7E), (0x20, 0x7E), (0x00, 0x1F), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0x52F),
    (0x5D0, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2150, 0x218F),
    (0x2460, 0x24FF), (0x2600, 0x27BF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFF00, 0xFFEF),
    (0x10000, 0x103FF), (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF), (0xE0000, 0xE007F), (0x00, 0xD7FF),
)  # fmt: skip
"""Ranges of code points; ranges that are named more often are drawn more often."""
SPACES = (
    "",
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    "\r",
    " \n",
    "\n ",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\x85",
    "\x0b",
)
PIECES = (
    "'s", "'S", "'LL", "'ll", "'Ve", "'t", "n't", "’s", "it's", "I'M", "1234567890", "3.14", "1,000,000", "0x1F", "²³",
    "①②", "Ⅷ", "½", "٣٤", "१२३", "def f(x):", "    return", "#include <a>", "{{", "}}", "<|", "|>", "<", ">", "...",
    "---", "http://a.b/c?d=e&f", "naïve", "e\u0301", "ǅ", "ß", "ﬁ", "日本語", "한국어", "ไทย", "👩‍👩‍👧", "🏳️‍🌈",
    "\ufeff", "\u200b", "\u200d", "\ufffd", "İ", "ı", "ſ", "K", "the", "The", "THE", " and", "Hello world",
)  # fmt: skip
"""Texts that pre-tokenizers treat in different ways."""


def texts(count: int, tokens: Sequence[str] = (), seed: int = SEED) -> Iterator[str]:
    """`count` random texts. `tokens` are special tokens, which appear in some of them, whole and damaged."""
    rng = random.Random(seed)
    for _ in range(count):
        yield "".join(_part(rng, tokens) for _ in range(rng.randint(1, 8)))


def _part(rng: random.Random, tokens: Sequence[str]) -> str:
    choice = rng.random()
    if choice < 0.35:
        low, high = rng.choice(SCRIPTS)
        return "".join(_character(rng, low, high) for _ in range(rng.randint(1, 8)))
    if choice < 0.55:
        return rng.choice(SPACES) + rng.choice(PIECES)
    if choice < 0.7:
        return rng.choice(SPACES) * rng.randint(1, 4)
    if choice < 0.8:
        return str(rng.randint(0, 10 ** rng.randint(1, 12)))
    if choice < 0.9 and tokens:
        token = rng.choice(tokens)
        return token if rng.random() < 0.7 else token[: rng.randint(1, len(token))]
    return rng.choice(SPACES) + "".join(_character(rng, 0x61, 0x7A) for _ in range(rng.randint(1, 12)))


def _character(rng: random.Random, low: int, high: int) -> str:
    code = rng.randint(low, high)
    return "\ufffd" if 0xD800 <= code <= 0xDFFF else chr(code)
