"""`given` tells the options that were set from defaults with the same value."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from smollm3_finetune.api import given, option, options_dict, options_with
from smollm3_finetune.config.accepted import accepted
from smollm3_finetune.config.load import Setting, assemble
from smollm3_finetune.config.options import build
from smollm3_finetune.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Options:
    bits: Literal[2, 4, 8] = option(4, "Bits.", former_values={None: 4})
    double: bool = option(True, "Twice.", former_values={None: True})
    threshold: float = option(6.0, "Threshold.", former_name="limit", former_values={None: 6.0})
    names: tuple[str, ...] = option((), "Names.")
    size: int | None = option(None, "Size.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Slots:
    bits: int = option(4, "Bits.")


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({}, set()),
        ({"bits": 4}, {"bits"}),
        ({"threshold": "6", "names": "a,b"}, {"threshold", "names"}),
        ({"limit": 6.0}, {"threshold"}),
        ({"names": []}, {"names"}),
        ({"size": None}, {"size"}),
        ({"bits": None, "double": None, "limit": None}, set()),
        ({"bits": "none", "threshold": "off"}, set()),
        ({"double": "off"}, {"double"}),
    ],
)
def test_what_is_in_the_values_was_set_also_if_it_is_the_default(values: dict[str, Any], names: set[str]) -> None:
    built = build(Options, values, "quant")
    assert given(built) == names
    assert built.double is (values.get("double") != "off")
    assert (built.bits, built.threshold) == (4, 6.0)
    for same in (copy.copy(built), copy.deepcopy(built), pickle.loads(pickle.dumps(built))):
        assert given(same) == names
    assert options_dict(built).keys() == {f.name for f in dataclasses.fields(Options)}


def test_defaults_that_a_run_wrote_were_not_set_but_edited_ones_were() -> None:
    values = {"bits": 4, "double": False, "limit": 6.0, "names": [], "size": None}
    assert given(build(Options, values, "quant", given=())) == {"double"}
    assert given(build(Options, values, "quant", given=("bits", "limit"))) == {"bits", "double", "threshold"}


def test_instances_that_were_not_built_from_values_have_set_what_differs() -> None:
    assert given(Options()) == given(Slots()) == set()
    assert given(Options(bits=4, names=("a",))) == {"names"}
    assert given(options_with(Options, bits=4)) == {"bits"}
    assert options_with(Options, bits=4) == Options()
    assert given(dataclasses.replace(options_with(Options, bits=4), size=3)) == {"size"}
    assert given(options_with(Slots, bits=4)) == set()
    assert given(options_with(Slots, bits=8)) == {"bits"}
    with pytest.raises(TypeError, match=r"takes an instance of an options dataclass, got <class .*Options'>"):
        given(Options)


def test_a_former_null_is_valid_in_the_json_schema_but_not_for_other_options() -> None:
    properties = accepted(Options)["properties"]
    for name, words in (
        ("bits", [None, "none", "off"]),
        ("double", [None, "none"]),
        ("threshold", [None, "none", "off"]),
    ):
        assert {"enum": words, "deprecated": True} in properties[name]["anyOf"]
    assert not any(None in node.get("enum", ()) for node in properties["names"]["anyOf"])
    with pytest.raises(ConfigError, match="expected list of strings"):
        build(Options, {"names": None}, "quant")


def layer(origin: str, **values: Any) -> list[Setting]:
    return [Setting(key=tuple(k.split("__")), value=v, origin=origin) for k, v in values.items()]


def test_the_key_given_holds_for_its_own_layer() -> None:
    file = layer("run.yaml", quant__name="q", quant__bits=4, quant__size=8, adapter__rank=2, given=["quant.size"])
    loaded = assemble([file, layer("--set", adapter__rank=2)])
    assert loaded.config.quant.given == {"size"}
    assert loaded.config.adapter.given is None  # all: the command line set it
    assert loaded.config.given == ("adapter.rank", "quant.size")
    again = assemble([layer("suggested", train__epochs=2), loaded.settings])
    assert again.config == dataclasses.replace(loaded.config, train=again.config.train)
    assert assemble([layer("run.yaml", quant__bits=4, given=None)]).config.quant.given is None
    for wrong in (5, {"a": 1}, [["quant.bits"]]):
        with pytest.raises(ConfigError, match="given: expected list of strings or none"):
            assemble([layer("run.yaml", given=wrong)])
