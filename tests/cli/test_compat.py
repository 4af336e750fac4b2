"""`smollm3 compat`: the table, the details of one pair, and the results shipped with plugins."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune import __version__
from smollm3_finetune.components.requirements import installed_version

HOOKS = """
from smollm3_finetune.api import AdapterSpec, Op, QuantizerSpec, Requires, hookimpl

LINEAR = {Op.FORWARD, Op.GRAD_INPUT}

def refine(spec, options, env):
    return spec.without({Op.GRAD_INPUT: "no backward kernel on cuda"} if env.device == "cuda" else {})

def fails(*_):
    raise KeyError("bits")

@hookimpl
def smollm3_quantizers():
    return [
        QuantizerSpec(name="packed", summary="codes", factory="acme.work:Q", provides=LINEAR, refine=refine,
                      absent={Op.READ_WEIGHT: "the weight is packed for good"}, api=2),
        QuantizerSpec(name="muddled", summary="says nothing", factory="acme.work:Q", refine=fails, api=2),
    ]

@hookimpl
def smollm3_adapters():
    return [
        AdapterSpec(name="shift", summary="shifts", factory="acme.work:A", needs=LINEAR, api=2),
        AdapterSpec(name="reader", summary="reads", factory="acme.work:A", needs=LINEAR | {Op.READ_WEIGHT}, api=2),
        AdapterSpec(name="optionless", summary="no options", factory="acme.work:A", options="acme.gone:Options", api=2),
        AdapterSpec(name="chip", summary="one chip", factory="acme.work:A", api=2,
                    requires=Requires(accelerators=("npu",))),
    ]
"""


def result(**changes: Any) -> dict[str, Any]:
    """One entry of a file of results."""
    return {
        "quantizer": "acme:packed", "adapter": "acme:shift", "purpose": "train", "device": "cpu",
        "date": "2026-11-01", "command": "make measure", "versions": {"acme": "1.0"}, "holds": True,
        "figures": {"gradients": 2.5e-7, "moved": 0.25}, **changes,
    }  # fmt: skip


@pytest.fixture
def acme(fake_distribution: Any) -> Callable[..., Path]:
    """Installs a distribution with the hooks above and these results; returns the file of results."""

    def install(*results: Mapping[str, Any], text: str | None = None) -> Path:
        site: Path = fake_distribution("acme", "1.0", {"acme.hooks": HOOKS}, {"acme": "acme.hooks"})
        file = site / "acme" / "hooks.compat.json"
        if text is None and results:
            text = json.dumps({"format": 1, "results": results})
        if text is not None:
            file.write_text(text, encoding="utf-8")
        return file

    return install


def cells_of(cli: Any, *args: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The cells of `smollm3 compat ARGS --json`, by quantizer, adapter and purpose."""
    answer = cli("compat", *args, "--json")
    assert answer.code == 0, answer.stderr
    return {(c["quantizer"], c["adapter"], c["purpose"]): c for c in json.loads(answer.stdout)["cells"]}


# --------------------------------------------------------------------------------------------------- the table


def test_every_pair_has_a_cell_for_each_purpose(cli: Any, acme: Any) -> None:
    acme()
    cells = cells_of(cli)
    quantizers, adapters = {q for q, _, _ in cells}, {a for _, a, _ in cells}
    assert {"acme:packed", "acme:muddled", "smollm3-finetune:none"} <= quantizers
    assert {"acme:shift", "acme:reader", "smollm3-finetune:full"} <= adapters
    assert len(cells) == len(quantizers) * len(adapters) * 3


def test_the_four_states(cli: Any, acme: Any) -> None:
    acme(result())
    cells = cells_of(cli)
    measured = cells["acme:packed", "acme:shift", "train"]
    assert (measured["state"], measured["holds"], measured["stale"]) == ("measured", True, False)
    declared = cells["smollm3-finetune:none", "acme:shift", "train"]
    assert (declared["state"], declared["holds"], declared["evidence"]) == ("declared", None, [])
    refused = cells["acme:packed", "acme:reader", "train"]
    assert (refused["state"], refused["reason"]) == ("refused", "no read-weight: the weight is packed for good")
    raising = cells["acme:muddled", "acme:shift", "train"]
    assert raising["state"] == "unknown"
    assert "KeyError: 'bits'" in raising["reason"]
    without_options = cells["smollm3-finetune:none", "acme:optionless", "train"]
    assert without_options["state"] == "unknown"
    assert "acme.gone" in without_options["reason"]


def test_a_merge_needs_read_weight_even_if_training_does_not(cli: Any, acme: Any) -> None:
    acme()
    assert cells_of(cli)["acme:packed", "acme:shift", "merge"]["reason"].startswith("no read-weight")


