"""Presets: each is valid, cites its sources and can be planned; they are beneath everything that a user sets."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.api import Purpose
from smollm3_finetune.components.discovery import discover
from smollm3_finetune.components.kinds import KINDS, QUANTIZER
from smollm3_finetune.components.negotiation import environment, refusal
from smollm3_finetune.components.selection import choose
from smollm3_finetune.config.load import (
    LoadedConfig,
    Setting,
    as_dict,
    assemble,
    file_settings,
    mapping_settings,
)
from smollm3_finetune.config.preset import preset_settings, preset_text
from smollm3_finetune.config.preset_names import preset_file, preset_names, preset_summaries
from smollm3_finetune.config.schema import COMPONENT_SECTIONS, PLAIN_SECTIONS, TrainConfig
from smollm3_finetune.config.yaml12 import dump_yaml
from smollm3_finetune.errors import ConfigError, SmolLM3Error
from smollm3_finetune.installing.index import embedded_index
from smollm3_finetune.pipeline.configuration import layers
from smollm3_finetune.pipeline.file import read_pipeline
from smollm3_finetune.runs.resume import may_change
from smollm3_finetune.runs.start_from import without_preset_sections
from smollm3_finetune.sweep.file import read_sweep

NAMES = preset_names()
CONTEXT = ("--max-length", "2048")
"""The context of the built-in model, which the recipes of SmolLM3 exceed."""


def setting(key: str, value: Any, origin: str = "--flag") -> Setting:
    return Setting(key=tuple(key.split(".")), value=value, origin=origin)


def with_preset(name: Any, *settings: Setting) -> LoadedConfig:
    return assemble([[setting("preset", name, "--preset"), *settings]])


def test_there_are_the_presets_that_the_documentation_names() -> None:
    assert NAMES == ["lora-without-regret", "qlora", "small-gpu", "smollm3-apo", "smollm3-sft"]


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_sets_exactly_what_its_file_says(name: str) -> None:
    loaded = with_preset(name)
    for one in preset_settings(name):
        key = ".".join(one.key)
        assert loaded.origin(key) == f"preset {name}", key
    values = as_dict(loaded.config)
    assert values["adapter"]["name"] in ("lora", "full")
    assert {s.key[0] for s in preset_settings(name)} <= {*COMPONENT_SECTIONS, *PLAIN_SECTIONS, "seed"}


@pytest.mark.parametrize("name", NAMES)
def test_each_value_of_a_preset_cites_a_source_of_the_file(name: str) -> None:
    text = preset_text(name)
    sources = dict(re.findall(r"^#\s+\[(\d)\].*?(https://\S+)", text, re.MULTILINE | re.DOTALL))
    assert sources, text
    assert text.startswith("# ")
    assert preset_summaries()[name].endswith(".")
    for line in (line for line in text.splitlines() if re.match(r"\s*\w+:\s+\S", line) and "name:" not in line):
        cited = re.search(r"# \[(\d)\] \S", line)
        assert cited and cited[1] in sources, line
    assert len(text.splitlines()) < 50


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_names_components_that_are_published_and_no_model_or_data(name: str) -> None:
    published = [c for p in embedded_index().plugins if p.published for c in p.components]
    known = {k.section: {"full", "sft", *(c.name for c in published if c.kind == k.name)} for k in KINDS}
    for one in preset_settings(name):
        if one.key[-1] == "name":
            assert one.value in known[one.key[0]]
        assert one.key[0] not in ("model", "output", "device", "from") and one.key != ("data", "path")


def rows_for(name: str, tmp_path: Path) -> str:
    rows = [{"prompt": f"What is {n}?", "chosen": f"A number, {n}.", "rejected": "A word."} for n in range(8)]
    turns = [{"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["chosen"]}]}
             for r in rows]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in (rows if "apo" in name else turns)))
    return str(file)


@pytest.mark.plugins
@pytest.mark.parametrize("name", NAMES)
def test_the_components_of_a_preset_take_its_options_and_work_together(name: str) -> None:
    """Without torch; the long test below plans the whole run."""
    registry, config = discover(), with_preset(name).config
    chosen = {
        kind.section: choose(registry, kind, section.name, section)
        for kind in KINDS
        if (section := getattr(config, kind.section, None)) is not None and section.name is not None
    }
    quant = chosen.get("quant") or choose(registry, QUANTIZER, "none", {})
    assert refusal(quant, chosen["adapter"], environment("cpu", Purpose.TRAIN)) is None


@pytest.mark.long
@pytest.mark.plugins
@pytest.mark.parametrize("name", NAMES)
def test_a_preset_can_be_planned_on_the_built_in_model(name: str, cli: Callable[..., Any], tmp_path: Path) -> None:
    file = rows_for(name, tmp_path)
    result = cli("train", "--preset", name, "--data", file, *CONTEXT, "--dry-run", "--json")
    assert result.code == 0, result.stderr
    planned = json.loads(result.stdout)["config"]
    assert planned["preset"] == [name]
    for one in preset_settings(name):
        if one.key == ("data", "max_length"):
            continue
        value = planned[one.key[0]] if len(one.key) == 1 else planned[one.key[0]][one.key[1]]
        shown = value.rpartition(":")[2] if one.key[-1] == "name" else value
        assert shown == one.value, one


def test_everything_that_a_user_sets_is_above_a_preset() -> None:
    loaded = with_preset("qlora", setting("train.learning_rate", 1e-5), setting("adapter.name", "full"))
    assert loaded.config.train.learning_rate == 1e-5
    assert loaded.origin("train.learning_rate") == "--flag"
    assert (loaded.config.adapter.name, dict(loaded.config.adapter.options)) == ("full", {})
    assert loaded.config.train.max_grad_norm == 0.3
    assert loaded.origin("train.max_grad_norm") == "preset qlora"


def test_the_optimizer_of_a_plugin_replaces_that_of_a_preset() -> None:
    loaded = with_preset("qlora", setting("optimizer.name", "mine"))
    assert (loaded.config.train.optimizer, loaded.origin("train.optimizer")) == (TrainConfig().optimizer, "default")
    assert loaded.origin("train.schedule") == "preset qlora"
    again = assemble([mapping_settings(as_dict(loaded.config), defaultdict(lambda: "run.yaml:1"))])
    assert again.config.train == loaded.config.train
    for without in (with_preset("qlora"), with_preset("qlora", setting("optimizer.name", None))):
        assert without.config.train.optimizer == "paged_adamw_32bit"
    own = with_preset("qlora", setting("optimizer.name", "mine"), setting("train.optimizer", "sgd"))
    assert own.config.train.optimizer == "sgd", "both are the user's: planning refuses them"


def test_of_several_presets_the_later_one_wins() -> None:
    loaded = with_preset(["smollm3-apo", "small-gpu"])
    assert loaded.config.objective.name == "apo-zero"
    assert (loaded.config.adapter.name, loaded.config.quant.name) == ("lora", "bnb-4bit")
    assert loaded.origin("train.learning_rate") == "preset small-gpu"
    assert loaded.origin("train.max_grad_norm") == "preset smollm3-apo"
    assert with_preset("smollm3-apo,small-gpu").config.train == loaded.config.train


def test_the_command_line_replaces_the_preset_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("preset: qlora\nmodel: x/y\n")
    loaded = assemble([file_settings(file), [setting("preset", "lora-without-regret", "--preset")]])
    assert loaded.config.quant.name is None
    assert loaded.config.adapter.options["rank"] == 256
    assert assemble([file_settings(file)]).config.quant.name == "bnb-4bit"


def test_a_preset_that_does_not_exist_is_named_with_a_similar_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no preset 'qlorra'") as caught:
        with_preset("qlorra")
    assert caught.value.hint == "did you mean 'qlora'?"
    file = tmp_path / "run.yaml"
    file.write_text("preset: zzz\n")
    with pytest.raises(ConfigError, match=r"run.yaml:1: there is no preset 'zzz'") as caught:
        assemble([file_settings(file)])
    assert caught.value.hint == f"presets: {', '.join(NAMES)}"
    with pytest.raises(ConfigError, match="there is no preset '3'"):
        with_preset(3)
    with pytest.raises(SmolLM3Error, match="preset"):
        with_preset({"name": "qlora"})


@pytest.mark.parametrize("name", ["../qlora", "presets/qlora", "qlora.yaml", "", "/etc/passwd"])
def test_the_name_of_a_preset_is_not_a_path(name: str) -> None:
    if name:
        with pytest.raises(ConfigError, match="there is no preset"):
            with_preset([name])
    else:
        assert with_preset("").config.preset == ()


def test_the_values_of_a_saved_run_do_not_change_with_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version of a preset sets another value, and a key that the run did not have."""
    saved = as_dict(with_preset("qlora").config)
    del saved["train"]["base_dropout"]
    file = tmp_path / "run.yaml"
    file.write_text(dump_yaml({**saved, "given": ["adapter.rank", "quant.quant_type"]}))
    changed = tmp_path / "presets"
    changed.mkdir()
    text = Path(preset_file("qlora")).read_text().replace("rank: 64", "rank: 8")
    (changed / "qlora.yaml").write_text(text.replace("train:\n", 'train:\n  base_dropout: "off"\n'))
    monkeypatch.setattr("smollm3_finetune.config.preset_names.PRESETS", str(changed))
    assert with_preset("qlora").config.adapter.options["rank"] == 8
    again = assemble([file_settings(file)]).config
    assert (again.adapter.options["rank"], again.train.base_dropout, again.preset) == (64, "model", ("qlora",))
    assert assemble([assemble([file_settings(file)]).settings]).config == again


