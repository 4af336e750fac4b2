"""`train --from` and `--fresh-adapter`: an adapter is trained further, or merged before a new one is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from smollm3_finetune import finetune, load_model
from smollm3_finetune.data.chat_template.renderer import Renderer, RenderOptions
from smollm3_finetune.runs.rundir import RunDir

SCALE = str(Path(__file__).parents[1] / "out_of_tree" / "scale_adapter.py")
Cli = Callable[..., Any]
Sft = Callable[[str], None]
FAST = {"max_steps": 2, "sample_tokens": 1, "warmup": 0, "schedule": "constant", "report": False}
PLUGIN = pytest.mark.plugins


def row(word: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"Say {word}."}, {"role": "assistant", "content": f"{word}!"}]}


@pytest.fixture(autouse=True)
def rows(isolated: Path) -> None:
    for name in ("red", "blue", "held"):
        Path(f"{name}.jsonl").write_text(json.dumps(row(name)) + "\n")


def train(output: str, data: str = "red", train: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    about = {"path": f"{data}.jsonl", "validation": "held.jsonl"}
    settings = {**FAST, **(train or {})}
    return finetune(output=output, data=about, train=settings, plugins=[SCALE], quiet=True, **more)


BUILT: dict[str, Path] = {}


@pytest.fixture
def sft(tmp_path_factory: pytest.TempPathFactory) -> Sft:
    """Trains `sft` with an adapter, once for all tests, and copies it into the working directory."""

    def make(adapter: str) -> None:
        if adapter not in BUILT:
            train("sft", adapter=adapter)
            BUILT[adapter] = tmp_path_factory.mktemp("built") / adapter
            shutil.copytree("sft", BUILT[adapter])
        else:
            shutil.copytree(BUILT[adapter], "sft")

    return make


def tensors(directory: str | Path) -> dict[str, torch.Tensor]:
    files = sorted(Path(directory).glob("*.safetensors"))
    assert files
    return {name: value for file in files for name, value in load_file(file).items()}


def same(one: str, other: str) -> bool:
    left, right = tensors(one), tensors(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("quant", "adapter"),
    [
        ("none", "scale"),
        ("none", "full"),
        pytest.param("none", "lora", marks=PLUGIN),
        pytest.param("bnb-4bit", "dora", marks=PLUGIN),
        pytest.param("none", "dora", marks=[PLUGIN, pytest.mark.long]),
        pytest.param("bnb-4bit", "lora", marks=[PLUGIN, pytest.mark.long]),
        pytest.param("bnb-4bit", "scale", marks=[PLUGIN, pytest.mark.long]),
        pytest.param("gptq", "lora", marks=[PLUGIN, pytest.mark.long]),
        pytest.param("gptq", "scale", marks=[PLUGIN, pytest.mark.long]),
    ],
)
def test_going_on_equals_the_same_steps_by_hand(quant: str, adapter: str) -> None:
    """The saved adapter is loaded and trained in a loop of plain torch, on other rows with another learning rate."""
    first = train("sft", adapter=adapter, quant=quant, calibration={"rows": 8} if quant == "gptq" else None)
    second = train("on", "blue", {"learning_rate": 1e-3, "logits": "all", "padding": "always"}, start_from="sft")
    before, after = second["before"]["held_out_loss"], first["after"]["held_out_loss"]
    assert before == pytest.approx(after, rel=1e-6), "it begins with the trained adapter"

    loaded = load_model("tiny", adapter_path="sft/adapter", purpose="train", plugins=(SCALE,), dtype="float32")
    renderer = Renderer(loaded.plan.tokenizer(), RenderOptions(date="2026-01-01"))
    encoded = renderer.encode(_conversation("blue"), 1024)
    ids, labels = torch.tensor([encoded.input_ids]), torch.tensor([encoded.labels])
    trained = [p for p in loaded.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    loaded.model.train()
    for step in (1, 2):
        count = (labels != -100).sum()
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        loaded.model(**batch, num_items_in_batch=count, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        loaded.adapted.on_step(step)  # type: ignore[union-attr]
        optimizer.zero_grad()
    loaded.save("by-hand")
    assert same("on/adapter", "by-hand"), "bit for bit"
    assert not same("on/adapter", "sft/adapter")


def _conversation(word: str) -> Any:
    from smollm3_finetune.api import Conversation

    return Conversation(messages=row(word)["messages"])


def test_every_record_of_a_run_states_where_its_weights_come_from(cli: Cli, sft: Sft) -> None:
    sft("full")
    report = train("dpo", "blue", start_from="sft")
    about = report["from"]
    assert (about["step"], about["objective"], about["chain"]) == (2, "sft", "sft → sft")
    assert about["path"] == str(Path("sft/adapter").absolute())
    assert report == json.loads(Path("dpo/report.json").read_text())
    shown = cli("runs", "show", "dpo").stdout
    assert f"from           {Path('sft').absolute()} (sft → sft)" in shown
    card = Path("dpo/adapter/README.md").read_text()
    weights = about["fingerprint"][:16]
    assert f"| starts from | the adapter of `sft`, step 2, trained further; weights `{weights}` |" in card
    assert str(Path.cwd()) not in card
    assert f"from: {Path('sft').absolute()}" in Path("dpo/run.yaml").read_text()
    shutil.copytree("dpo/adapter", "moved")  # without its run
    assert train("third", start_from="moved")["from"]["chain"] == "sft → sft → sft"
    steps = [(s["run"], s["step"]) for s in json.loads(Path("third/adapter/smollm3.json").read_text())["stages"]]
    assert steps == [("sft", 2), ("dpo", 2), ("third", 2)]


def test_the_configuration_of_a_run_repeats_it(cli: Cli, sft: Sft) -> None:
    sft("scale")
    first = train("on", "blue", start_from="sft")
    again = cli("train", "--config", "on/run.yaml", "-p", SCALE, "--output", "again", "--json").report()
    assert again["after"] == first["after"]
    assert same("on/adapter", "again/adapter")


@pytest.mark.parametrize(
    "adapter",
    [
        "scale",
        pytest.param("full", marks=pytest.mark.long),
        pytest.param("lora", marks=[PLUGIN, pytest.mark.long]),
    ],
)
def test_a_resumed_run_needs_no_earlier_run(adapter: str, sft: Sft) -> None:
    sft(adapter)
    whole = train("whole", "blue", {"max_steps": 3}, start_from="sft")
    train("part", "blue", {"max_steps": 1, "save_every": 1}, start_from="sft")
    shutil.rmtree("sft")
    resumed = finetune(resume="part", train={"max_steps": 3}, plugins=[SCALE], quiet=True)
    assert resumed["after"] == whole["after"] and resumed["before"] == whole["before"]
    assert resumed["from"] == whole["from"]
    assert same("part/adapter", "whole/adapter")


def test_a_resumed_run_needs_its_record_of_what_it_started_from(sft: Sft, cli: Cli) -> None:
    """Without it, the reference of its objective would be the base instead of its start."""
    sft("scale")
    train("on", "blue", {"max_steps": 1, "save_every": 1}, start_from="sft")
    file = Path("on/versions.json")
    whole = json.loads(file.read_text())
    damaged = [{**whole, "from": {**whole["from"], "stages": []}}, {k: v for k, v in whole.items() if k != "from"}]
    for about in damaged:
        file.write_text(json.dumps(about))
        refused = cli("train", "--resume", "on", "--max-steps", "3", "-p", SCALE)
        assert refused.code != 0
        assert refused.stderr.splitlines() == [
            f"error: the run on started from {Path('sft').absolute()}, but on/versions.json has no usable entry 'from' "
            "about it",
            "  hint: restore versions.json, or start a new run: smollm3 train --config on/run.yaml",
        ]


def test_a_run_that_was_stopped_is_found_by_its_configuration(sft: Sft) -> None:
    sft("scale")
    train("runs/part", "blue", {"max_steps": 1, "save_every": 1}, start_from="sft")
    for name in ("report.json", "trained.json"):
        Path("runs/part", name).unlink()
    shutil.rmtree("runs/part/adapter")
    shutil.rmtree("sft")
    more = {"path": "blue.jsonl", "validation": "held.jsonl"}
    settings = {**FAST, "max_steps": 1, "save_every": 1}
    report = finetune(start_from="sft", data=more, train=settings, resume="auto", plugins=[SCALE], quiet=True)
    assert report["run"] == "runs/part"


@pytest.mark.parametrize("adapter", [pytest.param("full", marks=pytest.mark.long), pytest.param("lora", marks=PLUGIN)])
def test_changes_of_the_earlier_run_do_no_harm(adapter: str, monkeypatch: pytest.MonkeyPatch, sft: Sft) -> None:
    """Its files are overwritten in place, then deleted, while the second run trains."""
    from smollm3_finetune.train import loop

    sft(adapter)
    expected = train("undisturbed", "blue", start_from="sft")
    take_steps = loop.take_steps

    def disturbed(*args: Any) -> Any:
        for file in Path("sft/adapter").iterdir():
            with file.open("r+b") as stream:
                stream.write(bytes(file.stat().st_size))
        shutil.rmtree("sft")
        return take_steps(*args)

    monkeypatch.setattr(loop, "take_steps", disturbed)
    assert train("on", "blue", start_from="sft")["after"] == expected["after"]
    assert same("on/adapter", "undisturbed/adapter")


def test_the_chat_template_of_the_adapter_is_used_unless_another_is_named(cli: Cli) -> None:
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    Path("template.jinja").write_text(template)
    about = {"path": "red.jsonl", "validation": "held.jsonl", "template": "template.jinja"}
    finetune(output="sft", adapter="scale", data=about, train=FAST, plugins=[SCALE], quiet=True)
    Path("template.jinja").unlink()
    train("on", "blue", start_from="sft")
    assert Path("on/adapter/chat_template.jinja").read_text() == template
    preview = cli("data", "preview", "--from", "sft", "--data", "blue.jsonl", "-p", SCALE)
    assert "[user]Say blue." in preview.stdout, preview.stderr
    Path("other.jinja").write_text(template.replace("[", "{").replace("]", "}").replace("{{m", "{{ m"))


# ------------------------------------------------------------------------------------------------------ a new adapter


@pytest.mark.parametrize("adapter", ["scale", pytest.param("dora", marks=[PLUGIN, pytest.mark.long])])
def test_a_fresh_adapter_equals_a_merge_and_then_a_run(cli: Cli, adapter: str, sft: Sft) -> None:
    sft(adapter)
    merged = cli("merge", "sft", "--output", "merged", "--dtype", "float32", "-p", SCALE)
    assert merged.code == 0, merged.stderr
    by_hand = train("by-hand", "blue", model="merged", adapter="scale")
    report = train("on", "blue", start_from="sft", fresh_adapter=True, adapter="scale")
    assert same("on/base", "merged"), "it is the merged model"
    for when in ("before", "after"):
        assert report[when]["held_out_loss"] == by_hand[when]["held_out_loss"]
    assert same("on/adapter", "by-hand/adapter")
    assert report["from"]["chain"] == "sft, merged → sft" and "merged base in float32" in report["from"]["own_base"]
    card = Path("on/adapter/README.md").read_text()
    assert "# tiny (merged), scale adapter" in card and "`tiny` with the merged adapter of `sft`" in card


def test_a_run_with_a_fresh_adapter_owns_its_base(cli: Cli, sft: Sft) -> None:
    """The first run is deleted and the second one moved; it is resumed, used, and trained further."""
    sft("scale")
    whole = train("whole", "blue", {"max_steps": 3}, start_from="sft", fresh_adapter=True, adapter="scale")
    train("part", "blue", {"max_steps": 1, "save_every": 1}, start_from="sft", fresh_adapter=True, adapter="scale")
    shutil.rmtree("sft")
    Path("part").rename("moved")
    resumed = finetune(resume="moved", train={"max_steps": 3}, plugins=[SCALE], quiet=True)
    assert resumed["after"] == whole["after"] and same("moved/adapter", "whole/adapter")
    answer = cli("generate", "moved", "-p", SCALE, "--prompt", "Say red.", "--max-new-tokens", "1")
    assert answer.code == 0, answer.stderr
    further = train("further", start_from="moved")
    assert further["before"]["held_out_loss"] == resumed["after"]["held_out_loss"]
    shutil.rmtree("moved")
    assert same("further/base", "whole/base")
    assert finetune(resume="further", train={"max_steps": 3}, plugins=[SCALE], quiet=True)["steps"] == 3


def test_a_merge_that_is_refused_leaves_no_run(cli: Cli, monkeypatch: pytest.MonkeyPatch, sft: Sft) -> None:
    sft("scale")
    monkeypatch.setattr("smollm3_finetune.merge.report.fault", lambda *args: "the error is too large")
    refused = cli("train", "--from", "sft", "--fresh-adapter", "--adapter", "scale", "-p", SCALE, "--output", "on",
                  "--data", "red.jsonl", "--validation", "held.jsonl", "--max-steps", "1")  # fmt: skip
    assert refused.code == 6
    assert "error: the merge was refused and nothing was kept: the error is too large" in refused.stderr
    assert "smollm3 merge sft --output DIR" in refused.stderr
    assert not Path("on").exists()


def test_the_plan_shows_what_a_run_starts_from(cli: Cli, sft: Sft) -> None:
    sft("scale")
    shown = cli("train", "--from", "sft", "--fresh-adapter", "--adapter", "scale", "-p", SCALE, "--dry-run",
                "--data", "red.jsonl", "--validation", "held.jsonl", "--output", "on")  # fmt: skip
    assert shown.code == 0, shown.stderr
    lines, sft = shown.stdout.splitlines(), Path("sft").absolute()
    assert f"# from     {sft} (sft, scale, step 2): it is merged, and a new adapter is trained" in lines
    assert "# base     on/base: merged base in float32, 7.3 MB" in lines
    valid = cli("config", "validate", "--from", "sft", "-p", SCALE, "--data", "red.jsonl", "--validation", "held.jsonl")
    assert valid.code == 0 and "adapter scale" in valid.stdout, valid.stderr


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.fixture
def refused(cli: Cli) -> Callable[..., tuple[str, str]]:
    """The sentence and the hint with which `train` refuses; no rows are read: their file is not valid."""
    Path("broken.jsonl").write_text("{")

    def refuse(*args: str) -> tuple[str, str]:
        result = cli("train", "-p", SCALE, *(("--data", "broken.jsonl") if "--resume" not in args else ()), *args)
        assert result.code not in (0, 1), result.stderr
        lines = result.stderr.strip().splitlines()
        assert len(lines) == 2 and "broken.jsonl" not in result.stderr, result.stderr
        return lines[0].removeprefix("error: "), lines[1].strip().removeprefix("hint: ")

    return refuse


def test_what_is_not_a_run_or_an_adapter_is_refused(refused: Callable[..., tuple[str, str]], sft: Sft) -> None:
    sft("scale")
    assert refused("--from", "stf") == (
        "--from stf: there is no such run or adapter",
        "to see the runs: smollm3 runs list",
    )
    assert refused("--from", "red.jsonl")[0] == "--from red.jsonl is a file, not a run or an adapter"
    Path("empty").mkdir()
    Path("empty/x").touch()
    assert refused("--from", "empty")[0] == "--from empty is neither a run nor a saved adapter"
    inside = refused("--from", "sft/checkpoints")
    assert inside[1] == "it is inside a run: --from sft"
    assert refused("--fresh-adapter") == (
        "--fresh-adapter needs a run or an adapter to merge", "--from RUN --fresh-adapter",
    )  # fmt: skip
    both = refused("--resume", "sft", "--from", "sft")
    assert both[0] == "--from starts a new run, so it cannot be used with --resume, which continues one"


def test_an_unfinished_run_offers_its_checkpoint(refused: Callable[..., tuple[str, str]]) -> None:
    train("part", adapter="scale", train={"save_every": 1})
    shutil.rmtree("part/adapter")
    sentence, hint = refused("--from", "part")
    assert sentence == "the run part has not finished: it contains no adapter"
    assert hint == (
        "to finish it: smollm3 train --resume part; to start from step 2: --from part/checkpoints/checkpoint-2"
    )
    report = train("on", start_from="part/checkpoints/checkpoint-1")
    assert (report["from"]["step"], report["from"]["run"]) == (1, str(Path("part").absolute()))


@pytest.mark.parametrize("output", ["part", "./link"])
def test_a_run_does_not_replace_the_adapter_that_it_starts_from(
    refused: Callable[..., tuple[str, str]], sft: Sft, output: str
) -> None:
    """A run that was killed before its first checkpoint is replaced by the next one in its directory."""
    sft("scale")
    best = Path("part/checkpoints/best-1")
    best.parent.mkdir(parents=True)
    shutil.copytree("sft/adapter", best)
    for name in ("run.yaml", "versions.json"):
        shutil.copy(Path("sft", name), "part")
    assert RunDir(Path("part")).holds_nothing()
    Path("link").symlink_to("part")
    sentence, hint = refused("--from", str(best), "--output", output)
    assert sentence == (
        f"--from {best} is inside the directory of the new run, {Path(output)}, whose files are replaced"
    )
    assert hint == f"--output {Path(output)}-2"
    assert (best / "adapter.safetensors").is_file()


def test_a_damaged_adapter_is_refused(refused: Callable[..., tuple[str, str]], sft: Sft) -> None:
    sft("scale")
    file = Path("sft/adapter/adapter.safetensors")
    values = load_file(file)
    save_file({name: value + 1 for name, value in values.items()}, file)
    assert "adapter.safetensors differs from its checksum" in refused("--from", "sft")[0]


def test_another_method_and_other_options_are_refused(refused: Callable[..., tuple[str, str]], sft: Sft) -> None:
    sft("scale")
    omit = "omit it; to merge the adapter and train a new one: --fresh-adapter"
    assert refused("--from", "sft", "--adapter", "full") == (
        "--adapter: the adapter of sft is 'scale', and cannot be trained further as 'full'", omit,
    )  # fmt: skip
    assert refused("--from", "sft", "--adapter-opt", "layers=q_proj") == (
        "--adapter-opt layers: the adapter of sft has layers=o_proj, which cannot change to q_proj", omit,
    )  # fmt: skip


def test_an_adapter_of_another_base_is_refused(refused: Callable[..., tuple[str, str]], cli: Cli, sft: Sft) -> None:
    sft("scale")
    assert cli("merge", "sft", "--output", "merged", "-p", SCALE).code == 0
    sentence, hint = refused("--from", "sft", "--model", "merged")
    assert sentence.startswith("the adapter of sft was trained on other weights than those of 'merged': expected the")
    assert hint == "omit --model"


def test_a_plugin_file_must_be_passed_again(cli: Cli, sft: Sft) -> None:
    sft("scale")
    refused = cli("train", "--from", "sft", "--data", "red.jsonl")
    assert refused.code == 2 and f"hint: pass it again: -p {SCALE}" in refused.stderr, refused.stderr


@PLUGIN
def test_the_rank_of_lora_may_not_change_but_its_dropout_may(refused: Callable[..., tuple[str, str]]) -> None:
    train("sft", adapter={"name": "lora", "rank": 4})
    assert refused("--from", "sft", "--adapter-opt", "rank=8")[0] == (
        "--adapter-opt rank: the adapter of sft has rank=4, which cannot change to 8"
    )
    train("on", start_from="sft", adapter={"dropout": 0.25})
    saved = json.loads(Path("on/adapter/adapter_config.json").read_text())
    assert (saved["r"], saved["lora_dropout"]) == (4, 0.25)
    options = json.loads(Path("on/adapter/smollm3.json").read_text())["adapter"]
    assert (options["rank"], options["dropout"]) == (4, 0.25)


@PLUGIN
def test_an_adapter_of_peft_is_trained_further(refused: Callable[..., tuple[str, str]]) -> None:
    """Without `smollm3.json`, its options are those of its own config."""
    train("sft", adapter={"name": "lora", "rank": 4, "target_modules": ["q_proj", "v_proj"]})
    Path("peft").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(f"sft/adapter/{name}", "peft")
    report = train("on", start_from="peft")
    options = json.loads(Path("on/adapter/smollm3.json").read_text())["adapter"]
    assert (options["rank"], sorted(options["target_modules"])) == (4, ["q_proj", "v_proj"])
    assert (report["from"]["adapter"], report["from"]["base"]) == ("lora", "tiny")
    assert refused("--from", "peft", "--adapter-opt", "rank=8")[0] == (
        "--adapter-opt rank: the adapter of peft has rank=4, which cannot change to 8"
    )


def test_prune_keeps_the_checkpoint_from_which_another_run_started(cli: Cli) -> None:
    train("runs/sft", adapter="scale", train={"save_every": 1})
    train("runs/on", start_from="runs/sft/checkpoints/checkpoint-1")
    pruned = cli("runs", "prune", "--yes")
    assert "kept: runs/sft: checkpoint-1: runs/on started from it" in pruned.stdout
    assert [p.name for p in Path("runs/sft/checkpoints").iterdir()] == ["checkpoint-1"]
    assert RunDir(Path("runs/sft")).saved.all()[0].damage() is None


def test_a_run_that_was_killed_while_it_merged_is_started_again(sft: Sft, cli: Cli) -> None:
    """What a killed process leaves: a run before its first checkpoint, with an unfinished base."""
    sft("scale")
    command = ("train", "--from", "sft", "--fresh-adapter", "--adapter", "scale", "-p", SCALE, "--output", "on",
               "--data", "blue.jsonl", "--validation", "held.jsonl", "--max-steps", "1", "--json")  # fmt: skip
    first = cli(*command).report()
    for left in ("adapter", "base", "checkpoints"):
        shutil.rmtree(Path("on", left))
    for left in ("report.json", "trained.json", "before.json", "metrics.jsonl", "report.html"):
        Path("on", left).unlink()
    Path("on/.smollm3-lock").touch()
    Path("on/.base.smollm3-lock").touch()
    Path("on/.base.smollm3-partial-0123abcd").mkdir()
    Path("on/.base.smollm3-partial-0123abcd/config.json").write_text("{")
    again = cli(*command)
    assert again.code == 0, again.stderr
    assert again.report()["after"] == first["after"]
    assert not [p.name for p in Path("on").iterdir() if p.name.startswith(".")]


@PLUGIN
def test_a_quantizer_that_the_new_adapter_cannot_use_is_left_out(cli: Cli) -> None:
    train("sft", adapter="scale", quant="bnb-4bit")
    command = ("train", "--from", "sft", "--fresh-adapter", "--adapter", "full", "-p", SCALE, "--dry-run", "--json",
               "--data", "blue.jsonl", "--validation", "held.jsonl")  # fmt: skip
    planned = cli(*command)
    assert planned.report()["config"]["quant"]["name"] == "smollm3-finetune:none"
    assert "the merged model is not quantized: --adapter full needs operations that --quant bnb-4bit" in planned.stderr
    stated = cli(*command, "--quant", "bnb-4bit")
    assert stated.code == 3 and "--adapter full needs operations" in stated.stderr
    refused = cli("train", "--from", "sft", "--quant", "none", "-p", SCALE, "--data", "blue.jsonl")
    assert "the adapter of sft was trained on a base of quantizer 'bnb-4bit', not of 'none'" in refused.stderr