def test_preferences_need_what_training_needs_and_name_the_only_reference(cli: Any, acme: Any) -> None:
    acme(result(purpose="prefer"))
    cells = cells_of(cli)
    assert cells["acme:packed", "acme:shift", "prefer"]["state"] == "measured"
    assert cells["acme:packed", "acme:shift", "train"]["state"] == "declared"
    refused = cells["acme:packed", "acme:reader", "prefer"]
    assert refused["reason"] == cells["acme:packed", "acme:reader", "train"]["reason"]
    full = cells["smollm3-finetune:none", "smollm3-finetune:full", "prefer"]
    assert full["state"] != "refused" and "start as the reference" in full["reason"]
    assert cells["smollm3-finetune:none", "smollm3-finetune:full", "train"]["reason"] is None
    assert cells["smollm3-finetune:none", "acme:shift", "prefer"]["reason"] is None, "it can be disabled"
    text = " ".join(cli("compat", "--quant", "none", "--adapter", "full").stdout.split())
    assert "only with the model at its start as the reference, because the adapter cannot be disabled" in text


def test_components_that_cannot_run_on_the_device_are_refused(cli: Any, acme: Any) -> None:
    acme()
    assert "npu only" in cells_of(cli)["smollm3-finetune:none", "acme:chip", "train"]["reason"]
    on_npu = cells_of(cli, "--device", "npu")["smollm3-finetune:none", "acme:chip", "train"]
    assert on_npu["state"] == "declared"


def test_another_device_is_negotiated_again_without_results_of_the_cpu(cli: Any, acme: Any) -> None:
    acme(result(), result(adapter="smollm3-finetune:full", holds=False))
    cuda = cells_of(cli, "--device", "cuda:1")
    assert cuda["acme:packed", "acme:shift", "train"]["reason"] == "no grad-input: no backward kernel on cuda"
    assert cuda["acme:packed", "acme:shift", "train"]["evidence"] == []
    assert cuda["smollm3-finetune:none", "acme:shift", "train"]["state"] == "declared"


def test_adapters_with_equal_cells_share_a_row_and_the_used_symbols_are_explained(cli: Any, acme: Any) -> None:
    acme(result())
    lines = cli("compat", "--quant", "packed").stdout.splitlines()
    assert lines[0].split() == ["on", "cpu", "packed"]
    assert lines[1].split() == ["train", "merge", "prefer"]
    rows = {line.split("  ")[0]: line.split()[-3:] for line in lines[2:] if line.endswith(("–", "●", "○", "?"))}
    assert rows["shift"] == ["●", "–", "○"]
    assert rows["optionless"] == ["?"] * 3
    shared = next(names for names in rows if "reader" in names)
    assert "full" in shared and rows[shared] == ["–"] * 3
    assert "● measured: works" in lines
    assert not any(line.startswith("✗") for line in lines), "a sign that is not used"
    assert any(line.startswith("– ") and "the weight is packed for good" in line for line in lines)


