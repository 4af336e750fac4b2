"""Run the gallery: `nox -s gallery`, or `nox -s gallery -- smollm3-quanto --write`.

Without names, every plugin in examples/plugins; a name may be that of a folder in plugins/, too. `--write` keeps the
results in docs/gallery/ and writes docs/gallery.md; `--page` only describes the folders again and writes the page, with
the results that are kept. `--long` also runs tests that are marked long. `--together` runs only the last check: all
plugins of examples/plugins in one environment, and one run that uses many.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from gallery.environment import Environment
from gallery.page import PAGE, page
from gallery.plugins import named, plugins
from gallery.records import about, measured, read_records, write_record
from gallery.together import together


def main() -> int:
    parser = argparse.ArgumentParser(prog="gallery", description=__doc__)
    parser.add_argument("names", nargs="*", help="plugins, or folders of plugins")
    parser.add_argument("--write", action="store_true", help="keep the results and write the page")
    parser.add_argument("--page", action="store_true", help="write the page from the results that are kept")
    parser.add_argument("--together", action="store_true", help="only: all plugins in one environment and one run")
    parser.add_argument("--long", action="store_true", help="also run the tests that are marked long")
    options = parser.parse_args()
    bad = 0
    if not options.page:
        work = Path(tempfile.mkdtemp(prefix="gallery-"))
        try:
            for plugin in [] if options.together else named(options.names):
                place = work / plugin.name
                record = measured(plugin, Environment(place / "environment"), place / "work", long=options.long)
                bad += report(record)
                shutil.rmtree(place, ignore_errors=True)
                if options.write:
                    write_record(record)
            if options.together or not options.names:
                record = together(Environment(work / "together"), work / "run")
                bad += report(record)
                if options.write:
                    write_record(record)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    if options.page:
        describe_again()
    if options.write or options.page:
        PAGE.write_text(page(read_records()), encoding="utf-8")
        print(f"written: {PAGE}")
    return 1 if bad else 0


def describe_again() -> None:
    """Take summaries, requirements and sizes from the folders, for records of the version that is there."""
    records = read_records()
    for plugin in plugins():
        record = records.get(plugin.name)
        if record is not None and record["version"] == plugin.version:
            write_record({**record, **about(plugin)})


def report(record: dict[str, object]) -> int:
    """Print a record, and return the number of its failures."""
    tests, cells = record.get("tests"), record["cells"]
    assert isinstance(cells, list)
    print(f"{record['name']} {record.get('version', '')}", flush=True)
    bad = 0
    if isinstance(tests, dict):
        bad += tests["failed"]
        print(f"  tests: {tests['passed']} passed, {tests['failed']} failed, {tests['seconds']} s", flush=True)
    for cell in cells:
        bad += cell["result"] == "fails"
        note = f": {cell['note']}" if "note" in cell else ""
        print(f"  {cell['cell']}: {cell['result']} ({cell['seconds']} s){note}", flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(main())
