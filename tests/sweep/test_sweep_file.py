"""The file of a sweep: which trials it describes, and what is wrong with it, by line."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from smollm3_finetune.errors import ConfigError, Problems, SmolLM3Error
from smollm3_finetune.sweep.file import SweepFile, read_sweep
from smollm3_finetune.sweep.naming import trial_names


def read(text: str) -> SweepFile:
    Path("s.yaml").write_text(text, encoding="utf-8")
    return read_sweep("s.yaml")


def problems(text: str) -> list[SmolLM3Error]:
    with pytest.raises(SmolLM3Error) as found:
        read(text)
    return list(found.value.problems) if isinstance(found.value, Problems) else [found.value]


def test_a_grid_has_all_combinations_in_the_order_of_the_file(isolated: Path) -> None:
    sweep = read("run: {model: tiny}\ngrid:\n  adapter.rank: [8, 16]\n  train.learning_rate: [1e-4, 1e-3]\n")
    assert [dict(t.values) for t in sweep.trials] == [
        {"adapter.rank": rank, "train.learning_rate": rate} for rank, rate in itertools.product((8, 16), (1e-4, 1e-3))
    ]
    assert [t.name for t in sweep.trials[:2]] == ["rank-8_learning_rate-0.0001", "rank-8_learning_rate-0.001"]
    assert [(s.key, s.value, s.origin) for s in sweep.trials[3].settings] == [
        (("adapter", "rank"), 16, "s.yaml:3"),
        (("train", "learning_rate"), 1e-3, "s.yaml:4"),
    ]
    assert [(s.key, s.value, s.origin) for s in sweep.run] == [(("model",), "tiny", "s.yaml:1")]


def test_components_and_sections_are_values_too(isolated: Path) -> None:
    sweep = read("grid:\n  adapter:\n    - lora\n    - {name: dora, rank: 4}\n  quant.name: [none]\n")
    assert [[(".".join(s.key), s.value) for s in t.settings] for t in sweep.trials] == [
        [("adapter.name", "lora"), ("quant.name", "none")],
        [("adapter.name", "dora"), ("adapter.rank", 4), ("quant.name", "none")],
    ]
    assert [t.name for t in sweep.trials] == ["adapter-lora_quant-none", "adapter-dora-rank-4_quant-none"]


RANDOM = """\
random:
  adapter.rank: [8, 16, 32]
  train.learning_rate: {log_uniform: [1e-5, 1e-2]}
  train.warmup: {uniform: [0, 0.25]}
  data.seed: {integer: [3, 5]}
