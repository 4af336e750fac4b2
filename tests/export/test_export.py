"""`smollm3 export`: runs, models and adapters are written, verified and kept whole; anything else leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from smollm3_finetune import load_model
from smollm3_finetune.export.card import card, is_model
from smollm3_finetune.files.json import read_json, write_json
from smollm3_finetune.model.adapter_card import StatedTraining
from smollm3_finetune.model_files.card_mark import is_generated
from smollm3_finetune.model_files.card_metadata import metadata_fault
from smollm3_finetune.testing import write_small_model
from smollm3_finetune.testing.commands import smollm3

OUT_OF_TREE = Path(__file__).parents[1] / "out_of_tree"
EXAMPLE = Path(__file__).parents[2] / "examples" / "npz_export.py"
ROUNDING = ("-p", str(OUT_OF_TREE / "rounding_quantizer.py"))
FILES = {"README.md", "config.json", "export.json", "generation_config.json", "model.safetensors"}
Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("model") / "small", biases=False)


@pytest.fixture(scope="module")
def trained(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `full` that has learned something about its held-out rows."""
    place = tmp_path_factory.mktemp("trained")
    rows = [{"prompt": f"What is {n}?", "completion": f"It is the number {n}."} for n in range(60)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = smollm3(
        "train", "--model", small, "--adapter", "full", "--data", place / "rows.jsonl", "--max-steps", "8",
        "--learning-rate", "5e-3", "--max-length", "128",
        "--output", place / "run", "--seed", "1", "--set", "data.held_out=0.3",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    return place / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, so that each test writes into its own."""
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    return copy


def nothing_beside(directory: Path) -> bool:
    """Whether neither the result, nor a partial result, nor a lock is left."""
    return not [p for p in directory.absolute().parent.iterdir() if directory.name in p.name]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in sorted(directory.glob("*.safetensors")) for k, v in load_file(str(file)).items()}


# ------------------------------------------------------------------------------------------------ what is exported


@pytest.mark.parametrize(
    ("merges", "dense", "disk", "needed"),
    [(True, True, 0.625, 4.625), (False, True, 0.625, 0.625), (False, False, 4.6, 8.6), (False, True, None, 2)],
    ids=["merged run", "model as it is", "quantized model", "same size as the model"],
)
def test_the_disk_must_hold_the_copy_and_what_is_written(
    merges: bool, dense: bool, disk: float | None, needed: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from smollm3_finetune.export import run as export_run

    found: list[float] = []
    monkeypatch.setattr(export_run, "is_dense", lambda plan: dense)
    monkeypatch.setattr(export_run, "count_parameters", lambda config: 1000)
    monkeypatch.setattr(export_run, "check_room", lambda directory, size, what, hint: found.append(size))
    plan = SimpleNamespace(source=SimpleNamespace(config={"dtype": "bfloat16"}))
    planned: Any = SimpleNamespace(
        plan=plan, merges=merges, spec=SimpleNamespace(disk=disk), settings=SimpleNamespace(output=tmp_path)
    )
    export_run._check_disk(planned)
    assert found == [pytest.approx(1000 * needed * export_run.SPARE)]


def test_a_run_is_merged_in_float32_exported_and_verified(cli: Cli, run: Path) -> None:
    report = cli("export", run, "--to", "safetensors", "--json").report()
    out = run / "exported-safetensors"
    assert report["output"] == str(out) and {f.name for f in out.iterdir()} >= FILES
    base = read_json(run / "adapter" / "smollm3.json")["model"]
    merged = load_model(base, adapter_path=run / "adapter").model.state_dict()
    found = weights(out)
    assert all(torch.equal(value, merged[name]) and value.dtype == torch.float32 for name, value in found.items())
    assert {c["name"]: c["passed"] for c in report["checks"]} == dict.fromkeys(
        ("weights", "config", "tokenizer", "stop tokens", "logits"), True
    )
    kept = report["retained"]
    assert kept["share"] == pytest.approx(1, abs=1e-4) and kept["low"] <= 1 <= kept["high"]
    assert kept["base"] - kept["adapter"] > 0.5, "training must have gained something"
    stored = read_json(out / "export.json")
    assert stored == {k: v for k, v in report.items() if k not in ("output", "device", "remedy", "seconds")}
    assert str(run) not in (out / "export.json").read_text(), "no local path is distributed"
    card = (out / "README.md").read_text()
    assert is_generated(card) and metadata_fault(card) is None and str(run) not in card
    assert "| weights | passed |" in card and "## Training" in card and "Retained share: 1.00" in card
    assert "The relative error that the merge adds to the logits is" in card
    assert sorted(p.name for p in run.iterdir() if "exported" in p.name) == ["exported-safetensors"]


def test_options_of_the_exporter_are_flags(cli: Cli, run: Path) -> None:
    done = cli("export", "--dtype", "bf16", run, "--max-shard-size=100KB", "--to", "safetensors", "--output", "b")
    assert done.code == 0, done.stderr
    assert "✓ weights" in done.stdout and "retained       1.00 of the gain" in done.stdout
    found = weights(Path("b"))
    assert {value.dtype for value in found.values()} == {torch.bfloat16}
    assert len(list(Path("b").glob("model-*.safetensors"))) > 1
    assert read_json(Path("b/export.json"))["options"] == {"dtype": "bfloat16", "max_shard_size": "100KB"}


def test_a_model_is_exported_as_it_is(cli: Cli, small: Path) -> None:
    report = cli("export", small, "--to", "safetensors", "--output", "out", "--json").report()
    before, after = weights(small), weights(Path("out"))
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert report["merge"] is None and report["adapter"] is None and report["retained"] is None


@pytest.mark.parametrize("loads", [True, False])
def test_only_what_transformers_loads_is_shown_with_its_use(loads: bool) -> None:
    """Other software has files of the same names, for example with codes of its own."""
    about = {
        "title": "small, exported as thing", "model": "small", "exporter": "thing", "merge": None, "quantizer": "none",
        "adapter": None, "options": {}, "license": {}, "checks": [], "retained": None, "warnings": [], "loads": loads,
        "files": {"config.json": 2, "model.safetensors": 9}, "output": "out", "seconds": 1,
    }  # fmt: skip
    text = card(about, StatedTraining())
    assert ("from_pretrained" in text) == ("library_name: transformers" in text) == loads
    assert ("library_name: thing" in text) == (not loads)
    assert is_model(about) == loads


def test_a_quantized_model_is_dequantized_first(cli: Cli, small: Path) -> None:
    quantized = cli("quantize", small, "--quant", "rounding", "--quant-opt", "bits=4", "--output", "q",
                    *ROUNDING)  # fmt: skip
    assert quantized.code == 0, quantized.stderr
    report = cli("export", "q", "--to", "safetensors", "--output", "dense", "--json", *ROUNDING).report()
    assert report["quantizer"] == "rounding" and "quantization_config" not in read_json(Path("dense/config.json"))
    expected = load_model("q", plugins=ROUNDING[1:]).model.state_dict()
    found = weights(Path("dense"))
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert not all(torch.equal(value, weights(small)[name]) for name, value in found.items()), "it was rounded"


def test_an_adapter_on_a_model_has_no_held_out_rows(cli: Cli, run: Path, small: Path) -> None:
    arguments = ("export", small, "--adapter-path", run / "adapter", "--to", "safetensors", "--output", "out")
    done = cli(*arguments)
    assert done.code == 0, done.stderr
    assert "retained       not known: there is no run, so there are no held-out rows" in done.stdout


def test_rows_that_are_gone_are_said(cli: Cli, run: Path) -> None:
    config = (run / "run.yaml").read_text()
    (run / "run.yaml").write_text(config.replace("rows.jsonl", "gone.jsonl"))
    done = cli("export", run, "--to", "safetensors", "--output", "out")
    assert done.code == 0, done.stderr
    assert "retained       not known: " in done.stdout and "gone.jsonl" in done.stdout


def test_stored_losses_are_used_only_if_they_are_those_of_the_base(
    cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smollm3_finetune.merge.prediction import PredictedRows

    measured: list[int] = []
    plain = PredictedRows._measured

    def counted(self: PredictedRows, model: Any, chosen: Any) -> Any:
        measured.append(len(chosen))
        return plain(self, model, chosen)

    monkeypatch.setattr(PredictedRows, "_measured", counted)
    first = cli("export", run, "--to", "safetensors", "--output", "one", "--json").report()["retained"]
    rows = first["rows"]
    assert measured == [2, rows, rows], "two rows of the base, then the merged model and the export"
    before = read_json(run / "before.json")
    before["rows"]["losses"] = [value + 1 for value in before["rows"]["losses"]]
    write_json(run / "before.json", before)
    measured.clear()
    again = cli("export", run, "--to", "safetensors", "--output", "two", "--json").report()["retained"]
    assert measured == [2, rows, rows, rows], "the stored losses were wrong: all rows were measured"
    assert again["base"] == pytest.approx(first["base"], rel=1e-5)


def test_what_rounding_costs_is_measured_and_warned_of(cli: Cli, run: Path) -> None:
    """The example in 16 bits keeps all; a merge requantized to 2 bits does not."""
    done = cli("export", run, "-p", EXAMPLE, "--to", "npz", "--bits", "16")
    assert done.code == 0, done.stderr
    assert "retained       1.00 of the gain" in done.stdout and not done.stderr.count("warning")
    merged = cli("merge", run, "--requantize", "rounding", "--requantize-opt", "bits=2", *ROUNDING)
    assert merged.code == 0, merged.stderr
    assert "retained       " in merged.stdout and "of the gain (95 % interval" in merged.stdout
    assert "the shipped model keeps only" in merged.stderr
    about = read_json(run / "merged-rounding" / "merge.json")["requantized"]["retained"]
    assert about["share"] < 0.8 and about["low"] < about["share"] < about["high"]
    assert "Retained share: " in (run / "merged-rounding" / "README.md").read_text()


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run",), "--to is required"),
        (("run", "--to", "safetensor"), "did you mean 'safetensors'?"),
        pytest.param(("run", "--to", "peft"), "not saved in PEFT's format", marks=pytest.mark.plugins),
        pytest.param(
            ("small", "--to", "peft", "--output", "o"), "writes an adapter alone, but", marks=pytest.mark.plugins
        ),
        (("small", "--to", "safetensors"), "--output is required for a model"),
        (("run", "--to", "safetensors", "--output", "x.safetensors"), "names a file, but it is the directory"),
        (("run", "--to", "safetensors", "--output", "file"), "names a file, but it is the directory"),
        (("run", "--to", "safetensors", "--dtyp", "float16"), "did you mean '--dtype'?"),
        (("run", "--to", "safetensors", "--dtype"), "Option '--dtype' requires an argument"),
        (("run", "--to", "safetensors", "--dtype", "int3"), "expected float64|float32|bfloat16|float16"),
        (("run", "--to", "safetensors", "--max-shard-size", "big"), "expected a size such as 5GB"),
        (("run", "--dtype", "float16"), "options of an exporter need --to NAME"),
        (("run", "small", "--to", "safetensors"), "Got unexpected argument"),
        (("--to", "safetensors"), "Missing argument"),
        (("run/checkpoints", "--to", "safetensors"), "it is inside a run: smollm3 export run --to safetensors"),
        (
            ("runs", "--to", "safetensors"),
            "'runs' is not a run or a model, but contains runs\n  hint: smollm3 export runs",
        ),
        (("run", "--to", "safetensors", "--output", "taken"), "is not empty"),
        (("run", "--to", "safetensors", "--quant", "none"), "--quant cannot be used with the run"),
    ],
)
def test_mistakes_are_one_sentence_with_a_hint(
    arguments: tuple[str, ...], says: str, cli: Cli, run: Path, small: Path, isolated: Path
) -> None:
    Path("run").symlink_to(run)
    Path("runs").mkdir()
    Path("runs/one").symlink_to(run)
    Path("small").symlink_to(small)
    Path("file").touch()
    Path("taken").mkdir()
    Path("taken/thesis.txt").touch()
    before = sorted(isolated.rglob("*"))
    done = cli("export", *arguments)
    assert done.code not in (0, 1) and says in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert sorted(isolated.rglob("*")) == before and not list(run.glob("exported*"))


def test_the_hint_for_a_default_output_that_is_taken_is_free(cli: Cli, run: Path) -> None:
    for taken in ("exported-safetensors", "exported-safetensors-2"):
        (run / taken).mkdir()
        (run / taken / "config.json").touch()
    done = cli("export", run, "--to", "safetensors")
    assert done.code == 2 and "already contains a model" in done.stderr, done.stderr
    assert f"hint: --output {run / 'exported-safetensors-3'}\n" in done.stderr


LOADER = """
from smollm3_finetune.api import LoaderSpec, hookimpl


@hookimpl
def smollm3_loaders():
    return [
        LoaderSpec(
            name="npz", summary="a NumPy archive", factory="npz_loader:Loader",
            claims=lambda ref: ref.endswith(".npz"), api=2,
        )
    ]
"""


def test_a_file_that_a_loader_claims_is_named(cli: Cli, small: Path, plugin_file: Callable[[str, str], Path]) -> None:
    plugins = ("--no-plugins", "-p", str(EXAMPLE), "-p", str(plugin_file("npz_loader", LOADER)), "--to", "npz")
    done = cli("export", small, *plugins, "--output", "out")
    assert done.code == 0, done.stderr
    (file,) = Path("out").glob("*.npz")
    assert f"try it         smollm3 generate {file} -p" in done.stdout
    done = cli("export", "out", *plugins, "--output", "again")
    assert done.code == 2 and "'out' is not a model, but contains one in a file" in done.stderr, done.stderr
    assert f"hint: name the file: smollm3 export {file} --to npz --output DIR" in done.stderr
    done = cli("generate", "out", *plugins[:-2], "--prompt", "Hello!")
    assert done.code == 6 and "'out' is not a model, but contains one in a file" in done.stderr, done.stderr
    assert f"hint: name the file: {file}" in done.stderr
    Path("out").rename("out dir")
    done = cli("generate", "out dir", *plugins[:-2], "--prompt", "Hello!")
    assert f"hint: name the file: 'out dir/{file.name}'" in done.stderr, done.stderr


def test_a_wrong_merge_is_refused_before_anything_is_written(cli: Cli, small: Path) -> None:
    plugins = ("-p", OUT_OF_TREE / "faulty_merges.py")
    loaded = load_model(small, adapter="delta", purpose="train", plugins=[str(plugins[1])])
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    loaded.save(Path("adapter"))
    about = read_json(Path("adapter/smollm3.json"))
    faulty = about["adapter"]["name"].replace(":delta", ":delta-twice")
    write_json(Path("adapter/smollm3.json"), {**about, "adapter": {**about["adapter"], "name": faulty}})
    (Path("adapter") / "checksums.json").unlink()
    done = cli("export", small, "--adapter-path", "adapter", "--to", "safetensors", "--output", "out", *plugins)
    assert done.code == 6 and "refused and nothing was kept" in done.stderr, done.stderr
    assert nothing_beside(Path("out"))


FAULTY = """
import os, signal
from npz_export import NpzExporter
from smollm3_finetune.api import Check, ExporterSpec, IncompatibleError, hookimpl

FAULT = os.environ.get("FAULT", "")


@hookimpl
def smollm3_exporters():
    return [ExporterSpec(name="faulty", summary="fails on purpose", factory="faulty_export:Faulty",
                         options="npz_export:NpzOptions", api=2, check=check)]


def check(options, source):
    if FAULT == "check":
        raise IncompatibleError("this format holds no such model", hint="--to safetensors")


class Faulty(NpzExporter):
    def write(self, subject, out, ctx):
        if FAULT == "empty":
            return
        super().write(subject, out, ctx)
        if FAULT == "link":
            (out / "link").symlink_to(subject.model.path / "config.json")
        if FAULT == "raise":
            raise ValueError("a bug")
        if FAULT == "full disk":
            raise OSError(28, "No space left on device", str(out / "more"))
        if FAULT == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

    def verify(self, subject, out, ctx):
        found = super().verify(subject, out, ctx)
        if FAULT == "kill in verify":
            os.kill(os.getpid(), signal.SIGKILL)
        if FAULT == "failed":
            return [*found, Check(name="greeting", passed=False, says="the model does not say hello")]
        if FAULT == "no verdict":
            return [Check(name="runtime", passed=None, says="nothing is installed")]
        return "nonsense" if FAULT == "nonsense" else found

    def reload(self, subject, out, ctx):
        if FAULT == "kill in reload":
            os.kill(os.getpid(), signal.SIGKILL)
        return 5 if FAULT == "reload" else super().reload(subject, out, ctx)
"""
FAULTS = {
    "check": "this format holds no such model",
    "empty": "write() has written no file",
    "link": "write() made the link 'link'",
    "raise": "failed in write(): ValueError: a bug",
    "full disk": "the disk is full",
    "failed": "the export was refused and nothing was kept: greeting: the model does not say hello",
    "no verdict": "verify() returned no check with a verdict",
    "nonsense": "failed in verify(): TypeError: it returned",
    "reload": "failed in reload(): TypeError: it returned",
}


@pytest.fixture
def faulty(plugin_file: Callable[[str, str], Path]) -> tuple[str, ...]:
    return ("--no-plugins", "-p", str(EXAMPLE), "-p", str(plugin_file("faulty_export", FAULTY)), "--to", "faulty")


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_fails_nothing_is_kept(
    fault: str, faulty: tuple[str, ...], cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", fault)
    done = cli("export", run, *faulty, "--output", "out")
    assert done.code not in (0, 1) and FAULTS[fault] in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert nothing_beside(Path("out"))


@pytest.mark.parametrize("fault", ["kill", pytest.param("kill in reload", marks=pytest.mark.long)])
def test_a_killed_export_leaves_nothing_at_its_output_and_the_next_one_completes(
    fault: str, faulty: tuple[str, ...], cli: Cli, run: Path, isolated: Path
) -> None:
    command = [sys.executable, "-m", "smollm3_finetune.main", "export", str(run), *faulty, "--output", "out"]
    killed = subprocess.run(command, env={**os.environ, "FAULT": fault}, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not Path("out").exists()
    left = [p.name for p in isolated.iterdir()]
    assert left and all(name.startswith(".out.smollm3-") for name in left), left
    done = cli("export", run, *faulty, "--output", "out")
    assert done.code == 0, done.stderr
    assert [p.name for p in isolated.iterdir()] == ["out"], "the leftovers are gone"


def test_help_shows_the_options_of_the_exporter(cli: Cli) -> None:
    done = cli("export", "--to", "safetensors", "--help")
    assert done.code == 0 and "max_shard_size=text" in done.stdout
    assert "  --to " in cli("export", "--help").stdout
