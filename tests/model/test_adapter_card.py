"""The model card of a saved adapter: right for every adapter, executable, and without local paths."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from smollm3_finetune import load_model
from smollm3_finetune.api import AdapterSpec, Purpose
from smollm3_finetune.builtin.tiny_loader import DIRECTORY
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.model.adapter_card import Training, adapter_card, edited_card
from smollm3_finetune.model.load import build_context, compose
from smollm3_finetune.model.plan import plan_model, select_model
from smollm3_finetune.model_files.card_mark import MARK
from smollm3_finetune.model_files.card_metadata import metadata_fault
from smollm3_finetune.runs.reopen import run_request
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.testing import relative_error
from smollm3_finetune.train.card import comparison_rows

SCALE = Path(__file__).parents[1] / "out_of_tree" / "scale_adapter.py"
IDS = torch.randint(3, 2000, (2, 24), generator=torch.Generator().manual_seed(7))
LICENSE = "---\nlicense: other\nlicense_name: acme-1.0\nlicense_link: LICENSE\n---\n\n# Acme\n"
PEFT = pytest.mark.plugins
PAIRS = [
    ("none", "full", 2),
    ("none", "scale", 1),
    pytest.param("bnb-4bit", "scale", 1, marks=PEFT),
    *(pytest.param("none", adapter, 2, marks=PEFT) for adapter in ("lora", "dora")),
    *(pytest.param("bnb-4bit", adapter, 1, marks=PEFT) for adapter in ("lora", "dora")),
]
"""Quantizer, adapter, and the number of snippets: with this package, and with another library alone."""
TITLES = {"full": "full fine-tuning", "scale": "scale adapter", "lora": "LoRA adapter", "dora": "DoRA adapter"}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS, use_cache=False).logits
    return found.double()


def apart(found: torch.Tensor, right: torch.Tensor) -> float:
    return relative_error({"": found}, {"": right})


def of_generate(run: str) -> Any:
    """The model that `smollm3 generate RUN` answers with."""
    request, dtype = run_request(RunDir.existing(run), (), {}, "generate", Purpose.INFER)
    registry = discover(PluginSelection.of((str(SCALE),)))
    plan = plan_model(registry, select_model(registry, request), build_context(Purpose.INFER, "cpu", dtype, 0))
    return compose(plan)


def snippets(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def executed(snippet: str, replaced: Mapping[str, str]) -> dict[str, Any]:
    for placeholder, path in replaced.items():
        snippet = snippet.replace(placeholder, path)
    found: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT, when it is used alone
        exec(snippet, found)
    return found


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model directory with a card of its own."""
    directory = tmp_path / "secret folder" / "acme-base"
    shutil.copytree(DIRECTORY, directory)
    (directory / "README.md").write_text(LICENSE)
    return directory


