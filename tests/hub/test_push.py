"""`smollm3 push` against a local Hub, with the real client: exactly these files and bytes arrive."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from local_hub import TOKEN, LocalHub, Repository
from published import CARD, write_adapter, write_model, write_run

from smollm3_finetune.model_files.card_mark import PLACE, marked

Cli = Callable[..., Any]
ADAPTER = {
    "README.md", "adapter_config.json", "adapter_model.safetensors", "checksums.json", "smollm3.json",
    "tokenizer_config.json",
}  # fmt: skip


def on_disk(directory: Path, names: set[str]) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in names}


def test_exactly_the_adapter_of_a_run_arrives_in_one_commit(hub: LocalHub, cli: Cli) -> None:
    run = write_run(Path("run"))
    done = cli("push", run, "me/first", "--message", "The first one")
    assert done.code == 0, done.stderr
    repository = hub.repositories["me/first"]
    assert repository.files() == on_disk(run / "adapter", ADAPTER)
    assert (repository.private, repository.messages) == (False, ["The first one"])
    assert f"look at it     {hub.endpoint}/me/first\n" in done.stdout
    assert "6 files, 1.2 MB" in done.stdout
    assert "LFS" not in done.stderr, "progress bars are only for terminals"


def test_the_report_as_json_names_the_page_the_commit_and_each_file(hub: LocalHub, cli: Cli) -> None:
    report = cli("push", write_run(Path("run")), "first", "--private", "--revision", "v1", "--json").report()
    repository = hub.repositories["me/first"]
    assert report["repo"] == "me/first", "a name without owner is that of the token's user"
    assert report["url"] == f"{hub.endpoint}/me/first/tree/v1"
    assert report["commit"] == repository.sha("v1") and report["changed"]
    assert {f["name"]: f["bytes"] for f in report["files"]} == {n: len(b) for n, b in repository.files("v1").items()}
    assert repository.files() == {} and repository.private and repository.messages == ["Upload adapter"]
    assert {one["name"]: one["why"] for one in report["left_out"]}["checkpoints/"] == "optimizer states"


def test_a_dry_run_uses_no_network_and_no_token_and_says_why_files_are_left_out(
    hub: LocalHub, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("HF_TOKEN")
    run = write_run(Path("run"))
    (run / "adapter" / "rows.jsonl").write_text("{}")
    (run / "adapter" / "notes.txt").write_text("mine")
    (run / "calibration.json").write_text("{}")
    done = cli("push", run, "me/first", "--dry-run")
    assert done.code == 0, done.stderr
    assert hub.requests == []
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {words[-1] for words in lines if words[1:2] in (["B"], ["kB"], ["MB"])} == ADAPTER
    for name, why in {
        "rows.jsonl": "rows", "notes.txt": "not part of the adapter: not in checksums.json",
        "calibration.json": "training rows", "samples.jsonl": "sample answers", "cache.json": "paths of this machine",
        "checkpoints/": "optimizer states", "report.html": "sample answers and rows",
    }.items():  # fmt: skip
        assert [name, *why.split()] in lines
    assert done.stdout.endswith("nothing was published: --dry-run\n")
    assert "not published: without them the adapter cannot be used" in done.stdout, "of calibration.json"


def test_the_best_adapter_of_a_run_is_published_without_its_measurement(hub: LocalHub, cli: Cli) -> None:
    """measured.json has a sample answer, and a checksum, because a resumed run compares it."""
    from smollm3_finetune.runs.best import BestAdapters

    run = write_run(Path("run"), finished=False)
    best = BestAdapters(run / "checkpoints")
    measured = {"held_out_loss": 1.0, "sample": "a secret answer"}

    def write(path: Path) -> None:
        shutil.copytree(run / "adapter", path, dirs_exist_ok=True)

    best.save(3, write, measured)
    assert best.damage(3) is None
    done = cli("push", best.at(3), "me/best")
    assert done.code == 0, done.stderr
    there = hub.repositories["me/best"].files()
    assert there.keys() == ADAPTER and not any(b"secret" in content for content in there.values())
    assert "measured.json" not in there["checksums.json"].decode()


@pytest.mark.parametrize(
    ("kind", "named"), [("merged", "merged model"), ("gptq", "quantized checkpoint"), ("gguf", "model")]
)
def test_models_are_published_without_what_does_not_belong_to_them(
    kind: str, named: str, hub: LocalHub, cli: Cli
) -> None:
    more = {
        "merged": {"merge.json": json.dumps({"requantized": None}), "LICENSE": "free", "modeling_x.py": "evil()"},
        "gptq": {"config.json": json.dumps({"quantization_config": {"bits": 4}}), "quantize_config.json": "{}"},
        "gguf": {"model-Q4.gguf": "GGUF"},
    }[kind]
    strange = {
        "train.csv": "a",
        ".env": "KEY=1",
        "chat.jsonl": "{}",
        "notes.pdf": "x",
        "optimizer.pt": "x",
        "id_rsa": "x",
    }
    directory = write_model(Path("model"), files={**more, **strange}, kind=kind)
    (directory / "deep").mkdir()
    (directory / "deep" / "model.safetensors").write_text("x")
    if kind == "gguf":
        (directory / "config.json").unlink()
    (directory / ".partial-model.safetensors").write_bytes(b"x")
    report = cli("push", directory, "me/model", "--json").report()
    assert report["kind"] == named
    left = {
        *strange,
        "deep/model.safetensors",
        ".partial-model.safetensors",
        *(["modeling_x.py"] if kind == "merged" else []),
    }
    assert {one["name"] for one in report["left_out"]} == left
    there = {f.name for f in directory.iterdir() if f.is_file()} - left
    assert hub.repositories["me/model"].files() == on_disk(directory, there)


def test_code_that_a_config_names_belongs_to_a_model(cli: Cli) -> None:
    config = json.dumps({"auto_map": {"AutoModel": "modeling_x.X"}})
    directory = write_model(Path("model"), files={"config.json": config, "modeling_x.py": "class X: ..."})
    report = cli("push", directory, "me/model", "--dry-run", "--json").report()
    assert "modeling_x.py" in {f["name"] for f in report["files"]}


def test_names_in_other_alphabets_arrive(hub: LocalHub, cli: Cli) -> None:
    directory = write_adapter(Path("Anhänger ü"))
    (directory / "gewichte-äß-権重.safetensors").write_bytes((directory / "adapter_model.safetensors").read_bytes())
    (directory / "README.md").unlink()
    from smollm3_finetune.files.checksums import write_checksums

    write_checksums(directory)
    (directory / "README.md").write_text(CARD)
    assert cli("push", directory, "me/x").code == 0
    assert "gewichte-äß-権重.safetensors" in hub.repositories["me/x"].files()


# ----------------------------------------------------------------------------------------------- again and again


def test_an_interrupted_upload_continues_where_it_was(hub: LocalHub, cli: Cli) -> None:
    """Ctrl-C in the commit: the large files have arrived, and are not sent again."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    run = write_run(Path("run"))

    def interrupt() -> None:
        del hub.faults["POST /api/models/me/x/commit"]
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)

    hub.part_bytes = 500_000
    hub.faults["POST /api/models/me/x/commit"] = interrupt
    try:
        stopped = cli("push", run, "me/x")
    finally:
        signal.signal(signal.SIGINT, previous)
    assert stopped.code == 130
    assert "stopped by SIGINT while uploading to me/x\n  hint: run the same command again: files that" in stopped.stderr
    sent = len(hub.sent("PUT /blobs/"))
    assert sent == 3, "1.2 MB in parts of 0.5 MB"
    deadline = time.monotonic() + 5
    while len(hub.repositories["me/x"].messages) < 1 and time.monotonic() < deadline:
        time.sleep(0.05)  # this server carries the request out; the Hub may do so too
    assert cli("push", run, "me/x").code == 0
    assert len(hub.sent("PUT /blobs/")) == sent
    assert hub.repositories["me/x"].files() == on_disk(run / "adapter", ADAPTER)


