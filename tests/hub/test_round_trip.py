"""What arrives on the Hub is loaded again, and computes what the published adapter computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from local_hub import TOKEN, LocalHub, served

from smollm3_finetune import load_model
from smollm3_finetune.model_files.card_metadata import metadata_fault

ROOT = Path(__file__).parents[2]
FILES = (str(ROOT / "examples" / "bottleneck_adapter.py"),)
IDS = torch.randint(3, 2000, (2, 24), generator=torch.Generator().manual_seed(7))
ADAPTERS = ["full", "bottleneck", *(pytest.param(a, marks=pytest.mark.plugins) for a in ("lora", "dora"))]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS, use_cache=False).logits
    return found


def received(hub: LocalHub, repo: str) -> Path:
    directory = Path("received")
    for name, data in hub.repositories[repo].files().items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_published_adapter_is_loaded_again(adapter: str, hub: LocalHub, cli: Callable[..., Any]) -> None:
    loaded = load_model(adapter=adapter, purpose="train", plugins=FILES)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_((0.03 * torch.randn(parameter.shape, generator=generator)).to(parameter))
    loaded.save("saved")
    right = logits(loaded.model)
    done = cli("push", "saved", "me/x")
    assert done.code == 0, done.stderr
    again = load_model(adapter_path=received(hub, "me/x"), plugins=FILES)
    assert torch.equal(logits(again.model), right)
    assert not torch.allclose(right, logits(load_model().model), atol=1e-2), "the adapter must change the logits"
    assert metadata_fault(Path("received/README.md").read_text()) is None


def test_a_run_is_published_by_the_installed_command(
    run_cli: Callable[..., Any], cli: Callable[..., Any], rows_file: Path
) -> None:
    """In a process of its own: the host and the token are those of the environment."""
    trained = cli(
        "train", "--data", rows_file, "--adapter", "full", "--max-steps", "1", "--output", "run",
        "--set", "train.sample_tokens=2",
    )  # fmt: skip
    assert trained.code == 0, trained.stderr
    with served() as hub:
        done = run_cli(
            "push", "run", "me/x", "--json", HF_ENDPOINT=hub.endpoint, HF_TOKEN=TOKEN, HF_HUB_OFFLINE="0",
            HF_HUB_DISABLE_XET="1", NO_PROXY="127.0.0.1", no_proxy="127.0.0.1",
        )  # fmt: skip
        report = done.report()
        assert report["url"] == f"{hub.endpoint}/me/x"
        files = hub.repositories["me/x"].files()
    assert set(files) == {f.name for f in Path("run/adapter").iterdir()}
    everything = b"".join(files.values())
    for private in (str(Path.cwd()), str(Path.home()), str(rows_file), "What is 3?"):
        assert private.encode() not in everything
    assert json.loads(files["smollm3.json"])["model"] == "tiny"
