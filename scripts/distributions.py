"""Builds the distributions of this project, core and every plugin under plugins/, and the index beside them.

`nox -s dist` runs this file in an environment with `build`, `twine` and `check-wheel-contents`. It leaves one sdist and
one wheel of each project in dist/, and an index of these files (PEP 503) in dist/simple/.

    python scripts/distributions.py                    build everything, check it, write the index
    python scripts/distributions.py --check            only compare versions, ranges and extras
    python scripts/distributions.py --check --tag v0.1.0    and that the tag and the changes name this release
    python scripts/distributions.py --names            the plugins, as JSON, for the release workflow
    python scripts/distributions.py --notes            what changed in this release
"""

from __future__ import annotations

import argparse
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CORE = "smollm3-finetune"
INDEX = "simple"
VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)
RELEASE = re.compile(r"(\d+)\.(\d+)\.(\d+)((a|b|rc)\d+)?")


@dataclass(frozen=True)
class Project:
    """A folder from which one sdist and one wheel are built."""

    folder: Path

    @property
    def table(self) -> dict[str, Any]:
        table: dict[str, Any] = tomllib.loads((self.folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return table

    @property
    def name(self) -> str:
        return str(self.table["name"])

    @property
    def package(self) -> str:
        return self.name.replace("-", "_")

    @property
    def extra(self) -> str:
        """The extra of core that installs this plugin."""
        return self.name.removeprefix("smollm3-")


def plugins(root: Path = ROOT) -> list[Project]:
    return [Project(p.parent) for p in sorted((root / "plugins").glob("*/pyproject.toml"))]


def version(root: Path = ROOT) -> str:
    """The version of this release, as `smollm3_finetune/version.py` states it."""
    found = VERSION.search((root / "smollm3_finetune" / "version.py").read_text(encoding="utf-8"))
    if found is None:
        raise SystemExit("smollm3_finetune/version.py states no __version__")
    return found[1]


def core_range(release: str) -> str:
    """The releases of core with which a plugin of this release works.

    Not an older one, because the plugin may use names that this release added; not the next minor version before 1.0,
    nor the next major version afterwards, because those may remove names.
    """
    found = RELEASE.fullmatch(release)
    if found is None:
        raise SystemExit(f"{release!r} is not a version such as 0.2.0 or 0.2.0rc1")
    major, minor = int(found[1]), int(found[2])
    return f">={release},<{f'0.{minor + 1}' if major == 0 else major + 1}"


def extras(root: Path = ROOT) -> dict[str, list[str]]:
    """The extras of core that install plugins: one for each plugin, and `all`."""
    release = version(root)
    found = {p.extra: [f"{p.name}=={release}"] for p in plugins(root)}
    return {**found, "all": [f"{CORE}[{','.join(found)}]"]}


def version_problems(root: Path = ROOT) -> list[str]:
    """Where a version, a range or an extra differs from the version of this release."""
    release = version(root)
    found = []
    for plugin in plugins(root):
        stated = plugin.table.get("version")
        if stated != release:
            found.append(f"{plugin.name} has version {stated}, {CORE} has {release}")
        needed = f"{CORE}{core_range(release)}"
        ours = [r for r in plugin.table["dependencies"] if re.match(rf"{CORE}\b(?!-)", r)]
        if ours != [needed]:
            found.append(f"{plugin.name} requires {', '.join(ours) or 'no smollm3-finetune'}, not {needed}")
    stated_extras = Project(root).table["optional-dependencies"]
    for name, requirements in extras(root).items():
        if stated_extras.get(name) != requirements:
            found.append(f"the extra {name!r} of {CORE} is {stated_extras.get(name)}, not {requirements}")
    for name, requirements in stated_extras.items():
        unknown = [r for r in requirements if r.startswith("smollm3-") and name not in extras(root)]
        found += [f"the extra {name!r} names {r}, which this release does not publish" for r in unknown]
    return found


def notes(root: Path = ROOT) -> tuple[str, str]:
    """The date of this release in the changes, and its section; the date is empty if it is not released."""
    release = version(root)
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(release)} \(([^)]*)\)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise SystemExit(f"CHANGELOG.md has no section for {release}\nto fix it: ## {release} (YYYY-MM-DD)")
    return (found[1] if re.fullmatch(r"\d{4}-\d\d-\d\d", found[1]) else ""), found[2].strip()


# ----------------------------------------------------------------------------------------------------- built files


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return BytesParser().parsebytes(archive.read(name))


def tracked(project: Project) -> set[str]:
    """The files of the package that git tracks, as paths in the wheel."""
    command = ["git", "-C", str(project.folder), "ls-files", "-z", project.package]
    listed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    return {name for name in listed.split("\0") if name}


def wheel_problems(project: Project, wheel: Path, release: str) -> list[str]:
    """What a built wheel lacks or has too much."""
    about = metadata(wheel)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    of_package = {n for n in names if not n.partition("/")[0].endswith(".dist-info")}
    right = tracked(project)
    found = [f"the wheel has {n}, which git does not track" for n in sorted(of_package - right)]
    found += [f"the wheel lacks {n}" for n in sorted(right - of_package)]
    if about["Version"] != release:
        found.append(f"the wheel has version {about['Version']}, not {release}")
    if not any(n.endswith(".dist-info/licenses/LICENSE") for n in names):
        found.append("the wheel has no LICENSE")
    if f"{project.package}/py.typed" not in names:
        found.append("the wheel has no py.typed")
    found += [f"requirement {r!r} is a URL" for r in about.get_all("Requires-Dist", []) if "@" in r]
    text = about.get_payload()
    for target in re.findall(r"\]\(([^)\s]+)\)", str(text)):
        if not re.match(r"[a-z]+:|#", target):
            found.append(f"the description links to {target!r}, which exists only in a clone")
    return found