def test_the_same_files_are_not_committed_again(hub: LocalHub, cli: Cli) -> None:
    run = write_run(Path("run"))
    first, again = (cli("push", run, "me/x", "--json").report() for _ in range(2))
    assert (first["changed"], again["changed"]) == (True, False)
    assert first["commit"] == again["commit"] and len(hub.repositories["me/x"].messages) == 1
    assert "unchanged: the repository has these files" in cli("push", run, "me/x").stdout


def test_a_card_that_was_edited_in_the_repository_is_kept_unless_it_is_to_be_replaced(hub: LocalHub, cli: Cli) -> None:
    generated = marked(f"{CARD}\n{PLACE}\n\nOld text.\n")
    run = write_run(Path("run"), card=marked(f"{CARD}\n{PLACE}\n\nNew text.\n"))
    mine = f"{CARD}\nWritten on the website.\n".encode()
    for there, kept in ((generated.encode(), False), (mine, True), (generated.encode() + b"More.\n", True)):
        hub.repositories["me/x"] = Repository(False, {"main": [{"README.md": there, "other.txt": b"stays"}]})
        done = cli("push", run, "me/x")
        assert done.code == 0, done.stderr
        files = hub.repositories["me/x"].files()
        assert (files["README.md"] == there) is kept
        assert ("to replace it: --replace-card" in done.stdout) is kept
        assert files["other.txt"] == b"stays"
    assert cli("push", run, "me/x", "--replace-card").code == 0
    assert b"New text" in hub.repositories["me/x"].files()["README.md"]


