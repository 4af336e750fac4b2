"""Loader `hf`: a local directory or a Hub repository. By default, only safetensors and no remote code."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import BuildContext, ModelError, ModelSource, Purpose, directory_source, is_resource_error
from smollm3_finetune.builtin.long_context import with_context
from smollm3_finetune.builtin.options import HFOptions
from smollm3_finetune.errors import first_line
from smollm3_finetune.files.json import names_code, read_json
from smollm3_finetune.files.limits import check_regular
from smollm3_finetune.paths import user_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DIRECTORY_FLAGS = {
    Purpose.INFER: "smollm3 generate DIRECTORY",
    Purpose.MERGE: "smollm3 merge DIRECTORY",
    Purpose.EXPORT: "smollm3 export DIRECTORY --to NAME",
}
"""How the commands without `--model` name a directory."""
ADAPTER_FILES = {"smollm3.json": "model", "adapter_config.json": "base_model_name_or_path"}
"""The files that describe a saved adapter, and their key that names its base."""
CONFIG_FILES = ("*.json", "*.model", "*.txt", "*.jinja")
LEGAL_FILES = ("README.md", "LICENSE*", "NOTICE*")
"""A merged or quantized model keeps the license of its base: the model card states it."""


NAME_CODE = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
"""Files in which a model names Python code of its own."""


class HFLoader:
    def __init__(self, options: HFOptions) -> None:
        self.options = options

    def open(self, ref: str, ctx: BuildContext) -> ModelSource:
        source = self._source(ref, ctx.purpose)
        if self.options.context is None:
            return source
        return with_context(source, self.options.context, ctx, remote_code=self.options.trust_remote_code)

    def _source(self, ref: str, purpose: Purpose) -> ModelSource:
        usage = DIRECTORY_FLAGS.get(purpose, "--model DIRECTORY")
        directory = user_path(ref, "the model")
        if directory.is_dir():
            self._check_directory(ref, directory, purpose)
            return directory_source(directory.resolve(), ref=ref, **self._load_kwargs())
        return HubSource(ref, self.options.revision, self._load_kwargs(), pickle=self.options.pickle, usage=usage)

    def _load_kwargs(self) -> dict[str, Any]:
        kwargs: dict[str, Any] = {"use_safetensors": None if self.options.pickle else True}
        if self.options.trust_remote_code:
            kwargs["trust_remote_code"] = True
        return kwargs

    def _check_directory(self, ref: str, directory: Path, purpose: Purpose) -> None:
        if not (directory / "config.json").exists():
            if (directory / "run.yaml").exists():
                command = f"smollm3 merge {shlex.quote(ref)}"
                raise ModelError(f"{ref!r} is a run, not a model", hint=f"to create a model from it: {command}")
            if any((directory / name).exists() for name in ADAPTER_FILES):
                raise ModelError(f"{ref!r} is an adapter, not a model", hint=_with_adapter(directory, ref, purpose))
            raise ModelError(
                f"the directory {ref!r} is not a model: it does not contain config.json",
                hint="for a model in it, name its directory; for a run, the directory with run.yaml",
            )
        check_regular(directory)
        described = [read_json(f) for f in (directory / name for name in NAME_CODE) if f.exists()]
        if any(map(names_code, described)) and not self.options.trust_remote_code:
            raise ModelError(
                f"{ref!r} comes with Python code of its own",
                hint="--loader-opt trust_remote_code=true, if you trust it",
            )
        if not any(directory.glob("*.safetensors")):
            pickled = any(directory.glob("*.bin")) or any(directory.glob("*.pt"))
            if pickled and not self.options.pickle:
                raise ModelError(
                    f"{ref!r} has only pickled weights, which can run code when read",
                    hint="--loader-opt pickle=true, if you trust it",
                )
            if not pickled:
                raise ModelError(f"the directory {ref!r} contains config.json but no weights (*.safetensors)")


def _with_adapter(directory: Path, ref: str, purpose: Purpose) -> str:
    """The command that uses a saved adapter as `purpose` requires."""
    about = ((read_json(directory / name), key) for name, key in ADAPTER_FILES.items() if (directory / name).exists())
    base = next((described[key] for described, key in about if isinstance(described.get(key), str)), "MODEL")
    adapter = f"{shlex.quote(base)} --adapter-path {shlex.quote(ref)}"
    if purpose is Purpose.INFER:
        return f"smollm3 generate {adapter} --prompt TEXT"
    if purpose is Purpose.EXPORT:
        return f"smollm3 export {adapter} --to NAME --output DIR"
    command = f"smollm3 merge {adapter} --output DIR"
    return command if purpose is Purpose.MERGE else f"to create a model from it: {command}"


class HubSource:
    """`ModelSource` of a Hub repository: downloads config.json first, and the weights only when they are loaded."""

    def __init__(
        self,
        ref: str,
        revision: str | None,
        load_kwargs: Mapping[str, Any],
        *,
        pickle: bool,
        usage: str = "--model DIRECTORY",
    ) -> None:
        self.ref = ref
        self.revision = revision
        self.load_kwargs = dict(load_kwargs)
        self.pickle = pickle
        self.usage = usage
        """The command line that opens a directory, for the hint."""

    @cached_property
    def _config_file(self) -> Path:
        from huggingface_hub import hf_hub_download

        return Path(self._hub(lambda: hf_hub_download(self.ref, "config.json", revision=self.revision)))

    def _hub(self, call: Any) -> Any:
        """The result of a call to the Hub. Raises ModelError with one sentence if the call fails."""
        from huggingface_hub import logging as hub_logging
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        hub_logging.set_verbosity_error()  # it would log every retry
        try:
            return call()
        except GatedRepoError as e:
            raise ModelError(
                f"the Hub model {self.ref!r} is gated: its license must be accepted on its page", hint="hf auth login"
            ) from e
        except RevisionNotFoundError as e:
            raise ModelError(f"the Hub model {self.ref!r} has no revision {self.revision!r}") from e
        except RepositoryNotFoundError as e:
            raise ModelError(
                f"there is no directory and no Hub model {self.ref!r}", hint="for a private one: hf auth login"
            ) from e
        except (HfHubHTTPError, OSError, ValueError) as e:
            if is_resource_error(e):
                raise
            reason = first_line(e).partition(". ")[0].removesuffix(".")
            raise ModelError(
                f"{self.ref!r} is not a local directory, and the Hub request for it failed: {reason}",
                hint="check the name; for a Hub model, check the network (HF_ENDPOINT, HF_HUB_OFFLINE); "
                f"for a local one: {self.usage}",
            ) from e

    @cached_property
    def config(self) -> Mapping[str, Any]:
        return read_json(self._config_file)

    @property
    def commit(self) -> str:
        """The commit of the revision, which is the name of the snapshot's folder."""
        return self._config_file.parent.name

    @property
    def pins(self) -> Mapping[str, str]:
        return {"revision": self.commit}

    @property
    def fingerprint(self) -> str:
        return f"hub:{self.ref}@{self.commit}"

    def has_file(self, name: str) -> bool:
        from huggingface_hub import file_exists

        return bool(self._hub(lambda: file_exists(self.ref, name, revision=self.commit)))

    def _snapshot(self, patterns: list[str]) -> Path:
        from huggingface_hub import snapshot_download

        return Path(self._hub(lambda: snapshot_download(self.ref, revision=self.commit, allow_patterns=patterns)))

    @cached_property
    def path(self) -> Path:
        weights = ["*.safetensors", *(["*.bin"] if self.pickle else [])]
        code = ["*.py"] if self.load_kwargs.get("trust_remote_code") else []
        return self._snapshot([*CONFIG_FILES, *LEGAL_FILES, *weights, *code])

    def tokenizer(self) -> PreTrainedTokenizerBase:
        code = ["*.py"] if self.load_kwargs.get("trust_remote_code") else []
        directory = self._snapshot([*CONFIG_FILES, *code])
        return directory_source(directory, ref=self.ref, **self.load_kwargs).tokenizer()

    def load(self, **kwargs: Any) -> PreTrainedModel:
        return directory_source(self.path, ref=self.ref, **self.load_kwargs).load(**kwargs)

    def at(self, path: Path) -> ModelSource:
        return directory_source(path, ref=self.ref, **self.load_kwargs)
