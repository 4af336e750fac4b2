"""The conformance of a loader: opening reads no weights, and what it opens is what the contract says of a source.

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
import subprocess
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
from smollm3_finetune.testing.conformance import Conformance, demand, fail, outcome, skip
from smollm3_finetune.testing.small import token_ids, write_small_model

NONSENSE = ("", "no such model", "nobody://nothing:", "::", "a\nb", "\0")
"""References that are no loader's."""
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
READERS = (
    "safetensors.safe_open",
    "safetensors.torch.load_file",
    "safetensors.torch.load",
    "torch.load",
    "transformers.AutoModelForCausalLM.from_pretrained",
    "transformers.PreTrainedModel.from_pretrained",
)
"""What makes or reads weights in the libraries beneath."""
LIGHT = """
import json, sys
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import LOADER
files, name, ref = json.loads(sys.argv[1])
discover(PluginSelection(files=tuple(files))).find(LOADER, name).spec.claims(ref)
print(json.dumps(sorted({m.split(".")[0] for m in sys.modules} & {"torch", "transformers", "numpy", "safetensors"})))
"""

_watched: list[str] | None = None
"""Weight files opened by Python meanwhile; None: nobody looks."""


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is not None and event == "open" and str(arguments[0]).endswith(WEIGHTS):
        _watched.append(str(arguments[0]))


@contextlib.contextmanager
def reads_no_weights(what: str) -> Iterator[None]:
    """Fails where a weight file is opened, or a library is asked to read one, while the context is open."""
    global _watched
    if not getattr(reads_no_weights, "hooked", False):
        sys.addaudithook(_watch)  # cannot be taken away again, so it looks only while it is told to
        reads_no_weights.hooked = True  # type: ignore[attr-defined]

    import transformers.modeling_utils  # noqa: F401  imported inside, it would keep the refusing functions

    def refuse(name: str) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            fail(f"{what} calls {name}: weights may be read by load() alone")

        return called

    _watched = []
    try:
        with contextlib.ExitStack() as stack:
            for name in READERS:
                stack.enter_context(mock.patch(name, refuse(name)))
            yield
        demand(not _watched, f"{what} opens {Path([*_watched, ''][0]).name}: weights may be read by load() alone")
    finally:
        _watched = None


