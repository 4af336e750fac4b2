"""A hint that is typed works: it does not end in the same error, or in another error of usage."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from smollm3_finetune.testing.commands import smollm3
from smollm3_finetune.testing.hints import hints_of, typed, unknown_options, with_options, without

pytestmark = pytest.mark.plugins  # the default adapter is a plugin's

PROVOKED = (
    "train --dry-run --model tiiny",
    "train --dry-run --adapter fll",
    "train --dry-run --quant nnone",
    "train --dry-run --objective sfft",
    "train --dry-run --loader hff",
    "train --dry-run --formatter mesages",
    "train --dry-run --data gone.jsonl",
    "train --dry-run --data rows.txt",
    "train --dry-run --data 'none-*.jsonl'",
    "train --dry-run --data empty",
    "train --dry-run --set data.path=[]",
    "train --dry-run --device cpuu",
    "train --dry-run --device cuda",
    "train --dry-run --dtype flot32",
    "train --dry-run --max-length 100000000",
    "train --dry-run --output full",
    "train --dry-run --output rows.jsonl",
    "train --dry-run --config run.yaml --set train.max_stepz=3",
    "train --dry-run --set max_steps=3",
    "train --dry-run --set trian.max_steps=3",
    "train --dry-run --set train.max_steps",
    "train --dry-run --set =3",
    "train --dry-run --adapter full --adapter-opt layrs=0",
    "train --dry-run --adapter full --adapter-opt parameters",
    "train --dry-run --data rows.jsonl --set data.path.weight=2",
    "train --dry-run --data rows.jsonl --set data.path.0.weight=2",
    "train --dry-run --data rows.jsonl --set data.path.1.weight=2",
    "train --dry-run --data rows.jsonl --set data.path.wieght=2",
    "train --dry-run --data rows.jsonl --data more.jsonl --set data.path.0.weight=2 --set data.path.limit=2",
    "train --dry-run --set data.path.weight=2",
    "train --dry-run --set data.path.0.weight=2",
    "train --dry-run --set train.max_steps=3 --set train.max_steps.a=4",
    "train --dry-run --set quant=none --set quant.name.x=4",
    "train --dry-run --set train.optimizer=adamm_torch",
    "train --dry-run --set train.optimizer=zzz",
    "train --dry-run --set train.report_to=tensorbord",
    "train --dry-run --set data.date=today",
    "train --dry-run --set data.template=gone.jinja",
    "train --dry-run --set data.held_out=0.99 --data rows.jsonl --set data.limit=1",
    "train --dry-run --set train.packing=true --set train.padding=always",
    "train --dry-run --model 'run 1'",
    "train --dry-run --resume gone",
    "train --dry-run --resume 'run 1' --set data.max_length=99",
    "train --dry-run --resume 'run 1' --config run.yaml",
    "train --dry-run -p plugin.py",
    "train --dry-run -p no:plugin",
    "config show --data rows.jsonl --set data.path.0.weight=1",
    "data preview --data gone.jsonl",
    "data preview --source zzz",
    "data preview --max-length 8 --data rows.jsonl",
    "generate 'run 1' --prompt a --max-new-tokens 1 --quant none",
    "generate 'run 1' --prompt a --max-new-tokens 1 --loader-opt x=1",
    "generate tiny --prompt '' --max-new-tokens 1",
    "generate tiny --prompt a --adapter-path gone --max-new-tokens 1",
    "generate unfinished --prompt a --max-new-tokens 1",
    "generate gone --prompt a",
    "generate tiiny --prompt a --max-new-tokens 1",
    "merge tiny",
    "merge 'run 1/adapter'",
    "merge 'run 1/adapter' --adapter-path 'run 1/adapter' --output merged",
    "merge 'run 1' --output full",
    "merge 'run 1' --quant none",
    "merge 'run 1' --max-drift 0",
    "merge 'run 1' --dtype flot32",
    "quantize tiny",
    "quantize tiny --quant none",
    "quantize tiny --quant nnone --output q",
    "compat --adapter zzz",
    "compat --quant nnone",
    "compat --device cpuu",
    "plugins info fll",
    "plugins info zzz",
    "plugins check zzz",
    "plugins check plugin.py",
    "plugins new adapter My_Thing",
    "plugins new adapter full",
    "plugins new adapter fine --output full",
    "cache clean --yes --runs gone",
    "trian --dry-run",
    "config validat --device cpu",
)
"""Commands with a mistake, in a directory with `rows.jsonl`, `more.jsonl`, a file, directories and runs."""
WITH_A_LORA = (
    "quantize 'lora/adapter' --quant none --output q",
    "merge 'lora/adapter' --adapter-path 'lora/adapter' --output merged",
)
"""The same, in a directory with a run that trained LoRA."""
PLACEHOLDERS = {
    "FILE.jsonl": "rows.jsonl", "DIRECTORY": "new", "OTHER_DIR": "other", "OTHER": "other", "DIR": "new",
    "RUN/adapter": "run 1/adapter", "RUN": "run 1", "PATH/TO/plugin.py": "good.py", "FILE": "good.py", "NAME=VALUE": "",
    "VALUE": "5", "MODEL": "tiny", "TEXT": "a", "FOLDER_OF_RUNS": ".",
}  # fmt: skip
"""Words in capitals that a user replaces."""
USAGE = 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one step."""
    run = tmp_path_factory.mktemp("trained") / "run"
    result = smollm3("train", "--adapter", "full", "--max-steps", "1", "--output", run, "--device", "cpu", "--set",
                     "train.save_every=1", "--set", "data.limit=20")  # fmt: skip
    assert result.code == 0, result.stderr
    return run


