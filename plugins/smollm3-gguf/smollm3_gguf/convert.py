"""Convert a GGUF file to a Hugging Face model directory: dense safetensors, tokenizer, generation config."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from smollm3_finetune.api import ModelError, Progress, Task, is_resource_error
from smollm3_gguf.architectures import OWN, implied_config
from smollm3_gguf.header import Header
from smollm3_gguf.reading import open_gguf, quiet, read_model
from smollm3_gguf.rebuilt import can_rebuild, for_transformers
from smollm3_gguf.tensors import check_loaded, placing, read_tensor
from smollm3_gguf.vocabulary import stops_in, vocabulary_in

CHAT_END = "<|im_end|>"
"""The token that ends a turn in the ChatML template."""


def convert(ref: str, file: Path, header: Header, out: Path, dtype: str, progress: Progress) -> None:
    """Dequantize `file` with this `header` into the empty directory `out`.

    Needs memory for the whole model in `dtype`. Raises ModelError if the file cannot be read, or not all of it;
    out-of-memory and disk-full errors are raised unchanged.
    """
    with progress.task(f"dequantizing {file.name}", total=len(header.tensors) + 2) as task, _reporting(task):
        try:
            config = implied_config(header, dtype, ref, lambda name: read_tensor(file, header, name))
            if config["model_type"] in OWN.values():
                model = read_model(ref, file, header, config, getattr(torch, dtype), task)
            else:
                with placing(ref, header):
                    model = _load_model(ref, file, config, getattr(torch, dtype))
            tokenizer, stops = _load_tokenizer(file)
            task.advance()
            model.generation_config.eos_token_id = as_config(stops)
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
                f"{ref} could not be dequantized: {reason}",
                hint="download the file again, it may be damaged; --debug shows the full error",
            ) from e


def _load_tokenizer(file: Path) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """The tokenizer of a file, and the tokens at which it states that an answer ends.

    transformers' own reader divides texts as GPT-2 does for names of pre-tokenizers that it does not know.
    """
    header = open_gguf(file)
    if not isinstance(header.metadata.get("tokenizer.ggml.merges"), list):
        return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name), stops_in(header)
    vocabulary = vocabulary_in(header)
    if can_rebuild(vocabulary, header.metadata.get("tokenizer.ggml.model")):
        return for_transformers(vocabulary), stops_in(header)
    return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name), stops_in(header)


def as_config(stops: list[int]) -> int | list[int] | None:
    """Stop tokens as a generation config has them."""
    return stops if len(stops) > 1 else stops[0] if stops else None


def _load_model(ref: str, file: Path, config: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    kwargs: dict[str, Any] = {"gguf_file": file.name, "dtype": dtype}
    try:
        from transformers import GgufConfig
    except ImportError:  # older versions of transformers always dequantize
        pass
    else:
        kwargs["quantization_config"] = GgufConfig(dequantize=True)
    values = {name: value for name, value in config.items() if name not in ("model_type", "dtype")}
    built = AutoConfig.for_model(config["model_type"], **values)
    model: PreTrainedModel
    model, info = AutoModelForCausalLM.from_pretrained(
        str(file.parent), config=built, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
    )
    check_loaded(ref, model, info)
    if getattr(model, "hf_quantizer", None) is not None:  # dense now; `save_pretrained` refuses otherwise
        model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def end_turns(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make generation stop at the end of a turn of the chat template.

    Some files of ChatML models give the base model's end of text as `eos`: generation would continue after
    `<|im_end|>`. Here `<|im_end|>` becomes the tokenizer's `eos`, and generation stops at either token.
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
    """Turn transformers' own progress bars and log lines into steps of `task`, one per tensor."""
    from transformers import modeling_gguf_pytorch_utils as reader

    def counted(items: Iterable[Any], **_: Any) -> Iterator[Any]:
        for item in items:
            yield item
            task.advance()

    bar = reader.tqdm  # imported from tqdm, so `disable_progress_bar` has no effect on it
    reader.tqdm = counted
    try:
        with quiet():
            yield
    finally:
        reader.tqdm = bar
