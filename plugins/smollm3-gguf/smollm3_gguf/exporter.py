"""The exporter `gguf`: one file with weights, tokenizer and chat template, for llama.cpp and what is built on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smollm3_finetune.api import (
    BuildContext,
    Check,
    Exported,
    ModelError,
    ModelSource,
    open_checkpoint,
    read_json,
)
from smollm3_gguf.families import check_config, settled, stated
from smollm3_gguf.llama_process import check_installed
from smollm3_gguf.options import GgufExportOptions
from smollm3_gguf.types import K_QUANTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from smollm3_gguf.round_trip import GgufRoundTrip


def check_source(options: GgufExportOptions, source: ModelSource) -> None:
    """Refuse a model that cannot be exported, from its config, and from its tokenizer if that is on this machine.

    Light. `write` checks both again, with everything that transformers knows.
    """
    from smollm3_gguf.vocabulary import check_tokenizer

    check_config(stated(source.config))
    directory = getattr(source, "directory", None)
    if directory is not None and (file := Path(directory) / "tokenizer.json").is_file():
        check_tokenizer(read_json(file))
    if options.type in K_QUANTS:
        check_installed(options.type)


class GgufExporter:
    """Writes `NAME-TYPE.gguf`, and a Modelfile on request."""

    fuzzed = 100_000
    """Random texts whose token ids are compared."""

    def __init__(self, options: GgufExportOptions) -> None:
        self.options = options

    def write(self, subject: Exported, out: Path, ctx: BuildContext) -> None:
        from smollm3_gguf.checks import generation_of, stops_of
        from smollm3_gguf.vocabulary import vocabulary_of
        from smollm3_gguf.write import write_gguf

        config, option = subject.model.config, self.options.type
        check_config(settled(config))
        file = out / f"{subject.name}-{option.upper()}.gguf"
        dense = out / f"{subject.name}-F32.partial" if option in K_QUANTS else file
        vocabulary = vocabulary_of(subject.model.tokenizer(), int(config["vocab_size"]), stops_of(subject))
        write_gguf(
            dense,
            open_checkpoint(subject.model),
            config=config,
            vocabulary=vocabulary,
            generation=generation_of(subject),
            option=option,
            name=subject.name,
            progress=ctx.progress,
        )
        if option in K_QUANTS:
            from smollm3_gguf.llama import quantize_with_llama_cpp

            quantize_with_llama_cpp(dense, file, option, ctx)
            dense.unlink()
        if self.options.modelfile:
            from smollm3_gguf.modelfile import write_modelfile

            write_modelfile(out / "Modelfile", file.name, subject, ctx)

    def round_trip(self, source: ModelSource, ctx: BuildContext) -> GgufRoundTrip:
        """See `smollm3_finetune.api.RoundTripMaker`."""
        from smollm3_gguf.names import gguf_name
        from smollm3_gguf.round_trip import GgufRoundTrip
        from smollm3_gguf.types import type_of

        option = self.options.type

        def kind(module: str, shape: tuple[int, int]) -> str:
            name = gguf_name(f"{module}.weight")
            return "f32" if name is None else type_of(name, option, shape[1])

        return GgufRoundTrip(kind)

    def verify(self, subject: Exported, out: Path, ctx: BuildContext) -> Sequence[Check]:
        from smollm3_gguf.checks import check_file

        checks = check_file(subject, file_in(out), self.options.type, self.fuzzed, ctx)
        if all(check.passed for check in checks):
            from smollm3_gguf.llama import checks_with_llama_cpp

            checks += checks_with_llama_cpp(subject, out, ctx, lambda: self.reload(subject, out, ctx))
        return checks

    def reload(self, subject: Exported, out: Path, ctx: BuildContext) -> PreTrainedModel:
        import torch

        from smollm3_gguf.architectures import implied_config
        from smollm3_gguf.header import read_header
        from smollm3_gguf.reading import read_model
        from smollm3_gguf.tensors import read_tensor

        file = file_in(out)
        with file.open("rb") as stream:
            header = read_header(stream)
        config = implied_config(header, "float32", file.name, lambda name: read_tensor(file, header, name))
        model = read_model(file.name, file, header, config, torch.float32)
        return model.to(ctx.device).eval()


def file_in(directory: Path) -> Path:
    """The GGUF file in the directory of an export. Raises ModelError unless there is exactly one."""
    files = sorted(directory.glob("*.gguf"))
    if len(files) != 1:
        raise ModelError(f"{directory} has {len(files)} GGUF files instead of one", hint="export again")
    return files[0]
