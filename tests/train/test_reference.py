"""Objectives reach the base: `without_adapter` gives the base's own logits, in any run and after any step."""

from __future__ import annotations

import contextlib
import copy
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from smollm3_finetune import finetune, load_model
from smollm3_finetune.api import Base, UnsupportedOp, pad_rows, token_logps, without_adapter
from smollm3_finetune.api.adapter_switch import note_adapter, switch_of
from smollm3_finetune.batching.head import supervised_logits
from smollm3_finetune.checks.component import component_findings
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import OBJECTIVE
from smollm3_finetune.inference.precision import autocast
from smollm3_finetune.testing.small import random_model

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "near_base.py"
SCALE = ROOT / "examples" / "scale_adapter.py"
IDS = torch.randint(5, 90, (2, 12), generator=torch.Generator().manual_seed(0))

TOKENIZER: Any = SimpleNamespace(pad_token_id=0)

WATCHED = """
import torch
from smollm3_finetune.api import ObjectiveSpec, hookimpl, without_adapter
from near_base import NearBase, NearBaseOptions

@hookimpl
def smollm3_objectives():
    return [ObjectiveSpec(name="watched", summary="near-base, and notes of it", factory="watched:Watched",
                          options="near_base:NearBaseOptions", reference="base", api=2)]

notes = []

class Watched(NearBase):
    def token_losses(self, model, batch):
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        modes = [m.training for m in model.modules()]
        flags = [p.requires_grad for p in model.parameters()]
        with torch.no_grad():
            ours = model(**inputs).logits
        with without_adapter(model) as base:
            assert not any(m.training for m in model.modules())
            logits = base(**inputs).logits
        assert [m.training for m in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == flags
        notes.append((model.training, {k: v for k, v in batch.items()}, logits, ours))
        return super().token_losses(model, batch)
"""


