"""New tokens: texts that get a token of their own, with a row of the embeddings and of the output layer.

`data.add_tokens` names them. The tokenizer gets those that it lacks, and the loaded base gets a row for each of them,
which starts as the mean of the rows of the pieces that the tokenizer had for the text before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollm3_finetune.errors import ConfigError, IncompatibleError, ModelError, did_you_mean
from smollm3_finetune.files.limits import CONFIG_SIZE, read_text
from smollm3_finetune.paths import user_path

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from smollm3_finetune.api import Base

KEY = "data.add_tokens"
SHOWN = 5
"""The number of tokens that a message names."""
LISTED = 50
"""The number of tokens that a card names."""


@dataclass(frozen=True)
class NewToken:
    """A token that was added to the tokenizer of a model."""

    text: str
    id: int
    pieces: tuple[int, ...]
    """The tokens of the same text before it was added: its rows start as the mean of theirs."""

    def as_json(self) -> dict[str, Any]:
        return {"token": self.text, "id": self.id, "pieces": list(self.pieces)}

    @classmethod
    def of(cls, values: Any) -> NewToken:
        """From JSON. Raises TypeError for values of another type."""
        if not isinstance(values, Mapping):
            raise TypeError("a new token must be an object")
        text, number, pieces = values.get("token"), values.get("id"), values.get("pieces")
        if not isinstance(text, str) or not text:
            raise TypeError("the token of a new token must be text")
        if not isinstance(pieces, list) or not pieces or not all(_is_id(i) for i in (number, *pieces)):
            raise TypeError("the id and the pieces of a new token must be whole numbers")
        return cls(text=text, id=int(str(number)), pieces=tuple(pieces))


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def declared_tokens(texts: Sequence[str], file: str | None) -> tuple[str, ...]:
    """The texts of `data.add_tokens` and the lines of `data.add_tokens_file`, once each.

    Raises ConfigError if a text cannot be a token, or the file cannot be read.
    """
    found = [(text, f"{KEY}: {text!r}") for text in texts]
    if file is not None:
        path = user_path(file, f"{KEY}_file")
        try:
            lines = read_text(path, CONFIG_SIZE, "utf-8-sig").splitlines()
        except FileNotFoundError as e:
            raise ConfigError(f"{KEY}_file: the file {file!r} does not exist", hint=f"--set {KEY}_file=FILE") from e
        except (OSError, ValueError) as e:
            raise ConfigError(
                f"{KEY}_file: {file!r} cannot be read: {getattr(e, 'strerror', None) or e}",
                hint="write one token per line, in UTF-8",
            ) from e
        found += [(line.strip(), f"{file}:{i}: {line!r}") for i, line in enumerate(lines, start=1) if line.strip()]
        if not any(line.strip() for line in lines):
            raise ConfigError(f"{KEY}_file: {file!r} has no tokens", hint="write one token per line")
    for text, where in found:
        if not text or text != text.strip() or len(text.splitlines()) != 1:
            raise ConfigError(
                f"{where} cannot be a token: a token has one line, and no space at its start or end",
                hint=f"--set '{KEY}=[<tool>]'",
            )
    return tuple(dict.fromkeys(text for text, _ in found))


def split_known(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], embeddings: int | None
) -> tuple[list[str], list[str]]:
    """The texts that `tokenizer` has as one token with an embedding, and the others."""
    known: list[str] = []
    lacking: list[str] = []
    for text in texts:
        beyond = embeddings is not None and max(_ids(tokenizer, text), default=0) >= embeddings
        (known if is_one_token(tokenizer, text) and not beyond else lacking).append(text)
    return known, lacking


def is_one_token(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether `text` alone is exactly one token, which stands for this text."""
    ids = _ids(tokenizer, text)
    return len(ids) == 1 and (
        tokenizer.convert_ids_to_tokens(ids[0]) == text or str(tokenizer.decode(ids)).strip() == text
    )


