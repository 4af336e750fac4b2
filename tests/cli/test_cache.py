"""`smollm3 cache list|clean`: entries used by runs are kept, and nothing outside the cache is changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.cache.entries import entries, leftovers, take_away
from smollm3_finetune.cache.store import Cache, sums_file
from smollm3_finetune.cache.use import USES, record_uses, runs_file, uses_of

Cli = Callable[..., Any]
OUT_OF_TREE = Path(__file__).parents[1] / "out_of_tree"
KEY = "0123456789abcdef" * 2


@pytest.fixture
def cache() -> Cache:
    """The cache of this test's commands."""
    return Cache(Path(os.environ["SMOLLM3_CACHE"]))


def make(cache: Cache, kind: str, key: str, size: int = 1000, days: float = 0) -> Path:
    entry = cache.get_or_build(kind, {"file": key, "bits": 4}, lambda out: put(out / "weights", size))
    stamp = time.time() - days * 86400
    os.utime(entry.with_name(f"{entry.name}.json"), (stamp, stamp))
    cache.release()  # as if this process had ended
    return entry


def put(file: Path, size: int) -> None:
    file.write_bytes(b"x" * size)


def make_run(path: Path, cache: Cache) -> Path:
    """A run that used every entry requested from `cache`."""
    path.mkdir(parents=True)
    (path / "run.yaml").write_text("model: tiny\n")
    record_uses(path, cache)
    return path


def listed(cli: Cli, *arguments: str) -> dict[str, Any]:
    result = cli("cache", "list", "--json", *arguments)
    assert result.code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


# --------------------------------------------------------------------------------------------------- listing


def test_entries_are_listed_with_their_details(cli: Cli, cache: Cache) -> None:
    small, large = make(cache, "gguf", "a", 500, days=3), make(cache, "tokens", "b", 70_000)
    found = listed(cli)["entries"]
    assert [(e["kind"], e["key"], e["bytes"]) for e in found] == [
        ("tokens", large.name, 70_000),
        ("gguf", small.name, 500),
    ]
    assert found[1]["days_since_use"] == pytest.approx(3, abs=0.01)
    assert found[1]["made_from"] == {"file": "a", "bits": 4}
    assert [e["kind"] for e in listed(cli, "--kind", "gguf")["entries"]] == ["gguf"]
    shown = cli("cache", "list").stdout
    for text in ("70.0 kB", "500 B", "3 d ago", "bits=4, file=a", f"gguf/{small.name[:8]}", "2 entries, 70.5 kB"):
        assert text in shown, shown


def test_using_an_entry_resets_its_age(cache: Cache) -> None:
    make(cache, "gguf", "a", days=30)
    assert entries(cache.root)[0].days > 29
    Cache(cache.root).get_or_build("gguf", {"file": "a", "bits": 4}, lambda out: pytest.fail("built again"))
    assert entries(cache.root)[0].days < 0.01


def test_an_empty_or_missing_cache_is_not_an_error(cli: Cli, cache: Cache) -> None:
    assert not cache.root.exists()
    assert listed(cli)["entries"] == []
    assert "deleted 0" in cli("cache", "clean").stdout
    assert not cache.root.exists()


@pytest.mark.parametrize("command", ["list", "clean"])
def test_a_wrong_kind_or_folder_is_an_error_with_a_hint(cli: Cli, cache: Cache, command: str) -> None:
    make(cache, "tokens", "a")
    result = cli("cache", command, "--kind", "token")
    assert (result.code, "did you mean 'tokens'?" in result.stderr) == (2, True)
    result = cli("cache", command, "--runs", "nowhere")
    assert (result.code, "--runs nowhere is not a directory" in result.stderr) == (2, True)


# -------------------------------------------------------------------------------------------------- cleaning


