"""What is left of training when a model is shipped in few bits, with and without `train.ship_as`.

    python benchmarks/shipping.py [--targets bnb-4bit hqq-3] [--adapters lora] [--steps 60] [--work DIR] [--write]
    python benchmarks/shipping.py --times [--rounds 8]

Trains SmolLM2-135M (see real_model.py) on rows of `alpaca_en_demo.json` in $SMOLLM3_TEST_DATA, for each adapter and
format: plainly, once for all formats, and with `--ship-as`. The base is not quantized. Both runs are shipped in the
format: by `merge --requantize`, `export`, or, for quantizers that write no checkpoint, by loading the merged model. The
retained share is (base − shipped) / (base − adapter) of the loss of held-out rows, where the base and the adapter are
those of the plain run, with a 95 % bootstrap interval over rows: what the format costs the base counts as a loss, and
is also stated alone. A run with `--ship-as` is also compared bit for bit: `merge` and `export` refuse a result whose
weights are not those that training computed with, and state the number of layers compared.

Each cell is a file in results/shipping/. A cell that has one is not measured again. `--times` measures the time of a
step beside a plain one instead, and `--write` renews the figures in docs/shipping.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from real_model import fetch_model
from shipping_cells import ADAPTERS, TARGETS, Setting, Target

from smollm3_finetune.evaluation.retained import retained
from smollm3_finetune.model.load import load_model

RESULTS = Path(__file__).parent / "results" / "shipping"
PAGE = Path(__file__).parents[1] / "docs" / "shipping.md"
BEGIN, END = "<!-- measured from here: nox -s shipping -->\n", "<!-- measured to here -->\n"
ENOUGH, SLOWEST = 0.95, 1.5


def cell(setting: Setting, target: Target, title: str, adapter: str) -> dict[str, Any]:
    """The retained share of a format and an adapter, without and with `ship_as`, and the layers that were compared."""
    name = f"plain-{adapter}"
    plain = setting.train(name, adapter)
    base, learned = setting.run_losses(name, plain)
    run = setting.train(f"ship-{title}-{adapter}", adapter, target)
    without, _ = setting.shipped_losses(f"plain-{title}-{adapter}", plain, target)
    with_it, report = setting.shipped_losses(f"ship-{title}-{adapter}", run, target)
    _, own = setting.run_losses(f"ship-{title}-{adapter}", run)
    return {
        "target": title,
        "adapter": adapter,
        **setting.job(),
        "without": retained(base, learned, without).as_json(),
        "with": retained(base, learned, with_it).as_json(),
        "own": retained(base, own, with_it, as_shipped=True).as_json(),
        "base_in_format": setting.base_losses(target, title).loss.mean,
        "bit_for_bit": compared(report),
    }


def compared(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `merge` or `export` states of the comparison with the weights of training; None if there was none."""
    found: dict[str, Any] | None = report.get("shipped")
    checks = [check for check in report.get("checks", ()) if "layers" in check["figures"]]
    return {"layers": checks[-1]["figures"]["layers"]} if found is None and checks else found


def dense(work: Path, ref: str | None) -> str:
    """A directory with the model: a GGUF file is converted once."""
    if ref is not None and Path(ref).is_dir():
        return ref
    out = work / "model"
    if not out.exists():
        loaded = load_model(ref or str(fetch_model() or sys.exit(0)), dtype="float32", device="cpu")
        loaded.model.save_pretrained(out)
        loaded.tokenizer.save_pretrained(out)
    return str(out)


