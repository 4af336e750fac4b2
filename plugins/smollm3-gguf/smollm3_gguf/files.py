"""Find the file of a reference, on disk or in a Hub repository, and check that it can be read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import BinaryIO, cast

from smollm3_finetune.api import ConfigError, ModelError, is_resource_error
from smollm3_gguf.architectures import is_incomplete, model_type, readable
from smollm3_gguf.header import BadHeader, Header, read_header

HUB_REFERENCE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>.+\.gguf)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """A GGUF file that was found but not read yet."""

    ref: str
    local: Path | None
    """The path on disk; None if the file is only on the Hub."""
    repo: str = ""
    """The Hub repository; empty if the file does not come from the Hub."""
    name: str = ""
    revision: str | None = None
    """The requested branch, tag or commit."""

    @cached_property
    def commit(self) -> str | None:
        """The Hub commit of the file: that of the copy in the cache, otherwise the current commit of `revision`.

        None if the file does not come from the Hub. Raises huggingface_hub's exceptions if the Hub cannot be reached.
        """
        if not self.repo:
            return None
        if self.local is not None:
            return self._commit_of(self.local)
        from huggingface_hub import HfApi

        commit: str | None = HfApi().model_info(self.repo, revision=self.revision).sha
        return commit

    def _commit_of(self, copy: Path) -> str:
        """The commit of a copy in the Hub's cache, from its path: SNAPSHOTS/COMMIT/NAME."""
        return copy.parents[self.name.count("/")].name

    def size(self) -> int:
        """The size in bytes."""
        if self.local is not None:
            return self.local.stat().st_size
        with self.open() as stream:
            return stream.seek(0, 2)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the file; if it is on the Hub, only the parts that are read are downloaded."""
        if self.local is not None:
            with self.local.open("rb") as stream:
                yield stream
        else:
            from huggingface_hub import HfFileSystem

            path = f"{self.repo}/{self.name}"
            with HfFileSystem().open(path, "rb", revision=self.commit, block_size=1 << 20) as remote:
                yield cast(BinaryIO, remote)

    def on_disk(self) -> Path:
        """The path of the file, which is downloaded into the Hub's cache if necessary."""
        if self.local is not None:
            return self.local
        from huggingface_hub import hf_hub_download

        try:
            # by the requested revision, so that the cache stores it and a later run needs no network
            path = Path(hf_hub_download(self.repo, self.name, revision=self.revision))
            if self._commit_of(path) != self.commit:  # the branch has moved since the header was read
                path = Path(hf_hub_download(self.repo, self.name, revision=self.commit))
            return path
        except Exception as e:
            if is_resource_error(e):
                raise
            raise _not_reached(self.ref, e) from e


def find_file(ref: str, revision: str | None) -> GgufFile:
    """The file of a reference: a path, or `org/repo/FILE.gguf` on the Hub if the path does not exist.

    Raises ModelError, with the most similar name in the folder, if there is no such file; ConfigError if the path
    cannot be accessed.
    """
    hub = HUB_REFERENCE.fullmatch(ref)
    try:
        path = Path(ref).expanduser()
        if path.is_file():
            return GgufFile(ref=ref, local=path)
        if hub is None or ref.startswith(".") or path.parent.is_dir():
            raise _missing(path)
    except RuntimeError as e:
        user = ref.partition("/")[0]
        raise ConfigError(f"the model {ref!r}: the user {user!r} has no home directory", hint=f"./{ref}") from e
    except OSError as e:
        raise ConfigError(f"the model {ref!r} cannot be accessed: {e.strerror or e}", hint="use another path") from e
    from huggingface_hub import try_to_load_from_cache

    repo, name = hub["repo"], hub["file"]
    cached = try_to_load_from_cache(repo, name, revision=revision)
    return GgufFile(
        ref=ref, local=Path(cached) if isinstance(cached, str) else None, repo=repo, name=name, revision=revision
    )


