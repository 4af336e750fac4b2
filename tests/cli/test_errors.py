"""Wrong input: one clear message, a documented exit code, no traceback, nothing written, no weights read.

The weight file of the model is invalid in these tests, so a run that reads it fails with another error.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import smollm3_finetune

OUT_OF_TREE = """
from smollm3_finetune.api import *

@hookimpl
def smollm3_quantizers():
    return [
        QuantizerSpec(name="int4", summary="s", factory="acme_plugin:Int4", provides={Op.FORWARD, Op.GRAD_INPUT},
                      absent={Op.DENSE: "weights are packed"}, api=2),
        QuantizerSpec(name="kernel", summary="s", factory="acme_plugin:Int4", provides=ALL_OPS,
                      requires=Requires(distributions=("acme-kernels>=2",)), api=2),
        QuantizerSpec(name="gpu", summary="s", factory="acme_plugin:Int4", provides=ALL_OPS,
                      requires=Requires(accelerators=("cuda",)), api=2),
        QuantizerSpec(name="ranged", summary="s", factory="acme_plugin:Int4", provides=ALL_OPS,
                      options="acme_plugin:Options", api=2),
        QuantizerSpec(name="hollow", summary="s", factory="acme_hollow:Gone", provides=ALL_OPS, api=2),
    ]

@hookimpl
def smollm3_adapters():
    return [AdapterSpec(name="scale", summary="s", factory="acme_plugin:Scale", api=2),
            AdapterSpec(name="hollow", summary="s", factory="acme_hollow:Gone", api=2)]

from dataclasses import dataclass

@dataclass(frozen=True, kw_only=True)
class Options:
    bits: int = option(4, "Bits of a weight.", ge=2, le=8)
