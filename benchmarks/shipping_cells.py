"""The cells of benchmarks/shipping.py: formats, commands, and the losses of what was shipped."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verdict_rows import conversations

from smollm3_finetune.api import Conversation, NoOptions, pad_rows
from smollm3_finetune.builtin.sft import SupervisedFineTuning
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.evaluation.row_losses import RowLosses, measure_rows
from smollm3_finetune.model.load import LoadedModel, load_model

COMMAND = (sys.executable, "-m", "smollm3_finetune.main")
ADAPTERS = ("lora", "dora")
RANK = 16


@dataclass(frozen=True)
class Target:
    """A format in which a run is shipped."""

    name: str
    """The quantizer, or the exporter."""
    options: Mapping[str, Any] = field(default_factory=dict)
    exporter: bool = False
    writes: bool = True
    """Whether it writes checkpoints; otherwise the merged model is loaded with the quantizer."""
    calibration: bool = False

    def ship_as(self) -> list[str]:
        """The options of `smollm3 train` that train for the format."""
        return ["--ship-as", self.name, *(a for k, v in self.options.items() for a in ("--ship-as-opt", f"{k}={v}"))]


TARGETS = {
    "bnb-4bit": Target("bnb-4bit"),
    "hqq-4": Target("hqq", {"bits": 4}),
    "hqq-3": Target("hqq", {"bits": 3}),
    "torchao-int8": Target("torchao-int8", writes=False),
    "gguf-q4_0": Target("gguf", {"type": "q4_0"}, exporter=True),
    "compressed-tensors-W4A16": Target("compressed-tensors", {"scheme": "W4A16"}),
    "gptq": Target("gptq", {"bits": 4, "group_size": 64}, calibration=True),
}


@dataclass(frozen=True)
class Setting:
    """What all cells share."""

    model: str
    work: Path
    steps: int
    batch: int
    length: int
    rate: float
    held_out: int

    def job(self) -> dict[str, Any]:
        """What a cell's figures depend on, beside the model."""
        return {name: getattr(self, name) for name in ("steps", "batch", "length", "rate", "held_out")}

    def train(self, name: str, adapter: str, target: Target | None = None) -> Path:
        """A run in a child process, trained for the format `target` or for none; made only once."""
        run = self.work / name
        if (run / "report.json").exists():
            return run
        command(
            *(
                "train",
                "--model",
                self.model,
                "--data",
                self.rows(),
                "--adapter",
                adapter,
                "--output",
                run,
                "--json",
            ),
            *("--adapter-opt", f"rank={RANK}", "--max-steps", self.steps, "--batch-size", self.batch),
            *("--max-length", self.length, "--learning-rate", self.rate, "--device", "cpu", "--dtype", "float32"),
            *("--set", "data.held_out=0", "--set", "train.sample_tokens=1", "--set", "train.report=false"),
            *(() if target is None else target.ship_as()),
            *(self._calibration() if target is not None and target.calibration else ()),
        )
        return run

    def _calibration(self) -> tuple[str, ...]:
        return "--set", "calibration.rows=8", "--set", f"calibration.length={self.length}"

    def rows(self) -> Path:
        """The training rows as a file."""
        file = self.work / "rows.jsonl"
        if not file.exists():
            rows = _alpaca()[self.held_out : self.held_out + self.steps * self.batch]
            file.write_text("".join(json.dumps(row) + "\n" for _, row in rows), encoding="utf-8")
        return file

    def examples(self, tokenizer: Any) -> list[dict[str, Any]]:
        """The held-out rows, tokenized."""
        renderer, prepare = Renderer(tokenizer), SupervisedFineTuning(NoOptions()).prepare
        found = (prepare(row, renderer, self.length) for row, _ in _alpaca()[: self.held_out])
        return [dict(example) for example in found if example is not None]

    def run_losses(self, name: str, run: Path) -> tuple[RowLosses, RowLosses]:
        """The losses of the model, and of the adapter of a run on it."""

        @functools.cache
        def loaded() -> LoadedModel:
            return load_model(self.model, adapter_path=run / "adapter", device="cpu", dtype="float32")

        def base() -> RowLosses:
            with loaded().disabled():
                return self._measured(loaded())

        return self._once("base", base), self._once(name, lambda: self._measured(loaded()))

    def base_losses(self, target: Target, title: str) -> RowLosses:
        """The losses of the model in the format, without training."""
        name, out = f"base-as-{title}", self.work / f"base-as-{title}"
        options = [(k, str(v)) for k, v in target.options.items()]
        if target.calibration:
            if not out.exists():
                flags = [a for k, v in options for a in ("--quant-opt", f"{k}={v}")]
                rows = ("--data", self.rows(), "--max-length", self.length, *self._calibration(), "--dtype", "float32")
                command(
                    *("quantize", self.model, "--quant", target.name, *flags, *rows),
                    *("--device", "cpu", "--output", out, "--json"),
                )
            return self.losses(name, out)
        if not target.exporter:  # what a checkpoint dequantizes to is what loading dequantizes to
            return self.losses(name, self.model, quant={"name": target.name, **target.options})
        if not out.exists():
            flags = [a for k, v in options for a in ("--to-opt", f"{k}={v}")]
            command("export", self.model, "--to", target.name, *flags, "--output", out, "--json")
        return self.losses(name, sorted(out.glob("*.gguf"))[0])

    def losses(self, name: str, ref: str | Path, **how: Any) -> RowLosses:
        """The loss of each held-out row, of a model that `load_model` loads; measured only once."""
        return self._once(name, lambda: self._measured(load_model(ref, device="cpu", dtype="float32", **how)))

    def _once(self, name: str, measure: Callable[[], RowLosses]) -> RowLosses:
        file = self.work / f"losses-{name}.json"
        if not file.exists():
            file.write_text(json.dumps(measure().as_json()))
        found = RowLosses.from_json(json.loads(file.read_text()), ("alpaca",))
        assert found is not None
        return found

    def _measured(self, loaded: LoadedModel) -> RowLosses:
        tokenizer = loaded.tokenizer
        return measure_rows(
            loaded.model,
            SupervisedFineTuning(NoOptions()),
            self.examples(tokenizer),
            lambda rows: pad_rows(rows, tokenizer),
            8,
            title="alpaca",
        )

    def ship(self, run: Path, target: Target, out: Path) -> tuple[Path, dict[str, Any]]:
        """Write the format of a run; returns what is loaded again, and the report of the command."""
        kept = out.with_suffix(".json")
        if not kept.exists():
            options = [(k, str(v)) for k, v in target.options.items()]
            if target.exporter:
                flags = [a for k, v in options for a in ("--to-opt", f"{k}={v}")]
                report = command("export", run, "--to", target.name, *flags, "--output", out, "--json")
            elif target.writes:
                flags = [a for k, v in options for a in ("--requantize-opt", f"{k}={v}")]
                report = command("merge", run, "--requantize", target.name, *flags, "--output", out, "--json")
            else:
                report = command("merge", run, "--output", out, "--json")
            kept.write_text(json.dumps(report))
        files = sorted(out.glob("*.gguf")) if target.exporter else [out]
        return files[0], json.loads(kept.read_text())

    def shipped_losses(self, name: str, run: Path, target: Target) -> tuple[RowLosses, dict[str, Any]]:
        """The losses of the format that a run is shipped in, and the report of the command that wrote it."""
        ref, report = self.ship(run, target, self.work / f"shipped-{name}")
        how = {} if target.exporter or target.writes else {"quant": {"name": target.name, **target.options}}
        return self.losses(f"shipped-{name}", ref, **how), report


def _alpaca() -> Sequence[tuple[Conversation, dict[str, Any]]]:
    return conversations(Path(os.environ["SMOLLM3_TEST_DATA"]))[0]


def command(*arguments: Any) -> dict[str, Any]:
    """Run a command of smollm3; returns its report. Prints its messages and ends the script if it fails."""
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"smollm3 {' '.join(map(str, arguments))}\n{done.stdout}\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
