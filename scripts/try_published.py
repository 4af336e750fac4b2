"""Installs what `nox -s dist` built into an empty environment, and uses it as a new user would, without a network.

    python scripts/try_published.py ENVIRONMENT/bin/python

The packages of others are installed first, from the configured index. From then on, pip knows only dist/simple, and
commands have no network: on Linux they run in a network namespace of their own, elsewhere every proxy is a closed port.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from distributions import CORE, INDEX, ROOT, metadata, plugins, version

CONSTRAINTS = ROOT / "constraints.txt"
STRANGER = "acme-rounds"
"""A quantizer that `smollm3 plugins new` writes, and the folder of its distribution."""
DISTRIBUTION = f"smollm3-{STRANGER}"
ALONE = ("unshare", "--map-root-user", "--net", "--")
"""Runs a command in a network namespace that has no interface."""
CLOSED = "http://127.0.0.1:9"


class Trial:
    """An environment, and the commands that are run in it."""

    def __init__(self, python: Path, dist: Path, work: Path) -> None:
        self.python = python
        self.dist = dist
        self.work = work
        self.times: list[tuple[str, float]] = []
        home = work / "home"
        home.mkdir()
        kept = ("PIP_", "PYTHON", "SMOLLM3_", "HF_", "VIRTUAL_ENV", "XDG_")
        self.configured = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SMOLLM3_", "VIRTUAL_"))}
        bare = {k: v for k, v in os.environ.items() if not k.startswith(kept)}
        path = f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), CLOSED)
        self.offline = {
            **bare, **proxies, "PATH": path, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "NO_COLOR": "1",
            "COLUMNS": "200", "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": (dist / INDEX).as_uri(),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_RETRIES": "0", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        self.alone = ALONE if can_be_alone() else ()

    def with_network(self, what: str, *command: str, cwd: Path | None = None) -> str:
        return self._run(what, command, self.configured, 0, cwd)

    def run(self, what: str, *command: str, code: int = 0) -> str:
        """The output of a command that has no network, and must end with exit code `code`."""
        return self._run(what, (*self.alone, *command), self.offline, code, None)

    def _run(self, what: str, command: Sequence[str], env: Mapping[str, str], code: int, cwd: Path | None) -> str:
        started = time.monotonic()
        done = subprocess.run(
            command, cwd=cwd or self.work, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        took = time.monotonic() - started
        self.times.append((what, took))
        print(f"{took:7.1f} s  {what}", flush=True)
        if done.returncode != code or "Traceback (most recent call last)" in done.stdout:
            raise SystemExit(f"{what}: exit code {done.returncode}, expected {code}\n{done.stdout[-6000:]}")
        return done.stdout


def can_be_alone() -> bool:
    """Whether this user may create a network namespace here."""
    return shutil.which(ALONE[0]) is not None and subprocess.run([*ALONE, "true"], capture_output=True).returncode == 0


def others_requirements(dist: Path) -> list[str]:
    """What the wheels require of others, without their extras."""
    found: set[str] = set()
    for wheel in dist.glob("*.whl"):
        for requirement in metadata(wheel).get_all("Requires-Dist", []):
            if "extra ==" not in requirement and not re.match(r"smollm3-", requirement):
                found.add(requirement)
    return sorted(found)


def published_command() -> str:
    """The README's first command in its published form."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^\$ (pip install '{CORE}\[all\]'.*)$", readme, re.MULTILINE)
    if found is None:
        raise SystemExit(f"README.md has no line that begins with: $ pip install '{CORE}[all]'")
    return found[1]


def expect(text: str, *parts: str) -> None:
    if missing := [part for part in parts if part not in text]:
        raise SystemExit(f"{missing[0]!r} is not in the output:\n{text[-4000:]}")


def installed(trial: Trial) -> dict[str, str]:
    """The versions of the distributions whose names begin with smollm3-."""
    listed = json.loads(trial.run("pip list", "pip", "list", "--format", "json"))
    return {d["name"]: d["version"] for d in listed if d["name"].startswith("smollm3-")}