"""


class Failure(NamedTuple):
    message: str
    hint: str


@pytest.fixture
def fails(
    cli: Callable[..., Any], isolated: Path, tmp_path: Path, model_directory: Path, rows_file: Path
) -> Callable[..., Failure]:
    """Run a command that must fail; whatever is not given is right."""

    def run(code: int, *args: str, command: str = "train", **right: Any) -> Failure:
        defaults = {"model": model_directory, "adapter": "full", "data": rows_file, "device": "cpu"}
        given = [f"--{k}={v}" for k, v in {**defaults, **right}.items() if v is not None and f"--{k}" not in args]
        before = sorted(tmp_path.rglob("*"))
        result = cli(*command.split(), *given, *args)
        assert result.code == code, result.stderr
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        lines = result.stderr.splitlines()
        assert [line.split(":")[0] for line in lines].count("error") == 1, result.stderr
        assert not (isolated / "runs").exists()
        passing = ("__pycache__", "cache")  # tokens are cached before weights are read; a run writes nothing
        after = [p for p in sorted(tmp_path.rglob("*")) if not set(passing) & set(p.parts)]
        assert [p for p in after if p not in before] == []
        at = next(i for i, line in enumerate(lines) if line.startswith("error: "))
        hints = [line.removeprefix("  hint: ") for line in lines[at:] if line.startswith("  hint: ")]
        return Failure(lines[at].removeprefix("error: "), hints[0] if hints else "")

    return run


@pytest.fixture
def acme(fake_distribution: Any) -> None:
    modules = {"acme_plugin": OUT_OF_TREE, "acme_hollow": "raise RuntimeError('broken inside')\n"}
    fake_distribution("acme", "1.0", modules, {"acme": "acme_plugin"})


Fails = Callable[..., Failure]


# ----------------------------------------------------------------------------------------- names and options


def test_an_unknown_quantizer(fails: Fails) -> None:
    assert fails(2, "--quant", "nonne") == ("there is no quantizer 'nonne'", "did you mean 'none'?")


def test_an_unknown_adapter(fails: Fails) -> None:
    assert fails(2, "--adapter", "ful") == ("there is no adapter 'ful'", "did you mean 'full'?")


def test_an_unknown_loader_objective_and_formatter(fails: Fails) -> None:
    assert fails(2, "--loader", "hff").hint == "did you mean 'hf'?"
    assert fails(2, "--objective", "stf").hint == "did you mean 'sft'?"
    assert fails(2, "--formatter", "message").hint == "did you mean 'messages'?"


def test_a_first_party_component_that_is_not_installed(fails: Fails) -> None:
    for args in (("--no-plugins", "--quant", "bnb"), ("--no-plugins", "--quant", "bnb-8bit")):
        failure = fails(2, *args)
        place = "is in smollm3-bitsandbytes, but installed plugins are disabled"
        assert failure.message in (
            f"the quantizer '{args[-1]}' {place}",
            f"the quantizer '{args[-1]}' is not installed",
        )
    default = fails(2, "--no-plugins", adapter=None)
    disabled = "is in smollm3-peft, but installed plugins are disabled"
    assert disabled in default.message or default.hint == "smollm3 plugins install lora"


def test_an_unknown_option(fails: Fails, acme: None) -> None:
    failure = fails(2, "--quant", "ranged", "--quant-opt", "bitz=4")
    assert failure == ("--quant-opt bitz: quantizer 'ranged' has no option 'bitz'", "did you mean 'bits'?")


def test_an_option_out_of_range(fails: Fails, acme: None) -> None:
    failure = fails(2, "--quant", "ranged", "--quant-opt", "bits=9")
    assert failure.message == "--quant-opt bits: expected integer (at least 2, at most 8), got 9"
    assert fails(2, "--max-steps", "0").message == "--max-steps: expected integer (at least 1) or none, got 0"
    assert "--device must be a torch device, not 'c p u'" in fails(2, "--device", "c p u").message


def test_an_option_that_is_on_by_default_is_turned_off_by_off(fails: Fails) -> None:
    failure = fails(2, "--set", "train.save_minutes=often")
    expected = "--set train.save_minutes: expected number (greater than 0) or off, got 'often'"
    assert failure.message == expected and failure.hint.startswith("for example: --set train.save_minutes=10")


def test_a_weight_out_of_range_is_answered_with_the_whole_source(fails: Fails, rows_file: Path) -> None:
    source = f"data.path={{path: {rows_file}, weight: -2}}"
    failure = fails(2, "--set", source, data=None)
    assert failure.message == "data.path.weight: expected number (greater than 0, at most 1000), got -2"
    assert failure.hint == f"--set '{source.replace('weight: -2', 'weight: 1')}'"


@pytest.mark.parametrize("command", ["train", "data preview", "data stats", "config show", "config validate"])
def test_rows_or_a_model_without_their_option(cli: Callable[..., Any], model_directory: Path, command: str) -> None:
    Path("rows file.jsonl").write_text("{}")
    Path("a run").mkdir()
    Path("a run", "run.yaml").write_text("")
    for argument, hint in (
        ("a run", "to continue the run: --resume 'a run'" if command == "train" else "--config 'a run/run.yaml'"),
        ("rows file.jsonl", "--data 'rows file.jsonl'"),
        (str(model_directory), f"--model {shlex.quote(str(model_directory))}"),
        (
            "HuggingFaceTB/SmolLM3-3B",
            "for rows: --data HuggingFaceTB/SmolLM3-3B; for a model: --model HuggingFaceTB/SmolLM3-3B",
        ),
    ):
        result = cli(*command.split(), argument)
        assert result.code == 2
        assert result.stderr.endswith(f"Got unexpected argument {argument!r}\n  hint: {hint}\n")


def test_a_key_that_is_typed_as_an_option(cli: Callable[..., Any]) -> None:
    result = cli("train", "--packing")
    assert result.code == 2 and result.stderr.endswith("\n  hint: --set train.packing=VALUE\n")
    assert "--set" not in cli("train", "--no-such-key").stderr.partition("Error")[2]


def test_an_option_of_a_component_that_is_typed_as_an_option(cli: Callable[..., Any]) -> None:
    assert cli("train", "--context", "8192").stderr.endswith("\n  hint: --loader-opt context=VALUE\n")
    assert cli("quantize", "tiny", "--output", "q", "--context", "8192").stderr.endswith("context=VALUE\n")
    assert "--loader-opt" not in cli("cache", "list", "--context", "8192").stderr


@pytest.mark.parametrize("group", ["config", "data", "cache", "plugins"])
def test_a_command_of_a_group_that_does_not_exist(cli: Callable[..., Any], group: str) -> None:
    result = cli(group, "frobnicate")
    assert result.code == 2 and "No such command 'frobnicate'\n  hint: commands: " in result.stderr
    similar = cli(group, "lists" if group in ("cache", "plugins") else "shw" if group == "config" else "stat")
    assert similar.stderr.splitlines()[-1].startswith("  hint: did you mean '")


def test_a_run_where_a_model_is_quantized(cli: Callable[..., Any]) -> None:
    Path("a run").mkdir()
    Path("a run", "run.yaml").write_text("model: tiny\n")
    result = cli("quantize", "a run", "--quant", "int4", "--output", "q")
    assert result.code == 2 and "error: 'a run' is a run, not a model\n" in result.stderr
    assert result.stderr.endswith("to quantize the merged model: smollm3 merge 'a run' --requantize int4 --output q\n")


def test_a_quantized_checkpoint_is_not_quantized_again(cli: Callable[..., Any]) -> None:
    rounding = Path(__file__).parents[1] / "out_of_tree" / "rounding_quantizer.py"
    tiny = Path(smollm3_finetune.__file__).parent / "builtin" / "tiny"
    shutil.copytree(tiny, "codes")
    config = json.loads(Path("codes/config.json").read_text())
    config["quantization_config"] = {"quant_method": "aqlm"}
    Path("codes/config.json").write_text(json.dumps(config))
    result = cli("quantize", "codes", "--quant", "rounding", "--output", "q", "-p", rounding)
    assert result.code == 3, result.stderr
    assert "rounding cannot load 'codes': its weights are already quantized by aqlm\n  hint: " in result.stderr
    assert not Path("q").exists()


def test_an_option_without_a_value(fails: Fails) -> None:
    assert fails(2, "--quant-opt", "bits").message == "--quant-opt takes KEY=VALUE, got 'bits'"


def test_an_unknown_key_is_named_once(fails: Fails) -> None:
    failure = fails(2, "--set", "train.max_stepz=3")
    assert failure == ("--set: unknown key 'train.max_stepz'", "did you mean 'train.max_steps'?")
    assert fails(2, "--set", "trian=3").message == "--set: unknown key 'trian'"
    assert fails(2, "--set", "learning_rate").hint == "--set train.learning_rate=VALUE"


def test_names_that_others_use(fails: Fails) -> None:
    assert fails(2, "--dtype", "fp61").hint.startswith("for example: --dtype ")
    assert "expected auto|float32|bfloat16|float16|float64" in fails(2, "--dtype", "fp61").message
    assert fails(2, "--set", "train.optimizer=adamw").hint == "did you mean 'adamw_torch'?"


def test_an_unknown_yaml_key_names_file_and_line(fails: Fails, isolated: Path) -> None:
    (isolated / "run.yaml").write_text("seed: 1\ntrain:\n  max_stepz: 3\n")
    failure = fails(2, "--config", "run.yaml")
    assert failure == ("run.yaml:3: unknown key 'train.max_stepz'", "did you mean 'train.max_steps'?")


def test_an_unknown_component_option_in_yaml_names_file_and_line(fails: Fails, isolated: Path, acme: None) -> None:
    (isolated / "run.yaml").write_text("seed: 1\nquant:\n  name: ranged\n  bitz: 3\n")
    failure = fails(2, "--config", "run.yaml")
    assert failure == ("run.yaml:4: quantizer 'ranged' has no option 'bitz'", "did you mean 'bits'?")


def test_a_missing_configuration_file(fails: Fails) -> None:
    assert "gone.yaml does not exist" in fails(2, "--config", "gone.yaml").message


# ------------------------------------------------------------------------------------- pairs and requirements


def test_a_pair_that_cannot_work(fails: Fails, plugin_file: Callable[[str, str], Path]) -> None:
    file = plugin_file("acme_plugin", OUT_OF_TREE)
    failure = fails(3, "-p", str(file), "--quant", "int4")
    assert failure.message == (
        "--adapter full needs operations that --quant int4 does not provide on cpu: dense (weights are packed); "
        "grad-weight (the quantizer does not declare it)"
    )
    assert failure.hint.startswith("--quant int4 --adapter ")
    assert failure.hint.endswith(" or --quant hollow --adapter full")  # `gpu` and `kernel` cannot run here


def test_a_package_that_is_missing(fails: Fails, acme: None) -> None:
    failure = fails(4, "--quant", "kernel")
    assert failure.message == "quantizer 'kernel' requires acme-kernels>=2, but it is not installed"
    assert failure.hint == "pip install 'acme-kernels>=2'"


def test_a_package_in_a_wrong_version(fails: Fails, acme: None, fake_distribution: Any) -> None:
    fake_distribution("acme-kernels", "1.9")
    assert fails(4, "--quant", "kernel").message.endswith("but acme-kernels 1.9 is installed")


def test_an_accelerator_that_is_not_there(fails: Fails, acme: None) -> None:
    assert fails(4, "--quant", "gpu").message == "quantizer 'gpu' runs on cuda only, but this run is on cpu"


def test_independent_problems_are_one_message(
    cli: Callable[..., Any], acme: None, isolated: Path, tmp_path: Path
) -> None:
    result = cli(
        "train", "--model", tmp_path / "nowhere", "--quant", "ranged", "--quant-opt", "bits=9", "--adapter", "ful",
        "--data", "gone.jsonl", "--objective", "stf",
    )  # fmt: skip
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 5, result.stderr
    for part in ("the model directory", "--quant-opt bits", "adapter 'ful'", "gone.jsonl", "objective 'stf'"):
        assert sum(part in e for e in errors) == 1
    assert result.code != 0
    assert list(isolated.iterdir()) == []


# -------------------------------------------------------------------------------------------- model and data


def test_a_missing_model(fails: Fails, tmp_path: Path) -> None:
    failure = fails(6, model=str(tmp_path / "nowhere"))
    assert failure.message == f"the model directory {str(tmp_path / 'nowhere')!r} does not exist"
    assert failure.hint == f"did you mean {str(tmp_path / 'model')!r}?"
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("not a model")
    assert "'empty' is not a model" in fails(6, model="../empty").message.replace("../", "")
    assert "notes.txt' is not a model that an installed loader" in fails(6, model="../notes.txt").message


def test_a_hub_model_that_cannot_be_fetched(fails: Fails) -> None:
    failure = fails(6, model="no-such-organization/no-such-model")
    assert "'no-such-organization/no-such-model'" in failure.message


def test_directories_without_a_model(fails: Fails, tmp_path: Path, model_directory: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "is not a model: it does not contain config.json" in fails(6, model=empty).message
    (model_directory / "model.safetensors").rename(model_directory / "pytorch_model.bin")
    assert "pickled weights" in fails(6).message
    (model_directory / "pytorch_model.bin").unlink()
    assert "no weights (*.safetensors)" in fails(6).message
    (model_directory / "config.json").write_text("{")
    assert "cannot be read as JSON" in fails(6).message


def test_a_quantized_checkpoint_that_no_component_reads(fails: Fails, model_directory: Path) -> None:
    config = {"model_type": "smollm3", "quantization_config": {"quant_method": "nobodys"}}
    (model_directory / "config.json").write_text(json.dumps(config))
    assert "quantized by 'nobodys', and no installed plugin reads it" in fails(3).message


def test_missing_data(fails: Fails) -> None:
    assert fails(5, "--data", "gone.jsonl").message == "the data file 'gone.jsonl' does not exist"


def test_malformed_jsonl_names_file_and_line(fails: Fails, rows_file: Path) -> None:
    with rows_file.open("a") as stream:
        stream.write('\n{"messages": [\n')
    assert fails(5).message.startswith(f"{rows_file}:6: not valid JSON: ")


def test_rows_without_usable_fields(fails: Fails, rows_file: Path) -> None:
    first = rows_file.read_text().splitlines()[0]
    rows_file.write_text(first + '\n{"messages": [{"role": "user", "content": "alone"}]}\n')
    failure = fails(5)
    assert failure == (f"{rows_file}:2: there is no assistant message to train on", "fix the rows")
    named = fails(5, "--formatter", "messages")
    assert named.hint == "fix the rows, or omit the name of the formatter: the format is then detected"
    rows_file.write_text('{"question": "x", "answer": "y"}\n')
    failure = fails(5)
    assert (
        failure.message
        == f"{rows_file}:1: no formatter recognizes a row with the columns 'question' (text), 'answer' (text)"
    )


def test_a_column_with_another_name(fails: Fails, rows_file: Path) -> None:
    rows_file.write_text('{"question": "x", "answer": "y"}\n')
    failure = fails(5, "--formatter", "prompt-completion")
    assert failure.message == f"{rows_file}:1: there is no column 'prompt' (columns: 'question', 'answer')"
    assert failure.hint == "to name the columns: --set formatter.prompt=COLUMN --set formatter.completion=COLUMN"
    assert fails(5, "--formatter", "text").hint == "to name the column: --set formatter.column=COLUMN"


def test_empty_data(fails: Fails, rows_file: Path) -> None:
    rows_file.write_text("\n\n")
    assert fails(5).message == f"{rows_file} contains no rows"


def test_one_row_cannot_be_split(fails: Fails, rows_file: Path) -> None:
    rows_file.write_text(rows_file.read_text().splitlines()[0] + "\n")
    assert fails(5).hint == "--set data.held_out=0"


# -------------------------------------------------------------------------------------------------- output


def test_an_output_that_contains_a_run(fails: Fails, isolated: Path) -> None:
    run = isolated / "run"
    run.mkdir()
    (run / "run.yaml").write_text("seed: 7\n")
    assert fails(2, "--output", "run").message == "the output directory 'run' already contains a run"
    assert (
        fails(2, "--output", "run", command="config validate").message
        == "the output directory 'run' already contains a run"
    )
    assert (run / "run.yaml").read_text() == "seed: 7\n"


def test_an_output_that_is_not_empty_or_is_a_file(fails: Fails, isolated: Path) -> None:
    (isolated / "notes").mkdir()
    (isolated / "notes" / "mine.txt").write_text("mine")
    assert fails(2, "--output", "notes").message == "the output directory 'notes' is not empty"
    assert fails(2, "--output", "notes/mine.txt").message == "--output notes/mine.txt is a file"


# ------------------------------------------------------------------------------------------------- plugins


def test_a_broken_plugin_that_is_not_needed_is_one_line(
    cli: Callable[..., Any], fake_distribution: Any, model_directory: Path, rows_file: Path
) -> None:
    fake_distribution("acme-bad", "2.1", {"acme_bad": "raise RuntimeError('no license')\n"}, {"bad": "acme_bad"})
    result = cli("config", "validate", "--model", model_directory, "--adapter", "full", "--data", rows_file)
    assert result.code == 0, result.stderr
    warnings = [line for line in result.stderr.splitlines() if "'bad'" in line]
    assert warnings == ["warning: the plugin 'bad' (acme-bad 2.1) is broken and was skipped: RuntimeError: no license"]
    assert result.stdout.startswith("ok: ")
    row = next(line for line in cli("plugins", "list").stdout.splitlines() if line.startswith("bad "))
    assert row.split()[1:] == ["broken", "acme-bad", "2.1", "RuntimeError:", "no", "license"]


def test_a_broken_plugin_that_is_needed(fails: Fails, fake_distribution: Any) -> None:
    fake_distribution("acme-bad", "2.1", {"acme_bad": "raise RuntimeError('no license')\n"}, {"bad": "acme_bad"})
    failure = fails(7, "--quant", "acme-bad:int4")
    assert failure.message == "plugin 'bad' (acme-bad 2.1, entry point) is broken: RuntimeError: no license"
    assert "broken plugins that may offer it: bad" in fails(2, "--quant", "rotated").message


def test_a_broken_plugin_shows_its_own_traceback_with_debug(cli: Callable[..., Any], fake_distribution: Any) -> None:
    fake_distribution("acme-bad", "2.1", {"acme_bad": "raise RuntimeError('no license')\n"}, {"bad": "acme_bad"})
    result = cli("train", "--debug", "--adapter", "full", "--quant", "acme-bad:int4")
    assert result.code == 7
    assert "acme_bad.py" in result.stderr and "RuntimeError: no license" in result.stderr


def test_a_plugin_file_that_is_broken_or_missing(fails: Fails, plugin_file: Callable[[str, str], Path]) -> None:
    file = plugin_file("acme_bad", "import no_such_module_at_all\n")
    assert "No module named 'no_such_module_at_all'" in fails(7, "-p", str(file)).message
    assert fails(2, "-p", "gone.py").message == "the plugin file 'gone.py' does not exist"


def test_a_component_that_fails_when_created(fails: Fails, acme: None, tiny_tokenizer: Path) -> None:
    for kind in ("quant", "adapter"):
        failure = fails(7, f"--{kind}", "hollow", model=tiny_tokenizer)
        assert "acme_hollow:Gone, cannot be imported: RuntimeError: broken inside" in failure.message


@pytest.fixture
def tiny_tokenizer(model_directory: Path) -> Path:
    """The model directory with a tokenizer, so that a run gets as far as creating its components."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*alphabet, "<e>"])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<e>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ' ' + m.content + '<e>' }}{% endfor %}" + (
        "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
    )
    tokenizer.save_pretrained(str(model_directory))
    return model_directory