trials: 40
"""


def test_random_values_are_in_their_ranges_and_differ(isolated: Path) -> None:
    trials = read(RANDOM).trials
    assert len(trials) == 40
    found = {key: [t.values[key] for t in trials] for key in trials[0].values}
    assert set(found["adapter.rank"]) == {8, 16, 32}
    assert set(found["data.seed"]) == {3, 4, 5}
    assert all(0 <= w <= 0.25 for w in found["train.warmup"])
    rates = found["train.learning_rate"]
    assert all(1e-5 <= rate <= 1e-2 for rate in rates)
    assert all(sum(low <= r < 10 * low for r in rates) >= 5 for low in (1e-5, 1e-4, 1e-3))  # even on a log scale
    assert len(set(rates)) == 40
    assert all(float(f"{rate:.4g}") == rate for rate in rates)


def test_random_values_depend_on_the_seed_the_key_and_the_number_of_the_trial_only(isolated: Path) -> None:
    first = [dict(t.values) for t in read(RANDOM).trials]
    assert [dict(t.values) for t in read(RANDOM.replace("40", "50")).trials][:40] == first
    without = RANDOM.replace("  data.seed: {integer: [3, 5]}\n", "")
    assert [t.values["train.warmup"] for t in read(without).trials] == [v["train.warmup"] for v in first]
    assert [dict(t.values) for t in read(RANDOM + "seed: 1\n").trials] != first


def test_a_list_of_trials_is_taken_as_it_is(isolated: Path) -> None:
    sweep = read("trials:\n  - {adapter.rank: 8, train.epochs: 2}\n  - adapter.rank: 16\n  - {}\n")
    assert [t.name for t in sweep.trials] == ["rank-8_epochs-2", "rank-16", "defaults"]
    assert sweep.trials[1].settings[0].origin == "s.yaml:3"


def test_run_may_be_a_configuration_file_or_a_run(isolated: Path) -> None:
    Path("one").mkdir()
    for file in ("base.yaml", "one/run.yaml"):
        Path(file).write_text("model: tiny\noutput: somewhere\n", encoding="utf-8")
    for value in ("base.yaml", "one"):
        sweep = read(f"run: {value}\ngrid: {{adapter.rank: [8]}}\n")
        assert [(s.key, s.value) for s in sweep.run] == [(("model",), "tiny")]


def test_names_are_short_unique_and_stable() -> None:
    assert trial_names([{"data.seed": 1, "seed": 2}]) == ["data.seed-1_seed-2"]
    one, other = trial_names([{"model": "org/Model-1B"}, {"model": "./local/Model-1B"}])
    assert one != other and one.startswith("model-Model-1B-") and other.startswith("model-Model-1B-")
    assert trial_names([{"data.path": "x" * 300}, {"a.b": [1, "two", None, True]}])[1] == "b-1-two-none-true"
    long, again = trial_names([{"data.path": "x" * 300}] * 2)
    assert long == again and len(long) <= 80
    assert trial_names([{"data.path": "../../etc/ä ü"}]) == ["path"]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("run: {model: tiny}\n", "s.yaml is not a sweep: it has neither grid, nor random, nor trials", "grid: {"),
        ("model: tiny\n", "s.yaml is not a sweep", "smollm3 train --config s.yaml"),
        ("stages: []\n", "s.yaml is a pipeline, not a sweep", "smollm3 pipeline run s.yaml"),
        ("grid: {adapter.rank: 8}\n", "s.yaml:1: adapter.rank must be a list of values, got 8", "adapter.rank: [8"),
        ("grid: {adapter.rank: []}\n", "s.yaml:1: adapter.rank must be a list of values, got []", "adapter.rank: [1"),
        ("grid: {adapter: {rank: [8]}}\n", "s.yaml:1: a key inside adapter is written with a dot", "adapter.rank: [8]"),
        ("grid: {a.b: {uniform: [1, 2]}}\n", "s.yaml:1: a.b must be a list of values", "ranges belong to random"),
        ("grid: {output: [a]}\n", "s.yaml:1: trials cannot differ in output", "output: DIRECTORY at the top level"),
        ("grid: {launcher: [a, b]}\n", "s.yaml:1: trials cannot differ in launcher", "run: {launcher: …}"),
        ("grid: {.rank: [1]}\n", "s.yaml:1: '.rank' is not a key of a run", "grid: {"),
        ("grid: []\n", "s.yaml:1: grid must have keys of a run and their values, got []", "grid: {adapter.rank"),
        ("grid: {a: [1]}\ntrials: 3\n", "s.yaml:2: a grid has all combinations", "random instead of grid"),
        ("grid: {a: [1]}\nrandom: {a: [1]}\n", "s.yaml:2: a sweep has grid or random, not both", "random: {"),
        ("grid: {a: [1]}\nseed: 3\n", "s.yaml:2: seed is for random", "run: {seed: 1}"),
        ("random: {a: [1]}\n", "s.yaml:1: random needs trials, a number from 1 to 1,000, got None", "trials: 20"),
        ("random: {a: 1}\ntrials: 2\n", "s.yaml:1: a must be a range of values, got 1", "log_uniform"),
        ("random: {a: {log-uniform: [1, 2]}}\ntrials: 2\n", "unknown kind of range 'log-uniform'", "'log_uniform'"),
        ("random: {a: {zipf: [1, 2]}}\ntrials: 2\n", "unknown kind of range 'zipf'", "choice, uniform"),
        ("random: {a: {uniform: [2, 1]}}\ntrials: 2\n", "uniform of a begins at 2.0 and ends at 1.0", "[1.0, 2.0]"),
        ("random: {a: {log_uniform: [0, 1]}}\ntrials: 2\n", "log_uniform of a must begin above 0", "[0.001, 0.1]"),
        ("random: {a: {integer: [1, 2.5]}}\ntrials: 2\n", "integer of a must be two whole numbers", "[1, 8]"),
        ("random: {a: {choice: 3}}\ntrials: 2\n", "the choices of a must be a list of values, got 3", "choice: [1, 2]"),
        ("trials: 3\n", "s.yaml:1: a number of trials needs random values", "random: {"),
        ("trials: [1]\n", "s.yaml:1: trials must be a list of keys and values", "trials: [{adapter.rank: 8}"),
        ("grid: {a: [1]}\nrun: 3\n", "s.yaml:2: run must be a configuration or the path of one, got 3", "run: {model"),
        ("grid: {a: [1]}\nrun: x.yaml\n", "s.yaml:2: run: 'x.yaml' is not a configuration file or a run", "run.yaml"),
        ("grid: {a: [1]}\nrun: {output: x}\n", "s.yaml:2: the sweep decides the output of a trial", "output: D"),
        ("grid: {a: [1]}\nmodel: tiny\n", "s.yaml:2: model is a key of a run", "run: {model: …}"),
        ("grid: {a: [1]}\nobjektive: x\n", "s.yaml:2: unknown key 'objektive'", "'objective'"),
        ("grid: {a: [1]}\nobjective: dpo\n", "s.yaml:2: objective must be held_out_loss, got 'dpo'", "run: {objective"),
        ("grid: {a: [1]}\nname: a b\n", "s.yaml:2: the name of a sweep has letters, digits, - and _, got 'a b'", None),
        ("grid:\n  adapter.rank: [8]\n  adapter: [{rank: 4}]\n", "s.yaml:3 sets adapter.rank, and so does", "omit"),
        ("grid:\n" + "".join(f"  k{i}: [1, 2]\n" for i in range(11)), "the grid has 2,048 combinations", "random: {"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line_and_a_hint(
    isolated: Path, text: str, message: str, hint: str | None
) -> None:
    (found,) = problems(text)
    assert isinstance(found, ConfigError)
    assert message in found.message
    assert (hint is None and found.hint is None) or (hint or "") in (found.hint or "")


def test_independent_problems_are_said_together(isolated: Path) -> None:
    found = problems("name: a b\nmodel: tiny\nrun: 3\ngrid: {adapter.rank: 8, output: [x]}\n")
    assert len(found) == 4
