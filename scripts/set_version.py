"""Gives core and every plugin a version: one number in all of them, and in the ranges and extras that refer to it.

python scripts/set_version.py 0.2.0
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from distributions import CORE, ROOT, VERSION, Project, core_range, extras, plugins, version_problems


def set_version(release: str, root: Path = ROOT) -> list[Path]:
    """Writes `release` wherever a version is stated. Returns the files that changed."""
    needed = core_range(release)
    texts = {root / "smollm3_finetune" / "version.py": [(VERSION, f'__version__ = "{release}"')]}
    for plugin in plugins(root):
        texts[plugin.folder / "pyproject.toml"] = [
            (re.compile(r'^version = "[^"]+"$', re.MULTILINE), f'version = "{release}"'),
            (re.compile(rf'"{CORE}(?:[><=!~][^"]*)?"'), f'"{CORE}{needed}"'),
        ]
    changed = [file for file, changes in texts.items() if _change(file, changes)]
    own = root / "pyproject.toml"
    stated = Project(root).table["optional-dependencies"]
    lines = [f'{name} = ["{requirements[0]}"]' for name, requirements in extras(root).items()]
    kept = re.compile(rf'^(?:{"|".join(stated)}) = \["smollm3-[^\n]*\]\n', re.MULTILINE)
    text = own.read_text(encoding="utf-8")
    first = kept.search(text)
    if first is None:
        raise SystemExit("pyproject.toml has no extra that names a plugin")
    rest = kept.sub("", text[first.end() :])
    new = text[: first.start()] + "\n".join(lines) + "\n" + rest
    if new != text:
        own.write_text(new, encoding="utf-8")
        changed.append(own)
    return changed


def _change(file: Path, changes: list[tuple[re.Pattern[str], str]]) -> bool:
    text = new = file.read_text(encoding="utf-8")
    for pattern, replacement in changes:
        new, count = pattern.subn(lambda _, by=replacement: by, new)  # type: ignore[misc]
        if count != 1:
            raise SystemExit(f"{file}: {pattern.pattern!r} is found {count} times, not once")
    if new != text:
        file.write_text(new, encoding="utf-8")
    return new != text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("version", help="for example 0.2.0, or 0.2.0rc1")
    for file in set_version(parser.parse_args().version):
        print(file.relative_to(ROOT))
    if problems := version_problems():
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
