"""Feeds hostile files to every reader, each kind in a process of its own, and counts what happens.

    python tests/faults/fuzz.py --inputs 10000 --seed 0
    python tests/faults/fuzz.py --kind rows.arrow --seed 0 --only 17    # one input again, with its traceback

A reader may accept an input or refuse it by name (a SmolLM3Error). Anything else is a fault: another exception, a crash
of Python, more than 10 seconds, more than 6 GB. Exits with 1 if there is a fault. The inputs of a seed are always the
same.

Not `hypothesis`: a crash or a hang of the process is counted, not shrunk, and each input must be found again by number.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = map(str, (Path(__file__).parent, ROOT, *(ROOT / "plugins").iterdir()))  # not another checkout

import mutations  # noqa: E402

SLOW, HANG, MEMORY = 10.0, 120.0, 6 << 30
OUTCOMES = ("refused by name", "accepted", "unexpected", "slower than 10 s", "crashed")
CONFIG: Mapping[str, Any] = {
    "model": "tiny", "quant": {"name": "none"}, "adapter": {"name": "full"}, "seed": 1, "plugins": [],
    "data": {"path": [{"path": "rows.jsonl", "weight": 2.0}], "max_length": 64, "held_out": 0.1, "date": "2026-01-01"},
    "train": {"max_steps": 4, "learning_rate": 2e-5, "batch_size": 2, "schedule": "cosine", "report_to": []},
}  # fmt: skip
ROWS = [
    {"messages": [{"role": "user", "content": f"Hi {n}"}, {"role": "assistant", "content": "<think>\na\n</think>\nHo",
     "tool_calls": [{"function": {"name": "f", "arguments": '{"a": [1]}'}}]}], "tools": [{"name": "f"}], "n": n}
    for n in range(6)
]  # fmt: skip
TEXT_ROWS = [{"prompt": f"Count to {n}", "completion": "one two"} for n in range(6)]


class Reader:
    """A kind of input: `make` writes one into an empty directory, `read` reads it as a command would."""

    def __init__(self) -> None:
        """Import and build whatever every input needs."""

    def make(self, rng: random.Random, directory: Path) -> None:
        raise NotImplementedError

    def read(self, directory: Path) -> None:
        raise NotImplementedError


class Config(Reader):
    def __init__(self) -> None:
        from smollm3_finetune.config.load import assemble

        assemble([])

    def make(self, rng: random.Random, directory: Path) -> None:
        from smollm3_finetune.config.yaml12 import dump_yaml

        about = mutations.changed_value(CONFIG, rng)
        with contextlib.suppress(Exception):  # a value that YAML cannot write
            text = dump_yaml(about).encode("utf-8", "surrogatepass")
            if rng.randrange(2):
                text = mutations.changed_bytes(text, rng)
            if not rng.randrange(8):
                bomb = "".join(f"b{n}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(rng.randrange(12)))
                text += b"\na: &a0 [x]\n" + bomb.encode()
            (directory / "run.yaml").write_bytes(text)
            return
        (directory / "run.yaml").write_bytes(json.dumps(about).encode("utf-8", "surrogatepass"))

    def read(self, directory: Path) -> None:
        from smollm3_finetune.config.load import as_dict, assemble, file_settings
        from smollm3_finetune.config.yaml12 import dump_yaml

        dump_yaml(as_dict(assemble([file_settings(directory / "run.yaml")]).config))


class Assignment(Reader):
    def make(self, rng: random.Random, directory: Path) -> None:
        key = rng.choice(("model", "data.path", "train.max_steps", "quant.bits", "a.b", "train", "", "plugins", "seed"))
        text = rng.choice(
            (
                lambda: json.dumps(mutations.value(rng)),
                lambda: rng.choice(mutations.TEXTS),
                lambda: mutations.changed_bytes(b"{a: [1, 2e-5], b: &x {c: no}, d: *x}", rng).decode(
                    "utf-8", "replace"
                ),
            )
        )()
        (directory / "text").write_text(f"{key}={text}".replace("\0", ""), "utf-8", "surrogatepass", newline="")

    def read(self, directory: Path) -> None:
        from smollm3_finetune.config.load import assemble, assignment

        text = (directory / "text").read_bytes().decode("utf-8", "surrogateescape")
        assemble([[assignment(text, "--set")]])


class Rows(Reader):
    suffix = ".jsonl"

    def __init__(self) -> None:
        from smollm3_finetune.components.discovery import PluginSelection, discover

        self.registry = discover(PluginSelection.of((), True))

    def make(self, rng: random.Random, directory: Path) -> None:
        (directory / f"rows{self.suffix}").write_bytes(self.data(rng))

    def data(self, rng: random.Random) -> bytes:
        rows = list(rng.choice((ROWS, TEXT_ROWS)))
        for number in rng.choices(range(len(rows)), k=rng.randrange(3)):
            rows[number] = mutations.changed_value(rows[number], rng)
        text = "\n".join(json.dumps(r) for r in rows) if self.suffix == ".jsonl" else json.dumps(rows)
        data = text.encode("utf-8", "surrogatepass")
        return mutations.changed_bytes(data, rng) if rng.randrange(2) else data

    def read(self, directory: Path) -> None:
        from smollm3_finetune.data.rows import Rows, with_formatter
        from smollm3_finetune.data.sources import find_sources

        (source,) = find_sources(str(directory / f"rows{self.suffix}"))
        Rows(sources=(with_formatter(self.registry, source, None, None),), seed=0, held_out=0.1).survey()


class JsonRows(Rows):
    suffix = ".json"


class CsvRows(Rows):
    suffix = ".csv"

    def data(self, rng: random.Random) -> bytes:
        lines = ["prompt,completion", *(f'"{r["prompt"]}, ""then""","{r["completion"]}\n more"' for r in TEXT_ROWS)]
        return mutations.changed_bytes("\n".join(lines).encode(), rng)


