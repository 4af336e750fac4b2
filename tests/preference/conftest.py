"""These tests are collected only if the plugin that they test is installed."""

from __future__ import annotations

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("smollm3_preference") else ["*.py"]
