"""Compares `smollm3 train --objective dpo` with `trl dpo` in speed and memory, on one fixed job.

    nox -s preference [-- --rounds 2 --pairs 8 --model DIR --write]
    nox -s preference -- --profile [--write]

The job (`speed_peers/pairs.py`): SmolLM2-135M in float32 on a CPU, LoRA of rank 16 on all linear layers except the
head, one pass over chat pairs in one order, four pairs per step, the same optimizer, learning rate, `beta` and maximum
length, no gradient checkpointing. The pairs are made of alpaca_en_demo.json in $SMOLLM3_TEST_DATA, which has no
preferences: one to three earlier turns and a question, its answer as the chosen one, and the answer of another row as
the rejected one. Both tools compute the reference in each step.

Processes, rounds, processor time and memory are those of speed.py. `--profile` shows where the time goes. Fails if the
tools did not train on the same loss, if the prompt was not shared, or if more parameters than trl has were in memory.
The losses of the first step are log 2 for any model, so the norms of its gradients are compared too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from real_model import rows
from speed import LATER_LOSS, conditions, dense_model
from speed_peers.figures import floor_of, interval, ratios
from speed_peers.job import Job
from speed_peers.pairs import NAMES, OURS, TRL, Lengths, PairResult, run, write
from speed_peers.profiling import ORDER, grouped, profile_table

Round = dict[str, PairResult]
RESULTS = Path(__file__).parent / "results" / "preference.json"
PAGE = Path(__file__).parents[1] / "docs" / "preferences.md"
BEGIN, END = "<!-- measured from here: nox -s preference -->\n", "<!-- measured to here -->\n"
SAME = 1e-4
"""Allowed difference of the losses of the first step; relative, of the norms of its gradients."""
FORWARDS = 2
"""Of each pair in a step: the model and its reference."""
TARGETS = (("speed", 2.5, ">="), ("memory", 0.5, "<="))


def differences(rounds: Sequence[Round], lengths: Sequence[Lengths], batch: int) -> list[str]:
    """Differences that show that the tools did not do the same job, or not in the expected way."""
    found = []
    separate = FORWARDS * sum(one.separate for one in lengths[batch:])
    for number, one in enumerate(rounds, start=1):
        ours, trl = one[OURS], one[TRL]
        if len(ours.losses) != len(trl.losses):
            found.append(f"round {number}: numbers of steps differ: {len(ours.losses)}, {len(trl.losses)}")
        for step, (a, b) in enumerate(zip(ours.losses, trl.losses, strict=False), start=1):
            if abs(a - b) > (SAME if step == 1 else LATER_LOSS * b):
                found.append(f"round {number}: losses of step {step} differ: {a}, {b}")
        a, b = ours.gradients[0], trl.gradients[0]
        if abs(a - b) > SAME * b:
            found.append(f"round {number}: gradients of step 1 differ: {a}, {b}")
        if ours.step_positions >= separate:
            found.append(f"round {number}: the prompt was not shared: {ours.step_positions} positions of {separate}")
        if ours.parameters > trl.parameters:
            found.append(f"round {number}: more parameters in memory: {ours.parameters}, {trl.parameters}")
    return found


def per_pair(result: PairResult) -> float:
    """Positions of a pair in one forward, padding included, in all steps except the first."""
    return result.step_positions / result.pairs / FORWARDS


def figures(rounds: Sequence[Round], lengths: Sequence[Lengths], batch: int) -> dict[str, Any]:
    """Everything that the page says, from all runs."""
    floor, counted = floor_of(rounds), lengths[batch:]
    found: dict[str, Any] = {
        "tokens": {
            "separate": statistics.mean(one.separate for one in counted),
            "shared": statistics.mean(one.shared for one in counted),
            "prompt": [f(one.prompt for one in lengths) for f in (min, statistics.median, max)],
            "answer": [
                f(n for one in lengths for n in (one.chosen, one.rejected)) for f in (min, statistics.median, max)
            ],
        },
        "tools": {},
        "ratios": {},
    }
    for name in NAMES:
        runs = [one[name] for one in rounds]
        found["tools"][name] = {
            "pairs_per_cpu_second": statistics.median(r.speed for r in runs),
            "gb_above_floor": statistics.median(r.peak_gb - floor for r in runs),
            "positions_per_pair": per_pair(runs[0]),
            "parameters": runs[0].parameters,
            "losses": runs[0].losses,
            "gradients": runs[0].gradients,
            "margins": runs[0].margins,
        }
    for what, target, direction in TARGETS:
        each = ratios(rounds, OURS, TRL, what)
        middle = statistics.median(each)
        reached = middle >= target if direction == ">=" else middle <= target
        about = {"each": each, "median": middle, "interval": interval(each), "target": f"{direction} {target}"}
        found["ratios"][what] = {**about, "reached": reached}
    return found


def profile_of(result: PairResult) -> dict[str, float]:
    """Milliseconds per pair of each group of operations, in the order of the table."""
    found = grouped(result.profile)
    return {group: 1e3 * found[group] / result.profile_tokens for group in ORDER if group in found}


def shares(profile: dict[str, float]) -> str:
    """The share of each group. A negative time outside of operations, from a busy processor, is left out."""
    positive = sorted(((ms, group) for group, ms in profile.items() if ms > 0), reverse=True)
    whole = sum(ms for ms, _ in positive)
    return ", ".join(f"{group} {100 * ms / whole:.0f} %" for ms, group in positive)


def table(found: dict[str, Any]) -> str:
    """The measured figures, as a Markdown table."""
    tools, tokens, ratio = found["tools"], found["tokens"], found["ratios"]
    ours, trl = (tools[name] for name in NAMES)
    losses = [(t["losses"][0], t["gradients"][0], t["losses"][-1]) for t in (ours, trl)]

    def judged(what: str) -> str:
        one = ratio[what]
        low, high = one["interval"]
        aim = one["target"].replace(">=", "at least").replace("<=", "at most")
        return f"{one['median']:.2f} ({low:.2f} to {high:.2f}) | {aim}{'' if one['reached'] else ': **not reached**'}"

    def line(title: str, key: str, form: str, rest: str, scale: float = 1.0) -> str:
        return f"| {title} | {ours[key] * scale:{form}} | {trl[key] * scale:{form}} | {rest} |"

    positions = ours["positions_per_pair"] / trl["positions_per_pair"]
    return "\n".join(
        [
            f"| | {OURS} | {TRL} | ratio, median of the rounds | aim |",
            "|---|---|---|---|---|",
            line("pairs per CPU-second", "pairs_per_cpu_second", ".3f", judged("speed")),
            line("peak memory above imports and weights, GB", "gb_above_floor", ".2f", judged("memory")),
            line("positions computed per pair and forward", "positions_per_pair", ".0f", f"{positions:.2f} | "),
            line(
                "parameters in memory, millions", "parameters", ".1f",
                f"{ours['parameters'] / trl['parameters']:.2f} | no second model", 1e-6,
            ),
            *(
                f"| {what} | {a:.6f} | {b:.6f} | | same to {to:g} |"
                for what, a, b, to in zip(
                    ("loss of step 1", "norm of the gradient of step 1", "last loss"),
                    *losses, (SAME, SAME, LATER_LOSS), strict=True,
                )
            ),
            "",
            f"A pair has {tokens['separate']:.0f} tokens if the prompt is computed with each answer, and "
            f"{tokens['shared']:.0f} if it is shared (mean of the counted steps). Prompts have "
            f"{_range(tokens['prompt'])} tokens, answers {_range(tokens['answer'])}.",
        ]
    )  # fmt: skip


def _range(three: Sequence[float]) -> str:
    least, middle, most = three
    return f"{least:.0f} to {most:.0f} (median {middle:.0f})"


def page(about: dict[str, Any]) -> str:
    """The section of docs/preferences.md."""
    job, versions, rounds = about["job"], about["versions"], about["rounds"]
    text = (
        f"`nox -s preference -- --rounds {rounds}`: {about['model']} in float32, LoRA of rank {job['rank']} on all "
        f"linear layers except the head, {about['rows']} chat pairs, {job['batch']} per step, at most "
        f"{job['max_length']} tokens per answer with its prompt, no gradient checkpointing, {about['threads']} thread "
        f"on {about['machine']} with {about['cores']} cores, torch {versions['torch']}, trl {versions['trl']} "
        f"({about['date']}). The rows are real chat rows, but have no preferences: a prompt is one to three earlier "
        "rows as turns, and a question; the rejected answer is that of another row. The first step is not counted. "
        f"Medians of {rounds} interleaved rounds, ratios with an interval "
        f"of 95 %:\n\n{table(about['figures'])}\n"
    )
    for name, profile in about.get("profile", {}).items():
        text += f"\nThe time of `{name}`, by kind of operation (`--profile`): {shares(profile)}.\n"
    return text


def save(about: dict[str, Any]) -> None:
    RESULTS.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    write_page(about)


def write_page(about: dict[str, Any]) -> None:
    """Fill the region of docs/preferences.md; the first time, add it before the last section."""
    text = PAGE.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    if begin:
        after = rest.partition(END)[2]
    else:
        before, after = f"{text.rstrip()}\n\n## Speed and memory\n\n", ""
    PAGE.write_text(f"{before}{BEGIN}{page(about)}{END}{after}", encoding="utf-8")


def title(model: Path) -> str:
    """The name of the model in a directory."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    smollm2 = (config["hidden_size"], config["num_hidden_layers"]) == (576, 30)
    return "SmolLM2-135M" if smollm2 else model.name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4, help="pairs per step")
    parser.add_argument(
        "--max-length", type=int, default=512, help="tokens of an answer with its prompt; no pair is cut"
    )
    parser.add_argument("--threads", type=int, default=1, help="OMP_NUM_THREADS of both tools")
    parser.add_argument("--model", type=Path, help="a directory with weights and tokenizer; default: SmolLM2-135M")
    parser.add_argument("--python-trl", type=Path, help="an interpreter in the directory of `trl`; default: this one")
    parser.add_argument("--profile", action="store_true", help="only profile one more run of each tool")
    parser.add_argument("--json", type=Path, help="file to write all runs to")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name} and {PAGE.name}")
    parser.add_argument("--page", action="store_true", help=f"only write {PAGE.name} from {RESULTS.name}")
    args = parser.parse_args()
    if args.page:
        write_page(json.loads(RESULTS.read_text(encoding="utf-8")))
        return 0
    if args.write and args.profile and not RESULTS.exists():
        parser.error("--profile --write adds to the results of a run with --write, but there are none")
    if args.pairs < 2 * args.batch:
        parser.error("--pairs must be at least twice --batch: the first step is not counted")
    if args.profile:  # the first and the last step are not profiled
        args.pairs = max(args.pairs, 3 * args.batch)
    if args.python_trl is None and importlib.util.find_spec("trl") is None:
        print("skipped: trl is not installed (pip install -c constraints.txt trl, or --python-trl)")
        return 0
    data, model = rows(), args.model or dense_model()
    if data is None or model is None:
        print("skipped: needs the wheel of the model, and alpaca_en_demo.json in the directory $SMOLLM3_TEST_DATA")
        return 0
    return measure(args, data, model)


