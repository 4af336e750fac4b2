"""Tensors of an adapter in a safetensors file: saved by name, and read back with every name checked.

Import everything from `smollm3_finetune.api`. torch and safetensors are imported when a function is called.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from smollm3_finetune.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

SAME_BASE = "use the base and the options that the adapter was trained with"


def save_parameters(file: Path, parameters: nn.Module | Mapping[str, Tensor]) -> None:
    """Write tensors by name to the safetensors file `file`, whose directory is created.

    `parameters` maps names to tensors of any shape, dtype and device, or is a module: its parameters and persistent
    buffers. Equal tensors give equal bytes, whatever their order. Tensors that share memory are written one by one.

        save_parameters(path / "adapter.safetensors", {"scale": scale})
    """
    from safetensors.torch import save_file

    named = _named(parameters)
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: named[name].detach().cpu().contiguous().clone() for name in sorted(named)}
    save_file(tensors, str(file), metadata={"format": "pt"})


def load_parameters(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on `device`: for `Adapter.merge`.

    Raises ModelError if the file is missing, damaged or cannot be read.
    """
    from smollm3_finetune.model_files.tensors import open_tensors

    if not file.is_file():
        raise ModelError(f"{file.parent} contains no adapter: {file.name} is missing", hint=f"ls {file.parent}")
    with open_tensors(file, device) as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118  (not a mapping)


def restore_parameters(file: Path, parameters: nn.Module | Mapping[str, Tensor]) -> None:
    """Copy the tensors of a file of `save_parameters` into `parameters`, which have the same names and shapes.

    Values are copied in place and keep their device, `requires_grad` and floating-point dtype: an adapter that was
    trained in float32 can be restored in bfloat16. Other dtypes must be the same. Nothing is copied if a tensor does
    not fit.

    Raises ModelError if the file is missing or damaged, or names the first tensor that the file lacks, that it has in
    addition, or that has another shape or dtype.
    """
    import torch

    named, saved = _named(parameters), load_parameters(file)
    _check_names(file, named, saved)
    for name, tensor in named.items():
        found = saved[name]
        if found.shape != tensor.shape:
            raise ModelError(
                f"{file} does not fit this model: {name} has the shape {tuple(found.shape)}, expected "
                f"{tuple(tensor.shape)}",
                hint=SAME_BASE,
            )
        if found.dtype != tensor.dtype and not (found.is_floating_point() and tensor.is_floating_point()):
            kinds = (str(t.dtype).removeprefix("torch.") for t in (found, tensor))
            raise ModelError(
                "{} does not fit this model: {} has the dtype {}, expected {}".format(file, name, *kinds),
                hint=SAME_BASE,
            )
    with torch.no_grad():
        for name, tensor in named.items():
            tensor.copy_(saved[name])


def _named(parameters: nn.Module | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if isinstance(parameters, Mapping):
        return parameters
    named: dict[str, Tensor] = parameters.state_dict()
    return named


def _check_names(file: Path, expected: Collection[str], found: Collection[str]) -> None:
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    for names, fault in ((missing, "it lacks"), (unknown, "this model has no")):
        if names:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            raise ModelError(f"{file} does not fit this model: {fault} {names[0]}{more}", hint=SAME_BASE)
