"""Runs an exported graph with ONNX Runtime. Imported only if it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor


class Session:
    """The graph in ONNX Runtime, on the CPU."""

    def __init__(self, file: Path) -> None:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
        self._past = [i for i in self._session.get_inputs() if i.name.startswith("past_key_values.")]

    def run(self, ids: Any, mask: Any, positions: Any, past: Mapping[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        """The logits of `ids` after the tokens in `past`, and the cache afterwards."""
        if past is None:
            past = {i.name: np.zeros((len(ids), i.shape[1], 0, i.shape[3]), np.float32) for i in self._past}
        fed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **past}
        names = ["logits", *(f"present.{i.name.removeprefix('past_key_values.')}" for i in self._past)]
        logits, *now = self._session.run(names, fed)
        return logits, {i.name: value for i, value in zip(self._past, now, strict=True)}

    def row(self, row: Sequence[int], first: int | None = None) -> Tensor:
        """The logits of one row: at once, or the tokens after the first ones with the cache of those."""
        size, past, parts, done = len(row), None, [], 0
        for end in sorted({first or size, size}):
            ids = np.array([row[done:end]], np.int64)
            positions = np.arange(done, end, dtype=np.int64)[None]
            logits, past = self.run(ids, np.ones((1, end), np.int64), positions, past)
            parts.append(torch.from_numpy(logits[0]))
            done = end
        return torch.cat(parts)

    def pair(self, short: Sequence[int], long: Sequence[int]) -> Tensor:
        """The logits of two rows in one batch, the shorter one padded on its left; without those of the padding."""
        size = max(len(long), len(short))
        gap, other = size - len(short), size - len(long)
        ids = np.array([[0] * gap + list(short), [0] * other + list(long)], np.int64)
        mask = np.ones((2, size), np.int64)
        mask[0, :gap] = mask[1, :other] = 0
        positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
        logits, _ = self.run(ids, mask, positions, None)
        return torch.from_numpy(np.concatenate([logits[0, gap:], logits[1, other:]]))
