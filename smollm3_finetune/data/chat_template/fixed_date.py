"""A fixed current date for chat templates, which call `strftime_now(format)`."""

from __future__ import annotations

import datetime
import json

CODES = "aAbBcdDeFGhHIjmMpRSTuUVwWxXyYzZ"
FUNCTION = "strftime_now"


def uses_date(template: str) -> bool:
    """Whether what a template renders depends on the current date."""
    return FUNCTION in template


def today() -> str:
    """The current date, YYYY-MM-DD."""
    return datetime.date.today().isoformat()


def with_fixed_date(template: str, date: str | None) -> str:
    """The template with the current date set to `date` (YYYY-MM-DD, midnight).

    Unchanged if `date` is None or the template does not use the date. transformers provides `strftime_now` as a global
    and converts a function that is passed as an argument to text, so a macro of that name in the template overrides it.
    """
    if date is None or not uses_date(template):
        return template
    day = datetime.datetime.fromisoformat(date)
    values = {f"%{code}": day.strftime(f"%{code}") for code in CODES}
    short = {f"%-{code}": values[f"%{code}"].lstrip("0 ") or "0" for code in "dHIjmMSUVWy"}
    table = json.dumps({**values, **short, "%%": "%"})
    macro = (
        f"{{%- macro {FUNCTION}(format) -%}}{{%- set day = namespace(text=format) -%}}"
        f"{{%- for code, value in {table}.items() if code in format -%}}"
        "{%- set day.text = day.text.replace(code, value) -%}"
        "{%- endfor -%}{{- day.text -}}{%- endmacro %}"
    )
    return f"{macro}\n{template}"  # the tag removes the line break, so the template still starts on a new line
