"""The tokens at which generation stops, as the files of a model state them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smollm3_finetune.files.json import read_json, write_json

FILE = "generation_config.json"


def as_ids(eos_token_id: Any) -> list[int]:
    """The ids of an `eos_token_id`, which is one id, several, or missing."""
    found = eos_token_id if isinstance(eos_token_id, list | tuple) else [eos_token_id]
    return [i for i in found if isinstance(i, int) and not isinstance(i, bool)]


def joined(*groups: Sequence[int]) -> list[int]:
    """All ids, each once, at its last place: the last one ends a turn."""
    ids = [i for group in groups for i in group]
    return list(dict.fromkeys(reversed(ids)))[::-1]


def stated_stops(directory: Path) -> list[int]:
    """The stop tokens in the configs of a model directory. Raises ModelError for a config that is not an object."""
    found: list[int] = []
    for name in (FILE, "config.json"):
        if (directory / name).is_file():
            about = read_json(directory / name)
            text = about.get("text_config")
            found += as_ids(about.get("eos_token_id"))
            found += as_ids(text.get("eos_token_id")) if isinstance(text, dict) else []
    return sorted(set(found))


def keep_stops(source: Path, out: Path, more: Sequence[int] = ()) -> None:
    """Add the stop tokens of the model in `source`, and `more`, to the generation config in `out`."""
    file = out / FILE
    if file.is_file():
        about = read_json(file)
    else:
        config = read_json(out / "config.json") if (out / "config.json").is_file() else {}
        about = {key: config[key] for key in ("bos_token_id", "pad_token_id") if key in config}
    own = as_ids(about.get("eos_token_id"))
    stops = joined(own, stated_stops(source), more)
    if set(stops) != set(own):
        write_json(file, {**about, "eos_token_id": stops})
