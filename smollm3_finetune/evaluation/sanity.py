"""Answers to held-out prompts: whether they end, whether they repeat themselves, whether they are empty."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smollm3_finetune.api import Progress
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.data.rows import first_question
from smollm3_finetune.evaluation.rows import HeldOutRows
from smollm3_finetune.inference.batched import Batched, padding_changes_answers
from smollm3_finetune.inference.decoding import Answer, Decoder
from smollm3_finetune.inference.precision import autocast
from smollm3_finetune.inference.sampling import Sampling
from smollm3_finetune.model.load import LoadedModel

PHRASE, TIMES = 3, 3
"""An answer loops if it ends with a phrase of at least `PHRASE` tokens at least `TIMES` times in a row."""
LONGEST_PHRASE = 90


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompts of held-out rows, as messages, with the arguments of the chat template for each."""

    messages: Sequence[Sequence[Mapping[str, Any]]]
    modes: Sequence[Mapping[str, Any]]
    max_new_tokens: int

    def __len__(self) -> int:
        return len(self.messages)


def prompts_of(
    rows: HeldOutRows, renderer: Renderer, count: int, max_new_tokens: int, room: int | None, seed: int
) -> Prompts:
    """At most `count` first questions of the rows, chosen by `seed`, whose answers fit into a context of `room` tokens.

    Rows without a question before an answer, such as raw text, give no prompt.
    """
    order = list(range(len(rows.rows)))
    random.Random(seed).shuffle(order)
    chosen: dict[int, tuple[Any, Mapping[str, Any]]] = {}
    for i in order:
        conversation = rows.rows[i].conversation
        question = first_question(conversation)
        if len(chosen) == count or not question:
            continue
        trained = renderer.mode(conversation)
        mode = dict(conversation.template_kwargs)
        mode |= {} if trained is None else {"enable_thinking": trained}
        mode |= {"tools": list(conversation.tools)} if conversation.tools else {}
        if room is None or len(renderer.prompt_ids(question, **mode)) + max_new_tokens <= room:
            chosen[i] = question, mode
    kept = [chosen[i] for i in sorted(chosen)]
    return Prompts(messages=[q for q, _ in kept], modes=[m for _, m in kept], max_new_tokens=max_new_tokens)


def answers(
    loaded: LoadedModel, renderer: Renderer, prompts: Prompts, batch_size: int, progress: Progress
) -> list[Answer]:
    """The greedy answers of a model, in the order of the prompts."""
    decoder, context = Decoder.of(loaded.model, renderer), loaded.plan.context
    ids = [renderer.prompt_ids(m, **mode) for m, mode in zip(prompts.messages, prompts.modes, strict=True)]
    found: dict[int, Answer] = {}
    with autocast(context.device, context.dtype), progress.task(f"answering {len(ids)} prompts", len(ids)) as task:
        batched = Batched(
            decoder=decoder,
            prompts=ids,
            rooms=[prompts.max_new_tokens] * len(ids),
            batch_size=batch_size,
            sampling=Sampling(),
            padded=batch_size > 1 and not padding_changes_answers(decoder, ids),
        )
        for batch in batched.answers():
            found |= {i: only for i, (only,) in batch.items()}
            task.advance(len(batch))
    return [found[i] for i in range(len(ids))]


def loops(ids: Sequence[int]) -> bool:
    """Whether tokens end with a phrase that is repeated `TIMES` times or more.

    This is the measure of Holtzman et al., The Curious Case of Neural Text Degeneration (ICLR 2020), with one more
    repetition: their answers have a fixed length, and a short answer may rightly say a phrase twice.
    """
    backwards = list(reversed(ids))
    for size in range(PHRASE, min(LONGEST_PHRASE, len(backwards) // TIMES) + 1):
        phrase = backwards[:size]
        if all(backwards[size * k : size * (k + 1)] == phrase for k in range(1, TIMES)):
            return True
    return False


def shares(found: Sequence[Answer]) -> dict[str, float]:
    """The shares of answers that ended, that loop and that are empty, and the mean number of their tokens."""
    count = len(found)
    said = [a.ids[:-1] if a.finish == "stop" else a.ids for a in found]
    return {
        "ended": sum(a.finish == "stop" for a in found) / count,
        "loops": sum(loops(ids) for ids in said) / count,
        "empty": sum(not a.text for a in found) / count,
        "mean_tokens": sum(len(ids) for ids in said) / count,
    }
