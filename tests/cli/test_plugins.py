"""`smollm3 plugins list|info`: plugins and components, their requirements and properties."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Cli = Callable[..., Any]
SOURCE = """
from dataclasses import dataclass, replace

from smollm3_finetune.api import AdapterSpec, LoaderSpec, Op, QuantizerSpec, Requires, hookimpl, option


@dataclass(frozen=True, kw_only=True)
class Options:
    rank: int = option(8, "Width of the update.", ge=1)


@dataclass(frozen=True, kw_only=True)
class Needy:
    key: str


def no_chip_on_mps(spec, options, env):
    return spec.without({Op.FORWARD: "no such chip"}) if env.device == "mps" else spec


@hookimpl
def smollm3_quantizers():
    return [
        QuantizerSpec(name="four", summary="four bits", factory="acme_hooks:F", needs_calibration=True,
                      marker_files=("four.json",), claims=lambda config: "four" in config, aliases=("4",),
                      refine=no_chip_on_mps,
                      requires=Requires(distributions=("click>=999", "acme-gone"), accelerators=("cuda",)), api=2),
    ]


@hookimpl
def smollm3_adapters():
    return [
        AdapterSpec(name="slim", summary="a slim one", factory="acme_hooks:F", options="acme_hooks:Options", packs=True,
                    merges=False, suggests={"train.epochs": 3.0}, requires=Requires(distributions=("click>=8",)),
                    refine=lambda spec, options, env: replace(spec, needs=spec.needs | {Op.READ_WEIGHT}), api=2),
        AdapterSpec(name="needy", summary="needs a key", factory="acme_hooks:F", options="acme_hooks:Needy",
                    refine=lambda spec, options, env: options.key, api=2),
    ]


@hookimpl
def smollm3_loaders():
    return [LoaderSpec(name="far", summary="far away", factory="acme_hooks:F", rank=7, api=2)]
""".replace('aliases=("4",)', 'aliases=("quad",)')


def install(fake_distribution: Any) -> None:
    fake_distribution("acme-tools", "1.0", {"acme_hooks": SOURCE}, {"acme": "acme_hooks"})


def test_requirements_are_listed_with_missing_packages(cli: Cli, fake_distribution: Any) -> None:
    install(fake_distribution)
    fake_distribution("bad", "2.0", {"bad_hooks": "raise RuntimeError('no license')\n"}, {"bad": "bad_hooks"})
    shown = " ".join(cli("plugins", "list", "--requirements", "--device", "cpu").stdout.split())
    assert "quantizer four: click>=999, acme-gone, cuda (it requires click>=999, but click" in shown
    assert "it requires acme-gone, but it is not installed" in shown
    assert "it runs on cuda only, but this run is on cpu" in shown
    assert "adapter slim: click>=8 (met)" in shown
    assert "bad broken bad 2.0 RuntimeError: no license" in shown
    records = {r["name"]: r for r in json.loads(cli("plugins", "list", "--requirements", "--json").stdout)}
    (slim,) = (n for n in records["acme"]["requirements"] if n["components"] == ["adapter slim"])
    assert slim == {"components": ["adapter slim"], "distributions": ["click>=8"], "accelerators": [], "unmet": []}
    assert records["bad"]["error"] == "RuntimeError: no license"
    assert "requirements" not in json.loads(cli("plugins", "list", "--json").stdout)[0]


def test_every_status_is_listed_and_plugin_files_come_first(
    cli: Cli, fake_distribution: Any, plugin_file: Callable[[str, str], Path]
) -> None:
    install(fake_distribution)
    fake_distribution("zeta", "2.0", {"zeta_hooks": ""}, {"zeta": "zeta_hooks"})
    mine = plugin_file("mine", SOURCE.replace("acme_hooks", "mine"))
    result = cli("plugins", "list", "--json", "-p", str(mine), "-p", "no:zeta")
    records = json.loads(result.stdout)
    assert [r["name"] for r in records[:3]] == ["builtin", "mine", "acme"]
    assert records[1]["origin"] == str(mine)
    assert {r["name"]: r["status"] for r in records if r["name"] in ("acme", "zeta")} == {
        "acme": "active", "zeta": "disabled"
    }  # fmt: skip


def about(cli: Cli, name: str, device: str = "cpu") -> dict[str, Any]:
    (found,) = json.loads(cli("plugins", "info", name, "--json", "--device", device).stdout)
    return dict(found)


def test_a_quantizer_is_shown_with_calibration_and_recognized_checkpoints(cli: Cli, fake_distribution: Any) -> None:
    install(fake_distribution)
    found = about(cli, "quad")
    assert (found["name"], found["needs_calibration"], found["marker_files"]) == ("four", True, ["four.json"])
    assert found["origin"] == "entry point"
    assert about(cli, "four", "mps")["absent"] == {"forward": "no such chip"}
    shown = cli("plugins", "info", "four", "--device", "cpu").stdout
    for text in ("also called  quad", "by config.json, four.json",
                 "calibrates   on the training rows, or on calibration.path if set",
                 "acme-gone, but it is not installed"):  # fmt: skip
        assert text in shown, shown


def test_an_adapter_is_shown_with_traits_options_and_suggestions(cli: Cli, fake_distribution: Any) -> None:
    install(fake_distribution)
    found = about(cli, "slim")
    assert found["traits"] == {"identity_at_start": True, "packs": True, "merges": False, "disables": True}
    assert found["needs"] == ["forward", "grad-input", "read-weight"]  # as refined
    assert found["suggests"] == {"train.epochs": 3.0}
    assert found["options"] == [
        {"name": "rank", "type": "integer", "default": 8, "help": "Width of the update.", "range": "at least 1"}
    ]
    shown = cli("plugins", "info", "slim").stdout
    assert "supports packed rows, cannot be merged" in shown
    assert "suggests     train.epochs=3.0" in shown


def test_a_component_with_a_required_option_is_shown(cli: Cli, fake_distribution: Any) -> None:
    install(fake_distribution)
    found = about(cli, "needy")
    assert found["needs"] == ["forward", "grad-input"]
    assert [o["name"] for o in found["options"]] == ["key"]


def test_a_loader_is_shown_with_its_rank(cli: Cli, fake_distribution: Any) -> None:
    install(fake_distribution)
    assert about(cli, "far")["rank"] == 7
    assert "rank         7" in cli("plugins", "info", "far").stdout
