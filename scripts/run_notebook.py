"""Runs the notebook in examples/ in a Jupyter kernel of this environment, in a folder of its own.

python scripts/run_notebook.py            fails if a cell fails
python scripts/run_notebook.py --write    and stores the outputs; what libraries write to stderr is left out
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent.parent / "examples" / "first_run.ipynb"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="store the outputs in the notebook")
    write = parser.parse_args().write
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as work:
        NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": work}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of this run
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            print("".join(o.get("text", "") or str(o.get("data", {}).get("text/plain", "")) for o in cell.outputs))
    notebook.metadata["language_info"] = {"name": "python"}
    if write:
        nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
