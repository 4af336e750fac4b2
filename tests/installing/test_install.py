"""`smollm3 plugins install`, `upgrade` and `uninstall` with pip, in an environment of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hand_made_wheels import CORE, PLUGIN, POINTS, ROOT, Environment, write_wheel

OFFLINE = ("--offline", "--yes")
BACKEND = '''
"""A build backend without requirements, which builds a plugin and may wait."""
import os, time, zipfile

ABOUT = "acme_slow-1.0.dist-info"
FILES = {
    f"{ABOUT}/METADATA": "Metadata-Version: 2.1\\nName: acme-slow\\nVersion: 1.0\\nRequires-Dist: smollm3-finetune\\n",
    f"{ABOUT}/WHEEL": "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    f"{ABOUT}/entry_points.txt": "[smollm3_finetune]\\nslow = acme_rows\\n",
    f"{ABOUT}/RECORD": "",
}


def prepare_metadata_for_build_editable(folder, config_settings=None):
    os.mkdir(os.path.join(folder, ABOUT))
    for name, text in FILES.items():
        with open(os.path.join(folder, name), "w") as file:
            file.write(text)
    return ABOUT


def build_editable(folder, config_settings=None, metadata_directory=None):
    open("began", "w").close()
    while os.path.exists("wait"):
        time.sleep(0.1)
    with zipfile.ZipFile(os.path.join(folder, "acme_slow-1.0-py3-none-any.whl"), "w") as archive:
        for name, text in {**FILES, "acme_slow.pth": os.getcwd()}.items():
            archive.writestr(name, text)
    return "acme_slow-1.0-py3-none-any.whl"
'''
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "acme-slow"
version = "1.0"
[project.entry-points.smollm3_finetune]
slow = "acme_rows"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with a plugin, which builds without a network."""
    folder = tmp_path / "acme-slow"
    for name, text in {**PLUGIN, "backend.py": BACKEND, "pyproject.toml": PROJECT}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_a_plugin_is_installed_with_what_it_requires_checked_and_uninstalled(
    environment: Environment, wheels: Path
) -> None:
    asked = environment("install", "acme-rows", "--find-links", str(wheels), "--offline")
    assert (asked.code, "nothing was changed: plugins install needs confirmation" in asked.stderr) == (2, True)
    assert "pass --yes" in asked.stderr and re.search(r"^acme-rows +1\.0 +new", asked.stdout, re.MULTILINE)
    assert not (environment.site / "acme_rows").exists()
    done = environment("install", "acme-rows", "--find-links", str(wheels), *OFFLINE, "--json")
    assert done.code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [(c["name"], c["before"], c["after"], c["requested"]) for c in answer["changes"]] == [
        ("acme-rows", None, "1.0", True), ("acme-base", None, "2.0", False)
    ]  # fmt: skip
    (plugin,) = answer["plugins"]
    assert (plugin["status"], plugin["components"]) == ("ok", ["formatter acme-rows"]) and plugin["checks"] > 10
    assert (environment.site / "acme_base.py").is_file()

    asked = environment("uninstall", "acme")
    assert (asked.code, "would uninstall: acme-rows 1.0" in asked.stdout) == (2, True)
    assert "hint: pass --yes" in asked.stderr
    assert (environment.site / "acme_rows").exists()
    removed = environment("uninstall", "acme", "--yes")
    assert removed.code == 0, removed.stderr
    assert removed.stdout == (
        "uninstalled: acme-rows 1.0 (plugin acme)\n"
        "stays, required by nothing else: acme-base 2.0\n"
        "  to uninstall that too: pip uninstall acme-base\n"
    )
    assert not (environment.site / "acme_rows").exists() and (environment.site / "acme_base.py").is_file()


@pytest.mark.long
def test_a_broken_plugin_is_reported_with_the_line_that_uninstalls_it(environment: Environment, wheels: Path) -> None:
    files = {"acme_bad.py": "raise RuntimeError('no license')\n"}
    wheel = write_wheel(wheels, "acme-bad", "1.0", files, [CORE], {"acme-bad": "acme_bad"})
    done = environment("install", str(wheel), *OFFLINE)
    assert done.code == 7, done.stderr
    assert "acme-bad 1.0: RuntimeError: no license" in done.stdout
    assert "to uninstall it: smollm3 plugins uninstall acme-bad" in done.stdout


