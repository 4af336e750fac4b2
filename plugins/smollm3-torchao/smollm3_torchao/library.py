"""The names that are used of torchao, imported without what it logs on a machine that lacks some of its kernels."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = ("torchao", "torch.utils._pytree")
"""One line for each of its libraries that this machine cannot load, none of them for int8; one of torch's about it."""


@contextmanager
def quiet() -> Iterator[None]:
    """Only errors of these loggers, while the context is open."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


with quiet():
    from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig, PerGroup, PerRow, quantize_

__all__ = ["Int8Tensor", "Int8WeightOnlyConfig", "PerGroup", "PerRow", "quantize_"]
