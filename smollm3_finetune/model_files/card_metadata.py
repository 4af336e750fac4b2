"""Checks the metadata of a model card as the Hub does, as far as this is possible offline."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

RELATIONS = ("adapter", "finetune", "merge", "quantized")
"""The values of `base_model_relation` that the Hub knows."""
LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def metadata_fault(text: str) -> str | None:
    """What the Hub would refuse in the metadata of a card, as far as this can be checked offline; None if nothing."""
    from huggingface_hub import ModelCard

    try:
        about = ModelCard(text).data
    except Exception as e:  # of the YAML library, or of huggingface_hub for a wrong `model-index`
        return f"the metadata cannot be read: {' '.join(str(e).split())}"
    for key, check in _CHECKS.items():
        value = about.get(key)
        if value is not None and (fault := check(value)) is not None:
            return f"{key}: {fault}"
    if about.get("base_model_relation") is not None and about.get("base_model") is None:
        return "base_model_relation is stated without base_model"
    return None


def _fault_of_ids(value: Any) -> str | None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    for one in value if isinstance(value, list) else [value]:
        try:
            validate_repo_id(one if isinstance(one, str) else repr(one))
        except HFValidationError:
            return f"{one!r} is not the id of a repository"
    return None


def _fault_of_license(value: Any) -> str | None:
    every = value if isinstance(value, list) else [value]
    wrong = next((v for v in every if not isinstance(v, str) or not LICENSE_ID.fullmatch(v)), None)
    return None if wrong is None else f"{wrong!r} is not the identifier of a license, such as apache-2.0"


def _fault_of_text(value: Any) -> str | None:
    return None if isinstance(value, str) else f"expected text, found {value!r}"


def _fault_of_tags(value: Any) -> str | None:
    right = isinstance(value, list) and all(isinstance(tag, str) for tag in value)
    return None if right else f"expected a list of text, found {value!r}"


def _fault_of_relation(value: Any) -> str | None:
    return None if value in RELATIONS else f"{value!r} is not one of {', '.join(RELATIONS)}"


_CHECKS: Mapping[str, Callable[[Any], str | None]] = {
    "license": _fault_of_license,
    "license_name": _fault_of_text,
    "license_link": _fault_of_text,
    "base_model": _fault_of_ids,
    "base_model_relation": _fault_of_relation,
    "datasets": _fault_of_ids,
    "library_name": _fault_of_text,
    "pipeline_tag": _fault_of_text,
    "tags": _fault_of_tags,
}