def sdist_problems(project: Project, sdist: Path) -> list[str]:
    with tarfile.open(sdist) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    needed = {"pyproject.toml", "README.md", "LICENSE", f"{project.package}/__init__.py"}
    return [f"the sdist lacks {n}" for n in sorted(needed - names)]


def write_index(folder: Path) -> None:
    """An index (PEP 503) of the files in `folder`, in `folder/simple`; links are relative, so that it can be moved."""
    by_name: dict[str, list[Path]] = {}
    for file in sorted((*folder.glob("*.whl"), *folder.glob("*.tar.gz"))):
        name = re.sub(r"[-_.]+", "-", file.name.partition("-")[0]).lower()
        by_name.setdefault(name, []).append(file)
    index = folder / INDEX
    shutil.rmtree(index, ignore_errors=True)
    _page(index / "index.html", (f'<a href="{name}/">{name}</a>' for name in by_name))
    for name, files in by_name.items():
        _page(index / name / "index.html", map(_link, files))


def _link(file: Path) -> str:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    needs = ""
    if file.suffix == ".whl" and (python := metadata(file)["Requires-Python"]):
        needs = f' data-requires-python="{html.escape(python)}"'
    return f'<a href="../../{file.name}#sha256={digest}"{needs}>{file.name}</a>'


def _page(file: Path, links: Iterable[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    body = "<br>\n".join(links)
    file.write_text(f"<!DOCTYPE html>\n<html><body>\n{body}\n</body></html>\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------------------- building


def build(projects: Iterable[Project], out: Path) -> Iterator[tuple[Project, Path, Path]]:
    """Each project with its wheel and its sdist. The wheel is built from the sdist, which shows that it is complete."""
    for project in projects:
        before = set(out.iterdir())
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(project.folder)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            raise SystemExit(f"{project.name} cannot be built:\n{made.stdout[-2000:]}{made.stderr[-2000:]}")
        files = set(out.iterdir()) - before
        (wheel,) = (f for f in files if f.suffix == ".whl")
        (sdist,) = (f for f in files if f.name.endswith(".tar.gz"))
        yield project, wheel, sdist


def selected(only: list[str]) -> dict[str, Any]:
    """The plugins to publish, and whether core is published too: all of them, or those in `only`."""
    names = [p.name for p in plugins()]
    if unknown := sorted({*only} - {*names, CORE}):
        raise SystemExit(f"there is no distribution {unknown[0]!r}\nto fix it: {' '.join([*names, CORE])}")
    return {"plugins": [n for n in names if not only or n in only], "core": not only or CORE in only}


def _empty(out: Path) -> None:
    """Makes an empty folder of `out`, which may have only what an earlier build left there."""
    out.mkdir(parents=True, exist_ok=True)
    for path in out.iterdir():
        if path.suffix != ".whl" and not path.name.endswith(".tar.gz") and path.name != INDEX:
            raise SystemExit(f"{path} was not built by this script\nto fix it: move it, or pass another --out")
    shutil.rmtree(out)
    out.mkdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only compare versions, ranges and extras")
    parser.add_argument("--tag", help="the tag of this release, for example v0.1.0")
    parser.add_argument("--names", action="store_true", help="print the names of the plugins as JSON")
    parser.add_argument("--only", default="", help="with --names: only those of these, separated by spaces")
    parser.add_argument("--notes", action="store_true", help="print the section of this release in CHANGELOG.md")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the built files; emptied first")
    given = parser.parse_args()

    release = version()
    if given.notes:
        print(notes()[1])
        return
    if given.names:
        print(json.dumps(selected(given.only.split())))
        return
    if problems := version_problems():
        raise SystemExit("\n".join([*problems, f"to fix it: python scripts/set_version.py {release}"]))
    if given.tag is not None and given.tag != f"v{release}":
        raise SystemExit(f"the tag {given.tag} is not v{release}\nto fix it: python scripts/set_version.py VERSION")
    if given.tag is not None and not notes()[0]:
        raise SystemExit(f"CHANGELOG.md has no date for {release}\nto fix it: ## {release} (YYYY-MM-DD)")
    if given.check:
        print(f"{len(plugins()) + 1} projects of version {release}")
        return

    out: Path = given.out
    _empty(out)
    problems = []
    files: list[str] = []
    for project, wheel, sdist in build([*plugins(), Project(ROOT)], out):
        found = [*wheel_problems(project, wheel, release), *sdist_problems(project, sdist)]
        problems += [f"{project.name}: {problem}" for problem in found]
        files += [str(wheel), str(sdist)]
        print(f"{wheel.name}  {wheel.stat().st_size / 1024:.0f} kB", flush=True)
    if problems:
        raise SystemExit("\n".join(problems))
    env = {**os.environ, "NO_COLOR": "1"}
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True, env=env)
    wheels = [f for f in files if f.endswith(".whl")]
    subprocess.run([str(Path(sys.executable).with_name("check-wheel-contents")), *wheels], check=True)
    write_index(out)
    print(f"{len(files)} files of version {release} in {out}, and an index of them in {out / INDEX}")


if __name__ == "__main__":
    main()
