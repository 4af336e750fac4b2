"""The two transformers calls that load tokenizers and models; their failures become errors of one sentence.

Imports transformers only when called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.errors import MissingWeightsError, ModelError, first_line, is_resource_error
from smollm3_finetune.model_files.imports import import_transformers, quick_imports

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_KWARGS = ("trust_remote_code", "revision")


@dataclass
class Preparation:
    """What happens to a model while `load_causal_lm` loads it."""

    prepare: Callable[[PreTrainedModel], None]
    """Called with the model on the meta device; it may replace modules by others, which are then loaded."""
    unexpected: frozenset[str] | None = None
    """Tensors of the checkpoint without a place in the prepared model, as transformers names them; None: not loaded."""


_PREPARATION: ContextVar[Preparation | None] = ContextVar("preparation", default=None)


@contextlib.contextmanager
def prepared(preparation: Preparation) -> Iterator[None]:
    """Inside the context, `load_causal_lm` prepares the model before its weights are read.

    The checkpoint is loaded as if it were not quantized: transformers creates no quantizer.
    """
    token = _PREPARATION.set(preparation)
    try:
        yield
    finally:
        _PREPARATION.reset(token)


def quiet_transformers() -> None:
    """Silence what transformers merely notes, and its progress bars, in this process. Imports transformers."""
    transformers = import_transformers()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def load_tokenizer(ref: str, directory: Path, kwargs: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer in `directory`. Raises ModelError if it cannot be loaded."""
    with quick_imports():
        from transformers import AutoTokenizer

    wanted = {"trust_remote_code": False, **{k: v for k, v in kwargs.items() if k in TOKENIZER_KWARGS}}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(directory), **wanted)
    except Exception as e:  # the tokenizers library raises plain Exception for a file that it cannot read
        if is_resource_error(e):
            raise
        raise ModelError(
            f"the tokenizer of {ref!r} does not load: {first_line(e)}",
            hint="tokenizer.json and tokenizer_config.json must be complete (git lfs pull) and need no custom code",
        ) from e
    return tokenizer


def load_causal_lm(ref: str, directory: Path, kwargs: Mapping[str, Any]) -> PreTrainedModel:
    """The causal language model in `directory`; its `name_or_path` is `ref`, as the user typed it.

    Raises ModelError if weights are missing, which transformers would initialize at random, or if transformers does not
    know the architecture.
    """
    from safetensors import SafetensorError

    with quick_imports():
        from transformers import AutoModelForCausalLM

    wanted = {"trust_remote_code": False, **kwargs, "output_loading_info": True}
    preparation = _PREPARATION.get()
    try:
        model: PreTrainedModel
        if preparation is None:
            model, found = AutoModelForCausalLM.from_pretrained(str(directory), **wanted)
        else:
            model, found = _load_prepared(directory, wanted, preparation)
    except SafetensorError as e:
        if is_resource_error(e):
            raise
        raise ModelError(
            f"a weight file of {ref!r} is damaged: {first_line(e)}", hint="download or copy it again"
        ) from e
    except (OSError, ValueError, KeyError) as e:
        if is_resource_error(e):
            raise
        raise ModelError(
            f"the model {ref!r} does not load: {first_line(e)}",
            hint="for custom code: --loader-opt trust_remote_code=true; for pickled weights: --loader-opt pickle=true",
        ) from e
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise MissingWeightsError(
            f"the checkpoint {ref!r} has no weights for {missing[0]}{more}",
            names=missing,
            hint="check that all weight files exist and that config.json names the right architecture",
        )
    model.config._name_or_path = ref
    model.name_or_path = ref
    return model


def _load_prepared(
    directory: Path, kwargs: Mapping[str, Any], preparation: Preparation
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """`from_pretrained` of the model's class, and of a class of the same name that prepares the model when it is built.

    The model that is returned is of its own class.
    """
    import torch
    import transformers

    trust = {"trust_remote_code": kwargs["trust_remote_code"]}
    config = kwargs.get("config") or transformers.AutoConfig.from_pretrained(str(directory), **trust)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        built = transformers.AutoModelForCausalLM.from_config(config, **trust)
    own: Any = type(built)

    class Prepared(own):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            preparation.prepare(self)

    for name in ("__name__", "__qualname__", "__module__"):  # transformers looks classes up by their names
        setattr(Prepared, name, getattr(own, name))
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # else it prints a table of the tensors that are read afterwards
    try:
        model, found = Prepared.from_pretrained(str(directory), **{**kwargs, "config": built.config})
    finally:
        transformers.logging.set_verbosity(verbosity)
    model.__class__ = own
    preparation.unexpected = frozenset(found["unexpected_keys"])
    return model, found
