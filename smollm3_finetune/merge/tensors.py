"""Checks that are made tensor by tensor, and so can name what is wrong: before any figure is looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from smollm3_finetune.errors import IncompatibleError, ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

NAMED = 3
"""How many tensors a message names."""


def digests(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, str]:
    """A hash of each tensor's values as they are in `dtype`, by name; tied tensors under each of their names."""
    return {name: _digest(tensor, dtype) for name, tensor in model.state_dict().items()}


def _digest(tensor: Tensor, dtype: torch.dtype) -> str:
    import torch

    value = tensor.detach()
    value = (value.to(dtype) if value.is_floating_point() else value).cpu().contiguous()
    content = value.reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(content.data, digest_size=16, person=str(tuple(value.shape)).encode()[:16]).hexdigest()


def check_finite(model: PreTrainedModel) -> None:
    """Raises ModelError with the names where a weight is infinite or not a number."""
    import torch

    bad = [n for n, t in model.state_dict().items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if bad:
        raise ModelError(
            f"merging gave weights that are infinite or not numbers: {named(bad)}",
            hint="look at the loss of the training run (metrics.jsonl)",
        )


def keep_tied(model: PreTrainedModel, tied: bool) -> None:
    """Keep the head tied to the embeddings where the base ties them; `config.tie_word_embeddings` becomes `tied`.

    Raises IncompatibleError where both had to become the same tensor and differ.
    """
    import torch

    any_model: Any = model
    head, embeddings = any_model.get_output_embeddings(), any_model.get_input_embeddings()
    if tied and head is not None and embeddings is not None and head.weight.data_ptr() != embeddings.weight.data_ptr():
        if head.weight.shape != embeddings.weight.shape or not torch.equal(head.weight, embeddings.weight):
            raise IncompatibleError(
                "the base ties its head to its embeddings, and the adapter changed one of them without the other, so "
                "the merged model cannot be saved as the same architecture",
                hint="train the adapter without the embeddings and the head",
            )
        head.weight = embeddings.weight
    any_model.config.tie_word_embeddings = tied


def check_reloaded(architecture: str, wanted: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Compare what was merged with what came back from disk, both from `digests`.

    Raises ModelError for tensors that the architecture has no place for, that came back although nothing of the kind
    was merged, or that came back with other values.
    """
    if homeless := sorted(set(wanted) - set(found)):
        raise ModelError(
            f"a saved {architecture} has no place for what the adapter trained: {named(homeless)}",
            hint="keep the adapter beside its base: smollm3 generate RUN",
        )
    if missing := sorted(set(found) - set(wanted)):
        raise ModelError(f"the merged model lacks tensors that a {architecture} has: {named(missing)}")
    if changed := sorted(name for name, digest in wanted.items() if found[name] != digest):
        raise ModelError(f"the merged model came back from disk with other values in {named(changed)}")


def named(names: Iterable[str]) -> str:
    """A few of the names, and how many there are besides."""
    all_names = list(names)
    more = len(all_names) - NAMED
    return ", ".join(all_names[:NAMED]) + (f" and {more} more" if more > 0 else "")
