"""Runs core's tests in an environment where only core and its dependencies can be imported.

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
LEFT_OUT = {"peft", "bitsandbytes", "gguf", "gptqmodel", "hqq", "torchao", "optimum", "trl"}


SAME = (
    "api/quantizer_helpers", "batching/attention_within_rows", "batching/bins", "batching/cross_entropy",
    "batching/head", "batching/packing", "cache/cache", "checks/check", "cli/chat",
    "cli/chat_screen", "cli/chat_terminal", "cli/data", "cli/generate_prompts", "cli/streams", "cli/trust",
    "compatibility/measure", "components/containment", "components/many_plugins", "components/requirements",
    "config/shown", "data/chunks", "data/compressed", "data/damaged_tables", "data/data", "data/formatter_tokens",
    "data/formatters", "data/held_out_rows", "data/render", "data/rows", "data/saved_datasets",
    "data/template_families", "data/template_limits", "data/templates", "data/tokenizers", "data/unread_columns",
    "docs/english", "docs/tutorials", "faults/failing_runs", "faults/failures", "faults/fuzz", "faults/kills",
    "faults/locks", "faults/streams_of_runs", "files/limits", "files/permissions", "inference/chat",
    "inference/stopping", "kit/kit", "kit/kit_fixtures", "kit/kit_own", "model/long_context", "runs/resume", "scaffold/scaffold",
    "startup/training_imports", "train/base_dropout", "train/compiling", "train/half_precision", "train/health",
    "train/launcher", "train/learning_rate", "train/measuring", "train/mishaps", "train/stopping",
    "train/two_processes",
)  # fmt: skip
"""Tests that use no plugins; the other session runs them."""


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
        same = [f"--ignore=tests/{'/test_'.join(name.split('/'))}.py" for name in SAME]
        worker = f"popen//python={shlex.quote(sys.executable)} -S"  # as this one: site-packages are not looked at
        several = ["--tx", f"2*{worker}", "--dist", "loadfile", "--no-loadscope-reorder"]
        command = [
            sys.executable,
            "-S",
            "-m",
            "pytest",
            "tests",
            "-m",
            "not plugins and not long",
            *several,
            *same,
            *sys.argv[1:],
        ]
        return subprocess.run(command, env=environment, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