def test_a_model_without_a_chat_template(fails: Fails, tiny_tokenizer: Path) -> None:
    for file in (tiny_tokenizer / "chat_template.jinja",):
        file.unlink()
    assert "has no chat template" in fails(6).message


def test_rows_without_supervised_tokens_within_the_length(fails: Fails, tiny_tokenizer: Path) -> None:
    failure = fails(5, "--max-length", "8", "--set", "data.held_out=0")
    assert "training rows has supervised tokens; the first is " in failure.message
    why = re.search(r"the supervised tokens begin at token (\d+), past data.max_length=8", failure.message)
    assert why is not None
    assert failure.hint == f"--max-length {int(why[1]) + 1}"


def test_two_plugins_with_one_name(fails: Fails, acme: None, fake_distribution: Any) -> None:
    source = OUT_OF_TREE.replace("acme_plugin", "zeta_plugin")
    fake_distribution("zeta", "2.0", {"zeta_plugin": source}, {"zeta": "zeta_plugin"})
    failure = fails(7, "--quant", "ranged")
    assert failure.message == "the quantizer 'ranged' is offered by acme 1.0 and zeta 2.0"
    assert failure.hint == "--quant acme:ranged or --quant zeta:ranged"
    assert "at most 8" in fails(2, "--quant", "zeta:ranged", "--quant-opt", "bits=9").message


