"""`smollm3.json`: the description of a saved adapter, with which it is restored on the right base."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smollm3_finetune.config.load import plain
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.errors import ModelError
from smollm3_finetune.files.checksums import CHECKSUMS, damage
from smollm3_finetune.files.limits import check_regular, load_json
from smollm3_finetune.model.new_tokens import NewToken
from smollm3_finetune.model.start_from import Stage, stages_json, stages_of

FILE = "smollm3.json"
EDITABLE = ("README.md",)
"""Files of a saved adapter that a user may edit: they have no checksum."""
CALIBRATION = "calibration.json"
"""In a run's directory: the token ids that its quantizer was calibrated with."""


@dataclass(frozen=True, kw_only=True)
class SavedAdapter:
    """A saved adapter's directory and description."""

    path: Path
    model: str | None = None
    adapter: ComponentConfig | None = None
    quant: ComponentConfig | None = None
    loader: ComponentConfig | None = None
    base_fingerprint: str | None = None
    """The fingerprint of the weights it was trained on; None for an adapter that another tool saved."""
    source_fingerprint: str | None = None
    """The fingerprint of the opened model, before its quantizer; None for an adapter of an earlier version."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """The versions of the distributions that made it."""
    stages: tuple[Stage, ...] = ()
    """The runs that led to it, earliest first, its own last; empty if no run of this version trained it."""
    new_tokens: tuple[NewToken, ...] = ()
    """Tokens that were added to the tokenizer of its base, whose rows it contains."""

    @classmethod
    def read(cls, path: Path) -> SavedAdapter:
        """Raises ModelError if the directory does not exist, or if a file is missing or differs from its checksum."""
        if not path.is_dir():
            raise ModelError(f"there is no adapter directory {str(path)!r}", hint="--adapter-path RUN/adapter")
        check_regular(path)
        if (found := damage(path)) is not None:
            raise ModelError(f"the adapter {path} is damaged: {found}", hint=_remedy(path))
        file = path / FILE
        if not file.exists():
            return cls(path=path)
        try:
            about = load_json(file)
            given, versions = about.get("given", {}), about.get("versions", {})
            if not all(isinstance(k, str) and isinstance(v, str) for k, v in versions.items()):
                raise TypeError("versions must be text")
            return cls(
                path=path,
                model=about["model"],
                adapter=_component(about["adapter"], given.get("adapter")),
                quant=_component(about["quant"], given.get("quant")),
                loader=_component(about["loader"], given.get("loader")),
                base_fingerprint=about["base_fingerprint"],
                source_fingerprint=about.get("source_fingerprint"),
                versions=versions,
                stages=stages_of(about.get("stages", [])),
                new_tokens=tuple(NewToken.of(token) for token in about.get("new_tokens", [])),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise ModelError(f"{file} is damaged: {type(e).__name__}: {e}") from e

    @property
    def calibration(self) -> Path | None:
        """The calibration file of the run that this adapter or checkpoint belongs to, or None."""
        path = self.path.absolute()
        places = (path.parent, path.parent.parent)  # RUN/adapter, RUN/checkpoints/checkpoint-100
        return next((place / CALIBRATION for place in places if (place / CALIBRATION).is_file()), None)

    def write(self) -> None:
        """Write the description."""
        parts = {"loader": self.loader, "quant": self.quant, "adapter": self.adapter}
        about = {
            "model": self.model,
            "loader": _dict(self.loader),
            "quant": _dict(self.quant),
            "adapter": _dict(self.adapter),
            "base_fingerprint": self.base_fingerprint,
            "source_fingerprint": self.source_fingerprint,
            "stages": stages_json(self.stages),
            "versions": dict(self.versions),
            "given": {kind: sorted(config.set_options()) for kind, config in parts.items() if config is not None},
        }
        if self.new_tokens:  # other adapters keep the file of earlier versions
            about["new_tokens"] = [token.as_json() for token in self.new_tokens]
        (self.path / FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _remedy(path: Path) -> str:
    """What to do about a damaged adapter."""
    edited = f"if you edited the file on purpose: rm {shlex.quote(str(path / CHECKSUMS))}"
    saved = [p for p in path.parent.glob("checkpoints/checkpoint-*") if p.name.removeprefix("checkpoint-").isdecimal()]
    for checkpoint in sorted(saved, key=lambda p: -int(p.name.removeprefix("checkpoint-"))):
        if damage(checkpoint) is None:
            command = f"smollm3 generate {_model_of(path)} --adapter-path {shlex.quote(str(checkpoint))} --prompt TEXT"
            return f"to use the newest undamaged checkpoint: {command}; {edited}"
    return f"copy it again; {edited}"


def _model_of(path: Path) -> str:
    """The model that a saved adapter names, quoted for a shell; `MODEL` if its description is damaged."""
    try:
        return shlex.quote(str(load_json(path / FILE)["model"]))
    except (OSError, ValueError, LookupError, TypeError):
        return "MODEL"


def write_calibration(ids: Sequence[Sequence[int]], run: Path) -> None:
    (run / CALIBRATION).write_text(json.dumps({"input_ids": [list(row) for row in ids]}) + "\n", encoding="utf-8")


def read_calibration(file: Path) -> list[list[int]]:
    """The token ids in the file. Raises ModelError if it is damaged."""
    try:
        ids: list[list[int]] = load_json(file)["input_ids"]
        if not all(isinstance(i, int) for row in ids for i in row):
            raise TypeError("input_ids must be lists of integers")
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ModelError(f"{file} is damaged: {type(e).__name__}: {e}") from e
    return ids


def _component(value: Mapping[str, Any], given: Sequence[str] | None) -> ComponentConfig:
    """`given` are the options that were set; earlier versions did not write them, and all options are in `value`."""
    if not isinstance(value["name"], str):
        raise TypeError(f"a component's name must be text, found {value['name']!r}")
    options = {k: v for k, v in value.items() if k != "name"}
    if not isinstance(given, list | None) or not all(isinstance(name, str) for name in given or ()):
        raise TypeError("given must hold lists of names")
    return ComponentConfig(name=value["name"], options=options, given=frozenset(given or ()))


def _dict(config: ComponentConfig | None) -> dict[str, Any] | None:
    return None if config is None else {"name": config.name, **plain(config.options)}
