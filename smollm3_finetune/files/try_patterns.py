"""Runs in a separate process: do regular expressions compile, and do they end on every name?"""

from __future__ import annotations

import re
from typing import Any

FORMS = ("({})", r"(.*\.)?({})$", r".*\.({})$", r"(^|.*\.)({})($|\..*)", r"(?:^|.*?\.)({})\.(?P<idx>\d+)\.")
"""The forms in which libraries use an expression: alone, and as a part of a module's name."""


def answer(job: Any) -> str | None:
    """What is wrong with an expression of `job["patterns"]`; None if each ends on each of `job["names"]`."""
    for pattern in job["patterns"]:
        for form in FORMS:
            try:
                compiled = re.compile(form.replace("{}", pattern))
            except (re.error, RecursionError, OverflowError) as e:
                return f"{pattern[:80]!r} is not a regular expression: {e}"
            for name in job["names"]:
                for match in (compiled.fullmatch, compiled.match, compiled.search):
                    match(name)
    return None
