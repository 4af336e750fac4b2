"""The directory of a model that is written (merged, quantized): it appears whole, or not at all.

DIR                     the finished model
.DIR.smollm3-partial-*  a model being written, or what a killed process left; swept by the next into DIR
.DIR.smollm3-lock       held while something is written for DIR; its holder may sweep, since nobody else is at work
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from smollm3_finetune.errors import ConfigError, SmolLM3Error

SIZES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one number."""
SPARE = 1.05
"""Room for the tokenizer and the rest, as a factor."""


def check_vacant(flag: str, directory: Path) -> None:
    """Raises ConfigError unless `directory` is empty or not there: nothing of a user's is overwritten."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise ConfigError(f"{flag} {directory} is no directory", hint=f"{flag} DIRECTORY")
    above = next((p for p in directory.absolute().parents if p.exists()), directory)
    if not above.is_dir():
        raise ConfigError(f"{flag} {directory}: {above} is no directory", hint=f"another {flag}")
    if directory.exists() and (directory.resolve() == Path.cwd() or os.path.ismount(directory)):
        what = "a mount point" if os.path.ismount(directory) else "the current directory"
        raise ConfigError(
            f"{flag} {directory} is {what}, which cannot be replaced in one step", hint=f"{flag} {directory / 'model'}"
        )
    if directory.is_dir() and any(directory.iterdir()):
        what = "holds a model already" if (directory / "config.json").exists() else "is not empty"
        raise ConfigError(f"{flag} {directory} {what}", hint=f"another {flag}")


def count_parameters(config: Mapping[str, Any]) -> int | None:
    """The number of weights, tied ones once, of the architecture that a `config.json` describes.

    None where transformers does not know it by itself. Nothing is allocated.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {k: v for k, v in config.items() if k not in ("model_type", "quantization_config", "auto_map")}
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(str(config.get("model_type")), **values))
        return sum(int(p.numel()) for p in model.parameters())
    except Exception:  # custom code, or a config of another version
        return None


def check_space(directory: Path, parameters: int, dtype: str, copies: int = 1) -> None:
    """Raises SmolLM3Error where `copies` models of so many weights do not fit on the disk that holds `directory`."""
    there = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    needed, free = SPARE * copies * parameters * SIZES[dtype], shutil.disk_usage(there).free
    if needed > free:
        raise SmolLM3Error(
            f"the model needs {needed / 1e9:.1f} GB in {dtype}, and {there} has {free / 1e9:.1f} GB left",
            hint="--output on another disk" + (", or --dtype bfloat16" if SIZES[dtype] > 2 else ""),
        )


@contextlib.contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Hold `directory` for one process, and sweep what killed ones left beside it.

    Raises ConfigError where another process holds it or its parent cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(_beside(directory, "lock"), timeout=0)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as e:
        raise ConfigError(f"another process is writing to {directory}", hint="wait for it, or another --output") from e
    except OSError as e:
        raise ConfigError(f"{directory.parent} cannot be written: {e.strerror}", hint="another --output") from e
    try:
        own = _beside(directory, "partial-").name
        for left in directory.parent.iterdir():
            if left.name[:-8] == own and left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        with contextlib.suppress(OSError):
            _beside(directory, "lock").unlink()  # before it is released, so that nobody else's is removed
        lock.release()


@contextlib.contextmanager
def partial(directory: Path) -> Iterator[Path]:
    """An empty directory beside `directory`, to be written and then handed to `publish`; removed in any other case."""
    path = _beside(directory, f"partial-{uuid.uuid4().hex[:8]}")
    try:
        path.mkdir()
    except OSError as e:
        raise ConfigError(f"{path} cannot be made: {e.strerror}", hint="another --output") from e
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def publish(path: Path, directory: Path) -> None:
    """Give a finished directory its name, in one step. Raises ConfigError where something has come to lie there."""
    try:
        path.rename(directory)
    except OSError as e:
        raise ConfigError(
            f"{directory} was empty at first and cannot be written now: {e.strerror}",
            hint="another --output",
        ) from e


def _beside(directory: Path, what: str) -> Path:
    """A name in the same directory that nobody else uses."""
    place = Path(os.path.abspath(directory))
    return place.with_name(f".{place.name}.smollm3-{what}")
