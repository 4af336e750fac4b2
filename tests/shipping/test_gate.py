"""What is written equals what training computed, bit for bit; anything else is refused, naming the layer."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import grid_quantizers
import pytest
import torch
from safetensors.torch import load_file, save_file
from shipped_models import PLUGIN, restored, trained

from smollm3_finetune.api import Purpose
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import EXPORTER
from smollm3_finetune.components.selection import choose
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.errors import ConfigError, ModelError, SmolLM3Error
from smollm3_finetune.export.plan import ExportSettings, plan_export
from smollm3_finetune.export.run import export
from smollm3_finetune.files.checksums import write_checksums
from smollm3_finetune.merge.prediction import PredictedRows
from smollm3_finetune.merge.report import MergeSettings
from smollm3_finetune.merge.start import plan_merge
from smollm3_finetune.model.plan import ModelRequest, select_model
from smollm3_finetune.progress import Silent
from smollm3_finetune.shipping.record import FILE, GRIDS, Record, digest
from smollm3_finetune.testing.parts import calibration_rows
from smollm3_finetune.testing.small import small_model_directory, token_ids

pytest.importorskip("peft")

LAYER = "model.layers.1.self_attn.o_proj"


def saved(ship_as: Any, path: Path, adapter: str = "lora", **more: Any) -> Path:
    trained(ship_as, adapter, **more).save(path / "adapter")
    return path / "adapter"


def merged(adapter: Path, requantize: str | None = None, **more: Any) -> dict[str, Any]:
    options, held_out, run = more.pop("options", {}), more.pop("held_out", None), more.pop("run", None)
    request: dict[str, Any] = {"quant": more.pop("quant")} if "quant" in more else {}
    planned = plan_merge(
        discover(PluginSelection(files=(PLUGIN,))),
        ModelRequest(
            ref=str(small_model_directory(biases=False)), adapter_path=adapter, purpose=Purpose.MERGE, **request
        ),
        MergeSettings(**{"output": adapter.parent / "merged", **more}),
        run=run,
        loaded=run,
        requantize=None if requantize is None else ComponentConfig(name=requantize, options=options),
        device="cpu",
        compute_dtype="float32",
        progress=Silent(),
    )
    return (planned if held_out is None else replace(planned, held_out=held_out)).merge()


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_a_checkpoint_has_the_weights_of_training(adapter: str, tmp_path: Path) -> None:
    ship_as = {"name": "grid-rows", "bits": 3, "embeddings": True}
    report = merged(saved(ship_as, tmp_path, adapter), "grid-rows")  # without calibration rows: its grids are known
    assert report["shipped"]["layers"] == 15
    assert report["shipped"]["compared"] == "quantized checkpoint"
    about = json.loads((tmp_path / "adapter" / FILE).read_text())
    weights = load_file(str(tmp_path / "merged" / "model.safetensors"))
    assert digest(weights[f"{LAYER}.weight"]) == about["layers"][LAYER]
    assert weights[f"{LAYER}.weight"].unique(dim=1).shape[1] > 1
    assert len(weights[f"{LAYER}.weight"][0].unique()) <= 7


def test_a_quantized_base_too(tmp_path: Path) -> None:
    assert merged(saved("grid-file", tmp_path, quant="grid"), "grid-file")["shipped"]["layers"] == 14


def test_a_merged_model_is_loaded_with_a_quantizer_that_writes_no_checkpoint(tmp_path: Path) -> None:
    report = merged(saved("grid", tmp_path))
    assert report["shipped"]["compared"] == "merged model, loaded with the quantizer"
    assert not any("--requantize" in warning for warning in report["warnings"])


def test_a_dense_merge_names_the_command_of_the_format(tmp_path: Path) -> None:
    report = merged(saved("grid-file", tmp_path))
    assert report["shipped"]["compared"] == "merged model, rounded to the format"
    assert any("smollm3 merge RUN --requantize grid-file" in warning for warning in report["warnings"])


def test_the_adapter_is_measured_as_it_computes_in_its_run(tmp_path: Path) -> None:
    rows = [{"input_ids": ids, "labels": ids} for ids in token_ids(6, 12, seed=5).tolist()]
    held_out = PredictedRows(title="held-out rows", rows=rows, not_learned=None)
    adapter = saved({"name": "grid-file", "bits": 3}, tmp_path)
    found = merged(adapter, "grid-file", held_out=held_out)["requantized"]["retained"]
    assert found["as_shipped"] and found["adapter"] == pytest.approx(found["shipped"], abs=1e-5)
    other = merged(adapter, "grid-file", held_out=held_out, options={"bits": 5}, output=tmp_path / "other")
    assert other["requantized"]["retained"]["adapter"] == pytest.approx(found["adapter"], abs=1e-6)
    assert abs(other["requantized"]["retained"]["shipped"] - found["adapter"]) > 1e-4


def test_a_changed_value_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_quantizers.GridFile, "spoiled", LAYER)
    with pytest.raises(ModelError, match=f"the weight of {LAYER} in the quantized checkpoint") as refused:
        merged(saved("grid-file", tmp_path), "grid-file")
    assert "nothing was kept" in refused.value.message
    assert not (tmp_path / "merged").exists()


def of_another_machine(adapter: Path) -> Path:
    """The adapter, as if it had been trained where one weight is computed with another bit."""
    about = json.loads((adapter / FILE).read_text())
    about["layers"][LAYER] = "0" * 64
    about["device"] = "cuda"
    (adapter / FILE).write_text(json.dumps(about))
    write_checksums(adapter)
    return adapter


@pytest.mark.parametrize(("ship_as", "requantize"), [("grid-file", "grid-file"), ("grid", None)])
def test_another_arithmetic_refuses_the_format_unless_forced(
    ship_as: str, requantize: str | None, tmp_path: Path
) -> None:
    adapter = of_another_machine(saved(ship_as, tmp_path))
    with pytest.raises(ModelError, match=f"computes another weight of {LAYER} than the run did on cuda") as refused:
        merged(adapter, requantize)
    assert refused.value.hint == "use a device as in training: --device cuda; to keep it anyway: --force"
    report = merged(adapter, requantize, force=True)
    assert report["shipped"] is None
    assert any("not compared" in w and LAYER in w for w in report["warnings"])


def test_another_arithmetic_does_not_refuse_what_is_not_the_format(tmp_path: Path) -> None:
    adapter = of_another_machine(saved("grid-file", tmp_path))
    report = merged(adapter)
    assert report["shipped"] is None
    assert any("not compared" in w and LAYER in w for w in report["warnings"])
    assert trained_weights(exported(adapter, "safetensors"))["passed"] is None


def test_a_checkpoint_of_another_quantizer_names_the_command_of_the_format(tmp_path: Path) -> None:
    report = merged(saved("grid-export", tmp_path), "grid-file")
    notice = "trained to be shipped as grid-export, not as a grid-file checkpoint"
    assert any(notice in w and "smollm3 export RUN --to grid-export" in w for w in report["warnings"])
    assert notice in (tmp_path / "merged" / "README.md").read_text()


def test_other_options_are_not_what_was_trained(tmp_path: Path) -> None:
    adapter = saved({"name": "grid-file", "bits": 3}, tmp_path)
    report = merged(adapter, "grid-file", options={"bits": 5})
    assert report["shipped"]["compared"] == "merged model, rounded to the format"


def test_another_dtype_cannot_be_written(tmp_path: Path) -> None:
    adapter = saved("grid-file", tmp_path)
    with pytest.raises(ConfigError, match="weights in float32"):
        merged(adapter, "grid-file", dtype="bfloat16")
    report = merged(adapter, dtype="bfloat16")
    assert report["shipped"] is None
    assert any("are not compared" in warning for warning in report["warnings"])


def exported(adapter: Path, to: str = "grid-export", **options: Any) -> dict[str, Any]:
    registry = discover(PluginSelection(files=(PLUGIN,)))
    planned = plan_export(
        registry,
        ModelRequest(ref=str(small_model_directory(biases=False)), adapter_path=adapter, purpose=Purpose.MERGE),
        ExportSettings(output=adapter.parent / "exported"),
        choose(registry, EXPORTER, to, options),
        run=None,
        loaded=None,
        device="cpu",
        compute_dtype="float32",
        progress=Silent(),
    )
    return export(planned)


def test_an_export_has_the_weights_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = saved({"name": "grid-export", "bits": 3}, tmp_path)
    report = exported(adapter)
    check = next(c for c in report["checks"] if c["name"] == "trained weights")
    assert check["passed"] and check["figures"]["layers"] == 14
    shutil.rmtree(tmp_path / "exported")
    monkeypatch.setattr(grid_quantizers.GridExport, "spoiled", LAYER)
    with pytest.raises(ModelError, match=f"the weight of {LAYER} in the export as grid-export"):
        exported(adapter)
    assert not (tmp_path / "exported").exists()


def trained_weights(report: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in report["checks"] if c["name"] == "trained weights")
    return found


def test_an_option_that_changes_no_weight_keeps_the_gate(tmp_path: Path) -> None:
    report = exported(saved({"name": "grid-export", "bits": 3}, tmp_path), note=True)
    assert trained_weights(report)["passed"] is True
    assert report["warnings"] == []


@pytest.mark.parametrize(("to", "options"), [("grid-export", {"bits": 5}), ("peft", {}), ("safetensors", {})])
def test_another_export_says_that_it_is_not_what_was_trained(to: str, options: dict[str, Any], tmp_path: Path) -> None:
    report = exported(saved({"name": "grid-export", "bits": 3}, tmp_path), to, **options)
    assert trained_weights(report)["passed"] is None
    says = "trained to be shipped as grid-export (bits=3), not as"
    assert any(says in w and "smollm3 export RUN --to grid-export" in w for w in report["warnings"])
    assert says in (tmp_path / "exported" / "README.md").read_text()


def damaged(adapter: Path, change: Any) -> SmolLM3Error:
    about = json.loads((adapter / FILE).read_text())
    change(about)
    (adapter / FILE).write_text(json.dumps(about))
    write_checksums(adapter)
    with pytest.raises(SmolLM3Error) as error:
        restored(adapter)
    return error.value


def test_damaged_and_later_records_are_named(tmp_path: Path) -> None:
    original = saved("grid-rows", tmp_path / "original")

    def copied(name: str) -> Path:
        return Path(shutil.copytree(original, tmp_path / name))

    assert "has version 9" in damaged(copied("later"), lambda about: about.update(version=9)).message
    assert "is damaged" in damaged(copied("layers"), lambda about: about["layers"].update({LAYER: "x"})).message
    assert "versions must be text" in damaged(copied("versions"), lambda about: about.update(versions=["1"])).message
    unknown = damaged(copied("unknown"), lambda about: about["format"].update(name="acme:crystal"))
    assert "acme:crystal" in unknown.message and unknown.hint is not None
    lost = copied("lost")
    (lost / GRIDS).unlink()
    write_checksums(lost)
    with pytest.raises(ModelError, match=f"lacks {GRIDS}"):
        restored(lost)
    other = copied("other")
    tensors = {k: v for k, v in load_file(str(other / GRIDS)).items() if not k.startswith(LAYER)}
    save_file(tensors, str(other / GRIDS))
    write_checksums(other)
    with pytest.raises(ModelError, match="differ in the grid"):
        restored(other)
    changed = copied("changed")
    (changed / GRIDS).write_bytes((changed / GRIDS).read_bytes()[:-1] + b"\0\1")
    with pytest.raises(ModelError, match="is damaged"):
        restored(changed)


def test_on_another_base_nothing_is_rounded(tmp_path: Path) -> None:
    adapter = saved("grid-rows", tmp_path)
    other = restored(adapter, quant="grid", check_base=False)
    assert not hasattr(other.adapted, "digests")


def test_a_digest_is_of_values() -> None:
    zeros = torch.tensor([[0.0, 1.0]])
    assert digest(zeros) == digest(-zeros * torch.tensor([[1.0, -1.0]])) == digest(zeros.double())
    assert digest(zeros) != digest(zeros.nextafter(torch.tensor(2.0)))


def test_the_record_round_trips(tmp_path: Path) -> None:
    adapter = saved({"name": "grid-rows", "bits": 5}, tmp_path)
    record = Record.read(adapter)
    assert record is not None and record.ship_dtype == "float32" and record.device == "cpu"
    grids = record.read_grids(adapter)
    record.write(tmp_path, grids)
    assert replace(record, digests={}) == replace(Record.read(tmp_path) or record, digests={})
    assert torch.equal(record.read_grids(tmp_path)[LAYER]["scale"], grids[LAYER]["scale"])


def test_an_adapter_that_is_trained_further_keeps_its_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = saved({"name": "grid-rows", "bits": 5}, tmp_path)
    registry = discover(PluginSelection(files=(PLUGIN,)))
    request = ModelRequest(ref=str(small_model_directory(biases=False)), adapter_path=adapter, purpose=Purpose.TRAIN)
    same = select_model(registry, request)
    assert same.ship is not None and same.ship.saved == adapter and same.ship.title() == "grid-rows (bits=5)"
    assert any("train.ship_as is grid-rows (bits=5)" in line for line in same.notices)
    other = select_model(registry, replace(request, ship_as=ComponentConfig(name="grid")))
    assert other.ship is not None and other.ship.name == "grid" and other.ship.record is None
    none = select_model(registry, replace(request, origins={"train.ship_as": "run.yaml:3"}))
    assert none.ship is None and any("is null" in line for line in none.notices)
    monkeypatch.setattr("smollm3_finetune.model.plan.compare_recorded", lambda *_: ["another version"])
    assert list(select_model(registry, replace(request, purpose=Purpose.INFER)).notices).count("another version") == 2


def test_rows_are_kept_for_a_base_whose_grids_are_not_those_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    start = "smollm3_finetune.merge.start"
    monkeypatch.setattr(f"{start}._calibration", lambda *about: asked.append(about) or calibration_rows)
    monkeypatch.setattr(f"{start}.compare_versions", lambda *_: [])
    monkeypatch.setattr(f"{start}.held_out_rows", lambda *_: None)
    run: Any = object()
    adapter = saved("grid-rows", tmp_path)
    assert merged(adapter, "grid-rows", run=run)["shipped"]["layers"] == 14 and not asked
    other: dict[str, Any] = {"output": tmp_path / "other", "check_base": False, "quant": ComponentConfig(name="grid")}
    report = merged(adapter, "grid-rows", run=run, **other)
    assert asked and report["own_base"] is False and report["shipped"] is None
    with pytest.raises(ConfigError, match="needs calibration rows"):
        merged(adapter, "grid-rows", **{**other, "output": tmp_path / "without"})
