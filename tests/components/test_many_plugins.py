"""With many plugins installed, help imports none of them, and the work of listing them grows linearly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smollm3_finetune.cli import COMMANDS

HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "numpy", "datasets", "accelerate", "tokenizers", "gguf"}

HOOKS = """
from smollm3_finetune.api import Op, QuantizerSpec, hookimpl

@hookimpl
def smollm3_quantizers():
    return [QuantizerSpec(name="{name}", summary="one of many", factory="{name}_hooks:None", provides={{Op.FORWARD}},
                          api=2)]
"""

OBSERVED = """
import contextlib, cProfile, io, json, pstats, sys
from smollm3_finetune.main import main
profile = cProfile.Profile()
with contextlib.redirect_stdout(io.StringIO()) as out:
    profile.enable()
    with contextlib.suppress(SystemExit):
        main(sys.argv[1:])
    profile.disable()
calls = pstats.Stats(profile).total_calls
print(json.dumps({"modules": sorted(sys.modules), "calls": calls, "printed": out.getvalue()}))
"""


def installed(site: Path, count: int) -> Path:
    """A site directory with `count` plugin distributions, each with one quantizer."""
    for i in range(count):
        name = f"many{i:03d}"
        about = site / f"{name}-1.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[smollm3_finetune]\n{name} = {name}_hooks\n")
        (site / f"{name}_hooks.py").write_text(HOOKS.format(name=name))
    site.mkdir(exist_ok=True)
    return site


def observed(site: Path, *args: str) -> dict[str, object]:
    """The modules that `smollm3 ARGS` imports, its number of function calls, and its output."""
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", OBSERVED, *args], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("sites")
    found = {count: installed(root / str(count), count) for count in (0, 25, 50, 100)}
    for site in found.values():  # the first run compiles, and its calls must not be counted
        observed(site, "plugins", "list")
    return found


LISTING = ("train", "export", "plan")
"""Commands whose help lists installed components."""
SILENT = [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS if command not in LISTING)]


@pytest.mark.parametrize("args", SILENT, ids=" ".join)
def test_help_imports_no_module_more_with_fifty_plugins(args: list[str], sites: dict[int, Path]) -> None:
    assert observed(sites[50], *args)["modules"] == observed(sites[0], *args)["modules"]


def test_listing_imports_each_plugin_and_nothing_heavy(sites: dict[int, Path]) -> None:
    alone, many = (observed(sites[n], "plugins", "list", "--json") for n in (0, 50))
    more = set(many["modules"]) - set(alone["modules"])  # type: ignore[call-overload]
    assert more == {f"many{i:03d}_hooks" for i in range(50)}
    assert not set(many["modules"]) & HEAVY  # type: ignore[call-overload]
    listed = {p["name"]: p for p in json.loads(str(many["printed"]))}
    assert {f"many{i:03d}" for i in range(50)} <= set(listed)
    assert listed["many049"]["status"] == "active"


@pytest.mark.parametrize("args", [["plugins", "list"], ["plugins", "list", "--json"], ["compat", "--quant", "none"]])
def test_the_work_of_listing_grows_linearly_with_the_number_of_plugins(args: list[str], sites: dict[int, Path]) -> None:
    """The work is counted in function calls, which do not depend on the load of the machine."""
    calls = {count: int(str(observed(sites[count], *args)["calls"])) for count in sites}
    growth = (calls[50] - calls[25]) / 25, (calls[100] - calls[50]) / 50
    assert growth[0] > 0
    assert growth[1] <= 1.1 * growth[0], calls
