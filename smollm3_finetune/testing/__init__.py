"""Conformance tests for plugin authors: they check the promises of a component in sequences of calls.

Nothing here is loaded unless a test imports it. Start with the conformance class for the kind of your component:
subclass it and name the component. The subclass inherits the tests that apply to the descriptor.

    from smollm3_finetune.testing import QuantizerConformance

    class TestMine(QuantizerConformance):
        component = "mine"
        bits = 4

`check_composition` runs one quantizer with one adapter through evaluate, train, evaluate, save, train, restore, and
compares the gradients with those on the dense copy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from smollm3_finetune.cache.store import Cache
from smollm3_finetune.compatibility.composition import Comparison, check_composition
from smollm3_finetune.model.compare import relative_error
from smollm3_finetune.model.dense_copy import dense_copy
from smollm3_finetune.model.roles import trained_parameters
from smollm3_finetune.testing.formatters import FormatterConformance
from smollm3_finetune.testing.parts import context, plan
from smollm3_finetune.testing.small import mixture_source, small_model, small_source, write_small_model

if TYPE_CHECKING:
    from smollm3_finetune.testing.adapters import AdapterConformance
    from smollm3_finetune.testing.evaluators import EvaluatorConformance
    from smollm3_finetune.testing.exporters import ExporterConformance
    from smollm3_finetune.testing.launchers import LauncherConformance
    from smollm3_finetune.testing.loaders import LoaderConformance
    from smollm3_finetune.testing.objectives import ObjectiveConformance
    from smollm3_finetune.testing.optimizers import OptimizerConformance
    from smollm3_finetune.testing.plugin_commands import CommandConformance, finished_run
    from smollm3_finetune.testing.quantizers import QuantizerConformance
    from smollm3_finetune.testing.stub import stub_base, stub_dense
    from smollm3_finetune.testing.trackers import TrackerConformance

HEAVY = {
    "AdapterConformance": "adapters",
    "CommandConformance": "plugin_commands",
    "EvaluatorConformance": "evaluators",
    "ExporterConformance": "exporters",
    "LauncherConformance": "launchers",
    "LoaderConformance": "loaders",
    "ObjectiveConformance": "objectives",
    "OptimizerConformance": "optimizers",
    "QuantizerConformance": "quantizers",
    "TrackerConformance": "trackers",
    "finished_run": "plugin_commands",
    "stub_base": "stub",
    "stub_dense": "stub",
}
"""Names whose module imports torch; each is imported at its first use."""


def __getattr__(name: str) -> Any:
    if name not in HEAVY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HEAVY[name]}"), name)


__all__ = [
    "AdapterConformance",
    "Cache",
    "CommandConformance",
    "Comparison",
    "EvaluatorConformance",
    "ExporterConformance",
    "FormatterConformance",
    "LauncherConformance",
    "LoaderConformance",
    "ObjectiveConformance",
    "OptimizerConformance",
    "QuantizerConformance",
    "TrackerConformance",
    "check_composition",
    "context",
    "dense_copy",
    "finished_run",
    "mixture_source",
    "plan",
    "relative_error",
    "small_model",
    "small_source",
    "stub_base",
    "stub_dense",
    "trained_parameters",
    "write_small_model",
]
