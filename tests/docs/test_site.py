"""The sources of the site: navigation, links and versions. `nox -s site` builds it, with the generator's own checks."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pages import DOCS, OURS, name_of
from regions import ROOT, text_of

SITE = ROOT / "scripts" / "site"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of scripts/site by name."""
    monkeypatch.syspath_prepend(str(SITE))

    def module(name: str) -> ModuleType:
        return importlib.import_module(name)

    return module


@pytest.fixture
def sources(site: Any, tmp_path: Path) -> Any:
    return site("sources").Sources(tmp_path, "main")


# ----------------------------------------------------------------------------------------------- the real pages


def test_every_page_of_docs_has_a_place_in_the_navigation(sources: Any) -> None:
    placed = {name_of(page) for page in sources.places}
    assert [name_of(page) for page in DOCS.rglob("*.md") if name_of(page) not in placed] == []
    assert [s.title for s in sources.sections] == ["Start", "Use", "Write a plugin", "Reference", "Project"]


def test_the_sources_of_every_page_are_written_and_their_links_exist(site: Any, sources: Any, tmp_path: Path) -> None:
    sources.write_pages()
    pages = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.md")}
    assert set(sources.places.values()) <= pages
    for page in sorted(tmp_path.rglob("*.md")):
        parts = site("links").outside_code(page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)\s#]+)", "".join(part for part, prose in parts if prose)):
            if not re.match(r"[a-z]+:", target) and target.endswith((".md", ".svg", ".png")):
                assert (page.parent / target).exists(), f"{page.relative_to(tmp_path)}: {target}"


def test_a_second_run_writes_nothing_and_removes_old_pages(site: Any, sources: Any, tmp_path: Path) -> None:
    sources.write_pages()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.md")}
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "page.md").write_text("# Gone\n")
    again = site("sources").Sources(tmp_path, "main")
    again.write_pages()
    again.remove_others()
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.md")} == before


@pytest.mark.parametrize("page", OURS, ids=name_of)
def test_links_have_a_form_that_the_site_understands(page: Path, site: Any) -> None:
    """Inline links only: reference links, HTML links and pictures would not be rewritten."""
    prose = "".join(part for part, outside in site("links").outside_code(text_of(page)) if outside)
    assert not re.search(r"^\[[^\]]+\]: |<a href|<img", prose, re.MULTILINE)


# -------------------------------------------------------------------------------------------------------- links


def test_links_inside_code_are_left_alone(site: Any) -> None:
    text = "[a](one.md) `[b](two.md)`\n```text\n[c](three.md)\n```\n[`d`](four.md#x) ``[e](`five.md)``\n"
    seen: list[str] = []
    changed = site("links").rewrite(text, lambda target: seen.append(target) or target.upper())
    assert seen == ["one.md", "four.md#x"]
    assert changed == text.replace("one.md", "ONE.MD").replace("four.md#x", "FOUR.MD#X")


@pytest.mark.parametrize(
    ("target", "page", "becomes"),
    [
        ("data.md#weights", "docs/runs.md", "data.md#weights"),
        ("../plugins/smollm3-peft/README.md", "docs/plugins.md", "plugin/smollm3-peft.md"),
        ("../../docs/shipping.md", "plugins/smollm3-gptq/README.md", "../shipping.md"),
        ("../writing-a-quantizer.md#x", "docs/decisions/0018-quantized-experts.md", "../writing-a-quantizer.md#x"),
        ("../CHANGELOG.md", "docs/index.md", "project/changelog.md"),
        ("../README.md#x", "docs/quickstart.md", "index.md"),
        ("#here", "docs/runs.md", "#here"),
        ("https://arxiv.org/abs/2305.18290", "docs/runs.md", "https://arxiv.org/abs/2305.18290"),
        ("train.svg", "docs/runs.md", "pictures/train.svg"),
    ],
)
def test_a_link_leads_to_the_page_of_the_site(target: str, page: str, becomes: str, sources: Any) -> None:
    assert sources.target(target, ROOT / page) == becomes


@pytest.mark.parametrize(("target", "kind"), [("../examples/run.yaml", "blob"), ("../examples", "tree")])
def test_a_link_to_another_file_leads_to_github(target: str, kind: str, sources: Any) -> None:
    found = sources.target(target, DOCS / "runs.md")
    assert found == f"https://github.com/smollm3-finetune/smollm3-finetune/{kind}/main/{target[3:]}"


def test_a_link_to_nothing_is_an_error(sources: Any) -> None:
    with pytest.raises(ValueError, match=r"docs/runs\.md: gone\.md does not exist"):
        sources.target("gone.md", DOCS / "runs.md")


# --------------------------------------------------------------------------------------------------- navigation


def test_a_page_that_is_listed_twice_is_an_error(site: Any, tmp_path: Path) -> None:
    index = tmp_path / "index.md"
    index.write_text(
        "# D\n\n## Start\n\n* [A](a.md)\n\n### More\n\n* [B](b.md), [C](c.md#x)\n\n## Use\n\n* [A](a.md)\n"
    )
    with pytest.raises(ValueError, match=r"index\.md lists a\.md under Start and Use"):
        site("navigation").read_navigation(index)
    index.write_text(index.read_text().removesuffix("* [A](a.md)\n"))
    start, use = site("navigation").read_navigation(index)
    assert [p.name for p in start.pages] == ["a.md"] and use.place == "use"
    assert [(g.place, [p.name for p in g.pages]) for g in start.groups] == [("start/more", ["b.md", "c.md"])]


# -------------------------------------------------------------------------------------------- links of the HTML