def test_everything_is_deleted_and_the_next_build_works(cli: Cli, cache: Cache) -> None:
    entry = make(cache, "gguf", "a")
    result = cli("cache", "clean", "--yes")
    assert (result.code, "deleted 1, 1.0 kB" in result.stdout) == (0, True), result.stdout
    assert not entry.exists()
    assert not entry.with_name(f"{entry.name}.json").exists()
    assert make(cache, "gguf", "a") == entry
    assert (entry / "weights").exists()


def test_only_the_selected_entries_are_deleted(cli: Cli, cache: Cache) -> None:
    old, new, other = make(cache, "gguf", "a", days=40), make(cache, "gguf", "b"), make(cache, "tokens", "c", days=40)
    result = cli("cache", "clean", "--kind", "gguf", "--older-than", "30", "--yes")
    assert result.code == 0, result.stderr
    assert [p.exists() for p in (old, new, other)] == [False, True, True]


def test_a_dry_run_lists_entries_without_deleting_them(cli: Cli, cache: Cache) -> None:
    entry = make(cache, "gguf", "a")
    result = cli("cache", "clean", "--dry-run")
    assert f"gguf/{entry.name[:8]}" in result.stdout
    assert "would delete 1" in result.stdout
    about = json.loads(cli("cache", "clean", "--dry-run", "--json").stdout)
    assert (about["deleted"], about["bytes"]) == ([str(entry)], 1000)
    assert entry.exists()


def test_without_a_terminal_nothing_is_deleted(run_cli: Cli, cache: Cache) -> None:
    entry = make(cache, "gguf", "a")
    result = run_cli("cache", "clean", input="y\n")
    assert (result.code, "error: nothing was deleted" in result.stderr, "hint: pass --yes" in result.stderr) == (
        2,
        True,
        True,
    )
    assert entry.exists()


