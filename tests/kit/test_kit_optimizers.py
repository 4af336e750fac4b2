"""An optimizer with one fault each fails the kit with a sentence that names it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest

from smollm3_finetune.testing import OptimizerConformance
from smollm3_finetune.testing import optimizers as kit

SOURCE = """
from smollm3_finetune.api import OptimizerSpec, hookimpl

def state_bytes(options, shape, role):
    count = 1
    for size in shape:
        count *= size
    return 0 if role == "scale" else 4 * count

@hookimpl
def smollm3_optimizers():
    return [OptimizerSpec(name="average", summary="for tests", factory="average:Maker", state_bytes=state_bytes,
                          freezes={"scale"}, shards=True, api=2)]

class Maker:
    def __init__(self, options):
        pass

    def create(self, parameters, ctx):
        import torch

        class Average(torch.optim.Optimizer):
            @torch.no_grad()
            def step(self, closure=None):
                for group in self.param_groups:
                    for p in group["params"]:
                        if p.grad is None:
                            continue
                        state = self.state[p]
                        if not state:
                            state["average"] = torch.zeros_like(p)
                        state["average"].lerp_(p.grad, 0.1)
                        p.mul_(1 - group["lr"] * group["decay"])
                        p.add_(state["average"], alpha=-group["lr"])

        groups = [
            {"params": [p.parameter for p in parameters if p.decays is decays and p.role != "scale"],
             "lr": 100 * ctx.learning_rate, "decay": 0.01 if decays else 0.0}
            for decays in (True, False)
        ]
        return Average([g for g in groups if g["params"]], {})
"""


class Average(OptimizerConformance):
    component = "average"
    plugins: ClassVar[tuple[Any, ...]] = ()


MEMORY = "test_the_state_needs_the_stated_memory"
FROZEN = "test_exactly_the_stated_roles_are_frozen"
STATE = "test_a_saved_state_continues_bit_for_bit"
SCHEDULE = "test_the_schedule_decides_the_size_of_a_step"
DESCRIPTOR = "test_the_descriptor_states_the_memory_of_the_state"
FAULTS: dict[str, tuple[str, str, str, str]] = {
    "bytes": (MEMORY, "4 * count", "8 * count", "with the role embedding needs 12288 bytes, but state_bytes() states"),
    "negative": (DESCRIPTOR, "else 4", "else -4", "state_bytes() must return a number of bytes, not -128"),
    "frozen-bytes": (DESCRIPTOR, '0 if role == "scale" else ', "", "states 128 bytes for the role scale, which"),
    "trains": (FROZEN, ' and p.role != "scale"', "", "with the role scale, is in a group, but `freezes` has this role"),
    "freezes": (FROZEN, 'freezes={"scale"}', "freezes=set()", "with the role scale, is in no group, but `freezes`"),
    "raises": (FROZEN, "import torch\n", "import torch\n        parameters[999]\n", "failed in create(): IndexError"),
    "schedule": (SCHEDULE, 'alpha=-group["lr"]', "alpha=-0.01", "with the learning rate 0, a step moves"),
    "decay": ("test_only_decaying_parameters_decay", "if decays else 0.0", "",
              "without a gradient, a step changes model."),
    "rises": ("test_the_loss_falls", 'alpha=-group["lr"]', 'alpha=group["lr"]', "after 20 steps on one batch"),
    "forgets": (STATE, 'state = self.state[p]', "state = self.__dict__.setdefault('own', {}).setdefault(p, {})",
                "after its state was saved and loaded, three steps give other values"),
    "unsaved": (STATE, 'state["average"] = torch.zeros_like(p)', 'state["average"] = torch.zeros_like(p); '
                'state["x"] = Maker', "state_dict() has something that a checkpoint cannot hold"),
    "shards": ("test_a_part_is_updated_as_the_whole_where_declared", 'p.add_(state["average"],',
               'p.add_(state["average"] / state["average"].norm().clamp(min=1e-9),',
               "updated alone, differ from the whole by"),
    "again": ("test_it_is_created_again_the_same", "100 * ctx.learning_rate",
              "100 * ctx.learning_rate * (1 + __import__('random').random())", "create() returns other groups"),
    "random": ("test_equal_steps_give_equal_parameters", 'lerp_(p.grad, 0.1)',
               "lerp_(p.grad * (1 + 0.1 * __import__('random').random()), 0.1)", "the same three steps give other"),
}  # fmt: skip


HEAVY = ("test_planning_imports_nothing_heavy", "from smollm3", "import torch\nfrom smollm3", "imports torch")


def run_one(name: str, test: str, source: str, plugin_file: Any, tmp_path: Path) -> None:
    file = plugin_file(name, source.replace("average:Maker", f"{name}:Maker"))
    case = type("Case", (Average,), {"plugins": (file,)})()
    more: dict[str, Any] = {"tmp_path": tmp_path} if test == STATE else {}
    getattr(case, test)(**more)


def check_fault(name: str, fault: tuple[str, str, str, str], plugin_file: Any, tmp_path: Path) -> None:
    test, right, wrong, sentence = fault
    assert right in SOURCE
    with pytest.raises(pytest.fail.Exception, match=re.escape(sentence)):
        run_one(f"average_{name.replace('-', '_')}", test, SOURCE.replace(right, wrong), plugin_file, tmp_path)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_with_a_sentence(fault: str, plugin_file: Any, tmp_path: Path) -> None:
    check_fault(fault, FAULTS[fault], plugin_file, tmp_path)


@pytest.mark.long
def test_a_heavy_import_fails_with_a_sentence(plugin_file: Any, tmp_path: Path) -> None:
    check_fault("heavy", HEAVY, plugin_file, tmp_path)
    run_one("average_light", HEAVY[0], SOURCE, plugin_file, tmp_path)


@pytest.mark.parametrize("test", sorted({test for test, *_ in FAULTS.values()}))
def test_without_a_fault_it_passes(test: str, plugin_file: Any, tmp_path: Path) -> None:
    run_one("average_whole", test, SOURCE, plugin_file, tmp_path)


def test_every_parameter_has_a_stated_role() -> None:
    adapted = kit.every_role()
    assert {n for n, p in adapted.model.named_parameters() if p.requires_grad} == adapted.roles.keys()
    assert {str(role) for role in adapted.roles.values()} == {
        "down", "up", "scale", "bias", "embedding", "weight", "norm", "other",
    }  # fmt: skip
