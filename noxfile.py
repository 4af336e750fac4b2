"""Sessions. Those that need the project itself run in the environment that nox was started from.

nox                 lint, types and tests: the README's second command
nox -s real_model   train the real SmolLM2-135M, every bundled quantizer with LoRA and DoRA
nox -s start_up     how long help takes, beside `import click`
nox -s compat       really run every bundled quantizer with every bundled adapter: docs/compatibility.md
nox -s quantizers   perplexity by quantizer, and the time of smollm3 quantize beside gptqmodel
nox -s speed        smollm3 train beside a bare loop, transformers.Trainer and trl sft, on one frozen job
nox -s data_memory  memory and time of the data path, up to a million rows
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "tests", "core_alone"]

ROOT = Path(__file__).parent
PLUGINS = sorted(p for p in (ROOT / "plugins").iterdir() if (p / "pyproject.toml").exists())


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: rules and format."""
    session.run(sys.executable, "-m", "ruff", "check", ".")
    session.run(sys.executable, "-m", "ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict, on core and on every plugin."""
    packages = [argument for p in PLUGINS for argument in ("-p", p.name.replace("-", "_"))]
    path = os.pathsep.join(str(p) for p in (ROOT, *PLUGINS))
    session.run(sys.executable, "-m", "mypy", "-p", "smollm3_finetune", *packages, env={"MYPYPATH": path})


@nox.session
def tests(session: nox.Session) -> None:
    """Core's tests and every plugin's, a file in one process. Arguments go to pytest: `nox -s tests -- -k contract`."""
    workers = ("-n", str(min(os.cpu_count() or 1, 8)), "--dist", "loadfile", "--no-loadscope-reorder")
    session.run(sys.executable, "-m", "pytest", *workers, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def core_alone(session: nox.Session) -> None:
    """Core's own tests where no plugin, peft or bitsandbytes can be imported."""
    session.run(sys.executable, "tests/without_plugins.py", *session.posargs)


@nox.session
def real_model(session: nox.Session) -> None:
    """Train SmolLM2-135M from the package index with every bundled quantizer, LoRA and DoRA. About half an hour."""
    session.run(sys.executable, "benchmarks/real_model.py", *session.posargs, env=dict(os.environ))


@nox.session
def start_up(session: nox.Session) -> None:
    """The time of each help, as a ratio to `import click` measured in the same run."""
    session.run(sys.executable, "benchmarks/start_up.py", *session.posargs)


@nox.session
def quantizers(session: nox.Session) -> None:
    """Perplexity of SmolLM2-135M by quantizer, and `smollm3 quantize` beside gptqmodel. About an hour."""
    session.run(sys.executable, "benchmarks/quantizers.py", *session.posargs, env=dict(os.environ))


@nox.session(venv_backend="venv")
def speed(session: nox.Session) -> None:
    """One frozen job, several trainers in rounds. trl in an environment of its own, over this one. An hour or more."""
    over = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    about = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = str(session.run("python", "-c", about, silent=True)).strip()
    (Path(site) / "over.pth").write_text(over, encoding="utf-8")
    session.install("--no-deps", "-c", "constraints.txt", "trl")
    python_trl = Path(site).parents[2] / "bin" / "python"
    command = (sys.executable, "benchmarks/speed.py", "--python-trl", str(python_trl), *session.posargs)
    session.run(*command, env=dict(os.environ), external=True)


@nox.session
def data_memory(session: nox.Session) -> None:
    """Memory and time of the data path for 10 000 to 1 000 000 rows. About half an hour."""
    session.run(sys.executable, "benchmarks/data_memory.py", *session.posargs)


@nox.session
def compat(session: nox.Session) -> None:
    """Really run every bundled pair that has no result for these versions. A quarter of an hour for all of them."""
    session.run(sys.executable, "benchmarks/compatibility.py", *session.posargs, env=dict(os.environ))
