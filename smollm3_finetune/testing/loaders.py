"""Conformance tests for loaders: opening reads no weights, and the returned source follows the contract.

from smollm3_finetune.testing import LoaderConformance, write_small_model

class TestVault(LoaderConformance):
    component = "vault"
    unknown = "vault://nothing"

    def reference(self, directory, seed):
        write_small_model(directory / "small", seed=seed)
        os.environ["VAULT"] = str(directory)
        return "vault://small"
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch
from safetensors.torch import load_file

from smollm3_finetune.api import ModelError, ModelSource
from smollm3_finetune.components.kinds import LOADER
from smollm3_finetune.model.compare import apart, logits
from smollm3_finetune.testing.conformance import Conformance, demand, fail, outcome, plugin_path, skip
from smollm3_finetune.testing.light import check_light
from smollm3_finetune.testing.small import token_ids, write_small_model

NONSENSE = ("", "no such model", "nobody://nothing:", "::", "a\nb", "\0")
"""References that no loader may claim."""
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
READERS = (
    "safetensors.safe_open",
    "safetensors.torch.load_file",
    "safetensors.torch.load",
    "torch.load",
    "transformers.AutoModelForCausalLM.from_pretrained",
    "transformers.PreTrainedModel.from_pretrained",
)
"""Functions of libraries that create or read weights."""

_watched: list[str] | None = None
"""Weight files that Python opened inside `reads_no_weights`; None outside it."""


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is not None and event == "open" and str(arguments[0]).endswith(WEIGHTS):
        _watched.append(str(arguments[0]))


@contextlib.contextmanager
def reads_no_weights(what: str) -> Iterator[None]:
    """Fail the test if a weight file is opened, or a library function that reads one is called, inside the context."""
    global _watched
    if not getattr(reads_no_weights, "hooked", False):
        sys.addaudithook(_watch)  # cannot be removed, so it does nothing outside the context
        reads_no_weights.hooked = True  # type: ignore[attr-defined]

    import transformers.modeling_utils  # noqa: F401  imported inside, it would keep the refusing functions

    def refuse(name: str) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            fail(f"{what} calls {name}: only load() may read weights")

        return called

    _watched = []
    try:
        with contextlib.ExitStack() as stack:
            for name in READERS:
                stack.enter_context(mock.patch(name, refuse(name)))
            yield
        demand(not _watched, f"{what} opens {Path([*_watched, ''][0]).name}: only load() may read weights")
    finally:
        _watched = None


class LoaderConformance(Conformance):
    """Subclass it, name the loader and write a model for it in `reference`; the tests are inherited."""

    kind = LOADER
    dtype = "float32"
    unknown: ClassVar[str]
    """A reference of this loader to a model that does not exist."""
    nonsense: ClassVar[Sequence[str]] = NONSENSE
    """References that the loader must not claim."""
    files: ClassVar[Sequence[str]] = ("config.json",)
    """Files for which `has_file` is true."""

    def reference(self, directory: Path, seed: int) -> str:
        """Write a model below `directory`, with weights that depend on `seed`, and return the reference to it.
        `write_small_model(directory / "small", seed=seed)` writes one in the Hugging Face layout.
        """
        raise NotImplementedError

    def open(self, tmp_path: Path, seed: int = 0, place: str = "here") -> ModelSource:
        """Write a model in a new directory, and open it."""
        directory = tmp_path / f"{place}-{seed}"
        directory.mkdir()
        source: ModelSource = self.choose().create().open(self.reference(directory, seed), self.context(tmp_path))
        return source

    # ---------------------------------------------------------------------------------------- claims

    def test_claims_its_reference_and_no_nonsense(self, tmp_path: Path) -> None:
        claims = self.spec().claims
        if claims is None:
            skip("the descriptor has no claims(): users pass --loader")
        ref = self.reference(tmp_path, 0)
        demand(bool(claims(ref)), f"claims({ref!r}) is false, but this loader opens the reference")
        for nonsense in self.nonsense:
            claimed, error = outcome(claims, nonsense)
            named = type(error).__name__
            demand(error is None, f"claims({nonsense!r}) raised {named}: it must return a bool for every text")
            demand(not claimed, f"claims({nonsense!r}) is true: it must be false for references of other loaders")

    def test_claims_is_light(self, tmp_path: Path) -> None:
        if self.spec().claims is None:
            skip("the descriptor has no claims()")
        plugins = [str(plugin_path(type(self), p)) for p in self.plugins]
        check_light(self.kind, plugins, self.component, self.reference(tmp_path, 0))

    # ------------------------------------------------------------------------------------------ open

    def test_opening_reads_no_weights(self, tmp_path: Path) -> None:
        ref = self.reference(tmp_path, 0)
        context = self.context(tmp_path)
        loader = self.choose().create()
        with reads_no_weights("open()"):
            source = loader.open(ref, context)
        with reads_no_weights("the source's config"):
            config = source.config
        with reads_no_weights("has_file()"):
            source.has_file("config.json")
        made = sorted(p.name for p in context.cache.root.rglob("*")) if context.cache.root.exists() else []
        demand(not made, f"open() writes into the cache ({made[:2]}): convert when `path` or load() is first used")
        demand(isinstance(config, Mapping), f"config must be a mapping, but is a {type(config).__name__}")
        kind = config.get("model_type")
        demand(isinstance(kind, str), f"config['model_type'] is {kind!r}: config must have the content of config.json")
        demand(source.ref == ref, f"the ref of the source is {source.ref!r}, but the user typed {ref!r}")

    def test_an_unknown_reference_raises_model_error(self, tmp_path: Path) -> None:
        self.reference(tmp_path, 0)
        loader = self.choose().create()
        # a source may raise as late as in `config`, which is read while a run is checked
        about, error = outcome(lambda ref: loader.open(ref, self.context(tmp_path)).config, self.unknown)
        must = "raise ModelError if the model does not exist"
        demand(error is not None, f"open({self.unknown!r}) returns a source with the config {about!r:.60}: {must}")
        demand(
            isinstance(error, ModelError),
            f"open({self.unknown!r}) raised {type(error).__name__} ({error}): {must}",
        )
        demand(bool(str(error)), "the ModelError for an unknown reference has no message")

    # ---------------------------------------------------------------------------------------- source

    def test_fingerprint_identifies_the_weights(self, tmp_path: Path) -> None:
        first, again = self.open(tmp_path).fingerprint, self.open(tmp_path, place="elsewhere").fingerprint
        demand(isinstance(first, str) and bool(first), f"the fingerprint must be text, but is {first!r}")
        demand(
            first == again,
            f"the same weights in another directory have another fingerprint ({first}, {again}): it must depend only "
            "on the content",
        )
        other = self.open(tmp_path, seed=1).fingerprint
        demand(first != other, "different weights have the same fingerprint: it must depend on the content")

    def test_has_file_knows_what_is_there(self, tmp_path: Path) -> None:
        source = self.open(tmp_path)
        for name in self.files:
            demand(source.has_file(name) is True, f"has_file({name!r}) is {source.has_file(name)!r}, but must be True")
        absent = source.has_file("no-such-file.json")
        demand(absent is False, f"has_file('no-such-file.json') is {absent!r}, but must be False")

    def test_tokenizer_loads(self, tmp_path: Path) -> None:
        tokenizer = self.open(tmp_path).tokenizer()
        ids = tokenizer("hello hello")["input_ids"]
        demand(len(ids) > 0, "the tokenizer returns no tokens for 'hello hello'")
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        demand(text == "hello hello", f"the tokenizer decodes the tokens of 'hello hello' to {text!r}")

    def test_load_gives_a_causal_language_model(self, tmp_path: Path) -> None:
        found = []
        for place in ("here", "elsewhere"):
            model = self.open(tmp_path, place=place).load(dtype=torch.float32)
            dtypes = {p.dtype for p in model.parameters()}
            demand(
                dtypes == {torch.float32},
                f"load(dtype=torch.float32) returns parameters in {dtypes}: pass the arguments on to from_pretrained",
            )
            ids = token_ids(vocabulary=model.config.vocab_size)
            found.append(logits(model, ids))
            shape = (*ids.shape, model.config.vocab_size)
            demand(
                found[-1].shape == shape, f"the shape of the logits is {tuple(found[-1].shape)}, but must be {shape}"
            )
            demand(bool(found[-1].isfinite().all()), "some logits of the loaded model are not finite")
        error = apart(found[1], found[0])
        demand(error == 0, f"the same model was loaded twice, but the logits differ by {error:.2g}")

    def test_at_takes_weights_and_config_from_another_directory(self, tmp_path: Path) -> None:
        source = self.open(tmp_path)
        place = write_small_model(tmp_path / "other", seed=5)
        about = json.loads((place / "config.json").read_text(encoding="utf-8"))
        (place / "config.json").write_text(json.dumps({**about, "smollm3_mark": 1}), encoding="utf-8")
        with reads_no_weights("at()"):
            moved = source.at(place)
        demand(
            moved.ref == source.ref, f"at() returns a source with the ref {moved.ref!r}, but must keep {source.ref!r}"
        )
        demand(moved.config.get("smollm3_mark") == 1, "the config of at(path) is not the config in `path`")
        demand(
            moved.fingerprint != source.fingerprint,
            "at(path) keeps the fingerprint, but the weights in `path` are different",
        )
        state = moved.load(dtype=torch.float32).state_dict()
        own = load_file(str(place / "model.safetensors"))
        demand(set(own) <= set(state), "load() of at(path) returns a model without all the weights in `path`")
        wrong = [n for n, t in own.items() if not torch.equal(state[n], t)]
        demand(not wrong, f"load() of at(path) returns weights that differ from those in `path`: {wrong[:2]}")
