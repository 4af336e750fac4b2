"""A conformance class for each plugin in this folder, and for the examples, which are correct.

`tests/kit/test_kit.py` runs them and states which tests must fail.
"""

import importlib.util
import json
import os
from pathlib import Path

from smollm3_finetune.testing import AdapterConformance, LoaderConformance, QuantizerConformance, write_small_model

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[2] / "examples"
FILES = {kind: HERE / f"broken_{kind}.py" for kind in ("quantizers", "adapters", "loaders")}
ONLY = json.loads(os.environ.get("KIT_ONLY", "{}"))
"""The tests to run for a class; a class that is missing here runs them all."""


def names(kind):
    """The names of the components in a plugin file."""
    spec = importlib.util.spec_from_file_location(f"names_of_{kind}", FILES[kind])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.VARIANTS)


def define(kind, name, base, **about):
    title = f"Test_{kind}_{name}"
    if (tests := ONLY.get(f"{kind}_{name}")) is not None:
        about |= dict.fromkeys(test for test in dir(base) if test.startswith("test_") and test not in tests)
    globals()[title] = type(title, (base,), {"component": name, "plugins": (FILES[kind],)} | about)


class Shelved(LoaderConformance):
    def reference(self, directory, seed):
        return f"{self.component}://{write_small_model(directory / 'small', seed=seed)}"


ABOUT = {
    "too-coarse": {"altering": ()},
    "no-autocast": {"dtype": "float32"},
    "groups": {"experts": True, "altering": ({"bits": 4}, {"group_size": 32}, {"skip_modules": ("q_proj",)})},
    "rows": {"dtype": "float32"},
}
"""What a class says beside the name of its quantizer."""
WITH_EXPERTS = ("experts-dense", "experts-swapped", "experts-coarse", "experts-keep-update")
TRAINED = ("groups", "one-way", "unseeded", "options-not-in-fingerprint", "stale-scale")
"""Quantizers that are also trained, with an adapter from another file: minutes for all of them."""
BY_COMMANDS = ("stale-scale",) if ONLY else ("stale-scale", "groups")
"""Those of them that are also trained by commands: one that must fail, and one that must pass in the long form."""

CACHED = ("test_tokens_one_by_one_are_as_all_at_once", "test_generates_with_a_cache_as_without")
CACHES = ("rows", "one-token-kernel", "unseen", "delta", "delta-kept", "leaks", "counts-from-zero", "looks-back",
          "reads-undeclared")  # fmt: skip
"""Plugins whose generation is tested: the others compute each token by itself."""


def without_caches(name):
    return {} if name in CACHES else dict.fromkeys(CACHED)


for name in names("quantizers"):
    about = {"bits": 8, "altering": ({"bits": 4},), **without_caches(name), **ABOUT.get(name, {})}
    if name in WITH_EXPERTS:
        about["experts"] = True
    if name in TRAINED:
        about |= {"adapters": ("delta",), "plugins": (FILES["quantizers"], FILES["adapters"])}
        if name not in BY_COMMANDS:
            about["test_a_run_is_trained_asked_and_merged_by_commands"] = None  # 12 s each
    define("quantizers", name, QuantizerConformance, **about)
for name in names("adapters"):
    define("adapters", name, AdapterConformance, **without_caches(name))
for name in names("loaders"):
    define("loaders", name, Shelved, unknown=f"{name}:///nowhere")


class Test_examples_scale(AdapterConformance):
    component = "scale"
    plugins = (EXAMPLES / "scale_adapter.py",)


class Test_examples_int8_rows(QuantizerConformance):
    component = "int8-rows"
    plugins = (EXAMPLES / "int8_rows.py",)
    bits = 8
