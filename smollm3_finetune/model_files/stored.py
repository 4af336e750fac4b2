"""The tensors of a checkpoint, read when they are asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.errors import ModelError
from smollm3_finetune.model_files.headers import LayerShape, TensorHeader, read_headers, stored_layers, weight_files

if TYPE_CHECKING:
    from torch import Tensor


class StoredTensors(Mapping[str, "Tensor"]):
    """Name to tensor of a checkpoint in safetensors files; each access reads the tensor from disk, on the CPU.

    `open_checkpoint(source)` returns one; `StoredTensors(directory)` is that of a directory.
    Raises ModelError if the directory has no weight files, if a file is damaged, or for a name that it does not have.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        """The directory of the checkpoint."""
        self.files = weight_files(directory)
        """The weight files."""
        self.headers: Mapping[str, TensorHeader] = read_headers(self.files)
        """Name to shape and dtype, from the headers of the files."""
        self._open: dict[Path, Any] = {}

    @property
    def layers(self) -> dict[str, LayerShape]:
        """Name to shape of the linear layers in the blocks, as `layer_shapes` returns them."""
        return stored_layers(self.headers)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.headers:
            raise ModelError(
                f"the checkpoint {self.directory} has no tensor {name!r}", hint="copy or download it again"
            )
        from smollm3_finetune.model_files.tensors import open_tensors

        file = self.headers[name].file
        if file not in self._open:
            self._open[file] = open_tensors(file)
        tensor: Tensor = self._open[file].get_tensor(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self.headers

    def get(self, name: str, default: Any = None) -> Any:
        """The tensor, or `default` if there is none of this name."""
        return self[name] if name in self.headers else default

    def __iter__(self) -> Iterator[str]:
        return iter(self.headers)

    def __len__(self) -> int:
        return len(self.headers)


class LayerTensors(Mapping[str, "Tensor"]):
    """The tensors of a checkpoint under the name of a layer, by the rest of the name: `scale` for `LAYER.scale`.

    Each access reads the tensor from disk, on the CPU. Raises ModelError for a name that it does not have.
    """

    def __init__(self, stored: StoredTensors, layer: str, names: Collection[str]) -> None:
        self.layer = layer
        """The name of the layer in the checkpoint."""
        self.read: set[str] = set()
        """The names that were read or asked for their shape."""
        self._stored = stored
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise ModelError(
                f"the checkpoint {self._stored.directory} has no tensor {f'{self.layer}.{name}'!r}",
                hint="copy or download it again",
            )
        self.read.add(name)
        return self._stored[f"{self.layer}.{name}"]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read."""
        if name not in self._names:
            return tuple(self[name].shape)  # raises
        self.read.add(name)
        return self._stored.headers[f"{self.layer}.{name}"].shape

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def get(self, name: str, default: Any = None) -> Any:
        """The tensor, or `default` if there is none of this name."""
        return self[name] if name in self._names else default

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
