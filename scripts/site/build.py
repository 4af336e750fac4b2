"""Builds the documentation site from docs/*.md, the READMEs of the plugins and the docstrings of the plugin API.

    python scripts/site/build.py                  strictly: a broken link or anchor is an error
    python scripts/site/build.py --serve          build, then show it at http://127.0.0.1:8000
    python scripts/site/build.py --version 0.1.0 --address URL   for publishing, with a list of versions

The result is in build/site/html, and works without a server and without a network. `nox -s site` calls this script in
an environment with its requirements.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from check import problems
from links import slug
from reference import Reference
from sources import DOCS, REPOSITORY, ROOT, Sources, toctree

BUILD = ROOT / "build" / "site"


def own_version() -> str:
    text = (ROOT / "smollm3_finetune" / "version.py").read_text(encoding="utf-8")
    found = re.search(r'"(\d[^"]*)"', text)
    if found is None:
        raise ValueError("smollm3_finetune/version.py states no version")
    return found[1]


def write_sources(folder: Path, revision: str) -> None:
    """Write what Sphinx builds: pages, sections and the API reference."""
    sources = Sources(folder, revision)
    reference = Reference(ROOT, f"{REPOSITORY}/blob/{revision}")
    introduction, sections = reference.sections((DOCS / "api.md").read_text(encoding="utf-8"))
    anchors = {}
    for section in sections:
        anchors[slug(section.title)] = f"{section.place}.md"
        anchors |= {name.lower(): f"{section.place}.md#{name.lower()}" for _, name in section.names}
    sources.anchors[DOCS / "api.md"] = anchors
    sources.write_pages()
    for section in sections:
        sources.write(f"{section.place}.md", sources.rewritten(reference.page(section), DOCS / "api.md", section.place))
    listed = "".join(f"* [{s.title}]({s.place}.md)\n" for s in sections)
    head = sources.rewritten(introduction, DOCS / "api.md", "api")
    sources.write("api.md", f"{head.rstrip()}\n\n{listed}\n" + toctree([s.place for s in sections]))
    sources.remove_others()


def build(version: str, revision: str, address: str) -> int:
    """Build the site; 0 if every link holds and Sphinx has no warning."""
    from sphinx.cmd.build import build_main

    source, html = BUILD / "source", BUILD / "html"
    write_sources(source, revision)
    shutil.rmtree(html, ignore_errors=True)  # Sphinx leaves old pages, and old navigation in unchanged ones
    os.environ["SITE_VERSION"], os.environ["SITE_ADDRESS"] = version, address
    places = ["-c", str(Path(__file__).parent), "-d", str(BUILD / "doctrees")]
    options = ["-q", "-a", "-W", "--keep-going", "-j", "auto", *places]
    failed = build_main([*options, "-b", "html", str(source), str(html)])
    found = list(problems(html))
    print("\n".join(found), file=sys.stderr if found else sys.stdout, end="\n" if found else "")
    if not failed and not found:
        print(f"{len(list(html.rglob('*.html')))} pages: {html / 'index.html'}")
    return 1 if failed or found else 0


def serve(port: int) -> None:
    """Show the site on this machine until Ctrl-C."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(BUILD / "html"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        print(f"http://127.0.0.1:{server.server_port}/ (Ctrl-C to stop)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", type=int, nargs="?", const=8000, metavar="PORT", help="show the site; default: 8000")
    parser.add_argument("--version", default=own_version(), help="name of this version on the site")
    parser.add_argument("--revision", default="main", help="Git revision that links to the repository name")
    parser.add_argument("--address", default="", help="where the versions are published; empty: no list of versions")
    given = parser.parse_args()
    try:
        code = build(given.version, given.revision, given.address)
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    if given.serve is not None and (BUILD / "html" / "index.html").exists():
        serve(given.serve)
    return code


if __name__ == "__main__":
    sys.exit(main())
