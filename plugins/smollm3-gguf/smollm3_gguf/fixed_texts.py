"""Texts whose tokens must be the same in llama.cpp: each has something that pre-tokenizers treat differently."""

from __future__ import annotations

TEXTS = (
    "The capital of France is Paris.",
    "Don't, we'll, I'd, they're, she's, IT'S, we’ve",
    "  two leading spaces, three   inside, and two at the end  ",
    "a\tb\t\tc\n\n\nd\r\ne \n f",
    "1 12 123 1234 12345 3.14159 1,000,000 0x1F 2026-11-30 10:45",
    "def add(a: int, b=2) -> int:\n    return a + b  # sum\n",
    '{"name": "x_1", "list": [1, 2.5e-3, null], "path": "C:\\\\dir\\\\file.txt"}',
    "https://example.org/a-b_c?d=%20&e=f#g user@example.org",
    "naïve café, Zürich, Łódź, crème brûlée, e\u0301 o\u0308",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم नमस्ते दुनिया",
    "你好，世界。今日は良い天気です。안녕하세요 세계",
    "emoji 🙂👩‍👩‍👧‍👦🏳️‍🌈 ✓ → ∑ ½ ² € — “quotes” … \u00a0\u2009\u3000|",
    "!!! ??? ... --- === *** ((())) [[]] <<>> && || ~~ ``` $$ %% ^^",
    "CamelCase snake_case kebab-case SCREAMING_CASE x1y2z3 αβγ123",
    "# Title\n\n* item\n  1. **bold** and `code`\n\n| a | b |\n|---|---|\n",
    "",
    " ",
    "\n",
)
