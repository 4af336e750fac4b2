"""The predicted parts of a run's memory against exact values, and predictions without weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.config.load import Setting
from smollm3_finetune.memory.estimate import Estimator, estimate
from smollm3_finetune.memory.heap import Heap
from smollm3_finetune.model.load import load_model
from smollm3_finetune.progress import Silent
from smollm3_finetune.train.distributed.layout import Layout
from smollm3_finetune.train.start import PlannedRun, plan_training

SMOLLM3 = {
    "model_type": "smollm3", "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
    "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 128256, "tie_word_embeddings": True,
    "max_position_embeddings": 65536, "dtype": "bfloat16",
}  # fmt: skip
LLAMA_70B = {
    "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
    "max_position_embeddings": 8192, "dtype": "bfloat16",
}  # fmt: skip


def planned(tmp_path: Path, model: str = "tiny", **values: Any) -> PlannedRun:
    given = {"model": model, "device": "cpu", "output": str(tmp_path / "run"), "quant.name": "none", **values}
    settings = [Setting(key=tuple(k.split(".")), value=v, origin="test") for k, v in given.items()]
    return plan_training(
        settings,
        find_plugins=lambda names: discover(PluginSelection.of(tuple(names))),
        progress=Silent(),
        warn=lambda text: None,
    )


def of_tiny(tmp_path: Path, **values: Any) -> Mapping[str, int]:
    run = planned(tmp_path, **{"adapter.name": "lora", "data.max_length": 64, "train.batch_size": 2, **values})
    found = estimate(run.plan, run.registry)
    assert found.known, found.unknown
    assert found.low <= found.peak <= found.high
    return found.parts


@pytest.mark.parametrize("adapter", ["lora", "dora", "full"])
def test_weights_adapter_and_optimizer_are_exact(tmp_path: Path, adapter: str) -> None:
    loaded = load_model("tiny", quant="none", adapter=adapter, purpose="train", device="cpu", dtype="float32")
    trained = [p for p in loaded.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = sum(t.nbytes for s in optimizer.state.values() for t in s.values())
    tensors = {id(t): t.nbytes for t in (*loaded.model.parameters(), *loaded.model.buffers())}
    parts = of_tiny(tmp_path, **{"adapter.name": adapter})
    assert parts["weights"] + parts["adapter"] == sum(tensors.values())
    assert parts["optimizer"] == state
    if adapter == "full":
        assert parts["adapter"] == 0
    else:
        assert parts["adapter"] == sum(p.nbytes for p in trained)


def test_memory_grows_with_length_batch_and_without_checkpointing(tmp_path: Path) -> None:
    run = planned(tmp_path, **{"adapter.name": "lora"})
    predict = Estimator(run.plan, run.registry)
    short, long, many = (predict(length=n, batch=b).parts["activations"] for n, b in ((64, 2), (128, 2), (64, 4)))
    assert long == pytest.approx(2 * short, rel=0.02)
    assert many == pytest.approx(long, rel=0.02)
    recomputed = of_tiny(tmp_path, **{"train.gradient_checkpointing": True})
    assert recomputed["activations"] < short / 5


def test_layers_of_a_kind_are_traced_once(tmp_path: Path) -> None:
    from smollm3_finetune.memory.build import build

    run = planned(tmp_path, **{"adapter.name": "lora"})
    reduced = build(run.plan).reduced
    (stack,) = reduced.stacks
    assert len(stack.chain) == 8
    assert sum(stack.count(i) for i in set(stack.chain)) == 8
    assert len(set(stack.chain)) < 8
    whole = planned(tmp_path, **{"adapter.name": "lora", "adapter.layers": [5, 6]})
    assert build(whole.plan).reduced.whole
    parts = Estimator(whole.plan, whole.registry)(length=64, batch=2).parts
    assert parts["adapter"] == of_tiny(tmp_path)["adapter"] // 4


def test_processes_share_what_their_sharding_says(tmp_path: Path) -> None:
    run = planned(tmp_path, **{"adapter.name": "full", "data.max_length": 16, "train.batch_size": 1})

    def parts(processes: int, sharding: Any) -> Mapping[str, int]:
        return estimate(run.plan, run.registry, layout=Layout(processes=processes, sharding=sharding)).parts

    one, zero1, zero2, fsdp = parts(1, "none"), parts(4, "zero1"), parts(4, "zero2"), parts(4, "fsdp2")
    assert zero1["optimizer"] == -(-one["optimizer"] // 4)
    assert zero1["weights"] == one["weights"]
    assert zero2["gradients"] == -(-one["gradients"] // 4)
    assert fsdp["weights"] == pytest.approx(one["weights"] / 4, rel=0.01)
    buckets = parts(4, "none")["gradients"]  # beside all gradients
    assert buckets == pytest.approx(2 * one["weights"], rel=0.1)
    changing = estimate(run.plan, run.registry, layout=Layout(processes=None))
    assert changing.unknown
    assert changing.as_json()["peak"] is None


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"train.optimizer": "adafactor"}, "optimizer 'adafactor'"),
        ({"train.compile": True}, "compiled"),
        ({"quant.name": "unstated"}, "does not state the memory of its layers"),
    ],
)
def test_what_nobody_measured_has_no_number(tmp_path: Path, values: dict[str, Any], reason: str) -> None:
    if "quant.name" in values:
        plugin = tmp_path / "unstated.py"
        plugin.write_text(UNSTATED)
        values = {**values, "plugins": [str(plugin)]}
    run = planned(tmp_path, **{"adapter.name": "lora", **values})
    found = estimate(run.plan, run.registry)
    assert reason in found.unknown[0]
    assert not found.parts
    assert found.as_json()["peak"] is None


UNSTATED = """
from smollm3_finetune.api import ALL_OPS, QuantizerSpec, hookimpl

