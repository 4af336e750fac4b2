"""Foreign code runs only if allowed, no file of a user is lost, and no failure is reported as success."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import smollm3_finetune

Cli = Callable[..., Any]
TINY = Path(smollm3_finetune.__file__).parent / "builtin" / "tiny"
QUICK = ("--adapter", "full", "--max-steps", "2", "--set", "data.limit=20", "--set", "train.sample_tokens=2")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that needs a finished run keeps a copy for the others."""
    return tmp_path_factory.mktemp("kept") / "base"


@pytest.fixture
def finished(cli: Cli, kept: Path) -> Path:
    """A run with a checkpoint after each step."""
    if kept.exists():
        shutil.copytree(kept, "base", symlinks=True)
    else:
        result = cli("train", *QUICK, "--set", "train.save_every=1", "--output", "base")
        assert result.code == 0, result.stderr
        shutil.copytree("base", kept, symlinks=True)
    return Path("base")


def with_code(directory: Path) -> Path:
    """A copy of the embedded model whose tokenizer tries to run `evil.py`, which would create a file."""
    shutil.copytree(TINY, directory)
    file = directory / "tokenizer_config.json"
    about = json.loads(file.read_text())
    about |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    file.write_text(json.dumps(about))
    (directory / "evil.py").write_text("open('ran', 'w')\nclass Evil: pass\n")
    return directory


def test_code_of_a_model_or_an_adapter_runs_only_if_allowed(run_cli: Cli, finished: Path) -> None:
    answered = run_cli("generate", str(with_code(Path("coded"))), "--prompt", "hi", input="y\n" * 9)
    assert (answered.code, "Python code of its own" in answered.stderr) == (6, True)
    about = json.loads((finished / "adapter" / "tokenizer_config.json").read_text())
    about |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    (finished / "adapter" / "tokenizer_config.json").write_text(json.dumps(about))
    shutil.copy("coded/evil.py", finished / "adapter" / "evil.py")
    (finished / "adapter" / "checksums.json").unlink()
    answered = run_cli("generate", "base", "--prompt", "hi", "--max-new-tokens", "2", input="y\n" * 9)
    assert answered.code in (0, 6), answered.stderr
    assert not Path("ran").exists()


@pytest.mark.parametrize("said", ["true", '"yes"', "1", '"on"'])
@pytest.mark.parametrize("option", ["trust_remote_code", "pickle"])
def test_a_received_run_cannot_allow_its_own_code(cli: Cli, finished: Path, option: str, said: str) -> None:
    text = (finished / "run.yaml").read_text()
    loader = f"loader:\n  name: smollm3-finetune:hf\n  {option}: {said}\n"
    changed = text.replace("loader:\n  name: smollm3-finetune:tiny\n", loader)
    assert changed != text
    (finished / "run.yaml").write_text(changed)
    for command in (("generate", "base", "--prompt", "hi"), ("train", "--resume", "base", "--max-steps", "4")):
        refused = cli(*command)
        assert refused.code == 2
        assert f"hint: if you trust it: --loader-opt {option}=true" in refused.stderr


@pytest.mark.parametrize("flag", ["--resume", "--config"])
def test_an_empty_path_is_an_error(cli: Cli, isolated: Path, flag: str) -> None:
    result = cli("train", *QUICK, flag, "")
    assert result.code in (2, 6)
    assert list(isolated.iterdir()) == []


def test_a_finished_run_is_not_trained_further_by_resuming_it(cli: Cli, finished: Path) -> None:
    before = (finished / "report.json").read_bytes()
    refused = cli("train", "--resume", "base")
    assert (refused.code, "has finished its 2 steps" in refused.stderr) == (2, True)
    assert (finished / "report.json").read_bytes() == before
    assert cli("train", "--resume", "base", "--max-steps", "3", "--json").code == 0


@pytest.mark.parametrize("keep", ["", "train:\n  max_steps: 4\n"])
def test_a_damaged_configuration_is_an_error(cli: Cli, finished: Path, keep: str) -> None:
    (finished / "run.yaml").write_text(keep)
    for command in (("generate", "base", "--prompt", "hi"), ("train", "--resume", "base", "--max-steps", "4")):
        refused = cli(*command)
        assert (refused.code, "run.yaml is damaged" in refused.stderr) == (6, True), refused.stderr


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"plugins": [], "plugin_files": {}}', "{"])
def test_damaged_versions_are_named(cli: Cli, finished: Path, text: str) -> None:
    (finished / "versions.json").write_text(text)
    refused = cli("generate", "base", "--prompt", "hi")
    assert (refused.code, "versions.json is damaged" in refused.stderr) == (6, True)


