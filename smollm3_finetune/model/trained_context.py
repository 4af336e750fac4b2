"""Whether a saved adapter is used with the context (YaRN) that it was trained with."""

from __future__ import annotations

from smollm3_finetune.errors import ModelError
from smollm3_finetune.model.plan import ModelPlan
from smollm3_finetune.model_files.context_length import context_of, rope_type


def check_trained_context(plan: ModelPlan) -> None:
    """Raises ModelError if an adapter was trained with another context than the model is opened with."""
    saved, config = plan.saved, plan.source.config
    if saved is None or saved.loader is None:
        return
    trained, own = saved.loader.options.get("context"), getattr(plan.loader.options, "context", None)
    takes = context_of(config) or 0
    scaled = own is not None and own == takes and rope_type(config) == "yarn"
    native = int(config["rope_parameters"]["original_max_position_embeddings"]) if scaled else takes
    if trained == own or not (scaled or (isinstance(trained, int) and trained > native)):
        return
    words = [f"context={n}" if n else "no context" for n in (trained, own)]
    raise ModelError(
        f"the adapter {saved.path} was trained with {words[0]}, but {plan.ref!r} is opened with {words[1]}",
        hint=f"--loader-opt context={trained}; to use it anyway: --any-base"
        if trained
        else "omit --loader-opt context; to use it anyway: --any-base",
    )
