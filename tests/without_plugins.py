"""Runs tests of core in an environment where only core and its dependencies can be imported.

    python tests/without_plugins.py [PYTEST ARGUMENTS]

The interpreter starts without its site-packages. Instead it gets a folder of links to all installed distributions,
except the plugins and the libraries that only plugins need: for Python these are not installed.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEFT_OUT = {"peft", "bitsandbytes", "gguf", "gptqmodel", "hqq", "torchao", "optimum", "trl", "lm-eval"}

ALONE = (
    "api/adapter_helpers", "api/contract", "api/objective_helpers", "cli/chat::test_each_line_of_a_pipe_is_a_turn",
    "cli/compat", "cli/errors", "cli/generate",
    "cli/paths", "cli/plugins", "compatibility/architectures", "components/claimed", "components/contract",
    "components/discovery", "components/negotiation", "components/registry", "config/config", "config/json_schema",
    "config/options", "docs/hints", "merge/merge::test_a_run_is_merged_into_a_model_that_answers", "merge/untie",
    "model/adapter_card", "model/arguments", "model/left_alone", "model/model", "model/saved_adapter",
    "startup/imports", "startup/layers", "train/finetune", "train/planning_order", "train/reference", "train/train",
)  # fmt: skip
"""Tests whose subject depends on what is installed, and one of each command. The other session runs all tests."""


def path(name: str) -> str:
    """A test file, or one of its tests, for pytest: `tests/merge/test_merge.py::test_…` for `merge/merge::test_…`."""
    file, *test = name.split("::")
    return "::".join((f"tests/{'/test_'.join(file.split('/'))}.py", *test))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def link_all(folder: Path) -> set[str]:
    """Link every file of the kept distributions; returns the names of the skipped ones."""
    out: set[str] = set()
    for distribution in importlib.metadata.distributions():
        name = normal(distribution.name)
        if name in LEFT_OUT or name.startswith("smollm3-"):
            out.add(name)
            continue
        tops = {Path(f).parts[0] for f in distribution.files or () if not f.is_absolute() and ".." not in f.parts}
        for top in tops:
            target, link = Path(str(distribution.locate_file(top))), folder / top
            if target.exists() and not link.exists():
                link.symlink_to(target)
    return out


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        out = link_all(Path(directory))
        print(f"left out: {', '.join(sorted(out))}", flush=True)
        environment = {**os.environ, "PYTHONPATH": f"{directory}{os.pathsep}{ROOT}", "SMOLLM3_CORE_ALONE": "1"}
        environment |= {"OMP_NUM_THREADS": "1"}  # as in the other session
        check = "import importlib.util as u; assert not any(u.find_spec(n) for n in ('peft', 'smollm3_peft'))"
        subprocess.run([sys.executable, "-S", "-c", check], env=environment, check=True, cwd=ROOT)
        tests = [path(name) for name in ALONE]
        worker = f"popen//python={shlex.quote(sys.executable)} -S"  # as this one: site-packages are not looked at
        several = ["--tx", f"2*{worker}", "--dist", "loadfile", "--no-loadscope-reorder"]
        command = [
            sys.executable,
            "-S",
            "-m",
            "pytest",
            *tests,
            "-m",
            "not plugins and not long",
            *several,
            *sys.argv[1:],
        ]
        return subprocess.run(command, env=environment, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