class Tables(Rows):
    """Tables in one of several layouts: compressed or not, with shared values, with views."""

    suffix = ".arrow"

    def __init__(self) -> None:
        import io

        import pyarrow as pa
        from pyarrow import parquet

        super().__init__()
        plain = pa.table({"messages": [[{k: v for k, v in m.items() if k != "tool_calls"} for m in r["messages"]]
                                       for r in ROWS * 5], "n": [r["n"] for r in ROWS * 5]})  # fmt: skip
        text = pa.array(["a", "b", "cc"] * 10)
        views = pa.array(text.to_pylist(), pa.string_view())
        other = pa.table({"prompt": text.dictionary_encode(), "completion": views,
                          "x": pa.array([[1.5, None]] * 30), "d": pa.array([{"a": 1, "b": [True]}] * 30)})  # fmt: skip
        self.valid = []
        for table in (plain, other):
            for layout in ("stream", "file", "lz4", "zstd"):
                stream = io.BytesIO()
                if self.suffix == ".parquet":
                    codec = {"stream": "NONE", "file": "SNAPPY", "lz4": "LZ4", "zstd": "ZSTD"}[layout]
                    parquet.write_table(table, stream, compression=codec, row_group_size=20)
                else:
                    options = pa.ipc.IpcWriteOptions(compression=layout if layout in ("lz4", "zstd") else None)
                    new = pa.ipc.new_file if layout == "file" else pa.ipc.new_stream
                    with new(stream, table.schema, options=options) as writer:
                        writer.write_table(table, max_chunksize=20)
                self.valid.append(stream.getvalue())

    def data(self, rng: random.Random) -> bytes:
        return mutations.changed_bytes(rng.choice(self.valid), rng)


class ParquetRows(Tables):
    suffix = ".parquet"


class Model(Reader):
    """A model directory: the file that is changed is one of its weights, configs and tokenizer files."""

    names = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")

    def __init__(self) -> None:
        import smollm3_finetune
        from smollm3_finetune.components.discovery import PluginSelection, discover
        from smollm3_finetune.model_files.loading import quiet_transformers

        quiet_transformers()
        self.tiny = Path(smollm3_finetune.__file__).parent / "builtin" / "tiny"
        self.registry = discover(PluginSelection.of((), True))
        self.warm_up()

    def warm_up(self) -> None:
        """Import everything, so that the first input is not measured with it."""
        self.read(self.tiny)

    def make(self, rng: random.Random, directory: Path) -> None:
        shutil.copytree(self.tiny, directory, dirs_exist_ok=True)
        file = directory / rng.choice(self.names)
        if file.suffix == ".json":
            file.write_bytes(mutations.json_text(json.loads(file.read_text()), rng))
        else:
            data = file.read_bytes()
            file.write_bytes(mutations.changed_bytes(data, rng, rng.choice((16, 3000, None))))

    def read(self, directory: Path) -> None:
        from smollm3_finetune.model import load_model

        loaded = load_model(directory, registry=self.registry, device="cpu", dtype="float32")
        loaded.tokenizer  # noqa: B018  (read when it is first used)


class Weights(Model):
    names = ("model.safetensors",)


