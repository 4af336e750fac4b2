"""The common parts of model cards: license of the base, metadata, values without local paths."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from smollm3_finetune.model_files.model_card import Metadata, beginning, is_path, license_of, with_options

CARDS = {
    "a license": ("---\nlicense: apache-2.0\nlanguage: en\n---\n# X\n", {"license": "apache-2.0"}),
    "its own license": (
        "---\r\nlicense: other\r\nlicense_name: acme\r\nlicense_link: https://acme.org/l\r\n---\r\n",
        {"license": "other", "license_name": "acme", "license_link": "https://acme.org/l"},
    ),
    "a license file": (
        "---\nlicense: other\nlicense_name: acme\nlicense_link: LICENSE\n---\n",
        {"license": "other", "license_name": "acme"},
    ),
    "no metadata": ("# X\n\nlicense: mit\n", {}),
    "several licenses": ("---\nlicense:\n- mit\n- gpl\n---\n", {}),
    "not YAML": ("---\nlicense: [mit\n---\n", {}),
    "a list": ("---\n- license\n---\n", {}),
}


@pytest.mark.parametrize("case", CARDS)
def test_the_license_of_a_base_is_read_from_its_card(case: str, tmp_path: Path) -> None:
    text, found = CARDS[case]
    (tmp_path / "README.md").write_bytes(text.encode())
    assert license_of(tmp_path) == found


def test_a_base_without_a_readable_card_has_no_license(tmp_path: Path) -> None:
    assert license_of(tmp_path) == {}
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert license_of(tmp_path) == {}


def test_metadata_is_what_the_hub_reads() -> None:
    about = Metadata(base="acme/base", tag="dora", relation="adapter", library="peft", license={"license": "no: thing"},
                     datasets=("a/b", "a/b"), tags=("dora", "yes"))  # fmt: skip
    data = ModelCard("\n".join(beginning(about, "T", "S."))).data
    assert (data.license, data.datasets, data.base_model_relation) == ("no: thing", ["a/b"], "adapter")
    assert data.tags == ["smollm3-finetune", "dora", "yes"]
    local = ModelCard("\n".join(beginning(Metadata(base="./base", tag="dora", relation="adapter"), "T", "S."))).data
    assert local.base_model is None and local.get("base_model_relation") is None


def test_options_show_no_local_path() -> None:
    options = {"file": "/home/me/start.bin", "more": ["~/a/b", "x/y"], "drive": "C:\\me\\c", "rank": 8}
    assert with_options("acme", options) == "`acme` (file=start.bin, more=b,x/y, drive=c, rank=8)"


@pytest.mark.parametrize(("ref", "path"), [("/x", True), ("~/x", True), ("./x", True), ("a/b", False), ("tiny", False)])
def test_a_reference_is_a_path_or_not(ref: str, path: bool) -> None:
    assert is_path(ref) == path
