"""The sources of the site: copies of the Markdown files of the repository, with the links of the site.

The files are not changed, and stay readable on GitHub. Each becomes one page, at the place that `Sources.place` gives.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from links import ANCHOR, EXTERNAL, rewrite, split_target
from navigation import Group, read_navigation

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
HOME = Path(__file__).with_name("home.md")
INDEX = DOCS / "index.md"
REPOSITORY = "https://github.com/smollm3-finetune/smollm3-finetune"
PICTURES = (".svg", ".png")


class Sources:
    """The pages of the site, before it is built."""

    def __init__(self, folder: Path, revision: str) -> None:
        self.folder = folder
        self.revision = revision
        self.sections = read_navigation(INDEX)
        listed = [page for group in self.groups() for page in group.pages]
        decisions = sorted((DOCS / "decisions").glob("*.md"))
        self.places = {page: self._place(page) for page in (*listed, *decisions)}
        if len(set(self.places.values())) < len(self.places):
            raise ValueError("two pages would have one place on the site")
        self.places |= {INDEX: "index.md", ROOT / "README.md": "index.md"}
        self.anchors: dict[Path, dict[str, str]] = {}
        """Pages whose anchors are on other pages of the site: the place of each anchor."""
        self.written: set[Path] = set()

    def groups(self) -> list[Group]:
        """Sections, and the groups in them."""
        return [group for section in self.sections for group in (section, *section.groups)]

    def _place(self, page: Path) -> str:
        """The path of a file's page on the site."""
        inside = page.relative_to(ROOT)
        if inside.parts[0] == "docs":
            place = inside.relative_to("docs").as_posix()
        elif inside.name == "README.md":  # plugins/NAME/README.md, and that of a folder of plugins
            place = f"plugin/{inside.parent.name}.md" if len(inside.parts) > 2 else "plugin/all.md"
        else:  # CHANGELOG.md
            place = f"project/{inside.as_posix().lower()}"
        if place.removesuffix(".md") in {group.place for group in self.groups()}:
            raise ValueError(f"{inside} and a section of docs/index.md would both be {place}")
        return place

    def target(self, target: str, page: Path, place: str = "") -> str:
        """The target on the site of a link in `page`. Raises ValueError if it names a file that does not exist.

        `place` is the page of the site that gets the link, by default that of `page`.
        """
        place = place or self.places.get(page, "index.md")
        if EXTERNAL.match(target):
            return target
        file, anchor = split_target(target, page)
        if not file.exists():
            raise ValueError(f"{page.relative_to(ROOT)}: {target} does not exist")
        if anchor[1:] in self.anchors.get(file, {}):
            return relative(self.anchors[file][anchor[1:]], place)
        if file == page:
            return anchor
        if file in self.places:
            anchor = "" if self.places[file] == "index.md" else anchor
            return relative(self.places[file], place) + anchor
        if file.suffix in PICTURES:
            self.write(f"pictures/{file.name}", file.read_bytes())
            return relative(f"pictures/{file.name}", place)
        kind = "tree" if file.is_dir() else "blob"
        return f"{REPOSITORY}/{kind}/{self.revision}/{file.relative_to(ROOT).as_posix()}{anchor}"

    def rewritten(self, text: str, page: Path, place: str = "") -> str:
        """Markdown of `page` as it is at `place` on the site."""
        return ANCHOR.sub(r"(\1)=", rewrite(text, lambda target: self.target(target, page, place)))

    def page(self, page: Path) -> str:
        """The Markdown of a page of the site."""
        return self.rewritten(page.read_text(encoding="utf-8"), page)

    def write_pages(self) -> None:
        """Write every page but those of the API reference."""
        for page, place in self.places.items():
            if place != "index.md" and page not in self.anchors:
                more = self._decisions() if page == DOCS / "design-notes.md" else ""
                self.write(place, self.page(page) + more)
        for section in self.sections:
            for group in (section, *section.groups):
                self.write(f"{group.place}.md", self._section(group))
        home = self.rewritten(HOME.read_text(encoding="utf-8"), HOME)
        self.write("index.md", home + toctree([section.place for section in self.sections]))

    def _section(self, group: Group) -> str:
        """The page of a section or a group: what the index says about it, and its pages below it."""
        place = f"{group.place}.md"
        text = self.rewritten(group.text, INDEX, place).strip()
        for inner in group.groups:
            below = self.rewritten(inner.text, INDEX, place).strip()
            text += f"\n\n## [{inner.title}]({relative(inner.place, place)}.md)\n\n{below}"
        pages = [self.places[page].removesuffix(".md") for page in group.pages]
        return f"# {group.title}\n\n{text}\n\n" + toctree([*pages, *(inner.place for inner in group.groups)])

    def _decisions(self) -> str:
        places = [place for page, place in self.places.items() if page.parent.name == "decisions"]
        return "\n" + toctree([place.removesuffix(".md") for place in places])

    def write(self, place: str, content: str | bytes) -> None:
        """Write a file, if its content differs: Sphinx builds only pages that changed."""
        path = self.folder / place
        self.written.add(path)
        data = content.encode() if isinstance(content, str) else content
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def remove_others(self) -> None:
        """Remove what an earlier build wrote, and this one did not."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_file() and path not in self.written:
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                shutil.rmtree(path)


def relative(place: str, other: str) -> str:
    """A link to `place` on the page at `other`."""
    return Path(os.path.relpath(place, Path(other).parent)).as_posix()


def toctree(places: list[str]) -> str:
    """The pages below a page, for the navigation beside the text."""
    return "```{toctree}\n:hidden:\n\n" + "".join(f"/{place}\n" for place in places) + "```\n" if places else ""