class Adapter(Model):
    """A saved adapter of PEFT's format on the embedded model: its config, weights, and description."""

    names = ("adapter_config.json", "adapter_config.json", "adapter_model.safetensors", "smollm3.json")

    def __init__(self) -> None:
        from smollm3_finetune.components.discovery import PluginSelection, discover
        from smollm3_finetune.model import load_model

        super().__init__()
        self.registry = discover(PluginSelection.of(()))
        self.tiny = Path(tempfile.mkdtemp(prefix="smollm3-fuzz-")) / "adapter"
        made = load_model("tiny", adapter={"name": "lora", "rank": 2}, registry=self.registry, purpose="train",
                          device="cpu", dtype="float32")  # fmt: skip
        assert made.adapted is not None
        self.tiny.mkdir()
        made.adapted.save(self.tiny)
        about = {"model": "tiny", "loader": {"name": "tiny"}, "quant": {"name": "none"}, "adapter": {"name": "lora"},
                 "base_fingerprint": None, "versions": {}}  # fmt: skip
        (self.tiny / "smollm3.json").write_text(json.dumps(about))

    def warm_up(self) -> None:
        """Saving the first adapter does."""

    def read(self, directory: Path) -> None:
        from smollm3_finetune.model import load_model

        load_model("tiny", adapter="lora", adapter_path=directory, registry=self.registry, check_base=False,
                   device="cpu", dtype="float32")  # fmt: skip


