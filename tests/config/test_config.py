"""The configuration: YAML 1.2, layers, the origin of each value, and errors for wrong keys."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.config.load import LoadedConfig, Setting, as_dict, assemble, assignment, file_settings
from smollm3_finetune.config.options import describe
from smollm3_finetune.config.schema import SOURCE_KEYS, ComponentConfig, RunConfig
from smollm3_finetune.config.yaml12 import dump_yaml, parse_value, read_yaml
from smollm3_finetune.data.sources import SourceConfig
from smollm3_finetune.errors import ConfigError, Problems

Write = Callable[[str], Path]


@pytest.fixture
def write(isolated: Path) -> Write:
    def make(text: str) -> Path:
        Path("run.yaml").write_text(textwrap.dedent(text), encoding="utf-8")
        return Path("run.yaml")

    return make


def flags(*texts: str) -> list[Setting]:
    return [assignment(t, "--set") for t in texts]


def load(path: Path, *sets: str) -> LoadedConfig:
    return assemble([file_settings(path), flags(*sets)])


# --------------------------------------------------------------------------------------------------- YAML


def test_scalars_are_those_of_yaml_1_2(write: Write) -> None:
    values, lines = read_yaml(
        write("a: 2e-5\nb: no\nc: on\nd: 0o17\ne: 1:30\nf: true\ng: ~\nh: 'x'\ni: .5\nj: [1, a]\n")
    )
    assert values == {
        "a": 2e-5, "b": "no", "c": "on", "d": 15, "e": "1:30", "f": True, "g": None, "h": "x", "i": 0.5, "j": [1, "a"],
    }  # fmt: skip
    assert type(values["a"]) is float
    assert lines[("c",)] == "run.yaml:3"


def test_command_line_values_are_parsed_as_yaml() -> None:
    assert [parse_value(t) for t in ("2e-5", "no", "4", "true", "null")] == [2e-5, "no", 4, True, None]
    assert parse_value("[q_proj, v_proj]") == ["q_proj", "v_proj"]
    assert parse_value("@x: [") == "@x: ["  # not valid YAML, so it is text
    assert parse_value("2026-13-45") == "2026-13-45"  # looks like a date, but is not valid
    assert parse_value("") == ""


def test_an_empty_file_and_empty_sections_are_the_defaults(write: Write) -> None:
    assert load(write("")).config == RunConfig()
    assert load(write("# nothing\ntrain:\n#  max_steps: 3\ndata:\nquant:\n")).config == RunConfig()


def test_invalid_yaml_is_an_error_with_file_and_line(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml:3: not valid YAML"):
        read_yaml(write("a: 1\nb: [1, 2\n"))
    with pytest.raises(ConfigError, match=r"run\.yaml:3: not valid YAML: found duplicate key \"seed\""):
        read_yaml(write("seed: 1\nmodel: tiny\nseed: 2\n"))
    with pytest.raises(ConfigError, match=r"run\.yaml: expected a mapping, got (a list|the single value)"):
        read_yaml(write("- seed\n- model\n"))


def test_a_file_that_is_missing_or_no_text_is_an_error(isolated: Path) -> None:
    with pytest.raises(ConfigError, match=r"the configuration file gone\.yaml does not exist"):
        read_yaml(Path("gone.yaml"))
    Path("bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (Path("bytes.yaml"), isolated):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_yaml(path)


def test_the_hint_for_a_missing_file_names_those_that_exist(isolated: Path) -> None:
    def hint(name: str) -> str | None:
        with pytest.raises(ConfigError) as error:
            read_yaml(Path(name))
        return error.value.hint

    assert hint("gone.yaml") == "ls ."
    Path("sft.yaml").write_text("seed: 1\n")
    Path("rows.json").write_text("[]")
    assert hint("gone.yaml") == "YAML files in the current directory: sft.yaml"
    assert hint("stf.yaml") == "did you mean 'sft.yaml'?"
    assert hint("nowhere/gone.yaml") == "ls nowhere"


def test_values_from_merge_keys_and_anchors_have_an_origin(write: Write) -> None:
    values, lines = read_yaml(write("base: &base\n  max_steps: 3\ntrain:\n  <<: *base\n  epochs: 2\n"))
    assert values["train"] == {"max_steps": 3, "epochs": 2}
    assert lines[("train", "epochs")] == "run.yaml:5"
    assert lines[("train", "max_steps")].startswith("run.yaml")


def test_a_written_configuration_is_read_back_unchanged(write: Write, isolated: Path) -> None:
    file = write("model: tiny\ntrain: {learning_rate: 2e-5}\nquant: {name: gptq, bits: 4, words: [no, '1e3', on]}\n")
    loaded = load(file)
    again = isolated / "again.yaml"
    again.write_text(dump_yaml(as_dict(loaded.config)), encoding="utf-8")
    assert assemble([file_settings(again)]).config == loaded.config
    assert loaded.config.quant.options["words"] == ["no", "1e3", "on"]


# ------------------------------------------------------------------------------------------------- layers


def test_later_layers_win_and_every_value_has_its_origin(write: Write) -> None:
    loaded = load(write("seed: 1\ntrain:\n  max_steps: 3\n  epochs: 2\n"), "train.max_steps=5")
    assert (loaded.config.train.max_steps, loaded.config.train.epochs, loaded.config.seed) == (5, 2.0, 1)
    assert loaded.origin("train.max_steps") == "--set train.max_steps"
    assert loaded.origin("train.epochs") == "run.yaml:4"
    assert loaded.origin("train.batch_size") == "default"


def test_the_later_of_epochs_and_max_steps_sets_the_length_of_a_run() -> None:
    def config(*layers: dict[str, Any]) -> Any:
        made = [[Setting(key=("train", k), value=v, origin="here") for k, v in one.items()] for one in layers]
        return assemble(made).config.train

    assert config({"max_steps": 60}, {"epochs": 5}).max_steps is None
    assert config({"max_steps": 60, "epochs": 3}, {"epochs": 5}).max_steps is None
    assert config({"epochs": 5}, {"max_steps": 60}).max_steps == 60
    assert config({"max_steps": 60}, {"epochs": 5, "max_steps": 7}).max_steps == 7
    assert config({"max_steps": 60, "epochs": 3}, {"batch_size": 2}).max_steps == 60


def test_a_section_may_be_a_name_or_a_mapping(write: Write) -> None:
    assert load(write("quant: gptq\n")).config.quant == ComponentConfig(name="gptq")
    expected = ComponentConfig(name="gptq", options={"bits": 4})
    assert load(write("quant: {name: gptq, bits: 4}\n")).config.quant == expected
    assert load(write("quant:\n"), "quant=gptq", "quant.bits=4").config.quant == expected


def test_selecting_another_component_drops_the_previous_options(write: Write) -> None:
    file = write("quant: {name: gptq, bits: 4}\nadapter: {name: lora, rank: 8}\n")
    loaded = load(file, "quant=bnb-4bit", "quant.double=true")
    assert loaded.config.quant == ComponentConfig(name="bnb-4bit", options={"double": True})
    assert loaded.config.adapter.options == {"rank": 8}
    assert "quant.bits" not in loaded.origins
    assert load(file, "quant=gptq").config.quant.options == {"bits": 4}  # the same component keeps its options


def test_set_changes_one_key_at_any_depth(write: Write) -> None:
    file = write("quant: {name: x, deep: {a: 1, b: {c: 2}}}\n")
    assert load(file, "quant.deep.b.c=3").config.quant.options == {"deep": {"a": 1, "b": {"c": 3}}}
    assert load(file, "quant.deep.n.e.w=4").config.quant.options["deep"]["n"] == {"e": {"w": 4}}


def test_a_mapping_and_keys_inside_it_are_merged_in_any_order(write: Write) -> None:
    whole, inside = "data.path={path: org/ds, limit: 3}", "data.path.split=test"
    expected = {"path": "org/ds", "limit": 3, "split": "test"}
    assert load(write(""), whole, inside).config.data.path == expected
    assert load(write(""), inside, whole).config.data.path == expected
    file = write("data: {path: {path: org/ds, split: train}}\nquant: {name: x, deep: null}\n")
    assert load(file, inside).config.data.path == {"path": "org/ds", "split": "test"}
    assert load(file, "data.path=rows.jsonl").config.data.path == "rows.jsonl", "a flag replaces the file's mapping"
    assert load(file, "quant.deep.a=1").config.quant.options == {"deep": {"a": 1}}
    assert load(file, "quant.bits=4", "quant=x").config.quant.options == {"bits": 4, "deep": None}


def test_keys_inside_a_value_that_is_not_a_mapping_are_an_error(write: Write, cli: Any) -> None:
    error = one_problem(write("data: {path: org/ds}\n"), "data.path.split=test_sft")
    assert error.message == "run.yaml:1 sets data.path to 'org/ds', so --set data.path.split cannot set a key inside it"
    hint = "to set both: --set 'data.path={path: org/ds, split: test_sft}'"
    assert error.hint == hint
    result = cli("config", "show", "--data", "org/ds", "--set", "data.path.split=test_sft")
    assert result.code == 2
    said = "--data sets data.path to 'org/ds', so --set data.path.split cannot set a key inside it"
    assert result.stderr == f"error: {said}\n  hint: {hint}\n"
    for sets, typed in (
        (("data.path.split=a", "data.path.limit=2", "data.path=o/ds"), "data.path={path: o/ds, split: a, limit: 2}"),
        (("data.path=[a, {path: b}]", "data.path.limit=2"), "data.path=[{path: a, limit: 2}, {path: b, limit: 2}]"),
        (("data.path=a, b", "data.path.limit=2"), "data.path={path: 'a, b', limit: 2}"),
        (("calibration.path=a", "calibration.path.limit=2"), "calibration.path={path: a, limit: 2}"),
        (("data.path=[a, {path: b}]", "data.path.1.limit=2"), "data.path=[path: a, {path: b, limit: 2}]"),
        (("data.path=a", "data.path.0.wieght=2"), "data.path={path: a, weight: 2}"),
    ):
        hint = one_problem(write(""), *sets).hint or ""
        (assigned,) = shlex.split(hint.partition(": --set ")[2])
        assert assigned == typed
        key, _, value = typed.partition("=")
        assert isinstance(parse_value(value), dict | list), key


def test_a_value_that_cannot_have_keys_is_named_with_what_to_omit(write: Write) -> None:
    for sets, omit in (
        (("adapter.rank=3", "adapter.rank.q.x=4"), "omit --set adapter.rank.q.x"),
        (("quant=x", "quant.name.y=4"), "omit --set quant.name.y"),
    ):
        assert one_problem(write(""), *sets).hint == omit
    beyond = one_problem(write(""), "data.path=[a, b]", "data.path.2.weight=2")
    assert beyond.message == "--set data.path.2.weight: data.path has 2 entries, counted from 0"
    assert beyond.hint == "to set both: --set 'data.path=[path: a, {path: b, weight: 2}]'"


@pytest.mark.parametrize("text", ["train.max_steps", "=4", ".=4", "   =4"])
def test_an_assignment_without_key_or_value_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="--set takes KEY=VALUE") as caught:
        assignment(text, "--set")
    assert caught.value.hint == "--set train.max_steps=VALUE"


# --------------------------------------------------------------------------------------------- wrong keys


def one_problem(path: Path, *sets: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(path, *sets)
    return caught.value


def test_unknown_keys_are_errors_with_file_line_and_a_suggestion(write: Write) -> None:
    error = one_problem(write("seed: 1\nmodle: tiny\n"))
    assert (error.message, error.hint) == ("run.yaml:2: unknown key 'modle'", "did you mean 'model'?")
    error = one_problem(write("train:\n  max_step: 3\n"))
    assert (error.message, error.hint) == (
        "run.yaml:2: unknown key 'train.max_step'",
        "did you mean 'train.max_steps'?",
    )
    error = one_problem(write("max_steps: 3\n"))
    assert (error.message, error.hint) == ("run.yaml:1: unknown key 'max_steps'", "did you mean 'train.max_steps'?")
    error = one_problem(write("xyzzy: 3\n"))
    assert error.hint is not None and error.hint.startswith("known keys: model, from, fresh_adapter, loader, quant")


def test_unknown_keys_of_the_command_line_name_the_flag(write: Write) -> None:
    error = one_problem(write(""), "trian.max_steps=3")
    assert (error.message, error.hint) == (
        "--set: unknown key 'trian.max_steps'",
        "did you mean 'train.max_steps'?",
    )


def test_wrong_values_are_errors_with_origin_key_range_and_value(write: Write) -> None:
    assert one_problem(write("train:\n  epochs: 1\n  batch_size: 0\n")).message == (
        "run.yaml:3: train.batch_size: expected integer (at least 1, at most 1000000), got 0"
    )
    assert one_problem(write("seed: x\n")).message == ("run.yaml:1: seed: expected integer (at least 0), got 'x'")
    assert one_problem(write("dtype: int3\n")).message.startswith("run.yaml:1: dtype: expected auto|float32|")
    assert one_problem(write("train: 3\n")).message == "run.yaml:1: expected a mapping for train, got 3"
    listed = one_problem(write("quant: [a]\n"))
    assert listed.message.startswith("run.yaml:1: expected a name or a mapping for quant, got ['a']")
    assert listed.hint == "for example: quant: NAME"
    assert one_problem(write("quant: {name: 4}\n")).message == "run.yaml:1: quant.name: expected text, got 4"
    assert one_problem(write("seed: {a: 1}\n")).message.startswith("run.yaml:1: seed: expected integer")
    assert one_problem(write(""), "seed.a=1").message == "--set seed.a: seed is a single value and has no keys"
    assert load(write("output: 2026-11-22\n")).config.output == "2026-11-22", "YAML 1.2's core has no dates"


def test_all_wrong_keys_are_reported_together(write: Write) -> None:
    with pytest.raises(Problems) as caught:
        load(write("modle: x\nseed: -1\ntrain: {epochs: 0, lr: 1}\ndata: 4\n"), "quant.name=3")
    messages = [p.message for p in caught.value.problems]
    assert len(messages) == 6
    for part in ("'modle'", "seed", "train.epochs", "'train.lr'", "a mapping for data", "quant.name"):
        assert sum(part in m for m in messages) == 1
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["Hi: there", "- no list", "2026-13-45"])
def test_text_on_the_command_line_is_not_parsed(text: str) -> None:
    assert parse_value(text) == text


def test_lists_and_mappings_on_the_command_line_need_brackets() -> None:
    assert parse_value("[a, 2]") == ["a", 2]
    assert parse_value("{a: 1}") == {"a": 1}


def test_the_keys_of_an_entry_of_data_path_are_those_of_the_data_package() -> None:
    assert [info.name for info in describe(SourceConfig)] == list(SOURCE_KEYS)


BOMB = "a: &a0 [x]\n" + "".join(f"b{n}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(20))
EXPANDING = {
    "aliases": (BOMB, "more than 20000 values, aliases included (the limit is SMOLLM3_MAX_YAML_VALUES=20000)"),
    "merges": ("a0: &a0 {x: 1}\n" + "".join(f"a{n + 1}: &a{n + 1} {{<<: [*a{n}, *a{n}]}}\n" for n in range(40)),
               "more than 20000 values"),
    "itself": ("a: &a [*a]", "more than 20000 values"),
    "depth": ("a: " + "[" * 101 + "]" * 101, "nested too deeply, more than 100 levels"),
    "open depth": ("a: " + "[" * 5000, "nested too deeply"),
    "size": ("a: " + "x" * 500_001, "larger than 500 kB (the limit is SMOLLM3_MAX_CONFIG_KB=500)"),
    "tag": ("a: !!python/object:os.system x", "line 1: the tag tag:yaml.org,2002:python/object:os.system is not"),
    "set": ("a: !!set {x, y}", "the tag tag:yaml.org,2002:set is not supported"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), EXPANDING.values(), ids=EXPANDING)
def test_yaml_that_expands_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as e:
        read_yaml(file)
    assert problem in e.value.message


def test_aliases_within_the_limit_are_read(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("a: &x {k: 1}\nb: [*x, *x]\nc: {<<: *x, l: !!str 2}\n")
    assert read_yaml(file)[0] == {"a": {"k": 1}, "b": [{"k": 1}, {"k": 1}], "c": {"k": 1, "l": "2"}}


def test_a_limit_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("a: " + "[" * 101 + "]" * 101)
    monkeypatch.setenv("SMOLLM3_MAX_DEPTH", "102")
    assert read_yaml(file)[0]["a"]