@pytest.mark.long
def test_plugins_that_are_refused_leave_the_environment_as_it_is(environment: Environment, wheels: Path) -> None:
    write_wheel(wheels, "acme-hidden", "1.0", {"acme_hidden.py": ""}, [CORE])
    write_wheel(wheels, "acme-plain", "1.0", {"acme_plain.py": ""})
    over = {**PLUGIN, "torch/__init__.py": "x = 1\n"}
    write_wheel(wheels, "acme-over", "1.0", over, [CORE], POINTS)
    write_wheel(wheels, "acme-new", "1.0", PLUGIN, ["smollm3-finetune>=9"], POINTS)
    write_wheel(wheels, "acme-py", "1.0", PLUGIN, [CORE], POINTS, headers="Requires-Python: >=3.99\n")
    write_wheel(wheels, "acme-old", "1.0", PLUGIN, (CORE, "torch<2"), POINTS)
    write_wheel(wheels, "torch", "1.9", {"torch/__init__.py": ""})
    write_wheel(wheels, "acme-lost", "1.0", PLUGIN, [CORE, "acme-nowhere"], POINTS)
    before = sorted(environment.site.iterdir())
    for name, code, said in [
        ("acme-old", 3, "acme-old 1.0 needs torch<2, but torch "),
        ("acme-hidden", 7, "acme-hidden 1.0 is not a plugin of smollm3"),
        ("acme-plain", 7, "acme-plain 1.0 is not a plugin of smollm3"),
        ("acme-over", 3, "acme-over 1.0 contains torch/__init__.py, a file of torch"),
        ("acme-new", 3, "acme-new 1.0 needs smollm3-finetune>=9, but smollm3-finetune 0.1.0 is installed"),
        ("acme-py", 3, "acme-py needs Python >=3.99"),
        ("acme-lost", 3, "acme-lost needs acme-nowhere, which no package index"),
        ("acme-nothing", 2, "no package index and no --find-links has acme-nothing"),
    ]:
        done = environment("install", name, "--find-links", str(wheels), *OFFLINE)
        assert (done.code, said in done.stderr) == (code, True), done.stderr
        assert sorted(environment.site.iterdir()) == before


@pytest.mark.long
def test_an_upgrade_keeps_everything_else(environment: Environment, wheels: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    write_wheel(newer, "acme-rows", "1.1", PLUGIN, (CORE, "acme-base"), POINTS)
    write_wheel(newer, "acme-rows", "2.0", PLUGIN, (CORE, "acme-base>=3"), POINTS)
    write_wheel(newer, "acme-base", "3.0", {"acme_base.py": ""})
    assert environment("install", "acme-rows", "--find-links", str(wheels), *OFFLINE).code == 0
    shown = environment("upgrade", "acme", "--find-links", str(newer), "--offline", "--dry-run", "--json")
    assert [(c["name"], c["after"]) for c in json.loads(shown.stdout)["changes"]] == [("acme-rows", "1.1")]
    done = environment("upgrade", "acme", "--find-links", str(newer), *OFFLINE, "--allow-change", "acme-base", "--json")
    assert [(c["name"], c["after"]) for c in json.loads(done.stdout)["changes"]] == [
        ("acme-rows", "2.0"), ("acme-base", "3.0")
    ]  # fmt: skip
    again = environment("upgrade", "acme", "--find-links", str(newer), *OFFLINE)
    assert (again.code, "acme-rows 2.0 is installed already" in again.stdout) == (0, True)


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="sends signals of POSIX")
def test_an_interrupted_installation_installs_nothing_and_can_be_repeated(
    environment: Environment, project: Path
) -> None:
    """SIGINT while pip builds; the same command then installs the directory, editable, and `upgrade` refuses it."""
    (project / "wait").touch()
    command = [environment.python, "-m", "smollm3_finetune.main", "plugins", "install", project, "--yes"]
    child = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PIP_CONFIG_FILE": os.devnull},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )  # fmt: skip
    limit = time.monotonic() + 120
    while not (project / "began").exists() and time.monotonic() < limit:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    assert "error: stopped by SIGINT\n  hint: nothing was installed; to continue: the same command" in errors
    assert not list(environment.site.glob("acme*"))

    (project / "wait").unlink()
    done = environment("install", str(project), "--yes")
    assert done.code == 0, done.stderr
    assert f"{project} (editable)" in "".join(done.stdout.split("\n"))
    assert "slow    acme-slow 1.0  formatter acme-rows" in done.stdout
    refused = environment("upgrade", "slow", "--yes")
    assert refused.code == 2 and f"was installed from {project}" in refused.stderr
