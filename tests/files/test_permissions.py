"""Written files have the permissions that the user's umask gives, whoever created them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from smollm3_finetune import load_model
from smollm3_finetune.cache.store import Cache
from smollm3_finetune.files.permissions import apply_umask
from smollm3_finetune.files.writing import whole_directory

ROUNDING = str(Path(__file__).parents[1] / "out_of_tree" / "rounding_quantizer.py")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")


@pytest.fixture(params=[0o022, 0o077, 0o027])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def check_modes(directory: Path, umask: int) -> int:
    """Assert the mode of everything in a directory, and return the number of files."""
    found = [directory, *directory.rglob("*")]
    assert found[1:], "an empty directory shows nothing"
    for path in found:
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    return sum(path.is_file() for path in found)


def fill(directory: Path) -> None:
    """A file of safetensors and a closed directory, as libraries write them."""
    save_file({"a": torch.zeros(1)}, str(directory / "a.safetensors"))
    os.chmod(directory / "a.safetensors", 0o600)
    (directory / "part").mkdir(0o700)
    (directory / "part" / "b.json").write_text("{}")


def test_directories_that_are_published_follow_the_umask(umask: int, tmp_path: Path) -> None:
    with whole_directory(tmp_path / "checkpoint") as partial:
        fill(partial)
    assert check_modes(tmp_path / "checkpoint", umask) == 2
    assert check_modes(Cache(tmp_path / "cache").get_or_build("kind", {"a": 1}, fill), umask) == 2


def test_permissions_are_never_removed_and_links_not_followed(tmp_path: Path) -> None:
    outside, inside = tmp_path / "secret", tmp_path / "model"
    outside.write_text("secret")
    outside.chmod(0o600)
    inside.mkdir()
    (inside / "link").symlink_to(outside)
    (inside / "gone").symlink_to(tmp_path / "nothing")
    (inside / "tool.py").write_text("")
    (inside / "tool.py").chmod(0o777)
    apply_umask(inside)
    assert stat.S_IMODE(outside.stat().st_mode) == 0o600
    assert stat.S_IMODE((inside / "tool.py").stat().st_mode) == 0o777
    assert sorted(p.name for p in inside.iterdir()) == ["gone", "link", "tool.py"]


def test_runs_adapters_merges_and_checkpoints_follow_the_umask(
    umask: int, cli: Callable[..., Any], rows_file: Path
) -> None:
    common = ("--max-steps", "2", "--set", "train.save_every=1", "--set", "train.sample_tokens=4", "--lr", "1e-3")
    done = cli("train", "--data", rows_file, "--adapter", "full", *common, "--output", "run")
    assert done.code == 0, done.stderr
    merged = cli("merge", "run", "--requantize", "rounding", "--keep-dense", "run/dense", "-p", ROUNDING)
    assert merged.code == 0, merged.stderr
    assert cli("quantize", "run/dense", "--quant", "rounding", "--output", "run/again", "-p", ROUNDING).code == 0
    load_model(adapter="full", purpose="train").save(Path("run/from python"))
    assert check_modes(Path("run"), umask) > 30
    written = {p.parent.name for p in Path("run").rglob("*.safetensors")}
    assert written == {"adapter", "checkpoint-1", "checkpoint-2", "merged-rounding", "dense", "again", "from python"}
    check_modes(Path(os.environ["SMOLLM3_CACHE"]), umask)
