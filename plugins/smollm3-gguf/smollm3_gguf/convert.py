"""One GGUF file into one directory of Hugging Face's layout: dense safetensors, tokenizer, generation config."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from smollm3_finetune.api import ModelError, Progress, Task, is_resource_error

CHAT_END = "<|im_end|>"
"""What ends a turn in the ChatML template."""


def convert(ref: str, file: Path, out: Path, dtype: str, tensors: int, progress: Progress) -> None:
    """Dequantize `file`, which holds so many `tensors`, into the empty directory `out`.

    Needs memory for the whole model in `dtype`. Raises ModelError where transformers cannot read the file; a full disk
    and too little memory are raised as they are.
    """
    with progress.task(f"dequantizing {file.name}", total=tensors + 2) as task, _reporting(task):
        try:
            model = _load_model(ref, file, getattr(torch, dtype))
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
            task.advance()
            end_turns(model, tokenizer)
            tokenizer.save_pretrained(str(out))
            model.save_pretrained(str(out))
            task.advance()
        except ModelError:
            raise
        except Exception as e:
            if is_resource_error(e):
                raise
            reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
            raise ModelError(
                f"{ref} could not be dequantized by transformers: {reason}",
                hint="the file may be damaged; --debug shows the whole error",
            ) from e


def _load_model(ref: str, file: Path, dtype: torch.dtype) -> PreTrainedModel:
    kwargs: dict[str, Any] = {"gguf_file": file.name, "dtype": dtype}
    try:
        from transformers import GgufConfig
    except ImportError:  # older transformers dequantize whatever they read
        pass
    else:
        kwargs["quantization_config"] = GgufConfig(dequantize=True)
    model: PreTrainedModel
    model, info = AutoModelForCausalLM.from_pretrained(str(file.parent), output_loading_info=True, **kwargs)
    # transformers fills what the file lacks with random numbers and says so in a log line.
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{ref} lacks {len(missing)} of the model's weights: {', '.join(missing[:3])}"
            + (", …" if len(missing) > 3 else ""),
            hint="the file is incomplete, or this version of transformers does not know its tensor names",
        )
    if getattr(model, "hf_quantizer", None) is not None:  # dense now; `save_pretrained` refuses otherwise
        model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def end_turns(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make generation stop where the chat template ends a turn.

    A ChatML model whose file names the base model's end of text as `eos` would talk on after `<|im_end|>`. That
    becomes the tokenizer's `eos`, and generation stops at either.
    """
    template = tokenizer.chat_template
    if not isinstance(template, str) or CHAT_END not in template:
        return
    end = tokenizer.convert_tokens_to_ids(CHAT_END)
    if not isinstance(end, int) or end == tokenizer.unk_token_id or CHAT_END not in tokenizer.get_vocab():
        return
    stored = model.generation_config.eos_token_id
    stops = [end, *(stored if isinstance(stored, list) else [] if stored is None else [stored])]
    stops = list(dict.fromkeys(stops))
    tokenizer.eos_token = CHAT_END
    model.config.eos_token_id = end
    model.generation_config.eos_token_id = stops if len(stops) > 1 else end


@contextlib.contextmanager
def _reporting(task: Task) -> Iterator[None]:
    """Turn transformers' own progress bars and log lines into steps of `task`, one a tensor."""
    from transformers import modeling_gguf_pytorch_utils as reader

    def counted(items: Iterable[Any], **_: Any) -> Iterator[Any]:
        for item in items:
            yield item
            task.advance()

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    bar = reader.tqdm  # from tqdm itself, so that `disable_progress_bar` leaves it alone
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    reader.tqdm = counted
    try:
        yield
    finally:
        reader.tqdm = bar
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
