"""What llama.cpp computes with an exported file, compared with what transformers computes with its source.

Optional: needs llama-cpp-python. llama.cpp runs in another process, see `llama_process.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import BuildContext, Check, Exported, MissingRequirementError, ModelError
from smollm3_gguf import fuzz
from smollm3_gguf.checks import stops_of
from smollm3_gguf.exporter import file_in
from smollm3_gguf.fixed_texts import TEXTS
from smollm3_gguf.llama_limits import Precision, file_type, precision
from smollm3_gguf.llama_process import Llama, LlamaRefusedError, LlamaUnusableError, llama

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

ROW = 512
"""Tokens of a row that are used; longer rows are cut."""
BUDGET = 8192
"""Tokens, over all rows, that predictions are compared on."""
TRAINING_TEXTS = 1000
"""Training rows that llama.cpp tokenizes."""
FUZZED = 20_000
"""Random texts that llama.cpp tokenizes."""
BATCH = 2000
"""Texts that are tokenized at once."""


def checks_with_llama_cpp(
    subject: Exported,
    out: Path,
    ctx: BuildContext,
    reload: Callable[[], PreTrainedModel | None] | None = None,
) -> list[Check]:
    """Compare the GGUF file in `out` with its source under llama.cpp: tokens, logits, predictions.

    `reload` returns the model with the values of the file; without it, the logits of a quantized file are compared
    with nothing that is equally precise, and only its predictions are checked. Without llama-cpp-python, the result is
    one check without a verdict.
    """
    checks: list[Check] = []
    try:
        with llama() as engine:
            _check(engine, subject, file_in(out), ctx, reload, checks)
    except LlamaUnusableError as e:
        checks.append(Check(name="llama.cpp", passed=None, says=e.with_remedy))
    except LlamaRefusedError as e:
        checks.append(Check(name="llama.cpp", passed=False, says=f"llama.cpp refuses the file: {e}"))
    return checks


def _check(
    engine: Llama,
    subject: Exported,
    file: Path,
    ctx: BuildContext,
    reload: Callable[[], PreTrainedModel | None] | None,
    checks: list[Check],
) -> None:
    """Append the checks to `checks`, so that those before an abort are kept."""
    kind = precision(file)
    engine.open(file, ROW)
    checks.append(check_tokens(engine, subject))
    prompts = [list(p)[:ROW] for p in subject.prompts()]
    theirs = [logits_of(engine, p) for p in prompts]
    with ctx.progress.task("comparing with llama.cpp"):
        source = subject.model.load(dtype=_float32()).to(ctx.device).eval()
        if not kind.quantized:
            checks.append(check_logits(theirs, [row_logits(source, p) for p in prompts], kind, "the source"))
        checks.append(check_predictions(engine, source, subject, kind))
        del source
        values = reload() if kind.quantized and reload is not None else None
        if values is not None:
            values = values.eval()
            checks.insert(
                1, check_logits(theirs, [row_logits(values, p) for p in prompts], kind, "the values of the file")
            )


def check_tokens(engine: Llama, subject: Exported) -> Check:
    """Whether llama.cpp has the source's vocabulary, tokenizes as its tokenizer, and ends an answer where it does."""
    tokenizer: Any = subject.model.tokenizer()
    texts, ends = engine.tokens()
    name = "llama.cpp tokens"
    if (size := subject.model.config.get("vocab_size")) != len(texts):
        return Check(name=name, passed=False, says=f"the file has {len(texts)} tokens, and the model {size}")
    for expected, i in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if i >= len(texts):
            return Check(name=name, passed=False, says=f"token {i} is {expected!r}, which the file does not have")
        if texts[i] != expected:
            return Check(name=name, passed=False, says=f"token {i} is {expected!r}, in the file {texts[i]!r}")
    fixed = [*TEXTS, *itertools.islice(subject.texts(), TRAINING_TEXTS)]
    fuzzed = list(fuzz.texts(FUZZED, list(tokenizer.all_special_tokens)))
    for batch, special in ((fixed, False), (fixed, True), (fuzzed, False)):
        for part in range(0, len(batch), BATCH):
            if (says := _other_ids(engine, tokenizer, batch[part : part + BATCH], special)) is not None:
                return Check(name=name, passed=False, says=says)
    stops = stops_of(subject)
    if missing := [i for i in stops if i not in ends]:
        token = tokenizer.convert_ids_to_tokens(missing[0])
        return Check(name=name, passed=False, says=f"llama.cpp does not end an answer at token {missing[0]}, {token!r}")
    more = sorted(set(ends) - {*stops, tokenizer.eos_token_id})
    count = len(fixed) + len(fuzzed)
    says = (
        f"llama.cpp gives the same ids for {count:,} texts, {len(fuzzed):,} of them random, and ends at {_shown(stops)}"
    )
    if more:
        says += f"; it also ends at {', '.join(f'{i}, {texts[i]!r}' for i in more)}, which the model does not stop at"
    return Check(name=name, passed=True, says=says, figures={"texts": count, "random texts": len(fuzzed)})


