"""The processes of a trial: one that dies or hangs ends only the pair that it was trying."""

from __future__ import annotations

from typing import Any

import pytest

from smollm3_finetune.api import AdapterSpec, QuantizerSpec
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import ADAPTER, QUANTIZER
from smollm3_finetune.components.registry import RegisteredComponent
from smollm3_finetune.errors import IncompatibleError, UnknownComponentError
from smollm3_finetune.trial.results import Status
from smollm3_finetune.trial.run import Trial, chosen

WORKER = """
import json, os, sys, time
about = json.loads(sys.stdin.readline())
if about["device"] == "cuda":
    print(json.dumps({"error": "torch finds no cuda device here", "hint": "use --device cpu", "code": 3}), flush=True)
    sys.exit()
print(json.dumps({"machine": {"device": "cpu", "name": "a machine"}, "dtype": about["dtype"]}), flush=True)
for line in sys.stdin:
    name = json.loads(line)["quantizer"].partition(":")[2]
    if name == "hangs":
        time.sleep(60)
    if name == "dies":
        home = os.path.expanduser("~")
        print(chr(27) + f"[31mthe last words{chr(27)}[0m of {home}/file", file=sys.stderr, flush=True)
        os.kill(os.getpid(), 9)
    print(json.dumps({"status": "works", "sentence": None, "steps": {"load": True}, "figures": {}, "seconds": 0.1}),
          flush=True)
"""


def component(name: str, kind: Any = QUANTIZER) -> RegisteredComponent:
    spec = (QuantizerSpec if kind is QUANTIZER else AdapterSpec)(name=name, summary="s", factory="a:B", api=2)
    return RegisteredComponent(kind=kind, spec=spec, distribution="acme", version="1.0", plugin="acme")


def trial(*names: str, **more: Any) -> Trial:
    about = {"device": "cpu", "limit": 1.0, "worker": "acme_trial", "command": "again", **more}
    return Trial(quantizers=[component(n) for n in names], adapters=[component("small", ADAPTER)], **about)


def test_a_process_that_dies_or_hangs_ends_only_its_pair(fake_distribution: Any) -> None:
    fake_distribution("acme", "1.0", {"acme_trial": WORKER})
    said: list[str] = []
    found = trial("plain", "hangs", "dies", "last", jobs=1).run(said.append)  # only `hangs` does not wait for a start
    assert [(c.names[0], c.status) for c in found.cells] == [
        ("plain", Status.WORKS), ("hangs", Status.FAILS), ("dies", Status.FAILS), ("last", Status.WORKS),
    ]  # fmt: skip
    sentences = {c.names[0]: c.sentence or "" for c in found.cells}
    assert sentences["dies"] == "the process ended with signal 9: the last words of ~/file"
    assert sentences["hangs"] == "timed out after 1 s"
    assert len(said) == 4
    assert found.machine == {"device": "cpu", "name": "a machine"}


def test_a_device_that_is_not_there_is_an_error_before_pairs_are_tried(fake_distribution: Any) -> None:
    fake_distribution("acme", "1.0", {"acme_trial": WORKER})
    with pytest.raises(IncompatibleError, match="torch finds no cuda device here"):
        trial("plain", device="cuda").run(lambda line: None)


def test_names_are_chosen_from_what_is_installed() -> None:
    registry = discover(PluginSelection.of((), no_plugins=True))
    quantizers, adapters = chosen(registry, (), ())
    assert [q.spec.name for q in quantizers] == ["none"]
    assert [a.spec.name for a in adapters] == ["full"], "the usual adapters are not installed"
    with pytest.raises(UnknownComponentError):
        chosen(registry, (), ("lora",))