def test_a_claim_that_raises_does_not_stop_other_runs(
    cli: Callable[..., Any], fake_distribution: Any, model_directory: Path, rows_file: Path
) -> None:
    source = (
        "from smollm3_finetune.api import *\n@hookimpl\ndef smollm3_loaders():\n"
        "    return [LoaderSpec(name='vault', summary='s', factory='a:B', claims=lambda ref: 1 / 0, api=2)]\n"
    )
    fake_distribution("acme", "1.0", {"acme_hooks": source}, {"acme": "acme_hooks"})
    result = cli("config", "validate", "--model", model_directory, "--adapter", "full", "--data", rows_file)
    assert result.code == 0, result.stderr


# ------------------------------------------------------------------------------------------------ the commands


def test_a_mistyped_command_and_flag_get_a_suggestion(cli: Callable[..., Any]) -> None:
    command, flag = cli("trian"), cli("train", "--quannt", "x")
    assert (command.code, flag.code) == (2, 2)
    assert "No such command 'trian'\n  hint: did you mean 'train'?" in command.stderr
    assert "--quant" in flag.stderr


def test_resuming_a_directory_that_is_not_a_run(cli: Callable[..., Any]) -> None:
    result = cli("train", "--resume", "nowhere")
    assert (result.code, result.stderr.splitlines()[0]) == (
        6,
        "error: the run directory 'nowhere' does not exist",
    )