def test_an_incomplete_checkpoint_is_skipped_for_a_complete_one(cli: Cli, finished: Path) -> None:
    (finished / "checkpoints" / "checkpoint-2" / "optimizer.pt").unlink()
    (finished / "checkpoints" / "checkpoint-best").mkdir()
    result = cli("train", "--resume", "base", "--max-steps", "3")
    assert result.code == 0, result.stderr
    shutil.rmtree(finished / "checkpoints")
    without = cli("train", "--resume", "base", "--max-steps", "4")
    assert (without.code, "has no checkpoint, so it cannot take more steps" in without.stderr) == (2, True)


@pytest.mark.parametrize("wrong", [("--seed", "99999999999"), ("--set", "train.optimizer=adamw_troch")])
def test_a_failed_start_leaves_no_output_directory(cli: Cli, wrong: tuple[str, str]) -> None:
    refused = cli("train", *QUICK, *wrong, "--output", "out")
    assert refused.code == 2, refused.stderr
    assert not Path("out").exists()


def test_only_one_of_two_runs_gets_a_directory(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when both looked before either wrote."""
    from smollm3_finetune.runs.rundir import RunDir

    assert cli("train", *QUICK, "--output", "out").code == 0
    before = sorted((p, p.read_bytes()) for p in Path("out").rglob("*") if p.is_file())
    monkeypatch.setattr(RunDir, "fresh", classmethod(lambda cls, output, title, **_: cls(Path("out"))))
    refused = cli("train", *QUICK, "--output", "out")
    assert (refused.code, "already contains a run" in refused.stderr) == (2, True)
    assert sorted((p, p.read_bytes()) for p in Path("out").rglob("*") if p.is_file()) == before


@pytest.mark.parametrize(
    ("text", "value"),
    [("What is C #?", "What is C #?"), ("#1", "#1"), ("2026-02-02", "2026-02-02"), ("=", "="), ("&a [*a]", "&a [*a]")],
)
def test_text_on_the_command_line_is_unchanged(text: str, value: str) -> None:
    from smollm3_finetune.config.yaml12 import parse_value

    assert parse_value(text) == value


def test_a_date_can_be_written_without_quotes(cli: Cli) -> None:
    Path("run.yaml").write_text("data:\n  date: 2026-02-02\n")
    shown = cli("config", "show", "--config", "run.yaml", "--json")
    assert json.loads(shown.stdout)["config"]["data"]["date"] == "2026-02-02", shown.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"instruction": "a\\ud800", "output": "b"}', "half a character"), ("[" * 100_000, "not valid JSON")],
)
def test_rows_that_cause_errors_in_readers_are_named(cli: Cli, line: str, message: str) -> None:
    Path("rows.jsonl").write_text(line + "\n")
    refused = cli("config", "validate", "--adapter", "full", "--data", "rows.jsonl", "--device", "cpu")
    assert (refused.code, message in refused.stderr) == (5, True), refused.stderr
    assert "rows.jsonl:1" in refused.stderr


BROKEN = """
import contextlib
from smollm3_finetune.api import AdapterSpec, hookimpl

@hookimpl
def smollm3_adapters():
    return [AdapterSpec(name="half", summary="half an adapter", factory="half:Half", merges=False{more}, api=2)]

def nothing(spec, options, env):
    return None

class Half:
    def __init__(self, options): pass
{body}
"""
RESTORE = "    def restore(self, base, path, ctx, total_steps): pass\n"


@pytest.mark.parametrize(
    ("more", "body", "message"),
    [
        ("", RESTORE, "adapter 'half' (half 0+"),
        ("", RESTORE, "the factory half:Half returned an object of type Half, which has no method 'attach'"),
        ("", "    def attach(self, base, ctx, total_steps): pass\n", "has no method 'restore'"),
        (
            "",
            RESTORE + "    def attach(self, b, c, t): pass\n",
            "attach() returned None, which has no method 'disabled'",
        ),
        ("", RESTORE + "    def attach(self, b, c, t): return 1 / 0\n", "failed: ZeroDivisionError"),
        (", refine=nothing", RESTORE, "failed in refine(): TypeError: it returned None"),
    ],
)
def test_an_object_without_required_methods_is_named_with_them(
    cli: Cli, plugin_file: Callable[[str, str], Path], more: str, body: str, message: str
) -> None:
    file = plugin_file("half", BROKEN.format(more=more, body=body))
    refused = cli("train", "-p", str(file), *QUICK, "--adapter", "half", "--output", "out")
    assert (refused.code, message in refused.stderr) == (7, True), refused.stderr
    assert not Path("out").exists()


def test_a_run_writes_no_token(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_SecretOfAUser"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, secret)
    result = cli("train", *QUICK, "--output", "base")
    assert result.code == 0, result.stderr
    written = [file for file in Path("base").rglob("*") if file.is_file()]
    assert len(written) > 10
    assert [file for file in written if secret.encode() in file.read_bytes()] == []
    assert secret not in result.stdout + result.stderr


def test_a_pipe_in_a_model_is_refused(cli: Cli) -> None:
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        shutil.rmtree("piped", ignore_errors=True)
        shutil.copytree(TINY, "piped")
        (Path("piped") / name).unlink()
        os.mkfifo(Path("piped") / name)
        refused = cli("generate", "piped", "--prompt", "hi")
        assert (refused.code, f"piped/{name} is a named pipe, not a file" in refused.stderr) == (6, True), (
            refused.stderr
        )
    for arguments in (("train", "--config", "piped/model.safetensors", "--dry-run"),
                      ("train", "--set", "data.template=piped/model.safetensors", "--dry-run")):  # fmt: skip
        refused = cli(*arguments)
        assert (refused.code, "it is a named pipe, not a file" in refused.stderr) == (2, True), refused.stderr
    os.mkfifo("rows.jsonl")
    refused = cli("train", "--data", "rows.jsonl", "--dry-run")
    assert (refused.code, "'rows.jsonl' is a named pipe, not a file" in refused.stderr) == (5, True), refused.stderr


def test_nested_code_of_a_model_needs_permission(cli: Cli) -> None:
    shutil.copytree(TINY, "coded")
    file = Path("coded/config.json")
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "text_config": {"auto_map": {"AutoModel": "evil.Evil"}}})
    )
    refused = cli("generate", "coded", "--prompt", "hi")
    assert (refused.code, "comes with Python code of its own" in refused.stderr) == (6, True), refused.stderr


@pytest.mark.parametrize("arguments", [
    ("train", "--dry-run", "--set", f"model={'x' * 5000}"), ("train", "--dry-run", "--quant", "x" * 5000),
    ("cache", "list", "--kind", "x" * 5000), ("cache", "list", "--kind", "a/../b"),
    ("train", "--dry-run", "--set", f"train.max_steps={10**30}"), ("train", "--dry-run", "--set", "train.epochs=1e300"),
    ("train", "--dry-run", "--set", "data.path=[&a [x, x], &b [*a, *a, *a]" + ", [*b, *b, *b]" * 9000 + "]"),
    ("compat", "--adapter", "full", "--measure", "f.json", "--adapter-opt", "a.parameters=1"),
], ids=lambda a: " ".join(a)[:45])  # fmt: skip
def test_a_value_beyond_all_bounds_is_refused_by_name(cli: Cli, arguments: tuple[str, ...]) -> None:
    refused = cli(*arguments)
    assert refused.code in (2, 6) and "unexpected" not in refused.stderr, refused.stderr[:500]


def test_a_received_checkpoint_that_the_trainer_cannot_take_over_is_named(cli: Cli, finished: Path) -> None:
    """A checkpoint of a stranger may have checksums that fit, or none: its files are checked when they are read."""
    import torch

    class Evil:
        def __reduce__(self) -> Any:
            return open, ("ran", "w")

    newest = finished / "checkpoints" / "checkpoint-2"
    for checkpoint in newest.parent.iterdir():
        (checkpoint / "checksums.json").unlink()
    state = json.loads((newest / "trainer_state.json").read_text())

    def refused(problem: str) -> None:
        result = cli("train", "--resume", "base", "--max-steps", "4")
        found = result.stderr.partition("error: ")[2]
        assert (result.code, "checkpoint-2" in found, problem in found) == (6, True, True), result.stderr
        assert not Path("ran").exists()

    for changed in ({"epoch": "x"}, {"global_step": 10**30}, {"train_batch_size": "x"}, {"stateful_callbacks": {}},
                    {"surprise": 1}, {"log_history": [1]}, {"max_steps": None}):  # fmt: skip
        (newest / "trainer_state.json").write_text(json.dumps({**state, **changed}))
        refused("is damaged")
    (newest / "trainer_state.json").write_text(json.dumps(state))
    for name in ("scaler.pt", "optimizer.pt"):
        before = (newest / name).read_bytes() if (newest / name).exists() else None
        torch.save(Evil(), newest / name)
        refused("is damaged")
        (newest / name).unlink() if before is None else (newest / name).write_bytes(before)
    assert cli("train", "--resume", "base", "--max-steps", "4").code == 0
