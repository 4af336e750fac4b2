"""Everything that a GPU can show about smollm3, in less than 30 minutes: one table and one JSON file.

    nox -s gpu [-- --out DIR]                      on the first CUDA GPU
    nox -s gpu -- --device cpu --out DIR           rehearsal: every part runs, with small sizes
    nox -s gpu -- --only trial dequantize          some of the parts

trial        smollm3 doctor --try in float32, and on a GPU in bfloat16
contract     the contract tests of the quantizers and adapters, on the device
speed        smollm3 train beside transformers.Trainer and trl sft, on one job, without and with 4 bits
qlora        a model of SmolLM3-3B's shape with random weights, 4 bits, LoRA
dequantize   the share of dequantizing in a step
gptq         the kernels of gptq
fsdp         two processes that share the weights, if there are two GPUs

Each part runs in processes of its own, so that a crash ends only that part. DIR gets `gpu.json`, `gpu.md` and the
reports of the trials, which `smollm3 compat --evidence FILE` reads. They name the card, and no host, user or directory.
The exit code is 1 if a part failed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent
LIMIT = 30 * 60.0
"""Seconds of all parts together; a part that would begin later is not started."""
SIZES = ((1e9, "GB"), (1e6, "MB"))
QUANTIZER_PLUGINS = ("bitsandbytes", "gptq", "hqq", "torchao", "compressed-tensors")
MACHINE = (
    "import json, sys; from smollm3_finetune.trial.machine import machine; print(json.dumps(machine(sys.argv[1])))"
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    device: str
    out: Path
    python_trl: Path | None
    deadline: float

    @property
    def cpu(self) -> bool:
        return self.device == "cpu"

    def run(self, command: Sequence[str], **variables: str) -> tuple[int, str]:
        """The exit code of a command, and the last lines that it printed; 124 if it took too long."""
        words = [sys.executable, *command]
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **variables}
        left = max(self.deadline - time.monotonic(), 1.0)
        try:
            done = subprocess.run(
                words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=left,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return 124, f"stopped after {left:.0f} s: the time of all parts is used up"
        return done.returncode, anonymous(" ".join(done.stdout.strip().splitlines()[-3:]))

    def child(self, script: str, *arguments: str) -> dict[str, Any]:
        """What a script wrote to the file of its option --json, or its fault."""
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "found.json"
            words = [str(HERE / script), *arguments, "--device", self.device, "--json", str(file)]
            code, last = self.run(words)
            if code or not file.exists():
                return {"fault": f"exit code {code}: {last}", "figures": []}
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return found


def anonymous(text: str) -> str:
    """The text without directories of this machine, because it is sent to others."""
    for path in (str(ROOT), sys.prefix, sys.base_prefix, os.path.expanduser("~"), tempfile.gettempdir()):
        if len(path) > 1:
            text = text.replace(path, "…")
    return text


def trial(setting: Setting) -> dict[str, Any]:
    figures: list[dict[str, Any]] = []
    faults: list[str] = []
    for dtype in ("float32",) if setting.cpu else ("float32", "bfloat16"):
        file = setting.out / f"trial-{dtype}.json"
        file.unlink(missing_ok=True)
        code, last = setting.run(
            ["-m", "smollm3_finetune.main", "doctor", "--try", "--device", setting.device, "--dtype", dtype,
             "--timeout", "600", "--report", str(file)]
        )  # fmt: skip
        if not file.exists():
            faults.append(f"{dtype}: exit code {code}: {last}")
            continue
        report = json.loads(file.read_text(encoding="utf-8"))
        for cell in report["cells"]:
            title = " × ".join(cell[k].rpartition(":")[2] for k in ("quantizer", "adapter"))
            if cell["status"] == "fails":
                faults.append(f"{dtype}: {title}: {cell['sentence']}")
            for key, unit in (("gradients", ""), ("tokens_per_second", "tokens/s"), ("memory", "bytes")):
                if (value := cell["figures"].get(key)) is not None:
                    what = f"{title}, {dtype}: {key.replace('_', ' ')}"
                    figures.append({"what": what, "value": value, "unit": unit})
        figures.append({"what": f"{dtype}: whole trial", "value": report["seconds"], "unit": "s"})
    return {"conditions": "built-in model", "fault": "; ".join(faults) or None, "figures": figures}


def contract(setting: Setting) -> dict[str, Any]:
    names = ("hqq",) if setting.cpu else QUANTIZER_PLUGINS
    tests = [f"plugins/smollm3-{name}/tests/test_conformance.py" for name in names]
    chosen = [] if setting.cpu else ["plugins/smollm3-peft/tests/test_conformance.py"]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "junit.xml"
        code, last = setting.run(
            ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not long", f"--junitxml={file}", *tests, *chosen],
            SMOLLM3_KIT_DEVICE=setting.device,
        )
        passed = tests_passed(file)
    return {
        "conditions": f"the kits of {', '.join(names)}" + (" and peft" if chosen else ""),
        "fault": None if code == 0 else last,
        "figures": [{"what": "tests passed", "value": passed, "unit": ""},
                    {"what": "time", "value": time.monotonic() - began, "unit": "s"}],
    }  # fmt: skip


def tests_passed(file: Path) -> int:
    """The number of tests that passed, in a file of pytest's option --junitxml; 0 if there is no file."""
    if not file.exists():
        return 0
    cases = ElementTree.parse(file).iter("testcase")
    return sum(not any(inner.tag in ("failure", "error", "skipped") for inner in case) for case in cases)


