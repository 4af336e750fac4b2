"""Weights that FSDP 2 divides among two processes on a CPU: they train like one process, and are saved whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from smollm3_finetune import finetune, load_model
from smollm3_finetune.testing.process_pair import FSDP, process_pair
from smollm3_finetune.train.distributed.held import held_weights, shown_bytes
from smollm3_finetune.train.distributed.layout import of_environment
from smollm3_finetune.train.distributed.sharding import gathered_weights

OUT_OF_TREE = Path(__file__).parents[1] / "out_of_tree"
DATA = {"limit": 30, "max_length": 64}
STEPS = {"max_steps": 4, "save_every": 2, "keep_checkpoints": 9, "sample_tokens": 3, "gradient_accumulation": 2}
BETWEEN = {"eval_every": 3, "sample_every": 3}
LOGGED = 1e-6
"""Relative. Losses are added up in float32 before they are logged, whatever the dtype of the run."""
LAUNCHER = ("--launcher", "accelerate", "--launcher-opt", "profile=fsdp2", "--launcher-opt", "processes=2")


def in_one(output: str, train: dict[str, Any], **more: Any) -> dict[str, Any]:
    train = {**STEPS, **train, "batch_size": 4}
    return finetune(**{"output": output, "train": train, "device": "cpu", "data": DATA, "quiet": True, **more})


def in_two(output: str, train: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The same run with two processes that share the weights."""
    train = {**STEPS, **train, "batch_size": 2}
    return both(FSDP, **{"output": output, "train": train, "device": "cpu", "data": DATA, **more})


def both(launcher: Mapping[str, str], **arguments: Any) -> dict[str, Any]:
    """The report of `finetune` in two processes with these variables of a launcher."""
    environment = {**launcher, "SMOLLM3_CACHE": os.environ["SMOLLM3_CACHE"]}
    function = "smollm3_finetune.testing.process_pair:finetuned"
    report: dict[str, Any] = process_pair().call(function, arguments, environment, Path.cwd())[0]
    return report


def steps_of(run: str, key: str = "loss") -> list[float]:
    rows = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if "loss" in row]


def weights(directory: str) -> dict[str, torch.Tensor]:
    (file,) = Path(directory).glob("*.safetensors")
    found: dict[str, torch.Tensor] = load_file(file)
    return found


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], *, error: float = 0.0) -> bool:
    assert one.keys() == other.keys()
    return max(float((value - other[name]).abs().max()) for name, value in one.items()) <= error


def state_of(run: str, step: int) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(Path(run, "checkpoints", f"checkpoint-{step}", "optimizer.pt"))
    return found


@pytest.mark.plugins
@pytest.mark.parametrize(
    "adapter",
    ["lora", pytest.param("dora", marks=pytest.mark.long), pytest.param("full", marks=pytest.mark.long)],
)
def test_processes_that_share_the_weights_train_like_one(isolated: Path, adapter: str) -> None:
    about = {"adapter": adapter, "dtype": "float64"}
    one, two = in_one("one", BETWEEN, **about), in_two("two", BETWEEN, **about)

    whole = held_weights(load_model("tiny", adapter_path="one/adapter", dtype="float64", purpose="train").model).bytes
    held = two["weights_held"]
    for bytes_held, not_shared in zip(held["processes"], held["not_shared"], strict=True):
        assert 0 < not_shared < 1000
        assert 2 * (bytes_held - not_shared) == whole - not_shared

    assert steps_of("two") == pytest.approx(steps_of("one"), rel=LOGGED)
    assert steps_of("two")[-1] < 0.8 * steps_of("two")[0]
    assert steps_of("two", "grad_norm") == pytest.approx(steps_of("one", "grad_norm"), rel=1e-12)
    assert two["tokens"] == one["tokens"]
    for when in ("before", "after"):
        assert two[when]["held_out_loss"] == pytest.approx(one[when]["held_out_loss"], rel=1e-12)
        assert two[when]["sample"] == one[when]["sample"]
    assert Path("two/samples.jsonl").read_text() == Path("one/samples.jsonl").read_text()
    assert equal(weights("two/adapter"), weights("one/adapter"), error=1e-12)
    ours, theirs = state_of("two", 2), state_of("one", 2)
    assert ours["param_groups"] == theirs["param_groups"]
    for number, state in theirs["state"].items():
        assert equal(ours["state"][number], state, error=1e-12), "the moments of AdamW are whole, as those of one"

    losses, trained = steps_of("two"), weights("two/adapter")
    for left_by_later_steps in ("report.json", "trained.json"):
        Path("two", left_by_later_steps).unlink()
    shutil.rmtree("two/checkpoints/checkpoint-4")
    both(FSDP, resume="two")
    assert steps_of("two") == losses
    assert equal(weights("two/adapter"), trained)


