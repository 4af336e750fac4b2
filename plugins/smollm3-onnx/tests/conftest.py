"""Fixtures of core, and one thread: the tests are small."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
pytest_plugins = ["smollm3_finetune.testing.fixtures"]