class LoaderConformance(Conformance):
    """Name the loader, make a model for it; the tests are inherited."""

    kind = LOADER
    dtype = "float32"
    unknown: ClassVar[str]
    """A reference that the loader claims, or is told to open, and where there is nothing."""
    nonsense: ClassVar[Sequence[str]] = NONSENSE
    """References that it must not claim."""
    files: ClassVar[Sequence[str]] = ("config.json",)
    """Files for which `has_file` is true."""

    def reference(self, directory: Path, seed: int) -> str:
        """Put a model below `directory`, with weights that depend on `seed`, and return what a user types for it.

        `write_small_model(directory / "small", seed=seed)` writes one in Hugging Face's layout.
        """
        raise NotImplementedError

    def open(self, tmp_path: Path, seed: int = 0, place: str = "here") -> ModelSource:
        """A model that was made and opened, in a folder of its own."""
        directory = tmp_path / f"{place}-{seed}"
        directory.mkdir()
        source: ModelSource = self.choose().create().open(self.reference(directory, seed), self.context(tmp_path))
        return source

    # ---------------------------------------------------------------------------------------- claims

    def test_claims_its_reference_and_no_nonsense(self, tmp_path: Path) -> None:
        claims = self.spec().claims
        if claims is None:
            skip("the descriptor has no claims(): users name it with --loader")
        ref = self.reference(tmp_path, 0)
        demand(bool(claims(ref)), f"claims({ref!r}) is false, and open() is expected to open it")
        for nonsense in self.nonsense:
            claimed, error = outcome(claims, nonsense)
            named = type(error).__name__
            demand(error is None, f"claims({nonsense!r}) raised {named}: it must answer for any text")
            demand(not claimed, f"claims({nonsense!r}) is true: it takes references that are not its own")

    def test_claims_is_light(self, tmp_path: Path) -> None:
        if self.spec().claims is None:
            skip("the descriptor has no claims()")
        job = json.dumps([[str(p) for p in self.plugins], self.component, self.reference(tmp_path, 0)])
        done = subprocess.run([sys.executable, "-c", LIGHT, job], capture_output=True, text=True, check=False)
        demand(done.returncode == 0, f"claims() fails in a process of its own: {done.stderr[-300:]}")
        heavy = json.loads(done.stdout)
        demand(
            not heavy,
            f"the module with the hooks, or claims(), imports {', '.join(heavy)}: every `smollm3 --help` would",
        )

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
        demand(not made, f"opening writes into the cache ({made[:2]}): convert when `path` or load() is first used")
        demand(isinstance(config, Mapping), f"config is a {type(config).__name__}, and must be a mapping")
        kind = config.get("model_type")
        demand(isinstance(kind, str), f"config['model_type'] is {kind!r}: config must hold what config.json does")
        demand(source.ref == ref, f"the source's ref is {source.ref!r}, and the user typed {ref!r}")

    def test_an_unknown_reference_raises_model_error(self, tmp_path: Path) -> None:
        self.reference(tmp_path, 0)
        loader = self.choose().create()
        # the config is the latest moment: it is read while a run is checked
        about, error = outcome(lambda ref: loader.open(ref, self.context(tmp_path)).config, self.unknown)
        must = "raise ModelError where there is nothing"
        demand(error is not None, f"open({self.unknown!r}) gives a source with the config {about!r:.60}: {must}")
        demand(
            isinstance(error, ModelError),
            f"open({self.unknown!r}) raised {type(error).__name__} ({error}): {must}",
        )
        demand(bool(str(error)), "the ModelError for an unknown reference says nothing")

    # ---------------------------------------------------------------------------------------- source

    def test_fingerprint_identifies_the_weights(self, tmp_path: Path) -> None:
        first, again = self.open(tmp_path).fingerprint, self.open(tmp_path, place="elsewhere").fingerprint
        demand(isinstance(first, str) and bool(first), f"the fingerprint must be text, and is {first!r}")
        demand(
            first == again,
            f"the same weights in another place have another fingerprint ({first}, {again}): it must depend on the "
            "content alone",
        )
        other = self.open(tmp_path, seed=1).fingerprint
        demand(first != other, "other weights have the same fingerprint: it must depend on the content")

    def test_has_file_knows_what_is_there(self, tmp_path: Path) -> None:
        source = self.open(tmp_path)
        for name in self.files:
            demand(source.has_file(name) is True, f"has_file({name!r}) is {source.has_file(name)!r}, and it is there")
        absent = source.has_file("no-such-file.json")
        demand(absent is False, f"has_file('no-such-file.json') is {absent!r}, and must be False")

    def test_tokenizer_loads(self, tmp_path: Path) -> None:
        tokenizer = self.open(tmp_path).tokenizer()
        ids = tokenizer("hello hello")["input_ids"]
        demand(len(ids) > 0, "the tokenizer gives no tokens for 'hello hello'")
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        demand(text == "hello hello", f"the tokenizer gives {text!r} back for 'hello hello'")

    def test_load_gives_a_causal_language_model(self, tmp_path: Path) -> None:
        found = []
        for place in ("here", "elsewhere"):
            model = self.open(tmp_path, place=place).load(dtype=torch.float32)
            dtypes = {p.dtype for p in model.parameters()}
            demand(dtypes == {torch.float32}, f"load(dtype=torch.float32) gives {dtypes}: pass its arguments on")
            ids = token_ids(vocabulary=model.config.vocab_size)
            found.append(logits(model, ids))
            shape = (*ids.shape, model.config.vocab_size)
            demand(found[-1].shape == shape, f"the logits have the shape {tuple(found[-1].shape)}, and not {shape}")
            demand(bool(found[-1].isfinite().all()), "the logits of the loaded model are not all finite")
        error = apart(found[1], found[0])
        demand(error == 0, f"the same model was loaded twice and the logits differ by {error:.2g}")

    def test_at_takes_weights_and_config_from_another_directory(self, tmp_path: Path) -> None:
        source = self.open(tmp_path)
        place = write_small_model(tmp_path / "other", seed=5)
        about = json.loads((place / "config.json").read_text(encoding="utf-8"))
        (place / "config.json").write_text(json.dumps({**about, "smollm3_mark": 1}), encoding="utf-8")
        with reads_no_weights("at()"):
            moved = source.at(place)
        demand(moved.ref == source.ref, f"at() gives the ref {moved.ref!r}, and must keep {source.ref!r}")
        demand(moved.config.get("smollm3_mark") == 1, "the config of at(path) is not that in `path`")
        demand(moved.fingerprint != source.fingerprint, "at(path) keeps the fingerprint, and the weights are others")
        state = moved.load(dtype=torch.float32).state_dict()
        own = load_file(str(place / "model.safetensors"))
        demand(set(own) <= set(state), "load() of at(path) gives another architecture than the config in `path`")
        wrong = [n for n, t in own.items() if not torch.equal(state[n], t)]
        demand(not wrong, f"load() of at(path) gives other weights than those in `path`: {wrong[:2]}")