@pytest.mark.long
@pytest.mark.plugins
def test_a_run_continues_without_fsdp_from_a_checkpoint_with_it(isolated: Path) -> None:
    """The state in a checkpoint is that of one process."""
    in_one("one", {"max_steps": 4}, adapter="lora", dtype="float64")
    in_two("two", {"max_steps": 4}, adapter="lora", dtype="float64")
    for name in ("report.json", "trained.json"):
        Path("two", name).unlink()
    shutil.rmtree("two/checkpoints/checkpoint-4")
    report = both({}, resume="two")
    assert "weights_held" not in report
    assert equal(weights("two/adapter"), weights("one/adapter"), error=1e-12)


@pytest.mark.long
@pytest.mark.plugins
@pytest.mark.parametrize(
    ("about", "changes"),
    [
        pytest.param({"adapter": "lora"}, {"gradient_checkpointing": True}, id="gradient checkpointing"),
        pytest.param({"adapter": "lora"}, {"packing": True}, id="packing"),
        pytest.param({"adapter": "lora", "objective": "dpo"}, {}, id="dpo"),
    ],
)
def test_kinds_of_runs_are_those_of_one_process(isolated: Path, about: dict[str, Any], changes: dict[str, Any]) -> None:
    if "objective" in about:
        pairs = (
            {"prompt": f"{n} + {n}?", "chosen": f"It is {2 * n}.", "rejected": "I do not know."} for n in range(30)
        )
        Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        about = {**about, "data": {**DATA, "path": "pairs.jsonl"}}
    one = in_one("one", changes, dtype="float64", **about)
    two = in_two("two", changes, dtype="float64", **about)
    assert steps_of("two") == pytest.approx(steps_of("one"), rel=LOGGED)
    assert two["after"]["held_out_loss"] == pytest.approx(one["after"]["held_out_loss"], rel=1e-9)
    assert equal(weights("two/adapter"), weights("one/adapter"), error=1e-9)


@pytest.mark.long
@pytest.mark.plugins
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_in_bfloat16_trained_weights_stay_in_float32(isolated: Path, adapter: str) -> None:
    """`full` is gathered in bfloat16, in which one process computes too, except the weights of norms."""
    one = in_one("one", {}, adapter=adapter, dtype="bfloat16")
    two = in_two("two", {}, adapter=adapter, dtype="bfloat16")
    assert steps_of("two") == pytest.approx(steps_of("one"), rel=5e-3)
    assert two["after"]["held_out_loss"] == pytest.approx(one["after"]["held_out_loss"], rel=5e-3)
    assert {tensor.dtype for tensor in weights("two/adapter").values()} == {torch.float32}


@pytest.mark.long
@pytest.mark.parametrize("keeps", ["parameters", "undeclared"])
def test_quantized_layers_are_shared_if_their_quantizer_declares_it(isolated: Path, keeps: str) -> None:
    """`scale` registers trained parameters on the quantized layers, which are shared in both cases."""
    about = {
        "quant": {"name": "dividing", "keeps": keeps}, "adapter": "scale", "dtype": "float64",
        "plugins": [str(OUT_OF_TREE / f"{name}.py") for name in ("dividing_quantizer", "scale_adapter")],
    }  # fmt: skip
    in_one("one", {}, **about)
    two = in_two("two", {}, **about)
    assert steps_of("two") == pytest.approx(steps_of("one"), rel=LOGGED)
    assert equal(weights("two/adapter"), weights("one/adapter"), error=1e-12)
    codes = sum(
        parameter.numel() for name, parameter in load_model("tiny").model.named_parameters() if "proj" in name
    )  # one byte each
    (own, _) = two["weights_held"]["not_shared"]
    assert own < 1000 if keeps == "parameters" else own > codes