@hookimpl
def smollm3_quantizers():
    return [QuantizerSpec(name="unstated", summary="a test", factory="unstated:Quantizer", provides=ALL_OPS, api=2)]
"""


@pytest.mark.parametrize(("config", "parameters"), [(SMOLLM3, 3_075_098_624), (LLAMA_70B, 70_553_706_496)])
def test_large_models_are_predicted_without_their_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], parameters: int
) -> None:
    """No tensor with values is larger than 100 MB, and few layers are traced."""
    model = model_without_weights(tmp_path, config)
    run = planned(tmp_path, str(model), **{"adapter.name": "lora", "dtype": "bfloat16", "data.max_length": 2048})
    largest = 0
    from smollm3_finetune.memory import trace

    begin = trace.Trace._count

    def counted(self: Any, storage: Any) -> None:
        nonlocal largest
        if storage.device.type != "meta" and not self.fake(storage):
            largest = max(largest, storage.nbytes())
        begin(self, storage)

    monkeypatch.setattr(trace.Trace, "fake", lambda self, storage: storage.data_ptr() == 0, raising=False)
    monkeypatch.setattr(trace.Trace, "_count", counted)
    predict = Estimator(run.plan, run.registry)
    found = predict(length=2048, batch=1)
    assert found.known, found.unknown
    assert found.mapped + found.parts["weights"] == pytest.approx(2 * parameters, rel=0.001)
    assert largest < 100e6
    assert predict._built is not None
    assert len(predict._built.reduced.counts) <= 5


def model_without_weights(tmp_path: Path, config: dict[str, Any]) -> Path:
    """A directory with the tokenizer of the built-in model and a weight file without tensors."""
    import shutil

    import smollm3_finetune

    model = tmp_path / "large"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({**config, "bos_token_id": 0, "eos_token_id": 4, "pad_token_id": 2}))
    tiny = Path(smollm3_finetune.__file__).parent / "builtin" / "tiny"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny / name, model)
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return model


def test_a_hole_of_the_heap_is_reused_unless_small_objects_took_its_pieces() -> None:
    def resident(share: float, size: int = 1_000_000, **how: bool) -> int:
        heap = Heap(2**30, share, **how)
        for number in range(20):
            heap.allocate(("freed", number), size)
            heap.allocate(("kept", number), size)
            heap.release(("freed", number))
        return heap.peak

    assert resident(0.0) == pytest.approx(21_000_000, rel=0.05)
    assert resident(1.0) > 35_000_000
    assert 25_000_000 < resident(0.25) < 35_000_000
    # tensors of 2 MiB and more are aligned to pages: most of what is cut off them is too large for small objects
    assert resident(1.0, 2**22, huge_pages=True) < 0.8 * resident(1.0, 2**22)
    assert resident(1.0, 2**20, huge_pages=True) == resident(1.0, 2**20)


def test_a_large_block_has_pages_of_its_own_until_one_is_freed() -> None:
    heap = Heap()
    heap.allocate("a", 1_000_000)
    assert heap.resident == pytest.approx(1_000_000, rel=0.01)
    heap.release("a")
    assert heap.resident == 0
    assert heap.threshold > 1_000_000


def test_the_processes_are_those_of_the_launcher(tmp_path: Path) -> None:
    from smollm3_finetune.memory.records import key_of

    small = {"adapter.name": "lora", "data.max_length": 16, "train.batch_size": 1}
    one = planned(tmp_path, **small)
    two = planned(tmp_path, **small, **{"launcher.name": "torchrun", "launcher.processes": 2})
    found = estimate(two.plan, two.registry)
    assert found.processes == 2 and not found.compared
    assert "several processes" in found.notes[-1]
    assert found.parts["gradients"] >= estimate(one.plan, one.registry).parts["adapter"], "the buckets of DDP"
    assert key_of(one.plan) != key_of(two.plan)


@pytest.mark.parametrize("nested", [False, True])
def test_the_layers_of_a_quantized_checkpoint_keep_its_options(tmp_path: Path, nested: bool) -> None:
    pytest.importorskip("bitsandbytes")
    from smollm3_finetune.memory.build import build

    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": nested,
              "bnb_4bit_quant_type": "nf4"}  # fmt: skip
    small = {**SMOLLM3, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}
    model = model_without_weights(tmp_path, {**small, "quantization_config": stored})
    run = planned(tmp_path, str(model), **{"adapter.name": "lora", "quant.name": "bnb-4bit"})
    weights = 256 * (2 * 256 + 2 * 64 + 3 * 512)
    scales = weights // 64 * (1 if nested else 4)
    assert build(run.plan).held.quantized == pytest.approx(weights // 2 + scales, rel=0.03)


def test_the_memory_does_not_depend_on_how_many_pieces_of_logits_are_traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smollm3_finetune.batching import head

    run = planned(tmp_path, **{"adapter.name": "lora"})
    found = []
    for most in (4, 10_000):
        monkeypatch.setattr(head, "PLANNED_PIECES", most)
        found.append(Estimator(run.plan, run.registry)(length=2048, batch=24))
    few, every = found
    assert few.low == every.low
    assert few.parts["logits"] == every.parts["logits"]
    assert few.high == pytest.approx(every.high, rel=0.03)
    assert few.low < few.peak < few.high


def test_a_prediction_that_fails_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(plan: Any) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr("smollm3_finetune.memory.estimate.build", fails)
    run = planned(tmp_path, **{"adapter.name": "lora"})
    assert estimate(run.plan, run.registry).unknown == ("the run cannot be traced without weights (AssertionError)",)


def test_the_dry_run_states_the_memory(tmp_path: Path) -> None:
    from smollm3_finetune.cli.output.run import shown_plan

    run = planned(tmp_path, **{"adapter.name": "lora", "data.max_length": 64, "train.batch_size": 2})
    assert "for batches of 2 rows of 64 tokens" in shown_plan(run, as_json=False)
    about = json.loads(shown_plan(run, as_json=True))["memory"]
    assert about["peak"] == sum(about["parts"].values())
