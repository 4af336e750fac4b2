"""What `smollm3 push` publishes of an export: the files that `export.json` lists, all of them or nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_hub import LocalHub
from safetensors.numpy import save_file

Cli = Callable[..., Any]
CARD = "---\nlibrary_name: thing\ntags:\n- smollm3-finetune\n- thing\n---\n\n# An export\n"
FORMATS = {
    "one file and a recipe": {"model-Q4_0.gguf": "GGUF" * 9, "Recipe": "FROM ./model-Q4_0.gguf\n"},
    "a graph and its data": {
        "model.onnx": "graph",
        "model.onnx.data": "weights",
        "config.json": "{}",
        "tokenizer.json": "{}",
    },
    "a folder": {"parts/a.bin": "weights", "tokenizer.json": "{}"},
    "an adapter": {"adapter_config.json": json.dumps({"base_model_name_or_path": "BASE"}), "adapter.bin": "weights"},
}


def write_export(directory: Path, files: dict[str, str], **about: Any) -> Path:
    """The directory of an export, as `smollm3 export` writes it."""
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    sizes = {name: (directory / name).stat().st_size for name in sorted(files)}
    (directory / "export.json").write_text(
        json.dumps({"exporter": "thing", "adapter": None, "merge": None, **about, "files": sizes})
    )
    (directory / "README.md").write_text(CARD)
    return directory


def refused(done: Any, message: str, hint: str = "export again: smollm3 export RUN --to thing --output out-2") -> None:
    assert done.code == 6, done.stderr
    assert message in done.stderr and hint in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", FORMATS)
def test_exactly_the_files_of_an_export_arrive(kind: str, hub: LocalHub, cli: Cli, tmp_path: Path) -> None:
    files = {name: text.replace("BASE", str(tmp_path / "models" / "base")) for name, text in FORMATS[kind].items()}
    adapter = kind == "an adapter"
    out = write_export(Path("run/exported-thing"), files, adapter="lora" if adapter else None)
    for stranger in ("rows.jsonl", "notes.txt", "model.safetensors"):
        (out / stranger).write_text("mine")
    report = cli("push", out, "me/x", "--json").report()
    assert report["kind"] == ("exported adapter" if adapter else "exported model")
    there = hub.repositories["me/x"].files()
    assert there.keys() == {*files, "export.json", "README.md"}
    assert {one["name"] for one in report["left_out"]} == {"rows.jsonl", "notes.txt", "model.safetensors"}
    if adapter:
        assert json.loads(there["adapter_config.json"])["base_model_name_or_path"] == "base"
    else:
        assert all(there[name].decode() == text for name, text in files.items())


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("model.onnx.data", None, "is not complete: model.onnx.data is missing"),
        ("model.onnx.data", "weigh", "is not complete: model.onnx.data has 5 bytes instead of 7"),
        ("config.json", None, "is not complete: config.json is missing"),
        ("tokenizer.json", '{"cut": ', "is not complete: tokenizer.json has 8 bytes instead of 2"),
        ("export.json", "{}", "export.json does not list the files of the export"),
        ("export.json", '{"files": {"../../secret.txt": 4}}', "export.json does not list the files of the export"),
        ("export.json", "{", "export.json cannot be read as JSON"),
    ],
)
def test_a_partial_export_is_refused(name: str, change: str | None, said: str, hub: LocalHub, cli: Cli) -> None:
    out = write_export(Path("out"), FORMATS["a graph and its data"])
    if change is None:
        (out / name).unlink()
    else:
        (out / name).write_text(change)
    hint = f"smollm3 export RUN --to {'NAME --output DIR' if 'does not list' in said else 'thing --output out-2'}"
    refused(cli("push", out, "me/x"), said, "" if "cannot be read" in said else hint)
    assert hub.repositories == {}


def test_a_text_that_was_edited_is_published_with_a_note(hub: LocalHub, cli: Cli) -> None:
    out = write_export(Path("out"), FORMATS["one file and a recipe"])
    (out / "Recipe").write_text("FROM ./model-Q4_0.gguf\nPARAMETER temperature 0\n")
    done = cli("push", out, "me/x")
    assert done.code == 0 and "note: Recipe was edited after the export, which verified it" in done.stdout
    assert b"temperature" in hub.repositories["me/x"].files()["Recipe"]
    (out / "Recipe").write_text(f"FROM {Path.home()}/model.gguf\n")
    refused(cli("push", out, "me/x"), "Recipe, line 1, contains a path of this machine", "replace the path")


def test_a_listed_file_that_is_never_published_is_left_out(cli: Cli) -> None:
    out = write_export(Path("out"), {"model.onnx": "graph", "rows.jsonl": "{}", ".env": "KEY=1"})
    report = cli("push", out, "me/x", "--dry-run", "--json").report()
    assert {one["name"] for one in report["left_out"]} == {"rows.jsonl", ".env"}


def test_what_export_writes_is_published(hub: LocalHub, cli: Cli, tmp_path: Path) -> None:
    from smollm3_finetune.testing.small import write_small_model

    write_small_model(tmp_path / "small", biases=False)
    assert cli("export", tmp_path / "small", "--to", "safetensors", "--output", "out").code == 0
    report = cli("push", "out", "me/x", "--json").report()
    there = hub.repositories["me/x"].files()
    assert report["kind"] == "exported model" and there.keys() == {f.name for f in Path("out").iterdir()}
    save_file({"w": np.zeros(3, dtype=np.float32)}, "out/model.safetensors")
    refused(cli("push", "out", "me/x"), "model.safetensors has ", "--to safetensors --output out-2")