def _other_ids(engine: Llama, tokenizer: Any, texts: Sequence[str], special: bool) -> str | None:
    """What differs in the first text with other ids; None if none does."""
    theirs = engine.tokenize(texts, special)
    for text, found in zip(texts, theirs, strict=True):
        expected = tokenizer(text, add_special_tokens=special)["input_ids"]
        if list(expected) != found:
            at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), None)
            at = min(len(expected), len(found)) if at is None else at
            mine, other = list(expected[at : at + 4]), found[at : at + 4]
            return f"{text[:40]!r} has the ids {mine} from token {at}, and under llama.cpp {other}"
    return None


def _shown(ids: Sequence[int]) -> str:
    return "no token" if not ids else "token " + " and ".join(map(str, ids))


def check_logits(found: Sequence[Tensor], expected: Sequence[Tensor], kind: Precision, of: str) -> Check:
    """Compare llama.cpp's logits on fixed prompts with transformers'; the largest difference of a prompt counts."""
    from smollm3_gguf.predictions import difference

    largest = max(difference(e, f) for e, f in zip(expected, found, strict=True))
    limit = kind.logits
    passed = largest <= limit  # False for NaN
    says = f"llama.cpp differs by {largest:.1e} from transformers with {of} (limit {limit:.0e})"
    figures = {"difference": largest, "limit": limit, "prompts": len(found)}
    return Check(name="llama.cpp logits", passed=passed, says=says, figures=figures)


def check_predictions(engine: Llama, source: PreTrainedModel, subject: Exported, kind: Precision) -> Check:
    """Compare llama.cpp's predictions on rows with those of the source in float32."""
    import torch

    from smollm3_gguf.predictions import Agreement, predicted

    agreement, used = Agreement(), 0
    found = [row for row in (predicted(r, ROW) for r in subject.rows()) if row[1]]
    if not found:
        fixed = (predicted({"input_ids": p, "labels": p}, ROW) for p in subject.prompts())
        found = [row for row in fixed if row[1]]
    for ids, indices, targets in found:
        if used and used + len(ids) > BUDGET:
            break
        used += len(ids)
        theirs = logits_of(engine, ids, indices)
        agreement.add(row_logits(source, ids), indices, theirs, torch.tensor(targets))
    name = "llama.cpp predictions"
    if not agreement.comparable:
        why = "the source predicts the same everywhere" if agreement.positions else "no row has two tokens"
        return Check(name=name, passed=None, says=f"not compared: {why}")
    kl, limit = agreement.kl, kind.divergence * agreement.scale
    says = (
        f"KL divergence {kl:.2g} nats from the source (limit {limit:.2g}), "
        f"top-1 agreement {100 * agreement.top1:.1f} %, "
        f"perplexity {agreement.perplexity:.4g} (source {agreement.source_perplexity:.4g}), "
        f"{agreement.positions} positions"
    )
    figures: dict[str, float | int | str | None] = {
        "kl": kl,
        "limit": limit,
        "unrelated": agreement.scale,
        "top1": agreement.top1,
        "perplexity": agreement.perplexity,
        "source_perplexity": agreement.source_perplexity,
        "positions": agreement.positions,
        "tensors": kind.tensors,
        "llama_cpp_python": engine.version,
    }
    return Check(name=name, passed=kl <= limit, says=says, figures=figures)


def _float32() -> Any:
    import torch

    return torch.float32


def logits_of(engine: Llama, ids: Sequence[int], indices: Sequence[int] | None = None) -> Tensor:
    """llama.cpp's logits of one row, at `indices` or everywhere."""
    import torch

    return torch.from_numpy(engine.logits(ids, indices).copy())


def row_logits(model: Any, ids: Sequence[int]) -> Tensor:
    """float32 logits (tokens, vocabulary) of one row, on the CPU."""
    import torch

    with torch.no_grad():
        device = next(model.parameters()).device
        logits: Tensor = model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False).logits
    return logits[0].float().cpu()


def quantize_with_llama_cpp(source_file: Path, out_file: Path, type: str, ctx: BuildContext) -> None:
    """Quantize a float GGUF file with llama.cpp's own function, for types that the gguf package cannot write.

    `type` is a name such as `q4_k_m`. Raises MissingRequirementError without llama-cpp-python, and ModelError if
    llama.cpp refuses the file.
    """
    try:
        with llama() as engine, ctx.progress.task(f"quantizing to {type} with llama.cpp"):
            engine.quantize(source_file, out_file, file_type(type))
    except LlamaUnusableError as e:
        if e.remedy is None:
            raise ModelError(
                f"llama.cpp did not quantize to {type}: {e}", hint="choose another type: --type q8_0"
            ) from e
        raise MissingRequirementError(f"type {type} needs llama.cpp, and {e}", hint=e.remedy) from e
    except LlamaRefusedError as e:
        raise ModelError(f"llama.cpp did not quantize to {type}: {e}", hint="choose another type: --type q8_0") from e
