"""For authors of plugins: checks that what a component promises holds, in sequences and not in single calls.

Nothing here is loaded unless a test imports it. `check_composition` is the one to start with: it takes a quantizer
and an adapter through evaluate, train, evaluate, save, train, restore and compares each gradient with the dense
copy's.

    from smollm3_finetune.testing import check_composition, plan

    def test_my_quantizer_trains_right():
        result = check_composition(plan("tiny", quant="mine", adapter="lora"))
        assert max(result.gradients.values()) < 1e-5
"""

from __future__ import annotations

from smollm3_finetune.cache import Cache
from smollm3_finetune.dense import dense_copy
from smollm3_finetune.testing.composition import Comparison, check_composition, relative_error
from smollm3_finetune.testing.parts import context, plan

__all__ = ["Cache", "Comparison", "check_composition", "context", "dense_copy", "plan", "relative_error"]