@pytest.mark.parametrize("columns", ["80", "100", "46"])
def test_the_table_fits_the_terminal(cli: Any, acme: Any, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    acme()
    monkeypatch.setenv("COLUMNS", columns)
    lines = cli("compat").stdout.splitlines()
    assert max(
        len(line) for line in lines if not line.startswith("For details of a pair: smollm3 compat --quant")
    ) <= int(columns)
    heads = [line.split()[2:] for line in lines if line.startswith("on cpu")]
    names = [name for head in heads for name in head]
    assert {"packed", "muddled", "none"} <= set(names)
    assert len(names) == len(set(names))
    assert len(heads) > 1 or columns != "46"


def test_two_components_with_one_name_are_distinguished(cli: Any, acme: Any, fake_distribution: Any) -> None:
    acme()
    fake_distribution("zeta", "1.0", {"zeta.hooks": HOOKS}, {"zeta": "zeta.hooks"})
    heads = [line for line in cli("compat", "--adapter", "full").stdout.splitlines() if line.startswith("on cpu")]
    named = " ".join(heads).split()  # a wide table has several parts
    assert "acme:packed" in named and "zeta:packed" in named
    clash = cli("compat", "--quant", "packed")
    assert clash.code == 7
    assert "--quant acme:packed or --quant zeta:packed" in clash.stderr


# ------------------------------------------------------------------------------------------------- one pair


def test_a_measured_pair_shows_operations_figures_versions_and_the_command(cli: Any, acme: Any) -> None:
    acme(result(options={"rank": 4}))
    text = cli("compat", "--quant", "packed", "--adapter", "shift").stdout
    for part in (
        "packed × shift on cpu", "acme:packed 1.0: codes", "provides     forward, grad-input",
        "not read-weight: the weight is packed for good", "needs        forward, grad-input",
        "to merge forward, grad-input, read-weight", "train        measured: works",
        "by acme 1.0, 2026-11-01, on cpu", "gradients 2.5e-07", "moved 0.25", "rank=4", "with acme 1.0",
        "to repeat: make measure", "merge        refused: no read-weight",
    ):  # fmt: skip
        assert part in text, part


def test_a_refused_pair_suggests_the_nearest_that_works(cli: Any, acme: Any) -> None:
    acme()
    text = cli("compat", "--quant", "packed", "--adapter", "reader").stdout
    assert "train        refused: no read-weight: the weight is packed for good" in text
    nearest = next(line for line in text.splitlines() if line.strip().startswith("nearest"))
    assert "--quant packed --adapter" in nearest and "--adapter reader" in nearest
    about = json.loads(cli("compat", "--quant", "packed", "--adapter", "reader", "--json").stdout)
    assert about["nearest"] in nearest
    assert about["needs"]["train"] == ["forward", "grad-input", "read-weight"]
    assert about["provides"] == ["forward", "grad-input"]


def test_a_refused_pair_that_was_run_anyway_shows_its_result(cli: Any, acme: Any) -> None:
    failing = result(adapter="acme:reader", holds=False, note="RuntimeError: codes", figures={})
    file = acme(failing)
    pair = ("compat", "--quant", "packed", "--adapter", "reader")
    assert "confirmed: fails when run: RuntimeError: codes" in cli(*pair).stdout
    file.write_text(json.dumps({"format": 1, "results": [{**failing, "holds": True, "note": None}]}))
    assert "works when run anyway; the descriptor may be outdated" in cli(*pair).stdout
    assert (
        "! reader on packed (train only): refused, but works when run anyway"
        in cli("compat", "--quant", "packed").stdout
    )


def test_a_result_that_does_not_hold_is_not_a_success(cli: Any, acme: Any) -> None:
    acme(result(holds=False, note="gradients 9.3e-01 off, at most 1.0e-05"))
    cell = cells_of(cli)["acme:packed", "acme:shift", "train"]
    assert (cell["state"], cell["holds"]) == ("measured", False)
    table = cli("compat", "--quant", "packed").stdout
    assert "✗ shift on packed (train only): gradients 9.3e-01 off, at most 1.0e-05" in table
    assert "measured: fails" in cli("compat", "--quant", "packed", "--adapter", "shift").stdout


def test_results_of_another_machine_are_marked(cli: Any, acme: Any) -> None:
    acme(result(device="xpu"))
    text = cli("compat", "--quant", "packed", "--adapter", "shift").stdout
    assert "not measured on cpu" in text
    assert "measured on xpu; to see it: --device xpu" in text


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (("--quant", "packd"), "did you mean 'packed'?"),
        (("--adapter", "shfit"), "did you mean 'shift'?"),
        (("--device", "cdua"), "did you mean 'cuda'? Without such a device: --device cpu"),
        (("--device", "auto"), "--device cuda"),
        (("--adapter-opt", "rank=4"), "--adapter NAME --measure FILE"),
        (("--purpose", "prefer"), "--measure FILE"),
    ],
)
def test_a_wrong_name_is_one_error_with_a_suggestion(cli: Any, acme: Any, args: tuple[str, ...], hint: str) -> None:
    acme()
    answer = cli("compat", *args)
    assert answer.code == 2
    assert hint in answer.stderr
    assert "Traceback" not in answer.stderr


# -------------------------------------------------------------------------------------- results and their age


def test_another_version_makes_a_result_stale_and_a_build_does_not(cli: Any, acme: Any) -> None:
    torch = installed_version("torch")
    assert torch is not None
    public = torch.partition("+")[0]
    file = acme(result(versions={"acme": "1.0", "torch": f"{public}+cu128", "smollm3-finetune": __version__}))
    assert not cells_of(cli)["acme:packed", "acme:shift", "train"]["stale"]
    versions = {"acme": "0.9", "torch": "1.0", "acme-kernels": "3.0"}
    file.write_text(json.dumps({"format": 1, "results": [result(versions=versions)]}))
    cell = cells_of(cli)["acme:packed", "acme:shift", "train"]
    assert cell["stale"]
    changed = {"acme": ["0.9", "1.0"], "acme-kernels": ["3.0", None], "torch": ["1.0", torch]}
    assert cell["evidence"][0]["changed"] == changed
    text = " ".join(cli("compat", "--quant", "packed", "--adapter", "shift").stdout.split())
    assert "with other versions than those installed" in text
    assert f"outdated; installed now: acme 1.0, acme-kernels not installed, torch {torch}" in text
    assert "◐" in cli("compat", "--quant", "packed").stdout


