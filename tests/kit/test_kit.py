"""Each broken plugin fails exactly the expected tests of the conformance kit, and the correct plugins pass.

One pytest run in a separate process applies the kit to every plugin in `broken_plugins/` and to the examples. For
broken plugins, the short form runs the tests that must fail, and the long form all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

HERE = Path(__file__).parent / "broken_plugins"

READ = {f"test_read_weight_{what}" for what in ("has_shape_and_format", "is_what_the_forward_uses")}
SAME = "test_read_weight_stays_the_same_through_a_run"
GRADIENTS = "test_gradients_stay_right_through_a_run"
ROUNDED = "test_fingerprint_follows_a_dtype_that_rounds_the_weights"
UNKNOWN = "test_unknown_modules_to_skip_are_refused_before_weights_are_read"
COMPOSED = "test_adapters_train_as_on_the_dense_copy"
MERGES = "test_a_merge_computes_what_the_adapter_does"
COMMANDS = "test_a_run_is_trained_asked_and_merged_by_commands"
OTHER_BASE = "test_an_adapter_is_refused_on_another_base"
NEAR = "test_experts_are_near_the_dense_ones"
COMPUTED = "test_experts_compute_what_their_weights_say_through_a_run"
ONE_BY_ONE = "test_tokens_one_by_one_are_as_all_at_once"
CACHED = "test_generates_with_a_cache_as_without"
UPDATED = "test_a_low_rank_update_of_experts_is_exact"
QUANTIZERS: dict[str, set[str]] = {
    "rows": set(),
    "rows-sealed": set(),
    "rows-written": set(),
    "transposed": {"test_read_weight_is_what_the_forward_uses", GRADIENTS},
    "stale-scale": {"test_read_weight_is_what_the_forward_uses", GRADIENTS, COMPOSED, MERGES, COMMANDS},
    "no-gradient": {GRADIENTS},
    "one-way": {GRADIENTS, COMPOSED},
    "base-trains": {"test_all_parameters_are_frozen_and_on_the_device", GRADIENTS},
    "gradient-factor": {GRADIENTS},
    "gives-a-view": {"test_output_may_be_added_to_in_place"},
    "head-too": {"test_the_head_stays_tied_to_the_embeddings", GRADIENTS},
    "views-all": {"test_ordinary_layers_have_no_view"},
    "undequantized": {"test_read_weight_has_shape_and_format", SAME, ROUNDED},
    "dropped-bias": {"test_forward_is_near_the_dense_model", GRADIENTS},  # the dense copy has a bias
    "unseeded": {
        "test_loading_twice_gives_the_same",
        COMPOSED,
        MERGES,
        "test_a_step_lowers_the_loss_and_is_restored_exactly",
    },
    "constant-fingerprint": {"test_fingerprint_follows_the_weights", ROUNDED},
    "options-not-in-fingerprint": {"test_fingerprint_follows_the_weights", ROUNDED, OTHER_BASE},
    "half-sealed": {"test_read_weight_raises_where_it_is_not_declared"},
    "half-dense": {"test_weights_are_no_parameters_where_dense_is_not_declared"},
    "half-trains": {"test_no_wrong_gradient_where_grad_input_is_not_declared"},
    "over-declared": {"test_layers_offer_exactly_what_is_declared", *READ, SAME, ROUNDED},
    "own-tensor": {"test_read_weight_has_shape_and_format"},
    "half-precision": {*READ, GRADIENTS},
    "unseen": {
        "test_layers_offer_exactly_what_is_declared",
        "test_forward_is_near_the_dense_model",
        "test_weights_are_no_parameters_where_dense_is_not_declared",
        "test_output_may_be_added_to_in_place",
        *READ,
        SAME,
        ONE_BY_ONE,
        GRADIENTS,
    },
    "too-coarse": {"test_forward_is_near_the_dense_model"},
    "claims-others": {"test_claims_no_dense_config"},
    "pickled": {"test_what_is_written_is_claimed_and_loads_the_same"},
    "no-reason": {"test_absent_operations_have_a_reason"},
    "no-autocast": {"test_gradients_are_right_under_autocast"},
    "dtype-unnamed": {ROUNDED},
    "groups": set(),
    "loads-quantized": {"test_a_quantized_source_is_refused_before_weights_are_read"},
    "groups-late": {"test_groups_that_do_not_fit_are_refused_before_weights_are_read"},
    "raises-others": {UNKNOWN},
    "skips-nothing": {"test_skipped_modules_stay_ordinary", UNKNOWN},
    "skips-by-order": {"test_skipped_modules_stay_ordinary"},
    "one-token-kernel": {ONE_BY_ONE},
    "experts-dense": {NEAR, COMPUTED, UPDATED},
    "experts-swapped": {COMPUTED, UPDATED},
    "experts-coarse": {NEAR},
    "experts-keep-update": {UPDATED},
}

RESTORED = "test_restoring_gives_the_same_logits_and_the_same_next_step"
MERGED = "test_merging_gives_what_the_adapter_computes"
DISABLED = "test_disabled_gives_the_base"
COMPARED = "test_gradients_are_right_through_a_run"
HALF = "test_trains_in_half_precision"
SCHEDULE = "test_a_schedule_follows_the_length_of_the_resumed_run"
ADAPTERS: dict[str, set[str]] = {
    "delta": set(),
    "delta-kept": set(),
    "no-identity": {"test_starts_as_the_base_where_declared"},
    # the trained parameters of the base are also not saved, not merged and not disabled
    "base-trains": {"test_only_the_adapter_trains", COMPARED, RESTORED, SCHEDULE, MERGED, DISABLED, HALF},
    "base-drifts": {"test_only_the_adapter_trains", RESTORED},
    "gradient-factor": {"test_gradients_are_what_the_loss_does"},
    "merged-transposed": {MERGED},
    "merged-twice": {MERGED},
    "merged-without-bias": {MERGED},
    "merges-undeclared": {MERGED},
    "forgets-strength": {RESTORED},
    "forgets-momentum": {RESTORED, COMPARED, SCHEDULE},
    "leaks": {"test_packed_rows_do_not_influence_each_other", CACHED, ONE_BY_ONE},
    "never-disabled": {DISABLED},
    "not-enabled-after-error": {DISABLED},
    "disables-undeclared": {DISABLED},
    "reads-undeclared": {
        "test_starts_as_the_base_where_declared",
        "test_attaching_is_deterministic",
        "test_only_the_adapter_trains",
        "test_gradients_are_what_the_loss_does",
        "test_on_step_keeps_the_run_going",
        "test_saved_files_are_safetensors_and_text",
        "test_packed_rows_do_not_influence_each_other",
        CACHED,
        ONE_BY_ONE,
        RESTORED,
        SCHEDULE,
        MERGED,
        DISABLED,
        COMPARED,
        HALF,
    },
    "states-other-roles": {"test_the_stated_roles_are_those_of_its_parameters"},
    "unseeded": {"test_attaching_is_deterministic"},
    "pickled": {"test_saved_files_are_safetensors_and_text"},
    "frozen-after-restore": {RESTORED, COMPARED, SCHEDULE},
    "breaks-at-the-end": {"test_on_step_keeps_the_run_going", SCHEDULE},
    "annealed": set(),
    "anneals-by-the-old-total": {SCHEDULE},
    "anneals-in-training-only": {RESTORED},
    "rounds-steps": {HALF},
    "casts-nothing": {HALF},
    "counts-from-zero": {CACHED, ONE_BY_ONE},
    "looks-back": {CACHED},
}

LOADERS: dict[str, set[str]] = {
    "shelf": set(),
    "eager": {"test_opening_reads_no_weights"},
    "converts-early": {"test_opening_reads_no_weights"},
    "constant-fingerprint": {"test_fingerprint_identifies_the_weights"},
    "fingerprint-of-path": {"test_fingerprint_identifies_the_weights"},
    "raises-others": {"test_an_unknown_reference_raises_model_error"},
    "has-all-files": {"test_has_file_knows_what_is_there"},
    "ignores-path": {"test_at_takes_weights_and_config_from_another_directory"},
    "ignores-dtype": {"test_load_gives_a_causal_language_model"},
    "claims-all": {"test_claims_its_reference_and_no_nonsense"},
    "heavy-claims": {"test_claims_is_light"},
}

EXAMPLES: dict[str, set[str]] = {"scale": set(), "int8_rows": set()}

EXPECTED = {
    f"{kind}_{name}": failing
    for kind, plugins in (
        ("quantizers", QUANTIZERS), ("adapters", ADAPTERS), ("loaders", LOADERS), ("examples", EXAMPLES),
    )
    for name, failing in plugins.items()
}  # fmt: skip
GOOD = [name for name, failing in EXPECTED.items() if not failing]


class Outcome(NamedTuple):
    """The outcome of one test of the kit."""

    status: str
    """`passed`, `failed` or `skipped`."""
    message: str


Outcomes = dict[str, dict[str, Outcome]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """The outcomes of every test for each correct plugin, and of those that must fail for each broken one."""
    return _run(
        tmp_path_factory.mktemp("kit"), {name: sorted(failing) for name, failing in EXPECTED.items() if failing}
    )


@pytest.fixture(scope="module")
def all_outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """For each plugin, the outcome of every test."""
    return _run(tmp_path_factory.mktemp("kit"), {})


def _run(folder: Path, only: Mapping[str, Sequence[str]]) -> Outcomes:
    report = folder / "report.xml"
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib --tb=short\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", str(HERE / "conformance_of_broken_plugins.py"), "--noconftest"]
    options = ["-c", str(folder / "pytest.ini"), "--rootdir", str(folder), "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *options, "--basetemp", str(folder / "tmp"), f"--junitxml={report}"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "KIT_ONLY": json.dumps(only)},
    )  # fmt: skip
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout[-3000:] + done.stderr[-3000:]
    found: Outcomes = {}
    for name, test, outcome in _read(report):
        found.setdefault(name, {})[test] = outcome
    return found


def _read(report: Path) -> Iterator[tuple[str, str, Outcome]]:
    """Plugin, test and outcome of each case of a JUnit report."""
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        status, message = "passed", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                status = "skipped" if child.tag == "skipped" else "failed"
                message = child.get("message", "")
        yield case.get("classname", "").rpartition("Test_")[2], case.get("name", ""), Outcome(status, message)


def test_the_kit_runs_on_every_plugin(outcomes: Outcomes) -> None:
    assert set(outcomes) == set(EXPECTED)
    assert len(EXPECTED) - len(GOOD) >= 12


def failed(outcomes: Mapping[str, Outcome]) -> set[str]:
    return {test for test, outcome in outcomes.items() if outcome.status == "failed"}


@pytest.mark.parametrize("plugin", EXPECTED)
def test_the_expected_tests_fail(outcomes: Outcomes, plugin: str) -> None:
    assert failed(outcomes[plugin]) == EXPECTED[plugin]


@pytest.mark.long
@pytest.mark.parametrize("plugin", EXPECTED)
def test_no_other_tests_fail(all_outcomes: Outcomes, plugin: str) -> None:
    assert failed(all_outcomes[plugin]) == EXPECTED[plugin]


def test_every_test_of_the_kit_can_fail_or_is_passed_by_a_dense_quantizer(outcomes: Outcomes) -> None:
    able_to_fail = {test for failing in EXPECTED.values() for test in failing}
    elsewhere = {
        *("test_dense_weights_can_be_replaced", "test_weights_take_gradients", "test_tokenizer_loads"),
        *("test_a_round_trip_names_layers_with_a_weight", "test_a_round_trip_is_pure_and_deterministic"),
        *("test_a_round_trip_is_what_the_written_model_computes_with", "test_a_merged_weight_is_what_a_merge_writes"),
        *("test_a_merged_weight_has_the_gradient_of_the_adapter", "test_new_tokens_are_trained_where_declared"),
        *("test_layers_are_divided_among_processes_and_compute_the_same", "test_bytes_for_states_what_a_layer_keeps"),
        "test_experts_are_divided_among_processes_and_compute_the_same",  # these three: tests/kit/test_shards.py
    }
    assert {test for tests in outcomes.values() for test in tests} == able_to_fail | elsewhere


@pytest.mark.parametrize("plugin", GOOD)
def test_a_good_plugin_skips_only_what_it_does_not_declare(outcomes: Outcomes, plugin: str) -> None:
    skipped = {outcome.message for outcome in outcomes[plugin].values() if outcome.status == "skipped"}
    reasons = (
        "declared", "writes no checkpoints", "has no claims()", "has no check()", "has no option",
        "has no bytes_for()", "no adapters are named", "`experts` is False",
    )  # fmt: skip
    assert all(any(reason in message for reason in reasons) for message in skipped)
    passed = [test for test, outcome in outcomes[plugin].items() if outcome.status == "passed"]
    assert len(passed) >= 7


@pytest.mark.parametrize(
    ("plugin", "test", "parts"),
    [
        (
            "quantizers_transposed",
            "test_read_weight_is_what_the_forward_uses",
            ["q_proj", "returns the transposed weight"],
        ),
        ("quantizers_stale-scale", "test_read_weight_is_what_the_forward_uses", ["by 0.001 ", "after an evaluation"]),
        ("quantizers_one-way", GRADIENTS, ["no gradient flows to the input of", "(after an evaluation)"]),
        ("quantizers_no-gradient", GRADIENTS, ["no gradient flows to the input of", "(before any forward)"]),
        ("quantizers_gradient-factor", GRADIENTS, ["the relative error 0.1 ", "limit 1e-09"]),
        (
            "quantizers_too-coarse",
            "test_forward_is_near_the_dense_model",
            ["8 bits, 2 times the error", "of rounding to nearest"],
        ),
        (
            "quantizers_dropped-bias",
            "test_forward_is_near_the_dense_model",
            ["differs from that of the dense layer by"],
        ),
        ("quantizers_half-sealed", "test_read_weight_raises_where_it_is_not_declared", ["raise UnsupportedOp"]),
        ("adapters_no-identity", "test_starts_as_the_base_where_declared", ["identity_at_start=False"]),
        ("adapters_merged-twice", MERGED, ["differ from the adapter on its base by", "(limit 1e-06)"]),
        ("adapters_forgets-momentum", RESTORED, ["two more steps", "state is not saved"]),
        ("adapters_forgets-strength", RESTORED, ["was saved after two steps", "is not saved"]),
        ("adapters_leaks", "test_packed_rows_do_not_influence_each_other", ["must stay bitwise equal"]),
        ("adapters_never-disabled", DISABLED, ["inside disabled()", "must be bitwise equal"]),
        ("adapters_gradient-factor", "test_gradients_are_what_the_loss_does", ["relative error 0.091, limit 0.01"]),
        ("adapters_reads-undeclared", COMPARED, ["does not need read-weight"]),
        ("adapters_rounds-steps", HALF, ["4 of 4 trained parameters are in half precision", "ctx.trained_dtype"]),
        ("adapters_casts-nothing", HALF, ["restored in bfloat16", "cast the adapter's input to its dtype"]),
        ("loaders_eager", "test_opening_reads_no_weights", ["open() calls safetensors.torch.load_file"]),
    ],
)
def test_a_failure_says_what_is_wrong_with_figure_and_bound(
    outcomes: Outcomes, plugin: str, test: str, parts: list[str]
) -> None:
    message = outcomes[plugin][test].message
    assert all(part in message for part in parts), message