def test_a_preset_above_the_configuration_of_a_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(dump_yaml({**as_dict(assemble([]).config), "given": []}))
    with pytest.raises(ConfigError, match=r"--preset has no effect: .*run.yaml is that of a run") as caught:
        assemble([file_settings(file), [setting("preset", "qlora", "--preset")]])
    assert caught.value.hint == "omit --preset"


def test_a_preset_whose_plugin_is_not_installed_says_how_to_install_it(
    cli: Callable[..., Any], rows_file: Path
) -> None:
    result = cli("train", "--preset", "qlora", "--data", str(rows_file), "--no-plugins", "--dry-run")
    assert result.code
    assert "bnb-4bit" in result.stderr
    assert "; preset qlora selects it" in result.stderr
    assert "preset qlora selects it" not in cli("train", "--quant", "bnb-4bit", "--no-plugins", "--dry-run").stderr


def test_a_value_of_a_preset_that_the_model_cannot_have_names_the_preset(cli: Callable[..., Any]) -> None:
    result = cli("config", "validate", "--preset", "smollm3-sft")
    assert "data.max_length=65536 (preset smollm3-sft) is more than the 2048 tokens" in result.stderr
    assert "--max-length 2048" in result.stderr


def test_config_presets_lists_them_and_prints_one(cli: Callable[..., Any]) -> None:
    listed = cli("config", "presets").stdout
    assert all(name in listed for name in NAMES)
    assert cli("config", "presets", "qlora").stdout == Path(preset_file("qlora")).read_text()
    wrong = cli("config", "presets", "qlor")
    assert wrong.code == 2
    assert "did you mean 'qlora'?" in wrong.stderr


