"""Traces a model with transformers' exporter, and gives the graph stable names."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from smollm3_finetune.api import IncompatibleError

FILE = "model.onnx"
DATA = "model.onnx.data"
STATE = re.compile(r"(input|output)\.past_key_values\.layers\.(\d+)\.(keys|values)")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Print no warning or progress line of torch, transformers or onnxscript."""
    before = logging.root.manager.disable
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(before)


def traced(model: Any) -> Any:
    """The ONNX graph of `model`, an `onnx_ir.Model`: logits and cache for new tokens after any number of old ones.

    The graph is not optimized, so that each weight keeps its name and values; ONNX Runtime optimizes it when it loads.
    Raises IncompatibleError if transformers cannot export the model, or if its cache is not one of keys and values.
    """
    with quiet():
        from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

        try:
            with torch.no_grad():
                old = model(input_ids=torch.tensor([[0, 1, 2], [2, 1, 0]]), use_cache=True).past_key_values
            inputs = {
                "input_ids": torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]]),
                "attention_mask": torch.ones(2, 7, dtype=torch.int64),
                "position_ids": torch.arange(3, 7).repeat(2, 1),
                "past_key_values": old,
            }
            found = OnnxExporter().export(model, inputs, config=OnnxConfig(dynamic=True, optimize=False)).program
        except Exception as e:  # tracing and translating raise any
            line = (str(e).splitlines() or [""])[0][:200]
            raise IncompatibleError(
                f"transformers cannot export this model to ONNX: {type(e).__name__}: {line}",
                hint="smollm3 export --to safetensors",
            ) from e
    rename(found.graph)
    return found


def rename(graph: Any) -> None:
    """Name inputs, outputs and their dimensions as Optimum does, and drop what depends on this machine.

    Raises IncompatibleError for an input that is neither a token input nor keys or values of a layer.
    """
    import onnx_ir as ir

    for value in (*graph.inputs, *graph.outputs):
        name = value.name
        if name in ("input_ids", "position_ids", "logits"):
            dims: list[Any] = ["batch", "length"]
        elif name == "attention_mask":
            dims = ["batch", "total"]
        elif state := STATE.fullmatch(name):
            way, layer, what = state.groups()
            part, dims = ("past_key_values", "past") if way == "input" else ("present", "total")  # type: ignore[assignment]
            value.name = f"{part}.{layer}.{'key' if what == 'keys' else 'value'}"
            dims = ["batch", int(str(value.shape[1])), dims, int(str(value.shape[3]))]
        else:
            raise IncompatibleError(
                f"the model has a cache of another kind than keys and values ({name}), which is not exported",
                hint="smollm3 export --to safetensors",
            )
        last = list(value.shape)[len(dims) :]
        value.shape = ir.Shape([*dims, *last])
    ends = {id(value) for value in graph.outputs}
    for node in graph.all_nodes():
        node.metadata_props.clear()  # lines and paths of the code that was traced
        for value in node.outputs:
            value.metadata_props.clear()
            if id(value) not in ends:
                value.shape = None  # in other symbols than those of inputs and outputs


def save(program: Any, out: Path) -> None:
    """Write `model.onnx`, and its weights in `model.onnx.data`."""
    import onnx_ir as ir

    program.metadata_props.clear()
    program.graph.metadata_props.clear()
    ir.save(program, out / FILE, external_data=DATA)