class Gguf(Reader):
    """The header of a GGUF file, which is all that this project reads of one itself."""

    def __init__(self) -> None:
        import gguf
        import numpy as np
        import smollm3_gguf.files  # noqa: F401  (imports transformers' tables)

        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "a.gguf"
            writer = gguf.GGUFWriter(file, "llama")
            writer.add_context_length(128)
            writer.add_embedding_length(32)
            writer.add_block_count(1)
            writer.add_head_count(4)
            writer.add_rope_freq_base(10000.0)
            writer.add_token_list(["a", "b", "c"])
            writer.add_array("x.numbers", [1, 2, 3])
            writer.add_tensor("token_embd.weight", np.zeros((3, 32), np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            self.data = file.read_bytes()

    def make(self, rng: random.Random, directory: Path) -> None:
        (directory / "a.gguf").write_bytes(mutations.changed_bytes(self.data, rng))

    def read(self, directory: Path) -> None:
        from smollm3_gguf.architectures import implied_config
        from smollm3_gguf.files import check_file, find_file

        implied_config(check_file(find_file(str(directory / "a.gguf"), None)), "float32", "a.gguf")


class Run(Reader):
    """The files of a run directory, and of a checkpoint in it."""

    def __init__(self) -> None:
        from smollm3_finetune.config.load import as_dict, assemble
        from smollm3_finetune.config.yaml12 import dump_yaml

        component = {"name": "x"}
        self.files: dict[str, Any] = {
            "versions.json": {"plugins": {"a": "1"}, "plugin_files": {}, "libraries": {}, "rows": "x",
                              "run": {"config": "x", "model": "tiny", "data": ["x"], "steps": 4, "started": "x"}},
            "before.json": {"held_out_loss": 1.0},
            "trained.json": {"steps": 4, "tokens": 10},
            "error.json": {"message": "x", "hint": "y"},
            "report.json": {
                "enable_thinking": True, "steps": 4, "tokens": 10, "seconds": 1.5, "prompt": [{"content": "x"}],
                "before": {"held_out_loss": 1.0, "sample": "x"}, "after": {"held_out_loss": 0.5, "sample": "y"},
                "rows": [{"title": "x", "train": 1, "held_out": 1}],
                "comparison": {"verdict": "better", "rows": 4, "before": 1.0, "after": 0.5, "difference": -0.5,
                               "low": -0.6, "high": -0.4, "smallest_difference": 0.1,
                               "by_source": {"x": {"verdict": "y"}, "z": {}}},
            },
            "cache.json": {"root": "/x", "entries": ["gguf/" + "0" * 32]},
            "calibration.json": {"input_ids": [[1, 2], [3]]},
            "metrics.jsonl": {"step": 1, "loss": 2.5},
            "adapter/smollm3.json": {"model": "tiny", "loader": component, "quant": component, "adapter": component,
                                     "base_fingerprint": "x", "versions": {}},
            "checkpoints/checkpoint-4/trainer_state.json": {"global_step": 4, "log_history": [{"loss": 1, "step": 1}]},
            "checkpoints/checkpoint-4/checksums.json": {"sha256": {"trainer_state.json": "0" * 64}},
        }  # fmt: skip
        self.config = dump_yaml(as_dict(assemble([]).config))

    def make(self, rng: random.Random, directory: Path) -> None:
        (directory / "run.yaml").write_text(self.config)
        changed = rng.choice(list(self.files))
        for name, about in self.files.items():
            if name.endswith("checksums.json") and name != changed:
                continue
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(mutations.json_text(about, rng) if name == changed else json.dumps(about).encode())
        for name in ("optimizer.pt", "scheduler.pt"):
            (directory / "checkpoints" / "checkpoint-4" / name).write_bytes(
                rng.choice((b"", *[b"PK\5\6" + b"\0" * 18] * 9))
            )
        if not rng.randrange(10):
            (directory / changed).unlink()
            os.mkfifo(directory / changed)

    def read(self, directory: Path) -> None:
        from smollm3_finetune.cache.use import uses_of
        from smollm3_finetune.cli.output.runs_show import shown_run
        from smollm3_finetune.cli.output.runs_table import shown_runs
        from smollm3_finetune.errors import SmolLM3Error
        from smollm3_finetune.model.saved_adapter import SavedAdapter, read_calibration
        from smollm3_finetune.runs.continuing import forget_after, last_checkpoint
        from smollm3_finetune.runs.details import RunDetails
        from smollm3_finetune.runs.plugin_files import check_plugin_files
        from smollm3_finetune.runs.reopen import saved_configuration
        from smollm3_finetune.runs.rundir import RunDir
        from smollm3_finetune.runs.summary import RunSummary

        run = RunDir.existing(directory)
        shown_run(RunDetails.of(run), 80)
        shown_runs([RunSummary.of(run)], directory, 80, 0)
        saved_configuration(run, {})
        uses_of(directory)
        run.measured_before()
        forget_after(run, 3)
        refused = None
        for read in (
            lambda: check_plugin_files(run, ()),
            lambda: run.check_identity({"rows": "x"}),
            lambda: SavedAdapter.read(run.adapter),
            lambda: read_calibration(directory / "calibration.json"),
            lambda: last_checkpoint(run, lambda line: None),
        ):
            try:
                read()
            except SmolLM3Error as e:
                refused = e
        if refused is not None:
            raise refused


class Results(Reader):
    """A file of `smollm3 compat --measure`."""

    def make(self, rng: random.Random, directory: Path) -> None:
        result = {"quantizer": "a:b", "adapter": "c:d", "purpose": "train", "device": "cpu", "date": "2026-01-01",
                  "command": "x", "versions": {"torch": "1"}, "holds": True, "note": None, "figures": {"a": 1e-7},
                  "options": {"rank": 4}}  # fmt: skip
        (directory / "a.json").write_bytes(mutations.json_text({"format": 1, "results": [result, result]}, rng))

    def read(self, directory: Path) -> None:
        from smollm3_finetune.compatibility.results import read, write
        from smollm3_finetune.errors import ModelError

        try:
            found = read(directory / "a.json")
        except (OSError, ValueError, TypeError) as e:  # as the command does
            raise ModelError(str(e)) from e
        write(directory / "b.json", list({r.key: r for r in found}.values()))
        for result in found:
            result.changed(dict.fromkeys(result.versions))


class Template(Reader):
    """Chat templates, with a limit of one second."""

    def __init__(self) -> None:
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        os.environ["SMOLLM3_MAX_SECONDS"] = "1"
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), eos_token="a"
        )

    def make(self, rng: random.Random, directory: Path) -> None:
        (directory / "a.jinja").write_text(mutations.template(rng))

    def read(self, directory: Path) -> None:
        from smollm3_finetune.api import Conversation
        from smollm3_finetune.data.chat_template.renderer import Renderer, RenderOptions
        from smollm3_finetune.data.chat_template.syntax import check_syntax

        template = (directory / "a.jinja").read_text()
        check_syntax(template, "a.jinja")
        renderer = Renderer(self.tokenizer, RenderOptions(template=template))
        messages = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"})
        renderer.encode(Conversation(messages=messages), 100)


KINDS: Mapping[str, type[Reader]] = {
    "config": Config, "assignment": Assignment, "rows.jsonl": Rows, "rows.json": JsonRows, "rows.csv": CsvRows,
    "rows.parquet": ParquetRows, "rows.arrow": Tables, "model": Model, "safetensors": Weights, "gguf": Gguf,
    "adapter": Adapter, "run": Run, "results": Results, "template": Template,
}  # fmt: skip


@dataclass
class Counts:
    """What happened to the inputs of one kind."""

    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    faults: list[str] = field(default_factory=list)

    def add(self, outcome: str, seconds: float, fault: str | None = None) -> None:
        self.inputs += 1
        self.slowest = max(self.slowest, seconds)
        self.outcomes[outcome] += 1
        if fault is not None:
            self.faults.append(fault)