def test_a_current_result_counts_more_than_a_newer_outdated_one(cli: Any, acme: Any) -> None:
    stale = result(date="2026-11-20", versions={"acme": "0.9"}, holds=False)
    acme(stale, result(date="2026-11-02"), result(date="2026-11-03"))
    cell = cells_of(cli)["acme:packed", "acme:shift", "train"]
    assert (cell["holds"], cell["stale"]) == (True, False)
    assert [e["date"] for e in cell["evidence"]] == ["2026-11-03", "2026-11-02", "2026-11-20"]


def test_a_plugin_file_has_its_results_next_to_it_and_its_content_is_its_version(cli: Any, plugin_file: Any) -> None:
    source = HOOKS.replace("acme.work", "mine")
    file: Path = plugin_file("mine", source)
    from smollm3_finetune.components.discovery import PluginSelection, discover

    version = next(r.version for r in discover(PluginSelection.of((str(file),))).plugins if r.name == "mine")
    own = result(quantizer="mine:packed", adapter="mine:shift", versions={"mine": version})
    file.with_name("mine.compat.json").write_text(json.dumps({"format": 1, "results": [own]}))
    cell = cells_of(cli, "-p", str(file))["mine:packed", "mine:shift", "train"]
    assert (cell["state"], cell["stale"], cell["evidence"][0]["source"]) == ("measured", False, f"mine {version}")
    own["versions"] = {"mine": "0+00000000"}
    file.with_name("mine.compat.json").write_text(json.dumps({"format": 1, "results": [own]}))
    assert cells_of(cli, "-p", str(file))["mine:packed", "mine:shift", "train"]["stale"]


def test_results_for_pairs_of_other_plugins_are_ignored(cli: Any, acme: Any) -> None:
    acme(result(), result(quantizer="smollm3-finetune:none", adapter="other:thing"))
    answer = cli("compat", "--quant", "packed")
    assert "1 results of plugin 'acme' (acme 1.0) are ignored: they include none of its own components" in answer.stderr
    assert "●" in answer.stdout


def test_results_of_a_disabled_plugin_are_ignored(cli: Any, acme: Any) -> None:
    acme(result())
    assert not any("acme" in part for key in cells_of(cli, "-p", "no:acme") for part in key)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Expecting property name"),
        ("[]", 'expected {"format": 1'),
        ('{"format": 2, "results": []}', "expected format 1, found 2"),
        ('{"format": 1, "results": [{}]}', "a result is missing the field 'adapter'"),
        (json.dumps({"format": 1, "results": [result(extra=1)]}), "a result has the unknown field 'extra'"),
        (json.dumps({"format": 1, "results": [result(holds="yes")]}), "'holds' must be true or false"),
        (json.dumps({"format": 1, "results": [result(purpose="infer")]}), "'purpose' must be"),
        (json.dumps({"format": 1, "results": [result(quantizer="packed")]}), "'distribution:name'"),
        (json.dumps({"format": 1, "results": [result(figures={"gradients": "small"})]}), "'figures' must map"),
        (json.dumps({"format": 1, "results": [result(versions=[])]}), "'versions' must map"),
    ],
)
def test_a_broken_file_of_results_is_one_warning_line(cli: Any, acme: Any, text: str, says: str) -> None:
    acme(text=text)
    answer = cli("compat", "--quant", "packed")
    assert answer.code == 0
    assert answer.stderr.count("\n") == 1
    assert "the results of plugin 'acme' (acme 1.0) are ignored: hooks.compat.json: " in answer.stderr
    assert says in answer.stderr
    assert "○" in answer.stdout and "●" not in answer.stdout


# -------------------------------------------------------------------------------------------------- weight

POISONED = """
import sys
class Poison:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "numpy", "peft", "bitsandbytes", "gptqmodel"}:
            raise SystemExit(f"imports {name}")
sys.meta_path.insert(0, Poison())
from smollm3_finetune.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("args", [(), ("--json",), ("--device", "cuda"), ("--quant", "none", "--adapter", "full")])
def test_it_works_without_torch(args: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", POISONED, "compat", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "full" in done.stdout


def test_a_pair_that_cannot_be_measured_is_an_error_before_anything_runs(cli: Any, acme: Any, tmp_path: Path) -> None:
    acme()
    refused = cli("compat", "--quant", "packed", "--adapter", "reader", "--measure", str(tmp_path / "out.json"))
    assert refused.code == 3
    assert "none of these pairs can be run" in refused.stderr
    other = tmp_path / "rows.json"
    other.write_text("{}")
    wrong = cli("compat", "--quant", "none", "--adapter", "full", "--measure", str(other))
    assert wrong.code == 2
    assert "is not a file of results" in wrong.stderr
    assert other.read_text() == "{}"
    nowhere = cli("compat", "--quant", "none", "--adapter", "full", "--measure", str(tmp_path / "gone" / "out.json"))
    assert nowhere.code == 2
