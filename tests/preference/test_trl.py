"""float64: loss and gradients of every objective equal those of TRL 1.16's own trainers, on the same pairs.

    pip install --target /tmp/trl --no-deps trl==1.16.0
    PYTHONPATH=$PYTHONPATH:/tmp/trl pytest -m long tests/preference/test_trl.py

TRL's fused output layer computes in float32, so the model gives its log-probabilities in float64; the rest is TRL's.
"""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from preference_cases import LABELED, PAIRS, ROWS, gradients, largest_error, layout, model, with_reference
from smollm3_preference import kto, methods, options
from torch import Tensor, nn

from smollm3_finetune.api import IGNORE_INDEX, branched_example

pytestmark = [
    pytest.mark.plugins,
    pytest.mark.long,
    pytest.mark.skipif(
        importlib.util.find_spec("trl") is None,
        reason="trl is not installed: pip install --target /tmp/trl --no-deps trl==1.16.0, and add it to PYTHONPATH",
    ),
    pytest.mark.filterwarnings("ignore"),  # of TRL
]
EXACT = 1e-9
B, EPS, GAMMA = 0.3, 0.1, 0.7
LAYOUTS = ("padded", "flat", "packed", "branched")


@pytest.fixture(scope="module", autouse=True)
def experimental() -> None:
    import os

    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"


class WideHead(nn.Module):
    """A model that answers TRL's `fused_lm_head=True` in the dtype of the model."""

    is_gradient_checkpointing = False

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config
        self.eval()

    def forward(self, *args: Any, labels: Any = None, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return self.inner(*args, **kwargs)
        logits = self.inner(*args, **kwargs).logits[:, :-1]
        mask = labels[:, 1:] != IGNORE_INDEX
        logps = logits.log_softmax(-1).gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0] * mask
        zeros = torch.zeros_like(logps)
        return SimpleNamespace(
            log_probs=logps, entropy=zeros, mean_logits=zeros, is_top1=mask, log_sum_sq_probs=zeros, aux_loss=None
        )


class OneProcess:
    device = torch.device("cpu")

    @staticmethod
    def gather(value: Any) -> Any:
        return value

    gather_for_metrics = gather

    @staticmethod
    def reduce(value: Any) -> Any:
        return value


def stub(cls: Any, tuned: Any, reference: Any, **about: Any) -> Any:
    """A trainer of TRL without its constructor, which would tokenize rows and load models."""
    trainer = cls.__new__(cls)
    common = {
        "model": WideHead(tuned), "ref_model": WideHead(reference), "accelerator": OneProcess(), "ld_alpha": None,
        "precompute_ref_logps": False, "f_divergence_type": "reverse_kl", "use_weighting": False,
        "aux_loss_enabled": False, "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
        "_total_train_tokens": 0, "_tp_size": 1, "label_smoothing": 0.0, "is_encoder_decoder": False,
        "args": SimpleNamespace(gradient_checkpointing_kwargs=None), "pad_token_id": 0, "padding_value": 0,
    }  # fmt: skip
    for name, value in (common | about).items():
        setattr(trainer, name, value)
    return trainer


def answers() -> list[dict[str, list[int]]]:
    """The pairs as TRL tokenizes them."""
    found = []
    for chosen, rejected in ROWS:
        start = next(i for i, label in enumerate(chosen.labels) if label != IGNORE_INDEX)
        found.append(
            {"prompt_ids": chosen.input_ids[:start], "chosen_ids": chosen.input_ids[start:],
             "rejected_ids": rejected.input_ids[start:]}
        )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def both() -> tuple[Any, Any]:
    return model(), model(0.05)