def added_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], embeddings: int | None
) -> tuple[NewToken, ...]:
    """Add `texts`, which `split_known` found to be lacking, to `tokenizer`.

    Raises ConfigError if one contains a token that was added before, and IncompatibleError if the tokenizer has other
    tokens without an embedding.
    """
    before = tokenizer.get_added_vocab()
    for text in texts:
        if (
            inside := next((token for token in before if token.strip() and token in text and token != text), None)
        ) is not None:
            raise ConfigError(
                f"{KEY}: {text!r} contains {inside!r}, which is a token of the model already",
                hint=f"choose a text without {inside!r}",
            )
    pieces = {text: tuple(_pieces(tokenizer, text)) for text in texts}
    if empty := next((text for text, ids in pieces.items() if not ids), None):
        raise ConfigError(f"{KEY}: the tokenizer gives no tokens for {empty!r}", hint="choose another text")
    _add(tokenizer, [text for text in texts if text not in before])
    found = tuple(
        NewToken(text=text, id=int(tokenizer.convert_tokens_to_ids(text)), pieces=pieces[text]) for text in texts
    )
    if found and embeddings is not None:
        last = max(token.id for token in found)
        others = sorted(text for text, i in before.items() if embeddings <= i < last and text not in pieces)
        if others:
            raise IncompatibleError(
                f"{KEY}: the tokenizer has tokens beyond the {embeddings:,} embeddings of the model, which would get "
                f"rows without a meaning: {named(others)}",
                hint=f"add them to {KEY} too",
            )
    return found


def _pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text; those of its parts if it is one token, which has no embedding."""
    ids = _ids(tokenizer, text)
    return ids if len(ids) > 1 or len(text) < 2 else [*_ids(tokenizer, text[:1]), *_ids(tokenizer, text[1:])]


def add_to(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[NewToken]) -> None:
    """Add `tokens` to a tokenizer; those that it has are left as they are.

    Raises ModelError if it gives one of them another id than it had when it was added.
    """
    known = tokenizer.get_added_vocab()
    _add(tokenizer, [token.text for token in tokens if token.text not in known])
    for token in tokens:
        if (found := tokenizer.convert_tokens_to_ids(token.text)) != token.id:
            raise ModelError(
                f"the tokenizer gives the new token {token.text!r} the id {found}, but the adapter was trained with "
                f"{token.id}",
                hint="use the base that the adapter was trained on",
            )


def _add(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Ordinary added tokens: matched everywhere as they are, and kept by `skip_special_tokens`."""
    from transformers import AddedToken

    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in texts])


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def named(tokens: Sequence[str]) -> str:
    """The first tokens in quotes, and the number of the others."""
    more = len(tokens) - SHOWN
    return ", ".join(map(repr, tokens[:SHOWN])) + (f" and {more:,} more" if more > 0 else "")


def shown_tokens(tokens: Sequence[NewToken]) -> str:
    """All tokens with their ids, as Markdown; the first ones if there are many."""
    shown = [f"{_code(token.text)} ({token.id})" for token in tokens[:LISTED]]
    more = len(tokens) - LISTED
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "")


def _code(text: str) -> str:
    """Inline code of a table cell."""
    mark = "``" if "`" in text else "`"
    space = " " if "`" in text else ""
    return f"{mark}{space}{text}{space}{mark}".replace("|", "\\|")


def known_line(known: Sequence[str]) -> str:
    """What is said about declared tokens that the tokenizer has already."""
    verb, them = ("is a token", "it") if len(known) == 1 else ("are tokens", "them")
    return f"{KEY}: {named(known)} {verb} of the model already: nothing is added for {them}"


def check_continued(declared: Sequence[str], tokens: Sequence[NewToken], known: Sequence[str], adapter: str) -> None:
    """Raises IncompatibleError if `declared` has tokens that a saved adapter, which has `tokens`, does not train."""
    have = [token.text for token in tokens]
    if other := [text for text in declared if text not in have and text not in known]:
        near = did_you_mean(other[0], have)
        raise IncompatibleError(
            f"{KEY} names {named(other)}, but the adapter {adapter} was trained without "
            f"{'it' if len(other) == 1 else 'them'}: tokens are added when a new adapter begins",
            hint=f"did you mean {near!r}?" if near else "merge it, and train a new adapter: --from RUN --fresh-adapter",
        )


# ------------------------------------------------------------------------------------------------------ calibration


