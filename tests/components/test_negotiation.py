"""Whether a quantizer and an adapter are compatible, decided from descriptors alone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest

from smollm3_finetune.api import ALL_OPS, AdapterSpec, Env, NoOptions, Op, Purpose, QuantizerSpec, Requires, option
from smollm3_finetune.components.kinds import ADAPTER, QUANTIZER
from smollm3_finetune.components.negotiation import environment, missing_ops, pair_problem, provided, refined
from smollm3_finetune.components.registry import RegisteredComponent, Registry
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.errors import PluginError

CPU = Env(device="cpu")
LINEAR = {Op.FORWARD, Op.GRAD_INPUT}
HERE = __name__


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Options of the quantizer below."""

    kernel: str = option("plain", "Which one.")


def _refine(spec: QuantizerSpec, options: Kernel, env: Env) -> QuantizerSpec:
    if options.kernel == "packed":
        return spec.without({Op.READ_WEIGHT: "kernel=packed repacks the weight"})
    if env.device == "cuda":
        return spec
    return spec.without({Op.GRAD_INPUT: "the plain kernel has no gradient on a CPU"})


def quantizer(name: str = "int4", provides: Any = ALL_OPS, **fields: Any) -> QuantizerSpec:
    return QuantizerSpec(name=name, summary="s", factory="a:B", provides=provides, api=2, **fields)


def adapter(name: str = "scale", needs: Any = LINEAR, **fields: Any) -> AdapterSpec:
    return AdapterSpec(name=name, summary="s", factory="a:B", needs=needs, api=2, **fields)


def chosen(spec: Any, options: Any = None) -> SelectedComponent:
    kind = QUANTIZER if isinstance(spec, QuantizerSpec) else ADAPTER
    component = RegisteredComponent(kind=kind, spec=spec, distribution="acme", version="1.0", plugin="acme")
    return SelectedComponent(component=component, options=options or NoOptions())


def registry(*specs: Any) -> Registry:
    kinds = {QuantizerSpec: QUANTIZER, AdapterSpec: ADAPTER}
    return Registry(
        components=tuple(
            RegisteredComponent(kind=kinds[type(s)], spec=s, distribution="acme", version="1", plugin="acme")
            for s in specs
        )
    )


def test_a_pair_is_compatible_if_all_needed_operations_are_provided() -> None:
    assert pair_problem(registry(), chosen(quantizer(provides=LINEAR)), chosen(adapter()), CPU) is None


@pytest.mark.parametrize("op", sorted(ALL_OPS))
def test_each_operation_is_reported_if_missing(op: Op) -> None:
    q, a = chosen(quantizer(provides=ALL_OPS - {op})), chosen(adapter(needs={op}))
    assert missing_ops(q, a, CPU) == {op: "the quantizer does not declare it"}
    assert missing_ops(chosen(quantizer()), a, CPU) == {}


def test_the_message_names_options_operation_and_reason_and_the_hint_pairs_that_work() -> None:
    int4 = quantizer(provides=LINEAR, absent={Op.READ_WEIGHT: "the weight is packed for good"})
    magnitude = adapter("magnitude", LINEAR | {Op.READ_WEIGHT})
    everything = registry(int4, magnitude, adapter("scale"), quantizer("dense"), adapter("bias", {Op.FORWARD}))
    problem = pair_problem(everything, chosen(int4), chosen(magnitude), CPU)
    assert problem is not None
    assert problem.exit_code == 3
    assert problem.message == (
        "--adapter magnitude needs operations that --quant int4 does not provide on cpu: "
        "read-weight (the weight is packed for good)"
    )
    assert problem.hint == "--quant int4 --adapter scale or --quant dense --adapter magnitude"


def test_without_any_pair_that_works_there_is_no_hint() -> None:
    int4, whole = quantizer(provides={Op.FORWARD}), adapter(needs={Op.DENSE})
    problem = pair_problem(registry(int4, whole), chosen(int4), chosen(whole), CPU)
    assert problem is not None
    assert problem.hint is None


def test_refine_removes_operations_by_option_and_by_device() -> None:
    spec = quantizer(options=f"{HERE}:Kernel", refine=_refine)
    ops, absent = provided(chosen(spec, Kernel()), Env(device="cuda"))
    assert (ops, absent) == (ALL_OPS, {})
    ops, absent = provided(chosen(spec, Kernel()), CPU)
    assert ops == ALL_OPS - {Op.GRAD_INPUT}
    ops, _ = provided(chosen(spec, Kernel(kernel="packed")), CPU)
    assert ops == ALL_OPS - {Op.READ_WEIGHT}
    reasons = missing_ops(chosen(spec, Kernel()), chosen(adapter()), CPU)
    assert reasons == {Op.GRAD_INPUT: "the plain kernel has no gradient on a CPU"}