@pytest.fixture(scope="module")
def trained_lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one step, with LoRA."""
    run = tmp_path_factory.mktemp("trained") / "run"
    result = smollm3("train", "--max-steps", "1", "--output", run, "--device", "cpu", "--set", "data.limit=20")
    assert result.code == 0, result.stderr
    return run


@pytest.fixture
def lora(place: Path, trained_lora: Path) -> Path:
    shutil.copytree(trained_lora, place / "lora")
    return place


@pytest.fixture
def place(isolated: Path, rows_file: Path, trained: Path) -> Path:
    for name in ("rows.jsonl", "more.jsonl", "rows.txt", "full/keep.jsonl"):
        (isolated / name).parent.mkdir(exist_ok=True)
        shutil.copy(rows_file, isolated / name)
    (isolated / "empty").mkdir()
    (isolated / "run.yaml").write_text("train: {max_steps: 3}\n")
    (isolated / "plugin.py").write_text("import gone_module\n")
    (isolated / "good.py").write_text("from smollm3_finetune.api import hookimpl\n")
    shutil.copytree(trained, isolated / "run 1")
    shutil.copytree(trained, isolated / "unfinished", ignore=shutil.ignore_patterns("adapter", "checkpoints"))
    return isolated


def filled(word: str) -> str:
    for name, value in PLACEHOLDERS.items():
        word = re.sub(rf"(?<![\w]){re.escape(name)}(?![\w])", value, word)
    return word


@pytest.mark.parametrize("text", PROVOKED)
def test_a_hint_that_is_typed_works(text: str, place: Path) -> None:
    assert_hints_work(text)


@pytest.mark.plugins
@pytest.mark.parametrize("text", WITH_A_LORA)
def test_a_hint_about_an_adapter_that_is_typed_works(text: str, lora: Path) -> None:
    assert_hints_work(text)


def test_a_hint_that_names_no_option_of_its_command_is_found() -> None:
    arguments = ["train", "--adapter", "full", "--set", "train.epochs=2"]
    assert list(unknown_options(arguments, "--adapter-path DIR; or: smollm3 merge --epochs 2")) == [
        "--adapter-path", "--epochs",
    ]  # fmt: skip
    assert not list(unknown_options(arguments, "smollm3 merge X --adapter-path DIR, or pip install --upgrade gguf"))


def test_typing_a_hint_replaces_the_option_that_it_names() -> None:
    arguments = ["train", "--adapter", "full", "--set", "train.epochs=2", "--set", "seed=1"]
    assert with_options(arguments, ["--adapter", "lora"])[1:] == [*arguments[3:], "--adapter", "lora"]
    assert with_options(arguments, ["--set", "train.epochs=3"])[3:] == ["--set", "seed=1", "--set", "train.epochs=3"]
    assert without(arguments, "--set") == ["train", "--adapter", "full"]
    (again,) = typed(["train", "--adapter", "lroa"], "there is no adapter 'lroa'", "did you mean 'lora'?")
    assert again == ["train", "--adapter", "lora"]


def assert_hints_work(text: str) -> None:
    """Run a command that fails, type each hint, and run it again."""
    arguments = shlex.split(text)
    failed = smollm3(*arguments)
    assert failed.code, f"{text} did not fail"
    errors = [line for line in failed.stderr.splitlines() if line.startswith(("error: ", "Error: "))]
    for hint in hints_of(failed.stderr):
        message = next(e for e in errors if f"{e}\n  hint: {hint}" in failed.stderr)
        for command in typed(arguments, message, hint):
            again = smollm3(*map(filled, command))
            said = f"smollm3 {text}\n{failed.stderr}smollm3 {shlex.join(map(filled, command))}\n{again.stderr}"
            assert message not in again.stderr, said
            confirms = "needs confirmation" in again.stderr  # nothing is installed without a terminal
            assert again.code != USAGE or confirms, said
