"""Options dataclasses: their help, and errors for wrong values."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from smollm3_finetune.api import NoOptions, given, option
from smollm3_finetune.config.options import build, describe, json_schema
from smollm3_finetune.errors import ConfigError, PluginError, Problems, did_you_mean
from smollm3_finetune.model.device import resolve_dtype
from smollm3_finetune.model_files.dtypes import ALIASES
from smollm3_finetune.model_files.writing import saveable_dtype


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a component."""

    bits: int = option(4, "Bits of a weight.", ge=2, le=8)
    group: int = option(128, "Input channels in a group.", multiple_of=32)
    kind: Literal["nf4", "fp4"] = option("nf4", "Number format.")
    double: bool = option(False, "Quantize the scales too.")
    rate: float | None = option(None, "A rate.", gt=0, lt=1)
    modules: tuple[str, ...] = option((), "Names.")

    def __post_init__(self) -> None:
        if self.bits == 3 and self.kind == "fp4":
            raise ValueError("fp4 has no 3 bits")


def problems(**values: Any) -> list[str]:
    with pytest.raises((ConfigError, Problems)) as caught:
        build(Options, values, "quant", {"bits": "run.yaml:7"}, "quantizer 'q'")
    error = caught.value
    return [str(p) for p in (error.problems if isinstance(error, Problems) else [error])]


def test_text_from_a_command_line_and_values_from_yaml_give_the_same_options() -> None:
    expected = Options(bits=8, double=True, rate=0.5, modules=("q", "v"))
    assert build(Options, {"bits": 8, "double": True, "rate": 0.5, "modules": ["q", "v"]}, "quant") == expected
    assert build(Options, {"bits": "8", "double": "true", "rate": "0.5", "modules": ("q", "v")}, "quant") == expected


def test_the_text_none_is_unset_except_for_text_options() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Texts:
        name: str | None = option("x", "A name.")
        kind: Literal["none", "all"] | None = option("all", "A kind.")

    assert build(Options, {"rate": "none"}, "quant").rate is None
    assert build(Texts, {"name": "none", "kind": "none"}, "quant") == Texts(name="none", kind="none")
    assert "got 'none'" in problems(bits="none")[0]


@pytest.mark.parametrize(("typed", "dtype"), ALIASES.items())
def test_the_short_name_of_a_dtype_is_accepted_where_the_dtype_is(typed: str, dtype: str) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Dtypes:
        dtype: Literal["auto", "float16", "bfloat16", "float32", "float64"] | None = option(None, "A dtype.")
        kind: Literal["half", "whole"] = option("whole", "A kind.")
        name: str = option("", "A name.")
        several: tuple[Literal["float16", "bfloat16", "float32", "float64"], ...] = option((), "Dtypes.")

    for several in (f"{typed},float16", [typed, "float16"]):
        assert build(Dtypes, {"several": several}, "quant") == Dtypes(several=(dtype, "float16"))  # type: ignore[arg-type]
    found = build(Dtypes, {"dtype": typed, "kind": "half", "name": typed}, "quant")
    assert found == Dtypes(dtype=dtype, kind="half", name=typed)  # type: ignore[arg-type]
    assert f"got {typed!r}" in problems(kind=typed)[0]
    assert resolve_dtype(typed, "cpu") == saveable_dtype("--dtype", typed) == dtype


@dataclass(frozen=True, kw_only=True)
class PerLayer:
    """Options that are mappings."""

    ranks: Mapping[str, int] = option({}, "Rank of a layer.")
    rates: Mapping[str, float] = option({"head": 0.1}, "Rate of a layer.")


def test_a_mapping_is_an_option_with_a_default_of_its_own() -> None:
    built = build(PerLayer, {"ranks": {"q_proj": 4}}, "adapter")
    assert built == PerLayer(ranks={"q_proj": 4}) and given(built) == {"ranks"}
    built.rates["tail"] = 1  # type: ignore[index]
    assert PerLayer().rates == {"head": 0.1}
    assert [info.type for info in describe(PerLayer)] == ["mapping of names to integers", "mapping of names to numbers"]
    assert json_schema(PerLayer)["properties"]["ranks"]["additionalProperties"] == {"type": "integer"}


