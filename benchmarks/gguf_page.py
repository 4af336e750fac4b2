"""The generated part of docs/exporting-gguf.md: figures of every type, and llama.cpp's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "exporting-gguf.md"
BEGIN, END = "<!-- measured from here: nox -s gguf -->\n", "<!-- measured to here -->\n"
TITLES = {
    "tiny": "The embedded model, a SmolLM3 of 8 layers that knows only short chats",
    "nope": "A random SmolLM3 of 8 layers, width 256",
    "real": "SmolLM2-135M, whose weights were in Q4_1 before",
}
HEADER = (
    "| type | matrices | size, MB | checks passed | logits: difference | KL divergence, nats | top-1 agreement "
    "| perplexity |\n|---|---|---|---|---|---|---|---|\n"
)


def write_page(results: Mapping[str, Any]) -> None:
    """Replace the generated part of the page; the other parts are written by hand."""
    text = PAGE.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE.name} has no lines {BEGIN.strip()} and {END.strip()}")
    PAGE.write_text(f"{before}{BEGIN}\n{page(results)}\n{END}{after}", encoding="utf-8")


def page(results: Mapping[str, Any]) -> str:
    """The generated part as Markdown."""
    parts = []
    for name in (n for n in TITLES if n in results["models"]):
        files = sorted(results["models"][name], key=lambda file: file["bytes"], reverse=True)
        source = _figures(files[0], "llama.cpp predictions")["source_perplexity"]
        positions = _figures(files[0], "llama.cpp predictions")["positions"]
        rows = "\n".join(map(_row, files))
        parts.append(
            f"### {TITLES[name]}\n\nPerplexity of the source: {source:.2f}. {results['rows']} rows of at most "
            f"{results['length']} tokens, {positions} positions.\n\n{HEADER}{rows}"
        )
    if results["answers"]:
        parts.append(_answers(results["answers"]))
    return "\n\n".join(parts) + "\n"


def _row(file: Mapping[str, Any]) -> str:
    passed = sum(bool(c["passed"]) for c in file["checks"])
    logits, predictions = (_figures(file, f"llama.cpp {name}") for name in ("logits", "predictions"))
    cells = (
        f"`{file['type']}`",
        predictions["tensors"],
        f"{file['bytes'] / 1e6:.1f}",
        f"{passed} of {len(file['checks'])}",
        f"{logits['difference']:.1e}",
        f"{predictions['kl']:.2g}",
        f"{100 * predictions['top1']:.1f} %",
        f"{predictions['perplexity']:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def _figures(file: Mapping[str, Any], check: str) -> Mapping[str, Any]:
    figures: Mapping[str, Any] = next(c["figures"] for c in file["checks"] if c["name"] == check)
    return figures


def _answers(found: Sequence[Mapping[str, Any]]) -> str:
    same, tokens = sum(bool(a["same"]) for a in found), sum(a["tokens"] for a in found)
    return (
        f"### Greedy answers\n\nThe `f32` file of SmolLM2-135M answers {len(found)} questions under llama.cpp, and the "
        f"source answers them under transformers, at most 24 tokens each: {same} of {len(found)} answers have the same "
        f"token IDs, {tokens} tokens in all."
    )