def test_config_show_has_the_origins(cli: Callable[..., Any]) -> None:
    shown = cli("config", "show", "--preset", "qlora", "--lr", "1e-5").stdout
    assert re.search(r"rank: 64 +# preset qlora", shown)
    assert re.search(r"learning_rate: 1e-05 +# --learning-rate", shown)


@pytest.mark.long
def test_finetune_takes_presets(rows_file: Path) -> None:
    from smollm3_finetune import finetune

    planned = finetune(data=str(rows_file), preset=["lora-without-regret"], dry_run=True, quiet=True)
    assert planned["config"]["preset"] == ["lora-without-regret"]
    assert planned["config"]["train"]["gradient_accumulation"] == 4


def test_a_resumed_run_cannot_have_another_preset() -> None:
    assert not may_change(("preset",))


def test_a_preset_gives_way_to_the_adapter_that_a_run_starts_from() -> None:
    stated = with_preset("qlora", setting("train.max_steps", 3), setting("adapter.dropout", 0.5))
    left = without_preset_sections(stated, {"quant", "adapter"})
    assert left.config.quant.name is None
    assert dict(left.config.adapter.options) == {"dropout": 0.5}
    assert left.config.train.max_grad_norm == 0.3
    assert without_preset_sections(left, {"loader"}) is left


PIPELINE = """
name: two
preset: qlora
stages:
  - {name: first, train: {}}
  - name: second
    from: first
    preset: smollm3-apo
    train: {learning_rate: 1e-5}
"""


def test_the_stages_of_a_pipeline_take_presets(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text(PIPELINE)
    pipeline = read_pipeline(file)
    first, second = (assemble(layers(pipeline, stage, {})).config for stage in pipeline.stages)
    assert (first.quant.name, first.adapter.name, first.objective.name) == ("bnb-4bit", "lora", None)
    assert (second.quant.name, second.adapter.name) == (None, None)  # those of the first stage
    assert (second.objective.name, second.train.learning_rate, second.train.max_grad_norm) == ("apo-zero", 1e-5, 0.2)


def test_the_trials_of_a_sweep_take_presets(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("run: {model: tiny, train: {max_steps: 2}}\ngrid: {preset: [qlora, lora-without-regret]}\n")
    sweep = read_sweep(file)
    ranks = [assemble([sweep.run, trial.settings]).config.adapter.options["rank"] for trial in sweep.trials]
    assert ranks == [64, 256]
