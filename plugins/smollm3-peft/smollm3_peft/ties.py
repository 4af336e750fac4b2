"""Layers that share a weight, such as the embeddings and the head, and adapters that change each differently."""

from __future__ import annotations

from typing import Any

from peft import PeftConfig
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from smollm3_finetune.api import IncompatibleError


def declared(model: PreTrainedModel) -> bool:
    """Whether the config says that the head is tied to the embeddings."""
    return bool(getattr(model.config, "tie_word_embeddings", False))


def declare(model: PreTrainedModel, tied: bool) -> None:
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = tied


def shared(model: PreTrainedModel) -> bool:
    """Whether the head shares the weight of the embeddings, or there is no head."""
    head = model.get_output_embeddings()
    return head is None or head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def breaks(model: PreTrainedModel, config: PeftConfig) -> bool:
    """Whether the adapter on `model` changes the embeddings and the head, which share a weight, in different ways."""
    pair = (model.get_input_embeddings(), model.get_output_embeddings())
    adapted = [isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper) for layer in pair]
    if adapted[0] != adapted[1]:
        return True
    updates = all(isinstance(layer, BaseTunerLayer) and not isinstance(layer, TrainableTokensLayer) for layer in pair)
    return updates and not getattr(config, "ensure_weight_tying", False)


def separate(model: PreTrainedModel) -> None:
    """Give the head a weight of its own, so that a merge changes only one of the two."""
    head = _plain(model.get_output_embeddings())
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)


def merge_once(model: PreTrainedModel) -> None:
    """Do not merge the head of a tied model: PEFT would add the same update to the shared weight twice."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if isinstance(head, BaseTunerLayer) and isinstance(embeddings, BaseTunerLayer):
        weights = [layer.get_base_layer().weight.data_ptr() for layer in (head, embeddings)]
        if weights[0] == weights[1]:
            head.merge = _merge_nothing


def check_other_layers(model: PreTrainedModel) -> None:
    """Raises IncompatibleError if two layers share a weight, as the blocks of Zamba do, and each has an adapter.

    A merge would add both updates to the shared weight. The embeddings and the head are not checked.
    """
    pair = (model.get_input_embeddings(), model.get_output_embeddings())
    names: dict[int, str] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer) or isinstance(layer, TrainableTokensLayer):
            continue
        if any(layer is one for one in pair):
            continue
        weight = getattr(layer.get_base_layer(), "weight", None)
        if weight is None or weight.numel() == 0:
            continue
        if (other := names.setdefault(weight.data_ptr(), name)) != name:
            raise IncompatibleError(
                f"{other} and {name} share a weight, and the adapter changes it differently in each: it cannot be "
                "merged",
                hint="use the adapter without merging: smollm3 generate RUN",
            )


def refusal() -> IncompatibleError:
    return IncompatibleError(
        "the adapter changes the embeddings and the head in different ways, but the model ties them",
        hint="to write both matrices: --untie",
    )


def _plain(layer: Any) -> nn.Module:
    """The layer of the base inside PEFT's wrappers."""
    if isinstance(layer, AuxiliaryTrainingWrapper):
        return _plain(layer.original_module)
    inner: nn.Module = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    return inner


def _merge_nothing(*args: Any, **kwargs: Any) -> None:
    """Do nothing: the shared weight is merged through the embeddings."""
