"""Quantizing a full-precision model: once, into the cache, in an isolated process, and safely if interrupted."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from smollm3_gptq import quantize_process as process
from smollm3_gptq.options import GPTQOptions
from smollm3_gptq.quantize_process import QuantizingFailed
from smollm3_gptq.quantizer import DIGEST, GPTQQuantizer

from smollm3_finetune.api import DataError, Purpose, directory_source

pytest_plugins = ["smollm3_finetune.testing.fixtures"]  # for `cli`
OPTIONS = GPTQOptions(group_size=32)
HOW = (
    "--quant", "gptq", "--quant-opt", "group_size=32", "--set", "calibration.rows=8", "--set", "calibration.length=48",
    "--set", "data.limit=40", "--max-length", "64", "--dtype", "float32", "--device", "cpu",
)  # fmt: skip
SMALL = (*HOW, "--set", "train.sample_tokens=4", "--batch-size", "4")


def load(source, context, options=OPTIONS):
    return GPTQQuantizer(options).load(directory_source(source, ref="small"), context)


def weights_of(base):
    return {n: ops.read_weight() for n, m in base.model.named_modules() if (ops := base.ops_for(m)) is not None}


def entries(cache):
    """The finished and the unfinished entries of a cache."""
    found = list((Path(cache) / "gptq").iterdir()) if (Path(cache) / "gptq").exists() else []
    done = [f for f in found if f.is_dir() and ".partial-" not in f.name]
    return done, [f for f in found if ".partial-" in f.name]


def copies(finished, log=None):
    """Return a `quantize` function that copies a finished checkpoint."""

    def quantize(source, out, options, calibration, **more):
        if log is not None:
            log.append(options)
        shutil.copytree(finished, out, dirs_exist_ok=True)

    return quantize


# ------------------------------------------------------------------------------------- one real run


DRIVER = """
import json, os, sys
from smollm3_finetune.main import main
before = dict(os.environ)
import transformers
patched = [transformers.PreTrainedModel.from_pretrained, transformers.AutoModelForCausalLM.from_pretrained]
try:
    main(json.loads(sys.argv[1]))
    code = 0
except SystemExit as e:
    code = e.code or 0
