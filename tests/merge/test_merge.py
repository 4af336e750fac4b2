"""`smollm3 merge`: the saved model computes what was trained, for every base; a wrong merge is refused and deleted."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import smollm3_finetune
from smollm3_finetune import load_model
from smollm3_finetune.api import AdapterSpec, ConfigError, Env, IncompatibleError, Op, Purpose
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import ADAPTER, QUANTIZER
from smollm3_finetune.components.negotiation import needed, pair_problem
from smollm3_finetune.components.selection import choose
from smollm3_finetune.errors import SmolLM3Error, WriteError
from smollm3_finetune.evaluation.row_losses import Loss
from smollm3_finetune.merge import gate, prediction
from smollm3_finetune.merge.card import card
from smollm3_finetune.merge.report import MergeSettings
from smollm3_finetune.merge.run import merge
from smollm3_finetune.model import compare
from smollm3_finetune.model.adapter_card import StatedTraining
from smollm3_finetune.model.load import build_context
from smollm3_finetune.model.plan import ModelRequest, plan_model, select_model
from smollm3_finetune.model_files import output, skeleton
from smollm3_finetune.model_files.card_mark import is_generated
from smollm3_finetune.model_files.card_metadata import metadata_fault
from smollm3_finetune.model_files.writing import copy_rest
from smollm3_finetune.quantize.requantize import choose_requantizer

HERE = Path(__file__).parents[1] / "out_of_tree"
NAMES = ("faulty_merges", "one_way_quantizer", "rounding_quantizer", "scale_adapter")
FILES = tuple(str(HERE / f"{name}.py") for name in NAMES)
FLAGS = tuple(word for file in FILES for word in ("-p", file))
TINY = Path(smollm3_finetune.__file__).parent / "builtin" / "tiny"
IDS = torch.randint(3, 2000, (6, 40), generator=torch.Generator().manual_seed(7))
"""240 positions, different from those of the gate."""
EXACT = 1e-4
NOISE = {"bnb-8bit": 2e-2}
"""The bound if the base rounds its activations."""


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model.eval()(input_ids=IDS, use_cache=False).logits
    return out.double()


def relative(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found - right).norm() / right.norm())


def trained(
    adapter: str, quant: str | None = None, model: str | Path = "tiny", push: float = 0.04, path: str = "adapter"
) -> tuple[torch.Tensor, float]:
    """Save an adapter far from its initial values; its logits on the base, and their distance from the base's."""
    alone = logits(load_model(model, quant=quant, plugins=FILES).model)
    loaded = load_model(model, quant=quant, adapter=adapter, purpose="train", plugins=FILES)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                size = 0.1 * float(parameter.abs().mean()) if adapter == "full" else push
                parameter.add_((size * torch.randn(parameter.shape, generator=generator)).to(parameter))
    loaded.save(Path(path))
    right = logits(loaded.model)
    return right, relative(right, alone)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved adapters by name; several tests merge them without changing them."""
    folder = tmp_path_factory.mktemp("saved")
    for name in ("delta", "bias-only"):
        trained(name, path=str(folder / name))
    return {name: folder / name for name in ("delta", "bias-only")}


def plain(path: str | Path) -> Any:
    """The model in a directory, loaded without this package."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32)


def nothing_at(directory: Path) -> bool:
    """Assert that there is no result, no partial result and no lock."""
    return not [p for p in directory.parent.iterdir() if directory.name in p.name]


PAIRS = [
    ("none", "full"),
    ("none", "scale"),
    ("none", "delta"),
    ("rows-int8", "scale"),
    ("rounding", "delta"),
    *(pytest.param(*pair, marks=pytest.mark.plugins) for pair in (("none", "lora"), ("bnb-4bit", "dora"))),
    *(
        pytest.param(*pair, marks=(pytest.mark.plugins, pytest.mark.long))
        for pair in (("none", "dora"), ("bnb-4bit", "lora"), ("bnb-8bit", "lora"), ("bnb-8bit", "dora"))
    ),
]


@pytest.mark.parametrize(("quant", "adapter"), PAIRS)
def test_the_merged_model_equals_the_adapter_on_its_base(quant: str, adapter: str, cli: Callable[..., Any]) -> None:
    right, moved = trained(adapter, quant)
    bound = NOISE.get(quant, EXACT)
    assert moved > 5 * bound, "an adapter that moves nothing shows nothing"
    done = cli(
        "merge", "tiny", "--adapter-path", "adapter", "--output", "merged", "--dtype", "float32", "--json", *FLAGS
    )
    assert done.code == 0, done.stderr
    model = plain("merged")
    assert relative(logits(model), right) <= bound
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert not [n for n, _ in model.named_modules() if "lora" in n or "base_layer" in n]
    report = json.loads(done.stdout)
    assert report["figures"]["positions"] >= 200
    assert report["figures"]["excess"] <= bound
    assert report["figures"]["moved"] == pytest.approx(moved, rel=0.5)
    assert report["parameters"] == sum(p.numel() for p in model.parameters())
    assert not list(Path().glob(".merged*")), "no part of it and no lock is left beside it"