def try_release(trial: Trial) -> None:
    """The command of the README, then GPTQ."""
    if left := installed(trial):
        trial.run("remove what an earlier trial left", "pip", "uninstall", "--yes", *left)
    output = trial.run("the published command of the README", "bash", "-euo", "pipefail", "-c", published_command())
    expect(output, "held-out loss")
    right = dict.fromkeys([CORE, *(p.name for p in plugins())], version())
    if (found := installed(trial)) != right:
        raise SystemExit(f"installed are {found}, not {right}")
    trial.run("every requirement is met", "pip", "check")
    trial.offline["SMOLLM3_STRICT_PLUGINS"] = "1"
    trial.run("no plugin is broken", "smollm3", "plugins", "list")
    trial.run("smollm3 train --quant gptq", "smollm3", "train", "--quant", "gptq")


def try_extra(trial: Trial) -> None:
    """A plugin that is missing, and the hint that installs it."""
    trial.run("remove a plugin", "pip", "uninstall", "--yes", "smollm3-gptq")
    gptq = ("smollm3", "train", "--quant", "gptq", "--dry-run")
    error = trial.run("the plugin is missing", *gptq, code=2)
    hint = "smollm3 plugins install gptq"
    expect(error, "the quantizer 'gptq' is not installed", f"hint: {hint}")
    trial.run(hint, *hint.split(), "--yes")
    trial.run("the plugin is found again", *gptq)


def try_stranger(trial: Trial) -> None:
    """A wheel of somebody else: installed, used, removed."""
    trial.run("a stranger's plugin", "smollm3", "plugins", "new", "quantizer", STRANGER, "--output", STRANGER)
    folder = trial.work / STRANGER
    wheels = trial.work / "wheels"
    pip = (str(trial.python), "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels))
    trial.with_network("its wheel", *pip, str(folder))
    (wheel,) = wheels.glob("*.whl")
    shutil.rmtree(folder)
    output = trial.run("smollm3 plugins install FILE", "smollm3", "plugins", "install", str(wheel), "--yes")
    print(output, end="")
    use = ("smollm3", "train", "--quant", STRANGER, "--max-steps", "5")
    expect(trial.run("its quantizer is used", *use), "held-out loss")
    if DISTRIBUTION not in installed(trial):
        raise SystemExit(f"{DISTRIBUTION} is not installed")
    output = trial.run("smollm3 plugins uninstall", "smollm3", "plugins", "uninstall", DISTRIBUTION, "--yes")
    print(output, end="")
    if DISTRIBUTION in installed(trial):
        raise SystemExit(f"{DISTRIBUTION} is still installed")
    expect(trial.run("its quantizer is gone", *use, code=2), f"there is no quantizer '{STRANGER}'")
    trial.run("every requirement is still met", "pip", "check")


PARTS = {"release": try_release, "extra": try_extra, "stranger": try_stranger}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("python", type=Path, help="interpreter of an empty environment")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="what `nox -s dist` built")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all; release is first")
    given = parser.parse_args()
    dist = given.dist.resolve()
    if not (dist / INDEX / CORE / "index.html").is_file():
        raise SystemExit(f"{dist} has no index of built files\nto fix it: nox -s dist")
    with tempfile.TemporaryDirectory() as work:
        trial = Trial(given.python.absolute(), dist, Path(work))
        pip = (str(trial.python), "-m", "pip", "install", "--quiet", "-c", str(CONSTRAINTS))
        trial.with_network("packages of others", *pip, *others_requirements(dist))
        for part in given.parts:
            PARTS[part](trial)
        how = "a network namespace without interfaces" if trial.alone else "closed proxies only"
        took = sum(seconds for _, seconds in trial.times)
        print(f"{version()}: {', '.join(given.parts)} work as published; {took:.0f} s; offline by {how}")


if __name__ == "__main__":
    main()
