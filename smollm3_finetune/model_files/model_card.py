"""The common parts of model cards: the metadata that the Hub reads, the license of the base, and tables of facts.

A card is published with a model, so it contains no local path.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smollm3_finetune.model_files.card_mark import PLACE
from smollm3_finetune.paths import is_hub_id

FILE = "README.md"
LICENSE_KEYS = ("license", "license_name", "license_link")
TAG = "smollm3-finetune"
"""The tag of every card that this package writes."""
TASK = "text-generation"
ABSOLUTE = re.compile(r"[/~\\]|[A-Za-z]:[/\\]")


def is_on_hub(ref: str) -> bool:
    """Whether a model reference can be linked to: a Hub id that is not a local path."""
    return is_hub_id(ref) and not Path(ref).exists()


def is_path(ref: str) -> bool:
    """Whether a model reference is a path of this machine, existing or not."""
    return ABSOLUTE.match(ref) is not None or ref.startswith(".") or Path(ref).exists()


def shown_ref(ref: str) -> str:
    """A reference as a card shows it: only the last part of a local path."""
    return ref if is_on_hub(ref) else Path(ref).resolve().name


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The metadata of a card that depend on the model."""

    base: str
    """The reference of the base; it is stated if it is a Hub id."""
    tag: str
    relation: str | None = None
    """The Hub's `base_model_relation`."""
    library: str = "transformers"
    license: Mapping[str, str] = field(default_factory=dict)
    """As `license_of` returns it."""
    datasets: Sequence[str] = ()
    """Hub ids."""
    tags: Sequence[str] = ()
    losses: Mapping[str, float] = field(default_factory=dict)
    """Metrics on the held-out rows: `loss` and `perplexity`."""

    def lines(self, title: str) -> list[str]:
        from huggingface_hub import EvalResult, ModelCardData

        base = self.base if is_on_hub(self.base) else None
        datasets = list(dict.fromkeys(self.datasets))
        measured = [
            EvalResult(
                task_type=TASK,
                dataset_type=datasets[0] if len(datasets) == 1 else "held-out-rows",
                dataset_name="held-out rows",
                metric_type=name,
                metric_value=round(value, 6),
            )
            for name, value in self.losses.items()
        ]
        about = ModelCardData(
            library_name=self.library,
            pipeline_tag=TASK,
            base_model=base,
            base_model_relation=self.relation if base else None,
            datasets=datasets or None,
            tags=list(dict.fromkeys((TAG, self.tag, *self.tags))),
            model_name=title if measured else None,
            eval_results=measured or None,
            **self.license,
        )
        return ["---", *about.to_yaml().splitlines(), "---"]


def beginning(metadata: Metadata, title: str, how: str) -> list[str]:
    """The lines up to the first sentence, and the place of the mark: the caller writes `marked` text."""
    return [*metadata.lines(title), "", f"# {title}", "", how, "", PLACE, ""]


def is_ours(directory: Path) -> bool:
    """Whether the card of a directory has the tag of this package, edited or not."""
    from huggingface_hub.repocard import metadata_load

    about: Any = None
    with contextlib.suppress(Exception):  # a card that is missing or not valid
        about = metadata_load(directory / FILE)
    tags = about.get("tags") if isinstance(about, Mapping) else None
    return isinstance(tags, list) and TAG in tags


def license_of(directory: Path) -> dict[str, str]:
    """The license in the card of a model directory, as metadata of the Hub; empty if it states none."""
    from huggingface_hub.repocard import metadata_load

    about: Any = None
    with contextlib.suppress(Exception):  # a card that is missing or not valid states nothing
        about = metadata_load(directory / FILE)
    if not isinstance(about, Mapping) or not isinstance(about.get("license"), str):
        return {}
    stated = {key: about[key] for key in LICENSE_KEYS if isinstance(about.get(key), str)}
    if not stated.get("license_link", "https://").startswith("https://"):  # a file of the base's repository
        del stated["license_link"]
    return stated


def facts(rows: Iterable[tuple[str, str]]) -> list[str]:
    """The lines of a table with two columns."""
    return ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows)]


def linked(base: str) -> str:
    """A base model as Markdown, with a link if it is on the Hub."""
    return f"[{base}](https://huggingface.co/{base})" if is_on_hub(base) else f"`{base}`"


def public(value: Any) -> Any:
    """An option's value without local paths: only the last part of each."""
    if isinstance(value, list | tuple):
        return [public(v) for v in value]
    if isinstance(value, Mapping):
        return {k: public(v) for k, v in value.items()}
    return last_part(value) if isinstance(value, str) and ABSOLUTE.match(value) else value


def last_part(path: str) -> str:
    """The last part of a path of any system."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def with_options(name: str, options: Mapping[str, Any]) -> str:
    """A component's name as a card shows it, with its options in parentheses."""
    shown = ", ".join(
        f"{k}={','.join(map(str, v)) if isinstance(v, list) else v}" for k, v in public(dict(options)).items()
    )
    return f"`{name}`{f' ({shown})' if shown else ''}"


def usage(quantizer: str | None = None) -> list[str]:
    """The section that says how to use a whole model; one that is quantized by `quantizer` needs that method."""
    lines = ["## Use", "", "In this directory:", "", "```console", "smollm3 generate . --prompt 'Hello!'", "```", ""]
    if quantizer is not None:
        return [*lines, f"`smollm3` recognizes the format of `{quantizer}`; its plugin must be installed.", ""]
    return [
        *lines,
        "Without smollm3-finetune, with `transformers`:", "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")',
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        "```", "",
    ]  # fmt: skip