def test_a_run_is_merged_into_a_model_that_answers(cli: Callable[..., Any], rows_file: Path) -> None:
    assert (
        cli("train", "--data", rows_file, "--adapter", "full", "--max-steps", "2", "--output", "r", "--lr", "1e-3").code
        == 0
    )
    done = cli("merge", "r")
    assert done.code == 0, done.stderr
    assert "r/merged" in done.stdout and "changes the logits" in done.stdout
    merged = Path("r/merged")
    config = json.loads((merged / "config.json").read_text())
    assert config["dtype"] == "bfloat16", "what the base was published in"
    assert config["tie_word_embeddings"] is True
    assert "quantization_config" not in config
    of_adapter = json.loads(Path("r/adapter/generation_config.json").read_text())
    assert json.loads((merged / "generation_config.json").read_text()) == of_adapter
    assert (merged / "chat_template.jinja").read_text() == Path("r/adapter/chat_template.jinja").read_text()
    about = json.loads((merged / "merge.json").read_text())
    assert about["fault"] is None and about["forced"] is False
    assert about["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    text = (merged / "README.md").read_text()
    assert "base_model" not in text, "tiny is no model of the Hub"
    for figure in ("moved", "merged", "drift", "base"):
        assert f"{about['figures'][figure]:.2g} |" in text
    assert metadata_fault(text) is None
    training = Path("r/adapter/README.md").read_text().partition("## Training")[2].strip()
    assert "| `rows.jsonl` | 3 | 1 | SHA-256 `" in training and text.endswith(
        f"## Training{chr(10)}{chr(10)}{training}\n"
    )
    assert is_generated(text) and not is_generated(text.replace("merged", "mixed"))
    pushed = cli("push", "r/merged", "me/x", "--dry-run", "--json").report()
    assert pushed["kind"] == "merged model" and pushed["left_out"] == []
    assert str(Path.cwd()) not in text + json.dumps(about), "a path of this machine does not go with a model"
    assert (merged / "model.safetensors").stat().st_mode == (merged / "config.json").stat().st_mode
    on_base = cli("generate", "r", "--prompt", "What is 2?", "--max-new-tokens", "12")
    alone = cli("generate", "r/merged", "--prompt", "What is 2?", "--max-new-tokens", "12")
    assert alone.code == 0, alone.stderr
    assert alone.stdout == on_base.stdout

    again = cli("merge", "r")
    assert again.code == 2
    assert "the output directory 'r/merged' already contains a model" in again.stderr
    assert "--adapter cannot be used with the run r: " in cli("merge", "r", "--output", "x", "--adapter", "full").stderr


FAULTS = [
    ("delta-transposed", "before saving, the merged model differs from the adapter on its base by"),
    ("delta-twice", "before saving, the merged model differs from the adapter on its base by"),
    ("delta-untied", "the base ties its output layer to its embeddings"),
    ("delta-infinite", "the merged model has weights that are infinite or nan: model.layers.0.self_attn.k_proj.weight"),
    (
        "delta-wrapped",
        "SmolLM3ForCausalLM has no place for these tensors of the merged model: model.layers.0.self_attn.k_proj.",
    ),
    ("bias-only", "no place for these tensors of the merged model: model.layers.0.self_attn.k_proj.bias, "),
    ("delta-nothing", "merge() returned NoneType"),
    ("delta-broken", "adapter 'delta-broken' (faulty_merges 0+"),
]


@pytest.mark.parametrize(("adapter", "message"), FAULTS, ids=[a for a, _ in FAULTS])
def test_a_wrong_merge_is_reported_and_deleted(
    adapter: str, message: str, cli: Callable[..., Any], saved: dict[str, Path]
) -> None:
    path = saved.get(adapter, saved["delta"])
    done = cli("merge", "tiny", "--adapter-path", path, "--adapter", adapter, "--output", "merged", *FLAGS)
    assert done.code in (3, 6, 7), done.stderr
    assert message in done.stderr, done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
    assert nothing_at(Path("merged"))


def test_a_wrong_merge_exceeds_the_bound_and_the_correct_one_does_not(
    cli: Callable[..., Any], saved: dict[str, Path]
) -> None:
    asked = ("merge", "tiny", "--adapter-path", saved["delta"], *FLAGS)
    assert cli(*asked, "--output", "right").code == 0
    done = cli(*asked, "--adapter", "delta-transposed", "--output", "wrong", "--force", "--json")
    assert json.loads(done.stdout)["figures"]["excess"] > 0.05


def biased_model(directory: Path) -> Path:
    """The embedded model with biases on its attention, none of them zero."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(str(TINY), attention_bias=True)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = {k: v.float() for k, v in plain(TINY).state_dict().items()}
    model.load_state_dict(state, strict=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    model.save_pretrained(str(directory))
    AutoTokenizer.from_pretrained(str(TINY)).save_pretrained(str(directory))
    return directory


def test_a_bias_that_cannot_be_saved_is_reported_and_others_are_merged(tmp_path: Path, cli: Callable[..., Any]) -> None:
    base = biased_model(tmp_path / "biased")
    right, moved = trained("delta", model=base)
    assert moved > 100 * EXACT
    done = cli("merge", base, "--adapter-path", "adapter", "--output", "merged", *FLAGS)
    assert done.code == 0, done.stderr
    assert json.loads(Path("merged/config.json").read_text())["dtype"] == "float32"
    assert relative(logits(plain("merged")), right) <= EXACT
    bare = ("--adapter", "delta-bare")
    done = cli("merge", base, "--adapter-path", "adapter", "--output", "bare", *bare, *FLAGS)
    assert done.code == 6
    lacks = "the merged model lacks tensors that a SmolLM3ForCausalLM has: model.layers.0.self_attn.k_proj.bias, "
    assert lacks in done.stderr
    assert nothing_at(Path("bare"))


def test_a_longer_context_is_saved_with_the_model(tmp_path: Path, cli: Callable[..., Any]) -> None:
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    longer = {"loader_options": {"context": 4096}}
    loaded = load_model(model, adapter="delta", purpose="train", plugins=FILES, **longer)
    with torch.no_grad():
        for delta in loaded.adapted.parts.values():  # type: ignore[union-attr]
            delta.add_(0.04)
    loaded.save(Path("adapter"))
    right = logits(loaded.model)
    asked = ("merge", model, "--adapter-path", "adapter", "--dtype", "float32", *FLAGS)
    done = cli(*asked, "--loader-opt", "context=4096", "--output", "long")
    assert done.code == 0, done.stderr
    alone = plain("long")
    assert alone.config.max_position_embeddings == 4096
    assert alone.config.rope_parameters["rope_type"] == "yarn"
    assert relative(logits(alone), right) <= EXACT


def test_a_stale_scale_is_distinguished_from_rounding_of_the_base(cli: Callable[..., Any]) -> None:
    trained("delta", "stale")
    done = cli("merge", "tiny", "--adapter-path", "adapter", "--output", "merged", "--json", *FLAGS)
    assert done.code == 6, done.stderr
    assert "quantizer 'stale' reads other weights than it multiplies by" in done.stderr
    assert nothing_at(Path("merged"))
    wide = ("--max-drift", "10")  # this option is about the merge and does not allow a stale scale
    assert cli("merge", "tiny", "--adapter-path", "adapter", "--output", "merged", *wide, *FLAGS).code == 6


def test_the_saved_model_is_loaded_again_and_compared(
    monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any], saved: dict[str, Path]
) -> None:
    from safetensors.torch import load_file, save_file

    from smollm3_finetune.merge import run

    honest = run.write_model

    def damaging(model: Any, tokenizer: Any, generation: Any, dtype: str, out: Path) -> None:
        honest(model, tokenizer, generation, dtype, out)
        file = out / "model.safetensors"
        state = load_file(str(file))
        state["model.layers.2.mlp.up_proj.weight"][3, 5] += 1
        save_file(state, str(file), metadata={"format": "pt"})

    monkeypatch.setattr(run, "write_model", damaging)
    done = cli("merge", "tiny", "--adapter-path", saved["delta"], "--output", "merged", *FLAGS)
    assert done.code == 6
    assert (
        "values of the merged model changed between saving and loading: model.layers.2.mlp.up_proj.weight"
        in done.stderr
    )
    assert nothing_at(Path("merged"))


def test_force_keeps_a_wrong_merge_with_a_warning(cli: Callable[..., Any], saved: dict[str, Path]) -> None:
    asked = ("merge", "tiny", "--adapter-path", saved["delta"], "--output", "merged", "--max-drift", "1e-12", *FLAGS)
    refused = cli(*asked)
    assert refused.code == 6
    assert "(limit 1e-12)" in refused.stderr
    assert "--force" in refused.stderr
    assert nothing_at(Path("merged"))
    forced = cli(*asked, "--force", "--json")
    assert forced.code == 0, forced.stderr
    assert "kept because of --force: before saving, the merged model differs" in forced.stderr
    report = json.loads(forced.stdout)
    assert report["forced"] is True and "(limit 1e-12)" in report["fault"]
    assert json.loads(Path("merged/merge.json").read_text())["forced"] is True
    assert f"**Kept with `--force` although the merge check failed:** {report['fault']}." in Path(
        "merged/README.md"
    ).read_text(encoding="utf-8")


def test_an_adapter_without_effect_is_merged_with_a_warning(cli: Callable[..., Any]) -> None:
    trained("delta", push=0.0)
    done = cli("merge", "tiny", "--adapter-path", "adapter", "--output", "merged", *FLAGS)
    assert done.code == 0
    assert "warning: the adapter changes nothing" in done.stderr
    assert "Note: the adapter changes nothing" in Path("merged/README.md").read_text(encoding="utf-8")


def test_the_merged_model_has_the_requested_dtype(cli: Callable[..., Any]) -> None:
    right, _ = trained("delta", push=0.2)
    sizes, errors = {}, {}
    for dtype, typed in (("float16", "half"), ("bfloat16", "bf16"), ("float64", "float64")):
        done = cli("merge", "tiny", "--adapter-path", "adapter", "--output", dtype, "--dtype", typed, "--json", *FLAGS)
        assert done.code == 0, done.stderr
        sizes[dtype] = Path(dtype, "model.safetensors").stat().st_size
        errors[dtype] = json.loads(done.stdout)["figures"]["drift"]
        assert json.loads(Path(dtype, "config.json").read_text())["dtype"] == dtype
    assert sizes["float64"] > 3.9 * sizes["float16"]
    assert errors["float64"] < 1e-5 < errors["float16"] < errors["bfloat16"] < 2e-2
    assert relative(logits(plain("float16")), right) < 2e-3
    done = cli("merge", "tiny", "--adapter-path", "adapter", "--output", "x", "--dtype", "int7", *FLAGS)
    assert done.code == 2
    assert "--dtype takes a torch dtype, got 'int7'" in done.stderr
    assert "one of: float64, float32, bfloat16, float16" in done.stderr
    done = cli("merge", "tiny", "--adapter-path", "adapter", "--output", "x", "--max-drift", "nan", *FLAGS)
    assert "'--max-drift': nan is not a number" in done.stderr


# ------------------------------------------------------------------------------------- before weights are read


def test_impossible_merges_are_refused_before_weights_are_read(
    model_directory: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    saved = Path("adapter")
    saved.mkdir()
    asked = ("merge", model_directory, "--adapter-path", saved, "--output", "merged", *FLAGS)
    done = cli(*asked, "--adapter", "delta-kept")
    assert done.code == 3
    assert "--adapter delta-kept cannot be merged: it does not change the model's weights" in done.stderr
    assert "smollm3 generate RUN" in done.stderr
    done = cli(*asked, "--adapter", "delta", "--quant", "sealed")
    assert done.code == 3
    assert (
        "merging --adapter delta needs operations that --quant sealed does not provide on cpu: read-weight "
        "(its codes stay on the accelerator)" in done.stderr
    )
    done = cli(*asked)
    assert done.code == 6
    assert "does not name its adapter method" in done.stderr
    for words, message in (
        (
            ("--adapter", "delta", "--requantize", "none"),
            "it does not quantize\n  hint: omit --requantize",
        ),
        (("--adapter", "delta", "--requantize", "roundng"), "did you mean 'rounding'?"),
        (("--adapter", "delta", "--requantize", "rounding", "--requantize-opt", "bits=9"), "--requantize-opt bits"),
        (("--adapter", "delta", "--requantize", "rounding-rows"), "needs calibration rows, but there are none"),
        (("--adapter", "delta", "--requantize-opt", "bits=4"), "--requantize-opt requires --requantize"),
        (("--adapter", "delta", "--keep-dense", "d"), "--keep-dense requires --requantize"),
    ):
        done = cli(*asked, *words)
        assert done.code in (2, 3), done.stderr
        assert message in done.stderr
    done = cli("merge", model_directory, "--output", "merged")
    assert "is not a run directory: it does not contain run.yaml" in done.stderr
    done = cli("merge", "tiny", "--output", "merged")
    assert "error: there is no run 'tiny', and merging into a model requires --adapter-path\n" in done.stderr
    done = cli("merge", model_directory, "--adapter-path", saved)
    assert "--output is required with --adapter-path" in done.stderr
    assert nothing_at(Path("merged"))


def test_merging_needs_read_weight_but_training_does_not() -> None:
    registry = discover(PluginSelection.of(FILES))
    adapter = choose(registry, ADAPTER, "delta", {})
    sealed = choose(registry, QUANTIZER, "sealed", {})
    assert Op.READ_WEIGHT not in needed(adapter, Env(device="cpu"))
    assert needed(adapter, Env(device="cpu", purpose=Purpose.MERGE)) == {Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT}
    assert pair_problem(registry, sealed, adapter, Env(device="cpu", purpose=Purpose.TRAIN)) is None
    problem = pair_problem(registry, sealed, adapter, Env(device="cpu", purpose=Purpose.MERGE))
    assert isinstance(problem, IncompatibleError)
    spec = AdapterSpec(name="kept", summary="", factory="x:Y", merges=False, api=2)
    kept = replace(adapter, component=replace(adapter.component, spec=spec))
    assert pair_problem(registry, sealed, kept, Env(device="cpu", purpose=Purpose.INFER)) is None


@pytest.mark.plugins
def test_a_method_without_a_merge_is_refused(cli: Callable[..., Any]) -> None:
    load_model("tiny", adapter="prompt-tuning", purpose="train").save(Path("adapter"))
    done = cli("merge", "tiny", "--adapter-path", "adapter", "--output", "merged")
    assert done.code == 3
    assert "--adapter prompt-tuning cannot be merged" in done.stderr


def test_an_adapter_of_another_base_is_refused_unless_any_base_is_given(cli: Callable[..., Any]) -> None:
    trained("delta", "rows-int8")
    asked = ("merge", "tiny", "--adapter-path", "adapter", "--output", "merged", "--quant", "none", *FLAGS)
    done = cli(*asked)
    assert done.code == 6
    assert "was not trained on the weights of 'tiny'" in done.stderr
    assert nothing_at(Path("merged"))
    done = cli(*asked, "--any-base")
    assert done.code == 0
    assert "warning: the adapter was trained on other weights than those of this base" in done.stderr
    assert "trained on the base" not in Path("merged/README.md").read_text(encoding="utf-8")


def test_existing_files_are_not_overwritten(cli: Callable[..., Any], saved: dict[str, Path]) -> None:
    full = Path("full")
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    Path("file").write_text("mine")
    asked = ("merge", "tiny", "--adapter-path", saved["delta"], *FLAGS)
    assert "the output directory 'full' is not empty" in cli(*asked, "--output", "full").stderr
    assert "--output file is not a directory" in cli(*asked, "--output", "file").stderr
    again = ("--requantize", "rounding", "--output", "out", "--keep-dense")
    assert "--keep-dense full is not empty" in cli(*asked, *again, "full").stderr
    assert "--keep-dense and --output must not contain each other" in cli(*asked, *again, "out").stderr
    assert (full / "mine.txt").read_text() == "mine" and Path("file").read_text() == "mine"
    assert nothing_at(Path("out"))
    Path("empty").mkdir()
    assert cli(*asked, "--output", "empty").code == 0
    assert Path("empty/model.safetensors").exists()


def test_too_little_disk_space_is_reported_before_weights_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from collections import namedtuple

    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    (model / "model.safetensors").write_bytes(b"not weights")
    config = json.loads((TINY / "config.json").read_text())
    parameters = sum(p.numel() for p in plain(TINY).parameters())
    assert skeleton.count_parameters(config) == parameters
    assert skeleton.count_parameters({"model_type": "nothing-of-the-kind"}) is None
    free = namedtuple("free", "total used free")(0, 0, 2 * parameters)
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    Path("adapter").mkdir()
    request = ModelRequest(ref=str(model), adapter_path=Path("adapter"), adapter=_named("delta"))
    registry = discover(PluginSelection.of(FILES))
    context = build_context(Purpose.MERGE, "cpu", "auto", 0)
    plan = plan_model(registry, select_model(registry, request), context)
    with pytest.raises(SmolLM3Error, match=r"the model in bfloat16 needs .* MB, but .* MB free"):
        merge(plan, MergeSettings(output=tmp_path / "deep" / "merged"))
    assert not (tmp_path / "deep").exists()


def _named(name: str) -> Any:
    from smollm3_finetune.config.schema import ComponentConfig

    return ComponentConfig(name=name)


# ------------------------------------------------------------------------------------------------ killed, and twice


def files_in_partials(folder: Path) -> set[str]:
    return {f.name for p in folder.glob(".merged.smollm3-partial-*") if p.is_dir() for f in list(p.iterdir())}


PARTS = (
    "config.json", "model.safetensors", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja",
    "generation_config.json", "README.md", "merge.json",
)  # fmt: skip
PARTIAL = ".merged.smollm3-partial-*"
MOMENTS = (".merged.smollm3-lock", PARTIAL, *(f"{PARTIAL}/{part}" for part in PARTS))
"""What is there when it is killed, in the order in which it comes to be."""


MERGER = """
import os, sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)  # what has started threads cannot be forked
from smollm3_finetune.api import Purpose
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.merge.run import MergeSettings, merge
from smollm3_finetune.model import compare
from smollm3_finetune.model.load import build_context
from smollm3_finetune.model.plan import ModelRequest, plan_model, select_model
request = ModelRequest(ref="tiny", adapter_path=Path("adapter"), purpose=Purpose.MERGE)
context = build_context(Purpose.MERGE, "cpu", "float32", 0)
registry = discover(PluginSelection.of(tuple(sys.argv[1:])))
plan = plan_model(registry, select_model(registry, request), context)
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            merge(plan, MergeSettings(output=Path("merged"), dtype="float32"))
            os._exit(0)
        finally:
            os._exit(1)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""For each line it reads: a process that merges, its id, and how that ended."""


@pytest.mark.long
def test_killed_at_ten_moments_a_merge_leaves_nothing_at_its_output(isolated: Path) -> None:
    right, _ = trained("delta")
    command = [sys.executable, "-c", MERGER, *FILES]
    left, ended = 0, []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as merger:
        assert merger.stdin is not None
        assert merger.stdout is not None
        for moment in (*MOMENTS, "no such moment"):
            merger.stdin.write("\n")
            child = int(merger.stdout.readline())
            until = time.monotonic() + 120
            while not any(isolated.glob(moment)) and not Path("merged").exists() and time.monotonic() < until:
                time.sleep(0.0005)
            if moment in MOMENTS:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            ended.append(int(merger.stdout.readline()))
            left += any(isolated.glob(PARTIAL))
            if Path("merged").exists():  # the merge ended before the kill: then it is complete
                assert relative(logits(plain(Path("merged"))), right) <= EXACT, moment
                if moment in MOMENTS:
                    shutil.rmtree("merged")
    assert ended.pop() == 0
    assert set(ended) <= {0, -signal.SIGKILL}, ended
    assert left >= 5, "the kills came too late to show anything"
    assert sorted(p.name for p in isolated.iterdir() if "merged" in p.name) == ["merged"]


@pytest.mark.long
def test_a_killed_command_leaves_nothing_at_its_output_and_the_next_one_completes(isolated: Path) -> None:
    right, _ = trained("delta")
    command = [sys.executable, "-m", "smollm3_finetune.main", "merge", "tiny", "--adapter-path", "adapter"]
    command += ["--output", "merged", "--dtype", "float32", *FLAGS]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=isolated)
    while process.poll() is None and "generation_config.json" not in files_in_partials(isolated):
        time.sleep(0.0005)
    process.kill()
    process.wait()
    assert not (isolated / "merged").exists()
    done = subprocess.run(command, capture_output=True, text=True, cwd=isolated, check=False)
    assert done.returncode == 0, done.stderr
    assert relative(logits(plain(isolated / "merged")), right) <= EXACT
    assert sorted(p.name for p in isolated.iterdir() if "merged" in p.name) == ["merged"]


def test_files_next_to_the_output_with_similar_names_are_kept(tmp_path: Path) -> None:
    there = tmp_path / "poetry"
    for name in ("poetry.lock", "poetry.partial-backup", ".poetry.smollm3-partial-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    with output.claimed(there):
        pass
    assert len(list(tmp_path.rglob("thesis.txt"))) == 3


def test_an_output_that_cannot_be_replaced_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="current directory"):
        output.check_vacant("--output", Path("."))
    with (
        pytest.raises(WriteError, match="cannot be written: File name too long"),
        output.partial(tmp_path / ("n" * 250)),
    ):
        pass


def test_only_files_of_the_model_are_copied(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    kept = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "LICENSE",
            "tokenizer.model", "vocab.txt", "merges.txt", "special_tokens_map.json", "preprocessor_config.json",
            "processor_config.json", "video_preprocessor_config.json", "chat_template.json"}  # fmt: skip
    for name in (
        *kept,
        "pytorch_model.bin",
        "optimizer.pt",
        "m.gguf",
        ".env",
        "calibration.json",
        "rows.jsonl",
        "upload.py",
    ):
        (tmp_path / name).write_text("x")
    copy_rest(tmp_path, out)
    assert {p.name for p in out.iterdir()} == kept
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoConfig": "own.Config"}}')
    (tmp_path / "own.py").write_text("x")
    copy_rest(tmp_path, out)
    assert {p.name for p in out.iterdir()} == {*kept, "own.py", "upload.py"}, "its code may import what lies beside it"


def test_only_files_beside_a_tokenizer_are_copied_to_a_model_that_has_its_own(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    kept = {"preprocessor_config.json", "processor_config.json", "LICENSE"}
    for name in (*kept, "vocab.txt", "added_tokens.json", "chat_template.json", "generation_config.json", "own.py",
                 ".env", "rows.jsonl"):  # fmt: skip
        (tmp_path / name).write_text("{}")
    copy_rest(tmp_path, out, tokenizer=False)
    assert {p.name for p in out.iterdir()} == kept
    (tmp_path / "processor_config.json").write_text('{"auto_map": {"AutoProcessor": "own.Processor"}}')
    copy_rest(tmp_path, out, tokenizer=False)
    assert {p.name for p in out.iterdir()} == {*kept, "own.py"}


def test_links_out_of_the_model_are_not_copied(tmp_path: Path) -> None:
    said: list[str] = []
    secret = tmp_path / "home" / "id_ed25519"
    secret.parent.mkdir()
    secret.write_text("secret")
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    out.mkdir()
    (model / "terms.md").write_text("terms")
    (model / "NOTICE").symlink_to("terms.md")
    (model / "LICENSE").symlink_to(secret)
    (model / "vocab.txt").symlink_to(Path("..") / "home" / "id_ed25519")
    (model / "merges.txt").symlink_to("gone.txt")
    (tmp_path / "linked").symlink_to(model)
    copy_rest(tmp_path / "linked", out, said.append)
    assert {p.name: p.read_text() for p in out.iterdir()} == {"NOTICE": "terms"}
    assert not (out / "NOTICE").is_symlink()
    assert said == [
        f"{tmp_path / 'linked' / name} is not copied: it is a link to a file outside of the model's directory"
        for name in ("LICENSE", "vocab.txt")
    ]


def test_links_of_the_hubs_cache_are_copied(tmp_path: Path) -> None:
    said: list[str] = []
    repository, other = tmp_path / "models--org--a", tmp_path / "models--org--b"
    snapshot, out = repository / "snapshots" / ("0" * 40), tmp_path / "out"
    for directory in (snapshot, repository / "blobs", other / "blobs", out):
        directory.mkdir(parents=True)
    (repository / "blobs" / "c0ffee").write_text("x")
    (other / "blobs" / "c0ffee").write_text("of another repository")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/c0ffee")
    (snapshot / "LICENSE").symlink_to("../../../models--org--b/blobs/c0ffee")
    copy_rest(snapshot, out, said.append)
    assert {p.name: p.read_text() for p in out.iterdir()} == {"tokenizer.json": "x"}
    assert len(said) == 1


def test_a_link_out_of_the_model_is_reported(cli: Callable[..., Any], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    (tmp_path / "secret").write_text("secret")
    (model / "LICENSE").symlink_to(tmp_path / "secret")
    result = cli("quantize", str(model), "--quant", "rounding", "--output", "written", *FLAGS)
    assert result.code == 0, result.stderr
    assert (
        f"{model / 'LICENSE'} is not copied: it is a link to a file outside of the model's directory" in result.stderr
    )
    assert not Path("written/LICENSE").exists()


def test_two_merges_cannot_write_to_the_same_directory(tmp_path: Path) -> None:
    there = tmp_path / "x [1]" / "merged"
    with output.claimed(there):
        live = there.with_name(".merged.smollm3-partial-0123abcd")
        live.mkdir()
        with pytest.raises(ConfigError, match="another process is writing to"), output.claimed(there):
            pass
        assert live.exists(), "what is under way is not swept"
        code = (
            "from pathlib import Path; from smollm3_finetune.model_files.output import claimed\n"
            f"with claimed(Path({str(there)!r})): pass"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "another process is writing" in done.stderr
    with output.claimed(there):
        assert not live.exists()
    assert not list(there.parent.iterdir())


def test_a_directory_that_is_filled_during_the_merge_is_not_changed(tmp_path: Path) -> None:
    there = tmp_path / "merged"
    with output.partial(there) as path:
        (path / "config.json").write_text("{}")
        there.mkdir()
        (there / "mine.txt").write_text("mine")
        with pytest.raises(ConfigError, match="cannot be written now"):
            output.publish(path, there)
    assert [p.name for p in tmp_path.iterdir() if "merged" in p.name] == ["merged"]
    assert (there / "mine.txt").read_text() == "mine"


# ---------------------------------------------------------------------------------------------------- quantized again


@pytest.mark.parametrize("quantizer", ["rounding", "rows-int8"])
def test_the_merged_model_is_quantized_again_by_quantizers_that_write_checkpoints(
    quantizer: str, cli: Callable[..., Any]
) -> None:
    right, moved = trained("delta", "rows-int8", push=0.2)
    asked = ("merge", "tiny", "--adapter-path", "adapter", "--output", "eight", "--dtype", "float32", *FLAGS)
    done = cli(*asked, "--requantize", quantizer, "--keep-dense", "dense", "--json")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    dense = logits(plain("dense"))
    assert relative(dense, right) <= EXACT
    assert not json.loads(Path("dense/config.json").read_text()).get("quantization_config")
    loaded = load_model("eight", plugins=FILES)
    assert loaded.plan.quantizer.component.spec.name == quantizer, "the checkpoint is recognized"
    measured = relative(logits(loaded.model), dense)
    assert 1e-5 < measured < 0.2 * moved
    assert report["requantized"]["drift"] == pytest.approx(measured, rel=0.5)
    assert report["output"] == "eight" and report["dense"] == "dense"
    text = Path("eight/README.md").read_text(encoding="utf-8")
    assert f"| the quantized checkpoint vs. the merged model | {report['requantized']['drift']:.2g} |" in text
    assert "quantized checkpoint" not in Path("dense/README.md").read_text(encoding="utf-8")
    assert json.loads(Path("eight/merge.json").read_text())["requantized"] == report["requantized"]
    reply = cli("generate", "eight", "--prompt", "What is 2?", "--max-new-tokens", "8", *FLAGS)
    assert reply.code == 0, reply.stderr
    assert sorted(p.name for p in Path().iterdir() if "partial" in p.name or "lock" in p.name) == []

    done = cli(*asked[:5], "coarse", *FLAGS, "--requantize", quantizer, "--requantize-opt", "bits=3", "--json")
    assert done.code == 0, done.stderr
    coarse = json.loads(done.stdout)["requantized"]
    assert coarse["options"] == {"bits": 3}
    assert coarse["drift"] > 5 * report["requantized"]["drift"], "reported, and not a reason to refuse"
    assert sorted(p.name for p in Path().iterdir()) == ["adapter", "coarse", "dense", "eight"]


def test_calibration_rows_are_passed_to_a_quantizer_that_needs_them(tmp_path: Path, saved: dict[str, Path]) -> None:
    asked: list[int] = []

    def calibration() -> Sequence[Sequence[int]]:
        asked.append(1)
        return [[5, 6, 7], [8, 9]]

    registry = discover(PluginSelection.of(FILES))
    with pytest.raises(ConfigError, match="needs calibration rows"):
        choose_requantizer(registry, "rounding-rows", {}, "cpu", has_rows=False)
    requantizer = choose_requantizer(registry, "rounding-rows", {"bits": 4}, "cpu", has_rows=True)
    context = build_context(Purpose.MERGE, "cpu", "auto", 0)
    plan = plan_model(registry, select_model(registry, ModelRequest(ref="tiny", adapter_path=saved["delta"])), context)
    report = merge(plan, MergeSettings(output=tmp_path / "four"), requantizer, calibration)
    assert asked == [1]
    about = json.loads((tmp_path / "four" / "config.json").read_text())["quantization_config"]
    assert about == {"quant_method": "rounding", "bits": 4, "tokens": 5}
    assert report["requantized"]["options"] == {"bits": 4}


def run_of(cli: Callable[..., Any], rows: Path, *more: Any) -> dict[str, Any]:
    """A run whose held-out loss falls clearly; its report."""
    quick = ("--max-steps", "4", "--lr", "1e-3", "--set", "train.sample_tokens=2", "--dtype", "float32")
    done = cli("train", "--data", rows, "--adapter", "full", *quick, "--output", "r", "--json", *more)
    assert done.code == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_requantizing_says_what_it_costs_on_the_held_out_rows(cli: Callable[..., Any], rows_file: Path) -> None:
    trained_to = run_of(cli, rows_file)["after"]
    asked = ("merge", "r", "--dtype", "float32", "--requantize", "rounding", *FLAGS)
    done = cli(*asked, "--output", "eight")
    assert done.code == 0, done.stderr
    assert "warning" not in done.stderr
    fine = json.loads(Path("eight/merge.json").read_text())["requantized"]["predictions"]
    assert fine["rows"] == "held-out rows of the run" and fine["row_count"] == 1
    assert fine["loss_before"] == pytest.approx(trained_to["held_out_loss"], rel=1e-4), "the loss of the run's report"
    assert fine["perplexity_before"] == pytest.approx(trained_to["perplexity"], rel=1e-3)
    assert fine["loss_after"] == pytest.approx(fine["loss_before"], abs=prediction.HARMLESS)
    assert fine["warning"] is None
    assert (
        f"perplexity     {fine['perplexity_before']:.4g} merged, {fine['perplexity_after']:.4g} quantized"
        in done.stdout
    )
    assert "the checkpoint predicts these rows as well as the merged model" in done.stdout
    assert f"{fine['perplexity_after']:.4g} for the quantized checkpoint" in Path("eight/README.md").read_text()

    done = cli(*asked, "--output", "two", "--requantize-opt", "bits=2")
    assert done.code == 0, "the checkpoint is kept: it is what was asked for"
    coarse = json.loads(Path("two/merge.json").read_text())
    found = coarse["requantized"]["predictions"]
    assert found["loss_before"] == fine["loss_before"]
    assert found["loss_after"] > found["loss_before"] + prediction.UNUSABLE
    assert "its answers may be unusable" in done.stdout
    assert "warning: the checkpoint predicts these rows much worse than the merged model" in done.stderr
    assert coarse["warnings"] == [found["warning"]]
    assert "Note: the checkpoint predicts these rows much worse" in Path("two/README.md").read_text()


def test_only_the_rows_that_are_needed_are_read(cli: Callable[..., Any], rows_file: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    shutil.copy(rows_file, own)
    run_of(cli, rows_file, "--set", f"calibration.path={own}")
    own.unlink()
    done = cli("merge", "r", "--output", "a", "--requantize", "rounding", *FLAGS)
    assert done.code == 0, "this quantizer needs no calibration rows: " + done.stderr
    assert "held-out rows of the run" in done.stdout
    needed_here = cli("merge", "r", "--output", "b", "--requantize", "rounding-rows", *FLAGS)
    assert needed_here.code != 0 and "own.jsonl" in needed_here.stderr
    rows_file.unlink()
    dense = cli("merge", "r", "--output", "c")
    assert dense.code == 0, "without --requantize no row is read: " + dense.stderr
    done = cli("merge", "r", "--output", "d", "--requantize", "rounding", *FLAGS)
    assert done.code == 0, done.stderr
    assert "the held-out rows of the run are not available" in done.stderr and "rows.jsonl" in done.stderr
    assert json.loads(Path("d/merge.json").read_text())["requantized"]["predictions"]["rows"] == "fixed texts"


def test_a_model_without_a_run_is_measured_on_fixed_texts(cli: Callable[..., Any], saved: dict[str, Path]) -> None:
    target = ("merge", "tiny", "--adapter-path", saved["delta"], "--requantize", "rounding", *FLAGS)
    done = cli(*target, "--output", "x", "--json")
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)["requantized"]["predictions"]
    assert (found["rows"], found["row_count"]) == ("fixed texts", 3)
    assert found["tokens"] > 100


def test_a_loss_that_is_not_finite_is_the_worst() -> None:
    rows = prediction.PredictedRows(title="rows", rows=[])
    found = prediction.predictions(rows, Loss(10.0, 10), Loss(float("nan"), 10))
    assert found["loss_after"] is None and found["perplexity_after"] is None
    assert found["warning"] is not None
    huge = prediction.predictions(rows, Loss(10.0, 10), Loss(1e5, 10))
    assert huge["perplexity_after"] is None and huge["warning"] is not None
    assert prediction.predictions(rows, Loss(), Loss())["warning"] is None


# --------------------------------------------------------------------------------------------------------- the gate


def test_the_prompts_are_fixed_and_many() -> None:
    tokenizer = load_model().tokenizer
    rows = gate.fixed_rows(tokenizer, 2048)
    assert rows == gate.fixed_rows(tokenizer, 2048)
    assert sum(map(len, rows)) >= 200
    assert max(map(len, rows)) <= gate.ROW
    assert all(0 <= i < 100 for row in gate.fixed_rows(tokenizer, 100) for i in row)
    assert len({i for row in rows for i in row}) > 200


def test_the_bounds_depend_on_the_dtypes_and_the_rounding_of_the_base() -> None:
    exact = gate.Limits.of("float32", "float32", 0.0, None)
    assert (exact.dense, exact.merged, exact.excess) == (1e-4, 1e-4, 1e-4)
    rounded = gate.Limits.of("float32", "bfloat16", 0.0, None)
    assert rounded.merged == 1e-4, "rounding comes after the merge"
    assert rounded.excess == gate.ROUNDING["bfloat16"]
    assert gate.Limits.of("bfloat16", "float32", 0.0, None).merged == gate.ROUNDING["bfloat16"]
    assert gate.Limits.of("float32", "float32", 0.1, None).excess == pytest.approx(2e-2, rel=0.01)
    own = gate.Limits.of("float32", "bfloat16", 0.1, 1e-3)
    assert (own.merged, own.excess) == (1e-3, 1e-3)


def test_a_figure_that_is_not_finite_fails_the_gate() -> None:
    limits = gate.Limits.of("float32", "float32", 0.0, None)
    good = {"positions": 1, "moved": 0.1, "dense": 0.0, "merged": 1e-7, "base": 0.0, "drift": 1e-7}
    assert gate.fault(gate.Figures(**good), limits, "q") is None
    for name in ("dense", "merged", "drift"):
        for bad in (float("nan"), float("inf"), 0.5):
            assert gate.fault(gate.Figures(**{**good, name: bad}), limits, "q") is not None, (name, bad)
    less = gate.Figures(**{**good, "base": 0.4, "drift": 0.3})
    assert less.excess == 0.0
    same = [torch.ones(2, 3)]
    assert compare.drift(same, same) == 0.0
    assert compare.drift([torch.ones(2, 3) * 1.5], same) == pytest.approx(0.5)


def test_a_card_links_only_to_a_base_on_the_hub() -> None:
    about = {
        "title": "t", "model": "HuggingFaceTB/SmolLM3-3B", "license": {"license": "apache-2.0"},
        "quantizer": "none", "adapter": "scale",
        "adapter_options": {"layers": ["a", "b"]}, "dtype": "bfloat16", "parameters": 12, "forced": False,
        "fault": None, "warnings": [], "requantized": None, "own_base": True,
        "figures": {"positions": 1, "moved": 0.5, "merged": 1e-7, "drift": None, "base": 0.0},
    }  # fmt: skip
    text = card(about, StatedTraining(datasets=["acme/rows"], section="## Training\n\nText."))
    assert metadata_fault(text) is None
    assert "base_model: HuggingFaceTB/SmolLM3-3B\n" in text and "base_model_relation: finetune\n" in text
    assert "datasets:\n- acme/rows\n" in text and text.endswith("\n\n## Training\n\nText.\n")
    assert "license: apache-2.0" in text
    assert "(layers=a,b), trained on the base (unquantized)" in text
    assert "| not a number |" in text
    assert "base_model" not in card({**about, "model": "tiny"})
    assert "trained on the base" not in card({**about, "own_base": None})


def test_nothing_heavy_is_imported_for_help() -> None:
    code = "import smollm3_finetune.cli.commands.merge, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})