def ours(objective: Any, both: Any, kind: str, examples: list[Any], size: int) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of a step in batches of `size`."""
    tuned, reference = both
    cls = objective.trainer_class()
    trainer = cls.__new__(cls)
    trainer.accelerator, total = OneProcess(), torch.zeros((), dtype=torch.float64)
    from smollm3_preference.trainer import StepMeans

    trainer.step_means = StepMeans()
    with layout(kind, objective, tuned) as collate, layout(kind, objective, reference):
        for i in range(0, len(examples), size):
            inputs = with_reference(objective, reference, collate(examples[i : i + size]))
            total = total + trainer.compute_loss(tuned, inputs, num_items_in_batch=torch.tensor(len(examples)))
    return float(total.detach()), gradients(tuned, total)


def check(ours: tuple[float, Any], theirs: tuple[float, Any]) -> None:
    assert abs(ours[0] - theirs[0]) <= EXACT * max(1.0, abs(theirs[0]))
    assert largest_error(ours[1], theirs[1]) <= EXACT


def accumulated(compute: Callable[[int, int], Tensor], count: int, size: int, tuned: Any) -> tuple[float, Any]:
    """TRL's step: the mean of the losses of its batches."""
    losses = [compute(i, i + size) for i in range(0, count, size)]
    total = sum(losses[1:], losses[0]) / len(losses)
    return float(total.detach()), gradients(tuned, total)


COMPARED: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "sigmoid": (lambda: methods.DPO(options.DPOOptions(beta=B)), {}),
    "hinge": (lambda: methods.DPO(options.DPOOptions(beta=B, loss_type="hinge")), {}),
    "ipo": (lambda: methods.DPO(options.DPOOptions(beta=B, loss_type="ipo")), {}),
    "sigmoid_norm": (lambda: methods.DPO(options.DPOOptions(beta=B, loss_type="sigmoid_norm")), {}),
    "robust": (
        lambda: methods.DPO(options.DPOOptions(beta=B, loss_type="robust", label_smoothing=EPS)),
        {"label_smoothing": EPS},
    ),
    "apo_zero": (lambda: methods.APOZero(options.APOOptions(beta=B)), {}),
    "apo_down": (lambda: methods.APODown(options.APOOptions(beta=B)), {}),
}


@pytest.mark.parametrize("size", [8, 2])
@pytest.mark.parametrize("loss", list(COMPARED))
def test_dpo_and_apo_are_those_of_trl(loss: str, size: int, both: Any) -> None:
    from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

    made, about = COMPARED[loss]
    trainer = stub(DPOTrainer, *both, loss_types=[loss], loss_weights=[1.0], beta=B, **about)
    collate, rows = DataCollatorForPreference(pad_token_id=0), answers()
    theirs = accumulated(
        lambda a, b: trainer._compute_loss(trainer.model, collate(rows[a:b]), False), len(rows), size, both[0]
    )
    for kind in LAYOUTS:
        check(ours(made(), both, kind, PAIRS, size), theirs)


@pytest.mark.parametrize("size", [8, 2])
def test_an_added_sft_term_is_that_of_trl_where_chosen_answers_are_equally_long(size: int, both: Any) -> None:
    """TRL averages over the tokens of a batch, this plugin over those of each pair: the same for equal lengths."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

    cut = [{**row, "chosen_ids": (row["chosen_ids"] * 4)[:4]} for row in answers()]
    pairs = [_pair(row) for row in cut]
    trainer = stub(DPOTrainer, *both, loss_types=["sigmoid", "sft"], loss_weights=[1.0, 0.4], beta=B)
    collate = DataCollatorForPreference(pad_token_id=0)
    theirs = accumulated(
        lambda a, b: trainer._compute_loss(trainer.model, collate(cut[a:b]), False), len(cut), size, both[0]
    )
    objective = methods.DPO(options.DPOOptions(beta=B, sft_weight=0.4))
    for kind in LAYOUTS:
        check(ours(objective, both, kind, pairs, size), theirs)


@pytest.mark.parametrize("size", [8, 2])
def test_kto_is_that_of_trl(size: int, both: Any) -> None:
    from trl.trainer import kto_trainer

    rows = []
    for row in LABELED:
        start = row["prompt"][0]
        answer = {"completion_ids": row["input_ids"][start:], "label": bool(row["desirable"][0])}
        rows.append({"prompt_ids": row["input_ids"][:start], **answer})
    for i in range(0, len(rows), size):  # as its _prepare_dataset does for each batch
        others = [row["completion_ids"] for row in rows[i : i + size]]
        for row, other in zip(rows[i : i + size], [others[-1], *others[:-1]], strict=True):
            row["KL_completion_ids"] = other
    trainer = stub(
        kto_trainer.KTOTrainer, *both, loss_type="kto", beta=B, calculate_KL=True, desirable_weight=1.5,
        undesirable_weight=0.75,
    )  # fmt: skip
    collate = kto_trainer.DataCollatorForUnpairedPreference(pad_token_id=0, max_length=None)
    theirs = accumulated(
        lambda a, b: trainer._compute_loss(trainer.model, collate(rows[a:b]), False), len(rows), size, both[0]
    )
    assert max(trainer._metrics["eval"]["kl"]) > 0.01  # the KL term takes part
    objective = kto.KTO(options.KTOOptions(beta=B, desirable_weight=1.5, undesirable_weight=0.75))
    examples = [{**row, "max_length": [1000]} for row in LABELED]
    for kind in LAYOUTS[:3]:
        check(ours(objective, both, kind, examples, size), theirs)


def _pair(row: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """A row in TRL's form as an example of the objectives."""
    prompt = row["prompt_ids"]
    made = [
        SimpleNamespace(input_ids=[*prompt, *answer], labels=[*[IGNORE_INDEX] * len(prompt), *answer])
        for answer in (row["chosen_ids"], row["rejected_ids"])
    ]
    return branched_example(made)