# ------------------------------------------------------------------------------------------------------ refused


def refused(done: Any, code: int, message: str, hint: str) -> None:
    assert done.code == code, done.stderr
    assert message in done.stderr and hint in done.stderr
    assert "Traceback" not in done.stderr and "unexpected" not in done.stderr and TOKEN not in done.stderr


FAULTS = [
    (
        "POST /api/repos/create",
        401,
        "Invalid credentials in Authorization header",
        "does not accept the token",
        "hf auth login",
    ),
    ("POST /api/repos/create", 403, "no", "the token may not write to me/x: no", "check the owner"),
    (
        "POST /api/models/me/x/commit",
        403,
        "Private repository storage limit reached",
        "is out of storage",
        "delete",
    ),
    ("POST /api/models/me/x/commit", 413, "", "a file is larger than", "--dry-run"),
    ("POST /api/models/me/x/commit", 409, "", "me/x was changed at the same time", "run the same command again"),
    (
        "POST /api/models/me/x/commit",
        500,
        "Internal Error",
        "has failed with status 500: Internal Error",
        "run the same",
    ),
    ("POST /api/models/me/x/commit", 429, "slow", "limits the number of requests: slow", "wait"),
    ("PUT /blobs", 403, "expired", "may not write to me/x", "hf auth login"),
]


@pytest.mark.parametrize(("request_", "status", "said", "message", "hint"), FAULTS)
def test_an_answer_of_the_hub_becomes_one_sentence(
    request_: str, status: int, said: str, message: str, hint: str, hub: LocalHub, cli: Cli
) -> None:
    hub.faults[request_] = (status, said)
    refused(cli("push", write_run(Path("run")), "me/x"), 1, message, hint)


def test_a_full_account_is_named(hub: LocalHub, cli: Cli) -> None:
    hub.limit = 1000
    refused(cli("push", write_run(Path("run")), "me/x"), 1, "is out of storage", "choose another owner")


def test_a_card_that_the_hub_refuses_is_the_cause(hub: LocalHub, cli: Cli) -> None:
    run = write_run(Path("run"), card=CARD.replace("---\n\n", "license: free\n---\n\n"))
    done = cli("push", run, "me/x")
    refused(done, 6, 'refuses the model card: "license" must be one of', "edit the metadata of README.md")


def test_what_the_hub_notes_about_a_card_is_shown(hub: LocalHub, cli: Cli) -> None:
    done = cli("push", write_run(Path("run")), "me/x")
    assert "note: Warnings while validating metadata in README.md: - no license\n" in done.stdout
    assert "Warning" not in done.stderr