def test_an_unknown_component_of_plugins_info(cli: Callable[..., Any]) -> None:
    result = cli("plugins", "info", "fulll")
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr == "error: no plugin provides a component named 'fulll'\n  hint: did you mean 'full'?\n"


def test_an_empty_prompt(cli: Callable[..., Any]) -> None:
    for prompt in ("", " "):
        result = cli("generate", "tiny", "--prompt", prompt)
        assert (result.code, "error: the prompt is empty" in result.stderr) == (2, True)


@pytest.mark.parametrize("args", [["--quant", "nonne"], ["--data", "gone.jsonl"], ["--config", "gone.yaml"]])
def test_the_installed_command_prints_the_same_error(args: list[str], run_cli: Any, isolated: Path) -> None:
    """In a separate process: no output of torch or Python appears on the streams."""
    result = run_cli("train", "--adapter", "full", "--device", "cpu", *args)
    assert result.code in (2, 5)
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if not line.startswith("  hint: ")]
    assert [e for e in errors if e.startswith("error: ") and args[1] in e]
    assert all(e.startswith(("error: ", "warning: plugin")) for e in errors)
    assert list(isolated.iterdir()) == []


@pytest.mark.plugins
@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (("train", "--ship-as", "gguf", "--type", "q4_0"), "--ship-as-opt type=VALUE"),
        (("train", "--ship-as=gptq", "--bits", "3"), "--ship-as-opt bits=VALUE"),
        (("train", "--ship-as", "gguf", "--rank", "3"), "--adapter-opt rank=VALUE"),
        (("merge", "run", "--requantize", "gptq", "--bits", "3"), "--requantize-opt bits=VALUE"),
    ],
)
def test_a_flag_of_a_component_is_named_with_what_sets_it(
    command: tuple[str, ...], hint: str, cli: Callable[..., Any]
) -> None:
    done = cli(*command)
    assert done.code == 2 and done.stderr.endswith(f"hint: {hint}\n"), done.stderr