@pytest.mark.long
@pytest.mark.plugins
def test_a_killed_process_ends_the_run_which_resumes_exactly(isolated: Path) -> None:
    steps = {"max_steps": 60, "save_every": 3, "gradient_accumulation": 1}
    in_two("whole", steps, adapter="lora")
    settings = [a for key, value in {**STEPS, **steps}.items() for a in ("--set", f"train.{key}={value}")]
    about = ("--adapter", "lora", "--device", "cpu", "--batch-size", "2", "--max-length", "64")
    command = (sys.executable, "-m", "smollm3_finetune.main", "train", *LAUNCHER, *about, "--set", "data.limit=30")
    with Path("log").open("w") as log:
        killed = subprocess.Popen([*command, *settings, "--output", "run"], stderr=log, stdout=log)
        try:
            while not Path("run/checkpoints/checkpoint-3").is_dir() and killed.poll() is None:
                time.sleep(0.1)
            workers = [p for p in psutil.Process(killed.pid).children(recursive=True) if "--launched" in p.cmdline()]
            (rank,) = [p for p in workers if p.environ().get("RANK") == "1"]
            os.kill(rank.pid, signal.SIGKILL)
            code = killed.wait(timeout=240)
        finally:
            if killed.poll() is None:
                killed.kill()
    said = Path("log").read_text()
    assert code != 0, said
    assert "Traceback" not in said
    assert "error: " in said and "smollm3 train --resume" in said
    assert not Path("run/adapter").exists()
    resumed = subprocess.run(
        [*command[:3], "train", "--resume", "run"], capture_output=True, text=True, timeout=300, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert equal(weights("run/adapter"), weights("whole/adapter"))


SINGLE = """
from smollm3_finetune.api import AdaptedLayers, AdapterSpec, Op, hookimpl, layers_to_adapt

@hookimpl
def smollm3_adapters():
    return [AdapterSpec(name="gain", summary="one number for each layer", factory="gain:Gain", api=2,
                        needs={Op.FORWARD, Op.GRAD_INPUT})]

class Gain:
    def __init__(self, options):
        pass

    def attach(self, base, ctx, total_steps):
        import torch

        adapted = AdaptedLayers(base)
        for name in layers_to_adapt(base, ["o_proj"]):
            adapted.add(name, "gain", torch.nn.Parameter(torch.ones(())), lambda gain, x, y: y * gain)
        return adapted

    def restore(self, base, path, ctx, total_steps):
        return self.attach(base, ctx, total_steps).restored(path, ctx)

    def merge(self, dense, path):
        return dense
"""


@pytest.mark.long
def test_a_trained_single_number_cannot_be_shared(isolated: Path) -> None:
    Path("gain.py").write_text(SINGLE)
    with pytest.raises(RuntimeError, match=r"o_proj\.gain, a single number, which FSDP cannot shard"):
        in_two("run", {}, adapter="gain", plugins=["gain.py"])


# ------------------------------------------------------------------------------------------------ planning


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, 3, "FSDP 1 is not supported: it wraps the model"),
        ({**FSDP, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, 2, "one process"),
        ({**FSDP, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, 3, "it renames the weights"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, 3, "ZeRO 3"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}, 3, "ZeRO 3"),
    ],
)
def test_unsupported_settings_of_a_launcher_are_refused_before_weights_are_read(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], code: int, message: str
) -> None:
    Path("ds.json").write_text('{"zero_optimization": {"stage": 3}}')
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    result = cli("train", "--adapter", "full", "--output", "run", "--dry-run")
    assert result.code == code, result.stderr
    assert message in result.stderr
    assert "hint: accelerate launch --" in result.stderr
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("changed", "message", "hint"),
    [
        ("train.compile=true", "train.compile was not tested with FSDP", "--set train.compile=false"),
        ("train.optimizer=adafactor", "train.optimizer=adafactor was not tested with", "train.optimizer=adamw_torch"),
    ],
)
def test_runs_that_cannot_share_weights_are_refused(
    cli: Callable[..., Any], changed: str, message: str, hint: str
) -> None:
    result = cli("train", "--adapter", "full", "--device", "cpu", "--dry-run", *LAUNCHER, "--set", changed)
    assert result.code == 3, result.stderr
    assert message in result.stderr and hint in result.stderr


@pytest.mark.plugins
def test_an_adapter_that_cannot_be_divided_is_refused(cli: Callable[..., Any]) -> None:
    result = cli("train", "--adapter", "adalora", "--device", "cpu", "--dry-run", *LAUNCHER)
    assert result.code == 3, result.stderr
    assert "--adapter adalora does not work with FSDP" in result.stderr and "hint: --adapter lora" in result.stderr
    assert cli("train", "--adapter", "adalora", "--device", "cpu", "--dry-run").code == 0


@pytest.mark.parametrize(
    ("keeps", "dtype", "scale", "line"),
    [
        ("parameters", "float32", 4, "FSDP 2 divides the weights among 2 processes"),
        *(
            (
                "undeclared", dtype, scale,
                "FSDP 2 divides the weights among 2 processes; quantized weights are replicated on each process: "
                "{size} (codes are buffers)",
            )
            for dtype, scale in (("float32", 4), ("float64", 8))
        ),
    ],
)  # fmt: skip
def test_planning_says_what_each_process_keeps(
    cli: Callable[..., Any], keeps: str, dtype: str, scale: int, line: str
) -> None:
    plugins = [a for n in ("dividing_quantizer", "scale_adapter") for a in ("-p", str(OUT_OF_TREE / f"{n}.py"))]
    quantized = ("--quant", "dividing", "--quant-opt", f"keeps={keeps}", "--adapter", "scale", "--device", "cpu",
                 "--dtype", dtype)  # fmt: skip
    shapes = [w.shape for name, w in load_model("tiny").model.named_parameters() if "proj" in name]
    line = line.format(size=shown_bytes(sum(outputs * inputs + scale * outputs for outputs, inputs in shapes)))
    result = cli("train", *plugins, *quantized, *LAUNCHER, "--dry-run")
    assert f"# weights  {line}\n" in result.stdout, result.stderr
    alone = cli("train", *plugins, *quantized, "--dry-run", "--json")
    assert json.loads(alone.stdout)["sharding"] is None


def test_without_several_processes_nothing_changes() -> None:
    model = torch.nn.Linear(2, 2)
    before = dict(model.named_parameters())
    with gathered_weights(model):
        assert all(p is before[n] for n, p in model.named_parameters())


@pytest.mark.parametrize(("stage", "expected"), [(1, "zero1"), (2, "zero2")])
def test_the_stage_of_a_deepspeed_file_decides_what_is_shared(
    stage: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(file))
    assert of_environment().sharding == expected
