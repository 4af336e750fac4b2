"""Checks of single tensors, so that an error can name them; they run before the figures are compared."""

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
"""The number of tensors that a message names."""


def digests(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, str]:
    """A hash of each tensor's values converted to `dtype`, by name; tied tensors are listed under each name."""
    return {name: digest(tensor, dtype) for name, tensor in model.state_dict().items()}


def digest(tensor: Tensor, dtype: torch.dtype) -> str:
    """A hash of the values of `tensor` converted to `dtype`, and of its shape."""
    import torch

    value = tensor.detach()
    value = (value.to(dtype) if value.is_floating_point() else value).cpu().contiguous()
    content = value.reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(content.data, digest_size=16, person=str(tuple(value.shape)).encode()[:16]).hexdigest()


def check_finite(model: PreTrainedModel) -> None:
    """Raises ModelError with the names of weights that are infinite or nan."""
    import torch

    bad = [n for n, t in model.state_dict().items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if bad:
        raise ModelError(
            f"the merged model has weights that are infinite or nan: {named(bad)}",
            hint="check the loss of the training run in metrics.jsonl",
        )


def ties(model: PreTrainedModel) -> bool:
    """Whether the config of `model` says that its head is tied to its embeddings."""
    return bool(getattr(model.config, "tie_word_embeddings", False))


def set_tied(model: PreTrainedModel, tied: bool) -> None:
    """Set `tie_word_embeddings` in the config, and in the config of the text model if that is another."""
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = tied


def keep_tied(model: PreTrainedModel, tied: bool) -> None:
    """Tie the head to the embeddings if the base ties them, and set `config.tie_word_embeddings` to `tied`.

    Raises IncompatibleError if they must be tied but differ.
    """
    import torch

    any_model: Any = model
    head, embeddings = any_model.get_output_embeddings(), any_model.get_input_embeddings()
    if tied and head is not None and embeddings is not None and head.weight.data_ptr() != embeddings.weight.data_ptr():
        if head.weight.shape != embeddings.weight.shape or not torch.equal(head.weight, embeddings.weight):
            raise IncompatibleError(
                "the base ties its output layer to its embeddings, but the adapter changed only one of them, so the "
                "merged model cannot be saved as the same architecture",
                hint="to write both matrices: --untie",
            )
        head.weight = embeddings.weight
    any_model.config.tie_word_embeddings = tied


def untie(model: PreTrainedModel) -> bool:
    """Give the head its own weight if it shares the embeddings', and set `tie_word_embeddings` to False.

    Returns whether the two weights differ.
    """
    import torch

    any_model: Any = model
    head, embeddings = any_model.get_output_embeddings(), any_model.get_input_embeddings()
    if head.weight.data_ptr() == embeddings.weight.data_ptr():
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    set_tied(model, False)
    return head.weight.shape != embeddings.weight.shape or not torch.equal(head.weight, embeddings.weight)


def check_reloaded(architecture: str, wanted: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Compare the merged model with the model reloaded from disk, both as `digests`.

    Raises ModelError if a merged tensor is missing after reloading, if the reloaded model has a tensor that the merged
    one lacks, or if values changed.
    """
    if lost := sorted(set(wanted) - set(found)):
        raise ModelError(
            f"{architecture} has no place for these tensors of the merged model: {named(lost)}",
            hint="use the adapter with its base: smollm3 generate RUN",
        )
    if missing := sorted(set(found) - set(wanted)):
        raise ModelError(f"the merged model lacks tensors that a {architecture} has: {named(missing)}")
    if changed := sorted(name for name, digest in wanted.items() if found[name] != digest):
        raise ModelError(f"values of the merged model changed between saving and loading: {named(changed)}")


def named(names: Iterable[str]) -> str:
    """The first names, and the number of the others."""
    all_names = list(names)
    more = len(all_names) - NAMED
    return ", ".join(all_names[:NAMED]) + (f" and {more} more" if more > 0 else "")
