"""An adapter that changes the embeddings and not the head, in a forward and in its merge."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from smollm3_finetune.api import AdapterSpec, BuildContext, hookimpl


class EmbeddingsOnly:
    """Doubles the embeddings in the forward, so the head stays as it is."""

    def __init__(self, options: Any) -> None: ...

    def attach(self, base: Any, ctx: BuildContext, total_steps: int | None) -> Any:
        return Doubled(base)

    def restore(self, base: Any, path: Path, ctx: BuildContext, total_steps: int | None) -> Any:
        return Doubled(base)

    def merge(self, dense: Any, path: Path) -> Any:
        import torch

        embeddings = dense.get_input_embeddings()
        if not dense.config.tie_word_embeddings:
            embeddings.weight = torch.nn.Parameter(embeddings.weight.detach().clone(), requires_grad=False)
        with torch.no_grad():
            embeddings.weight.mul_(2)
        return dense


class Doubled:
    def __init__(self, base: Any) -> None:
        self.base = base
        self.model = base.model
        self.model.get_input_embeddings().register_forward_hook(lambda module, args, output: 2 * output)

    def disabled(self) -> AbstractContextManager[None]:
        return nullcontext()

    def on_step(self, step: int) -> None: ...

    def save(self, path: Path) -> None:
        (path / "doubled.txt").write_text("x")


@hookimpl
def smollm3_adapters() -> list[AdapterSpec]:
    return [
        AdapterSpec(
            name="embeddings-only",
            summary="doubles the embeddings",
            factory="one_of_a_pair:EmbeddingsOnly",
            claims=lambda about: about.get("peft_type") == "DOUBLED",
            api=2,
        )
    ]
