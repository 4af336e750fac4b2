"""Absent operations and skipped layers of a quantizer, and the sources and options that it refuses.

The tests of `check`, `group_size` and `skip_modules` apply to a quantizer whose descriptor has a `check` or whose
options have a field of that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from smollm3_finetune.api import ALL_OPS, CheckpointQuantizer, ModelSource
from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.testing.conformance import demand, fail, outcome, skip
from smollm3_finetune.testing.quantizer_case import QuantizerCase

UNKNOWN = "no_such_layer"
GROUP_SIZES = (24, 40, 48, 36)
"""None of them divides the 64 features of the small model. The first that the option accepts is used."""


class WeightsRead(Exception):
    """The weights of a source were read that should have been refused before."""


class Unread:
    """A source whose weights must not be read, perhaps with other keys in its `config.json`."""

    def __init__(self, source: ModelSource, **config: Any) -> None:
        self.source = source
        self.config: Mapping[str, Any] = {**source.config, **config}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def load(self, **kwargs: Any) -> Any:
        raise WeightsRead


class RefusalTests(QuantizerCase):
    """The tests of what a quantizer leaves out and refuses."""

    skips: ClassVar[tuple[str, ...]] = ("k_proj", "v_proj")
    """Names for an option `skip_modules`: whole parts of the names of layers or of modules that contain some."""

    def test_absent_operations_have_a_reason(self) -> None:
        spec = self.spec()
        silent = sorted(set(ALL_OPS) - spec.provides - {op for op, reason in spec.absent.items() if reason})
        demand(
            not silent,
            f"the descriptor neither provides {', '.join(silent)} nor gives a reason in `absent`, which users see if "
            "an adapter needs it",
        )

    def test_a_quantized_source_is_refused_before_weights_are_read(self, tmp_path: Path) -> None:
        if self.spec().check is None:
            skip("the descriptor has no check()")
        for stored in ({"quant_method": "nobody's"}, {}):
            what = f"the quantization_config {stored}"
            self.refused(tmp_path, {}, what, hint=bool(stored), quantization_config=stored)

    def test_groups_that_do_not_fit_are_refused_before_weights_are_read(self, tmp_path: Path) -> None:
        if self.spec().check is None:
            skip("the descriptor has no check()")
        self.has_option("group_size")
        if isinstance(self.choose().create(), CheckpointQuantizer):
            skip("checkpoints may have a last group that is not full, which is not declared")
        for size in GROUP_SIZES:
            chosen, _ = outcome(self.options_with, {"group_size": size})
            if chosen is not None:
                message = self.refused(tmp_path, {"group_size": size}, f"group_size={size}, which divides no layer")
                demand(str(size) in message, f"the error for group_size={size} does not name that size: {message}")
                return
        skip(f"the option group_size accepts none of {GROUP_SIZES}")

    def test_unknown_modules_to_skip_are_refused_before_weights_are_read(self, tmp_path: Path) -> None:
        if self.spec().check is None:
            skip("the descriptor has no check()")
        self.has_option("skip_modules")
        options = {"skip_modules": (UNKNOWN,)}
        message = self.refused(tmp_path, options, f"skip_modules={UNKNOWN}, a name that no layer has")
        demand(UNKNOWN in message, f"the error for the unknown name {UNKNOWN} does not contain it: {message}")

    def test_skipped_modules_stay_ordinary(self, tmp_path: Path) -> None:
        self.has_option("skip_modules")
        base = self.load(tmp_path, skip_modules=self.skips)
        for layer in self.layers(base, self.dense(tmp_path)):
            skipped = any(f".{key}." in f".{layer.name}." for key in self.skips)
            ordinary = type(layer.module) is nn.Linear and layer.view is None
            demand(ordinary or not skipped, f"{layer.name} is quantized, although skip_modules={self.skips} names it")
            demand(
                skipped or not ordinary, f"{layer.name} is not quantized, and skip_modules={self.skips} names others"
            )
        reordered = self.load(tmp_path, skip_modules=self.skips[::-1])
        demand(
            reordered.fingerprint == base.fingerprint,
            f"skip_modules={self.skips} and the same names in another order give two fingerprints of the same weights: "
            "sort the names",
        )

    # ------------------------------------------------------------------------------------------ helpers

    def options_with(self, options: Mapping[str, Any]) -> Any:
        """Validated options. Raises ConfigError."""
        from smollm3_finetune.config.options import build

        component = self.choose().component
        return build(
            component.options_class(), {**self.options, **options}, component.kind.section, owner=component.title
        )

    def has_option(self, name: str) -> None:
        """Skip the test of a quantizer without this option."""
        if not hasattr(self.choose().options, name):
            skip(f"the quantizer has no option {name}")

    def refused(
        self, tmp_path: Path, options: Mapping[str, Any], what: str, *, hint: bool = True, **config: Any
    ) -> str:
        """The message with which `check` or `load` refuses; fails the test if weights are read or there is no hint.

        Only `check` is called with other keys in the `config.json`, and if `load` might write a checkpoint.
        """
        source: Any = Unread(self.dense_source(tmp_path), **config)
        chosen = self.choose(**options)
        _, error = outcome(self.spec().check, chosen.options, source)
        quantizer = chosen.create()
        if error is None and not config and not isinstance(quantizer, CheckpointQuantizer):
            _, error = outcome(quantizer.load, source, self.context(tmp_path))
        if error is None or isinstance(error, WeightsRead):
            fail(f"{what}, is not refused before weights are read: raise an error in check() or early in load()")
        demand(
            isinstance(error, SmolLM3Error),
            f"{what}, is refused with {type(error).__name__}: raise a SmolLM3Error, such as ConfigError",
        )
        demand(not hint or bool(getattr(error, "hint", None)), f"{what}, is refused without a hint: {error}")
        return str(error)