def table(cells: Mapping[tuple[str, str], Mapping[str, Any]], times: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| format | adapter | base | base in the format | trained | shipped without `ship_as` | with it "
        "| kept without `ship_as` | kept with it | of its own gain | gap closed without `ship_as` | with it "
        "| layers equal bit for bit | step time |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for title in TARGETS:
        for adapter in ADAPTERS:
            if (found := cells.get((title, adapter))) is None:
                continue
            ratio = times.get(adapter, {}).get(title)
            layers = (found["bit_for_bit"] or {}).get("layers", "–")
            time = "–" if ratio is None else f"{ratio['ratio_cpu']:.2f} ×"
            shares = f"{_share(found['without'])} | {_share(found['with'])} | {_share(found['own'])}"
            without, with_it = found["without"], found["with"]
            all_losses = (without["base"], found.get("base_in_format"), without["adapter"], without["shipped"],
                          with_it["shipped"])  # fmt: skip
            losses = " | ".join("–" if loss is None else f"{loss:.3f}" for loss in all_losses)
            gaps = f"{_gap_closed(found, without)} | {_gap_closed(found, with_it)}"
            lines.append(f"| {title} | {adapter} | {losses} | {shares} | {gaps} | {layers} | {time} |")
    settings = sorted({(c["steps"], c["batch"], c["length"]) for c in cells.values()})
    shown = "; ".join(f"{s} steps of {b} rows of up to {n} tokens" for s, b, n in settings)
    rows = sorted({c["with"]["rows"] for c in cells.values()})
    held_out = f"{', '.join(map(str, rows))} held-out rows; 95 % intervals"
    about = f"SmolLM2-135M, its base not quantized, float32, CPU: {shown}; {held_out}."
    return "\n".join([*lines, "", about]) + "\n"


def _gap_closed(found: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    """How far training came from the base in the format to the trained model that is not in the format."""
    start = found["base_in_format"]
    return f"{(start - measured['shipped']) / (start - measured['adapter']):.2f}"


def _share(found: Mapping[str, Any]) -> str:
    if found["share"] is None:
        return "no gain"
    return f"{found['share']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def collected() -> tuple[dict[tuple[str, str], Any], dict[str, Any]]:
    """The cells that were measured, and the times by adapter."""
    cells, times = {}, {}
    for file in sorted(RESULTS.glob("*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        if file.name.startswith("times-"):
            times[file.stem.removeprefix("times-")] = found
        else:
            cells[found["target"], found["adapter"]] = found
    return cells, times


def write_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, found, rest = text.partition(BEGIN)
    if not found:
        sys.exit(f"{PAGE} has no line {BEGIN.strip()}")
    PAGE.write_text(f"{before}{BEGIN}\n{table(*collected())}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), help="formats")
    parser.add_argument("--adapters", nargs="+", choices=ADAPTERS, default=list(ADAPTERS), help="adapters")
    parser.add_argument("--ref", help="SmolLM2-135M as a GGUF file or a directory; by default it is downloaded")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of each run")
    parser.add_argument("--batch", type=int, default=4, help="rows in each step")
    parser.add_argument("--length", type=int, default=128, help="longest row, in tokens")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate")
    parser.add_argument("--held-out", type=int, default=64, help="held-out rows")
    parser.add_argument("--work", type=Path, help="folder for runs and models, to continue; default: a temporary one")
    parser.add_argument("--times", action="store_true", help="measure the time of a step instead")
    parser.add_argument("--rounds", type=int, default=8, help="timed steps of each variant")
    parser.add_argument("--write", action="store_true", help="only renew docs/shipping.md from results/shipping")
    args = parser.parse_args()
    if args.write:
        write_page()
        return 0
    RESULTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = (args.work or Path(folder)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("SMOLLM3_CACHE", str(work / "cache"))
        model = dense(work, args.ref)
        setting = Setting(model, work, args.steps, args.batch, args.length, args.rate, args.held_out)
        return _times(setting, args) if args.times else _cells(setting, args)


def _times(setting: Setting, args: argparse.Namespace) -> int:
    from shipping_times import times

    slow = 0
    for adapter in args.adapters:
        file = RESULTS / f"times-{adapter}.json"
        found = json.loads(file.read_text()) if file.exists() else {}
        for title in args.targets:
            target = TARGETS[title]
            if target.calibration:
                continue  # its grid needs a calibration; a step costs what one on the grid of hqq does
            measured = times(setting, adapter, {title: target}, args.rounds)
            found |= {title: {**measured[title], "plain": measured["plain"]}}
            print(f"{title:<26} {adapter:<5} {measured[title]}", flush=True)
            slow += measured[title]["ratio_cpu"] > SLOWEST
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if slow else 0


def _cells(setting: Setting, args: argparse.Namespace) -> int:
    lost = False
    for title in args.targets:
        for adapter in args.adapters:
            file = RESULTS / f"{title}-{adapter}.json"
            if not file.exists() or "own" not in json.loads(file.read_text()):
                found = cell(setting, TARGETS[title], title, adapter)
                file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            found = json.loads(file.read_text())
            if any(found.get(key) != value for key, value in setting.job().items()):
                sys.exit(f"{file} was measured with other settings: delete it, and the runs of --work")
            own = f"{_share(found['own'])} of its own gain"
            shares = f"{_share(found['without'])} without, {_share(found['with'])} with ship_as, {own}"
            print(f"{title:<26} {adapter:<5} {shares}; {found['bit_for_bit']}", flush=True)
            for share, what in (("with", "the gain of the plain run"), ("own", "its own gain")):
                if (kept := found[share]["share"]) is None:
                    print(f"UNKNOWN: the share of {what}, {title} with {adapter}: {found[share]['reason']}")
                elif kept < ENOUGH:
                    print(f"FAILED: {title} with {adapter} keeps less than {ENOUGH:.0%} of {what}")
                lost |= kept is None or kept < ENOUGH
    return int(lost)


if __name__ == "__main__":
    sys.exit(main())
