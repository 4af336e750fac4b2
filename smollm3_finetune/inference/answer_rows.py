"""Answering the rows of a file with a loaded model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Progress
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.files.checksums import CHECKSUMS
from smollm3_finetune.files.json import file_sha256
from smollm3_finetune.inference.answers_file import InOrder
from smollm3_finetune.inference.batched import Batched, padding_changes_answers
from smollm3_finetune.inference.decoding import Decoder
from smollm3_finetune.inference.sampling import Sampling

if TYPE_CHECKING:
    from smollm3_finetune.model.load import LoadedModel
    from smollm3_finetune.model.plan import ModelPlan


def answer_rows(
    loaded: LoadedModel,
    renderer: Renderer,
    out: InOrder,
    rooms: Sequence[int],
    *,
    batch_size: int,
    sampling: Sampling,
    count: int,
    seed: int,
    progress: Progress,
) -> None:
    """Answer the rows of `out` that are not written yet; `rooms` are the limits of new tokens of all rows."""
    decoder = Decoder.of(loaded.model, renderer)
    prompts = [row.ids for row in out.rows]
    padded = batch_size == 1 or not padding_changes_answers(decoder, prompts)
    if not padded:
        progress.say("padding changes the answers of this model, so only prompts of the same length share a batch")
    jobs = Batched(
        decoder=decoder, prompts=prompts, rooms=rooms, batch_size=batch_size, sampling=sampling, count=count,
        seed=seed, padded=padded,
    )  # fmt: skip
    done = range(out.written)
    with progress.task("answering", len(prompts) - len(done)) as task:
        for found in jobs.answers(done):
            for i, answers in found.items():
                out.add(i, answers)
            task.advance(sum(i not in done for i in found))


def settings_of(
    plan: ModelPlan, sampling: Sampling, mode: Mapping[str, Any], more: Mapping[str, Any], batch_size: int
) -> dict[str, Any]:
    """What answers depend on, as JSON values. Greedy answers do not depend on the batch size."""
    components = {
        word: None if choice is None else {"name": choice.component.full_name, "options": choice.as_config().options}
        for word, choice in (("loader", plan.loader), ("quant", plan.quantizer), ("adapter", plan.adapter))
    }
    sums = plan.saved.path / CHECKSUMS if plan.saved is not None else None
    return {
        "model": plan.ref,
        **components,
        "adapter_files": file_sha256(sums) if sums is not None and sums.is_file() else None,
        "device": plan.context.device.partition(":")[0],
        "dtype": str(plan.context.dtype),
        **{
            k: v for k, v in vars(sampling).items() if not sampling.greedy or k in ("temperature", "repetition_penalty")
        },
        "template_kwargs": dict(mode),
        **more,
        **({} if sampling.greedy else {"batch_size": batch_size}),
    }