def version_of(distribution: str, python: Path) -> str:
    """The version of a distribution in the environment of another interpreter."""
    code = f"from importlib.metadata import version; print(version({distribution!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def measure(args: argparse.Namespace, data: Path, model: Path) -> int:
    python_trl = args.python_trl or Path(sys.executable)
    with tempfile.TemporaryDirectory() as temporary:
        job = Job(
            model=f"{temporary}/model", directory=f"{temporary}/job", batch=args.batch, max_length=args.max_length
        )  # fmt: skip
        lengths = write(job, model, data, args.pairs)
        print(f"{len(lengths)} pairs, {sum(one.separate for one in lengths)} tokens; "
              f"{sum(one.shared for one in lengths)} with shared prompts", flush=True)  # fmt: skip
        if args.profile:
            runs = [run(name, job, lengths, args.threads, python_trl, profiled=True) for name in NAMES]
            print(profile_table(runs, unit="pair"))
            if args.write:
                known = json.loads(RESULTS.read_text(encoding="utf-8"))
                save({**known, "profile": {r.name: profile_of(r) for r in runs}})
            return 0
        about: dict[str, Any] = conditions(job, len(lengths), args.rounds, args.threads)
        about |= {"model": title(model), "date": f"{date.today()}", "lengths": [asdict(one) for one in lengths]}
        about["versions"]["trl"] = version_of("trl", python_trl)
        rounds: list[Round] = []
        for number in range(args.rounds):
            found: Round = {}
            for name in NAMES if number % 2 == 0 else NAMES[::-1]:
                found[name] = one = run(name, job, lengths, args.threads, python_trl)
                print(f"round {number + 1}  {name:<30} {one.speed:.3f} pairs/CPU-s, {one.whole_wall:.0f} s", flush=True)
            rounds.append(found)
        about["figures"] = figures(rounds, lengths, args.batch)
        about["results"] = [[asdict(r) for r in one.values()] for one in rounds]
    print(f"\n{table(about['figures'])}")
    wrong = differences(rounds, lengths, args.batch)
    for line in wrong:
        print(f"FAILED: {line}")
    if args.json:
        args.json.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    if args.write and not wrong:
        save(about)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
