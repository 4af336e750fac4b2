"""A conformance class for each plugin of this folder, and for the examples, which are right.

`tests/kit/test_kit.py` runs them, and says which tests must fail.
"""

import importlib.util
from pathlib import Path

from smollm3_finetune.testing import AdapterConformance, LoaderConformance, QuantizerConformance, write_small_model

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[2] / "examples"
FILES = {kind: HERE / f"broken_{kind}.py" for kind in ("quantizers", "adapters", "loaders")}


def names(kind):
    """The components that a plugin file offers."""
    spec = importlib.util.spec_from_file_location(f"names_of_{kind}", FILES[kind])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.VARIANTS)


def define(kind, name, base, **about):
    title = f"Test_{kind}_{name}"
    globals()[title] = type(title, (base,), {"component": name, "plugins": (FILES[kind],), **about})


class Shelved(LoaderConformance):
    def reference(self, directory, seed):
        return f"{self.component}://{write_small_model(directory / 'small', seed=seed)}"


for name in names("quantizers"):
    define("quantizers", name, QuantizerConformance, bits=8, altering=() if name == "too-coarse" else ({"bits": 4},))
for name in names("adapters"):
    define("adapters", name, AdapterConformance)
for name in names("loaders"):
    define("loaders", name, Shelved, unknown=f"{name}:///nowhere")


class Test_examples_scale(AdapterConformance):
    component = "scale"
    plugins = (EXAMPLES / "scale_adapter.py",)


class Test_examples_int8_rows(QuantizerConformance):
    component = "int8-rows"
    plugins = (EXAMPLES / "int8_rows.py",)
    bits = 8
