"""What a wheel and an sdist must have; an index of them that pip reads."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from distributions import ROOT, Project, plugins, sdist_problems, wheel_problems, write_index

WEB = "https://github.com/smollm3-finetune/smollm3-finetune/"
METADATA = """Metadata-Version: 2.4
Name: smollm3-acme
Version: 0.1.0
Requires-Python: >=3.11
Requires-Dist: smollm3-finetune<0.2,>=0.1.0

See [the license](https://example.org/LICENSE), and [below](#below).
"""
FILES = {"smollm3_acme/__init__.py": "", "smollm3_acme/py.typed": ""}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    folder = tmp_path / "acme"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "pyproject.toml").write_text('[project]\nname = "smollm3-acme"\n')
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), "add", "."], check=True)
    return Project(folder)


def wheel(folder: Path, changes: dict[str, str | None], name: str = "smollm3_acme") -> Path:
    """A wheel with the right files but for `changes`; None leaves a file out."""
    info = f"{name}-0.1.0.dist-info"
    right = {**FILES, f"{info}/METADATA": METADATA, f"{info}/licenses/LICENSE": "text", f"{info}/RECORD": "",
             f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}  # fmt: skip
    file = folder / f"{name}-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for path, text in {**right, **changes}.items():
            if text is not None:
                archive.writestr(path, text)
    return file


def test_a_complete_wheel_has_no_problem(project: Project, tmp_path: Path) -> None:
    assert wheel_problems(project, wheel(tmp_path, {}), "0.1.0") == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"smollm3_acme/__init__.py": None}, "the wheel lacks smollm3_acme/__init__.py"),
        ({"smollm3_acme/notes.txt": ""}, "the wheel has smollm3_acme/notes.txt, which git does not track"),
        ({"tests/test_x.py": ""}, "the wheel has tests/test_x.py, which git does not track"),
        ({"smollm3_acme/py.typed": None}, "the wheel has no py.typed"),
        ({"smollm3_acme-0.1.0.dist-info/licenses/LICENSE": None}, "the wheel has no LICENSE"),
        ({"smollm3_acme-0.1.0.dist-info/METADATA": METADATA.replace("0.1.0\n", "0.0.9\n", 1)},
         "the wheel has version 0.0.9, not 0.1.0"),
        ({"smollm3_acme-0.1.0.dist-info/METADATA": METADATA.replace("<0.2,>=0.1.0", " @ file:///core.whl")},
         "requirement 'smollm3-finetune @ file:///core.whl' is a URL"),
        ({"smollm3_acme-0.1.0.dist-info/METADATA": METADATA.replace("https://example.org/LICENSE", "../LICENSE")},
         "the description links to '../LICENSE', which exists only in a clone"),
    ],
)  # fmt: skip
def test_a_wheel_with_a_fault_is_found(
    changes: dict[str, str | None], problem: str, project: Project, tmp_path: Path
) -> None:
    assert problem in wheel_problems(project, wheel(tmp_path, changes), "0.1.0")


def test_an_sdist_that_lacks_files_is_found(project: Project, tmp_path: Path) -> None:
    file = tmp_path / "smollm3_acme-0.1.0.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        for name in ("pyproject.toml", "smollm3_acme/__init__.py"):
            archive.add(project.folder / name, f"smollm3_acme-0.1.0/{name}")
    assert sdist_problems(project, file) == ["the sdist lacks LICENSE", "the sdist lacks README.md"]


def test_pip_finds_a_distribution_in_the_index(tmp_path: Path) -> None:
    dist = tmp_path / "my dist"
    dist.mkdir()
    file = wheel(dist, {})
    other = wheel(dist, {"smollm3_acme-0.1.0.dist-info/METADATA": None, "smollm3_acme_x-0.1.0.dist-info/METADATA":
                         METADATA.replace("smollm3-acme", "smollm3-acme-x")}, "smollm3_acme_x")  # fmt: skip
    write_index(dist)
    pages = sorted(p.relative_to(dist / "simple").as_posix() for p in dist.rglob("index.html"))
    assert pages == ["index.html", "smollm3-acme-x/index.html", "smollm3-acme/index.html"]
    page = (dist / "simple" / "smollm3-acme" / "index.html").read_text()
    assert hashlib.sha256(file.read_bytes()).hexdigest() in page
    assert 'data-requires-python="&gt;=3.11"' in page
    assert other.name not in page
    pip = (sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "download", "--quiet", "--no-deps")
    out = tmp_path / "out"
    index = (dist / "simple").as_uri()
    subprocess.run([*pip, "--dest", str(out), "--index-url", index, "smollm3-acme"], check=True)
    assert [p.name for p in out.iterdir()] == [file.name]


@pytest.mark.parametrize("plugin", plugins(), ids=lambda plugin: plugin.name)
def test_a_plugin_is_complete_without_the_clone(plugin: Project) -> None:
    assert (plugin.folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    table = plugin.table
    assert (table["license-files"], table["requires-python"]) == (["LICENSE"], ">=3.11")
    assert {"Homepage", "Documentation", "Source", "Issues", "Changelog"} <= set(table["urls"])
    for target in re.findall(r"\]\(([^)\s]+)\)", (plugin.folder / "README.md").read_text()):
        assert re.match(r"[a-z]+:|#", target), f"{plugin.name}/README.md links to {target}, which PyPI has not"
        if target.startswith(WEB):
            kind, _, path = target.removeprefix(WEB).partition("/main/")
            file = ROOT / path.partition("#")[0]
            assert file.is_file() if kind == "blob" else file.is_dir(), target