def without_new(
    rows: Callable[[], Sequence[Sequence[int]]], tokens: Sequence[NewToken]
) -> Callable[[], Sequence[Sequence[int]]]:
    """Calibration rows with the pieces of each new token in its place: the base is quantized before it has new rows.

    Each row keeps its length.
    """
    if not tokens:
        return rows
    pieces = {token.id: token.pieces for token in tokens}

    def replaced() -> list[list[int]]:
        return [[piece for i in row for piece in pieces.get(i, (i,))][: len(row)] for row in rows()]

    return replaced


# ------------------------------------------------------------------------------------------------------------ the rows


def with_new_rows(base: Base, tokens: Sequence[NewToken], quantizer: str) -> Base:
    """The base with a row of the embeddings, and of an output layer of its own, for each new token.

    Rows that the model has beyond its vocabulary are used; more are added if there are not enough. Each starts as the
    mean of the rows of the token's pieces. The output layer stays tied if it was. Raises IncompatibleError if the
    embeddings or the output layer are not ordinary layers, and ModelError if the pieces have no rows.
    """
    import torch

    if not tokens:
        return base
    model: Any = base.model
    _check_ordinary(base, quantizer)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows = int(embeddings.weight.shape[0])
    if (beyond := max(piece for token in tokens for piece in token.pieces)) >= rows:
        raise ModelError(
            f"the pieces of the new tokens go up to the id {beyond}, but the model has {rows:,} embeddings",
            hint="use the base that the adapter was trained on",
        )
    needed = max(token.id for token in tokens) + 1
    if needed > rows and len({token.id for token in tokens if token.id >= rows}) != needed - rows:
        raise ModelError(
            f"the new tokens go up to the id {needed - 1}, but they do not follow the {rows:,} embeddings of the model",
            hint="use the base that the adapter was trained on",
        )
    tied = head is None or head.weight is embeddings.weight
    weights = [embeddings.weight] if tied else [embeddings.weight, head.weight]
    started = [_means(weight, tokens) for weight in weights]
    if needed > rows:
        device = embeddings.weight.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            model.resize_token_embeddings(needed, mean_resizing=False)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is not None and tied != (head.weight is embeddings.weight):
        raise IncompatibleError(
            f"the output layer of {type(model).__name__} does not stay tied to its embeddings when they are resized",
            hint=f"leave {KEY} out",
        )
    ids = torch.tensor([token.id for token in tokens], device=embeddings.weight.device)
    biased = getattr(head, "bias", None) if not tied else None
    with torch.no_grad():
        for layer, values in zip((embeddings, head), started, strict=False):
            layer.weight[ids.to(layer.weight.device)] = values.to(layer.weight)
        if biased is not None:
            for token in tokens:
                biased[token.id] = biased[list(token.pieces)].float().mean().to(biased)
    model.requires_grad_(False)
    return base


def _means(weight: Tensor, tokens: Sequence[NewToken]) -> Tensor:
    """The mean of the rows of each token's pieces (N, D), computed in float32 or wider."""
    import torch

    wide = torch.promote_types(weight.dtype, torch.float32)
    rows = [weight.detach()[list(token.pieces)].to(wide).mean(dim=0) for token in tokens]
    return torch.stack(rows)


def _check_ordinary(base: Base, quantizer: str) -> None:
    """Raises IncompatibleError if the embeddings or the output layer are not ordinary layers of a float dtype."""
    from torch import nn

    model: Any = base.model
    expected: dict[str, type[nn.Module]] = {"embeddings": nn.Embedding, "output layer": nn.Linear}
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    for (what, kind), layer in zip(expected.items(), layers, strict=True):
        if layer is None and kind is nn.Linear:
            continue
        weight: Any = getattr(layer, "weight", None)
        quantized = layer is not None and base.ops_for(layer) is not None
        if not quantized and isinstance(layer, kind) and type(weight) is nn.Parameter and weight.is_floating_point():
            continue
        raise IncompatibleError(
            f"{KEY} adds rows to the {what} of {type(model).__name__}, "
            + (f"which {quantizer} quantizes" if quantized else f"which are of type {type(layer).__name__}"),
            hint=f"choose a quantizer that leaves the {what} alone, or leave {KEY} out",
        )


def rows_of(config_rows: int | None, tokens: Sequence[NewToken]) -> int | None:
    """The number of embeddings of a model with `config_rows` rows and these tokens; None if it is not known."""
    return None if config_rows is None else max([config_rows, *(token.id + 1 for token in tokens)])