@pytest.mark.parametrize(("quant", "adapter", "ways"), PAIRS)
def test_the_snippets_of_the_card_compute_what_generate_computes(
    quant: str, adapter: str, ways: int, cli: Callable[..., Any], base: Path, rows_file: Path, monkeypatch: Any
) -> None:
    plugin = ("-p", SCALE) if adapter == "scale" else ()
    done = cli(
        "train", "--model", base, "--data", rows_file, "--quant", quant, "--adapter", adapter, "--max-steps", "2",
        "--lr", "3e-2" if adapter == "scale" else "1e-3", "--set", "train.sample_tokens=2", "--output", "run",
        "--device", "cpu", "--dtype", "float32", "--json", *plugin,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    text = Path("run/adapter/README.md").read_text(encoding="utf-8")
    right = logits(of_generate("run").model)
    assert apart(right, logits(load_model(base, quant=quant).model)) > 1e-3, "training must change the logits"
    monkeypatch.chdir("run/adapter")
    replaced = {"path/to/acme-base": str(base), "path/to/scale_adapter.py": str(SCALE)}
    found = [executed(snippet, replaced) for snippet in snippets(text, "python")]
    assert len(found) == ways
    for one in found:
        assert apart(logits(one["model"]), right) <= 1e-6
        assert one["tokenizer"].chat_template
    for command in snippets(text, "console"):
        assert command.startswith(("smollm3 generate path/to/acme-base ", "smollm3 merge path/to/acme-base "))
    assert ("smollm3 merge" in text) == (ways == 1), "what to run first if no other library can load it"

    assert metadata_fault(text) is None
    about = ModelCard(text).data
    assert about.base_model is None, "a local path is not a model of the Hub"
    assert (about.license, about.license_name, about.get("license_link")) == ("other", "acme-1.0", None)
    assert {"smollm3-finetune", adapter} <= set(about.tags)
    assert about.library_name == {"full": "transformers", "scale": "smollm3-finetune"}.get(adapter, "peft")
    assert f"# acme-base, {TITLES[adapter]}\n" in text
    assert "secret" not in text and str(Path.cwd()) not in text and str(rows_file) not in text
    report = json.loads(done.stdout)
    assert "| `rows.jsonl` | 3 | 1 |" in text
    assert f"| held-out loss after training | {report['after']['held_out_loss']:.4f} (perplexity " in text
    assert f"| held-out loss before training | {report['before']['held_out_loss']:.4f} (perplexity " in text
    assert "| optimizer steps | 2 |" in text
    assert f"| `learning_rate` | {0.03 if adapter == 'scale' else 0.001} |" in text


def test_the_merge_that_a_card_names_gives_the_same_model(
    cli: Callable[..., Any], base: Path, rows_file: Path, monkeypatch: Any
) -> None:
    plugin = ("-p", SCALE)
    quick = ("--max-steps", "2", "--lr", "3e-2", "--set", "train.sample_tokens=2", "--dtype", "float32")
    made = cli("train", "--model", base, "--data", rows_file, "--adapter", "scale", *quick, "--output", "run", *plugin)
    assert made.code == 0, made.stderr
    right = logits(of_generate("run").model)
    monkeypatch.chdir("run/adapter")
    command = snippets(Path("README.md").read_text(encoding="utf-8"), "console")[-1]
    words = command.replace("path/to/acme-base", "BASE").replace("path/to/scale_adapter.py", str(SCALE)).split()
    done = cli(*(str(base) if word == "BASE" else word for word in words[1:]), "--dtype", "float32")
    assert done.code == 0, done.stderr
    from transformers import AutoModelForCausalLM

    assert apart(logits(AutoModelForCausalLM.from_pretrained("../merged", dtype=torch.float32)), right) <= 1e-4


def test_a_base_on_the_hub_is_named_with_its_revision() -> None:
    plan = load_model(adapter="full", purpose="train").plan
    object.__setattr__(plan.source, "pins", {"revision": "abc123"})
    training = Training(datasets=["acme/rows", "acme/rows"], sources=[("rows", 3, 1, "commit `abc`")])
    text = adapter_card(replace(plan, ref="acme/base-3B"), training)
    about = ModelCard(text).data
    assert (about.base_model, about.base_model_relation, about.datasets) == ("acme/base-3B", "finetune", ["acme/rows"])
    assert "[acme/base-3B](https://huggingface.co/acme/base-3B) at `abc123`" in text
    assert (
        """load_model("acme/base-3B", adapter_path=".", dtype="float32", loader_options={'revision': 'abc123'})"""
        in text
    )
    assert "--loader-opt revision=abc123" in text
    assert "Replace `" not in text
    alone = "Without smollm3-finetune, with `"
    assert alone in text
    assert alone not in adapter_card(replace(plan, ref="acme/base-3B"), training, loads_alone=False)


def test_every_adapter_gets_the_card_of_core_and_an_edited_card_is_kept(tmp_path: Path, plugin_file: Any) -> None:
    """An adapter that writes a card of its own: libraries such as PEFT do so, with local paths."""
    own = SCALE.read_text().replace("scale_adapter:", "talkative:").replace(
        "path.mkdir(parents=True, exist_ok=True)", "(path / 'README.md').write_text(f'base: {path}')"
    )  # fmt: skip
    loaded = load_model(adapter="scale", purpose="train", plugins=[str(plugin_file("talkative", own))])
    card = tmp_path / "adapter" / "README.md"
    loaded.save(card.parent)
    written = card.read_text(encoding="utf-8")
    assert "# tiny, scale adapter" in written and str(tmp_path) not in written
    loaded.write_card(card.parent, Training(results=[("x", "1")]), edited_card(card.parent))
    assert "| x | 1 |" in card.read_text(encoding="utf-8"), "a card that nobody edited is replaced"
    for edited in (written + "\nmore\n", MARK.sub("Mine.", written), written.replace("A scale", "My scale"), "Mine.\n"):
        card.write_text(edited, encoding="utf-8")
        loaded.save(card.parent)
        assert card.read_text(encoding="utf-8") == edited


def test_an_adapter_is_saved_even_if_its_card_fails(tmp_path: Path, monkeypatch: Any) -> None:
    """Components of plugins are asked for the card after hours of training."""

    def fail(*args: Any) -> None:
        raise RuntimeError("no network")

    loaded = load_model(adapter="full", purpose="train")
    said: list[str] = []
    monkeypatch.setattr(type(loaded.plan.context.progress), "say", lambda self, line: said.append(line))
    monkeypatch.setattr(type(loaded.plan.source), "path", property(fail))
    loaded.save(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "smollm3.json").exists()
    assert said == ["warning: the model card was not written: RuntimeError: no network"]


def test_a_card_of_another_type_is_refused_when_the_plugin_is_found() -> None:
    with pytest.raises(TypeError, match="card must be an AdapterCard"):
        AdapterSpec(name="x", summary="x", factory="x:X", api=2, card={"title": "X"})  # type: ignore[arg-type]


def test_a_comparison_of_the_held_out_losses_is_stated_with_its_interval() -> None:
    found = {"difference": -0.0341, "low": -0.045, "high": -0.0231, "verdict": "better", "rows": 1043}
    assert list(comparison_rows(found)) == [
        ("difference of the held-out losses", "-0.0341, 95 % interval from -0.0450 to -0.0231"),
        ("verdict", "better, on 1,043 held-out rows"),
    ]
    assert list(comparison_rows({"verdict": "cannot tell", "low": None})) == [("verdict", "cannot tell")]
    assert list(comparison_rows({})) == []