def _padded(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """The batch of TRL's experimental trainers."""
    batch = {}
    for name in ("chosen", "rejected"):
        ids = [[*row["prompt_ids"], *row[f"{name}_ids"]] for row in rows]
        labels = [[*[-100] * len(row["prompt_ids"]), *row[f"{name}_ids"]] for row in rows]
        most = max(map(len, ids))
        batch[f"{name}_input_ids"] = torch.tensor([i + [0] * (most - len(i)) for i in ids])
        batch[f"{name}_attention_mask"] = torch.tensor([[1] * len(i) + [0] * (most - len(i)) for i in ids])
        batch[f"{name}_labels"] = torch.tensor([i + [-100] * (most - len(i)) for i in labels])
    return batch


@pytest.mark.parametrize("size", [8, 2])
@pytest.mark.parametrize("loss", ["sigmoid", "smoothed", "hinge", "ipo", "simpo"])
def test_cpo_and_simpo_are_those_of_trl(loss: str, size: int, both: Any) -> None:
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    rows = [{**row, "chosen_ids": (row["chosen_ids"] * 4)[:4]} for row in answers()]  # as TRL averages over tokens
    smoothing = EPS if loss == "smoothed" else 0.0
    name, alpha = "sigmoid" if loss == "smoothed" else loss, 0.0 if loss == "simpo" else 0.8
    trainer = stub(
        CPOTrainer, *both, loss_type=name, beta=B, alpha=0.0, simpo_gamma=GAMMA, cpo_alpha=alpha,
        label_smoothing=smoothing,
    )  # fmt: skip
    theirs = accumulated(
        lambda a, b: trainer.get_batch_loss_metrics(trainer.model, _padded(rows[a:b]))[0], len(rows), size, both[0]
    )
    if loss == "simpo":
        objective: Any = methods.SimPO(options.SimPOOptions(beta=B, gamma=GAMMA))
    else:
        objective = methods.CPO(
            options.CPOOptions(beta=B, loss_type=name, label_smoothing=smoothing, sft_weight=alpha)  # type: ignore[arg-type]
        )
    for kind in LAYOUTS:
        check(ours(objective, both, kind, [_pair(row) for row in rows], size), theirs)


@pytest.mark.parametrize("size", [8, 2])
def test_orpo_is_that_of_trl_for_prompts_of_one_token(size: int, both: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's cross-entropy includes the prompt, of which one token is not predicted; it also rounds to float32."""
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    rows = [
        {**row, "prompt_ids": row["prompt_ids"][:1], "chosen_ids": (row["chosen_ids"] * 4)[:4]} for row in answers()
    ]
    trainer = stub(ORPOTrainer, *both, beta=B)
    rounded = trainer.odds_ratio_loss

    def wide(*logps: Tensor) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)
            return rounded(*logps)

    trainer.odds_ratio_loss = wide
    theirs = accumulated(
        lambda a, b: trainer.get_batch_loss_metrics(trainer.model, _padded(rows[a:b]))[0], len(rows), size, both[0]
    )
    for kind in LAYOUTS:
        check(ours(methods.ORPO(options.ORPOOptions(beta=B)), both, kind, [_pair(row) for row in rows], size), theirs)
