"""Functions for plugins of any kind. Heavy libraries are imported when a function is called."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from smollm3_finetune.api.data import Encoded
    from smollm3_finetune.api.models import ModelSource


@contextlib.contextmanager
def seeded(seed: int, device: str = "cpu") -> Iterator[None]:
    """Random numbers inside the context come from `seed`; the caller's stream continues afterwards as if untouched."""
    import torch

    on = torch.device(device)
    others: dict[str, Any] = {"devices": []}
    if on.type != "cpu":
        others = {"devices": [on.index or 0], "device_type": on.type}
    with torch.random.fork_rng(**others):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the context; afterwards every module has the mode that it had, even if they differed.

    Gradients are computed as before; add `torch.no_grad()` if you need none.

        with evaluating(model), torch.no_grad():
            logits = model(**batch).logits
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:  # a parent before its children
            if module.training != mode:
                module.train(mode)  # some classes do more in it than set the flag
        for module, mode in modes:  # the calls above reached modules inside too
            module.training = mode


def options_dict(options: Any) -> dict[str, Any]:
    """Return the fields of an options instance as a dictionary, for a fingerprint or a saved file."""
    return dataclasses.asdict(options)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model or an adapter, which somebody else may have made.

    Raises ModelError if the file does not hold an object, is not a regular file, or exceeds a limit of size or depth.
    """
    from smollm3_finetune.files.json import read_json

    return read_json(path)


def file_digest(file: Path) -> str:
    """The SHA-256 of the contents of a file, as 64 hexadecimal digits; read in pieces, whatever its size.

    Raises OSError if the file cannot be read.
    """
    from smollm3_finetune.files.json import file_sha256

    return file_sha256(file)


def model_files(directory: Path) -> list[Path]:
    """The files of a model beside its weights and its `config.json`, by name: for exporters.

    Tokenizer, chat template, generation config, processor configs and license; Python files only if a config of the
    model names code. Links to files outside of the model's directory are left out: somebody else may have made it.
    """
    from smollm3_finetune.model_files.writing import rest_of

    return rest_of(directory)


def copy_model_files(directory: Path, out: Path, say: Callable[[str], None] | None = None) -> None:
    """Copy the `model_files` of `directory` that the directory `out` lacks.

    `say` receives a line for each link that is left out: `ctx.progress.say`.
    """
    from smollm3_finetune.model_files.writing import copy_rest

    copy_rest(directory, out, say or (lambda line: None))


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and bits, also the sign of zero: for checks of exporters."""
    import torch

    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    ours, theirs = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (one, other))
    return bool(torch.equal(ours, theirs))


def write_tensors(
    out: Path, tensors: Iterable[tuple[str, Tensor]], *, max_bytes: int = 5_000_000_000, format: str = "pt"
) -> None:
    """Write tensors by name into safetensors files in the directory `out`, named as transformers names them.

    They are taken one by one, in their order, and memory holds at most one file. A file has at most `max_bytes` of
    tensors, except for a single tensor that is larger. `format` is stated in the files; transformers reads `pt` and
    `mlx`.
    """
    from smollm3_finetune.model_files.quantized_checkpoint import write_shards

    write_shards(out, iter(tensors), max_bytes, format)


def check_patterns(texts: Iterable[Any], names: Collection[str]) -> None:
    """Try regular expressions of a file that somebody else made, in a process that is ended if they take too long.

    `texts` are the values of the file that a library may use as expressions; other values than text are skipped.
    `names` are the module names that it matches. Raises ValueError if a text is not a regular expression, or if
    matching takes longer than `SMOLLM3_MAX_SECONDS`.
    """
    from smollm3_finetune.files.patterns import check_patterns

    check_patterns(texts, names)


def flatten_rows(examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Any]:
    """Put rows of `input_ids` and `labels` into one sequence, as arguments of a causal language model.

    `input_ids`, `labels` and `position_ids` are (1, T), with T the sum of the lengths. `cu_seq_lens_q` and
    `cu_seq_lens_k` (rows + 1,) are the row boundaries, `max_length_q` and `max_length_k` the length of the longest
    row; `use_cache` is False. Other keys of the examples are dropped. The first label of each row is ignored, because
    it would be predicted from the last token of the previous row.
    Raises ValueError if the numbers of tokens and labels of a row differ.
    """
    from smollm3_finetune.api.batches import flatten

    return flatten(examples)