now = [transformers.PreTrainedModel.from_pretrained, transformers.AutoModelForCausalLM.from_pretrained]
about = {
    "code": code,
    "environment": sorted({k for k, _ in before.items() ^ os.environ.items()}),
    "modules": sorted(m for m in sys.modules if m.partition(".")[0] in ("gptqmodel", "optimum")),
    "patched": patched != now,
}
open(sys.argv[2], "w").write(json.dumps(about))
"""


class Tuned:
    """A run of `smollm3 train --quant gptq --adapter lora` in a separate process, folder and cache."""

    def __init__(self, root, dense):
        self.root, self.work, self.cache, self.scratch = root, root / "work", root / "cache", root / "scratch"
        for directory in (self.work, self.scratch):
            directory.mkdir()
        self.run = self.work / "run"
        args = ["train", "--model", str(dense), *SMALL, "--adapter", "lora", "--max-steps", "15"]
        args += ["--lr", "1e-2", "--output", "run"]
        env = {**os.environ, "SMOLLM3_CACHE": str(self.cache), "TMPDIR": str(self.scratch)}
        self.done = subprocess.run(
            [sys.executable, "-c", DRIVER, json.dumps(args), str(root / "about.json")],
            cwd=self.work, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (root / "about.json").exists(), self.done.stderr
        self.about = json.loads((root / "about.json").read_text())

    def report(self, run="run"):
        return json.loads((self.work / run / "report.json").read_text())


@pytest.fixture(scope="module")
def tuned(dense, tmp_path_factory):
    pytest.importorskip("smollm3_peft")
    if importlib.util.find_spec("gptqmodel") is None:
        pytest.skip("gptqmodel is not installed")
    return Tuned(tmp_path_factory.mktemp("tuned"), dense)


def assert_loss_fell(report):
    assert report["after"]["held_out_loss"] < report["before"]["held_out_loss"] - 0.1


@pytest.mark.plugins
def test_one_command_quantizes_and_trains(tuned):
    assert tuned.about["code"] == 0, tuned.done.stderr
    assert_loss_fell(tuned.report())
    assert "quantizing small to 4 bits" in tuned.done.stderr


@pytest.mark.plugins
def test_gptqmodel_has_no_effect_on_the_run(tuned):
    printed = tuned.done.stdout + tuned.done.stderr
    for word in ("GPT-QModel", "gptqmodel", "Quantiz", "damp", "Traceback"):
        assert word not in printed
    assert tuned.about["modules"] == []
    assert set(tuned.about["environment"]) <= {"GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE"}  # set by core
    assert tuned.about["patched"] is False
    assert [f.name for f in tuned.work.iterdir()] == ["run"]  # no ./logs
    assert [f.name for f in tuned.scratch.iterdir() if "gptq" in f.name] == []


@pytest.mark.plugins
def test_the_checkpoint_contains_no_paths_of_this_machine(tuned):
    (entry,), left = entries(tuned.cache)
    assert not left
    names = {f.name for f in entry.iterdir()}
    assert {"config.json", "quantize_config.json", "model.safetensors", DIGEST} <= names
    assert "quant_log.csv" not in names
    for name in names:
        if name.endswith(".json"):
            text = (entry / name).read_text()
            assert str(tuned.root) not in text
            assert "offload_to_disk_path" not in text
    assert entry.with_name(f"{entry.name}.json").exists()


@pytest.mark.plugins
def test_the_run_stores_its_calibration_rows(tuned):
    rows = json.loads((tuned.run / "calibration.json").read_text())["input_ids"]
    assert len(rows) == 8
    assert max(map(len, rows)) == 48


@pytest.mark.plugins
def test_another_run_uses_the_cached_weights(tuned, dense, cli, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("quantized again")

    monkeypatch.setenv("SMOLLM3_CACHE", str(tuned.cache))
    monkeypatch.setattr(process, "quantize", never)
    monkeypatch.chdir(tuned.work)
    done = cli("train", "--model", dense, *SMALL, "--adapter", "dora", "--max-steps", "15", "--lr", "1e-2",
               "--output", "second")  # fmt: skip
    assert done.code == 0, done.stderr
    assert "quantizing" not in done.stderr
    assert_loss_fell(tuned.report("second"))
    assert tuned.report("second")["before"] == tuned.report()["before"]


@pytest.mark.long
@pytest.mark.plugins
def test_without_the_cache_a_run_quantizes_to_the_same_weights(tuned, cli, monkeypatch):
    monkeypatch.setenv("SMOLLM3_CACHE", str(tuned.cache))
    ask = ("generate", tuned.run, "--prompt", "Hello!", "--max-new-tokens", "8")
    first = cli(*ask)
    assert first.code == 0, first.stderr
    (entry,), _ = entries(tuned.cache)
    digest = (entry / DIGEST).read_text()
    shutil.rmtree(entry)
    environment = dict(os.environ)
    again = cli(*ask)
    assert again.code == 0, again.stderr
    assert again.stdout == first.stdout
    assert (entry / DIGEST).read_text() == digest
    assert dict(os.environ) == environment
    assert not list(Path.cwd().iterdir())


# ------------------------------------------------------------------- what causes quantizing again


def test_the_cache_key_is_weights_options_and_calibration(dense, finished, context, rows, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(process, "quantize", copies(finished, made))
    cache = tmp_path / "cache"

    def builds(source=dense, options=OPTIONS, rows=rows, **how):
        before = len(made)
        load(source, context(cache=cache, rows=rows, **how), options)
        return len(made) - before

    assert builds() == 1
    assert builds() == 0
    assert builds(dtype="bfloat16") == builds(purpose=Purpose.INFER) == 0
    assert builds(options=GPTQOptions(group_size=32, bits=4, sym=True, desc_act=False)) == 0
    assert builds(options=GPTQOptions()) == 0  # the default is 32 for widths of 64 and 96
    one_token_more = [*rows[:-1], [*rows[-1], 5]]
    assert builds(rows=one_token_more) == builds(rows=rows[:-1]) == 1
    assert builds(rows=[*rows, [5] * 10]) == 0  # gptqmodel would skip this row
    for option in ({"bits": 8}, {"group_size": 16}, {"desc_act": True}, {"sym": False}, {"damp_percent": 0.1}):
        assert builds(options=GPTQOptions(**{"group_size": 32, **option})) == 1, option
    other = Path(shutil.copytree(dense, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 1e-3
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    assert builds(source=other) == 1


def test_a_flipped_bit_in_any_cached_file_is_found_and_the_model_quantized_again(
    dense, finished, context, rows, tmp_path, monkeypatch
):
    made = []
    monkeypatch.setattr(process, "quantize", copies(finished, made))
    ctx = context(cache=tmp_path / "cache", rows=rows)
    base = load(dense, ctx)
    (entry,), _ = entries(tmp_path / "cache")
    whole = {file.name: file.read_bytes() for file in entry.iterdir()}
    assert {"model.safetensors", "config.json", DIGEST} <= set(whole)
    for name, content in whole.items():
        flipped = bytearray(content)
        flipped[len(content) * 2 // 3] ^= 1
        (entry / name).write_bytes(flipped)
        before = len(made)
        assert load(dense, ctx).fingerprint == base.fingerprint
        assert len(made) == before + 1, name
        assert {file.name: file.read_bytes() for file in entry.iterdir()} == whole, name


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ({}, {"bits": 4, "group_size": 32, "sym": True, "format": "gptq", "act_group_aware": True}),
        ({"sym": False, "bits": 3}, {"bits": 3, "sym": False, "format": "gptq_v2"}),
        ({"desc_act": True}, {"desc_act": True, "act_group_aware": False}),
        ({"group_size": -1}, {"group_size": -1, "act_group_aware": False}),
    ],
)
def test_gptqmodel_receives_the_options(dense, finished, context, rows, monkeypatch, option, wanted):
    made = []
    monkeypatch.setattr(process, "quantize", copies(finished, made))
    load(dense, context(rows=rows), GPTQOptions(**option))
    assert wanted.items() <= made[0].items()


def test_the_fingerprint_depends_on_the_quantized_weights(dense, finished, context, rows, fake):
    def mark(rows):
        return load(dense, context(rows=rows)).fingerprint  # a new cache each time

    assert mark(rows) == mark(rows)
    assert mark([*rows[:-1], [*rows[-1], 5]]) != mark(rows)


def test_write_puts_the_checkpoint_into_the_given_directory(dense, finished, context, rows, fake, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    GPTQQuantizer(OPTIONS).write(directory_source(dense, ref="small"), out, context(rows=rows))
    assert fake.events("rows") == [rows]
    assert "offload_to_disk_path" not in (out / "config.json").read_text()
    assert "offload_to_disk_path" not in (out / "quantize_config.json").read_text()
    base = GPTQQuantizer(GPTQOptions()).load(directory_source(out, ref="out"), context())
    assert len(weights_of(base)) == 2 * 7


# ----------------------------------------------------------------------------------- calibration rows


def test_only_too_short_rows_are_refused(dense, context, tmp_path):
    with pytest.raises(DataError, match="none of the 3 calibration rows is longer than 10 tokens") as caught:
        load(dense, context(rows=[[5] * 10, [6] * 4, []], cache=tmp_path / "cache"))
    assert "calibration.path" in caught.value.hint
    assert entries(tmp_path / "cache") == ([], [])


def test_too_short_rows_are_skipped(dense, context, rows, fake):
    load(dense, context(rows=[[5] * 10, *rows, [5] * 11]))
    assert fake.events("rows") == [[*rows, [5] * 11]]


@pytest.mark.plugins
def test_a_file_of_calibration_rows_is_used(dense, cli, fake, tmp_path):
    from transformers import AutoTokenizer

    texts = [f"Calibration row {i}: the quick brown fox jumps over the lazy dog again and again." for i in range(3)]
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    done = cli("train", "--model", dense, *SMALL, "--max-steps", "1", "--set", f"calibration.path={file}",
               "--output", "run")  # fmt: skip
    assert done.code == 0, done.stderr
    (used,) = fake.events("rows")
    tokenizer = AutoTokenizer.from_pretrained(str(dense))
    assert len(used) == 3
    for text, row in zip(texts, used, strict=True):
        assert tokenizer.decode(row).startswith(text[:40])
        assert len(row) <= 48
    assert json.loads(Path("run/calibration.json").read_text())["input_ids"] == used


# ----------------------------------------------------------------------------- a run and its calibration


@pytest.fixture
def quick(dense, cli, fake, tmp_path):
    """A run with weights from the fake gptqmodel; they depend on the calibration rows."""
    done = cli("train", "--model", dense, *SMALL, "--max-steps", "2", "--set", "train.save_every=1", "--output", "run")
    assert done.code == 0, done.stderr
    return Path("run").resolve()


def ask(cli, run):
    return cli("generate", run, "--prompt", "Hello!", "--max-new-tokens", "4")


@pytest.mark.plugins
def test_a_run_is_quantized_again_with_its_stored_calibration(quick, cli, fake, tmp_path):
    first = ask(cli, quick)
    assert len(fake.events("started")) == 1
    shutil.rmtree(tmp_path / "cache")
    again = ask(cli, quick)
    assert (again.code, again.stdout) == (first.code, first.stdout) == (0, first.stdout)
    assert len(fake.events("started")) == 2
    assert fake.events("rows")[0] == fake.events("rows")[1]
    assert fake.events("options")[0] == fake.events("options")[1]


@pytest.mark.plugins
def test_a_run_is_resumed_with_its_stored_calibration(quick, cli, fake, tmp_path):
    shutil.rmtree(tmp_path / "cache" / "gptq")
    done = cli("train", "--resume", quick, "--max-steps", "3")
    assert done.code == 0, done.stderr
    assert len(fake.events("started")) == 2
    assert fake.events("rows")[0] == fake.events("rows")[1]


@pytest.mark.plugins
def test_quantize_gives_the_weights_of_a_run_with_the_same_rows(quick, dense, cli, fake, context, tmp_path):
    done = cli("quantize", dense, *HOW, "--output", "made")
    assert done.code == 0, done.stderr
    assert "offload_to_disk_path" not in Path("made/config.json").read_text()
    assert all(row == fake.events("rows")[0] for row in fake.events("rows"))
    made = GPTQQuantizer(GPTQOptions()).load(directory_source(Path("made"), ref="made"), context())
    (entry,), _ = entries(tmp_path / "cache")
    held = GPTQQuantizer(GPTQOptions()).load(directory_source(entry, ref="held"), context())
    right = weights_of(held)
    assert all(torch.equal(w, right[n]) for n, w in weights_of(made).items())


@pytest.mark.plugins
def test_weights_that_differ_from_the_runs_are_refused(quick, cli, tmp_path):
    file = quick / "calibration.json"
    about = json.loads(file.read_text())
    about["input_ids"][0][0] += 1
    file.write_text(json.dumps(about))
    done = ask(cli, quick)
    assert done.code == 6
    assert "was not trained on the weights" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.plugins
def test_a_run_without_its_calibration_reports_the_missing_rows(quick, cli):
    (quick / "calibration.json").unlink()
    done = ask(cli, quick)
    assert done.code == 2
    assert "needs calibration rows" in done.stderr


# --------------------------------------------------------------------------------------- errors


def test_an_error_of_gptqmodel_is_one_sentence_and_its_output_is_kept(dense, context, rows, fake, tmp_path):
    fake.set(error="no luck\nand more")
    cache = tmp_path / "cache"
    with pytest.raises(QuantizingFailed) as caught:
        load(dense, context(rows=rows, cache=cache))
    assert caught.value.message == "gptqmodel could not quantize small to 4 bits: ValueError: no luck"
    kept = Path(caught.value.hint.removeprefix("see its output: "))
    printed = kept.read_text()
    kept.unlink()
    assert "gptqmodel prints a lot" in printed
    assert "Traceback" in printed
    assert entries(cache) == ([], [])


@pytest.mark.plugins
@pytest.mark.parametrize(("number", "reason"), [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "your disk quota")])
def test_a_write_that_fails_in_the_worker_is_a_write_error(dense, cli, fake, number, reason):
    fake.set(errno=number)
    done = cli("train", "--model", dense, *SMALL, "--max-steps", "1", "--output", "run")
    assert done.code == 8, done.stderr
    assert f" cannot be written: {reason}" in done.stderr
    assert "hint: " in done.stderr and not Path("run").exists()


def test_a_worker_that_exits_without_a_message_is_one_sentence(dense, context, rows, fake):
    fake.set(exit=9)
    with pytest.raises(QuantizingFailed, match="its process exited with code 9 and no error message") as caught:
        load(dense, context(rows=rows))
    Path(caught.value.hint.removeprefix("see its output: ")).unlink()


def test_layers_that_gptqmodel_only_rounded_are_reported(dense, context, rows, fake):
    said = []
    ctx = context(rows=rows)
    ctx.progress.say = said.append
    load(dense, ctx)
    assert not any("rounded" in line for line in said)
    fake.set(quant_log=[{"layer": 1, "module": "mlp.down_proj", "loss": "fallback(rtn): 0.0100000"}])
    ctx = context(rows=rows)
    ctx.progress.say = said.append
    load(dense, ctx)
    assert "warning: gptqmodel rounded 1 layers of small to 4 bits to nearest, without GPTQ" in said[-1]
    assert said[-1].endswith(": 1.mlp.down_proj")


@pytest.mark.plugins
def test_an_error_of_gptqmodel_leaves_no_run(dense, cli, fake):
    fake.set(error="no luck")
    done = cli("train", "--model", dense, *SMALL, "--max-steps", "1", "--output", "run")
    assert done.code == 1
    assert "gptqmodel could not quantize small to 4 bits: ValueError: no luck" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("run").exists()
    Path(done.stderr.partition("see its output: ")[2].strip()).unlink()


# ------------------------------------------------------------------------------------ several processes


def forked(work):
    """Run `work()` in a fork of this process; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    try:
        work()
        os._exit(0)
    except BaseException as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
    finally:
        os._exit(1)


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@linux
def test_only_one_of_two_processes_quantizes(dense, context, rows, fake, tmp_path):
    fake.set(pause=0.1)
    both = [forked(lambda: load(dense, context(rows=rows, cache=tmp_path / "cache"))) for _ in range(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in both] == [0, 0]
    assert len(fake.events("started")) == len(fake.events("saved")) == 1
    done, left = entries(tmp_path / "cache")
    assert (len(done), left) == (1, [])


EVENTS = 10
"""Events that the fake logs in a complete run: started, options, rows, two layers, four files, saved."""


@linux
@pytest.mark.parametrize("moment", range(EVENTS + 1))
def test_a_kill_at_any_moment_leaves_no_partial_entry(dense, context, rows, fake, tmp_path, monkeypatch, moment):
    cache, scratch = tmp_path / "cache", tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    fake.set(stop=max(moment, 1))  # it logs this many events and then sleeps
    ctx = context(rows=rows, cache=cache)
    parent = forked(lambda: load(dense, ctx))
    lines = lambda: len(fake.log.read_text().splitlines()) if fake.log.exists() else 0  # noqa: E731
    assert until(lambda: lines() >= moment)
    os.kill(parent, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1]) == -signal.SIGKILL
    assert entries(cache)[0] == []
    for worker in fake.events("started"):
        assert until(lambda pid=worker: not alive(pid), 5)
    if fake.events("started"):
        assert until(lambda: not list(scratch.iterdir()), 5)  # gptqmodel's temporary files are as large as the model
    fake.set(stop=None)
    saved = len(fake.events("saved"))
    base = load(dense, ctx)
    assert len(fake.events("saved")) == saved + 1
    done, left = entries(cache)
    assert (len(done), left) == (1, [])
    whole = load(dense, context(rows=rows))  # in a new cache
    assert base.fingerprint == whole.fingerprint
    right = weights_of(whole)
    assert all(torch.equal(w, right[n]) for n, w in weights_of(base).items())


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_processes_that_gptqmodel_started_end_with_the_parent(dense, context, rows, fake, number):
    """As ninja and the compilers of its kernels, which would run on beside the next command."""
    fake.set(pause=30, compiles=True)
    parent = forked(lambda: load(dense, context(rows=rows)))
    assert until(lambda: fake.events("step"))
    os.kill(parent, number)
    os.waitpid(parent, 0)
    for started in (*fake.events("started"), *fake.events("compiler")):
        assert until(lambda pid=started: not alive(pid), 5)


@linux
def test_a_keyboard_interrupt_ends_the_worker_and_leaves_nothing(dense, context, rows, fake, tmp_path):
    fake.set(pause=30)
    parent = forked(lambda: load(dense, context(rows=rows, cache=tmp_path / "cache")))
    assert until(lambda: fake.events("step"))
    os.kill(parent, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1]) == 1
    (worker,) = fake.events("started")
    assert not alive(worker)
    assert entries(tmp_path / "cache") == ([], [])