def test_without_a_token_or_a_network_nothing_is_sent(hub: LocalHub, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    run = write_run(Path("run"))
    with monkeypatch.context() as inside:
        inside.delenv("HF_TOKEN")
        refused(cli("push", run, "me/x"), 1, f"publishing on {hub.endpoint} needs a token", "hf auth login")
    with monkeypatch.context() as inside:
        inside.setenv("HF_TOKEN", "hf_" + "x" * 34)
        refused(cli("push", run, "me/x"), 1, "does not accept the token", "hf auth login")
    with monkeypatch.context() as inside:
        inside.setattr(constants, "HF_HUB_OFFLINE", True)
        refused(cli("push", run, "me/x"), 2, "HF_HUB_OFFLINE is set", "--dry-run")
    with monkeypatch.context() as inside:
        inside.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        refused(cli("push", run, "me/x"), 1, "http://127.0.0.1:9 cannot be reached", "check the network")
    assert hub.repositories == {}


def test_a_public_repository_does_not_become_a_private_one(hub: LocalHub, cli: Cli) -> None:
    hub.repositories["me/x"] = Repository(private=False)
    refused(cli("push", write_run(Path("run")), "me/x", "--private"), 2, "me/x exists and is public", "--private")
    assert hub.repositories["me/x"].files() == {}


@pytest.mark.parametrize(
    "repo", ["a/b/c", "me/x--y", "me/.x", "https://huggingface.co/me/x", "me/x.git", "", "me/ü", "x" * 97]
)
def test_an_invalid_name_of_a_repository_is_refused(repo: str, cli: Cli) -> None:
    refused(cli("push", write_run(Path("run")), repo, "--dry-run"), 2, "is not the name of a repository", "OWNER/NAME")


def test_runs_and_directories_that_cannot_be_published_are_refused(cli: Cli) -> None:
    unfinished = write_run(Path("unfinished"), finished=False)
    refused(cli("push", unfinished, "me/x"), 6, "has not finished", "smollm3 train --resume unfinished")
    (unfinished / "error.json").write_text(json.dumps({"message": "out of memory"}))
    refused(cli("push", unfinished, "me/x"), 6, "has failed: out of memory", "smollm3 train --resume unfinished")
    refused(cli("push", "nowhere", "me/x"), 6, "'nowhere' does not exist", "smollm3 push runs/NAME")
    Path("mine").mkdir()
    Path("mine/holiday.jpg").write_bytes(b"x")
    refused(cli("push", "mine", "me/x"), 6, "is not a run, a saved adapter or a model", "hf upload me/x mine")
    Path("mine/config.json").write_text("{}")
    refused(cli("push", "mine", "me/x"), 6, "is a model that smollm3 did not write", "hf upload me/x mine")
    Path("mine/adapter_config.json").write_text("{}")
    refused(cli("push", "mine", "me/x"), 6, "is an adapter of another tool", "hf upload me/x mine")
    checkpoint = write_adapter(Path("run/checkpoints/checkpoint-3"))
    (checkpoint / "trainer_state.json").write_text("{}")
    refused(cli("push", checkpoint, "me/x"), 6, "is a checkpoint of a run", "smollm3 train --resume")
    bare = write_adapter(Path("bare"))
    (bare / "README.md").unlink()
    refused(cli("push", bare, "me/x"), 6, "has no model card", "write bare/README.md")
    (bare / "README.md").write_text("---\nlicense: Apache License\n---\n")
    refused(cli("push", bare, "me/x"), 6, "the Hub would refuse bare/README.md: license: ", "bare/README.md")
    (bare / "adapter_model.safetensors").write_bytes(b"changed")
    refused(
        cli("push", bare, "me/x"), 6, "adapter_model.safetensors differs from its checksum", "rm bare/checksums.json"
    )


def test_a_run_that_is_being_trained_is_refused(cli: Cli) -> None:
    from smollm3_finetune.runs.rundir import RunDir

    run = write_run(Path("run"))
    with RunDir(run).held():
        for target in (run, run / "adapter"):
            refused(cli("push", target, "me/x"), 2, "is being trained by another process", "kill")
    lock = run / ".smollm3-lock"
    lock.write_text("of a killed process")
    assert cli("push", run, "me/x", "--dry-run").code == 0
    assert lock.read_text() == "of a killed process", "push does not take the lock"


def test_links_out_of_the_directory_are_refused(cli: Cli, tmp_path: Path) -> None:
    run = write_run(Path("run"))
    weights = run / "adapter" / "adapter_model.safetensors"
    weights.rename(tmp_path / "private.safetensors")
    weights.symlink_to(tmp_path / "private.safetensors")
    refused(cli("push", run, "me/x", "--dry-run"), 6, "is a link to a file outside of run/adapter", "a copy")
    weights.unlink()
    (run / "adapter" / "inner.bin").write_bytes((tmp_path / "private.safetensors").read_bytes())
    weights.symlink_to("inner.bin")
    assert cli("push", run, "me/x", "--dry-run").code == 0, "a link inside of the directory"
    elsewhere = write_adapter(tmp_path / "elsewhere")
    other = write_run(Path("other"))
    (other / "adapter").rename(other / "former")
    (other / "adapter").symlink_to(elsewhere)
    refused(
        cli("push", other, "me/x", "--dry-run"),
        6,
        "other/adapter is a link to a directory outside of the run",
        f"smollm3 push {elsewhere}",
    )