def branched_example(rows: Sequence[Encoded]) -> dict[str, list[int]]:
    """Several tokenized answers to one prompt as one example, whose shared tokens are stored, and computed, once.

    Returns `input_ids` and `labels`: the shared prefix, then each branch; and `branches`, the number of tokens of each:
    [P, B₁, B₂, …]. The prefix ends before the last token that all rows share, and no branch has a supervised token in
    it. Each branch begins with that last shared token, so a branch is never empty, and its first label is ignored.

        def prepare(self, conversation, renderer, max_length):
            chosen = renderer.encode(conversation, max_length)
            rejected = renderer.encode(conversation.rejected_conversation(), max_length)
            return branched_example([chosen, rejected])
    """
    from smollm3_finetune.api.batches import branched_example

    return branched_example(rows)


def flatten_branches(examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Any]:
    """Put the branched examples of `branched_example` into one sequence, in which the branches do not see each other.

    Each branch sees the prefix of its example, and its positions continue those of the prefix, as if it followed the
    prefix alone. Returns what `flatten_rows` returns for one row for each prefix and each branch, and
    `segment_parents` (rows,): the index of the prefix of each branch, -1 for a prefix. `row_sums` and `row_logps` give
    one value for each branch, in their order; labels of prefixes are ignored.
    Raises ValueError if the lengths of the branches are not those of an example.
    """
    from smollm3_finetune.api.batches import flatten_branches

    return flatten_branches(examples)


def branch_rows(examples: Sequence[Mapping[str, Sequence[int]]]) -> list[dict[str, list[int]]]:
    """The branches of branched examples as rows of their own, each after a copy of its prefix.

    For `pad_rows` and `flatten_rows`, where a model or an adapter cannot share a prefix. `row_logps` of such a batch
    are those of `flatten_branches`, except for rounding.
    Raises ValueError if the lengths of the branches are not those of an example.
    """
    from smollm3_finetune.api.batches import branch_rows

    return branch_rows(examples)


def pad_rows(examples: Sequence[Mapping[str, Sequence[int]]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """A batch of rows of `input_ids` and `labels`, each padded on the right to the longest: an objective's collator.

    Returns `input_ids`, `labels` and `attention_mask`, each (B, T) on the CPU. Padding has the tokenizer's padding
    token, else its end-of-sequence token, and the label IGNORE_INDEX. Other names of the examples are left out. The
    first label of each row is ignored: no token of the row predicts it.

        def collator(self, tokenizer):
            return lambda examples: pad_rows(examples, tokenizer)
    """
    from smollm3_finetune.api.batches import pad

    return pad(examples, tokenizer)


def has_supervised_logits(model: nn.Module) -> bool:
    """Whether `model`, or a model that it wraps, computes logits at supervised tokens only, as in most runs.

    It then returns no logits when it is called with `labels`: its output has the `loss`, the summed cross-entropy as
    `loss_sum`, and the number of supervised tokens as `terms`.
    """
    from smollm3_finetune.api.batches import has_supervised_logits

    return has_supervised_logits(model)


def expert_stacks(model: nn.Module) -> Iterator[str]:
    """Names of the stacked weights of experts of `model`: (E, out, in) or (E, in, out), for E experts.

    These are the parameters with three dimensions, except those of convolutions and those with a first dimension of 1,
    and the quantized stacks of `stack_ops_for`. They are in no linear layer, so neither `Base.ops_for` nor an adapter
    of linear layers reaches them.
    """
    from torch.nn.modules.conv import _ConvNd

    from smollm3_finetune.api.experts import ExpertStack

    for name, module in model.named_modules():
        if isinstance(module, _ConvNd):
            continue
        if isinstance(module, ExpertStack):
            yield name
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 and parameter.shape[0] > 1 and parameter.is_floating_point():
                yield f"{name}.{own}" if name else own


def open_tensors(file: Path, device: str = "cpu") -> Any:
    """Open a safetensors file, as `safetensors.safe_open` does: `with open_tensors(file) as tensors: …`.

    Raises ModelError if the file is damaged or cannot be read; an error for lack of memory passes unchanged.
    """
    from smollm3_finetune.model_files.tensors import open_tensors

    return open_tensors(file, device)


def directory_source(path: Path, *, ref: str, fingerprint: str | None = None, **kwargs: Any) -> ModelSource:
    """Return a `ModelSource` for a directory in the Hugging Face layout, for loaders that download or convert.

    `ref` is the reference that the user typed. Pass `fingerprint` if the weights are already identified; otherwise
    the files are hashed. `kwargs` are passed to every `from_pretrained` call.
    """
    from smollm3_finetune.model_files.source import DirectorySource

    return DirectorySource(ref=ref, directory=path, known_fingerprint=fingerprint, load_kwargs=kwargs)
