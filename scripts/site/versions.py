"""Adds a built site to the published versions, as a folder of a Git branch that a web server shows.

    python scripts/site/versions.py PUBLISHED BUILT --version 0.1.0 --address URL

PUBLISHED has one folder for each version, `stable` with the newest release, `switcher.json` with the list that the
pages show, and an `index.html` that leads to `stable`, or to `dev` before the first release. A version that is there
already is replaced. Nothing else is changed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

RELEASE = re.compile(r"\d+\.\d+\.\d+")
DEV = "dev"
LEADS = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>smollm3-finetune</title>
<meta http-equiv="refresh" content="0; url={version}/index.html">
</head>
<body><p><a href="{version}/index.html">Documentation of smollm3-finetune</a></p></body>
</html>
"""


def order(version: str) -> tuple[int, ...]:
    """Sorts releases by number."""
    return tuple(int(part) for part in version.split("."))


def releases(published: Path) -> list[str]:
    """The releases among the versions, newest first."""
    names = [f.name for f in published.iterdir() if f.is_dir() and RELEASE.fullmatch(f.name)]
    return sorted(names, key=order, reverse=True)


def entries(names: list[str], dev: bool, address: str) -> list[dict[str, Any]]:
    """The list of versions, as the theme reads it: the newest release is preferred."""
    listed: list[dict[str, Any]] = []
    if dev:
        listed.append({"name": "development", "version": DEV, "url": f"{address}/{DEV}/"})
    for name in names:
        newest = name == names[0]
        listed.append({"name": f"{name} (newest)" if newest else name, "version": name, "url": f"{address}/{name}/"})
        if newest:
            listed[-1]["preferred"] = True
    return listed


def add(published: Path, built: Path, version: str, address: str) -> None:
    """Add a built site. Raises ValueError if it is not a site, or if the version is neither a release nor `dev`."""
    if version != DEV and not RELEASE.fullmatch(version):
        raise ValueError(f"{version!r} is neither a release, such as 0.1.0, nor {DEV}")
    if not (built / "index.html").is_file():
        raise ValueError(f"{built} has no index.html")
    published.mkdir(parents=True, exist_ok=True)
    replace(built, published / version)
    names = releases(published)
    if names and names[0] == version:
        replace(built, published / "stable")
    listed = entries(names, (published / DEV).is_dir(), address.rstrip("/"))
    (published / "switcher.json").write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    (published / "index.html").write_text(LEADS.format(version="stable" if names else DEV), encoding="utf-8")
    (published / ".nojekyll").touch()


def replace(built: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(built, folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("published", type=Path, metavar="PUBLISHED")
    parser.add_argument("built", type=Path, metavar="BUILT")
    parser.add_argument("--version", required=True, help="a release, or dev")
    parser.add_argument("--address", required=True, help="where PUBLISHED is shown")
    given = parser.parse_args()
    try:
        add(given.published, given.built, given.version, given.address)
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
