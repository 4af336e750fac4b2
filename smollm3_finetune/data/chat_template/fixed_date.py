"""A fixed today for chat templates, which ask for it by `strftime_now(format)`."""

from __future__ import annotations

import datetime
import json

CODES = "aAbBcdDeFGhHIjmMpRSTuUVwWxXyYzZ"
ASKS = "strftime_now"


def with_fixed_date(template: str, date: str | None) -> str:
    """The template with today set to `date` (YYYY-MM-DD, midnight); unchanged where it is None or not asked for.

    transformers offers `strftime_now` as a global of the template and turns a function given as an argument into
    text, so that the template's own macro of that name is what stands in its way.
    """
    if date is None or ASKS not in template:
        return template
    day = datetime.datetime.fromisoformat(date)
    values = {f"%{code}": day.strftime(f"%{code}") for code in CODES}
    short = {f"%-{code}": values[f"%{code}"].lstrip("0 ") or "0" for code in "dHIjmMSUVWy"}
    table = json.dumps({**values, **short, "%%": "%"})
    macro = (
        f"{{%- macro {ASKS}(format) -%}}{{%- set day = namespace(text=format) -%}}"
        f"{{%- for code, value in {table}.items() if code in format -%}}"
        "{%- set day.text = day.text.replace(code, value) -%}"
        "{%- endfor -%}{{- day.text -}}{%- endmacro %}"
    )
    return f"{macro}\n{template}"  # the line break goes with the tag, and the template still begins a line
