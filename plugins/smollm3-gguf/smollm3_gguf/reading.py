"""Reads an exported file back: tensors in transformers' order, and the model that they make."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_gguf.families import settled
from smollm3_gguf.header import Header, read_header
from smollm3_gguf.names import hf_name
from smollm3_gguf.rows import heads_of, restored

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from smollm3_finetune.api import Task


class FileTensors(Mapping[str, "np.ndarray[Any, Any]"]):
    """Name to values of the tensors of a file, in float32 and in the order of the file; each access reads one."""

    def __init__(self, file: Path, header: Header) -> None:
        import numpy as np

        self.header = header
        self._bytes = np.memmap(file, dtype=np.uint8, mode="r")

    def stored(self, name: str) -> np.ndarray[Any, Any]:
        """The bytes of a tensor, one row for each row of it (a vector has one row for each value)."""
        info = self.header.tensors[name]
        count = info.shape[0] if info.shape else 1
        start = self.header.data_start + info.offset
        return self._bytes[start : start + self.size(name)].reshape(count, -1)

    def size(self, name: str) -> int:
        """Bytes of a tensor."""
        from gguf.constants import GGML_QUANT_SIZES

        info = self.header.tensors[name]
        elements, width = GGML_QUANT_SIZES[self.kind(name)]
        return int(prod(info.shape) // elements * width)

    def kind(self, name: str) -> Any:
        """gguf's type of a tensor."""
        from gguf import GGMLQuantizationType

        return GGMLQuantizationType(self.header.tensors[name].ggml_type)

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        import numpy as np
        from gguf import dequantize

        values: np.ndarray[Any, Any] = dequantize(np.array(self.stored(name)), self.kind(name))
        return values.reshape(self.header.tensors[name].shape).astype(np.float32, copy=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.tensors)

    def __len__(self) -> int:
        return len(self.header.tensors)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside the context, transformers shows no progress bar of its own and logs only errors."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def open_gguf(file: Path) -> Header:
    """The header of a file, with its strings. Raises BadHeader if it is not valid."""
    with file.open("rb") as stream:
        return read_header(stream, strings=True)


def in_order(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Values with the rows of each head in transformers' order."""
    return values[restored(len(values), heads)] if heads else values


def read_state(
    file: Path, header: Header, config: Mapping[str, Any], dtype: torch.dtype, task: Task | None = None
) -> dict[str, Tensor]:
    """The weights in the file by transformers' names. Tensors without a place there keep their names."""
    import torch

    tensors = FileTensors(file, header)
    state = {}
    for name in tensors:
        values = in_order(tensors[name], heads_of(name, config))
        state[hf_name(name) or name] = torch.from_numpy(values).to(dtype).contiguous().clone()
        if task is not None:
            task.advance()
    return state


def read_model(
    ref: str, file: Path, header: Header, config: Mapping[str, Any], dtype: torch.dtype, task: Task | None = None
) -> PreTrainedModel:
    """The dense model of a file, whose `config` the header implies.

    Raises ModelError if a tensor has no place in the model, or a weight of the model is not in the file.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    from smollm3_gguf.rope import FACTOR_TENSORS
    from smollm3_gguf.tensors import check_loaded

    values = {name: value for name, value in config.items() if name not in ("model_type", "dtype")}
    built = AutoConfig.for_model(config["model_type"], **values)
    state = read_state(file, header, settled(config), dtype, task)
    for name in FACTOR_TENSORS:
        state.pop(name, None)
    with quiet():
        model, info = MODEL_FOR_CAUSAL_LM_MAPPING[type(built)].from_pretrained(
            None, config=built, state_dict=state, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    check_loaded(ref, model, info)
    return model