def built(folder: Path, **pages: str) -> Path:
    for name, body in pages.items():
        (folder / f"{name}.html").write_text(f"<html><body>{body}</body></html>", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('<a href="gone.html">x</a>', "gone.html does not exist"),
        ('<a href="b.html#gone">x</a>', "b.html#gone has no such anchor"),
        ('<a href="#gone">x</a>', "#gone has no such anchor"),
        ('<img src="../outside.png">', "../outside.png does not exist"),
        ('<a href="http://example.org/">x</a>', "is not https"),
        ('<a href="https://example/">x</a>', "has no valid host"),
        ('<a href="https://example.org/a,">x</a>', "has characters"),
        ('<a href="file:///etc/passwd">x</a>', "is not https"),
    ],
)
def test_a_broken_link_of_a_built_page_is_found(body: str, says: str, site: Any, tmp_path: Path) -> None:
    (tmp_path / "outside.png").touch()
    (tmp_path / "site").mkdir()
    (problem,) = site("check").problems(built(tmp_path / "site", a=body, b='<p id="there">'))
    assert problem.startswith("a.html: ") and says in problem


def test_links_that_hold_are_not_reported(site: Any, tmp_path: Path) -> None:
    good = '<p id="ü"></p><a href="b.html#there">x</a><a href="#%C3%BC">x</a><a href="https://example.org/a?b=c">x</a>'
    assert list(site("check").problems(built(tmp_path, a=good, b='<p id="there">'))) == []


# ------------------------------------------------------------------------------------------------------ versions


def publish(site: Any, published: Path, built_site: Path, *versions: str) -> list[dict[str, Any]]:
    for version in versions:
        (built_site / "index.html").write_text(version)
        site("versions").add(published, built_site, version, "https://example.org/docs/")
    listed: list[dict[str, Any]] = json.loads((published / "switcher.json").read_text())
    return listed


def test_versions_are_listed_newest_first_and_the_newest_release_is_preferred(site: Any, tmp_path: Path) -> None:
    published, one = tmp_path / "published", tmp_path / "built"
    one.mkdir()
    listed = publish(site, published, one, "dev")
    assert [e["version"] for e in listed] == ["dev"] and not any(e.get("preferred") for e in listed)
    assert "url=dev/index.html" in (published / "index.html").read_text()
    listed = publish(site, published, one, "0.9.0", "0.10.0", "0.9.1")  # 0.9.1 is a fix of an older release
    assert [e["version"] for e in listed] == ["dev", "0.10.0", "0.9.1", "0.9.0"]
    assert [e["version"] for e in listed if e.get("preferred")] == ["0.10.0"]
    assert listed[1]["url"] == "https://example.org/docs/0.10.0/"
    assert (published / "stable" / "index.html").read_text() == "0.10.0"
    assert "url=stable/index.html" in (published / "index.html").read_text()


def test_a_version_is_replaced_as_a_whole(site: Any, tmp_path: Path) -> None:
    published, one = tmp_path / "published", tmp_path / "built"
    one.mkdir()
    (one / "old.html").touch()
    publish(site, published, one, "0.1.0", "dev")
    (one / "old.html").unlink()
    publish(site, published, one, "dev")
    assert not (published / "dev" / "old.html").exists() and (published / "0.1.0" / "old.html").exists()


@pytest.mark.parametrize("version", ["0.1", "v0.1.0", "latest", "../x"])
def test_another_name_than_a_release_or_dev_is_refused(version: str, site: Any, tmp_path: Path) -> None:
    (tmp_path / "index.html").touch()
    with pytest.raises(ValueError, match="neither a release"):
        site("versions").add(tmp_path / "published", tmp_path, version, "https://example.org")
    assert not (tmp_path / "published").exists()


# ----------------------------------------------------------------------------------------------- API reference


@pytest.fixture
def reference(site: Any) -> Any:
    pytest.importorskip("griffe", reason="griffelib is not installed: pip install -r scripts/site/requirements.txt")
    return site("reference").Reference(ROOT, "https://example.org")


def annotated(module: str, name: str) -> dict[str, str]:
    """The public annotated attributes in the body of a class, with their types."""
    found = importlib.import_module(module)
    tree = ast.parse(inspect.getsource(getattr(found, name))).body[0]
    assert isinstance(tree, ast.ClassDef)
    fields = [n for n in tree.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    return {n.target.id: ast.unparse(n.annotation) for n in fields if n.target.id[0] != "_"}  # type: ignore[union-attr]


def test_the_reference_shows_every_annotated_attribute_with_its_type(reference: Any) -> None:
    module, seen = "smollm3_finetune.api", 0
    for name in reference.exported(module):
        target = reference.defined(module, name)
        if target.is_class:
            text = reference.directive(target, name, depth=6)
            shown = dict(re.findall(r"^`+\{py:attribute\} (\w+)\n:type: \"(.*)\"$", text, re.MULTILINE))
            for field, kind in annotated(module, name).items():
                assert re.sub(r"\W", "", shown[field]) == re.sub(r"\W", "", kind), f"{name}.{field}"
                seen += 1
    assert seen > 150


def test_an_attribute_without_docstring_is_shown_and_one_that_a_method_sets_is_not(
    site: Any, reference: Any, tmp_path: Path
) -> None:
    (tmp_path / "sample.py").write_text(
        'class Shown:\n    bare: int\n    said: str\n    """Said."""\n    default = 3\n    _own: int\n'
        "    def __init__(self):\n        self.inner = 1\n"
    )
    griffe = importlib.import_module("griffe")
    shown = griffe.load("sample", search_paths=[str(tmp_path)], allow_inspection=False)["Shown"]
    assert [m.name for m in site("reference").members(shown)] == ["bare", "said", "default"]