def check_file(file: GgufFile) -> Header:
    """The header of a file that transformers can convert. Raises ModelError with the reason if it cannot."""
    try:
        with file.open() as stream:
            header = read_header(stream)
        size = file.size()
    except BadHeader as e:
        raise ModelError(f"{file.ref} {e}", hint="download it again, or use another file") from e
    except Exception as e:
        if is_resource_error(e):
            raise
        if file.local is None:
            raise _not_on_hub(file) if _is_missing(e) else _not_reached(file.ref, e) from e
        raise ModelError(f"{file.ref} cannot be read: {e}") from e
    if (kind := header.metadata.get("general.type", "model")) != "model":
        base = "use the adapter directory of its run" if kind == "adapter" else "name the GGUF file of the model"
        raise ModelError(f"{file.ref} is of type {kind!r:.40}, not a model", hint=base)
    if model_type(header.architecture) is None:
        raise _unsupported(file.ref, header.architecture)
    parts = header.metadata.get("split.count", 1)
    if not isinstance(parts, int):
        raise ModelError(
            f"{file.ref}: its split.count is {parts!r:.40}, but a number was expected", hint="download it again"
        )
    if parts > 1:
        raise ModelError(
            f"{file.ref} is one of {parts} parts of a split model, which transformers cannot read",
            hint="join them first: llama-gguf-split --merge FIRST_PART.gguf WHOLE.gguf",
        )
    expected = header.data_start + _data_size(file.ref, header)
    if size < expected:
        raise ModelError(
            f"{file.ref} is truncated: its header requires {expected:,} bytes, but it has {size:,}",
            hint="download it again",
        )
    return header


def _data_size(ref: str, header: Header) -> int:
    """Bytes of the data section, up to the end of its last tensor."""
    from gguf.constants import GGML_QUANT_SIZES

    sizes = {int(kind): block for kind, block in GGML_QUANT_SIZES.items()}
    end = 0
    for name, tensor in header.tensors.items():
        if tensor.ggml_type not in sizes:
            raise ModelError(
                f"{ref}: tensor {name} is of type {tensor.ggml_type}, which the installed gguf package does not know",
                hint="pip install --upgrade gguf",
            )
        elements, width = sizes[tensor.ggml_type]  # elements in a block, bytes of a block
        end = max(end, tensor.offset + prod(tensor.shape) // elements * width)
    return end


def _missing(path: Path) -> ModelError:
    siblings = []
    if path.parent.is_dir():
        siblings = sorted(p.name for p in path.parent.iterdir() if p.name.lower().endswith(".gguf"))
    hint = _nearest(path.name, siblings, f"{path.parent}/") or "for a file on the Hub, use org/repo/FILE.gguf"
    return ModelError(f"the GGUF file '{path}' does not exist", hint=hint)


def _is_missing(error: Exception) -> bool:
    """Whether the Hub reports that the file, repository or revision does not exist."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    missing = (FileNotFoundError, RepositoryNotFoundError, RevisionNotFoundError)
    return isinstance(error, missing) and not isinstance(error, GatedRepoError)


def _not_on_hub(file: GgufFile) -> ModelError:
    """The error for a file, repository or revision that the Hub does not have, or hides."""
    from huggingface_hub import HfFileSystem

    folder = f"{file.repo}/{file.name}".rpartition("/")[0]
    at = f" at revision {file.revision}" if file.revision else ""
    try:
        found = [str(n) for n in HfFileSystem().ls(folder, detail=False, revision=file.revision)]
    except Exception:  # no such repository, or no access to it
        return ModelError(
            f"the Hub has no {file.repo}{at}, or you have no access to it",
            hint="check the name; for a private or gated repository run `hf auth login` first",
        )
    siblings = sorted(n.rpartition("/")[2] for n in found if n.lower().endswith(".gguf"))
    hint = (
        _nearest(file.name.rpartition("/")[2], siblings, f"{folder}/")
        or "the repository has no GGUF file in this folder"
    )
    return ModelError(f"{file.repo} on the Hub has no file {file.name}{at}", hint=hint)


def _nearest(name: str, siblings: list[str], folder: str) -> str | None:
    if near := difflib.get_close_matches(name, siblings, n=1, cutoff=0.5):
        return f"did you mean {folder}{near[0]}?"
    return f"{folder} has {', '.join(siblings[:5])}" if siblings else None


def _not_reached(ref: str, error: Exception) -> ModelError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ModelError(
        f"{ref} is not on disk and could not be fetched from the Hub: {reason}",
        hint="check the name and the network, or download the file and pass its path",
    )


def _unsupported(ref: str, architecture: str) -> ModelError:
    read = "read completely" if is_incomplete(architecture) else "read"
    return ModelError(
        f"{ref} has the architecture {architecture}, which transformers cannot {read} from GGUF",
        hint=f"use the model's original repository; transformers can read {', '.join(sorted(readable().values()))}",
    )
