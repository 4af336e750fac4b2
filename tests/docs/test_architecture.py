"""docs/architecture.md and its picture show the layers that tests/startup/test_layers.py enforces."""

from __future__ import annotations

import importlib.util
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "noxfile.py").exists())
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("architecture_picture", ROOT / "scripts/architecture_picture.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def boxes(picture: str) -> list[tuple[str, float]]:
    """(name, y) of each box, from top to bottom."""
    white = [t for t in ET.fromstring(picture).iter(f"{SVG}text") if t.get("text-anchor") == "middle"]
    return [(str(t.text), float(str(t.get("y")))) for t in white]


@pytest.mark.parametrize("annotation", ["", ": tuple[tuple[str, ...], ...]"])
def test_layers_are_read_without_importing_the_test(script: ModuleType, annotation: str) -> None:
    source = f"import no_such_module\nLAYERS{annotation} = (('low',), ('left', 'right'))\n"
    assert script.read_layers(source) == (("low",), ("left", "right"))
    with pytest.raises(ValueError, match="LAYERS"):
        script.read_layers("x = 1")


def test_picture_shows_the_top_layer_first_and_one_layer_in_one_row(script: ModuleType) -> None:
    drawn = boxes(script.picture((("low",), ("left", "right"), ("top",)), {"low": "1 < 2"}))
    assert [name for name, _ in drawn] == ["top", "left", "right", "low"]
    heights = [y for _, y in drawn]
    assert heights[0] < heights[1] == heights[2] < heights[3]


def test_picture_shows_the_purpose_of_a_package(script: ModuleType) -> None:
    page = "| package | purpose | used by |\n|---|---|---|\n| `low` | a < `b` | all |\n"
    texts = [t.text for t in ET.fromstring(script.picture((("low",),), script.read_purposes(page))).iter(f"{SVG}text")]
    assert "a < b" in texts


@pytest.fixture
def layers(script: ModuleType) -> tuple[tuple[str, ...], ...]:
    found: tuple[tuple[str, ...], ...] = script.read_layers(script.LAYERS_FILE.read_text(encoding="utf-8"))
    return found


def test_table_lists_every_layer_in_order(script: ModuleType, layers: tuple[tuple[str, ...], ...]) -> None:
    table = script.PAGE.read_text(encoding="utf-8").partition("\n## Layers\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [name for row in layers for name in row]


def test_picture_is_up_to_date(script: ModuleType, layers: tuple[tuple[str, ...], ...]) -> None:
    expected = script.picture(layers, script.read_purposes(script.PAGE.read_text(encoding="utf-8")))
    assert script.PICTURE.read_text(encoding="utf-8") == expected, "run: python scripts/architecture_picture.py"