def speed(setting: Setting) -> dict[str, Any]:
    more = ["--python-trl", str(setting.python_trl)] if setting.python_trl is not None else []
    parts = [
        setting.child("gpu_speed.py", "--quant", quant, "--rounds", "1" if setting.cpu else "2", *more)
        for quant in ("none", "bnb-4bit")
    ]
    return {
        "conditions": parts[0].get("conditions", ""),
        "fault": "; ".join(p["fault"] for p in parts if p["fault"]) or None,
        "note": None if more else "trl is not installed here",
        "figures": [f for p in parts for f in p["figures"]],
    }


def part_of_work(name: str) -> Callable[[Setting], dict[str, Any]]:
    return lambda setting: setting.child("gpu_work.py", name)


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "trial": trial, "dequantize": part_of_work("dequantize"), "qlora": part_of_work("qlora"), "speed": speed,
    "gptq": part_of_work("gptq"), "fsdp": part_of_work("fsdp"), "contract": contract,
}  # fmt: skip
"""In the order in which they run: what matters most first."""


def shown(value: float, unit: str) -> str:
    if unit == "bytes":
        size, name = next((s for s in SIZES if value >= s[0]), SIZES[-1])
        return f"{value / size:.3g} {name}"
    text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {unit}".strip()


def page(about: dict[str, Any]) -> str:
    """The table: every figure with the name of the device."""
    name = about["machine"]["name"]
    lines = [
        f"{about['date']}, {name}, torch {about['machine']['torch']}, {about['seconds']:.0f} s"
        + (": a rehearsal on a CPU with small sizes, which says nothing about a GPU" if about["rehearsal"] else ""),
        "",
        "| part | figure | value | on |",
        "|---|---|---|---|",
    ]
    for part, found in about["parts"].items():
        if found.get("skipped"):
            lines.append(f"| {part} | not run: {found['skipped']} | | {name} |")
            continue
        if found["fault"]:
            lines.append(f"| {part} | **failed**: {found['fault'].replace('|', '/')} | | {name} |")
        lines += [f"| {part} | {f['what']} | {shown(f['value'], f['unit'])} | {name} |" for f in found["figures"]]
    lines += ["", "Conditions:", ""]
    for part, found in about["parts"].items():
        if found.get("conditions"):
            lines.append(f"* {part}: {found['conditions']}" + (f" ({found['note']})" if found.get("note") else ""))
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu for a rehearsal")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="directory of the results")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="only these parts")
    parser.add_argument("--python-trl", type=Path, help="an interpreter in the directory of `trl`; default: no trl")
    args = parser.parse_args()
    began = time.monotonic()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    python_trl = args.python_trl and args.python_trl.absolute()  # not resolved: it is a link in its environment
    setting = Setting(device=args.device, out=args.out, python_trl=python_trl, deadline=began + LIMIT)
    code, last = setting.run(["-c", MACHINE, args.device])
    if code:
        print(f"the device {args.device} cannot be used here: {last}; to rehearse without a GPU: --device cpu")
        return 1
    about: dict[str, Any] = {
        "format": 1, "kind": "smollm3 gpu", "date": datetime.date.today().isoformat(), "machine": json.loads(last),
        "rehearsal": args.device == "cpu", "seconds": 0.0, "parts": {},
    }  # fmt: skip
    for name in args.only or PARTS:
        start = time.monotonic()
        late = start > setting.deadline
        found = {"skipped": "the time of all parts is used up"} if late else PARTS[name](setting)
        found["seconds"] = round(time.monotonic() - start, 1)
        about["parts"][name] = found
        about["seconds"] = round(time.monotonic() - began, 1)
        outcome = found.get("skipped") or found.get("fault") or "ok"
        print(f"{name}: {outcome} ({found['seconds']:.0f} s)", flush=True)
        (args.out / "gpu.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        (args.out / "gpu.md").write_text(page(about), encoding="utf-8")
    print(f"\n{page(about)}\nresults: {args.out}/gpu.json, {args.out}/gpu.md")
    return 1 if any(found.get("fault") for found in about["parts"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