@pytest.mark.parametrize(
    ("key", "wrong", "hint"),
    [("ranks", 4, "ranks='{NAME: 1}'"), ("ranks", {"q": "x"}, "ranks='{NAME: 1}'"),
     ("ranks", {"q": True}, "ranks='{NAME: 1}'"), ("rates", {"q": None}, "rates='{head: 0.1}'")],
)  # fmt: skip
def test_a_wrong_mapping_is_named_with_one_that_can_be_typed(key: str, wrong: Any, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: expected mapping of names to") as e:
        build(PerLayer, {key: wrong}, "adapter", {key: f"--adapter-opt {key}"})
    assert e.value.hint and f"--adapter-opt {hint}" in e.value.hint


def test_omitted_options_have_their_defaults() -> None:
    built = build(Options, {}, "quant")
    assert built == Options()
    assert isinstance(built.modules, tuple)


def test_out_of_range_values_are_errors_with_origin_option_range_and_value() -> None:
    assert problems(bits=9) == [
        "run.yaml:7: quant.bits: expected integer (at least 2, at most 8), got 9\n"
        "  hint: for example: bits: 4; about this option: Bits of a weight."
    ]
    assert "quant.group: expected integer (a multiple of 32), got 33" in problems(group=33)[0]
    assert "quant.rate: expected number (greater than 0, less than 1) or none, got 1" in problems(rate=1)[0]


def test_a_wrong_type_or_word_is_an_error_with_the_expected_type() -> None:
    assert "quant.bits: expected integer (at least 2, at most 8), got 'four'" in problems(bits="four")[0]
    assert "quant.kind: expected nf4|fp4, got 'nf5'" in problems(kind="nf5")[0]
    assert "quant.modules: expected list of strings, got {'a': 1}" in problems(modules={"a": 1})[0]
    assert "quant.double: expected true|false, got None" in problems(double=None)[0]


def test_an_unknown_option_gets_a_suggestion_or_the_list() -> None:
    assert problems(bit=4) == ["quantizer 'q' has no option 'bit'\n  hint: did you mean 'bits'?"]
    assert "its options: bits, group, kind, double, rate, modules" in problems(zzz=4)[0]
    with pytest.raises(ConfigError, match=r"unknown key 'quant\.bits'") as caught:
        build(NoOptions, {"bits": 4}, "quant")
    assert caught.value.hint == "it has no options; to use a different one: --quant NAME"


def test_all_problems_are_reported_together_and_once() -> None:
    found = problems(bit=4, kind="x", rate="much", modules=[[], {}])
    assert len(found) == 4
    assert [f.split(":")[0].split(" ")[0] for f in found] == ["quantizer", "quant.kind", "quant.rate", "quant.modules"]


def test_a_value_error_of_the_dataclass_becomes_a_config_error() -> None:
    with pytest.raises(ConfigError, match="quant: fp4 has no 3 bits"):
        build(Options, {"bits": 3, "kind": "fp4"}, "quant")


def test_plain_dataclass_fields_are_supported() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Plain:
        must: int
        many: Mapping[str, int] = field(default_factory=dict)

    built = build(Plain, {"must": 3}, "adapter")
    assert built == Plain(must=3, many={})
    with pytest.raises(ConfigError, match=r"adapter\.must: a value is required"):
        build(Plain, {}, "adapter")


def test_an_annotation_that_cannot_be_resolved_is_a_plugin_error() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Wrong:
        x: NoSuchType = option(1, "x")  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(PluginError, match=r"Wrong.*NoSuchType"):
        describe(Wrong)


def test_help_has_type_default_range_and_text_in_order() -> None:
    infos = {i.name: i for i in describe(Options)}
    assert list(infos) == ["bits", "group", "kind", "double", "rate", "modules"]
    assert (infos["bits"].type, infos["bits"].default, infos["bits"].range) == ("integer", 4, "at least 2, at most 8")
    assert infos["kind"].type == "nf4|fp4"
    assert infos["rate"].type == "number or none"
    assert infos["modules"].type == "list of strings"
    assert infos["bits"].help == "Bits of a weight."


def test_the_json_schema_has_limits_and_help_and_allows_no_other_keys() -> None:
    schema = json_schema(Options)
    assert schema["additionalProperties"] is False
    bits = schema["properties"]["bits"]
    assert (bits["minimum"], bits["maximum"], bits["default"]) == (2, 8, 4)
    assert bits["description"] == "Bits of a weight."
    assert schema["properties"]["kind"]["enum"] == ["nf4", "fp4"]


def test_describing_options_does_not_import_pydantic() -> None:
    code = (
        "import sys; from smollm3_finetune.config.options import describe; "
        "from smollm3_finetune.config.schema import *; "
        "assert len(describe(TrainConfig)) > 10; assert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_suggestion_is_the_most_similar_name_or_none() -> None:
    assert did_you_mean("gtpq", ["gptq", "none"]) == "gptq"
    assert did_you_mean("xyzzy", ["gptq", "none"]) is None
    assert did_you_mean("ternary", ["ray"]) is None  # equal letters of a short word are chance
    assert did_you_mean("hqk", ["hqq", "awq"]) == "hqq"
    assert did_you_mean("args", ["name", "arguments"]) == "arguments"  # a short word may leave letters out
    assert did_you_mean("acgs", ["arguments"]) is None


@dataclass(frozen=True, kw_only=True)
class Listed:
    names: tuple[str, ...] = option((), "Names.")
    layers: tuple[int, ...] = option((), "Layers.")
    revision: str | None = option(None, "A revision.")


def test_a_list_can_be_written_with_commas_or_as_one_value() -> None:
    built = build(Listed, {"names": "q_proj, v_proj", "layers": 3}, "adapter")
    assert built == Listed(names=("q_proj", "v_proj"), layers=(3,))
    assert build(Listed, {"layers": "1,2"}, "adapter").layers == (1, 2)


def test_a_number_for_a_text_option_becomes_text() -> None:
    assert build(Listed, {"revision": 1234567}, "loader").revision == "1234567"


def test_swapped_letters_are_preferred_in_suggestions() -> None:
    assert did_you_mean("lroa", ["road", "lora", "vera"]) == "lora"


@dataclass(frozen=True, kw_only=True)
class Renamed:
    train_on_user: bool = option(False, "Train on user turns.", former_name="learn_user")
    kernel: Literal["dequantize", "fast"] = option("dequantize", "Kernel.", former_values={"dequantise": "dequantize"})


def test_former_names_and_values_are_still_accepted() -> None:
    assert build(Renamed, {"learn_user": "true", "kernel": "dequantise"}, "quant") == Renamed(train_on_user=True)
    assert [i.name for i in describe(Renamed)] == ["train_on_user", "kernel"]
    assert "dequantise" not in str(json_schema(Renamed))


def test_a_former_name_together_with_the_current_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'quant\.learn_user'"):
        build(Renamed, {"learn_user": True, "train_on_user": True}, "quant")


def test_a_wrong_value_of_a_flag_names_the_option_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build(Options, {"bits": 9}, "quant", {"bits": "--quant-opt bits"}, "quantizer 'q'")
    assert caught.value.message == "--quant-opt bits: expected integer (at least 2, at most 8), got 9"