@pytest.fixture
def watched(isolated: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The plugins `watched` and `near_base` in the working directory, importable; returns the notes."""
    for file in (EXAMPLE, SCALE):
        (isolated / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
        monkeypatch.delitem(sys.modules, file.stem, raising=False)
    (isolated / "watched.py").write_text(WATCHED, encoding="utf-8")
    monkeypatch.syspath_prepend(str(isolated))
    import watched

    return watched.notes  # type: ignore[no-any-return]


def run(adapter: Any, dtype: str, output: str, objective: Any = "near-base", **train: Any) -> dict[str, Any]:
    settings = {"max_steps": 2, "batch_size": 2, "gradient_accumulation": 2, "sample_tokens": 1, "warmup": 0}
    return finetune(
        "tiny", adapter=adapter, objective=objective, dtype=dtype, device="cpu", quiet=True, output=output, seed=1,
        data={"limit": 12, "max_length": 48}, train={**settings, "learning_rate": 0.01, **train},
        plugins=("near_base.py", "scale_adapter.py", "watched.py"),
    )  # fmt: skip


def losses(output: str) -> list[float]:
    return [json.loads(line)["loss"] for line in Path(output, "metrics.jsonl").read_text().splitlines()]


def rows_of(batch: dict[str, Any], logits: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The tokens (1, T) and the logits (T, V) of each row of a batch."""
    if "attention_mask" in batch:
        for ids, mask, own in zip(batch["input_ids"], batch["attention_mask"] == 1, logits, strict=True):
            yield ids[mask][None], own[mask]
    else:
        lengths = batch["cu_seq_lens_q"].diff().tolist()
        yield from zip(batch["input_ids"].split(lengths, 1), logits[0].split(lengths), strict=True)


LORA, DORA = {"name": "lora", "dropout": 0.3}, {"name": "dora", "dropout": 0.3}


@pytest.mark.plugins
@pytest.mark.parametrize(
    ("adapter", "dtype", "padding", "checkpointing"),
    [
        pytest.param(LORA, "float32", "never", True, id="lora-float32-flat-checkpointing", marks=pytest.mark.long),
        pytest.param(LORA, "bfloat16", "always", False, id="lora-bfloat16-padded", marks=pytest.mark.long),
        pytest.param(DORA, "bfloat16", "never", True, id="dora-bfloat16-flat-checkpointing"),
        pytest.param(DORA, "float32", "always", False, id="dora-float32-padded", marks=pytest.mark.long),
        pytest.param("scale", "bfloat16", "always", True, id="scale-bfloat16-padded-checkpointing"),
        pytest.param("scale", "float32", "never", False, id="scale-float32-flat", marks=pytest.mark.long),
    ],
)
def test_the_reference_is_the_base_before_during_and_after_training(
    watched: list[Any], adapter: Any, dtype: str, padding: str, checkpointing: bool
) -> None:
    report = run(adapter, dtype, "run", "watched", padding=padding, gradient_checkpointing=checkpointing)
    assert report["batches"]["padded"] == (padding == "always")
    pristine = load_model("tiny", device="cpu", dtype=dtype).model.eval()
    rounding = 1e-4 if dtype == "float32" else 0.15  # largest of all logits; rows of other shapes round differently
    moved = []
    with torch.no_grad(), autocast("cpu", dtype):
        for _, batch, logits, ours in watched:
            if padding == "always":  # the same shapes: nothing rounds differently
                own = pristine(**{k: v for k, v in batch.items() if k != "labels"}).logits
                assert torch.equal(own.float(), logits.float())
            for ids, reference in rows_of(batch, logits):
                own = pristine(input_ids=ids, use_cache=False).logits[0]
                assert float((own.float() - reference.float()).abs().max()) < rounding
            moved.append(float((logits.float() - ours.float()).norm() / logits.float().norm()))
    trained = [training for training, *_ in watched]
    first, last = trained.index(True), len(trained) - trained[::-1].index(True)
    assert trained[first:last] == [True] * 4, "two steps of two batches, between two measurements"
    assert max(moved[:first]) == 0.0
    assert min(moved[last:]) > 0.01, "the adapter must have an effect"


def test_checkpointing_padding_and_accumulation_do_not_change_the_losses(watched: list[Any]) -> None:
    near = {"name": "near-base", "beta": 1}
    run("scale", "float32", "flat", near)
    changes = {"padding": "always", "logits": "all", "gradient_checkpointing": True}
    run("scale", "float32", "changed", near, batch_size=4, gradient_accumulation=1, **changes)
    run("scale", "float32", "sft", "sft")
    assert losses("changed") == pytest.approx(losses("flat"), rel=1e-4)
    assert losses("flat")[0] == pytest.approx(losses("sft")[0], rel=1e-6), "the penalty starts at zero"
    assert losses("flat")[-1] > 1.001 * losses("sft")[-1], "and grows"


# --------------------------------------------------------------------------------- the context on its own


class Swapped:
    """An `Adapted` that trains copies of the base's weights, and puts the base's values back to disable them."""

    def __init__(self) -> None:
        self.model = random_model(torch.float32, std=0.2)
        self.base = Base(model=self.model, fingerprint="small")
        self.trained = {n: p for n, p in self.model.named_parameters() if n.endswith("_proj.weight")}
        self.frozen = {n: p.detach().clone() for n, p in self.trained.items()}
        self.model.requires_grad_(False)
        for parameter in self.trained.values():
            parameter.requires_grad_(True)

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        trained = {n: p.detach().clone() for n, p in self.trained.items()}
        self._set(self.frozen)
        try:
            yield
        finally:
            self._set(trained)

    def _set(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.trained.items():
            parameter.data.copy_(values[name])

    def on_step(self, step: int) -> None: ...

    def save(self, path: Path) -> None: ...

    def moved(self) -> Swapped:
        torch.manual_seed(3)
        for parameter in self.trained.values():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        return self


@pytest.fixture
def swapped() -> Swapped:
    adapted = Swapped().moved()
    note_adapter(adapted)
    return adapted


def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def test_a_swap_of_weights_under_autocast_changes_nothing_without_the_context(swapped: Swapped) -> None:
    """autocast keeps the casts of trained weights: why an objective must not enter `disabled()` itself."""
    with autocast("cpu", "bfloat16"):
        ours = logits(swapped.model).detach()
        with swapped.disabled(), torch.no_grad():
            assert torch.equal(logits(swapped.model), ours), "the base's weights are not used"
        with without_adapter(swapped.model) as base:
            reference = logits(base)
        assert torch.equal(logits(swapped.model), ours)
    with autocast("cpu", "bfloat16"), torch.no_grad():
        assert torch.equal(reference, logits(Swapped().model))
    assert not torch.equal(reference, ours)


def test_a_reference_before_the_forward_keeps_the_gradients_under_autocast(swapped: Swapped) -> None:
    """Some versions of torch keep casts made without gradients, and use them where gradients are needed."""
    with autocast("cpu", "bfloat16"):
        with without_adapter(swapped.model) as base:
            logits(base)
        logits(swapped.model).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in swapped.trained.values())


def test_modes_flags_and_settings_are_as_before_also_after_an_exception(swapped: Swapped) -> None:
    model: Any = swapped.model
    model.train()
    model.model.layers[0].eval()
    model.config.use_cache = True
    modes, before = [m.training for m in model.modules()], logits(model).detach()

    class Stop(Exception):
        pass

    def stops() -> None:
        with without_adapter(model):
            assert not torch.is_grad_enabled() and not model.config.use_cache
            assert not any(m.training for m in model.modules())
            raise Stop

    with pytest.raises(Stop):
        stops()
    assert torch.is_grad_enabled() and model.config.use_cache
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(logits(model), before)


def test_contexts_can_be_nested(swapped: Swapped) -> None:
    ours = logits(swapped.model).detach()
    with without_adapter(swapped.model) as base:
        reference = logits(base)
        with without_adapter(base) as again, without_adapter(swapped.model):
            assert torch.equal(logits(again), reference)
        assert torch.equal(logits(base), reference), "the inner context must not enable the adapter"
    assert torch.equal(logits(swapped.model), ours)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


WRAPPERS: list[Callable[[Any], Any]] = [
    nn.parallel.DistributedDataParallel,
    lambda model: torch.compile(model, backend="eager"),
    lambda model: nn.ModuleDict({"model": model}),
]


@pytest.mark.parametrize("wrap", WRAPPERS, ids=["DDP", "compiled", "inside"])
def test_wrapped_models_are_found(swapped: Swapped, wrap: Any, one_process: None) -> None:
    wanted = logits(Swapped().model).detach()
    wrapped = wrap(swapped.model)
    with without_adapter(wrapped) as base:
        assert torch.equal(logits(base), wanted)
    if isinstance(wrapped, nn.ModuleDict):
        return
    batch = pad_rows([{"input_ids": row, "labels": row} for row in IDS.tolist()], TOKENIZER)
    plain = torch.autograd.grad(token_logps(swapped.model, batch).sum(), list(swapped.trained.values()))
    with supervised_logits(swapped.model) as on:
        assert on
        ours = token_logps(wrapped, batch)
        with without_adapter(wrapped) as base:
            token_logps(base, batch)
        ours.sum().backward()
    for gradient, parameter in zip(plain, swapped.trained.values(), strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-4)


def test_a_model_can_be_copied_and_pickled_and_its_copies_have_no_adapter(swapped: Swapped) -> None:
    for copied in (copy.deepcopy(swapped.model), pickle.loads(pickle.dumps(swapped.model))):
        with pytest.raises(UnsupportedOp, match="no adapter"), without_adapter(copied):
            pass


def test_a_model_without_an_adapter_is_refused_with_a_hint() -> None:
    with pytest.raises(UnsupportedOp, match=r"SmolLM3ForCausalLM has no adapter that could be disabled") as caught:
        without_adapter(load_model("tiny", device="cpu").model).__enter__()
    assert 'adapter="NAME"' in str(caught.value.hint)
    full = load_model("tiny", adapter="full", purpose="train", device="cpu")
    assert switch_of(full.model) is not None
    with pytest.raises(UnsupportedOp, match="adapter 'full' changes the base") as caught:
        without_adapter(full.model).__enter__()
    assert "smollm3 compat" in str(caught.value.hint)


def test_an_adapter_that_cannot_be_disabled_is_refused_before_rows_are_read(cli: Any, watched: list[Any]) -> None:
    Path("rows.jsonl").write_text("not json\n")
    command = ("train", "-p", "near_base.py", "--objective", "near-base", "--device", "cpu", "--data", "rows.jsonl")
    refused = cli(*command, "--adapter", "full", "--dry-run")
    assert refused.code == 3, refused.stderr
    assert refused.stderr.startswith(
        "error: --objective near-base compares the model with its base, but --adapter full changes the base and cannot "
        "be disabled\n"
    )
    assert refused.stderr.count("\n") == 2 and "--adapter lora\n" in refused.stderr  # in a hint, installed or not
    assert "rows.jsonl" in cli(*command, "--adapter", "scale", "-p", "scale_adapter.py", "--dry-run").stderr


@pytest.mark.plugins
def test_options_with_which_an_adapter_cannot_be_disabled_are_refused(cli: Any, watched: list[Any]) -> None:
    command = ("train", "-p", "near_base.py", "--objective", "near-base", "--device", "cpu", "--dry-run")
    refused = cli(*command, "--adapter", "lora", "--adapter-opt", "init=pissa")
    assert refused.code == 3, refused.stderr
    assert "hint: --adapter lora with its default options" in refused.stderr
    shown = cli(*command)
    assert "# the loss compares the model with its base; computed in each step\n" in shown.stdout


def test_the_plugin_commands_show_and_check_the_reference(cli: Any, watched: list[Any]) -> None:
    info = cli("plugins", "info", "near-base", "-p", "near_base.py", "--device", "cpu")
    assert "compares     the model with its base" in info.stdout
    assert json.loads(cli("plugins", "info", "near-base", "-p", "near_base.py", "--json").stdout)[0]["reference"] == (
        "base"
    )
    text = Path("near_base.py").read_text()
    for declared in (True, False):
        Path("near_base.py").write_text(text if declared else text.replace('reference="base",', ""))
        sys.modules.pop("near_base", None)
        registry = discover(PluginSelection.of(("near_base.py",)))
        found = component_findings(registry.find(OBJECTIVE, "near-base"), registry)
        (finding,) = (f for f in found if "without_adapter" in f.check)
        assert (finding.ok, finding.fix) == (declared, "" if declared else 'reference="base"')
    Path("near_base.py").write_text(text.replace('reference="base",', 'reference="begin",'))
    sys.modules.pop("near_base")
    broken = cli("plugins", "list", "-p", "near_base.py")
    assert "reference must be one of 'none', 'base', 'start', 'model', got 'begin'" in broken.stdout + broken.stderr
