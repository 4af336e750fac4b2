"""Opening safetensors files: a damaged file, an unreadable one and too little memory are different errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smollm3_finetune.errors import ModelError, first_line, is_resource_error


def open_tensors(file: Path, device: str = "cpu") -> Any:
    """The open file, as `safetensors.safe_open` returns it.

    Raises ModelError if the file is damaged or cannot be read. If it cannot be mapped for lack of memory, that error
    passes unchanged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(file), framework="pt", device=device)
    except (SafetensorError, OSError) as e:
        if is_resource_error(e):
            raise
        if isinstance(e, OSError):
            raise ModelError(f"{file} cannot be read: {e.strerror or first_line(e)}") from e
        raise ModelError(f"{file} is damaged: {first_line(e)}", hint="copy or download it again") from e