@pytest.mark.parametrize(("answer", "there"), [("n", True), ("y", False)])
def test_on_a_terminal_it_asks_for_confirmation(cache: Cache, answer: str, there: bool) -> None:
    import pty

    entry = make(cache, "gguf", "a")
    master, slave = pty.openpty()
    child = subprocess.Popen([sys.executable, "-m", "smollm3_finetune.main", "cache", "clean"],
                             stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    os.close(slave)
    os.write(master, f"{answer}\n".encode())
    _, err = child.communicate(timeout=120)
    os.close(master)
    assert b"Delete 1 directory (" in err
    assert child.returncode == (130 if there else 0)
    assert entry.exists() == there


# ------------------------------------------------------------------------------------------------------ runs


def test_entries_used_by_a_run_are_kept_wherever_the_run_is(cli: Cli, cache: Cache, tmp_path: Path) -> None:
    mine = make(cache, "gguf", "a")
    run = make_run(tmp_path / "far" / "away", cache)
    other = make(Cache(cache.root), "gguf", "b")
    assert {e["key"]: e["runs"] for e in listed(cli)["entries"]} == {mine.name: [str(run)], other.name: []}
    result = cli("cache", "clean", "--yes")
    assert f"kept: gguf/{mine.name[:8]}" in result.stdout
    assert str(run) in result.stdout
    assert (mine.exists(), other.exists()) == (True, False)
    assert cli("cache", "clean", "--yes", "--force").code == 0
    assert not mine.exists()
    assert not runs_file(mine).exists()


def test_a_run_that_was_deleted_keeps_nothing(cli: Cli, cache: Cache, tmp_path: Path) -> None:
    mine = make(cache, "gguf", "a")
    shutil.rmtree(make_run(tmp_path / "run", cache))
    cli("cache", "clean", "--yes")
    assert not mine.exists()


def test_a_moved_run_is_found_under_runs_and_if_its_path_is_given(
    cli: Cli, cache: Cache, tmp_path: Path, isolated: Path
) -> None:
    mine = make(cache, "gguf", "a")
    make_run(tmp_path / "run", cache).rename(tmp_path / "moved")
    assert listed(cli)["entries"][0]["runs"] == []
    for folder in (tmp_path / "moved", tmp_path):
        cli("cache", "clean", "--yes", "--runs", str(folder))
        assert mine.exists()
    (isolated / "runs").mkdir()
    (tmp_path / "moved").rename(isolated / "runs" / "moved")
    cli("cache", "clean", "--yes")
    assert mine.exists()
    shutil.rmtree(isolated / "runs" / "moved")
    cli("cache", "clean", "--yes")
    assert not mine.exists()


def test_a_run_does_not_keep_tokenized_rows_and_lists_each_entry_once(cache: Cache, tmp_path: Path) -> None:
    make(cache, "tokens", "a")
    assert uses_of(make_run(tmp_path / "one", cache)) == []
    entry = make(cache, "gguf", "b")
    run = make_run(tmp_path / "two", cache)
    record_uses(run, cache)  # as when it is resumed
    assert uses_of(run) == [f"gguf/{entry.name}"]
    assert runs_file(entry).read_text().splitlines() == [str(run)]


@pytest.mark.parametrize("text", ["", "[]", '{"entries": 3}', "{", '{"root": "x"}'])
def test_a_damaged_reference_is_ignored(cache: Cache, tmp_path: Path, text: str) -> None:
    make(cache, "gguf", "a")
    run = make_run(tmp_path / "run", cache)
    (run / USES).write_text(text)
    assert entries(cache.root, [run])[0].runs == ()


def test_a_training_run_refers_to_its_quantized_base(cli: Cli, cache: Cache, isolated: Path) -> None:
    """With a quantizer that writes its checkpoint into the cache; the run does not keep the tokenized rows."""
    result = cli(
        "train", "-p", str(OUT_OF_TREE / "one_way_quantizer.py"), "--quant", "rows-int8", "--adapter", "scale",
        "-p", str(OUT_OF_TREE / "scale_adapter.py"), "--device", "cpu", "--max-steps", "1", "--batch-size", "2",
        "--set", "train.sample_tokens=2", "--set", "data.limit=20", "--output", "run",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    (base,) = (e for e in entries(cache.root) if e.kind != "tokens")
    assert base.runs == ((isolated / "run").resolve(),)
    about = json.loads((isolated / "run" / USES).read_text())
    assert about == {"root": str(cache.root.resolve()), "entries": [base.name]}
    assert cli("cache", "clean", "--yes").code == 0
    assert [e.name for e in entries(cache.root)] == [base.name]


# --------------------------------------------------------------------------- killed builds, and foreign files


BUILDER = """
import sys, time
from pathlib import Path
from smollm3_finetune.cache.store import Cache
def build(out):
    (out / "half").write_text("half")
    print("building", flush=True)
    time.sleep(600)
Cache(Path(sys.argv[1])).get_or_build("gguf", {"k": 1}, build)
"""


@pytest.fixture
def building(cache: Cache) -> Iterator[subprocess.Popen[str]]:
    """A process that is building an entry."""
    child = subprocess.Popen([sys.executable, "-c", BUILDER, str(cache.root)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "building\n"
    yield child
    child.kill()
    child.wait(60)
    child.stdout.close()


def test_a_running_build_is_kept_and_a_killed_one_is_removed(
    cli: Cli, cache: Cache, building: subprocess.Popen[str]
) -> None:
    assert leftovers(cache.root) == []
    assert "deleted 0" in cli("cache", "clean", "--yes").stdout
    assert len(list(cache.root.glob("gguf/*.partial-*"))) == 1
    building.kill()
    building.wait(60)
    assert "leftovers of killed builds: 1;" in cli("cache", "list").stdout
    assert "leftover of a killed build" in cli("cache", "clean", "--yes").stdout
    assert list(cache.root.glob("gguf/*.partial-*")) == []


def test_links_are_never_followed(cli: Cli, cache: Cache, tmp_path: Path) -> None:
    """A kind, an entry, a leftover, and a file in an entry, each a link to a user's directory."""
    own = tmp_path / "own"
    (own / KEY).mkdir(parents=True)
    put(own / KEY / "precious", 5000)
    (own / f"{KEY}.json").write_text("{}")
    entry = make(cache, "gguf", "a", 10)
    (entry / "inside").symlink_to(own)
    (cache.root / "linked").symlink_to(own)
    (cache.root / "gguf" / KEY).symlink_to(own / KEY)
    (cache.root / "gguf" / f"{KEY}.json").write_text("{}")
    (cache.root / "gguf" / f"{KEY}.partial-1-abcdef00").symlink_to(own / KEY)
    found = listed(cli)
    assert [(e["key"], e["bytes"] < 1000) for e in found["entries"]] == [(entry.name, True)]
    assert found["leftovers"] == []
    assert cli("cache", "clean", "--yes", "--force").code == 0
    assert not entry.exists()
    assert (own / KEY / "precious").stat().st_size == 5000
    for link in (cache.root / "gguf" / KEY, cache.root / "linked" / KEY):
        assert take_away(link, cache.root) is False
    assert (own / KEY / "precious").exists()


def test_files_that_are_not_from_a_build_are_kept(cli: Cli, cache: Cache) -> None:
    """For example if SMOLLM3_CACHE is a directory with other files too."""
    mine = cache.root / "photos" / KEY
    mine.mkdir(parents=True)
    put(mine / "beach.jpg", 10)
    (cache.root / "photos" / "2026").mkdir()
    (cache.root / "notes.txt").write_text("mine")
    assert listed(cli)["entries"] == []
    cli("cache", "clean", "--yes", "--force")
    assert (mine / "beach.jpg").exists()
    assert (cache.root / "photos" / "2026").is_dir()
    assert take_away(mine.parent, cache.root) is False


def test_a_root_that_is_itself_a_link_works(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("SMOLLM3_CACHE", str(tmp_path / "link"))
    entry = make(Cache(tmp_path / "link"), "gguf", "a")
    assert "deleted 1" in cli("cache", "clean", "--yes").stdout
    assert not entry.exists()


def test_the_root_may_begin_with_a_tilde_and_must_be_a_directory(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SMOLLM3_CACHE", "~/mine")
    Cache.default().get_or_build("made", {"a": 1}, lambda out: (out / "x").write_text("x") and None)
    assert (tmp_path / "mine" / "made").is_dir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SMOLLM3_CACHE", "~/file")
    done = cli("cache", "list")
    assert done.code == 2
    assert f"the cache {tmp_path / 'file'} is not a directory" in done.stderr


@pytest.mark.parametrize("number", ["nan", "inf", "-1"])
def test_an_age_that_is_not_a_number_of_days_is_refused(cli: Cli, cache: Cache, number: str) -> None:
    done = cli("cache", "clean", "--yes", f"--older-than={number}")
    assert done.code == 2
    assert "--older-than" in done.stderr


# ------------------------------------------------------------------------------------ entries in use, damage


USER = """
import sys
from pathlib import Path
from smollm3_finetune.cache.store import Cache
cache = Cache(Path(sys.argv[1]))
entry = cache.get_or_build("gguf", {"file": "a", "bits": 4}, lambda out: sys.exit("built again"))
print("loaded", flush=True)
sys.stdin.readline()
assert (entry / "weights").stat().st_size == 1000
"""


@pytest.fixture
def user(cache: Cache) -> Iterator[subprocess.Popen[str]]:
    """A process that uses an entry."""
    make(cache, "gguf", "a")
    child = subprocess.Popen(
        [sys.executable, "-c", USER, str(cache.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "loaded\n"
    yield child
    child.kill()
    child.communicate()


def test_an_entry_that_another_process_uses_is_kept_until_it_ends(
    cli: Cli, cache: Cache, user: subprocess.Popen[str]
) -> None:
    other = make(cache, "gguf", "b")
    (entry,) = (e for e in entries(cache.root) if e.path != other)
    assert entry.in_use
    assert "in use" in cli("cache", "list").stdout
    result = cli("cache", "clean", "--yes", "--force")
    assert f"kept: {entry.name[:13]}  1.0 kB  in use by another process" in result.stdout
    assert result.stdout.splitlines()[-1] == "deleted 1, 1.0 kB, kept 1 in use"
    assert take_away(entry.path, cache.root) is False
    about = json.loads(cli("cache", "clean", "--yes", "--json").stdout)
    assert [(e["path"], e["in_use"]) for e in about["kept"]] == [(str(entry.path), True)]
    user.communicate("done\n", timeout=60)
    assert user.returncode == 0
    assert not list(cache.root.rglob("*.use-*"))
    assert "deleted 1," in cli("cache", "clean", "--yes").stdout
    assert not entry.path.exists()


def test_an_entry_is_not_in_use_after_its_process_was_killed(
    cli: Cli, cache: Cache, user: subprocess.Popen[str]
) -> None:
    user.kill()
    user.wait(60)
    assert len(list(cache.root.rglob("*.use-*"))) == 1
    assert not entries(cache.root)[0].in_use
    assert "deleted 1," in cli("cache", "clean", "--yes").stdout
    assert [p.suffix for p in cache.root.rglob("*") if p.is_file()] == [".lock"]


def test_an_entry_is_in_use_while_its_cache_object_exists_and_until_release(cache: Cache) -> None:
    make(cache, "gguf", "a")
    uses = lambda: len(list(cache.root.rglob("*.use-*")))  # noqa: E731
    one = Cache(cache.root)
    for _ in range(2):
        one.get_or_build("gguf", {"file": "a", "bits": 4}, lambda out: pytest.fail("built again"))
    assert uses() == 1
    one.release()
    assert uses() == 0
    Cache(cache.root).find("gguf", {"file": "a", "bits": 4})  # the object is deleted at once
    assert uses() == 0


def test_a_fork_does_not_end_the_use_of_an_entry(cache: Cache) -> None:
    make(cache, "gguf", "a")
    cache.find("gguf", {"file": "a", "bits": 4})
    child = os.fork()
    if child == 0:  # for example a worker that prepares batches
        cache.release()
        os._exit(0)
    os.waitpid(child, 0)
    asked = "import sys; from pathlib import Path; from smollm3_finetune.cache.entries import entries; "
    asked += "print(entries(Path(sys.argv[1]))[0].in_use)"
    done = subprocess.run([sys.executable, "-c", asked, str(cache.root)], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_verify_names_damaged_entries_and_changes_nothing(cli: Cli, cache: Cache) -> None:
    make(cache, "gguf", "a")
    assert cli("cache", "verify").stdout == f"{cache.root}: 1 intact, 0 damaged, 0 without checksums\n"
    damaged, older = make(cache, "tokens", "b"), make(cache, "tokens", "c")
    put(damaged / "weights", 999)
    sums_file(older).unlink()
    result = cli("cache", "verify")
    assert (result.code, result.stdout.splitlines()) == (1, [
        f"damaged: tokens/{damaged.name[:8]}  999 B  weights differs from its checksum",
        f"no checksums: tokens/{older.name[:8]}  1.0 kB",
        f"{cache.root}: 1 intact, 1 damaged, 1 without checksums; a run that needs a damaged entry rebuilds it",
    ])  # fmt: skip
    about = json.loads(cli("cache", "verify", "--json").stdout)
    assert [(e["path"], e["damage"]) for e in about["damaged"]] == [(str(damaged), "weights differs from its checksum")]
    assert about["without_checksums"] == [str(older)]
    assert cli("cache", "verify", "--kind", "gguf").code == 0
    assert (damaged / "weights").stat().st_size == 999
