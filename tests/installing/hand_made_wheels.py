"""Wheels that are written by hand, and an environment into which pip installs them.

The environment has the packages of this one on its path, and a place of its own for what is installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from smollm3_finetune.testing.commands import Result

ROOT = Path(__file__).parents[2]
HOOKS = """
from smollm3_finetune.api import FormatterSpec, hookimpl


@hookimpl
def smollm3_formatters():
    return [FormatterSpec(name="acme-rows", summary="rows of Acme", factory="acme_rows.rows:Rows", api=2)]
"""
ROWS = """
class Rows:
    columns = ("text",)

    def __init__(self, options):
        pass

    def __call__(self, row):
        raise ValueError("it has no answer")
"""
PLUGIN = {"acme_rows/__init__.py": HOOKS, "acme_rows/rows.py": ROWS}
POINTS = {"acme": "acme_rows"}
CORE = "smollm3-finetune>=0.1"
WriteWheel = Callable[..., Path]


def write_wheel(
    folder: Path, name: str, version: str, files: Mapping[str, str], requires: Sequence[str] = (),
    points: Mapping[str, str] | None = None, headers: str = "",
) -> Path:  # fmt: skip
    """A wheel, which is a zip file with metadata."""
    about = f"{name.replace('-', '_')}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {r}\n" for r in requires)
    lines = [f"{k} = {v}" for k, v in (points or {}).items()]
    contents = {
        **files,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{headers}{needs}",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **({f"{about}/entry_points.txt": "\n".join(["[smollm3_finetune]", *lines, ""])} if points else {}),
    }
    contents[f"{about}/RECORD"] = "".join(f"{file},,\n" for file in (*contents, f"{about}/RECORD"))
    folder.mkdir(exist_ok=True)
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in contents.items():
            archive.writestr(file, text)
    return path


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with the plugin acme-rows 1.0, which requires acme-base."""
    folder = tmp_path / "wheels"
    write_wheel(folder, "acme-rows", "1.0", PLUGIN, (CORE, "acme-base"), POINTS)
    write_wheel(folder, "acme-base", "2.0", {"acme_base.py": ""})
    return folder


class Environment:
    """A virtual environment without packages of its own, and the command line in it."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=os.name == "posix")
        self.python = folder / ("bin/python" if os.name == "posix" else "Scripts/python.exe")
        place = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        self.site = place if os.name == "posix" else folder / "Lib" / "site-packages"
        over = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (self.site / "over.pth").write_text(over, encoding="utf-8")
        core = self.site / "smollm3_finetune-0.1.0.dist-info"
        core.mkdir()
        (core / "METADATA").write_text("Metadata-Version: 2.1\nName: smollm3-finetune\nVersion: 0.1.0\n")

    def __call__(self, *arguments: str, **variables: str) -> Result:
        """Run `smollm3 plugins ARGUMENTS`, without the configuration of pip and uv on this machine."""
        mine = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_"))}
        done = subprocess.run(
            [str(self.python), "-m", "smollm3_finetune.main", "plugins", *arguments],
            capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
            env={**mine, "PYTHONPATH": str(ROOT), "PIP_CONFIG_FILE": os.devnull, **variables},
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")
