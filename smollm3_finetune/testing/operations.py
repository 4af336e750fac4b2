"""Tests for the operations of a quantizer: declared ones work at every point of a run, undeclared ones are absent."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from smollm3_finetune.api import Base, Op, UnsupportedOp
from smollm3_finetune.model.compare import ROUNDING, apart, input_gradient
from smollm3_finetune.model.dense_copy import dense_copy
from smollm3_finetune.testing.conformance import demand, fail, outcome, skip
from smollm3_finetune.testing.quantizer_case import Layer, QuantizerCase


class OperationTests(QuantizerCase):
    """The tests of `QuantizerConformance` that depend on the declared operations."""

    # --------------------------------------------------------------------------------- declared operations

    def test_layers_offer_exactly_what_is_declared(self, tmp_path: Path) -> None:
        declared = self.declared()
        demand(Op.FORWARD in declared, "the descriptor does not declare forward")
        for layer in self.viewed(tmp_path)[1]:
            assert layer.view is not None
            offered = frozenset(layer.view.ops)
            demand(
                offered == declared,
                f"{layer.name} offers {_words(offered)}, but the descriptor declares {_words(declared)}",
            )
            shape = (layer.module.out_features, layer.module.in_features)
            demand(
                tuple(layer.view.shape) == shape,
                f"the shape of {layer.name} is {tuple(layer.view.shape)}, but must be {shape}",
            )

    def test_ordinary_layers_have_no_view(self, tmp_path: Path) -> None:
        base = self.load(tmp_path)
        for name, module in base.model.named_modules():
            ordinary = type(module) is nn.Linear and type(module.weight.data) is Tensor
            demand(
                not ordinary or not module.weight.is_floating_point() or base.ops_for(module) is None,
                f"{name} is an ordinary nn.Linear, but ops_for() returns a view of it, as if it were quantized: return "
                "None unless the layer has your class",
            )

    def test_gradients_stay_right_through_a_run(self, tmp_path: Path) -> None:
        if Op.GRAD_INPUT not in self.declared():
            skip("grad-input is not declared")
        base = self.load(tmp_path)
        layers = self.layers(base, self.dense(tmp_path))
        readable = all(layer.view is None or _readable_shape(layer) for layer in layers)
        wide = torch.float64 if self.dtype == "float64" else torch.float32
        right = input_gradient(dense_copy(base, wide), self.tokens())[0] if readable else None
        rtol = max(self.bound(layer) for layer in layers)
        for point in self.run_sequence(base):
            for layer in layers:
                error = self._gradient_error(layer)
                demand(error is not None, f"no gradient flows to the input of {layer.name} ({point})")
                assert error is not None
                demand(
                    error <= self.bound(layer),
                    f"the gradient at the input of {layer.name} has the relative error {error:.2g} ({point}; limit "
                    f"{self.bound(layer):.2g} in {self.dtype})",
                )
            if right is not None and point != "before any forward":  # because it runs a forward
                found, _ = input_gradient(base.model, self.tokens())
                error = apart(found, right)
                demand(
                    error <= rtol,
                    f"the gradient at the embeddings of the model differs from that of the dense copy by {error:.2g} "
                    f"({point}; limit {rtol:.2g} in {self.dtype})",
                )
            reached = [n for n, p in base.model.named_parameters() if p.grad is not None]
            demand(not reached, f"{len(reached)} frozen parameters received a gradient, such as {reached[:1]}")

    def test_output_may_be_added_to_in_place(self, tmp_path: Path) -> None:
        """Adapters modify the output of a layer in place; a view returned by a `torch.autograd.Function` forbids it."""
        if Op.GRAD_INPUT not in self.declared():
            skip("grad-input is not declared")
        for layer in self.layers(self.load(tmp_path), self.dense(tmp_path)):
            for shape in ((-1,), (2, -1)):  # inputs (N, in), and (2, N / 2, in)
                x = self.inputs(layer).unflatten(0, shape).requires_grad_()
                y = layer.module(x)
                _, error = outcome(lambda y=y: y.add_(torch.ones_like(y)))
                demand(
                    error is None,
                    f"the output of {layer.name} cannot be modified in place, which adapters do: {error}",
                )

    def test_gradients_are_right_under_autocast(self, tmp_path: Path) -> None:
        """In mixed precision the gradient at the output has another dtype than the input."""
        if Op.GRAD_INPUT not in self.declared():
            skip("grad-input is not declared")
        if self.dtype != "float32":
            skip("mixed precision is declared for runs in float32 only")
        bound = ROUNDING["bfloat16"]
        for layer in self.layers(self.load(tmp_path), self.dense(tmp_path)):
            x = self.inputs(layer).requires_grad_()
            with torch.autocast(torch.device(self.device).type, torch.bfloat16):
                y = layer.module(x)
            cotangent = self.inputs(layer)[:, :1].expand(y.shape)  # (N, out), of random rows
            found, error = outcome(lambda y=y, x=x, c=cotangent: torch.autograd.grad(y.float(), x, c)[0])
            demand(error is None, f"{layer.name} has no gradient under autocast: {error}")
            assert found is not None
            demand(found.dtype == x.dtype, f"{layer.name}: the gradient of a {x.dtype} input is {found.dtype}")
            unit = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
            weight = (layer.module(unit).detach() - layer.module(-unit).detach()).T / 2  # (out, in); a bias cancels
            off, allowed = apart(found, cotangent @ weight), max(bound, layer.forward_rtol())
            demand(
                off <= allowed,
                f"under autocast in bfloat16, the gradient at the input of {layer.name} is {off:.2g} from the right "
                f"one, and at most {allowed:.2g} is allowed",
            )

    def _gradient_error(self, layer: Layer) -> float | None:
        """The error of a layer's input gradient, relative to the layer's own forward; None if no gradient arrives."""
        x = self.inputs(layer).requires_grad_()
        y = layer.module(x)
        if not y.requires_grad:
            return None
        generator = torch.Generator().manual_seed(5)
        cotangent = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)
        try:
            (found,) = torch.autograd.grad(y, x, cotangent)
        except RuntimeError:  # the output depends on a trained parameter, but not on the input
            return None
        unit = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        weight = (layer.module(unit).detach() - layer.module(-unit).detach()).T / 2  # (out, in); a bias cancels
        return apart(found, cotangent @ weight)

    def test_read_weight_has_shape_and_format(self, tmp_path: Path) -> None:
        for layer in self._readable(tmp_path)[1]:
            assert layer.view is not None
            weight = layer.view.read_weight()
            shape = (layer.module.out_features, layer.module.in_features)
            demand(
                tuple(weight.shape) == shape,
                f"read_weight() of {layer.name} returns the shape {tuple(weight.shape)}, but (out, in) is {shape}",
            )
            demand(
                type(weight) is Tensor,
                f"read_weight() of {layer.name} returns a {type(weight).__name__}, but must return a plain tensor: "
                "dequantize it",
            )
            wide = weight.is_floating_point() and weight.element_size() >= 4
            demand(wide, f"read_weight() of {layer.name} returns {weight.dtype}, but must return float32 or wider")
            demand(not weight.requires_grad, f"read_weight() of {layer.name} returns a tensor that requires a gradient")
            demand(
                weight.device.type == torch.device(self.device).type,
                f"read_weight() of {layer.name} returns a tensor on {weight.device}, but the layer is on {self.device}",
            )
            kept = weight.clone()
            weight.fill_(float("nan"))
            demand(
                torch.equal(layer.view.read_weight(), kept),
                f"modifying the tensor that read_weight() of {layer.name} returned changes the layer: return a new "
                "tensor",
            )

    def test_read_weight_is_what_the_forward_uses(self, tmp_path: Path) -> None:
        base, layers = self._readable(tmp_path)
        for point in self.run_sequence(base):
            for layer in layers:
                assert layer.view is not None
                x = self.inputs(layer)
                weight = layer.view.read_weight()
                weight = weight.to(torch.promote_types(weight.dtype, x.dtype))
                found = (layer.module(x) - layer.module(-x)).detach() / 2  # a bias cancels
                if weight.shape != (found.shape[1], x.shape[1]):
                    fail(f"read_weight() of {layer.name} returns the shape {tuple(weight.shape)}, not (out, in)")
                error, bound = apart(found, x.to(weight) @ weight.T), self.bound(layer)
                flipped = weight.shape[0] == weight.shape[1] and apart(found, x.to(weight) @ weight) <= bound
                demand(
                    error <= bound,
                    f"the forward of {layer.name} differs from x @ read_weight().T by {error:.2g} ({point}; limit "
                    f"{bound:.2g}, from forward_rtol {layer.forward_rtol():g} and {self.dtype})"
                    + (": read_weight() returns the transposed weight" if flipped else ""),
                )

    def test_read_weight_stays_the_same_through_a_run(self, tmp_path: Path) -> None:
        base, layers = self._readable(tmp_path)
        first: list[Tensor] = []
        for point in self.run_sequence(base):
            now = [layer.view.read_weight() for layer in layers if layer.view is not None]
            first = first or now
            for layer, weight, before in zip(layers, now, first, strict=True):
                error = apart(weight, before)
                demand(
                    error == 0,
                    f"read_weight() of {layer.name} differs from its first result by {error:.2g} ({point})",
                )

    def _readable(self, tmp_path: Path) -> tuple[Base, list[Layer]]:
        if Op.READ_WEIGHT not in self.declared():
            skip("read-weight is not declared")
        return self.viewed(tmp_path)

    def test_dense_weights_can_be_replaced(self, tmp_path: Path) -> None:
        if Op.DENSE not in self.declared():
            skip("dense is not declared")
        for layer in self.layers(self.load(tmp_path), self.dense(tmp_path)):
            x = self.inputs(layer)
            demand(_is_ordinary(layer), f"dense is declared, but {layer.name}.weight is not an ordinary Parameter")
            with torch.no_grad():
                before = layer.module(x) - layer.module(torch.zeros_like(x))
                layer.module.weight = nn.Parameter(3 * layer.module.weight.detach(), requires_grad=False)
                after = layer.module(x) - layer.module(torch.zeros_like(x))
            error = apart(after, 3 * before)
            demand(
                error <= self.bound(layer),
                f"dense is declared, but the forward of {layer.name} does not use a new weight: its error is "
                f"{error:.2g}",
            )

    def test_weights_take_gradients(self, tmp_path: Path) -> None:
        if Op.GRAD_WEIGHT not in self.declared():
            skip("grad-weight is not declared")
        for layer in self.layers(self.load(tmp_path), self.dense(tmp_path)):
            layer.module.weight.requires_grad_(True)
            x = self.inputs(layer)
            y = layer.module(x)
            y.square().sum().backward()
            found = layer.module.weight.grad
            demand(found is not None, f"grad-weight is declared, but {layer.name}.weight receives no gradient")
            error = apart(found, (2 * y.detach()).T @ x)  # (out, N) @ (N, in)
            demand(
                error <= self.bound(layer),
                f"the gradient of {layer.name}.weight has the relative error {error:.2g} (limit "
                f"{self.bound(layer):.2g} in {self.dtype})",
            )

    # ------------------------------------------------------------------------------- undeclared operations

    def test_read_weight_raises_where_it_is_not_declared(self, tmp_path: Path) -> None:
        if Op.READ_WEIGHT in self.declared():
            skip("read-weight is declared")
        base, layers = self.viewed(tmp_path)
        for point in self.run_sequence(base):
            for layer in layers:
                assert layer.view is not None
                _, error = outcome(layer.view.read_weight)
                what = "returns a weight" if error is None else f"raises {type(error).__name__}"
                demand(
                    isinstance(error, UnsupportedOp),
                    f"read-weight is not declared, but read_weight() of {layer.name} {what} ({point}): raise "
                    "UnsupportedOp, or declare read-weight",
                )

    def test_weights_are_no_parameters_where_dense_is_not_declared(self, tmp_path: Path) -> None:
        if Op.DENSE in self.declared():
            skip("dense is declared")
        for layer in self.viewed(tmp_path)[1]:
            demand(
                not _is_ordinary(layer),
                f"dense is not declared, but {layer.name}.weight looks like an ordinary Parameter: adapters may "
                "replace or train it, although the forward may not use it",
            )

    def test_no_wrong_gradient_where_grad_input_is_not_declared(self, tmp_path: Path) -> None:
        if Op.GRAD_INPUT in self.declared():
            skip("grad-input is declared")
        base, layers = self.viewed(tmp_path)
        for point in self.run_sequence(base):
            for layer in layers:
                error = self._gradient_error(layer)
                if error is None:
                    continue
                demand(
                    error <= self.bound(layer),
                    f"grad-input is not declared, but the input of {layer.name} receives a gradient, with the relative "
                    f"error {error:.2g} ({point}): detach the input, so that nobody trains on it",
                )


def _is_ordinary(layer: Layer) -> bool:
    """Whether `.weight` is a floating-point Parameter (out, in), not an instance of a tensor subclass."""
    weight = getattr(layer.module, "weight", None)
    return (
        isinstance(weight, nn.Parameter)
        and type(weight.data) is Tensor
        and weight.is_floating_point()
        and weight.shape == (layer.module.out_features, layer.module.in_features)
    )


def _readable_shape(layer: Layer) -> bool:
    """Whether the weight of a quantized layer can be read and has the shape (out, in)."""
    assert layer.view is not None
    shape = (layer.module.out_features, layer.module.in_features)
    return Op.READ_WEIGHT in layer.view.ops and tuple(layer.view.read_weight().shape) == shape


def _words(ops: frozenset[Op]) -> str:
    return ", ".join(sorted(ops)) or "nothing"
