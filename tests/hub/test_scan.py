"""What must not be published is found in the files: tokens, keys, and paths of this machine, by file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from published import CARD, write_adapter, write_model, write_run
from safetensors.numpy import save_file

from smollm3_finetune.files.checksums import write_checksums
from smollm3_finetune.hub.scan import findings

Cli = Callable[..., Any]
TOKEN = "hf_" + "AbCdEfGhIj" * 3 + "KlMn"
FOUND = {
    "a token": (f"model = load(token='{TOKEN}')", "a Hugging Face token"),
    "a token in JSON": (json.dumps({"auth": TOKEN}), "a Hugging Face token"),
    "a key of GitHub": ("ghp_" + "a1B2" * 9, "a GitHub token"),
    "a key": ("sk-" + "a1B2" * 12, "an API key"),
    "AWS": ("key AKIAIOSFODNN7EXAMPLE", "an AWS access key"),
    "a private key": ("-----BEGIN OPENSSH PRIVATE KEY-----", "a private key"),
    "home of another system": ("data: /Users/jdoe/rows.jsonl", "/Users/jdoe/rows.jsonl"),
    "home": ("trained on /home/jdoe/data", "/home/jdoe/data"),
    "home alone": ("(/home/jdoe)", "/home/jdoe"),
    "a URL of a file": ("file:///home/jdoe/x", "/home/jdoe/x"),
    "Windows": (r"C:\Users\jdoe\rows.jsonl", r"C:\Users\jdoe"),
    "Windows in JSON": (json.dumps({"a": "C:\\Users\\jdoe\\rows"}), r"C:\Users\jdoe"),
}
NOT_FOUND = [
    "https://huggingface.co/home/jdoe/x and http://localhost/Users/a/b",
    "#!/usr/bin/env python", "either/or", "/think", "</think>/no_think", "~/.cache/huggingface",
    "a/home/b/c", "sk-learn-and-other-things-with-long-names",
    "hf_token", "hf_hub_download", "/data-that-does-not-exist-here/x/y", "1/2/3", "regex: /^a+$/", "tasks/home/me",
]  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_a_secret_or_a_path_is_found(case: str) -> None:
    text, what = FOUND[case]
    (found,) = findings(f"first\n{text}\n", is_json="JSON" in case)
    assert (found.line, found.what) == (2, what)


@pytest.mark.parametrize("text", NOT_FOUND)
def test_ordinary_text_is_not_taken_for_one(text: str) -> None:
    assert list(findings(text, is_json=True)) == []


def test_a_path_that_exists_on_this_machine_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = str(tmp_path / "data")
    (found,) = findings(f"see {there}.")
    assert found.is_path
    monkeypatch.setenv("HOME", str(tmp_path / "jürgen müller"))
    (found,) = findings(json.dumps({"path": f"{tmp_path}/jürgen müller/x"}), is_json=True)
    assert found.is_path
    assert list(findings("the vocabulary has /home/ubuntu/x and /tmp/x", vocabulary=True)) == []
    assert len(list(findings(f"{tmp_path}/jürgen müller/x", vocabulary=True))) == 1


def test_secrets_of_the_environment_are_found_and_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    saved = tmp_path / "token"
    saved.write_text("a-saved-token-of-no-known-form\n")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(saved))
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    monkeypatch.setenv("SHORT_KEY", "yes")
    found = list(findings("0123456789abcdef0123456789abcdef01234567\nyes\na-saved-token-of-no-known-form"))
    assert [(f.line, f.what) for f in found] == [
        (1, "the value of WANDB_API_KEY"),
        (3, "the value of the saved Hub token"),
    ]


def refused(done: Any, *texts: str) -> None:
    assert done.code == 6, done.stdout + done.stderr
    for text in texts:
        assert text in done.stderr
    assert TOKEN not in done.stderr + done.stdout and "Traceback" not in done.stderr


def test_a_file_with_a_secret_or_a_path_is_refused_by_file_and_line(cli: Cli, tmp_path: Path) -> None:
    run = write_run(Path("run"))
    config = run / "adapter" / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": "x", "token": TOKEN}, indent=2))
    write_checksums(run / "adapter", without=("README.md",))
    push = ("push", run, "me/x", "--dry-run")
    refused(cli(*push), f"{config}, line 3, contains a Hugging Face token", f"hint: remove it from {config}")
    config.write_text("{}")
    write_checksums(run / "adapter", without=("README.md",))
    card = run / "adapter" / "README.md"
    card.write_text(f"{CARD}\nTrained on /home/jdoe/secret/rows.jsonl\n")
    refused(cli(*push), f"{card}, line 9, contains a path of this machine", "/home/jdoe", f"with a name in {card}")
    card.write_text(f"{CARD}\nTrained in {tmp_path}.\n")
    refused(cli(*push), f"{card}, line 9, contains a path of this machine")
    card.write_bytes(b"---\ntags: [\xff]\n---\n")
    refused(cli(*push), f"{card} is not UTF-8 text")


def test_the_metadata_of_weights_are_searched(cli: Cli) -> None:
    import numpy as np

    directory = write_adapter(Path("adapter"))
    weights = directory / "adapter_model.safetensors"
    save_file({"shift": np.zeros(3)}, str(weights), metadata={"made": f"with {TOKEN}"})
    write_checksums(directory, without=("README.md",))
    refused(cli("push", directory, "me/x", "--dry-run"), f"{weights}", "contains a Hugging Face token")
    weights.write_bytes(b"\x10\0\0\0\0\0\0\0not JSON at all!")
    write_checksums(directory, without=("README.md",))
    refused(cli("push", directory, "me/x", "--dry-run"), f"{weights} is damaged")
    model = write_model(Path("model"), files={"model.gguf": f"GGUF general.source {Path.home()}/models/x"})
    refused(cli("push", model, "me/x", "--dry-run"), "model.gguf", "contains a path of this machine")


def test_the_local_path_of_the_base_is_replaced_by_its_name(cli: Cli, tmp_path: Path) -> None:
    """It is in `smollm3.json` and in PEFT's config; nobody else can use it."""
    from smollm3_finetune.hub.plan import plan_push
    from smollm3_finetune.model.saved_adapter import SavedAdapter

    base = tmp_path / "jürgen" / "my-base"
    base.mkdir(parents=True)
    run = write_run(Path("run"), model=str(base))
    report = cli("push", run, "me/x", "--dry-run", "--json").report()
    assert report["notes"] == [
        f"{name}: the base is named without its local path" for name in ("adapter_config.json", "smollm3.json")
    ]
    received = Path("received")
    received.mkdir()
    for file in plan_push(run, "me/x").files:
        (received / file.name).write_bytes(file.path.read_bytes() if file.content is None else file.content)
        assert (received / file.name).stat().st_size == file.size
        assert str(base).encode() not in (received / file.name).read_bytes()
        assert b"rgen" not in (received / file.name).read_bytes()
    saved = SavedAdapter.read(received)  # compares the checksums
    assert saved.model == "my-base"
    assert json.loads((received / "adapter_config.json").read_text())["base_model_name_or_path"] == "my-base"
    assert json.loads((run / "adapter" / "smollm3.json").read_text())["model"] == str(base), "the run is unchanged"


def test_a_file_that_checksums_name_is_left_out_if_it_is_never_published(cli: Cli) -> None:
    """Of a received run, whose list of files may name anything."""
    from smollm3_finetune.files.checksums import CHECKSUMS
    from smollm3_finetune.hub.plan import plan_push

    directory = write_adapter(Path("adapter"))
    for name in ("rows.jsonl", ".env", "optimizer.pt"):
        (directory / name).write_text("private")
    write_checksums(directory, without=("README.md",))
    plan = plan_push(directory, "me/x")
    assert {one.name for one in plan.left_out} == {"rows.jsonl", ".env", "optimizer.pt"}
    (sums,) = (file for file in plan.files if file.name == CHECKSUMS)
    assert set(json.loads(sums.content or b"")["sha256"]) == {f.name for f in plan.files} - {"README.md", CHECKSUMS}