def test_refine_of_an_adapter_changes_what_it_needs() -> None:
    def refine(spec: AdapterSpec, options: Kernel, env: Env) -> AdapterSpec:
        return dataclasses.replace(spec, needs={Op.DENSE}) if options.kernel == "packed" else spec

    spec = adapter(refine=refine)
    base = chosen(quantizer(provides=LINEAR))
    assert missing_ops(base, chosen(spec, Kernel()), CPU) == {}
    assert list(missing_ops(base, chosen(spec, Kernel(kernel="packed")), CPU)) == [Op.DENSE]
    assert refined(chosen(spec, Kernel(kernel="packed")), CPU).needs == {Op.DENSE}


def test_a_refine_that_raises_is_the_plugins_fault() -> None:
    def refine(*_: Any) -> Any:
        raise KeyError("device")

    for q, a in ((quantizer(refine=refine), adapter()), (quantizer(), adapter(refine=refine))):
        with pytest.raises(
            PluginError, match=r"(quantizer 'int4'|adapter 'scale') \(acme 1\.0\) failed in refine\(\): KeyError"
        ):
            missing_ops(chosen(q), chosen(a), CPU)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (quantizer(refine=lambda spec, options, env: {}), "it returned {}, not a QuantizerSpec"),
        (quantizer(refine=lambda spec, options, env: adapter()), "not a QuantizerSpec"),
        (adapter(refine=lambda spec, options, env: None), "it returned None, not an AdapterSpec"),
    ],
)
def test_refine_must_return_a_descriptor_of_the_same_kind(spec: Any, expected: str) -> None:
    with pytest.raises(PluginError, match=rf"failed in refine\(\): TypeError: .*{expected}"):
        refined(chosen(spec), CPU)


def test_without_keeps_the_reasons_that_are_given_already() -> None:
    spec = quantizer(absent={Op.DENSE: "packed"})
    assert spec.without({}) == spec
    assert spec.without({Op.GRAD_INPUT: "no kernel"}).absent == {Op.DENSE: "packed", Op.GRAD_INPUT: "no kernel"}
    assert spec.without({Op.DENSE: "sealed"}).absent == {Op.DENSE: "sealed"}
    assert spec.absent == {Op.DENSE: "packed"}
    with pytest.raises(ValueError, match="'fly'"):
        spec.without({"fly": "no wings"})  # type: ignore[dict-item]


def test_other_broken_components_do_not_change_the_message() -> None:
    def refine(*_: Any) -> Any:
        raise KeyError("device")

    int4, whole = quantizer(provides=LINEAR), adapter("whole", {Op.DENSE})
    others = (
        adapter("aaa", refine=refine),
        adapter("bbb", options="no_such_module_at_all:X"),
        quantizer("ccc", refine=refine),
        quantizer("ddd", options="no_such_module_at_all:X"),
    )
    problem = pair_problem(registry(int4, whole, adapter(), *others), chosen(int4), chosen(whole), CPU)
    assert problem is not None
    assert problem.hint == "--quant int4 --adapter scale"


def test_components_with_unmet_requirements_are_not_suggested() -> None:
    int4, whole = quantizer(provides=LINEAR), adapter("whole", {Op.DENSE})
    others = (
        adapter("aaa", requires=Requires(distributions=("acme-missing",))),
        quantizer("bbb", requires=Requires(accelerators=("cuda",))),
    )
    offered = registry(int4, whole, adapter(), quantizer("dense"), *others)
    problem = pair_problem(offered, chosen(int4), chosen(whole), CPU)
    assert problem is not None
    assert problem.hint == "--quant int4 --adapter scale or --quant dense --adapter whole"
    problem = pair_problem(offered, chosen(int4), chosen(whole), Env(device="cuda"))
    assert problem is not None
    assert problem.hint is not None and problem.hint.endswith("or --quant bbb --adapter whole")


def test_the_environment_has_the_device_type_without_its_index() -> None:
    env = environment("cuda:1", Purpose.MERGE)
    assert (env.device, env.purpose) == ("cuda", Purpose.MERGE)
    assert env.tools <= {"c++"}
