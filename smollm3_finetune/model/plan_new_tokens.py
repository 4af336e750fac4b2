"""Plans the new tokens of a model: which ones its tokenizer lacks, and whether the adapter trains them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from smollm3_finetune.components.kinds import ADAPTER
from smollm3_finetune.components.negotiation import refined
from smollm3_finetune.errors import IncompatibleError, SmolLM3Error
from smollm3_finetune.model.new_tokens import (
    KEY,
    NewToken,
    added_tokens,
    check_continued,
    known_line,
    named,
    split_known,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from smollm3_finetune.api import Env
    from smollm3_finetune.components.registry import Registry
    from smollm3_finetune.components.selection import SelectedComponent
    from smollm3_finetune.model.saved_adapter import SavedAdapter


def planned_tokens(
    registry: Registry,
    declared: Sequence[str],
    saved: SavedAdapter | None,
    adapter: SelectedComponent | None,
    env: Env,
    embeddings: int | None,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    say: Callable[[str], None],
) -> tuple[NewToken, ...]:
    """The tokens that the model gets: those of a saved adapter, else the `declared` ones that it lacks.

    `embeddings` is the number that the model has; a token of the tokenizer beyond them counts as lacking.
    Reads the tokenizer only if tokens are declared. Raises IncompatibleError if the adapter does not train them.
    """
    if not declared:
        return saved.new_tokens if saved is not None else ()
    own = tokenizer()
    known, lacking = split_known(own, declared, embeddings)
    if saved is not None:
        check_continued(declared, saved.new_tokens, known, str(saved.path))
    if known:
        say(known_line(known))
    if saved is not None:
        return saved.new_tokens
    if lacking and adapter is not None and not refined(adapter, env).trains_new_tokens:
        raise IncompatibleError(
            f"{KEY} adds {named(lacking)}, but {ADAPTER.flag} {adapter.spec.name} does not train the rows of new "
            "tokens",
            hint=_hint(registry, adapter),
        )
    return added_tokens(own, lacking, embeddings)


def _hint(registry: Registry, adapter: SelectedComponent) -> str:
    """The installed adapters that train new tokens; the chosen one without its options, if these are the reason."""
    if getattr(adapter.component.spec, "trains_new_tokens", False):
        return f"{ADAPTER.flag} {adapter.spec.name} with its default options"
    found = []
    for component in registry.of(ADAPTER):
        with contextlib.suppress(SmolLM3Error):
            if getattr(component.spec, "trains_new_tokens", False):
                found.append(component.spec.name)
    return " or ".join(f"{ADAPTER.flag} {name}" for name in sorted(found)) or f"leave {KEY} out"