def one(reader: Reader, kind: str, seed: int, number: int) -> tuple[str, float, str | None]:
    """The outcome of one input, its time in seconds, and the exception if it is a fault."""
    from smollm3_finetune.errors import SmolLM3Error

    with tempfile.TemporaryDirectory(prefix="smollm3-fuzz-") as name:
        reader.make(random.Random(f"{kind} {seed} {number}"), Path(name))
        began, fault = time.monotonic(), None
        try:
            reader.read(Path(name))
            outcome = "accepted"
        except SmolLM3Error:
            outcome = "refused by name"
        except BaseException as e:
            last = traceback.extract_tb(e.__traceback__)[-1]
            outcome, fault = "unexpected", f"{type(e).__name__} in {last.name}: {str(e)[:150]!r}"
        seconds = time.monotonic() - began
    if seconds > SLOW:
        outcome, fault = "slower than 10 s", fault or f"{seconds:.0f} s"
    return outcome, seconds, fault


def worker(kind: str, seed: int, start: int, inputs: int) -> None:
    """Try inputs `start` to `inputs`, and write a line before and after each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    reader = KINDS[kind]()
    if sys.platform == "linux":
        with open("/proc/self/statm") as stream:
            used = int(stream.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    for number in range(start, inputs):
        print(json.dumps([number]), file=answers, flush=True)
        print(json.dumps([number, *one(reader, kind, seed, number)]), file=answers, flush=True)


def run(kind: str, seed: int, inputs: int) -> Counts:
    """Try `inputs` inputs of a kind; after a crash or a hang, the rest is tried in a new process."""
    counts, start = Counts(), 0
    while start < inputs:
        command = [sys.executable, __file__, "--worker", kind, str(seed), str(start), str(inputs)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        lines: queue.Queue[str | None] = queue.Queue()
        assert child.stdout is not None
        threading.Thread(target=_forward, args=(child.stdout, lines), daemon=True).start()
        number, code = start - 1, ""
        while True:
            try:
                line = lines.get(timeout=HANG)
            except queue.Empty:
                code = f"no answer within {HANG:g} s"
                break
            if line is None:
                code = f"exit code {child.wait()}"
                break
            number, *found = json.loads(line)
            if found:
                outcome, seconds, fault = found
                counts.add(outcome, seconds, fault and f"{kind} --only {number}: {fault}")
        child.kill()
        child.wait()
        if counts.inputs == inputs:
            break
        if number < start:
            raise SystemExit(f"{kind}: the process ended before its first input: {code}")
        if counts.inputs <= number:  # it began this input, and did not end it
            outcome = "crashed" if code.startswith("exit") else "slower than 10 s"
            counts.add(outcome, HANG if outcome != "crashed" else 0.0, f"{kind} --only {number}: {code}")
        start = number + 1
    return counts


def _forward(stream: Any, lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def rows_of(found: Mapping[str, Counts]) -> Iterator[str]:
    """The lines of the table, in Markdown."""
    yield "| kind | inputs | " + " | ".join(OUTCOMES) + " | slowest |"
    yield "|---|" + "---:|" * (len(OUTCOMES) + 2)
    for kind, counts in found.items():
        numbers = " | ".join(str(counts.outcomes[o]) for o in OUTCOMES)
        yield f"| {kind} | {counts.inputs} | {numbers} | {counts.slowest:.1f} s |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="inputs of all kinds together (default 10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only this kind; may be repeated")
    parser.add_argument("--only", type=int, help="with one --kind: this input, in this process, with its traceback")
    arguments = parser.parse_args()
    kinds = arguments.kind or list(KINDS)
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    if arguments.only is not None:
        (kind,) = kinds
        reader, made = KINDS[kind](), Path(tempfile.mkdtemp(prefix="smollm3-fuzz-"))
        reader.make(random.Random(f"{kind} {arguments.seed} {arguments.only}"), made)
        print(f"the input is in {made}")
        reader.read(made)
        return
    found: dict[str, Counts] = {}
    for number, kind in enumerate(kinds):
        share = arguments.inputs // len(kinds) + (number < arguments.inputs % len(kinds))
        found[kind] = run(kind, arguments.seed, share)
        print(f"{kind}: {dict(found[kind].outcomes)}", file=sys.stderr, flush=True)
        for fault in found[kind].faults[:10]:
            print(f"  {fault}", file=sys.stderr, flush=True)
    print("\n".join(rows_of(found)))
    sys.exit(any(counts.faults for counts in found.values()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        main()
