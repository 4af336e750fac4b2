"""Plans what is published: finds the directory, checks it, and reads its files. Uses no network and no token."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smollm3_finetune.errors import ConfigError, ModelError
from smollm3_finetune.files.checksums import CHECKSUMS
from smollm3_finetune.files.json import read_json
from smollm3_finetune.files.locks import check_not_held
from smollm3_finetune.hub.contents import (
    ADAPTER,
    EXPORTED,
    EXPORTED_ADAPTER,
    WEIGHTS,
    Contents,
    LeftOut,
    contents,
    kind_of,
    left_of_run,
)
from smollm3_finetune.hub.scan import check_text
from smollm3_finetune.model.saved_adapter import FILE as DESCRIPTION
from smollm3_finetune.model.saved_adapter import SavedAdapter
from smollm3_finetune.model_files.card_metadata import metadata_fault
from smollm3_finetune.model_files.exported import ExportedFiles
from smollm3_finetune.model_files.model_card import FILE as CARD
from smollm3_finetune.model_files.model_card import is_path, last_part
from smollm3_finetune.runs.failure import failure_of
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.traces import LOCK

TEXT = (".json", ".md", ".txt", ".jinja", ".py", ".yaml", ".yml")
BASE_NAMED_IN = {DESCRIPTION: "model", "adapter_config.json": "base_model_name_or_path"}
"""The files of an adapter that name its base, and the key: a local path is replaced by its last part."""
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")
SMALL = 1_000_000
"""Bytes of a text file without a suffix at most."""
HEADER_LIMIT = 100_000_000
"""Bytes of a safetensors header at most, as in safetensors itself."""
BINARY_SCANNED = 4_000_000
"""Bytes at the beginning of other binary files that are searched, such as the metadata of an exported model."""


@dataclass(frozen=True)
class PublishedFile:
    """A file as it is published."""

    name: str
    path: Path
    size: int
    """In bytes."""
    content: bytes | None = None
    """The bytes that were checked, for a text file; None: the file itself."""
    changed: str | None = None
    """How the content differs from the file."""


@dataclass(frozen=True)
class PushPlan:
    """Checked files, ready to be published in one commit."""

    kind: str
    directory: Path
    repo: str
    files: list[PublishedFile]
    left_out: list[LeftOut]
    private: bool = False
    revision: str | None = None
    message: str | None = None
    replace_card: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def plan_push(
    target: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    replace_card: bool = False,
) -> PushPlan:
    """Check everything that can be checked offline about publishing `target`, a run or a directory, in `repo`.

    Raises ConfigError for a wrong name of the repository or the revision, and for a run that is being trained, and
    ModelError for a directory that cannot be published: it was not written by this package, it is incomplete or
    damaged, its card is missing or not valid, or a text file contains a token or a path of this machine.
    """
    from smollm3_finetune.paths import user_path

    check_repo(repo)
    if message is not None and not message.strip():
        raise ConfigError("--message is empty", hint="--message 'Upload adapter'")
    if revision is not None and (not revision.strip() or any(c.isspace() for c in revision) or ".." in revision):
        raise ConfigError(f"--revision {revision!r} is not the name of a branch", hint="--revision main")
    path = user_path(target, "the run or directory")
    directory, beside = _directory(path, str(target), repo)
    kind = kind_of(directory)
    if kind is None:
        raise ModelError(
            f"{str(directory)!r} {_why_unknown(directory)}",
            hint=f"to upload any directory: hf upload {repo} {shlex.quote(str(directory))}",
        )
    found = _checked_contents(directory, kind)
    files = _without_base_paths([_read(found.directory, name) for name in found.names], kind)
    for file in files:
        _check(file)
    return PushPlan(
        kind=kind,
        directory=directory,
        repo=repo,
        files=files,
        left_out=[*found.left_out, *beside],
        private=private,
        revision=revision,
        message=message,
        replace_card=replace_card,
        notes=list(_notes(directory, kind, files, repo)),
    )


def check_repo(repo: str) -> None:
    """Raises ConfigError if `repo` is not a valid name: `NAME` or `OWNER/NAME`."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as e:
        raise ConfigError(
            f"{repo!r} is not the name of a repository",
            hint="OWNER/NAME without a host"
            if "://" in repo
            else "OWNER/NAME or NAME, of at most 96 letters, digits, '-', '_' and '.'; without '--', '..' and .git",
        ) from e


# ------------------------------------------------------------------------------------------------------- the directory


def _directory(path: Path, target: str, repo: str) -> tuple[Path, list[LeftOut]]:
    """The directory that is published, and what is left out beside it: of a run, its adapter."""
    run = RunDir(path)
    if not path.is_dir():
        raise ModelError(
            f"{target!r} is a file, not a run or a directory" if path.exists() else f"{target!r} does not exist",
            hint="smollm3 push runs/NAME OWNER/NAME",
        )
    if not run.config.exists():
        if (inside := run.containing()) is not None:
            _check_not_running(RunDir(inside))
        return path, []
    _check_not_running(run)
    if not run.report.exists():
        error = _failure(run)
        state = f"has failed: {error}" if error else "has not finished"
        raise ModelError(
            f"the run {target} {state}", hint=f"to continue it: smollm3 train --resume {shlex.quote(target)}"
        )
    if not run.adapter.is_dir():
        raise ModelError(
            f"the run {target} has no adapter directory", hint=f"smollm3 train --config {shlex.quote(str(run.config))}"
        )
    if not run.adapter.resolve().is_relative_to(path.resolve()):
        raise ModelError(
            f"{run.adapter} is a link to a directory outside of the run",
            hint=f"smollm3 push {shlex.quote(str(run.adapter.resolve()))} {repo}",
        )
    return run.adapter, left_of_run(path, run.adapter.name)


def _check_not_running(run: RunDir) -> None:
    """Raises ConfigError if another process trains in a run."""
    check_not_held(run.path / LOCK, f"the run {run.path} is being trained by another process")


def _failure(run: RunDir) -> str | None:
    """The message of the error that ended a run, if there is one."""
    with contextlib.suppress(ModelError):
        return (failure_of(run) or {}).get("message")
    return None


def _why_unknown(directory: Path) -> str:
    if (directory / "adapter_config.json").is_file():
        return f"is an adapter of another tool: it has no {DESCRIPTION}"
    if (directory / "config.json").is_file():
        return "is a model that smollm3 did not write: its model card does not have the tag smollm3-finetune"
    return "is not a run, a saved adapter or a model that smollm3 wrote"


def _checked_contents(directory: Path, kind: str) -> Contents:
    """The contents of a directory that is complete and has a valid card."""
    if (directory / "trainer_state.json").is_file():
        raise ModelError(
            f"{str(directory)!r} is a checkpoint of a run, not a saved adapter",
            hint="continue the run to its end, then publish the run: smollm3 train --resume RUN",
        )
    if kind == ADAPTER:
        SavedAdapter.read(directory)  # raises ModelError if a file differs from its checksum
    if (exported := ExportedFiles.read(directory)) is not None and kind in (EXPORTED, EXPORTED_ADAPTER):
        exported.check(directory)
    found = contents(directory, kind)
    if kind not in (ADAPTER, EXPORTED, EXPORTED_ADAPTER) and not any(n.endswith(WEIGHTS) for n in found.names):
        raise ModelError(f"{directory} contains no weights", hint=f"ls {shlex.quote(str(directory))}")
    if CARD not in found.names:
        raise ModelError(
            f"{directory} has no model card, {CARD}",
            hint=f"write {directory / CARD}: base, data and license, with metadata at its beginning",
        )
    return found


# ------------------------------------------------------------------------------------------------------------ the files


def _read(directory: Path, name: str) -> PublishedFile:
    path = directory / name
    if path.suffix not in TEXT and not _is_small_text(path):
        return PublishedFile(name, path, path.stat().st_size)
    data = path.read_bytes()
    return PublishedFile(name, path, len(data), data)


def _is_small_text(path: Path) -> bool:
    """Whether a file without a suffix is read as text, such as the recipe of a program beside an exported model."""
    if path.suffix or path.stat().st_size > SMALL:
        return False
    with contextlib.suppress(UnicodeDecodeError):
        path.read_bytes().decode("utf-8")
        return True
    return False


def _without_base_paths(files: list[PublishedFile], kind: str) -> list[PublishedFile]:
    """The files, with the last part of a local path of the base in place of the path, and the checksums of the result.

    The base is found by its fingerprint and named by the card; its path on this machine is of no use elsewhere.
    """
    if kind not in (ADAPTER, EXPORTED_ADAPTER):
        return files
    changed = [_renamed_base(file) for file in files]
    names = {file.name for file in changed}
    sums = next((file for file in changed if file.name == CHECKSUMS), None)
    if sums is None or sums.content is None:
        return changed
    digests: dict[str, str] = json.loads(sums.content)["sha256"]
    new = {name: digest for name, digest in digests.items() if name in names}
    new |= {
        file.name: hashlib.sha256(file.content).hexdigest()
        for file in changed
        if file.name in new and file.content is not None
    }
    if new == digests:
        return changed
    content = (json.dumps({"sha256": new}, indent=2) + "\n").encode()
    replaced = PublishedFile(CHECKSUMS, sums.path, len(content), content, "the checksums of the published files")
    return [replaced if file is sums else file for file in changed]


def _renamed_base(file: PublishedFile) -> PublishedFile:
    key = BASE_NAMED_IN.get(file.name)
    about: Any = None
    if key is not None and file.content is not None:
        with contextlib.suppress(ValueError, RecursionError):
            about = json.loads(file.content)
    base = about.get(key) if isinstance(about, dict) else None
    if not isinstance(base, str) or not is_path(base) or file.content is None:
        return file
    text = file.content.decode("utf-8")
    for written in {json.dumps(base), json.dumps(base, ensure_ascii=False)}:
        text = text.replace(f'"{key}": {written}', f'"{key}": {json.dumps(last_part(base))}')
    content = text.encode("utf-8")
    if content == file.content:
        return file
    return PublishedFile(file.name, file.path, len(content), content, "the base is named without its local path")


def _check(file: PublishedFile) -> None:
    """Raises ModelError if a file contains a token or a path of this machine, or is a card that is not valid."""
    if file.content is None:
        header = _header(file.path)
        if header:
            check_text(file.path, header, vocabulary=file.path.suffix != ".safetensors", is_json=True)
        return
    try:
        text = file.content.decode("utf-8")
    except UnicodeDecodeError as e:
        raise ModelError(f"{file.path} is not UTF-8 text: {e.reason}", hint=f"save {file.path} as UTF-8") from e
    vocabulary = file.name.rpartition("/")[2] in VOCABULARIES
    check_text(file.path, text, vocabulary=vocabulary, is_json=file.path.suffix == ".json")
    if file.name == CARD and (fault := metadata_fault(text)) is not None:
        raise ModelError(f"the Hub would refuse {file.path}: {fault}", hint=f"edit the metadata of {file.path}")


def _header(path: Path) -> str:
    """The text of a binary file that may name things of this machine: its metadata."""
    with path.open("rb") as stream:
        if path.suffix != ".safetensors":
            return stream.read(BINARY_SCANNED).decode("latin-1")
        size = int.from_bytes(stream.read(8), "little")
        try:
            about = json.loads(stream.read(min(size, HEADER_LIMIT)))
            return json.dumps(about.get("__metadata__", {}), indent=0, ensure_ascii=False)
        except (ValueError, AttributeError, RecursionError) as e:
            raise ModelError(f"{path} is damaged: its header is not JSON", hint="copy the file again") from e


# ------------------------------------------------------------------------------------------------------------ the notes


def _notes(directory: Path, kind: str, files: list[PublishedFile], repo: str) -> Iterator[str]:
    """What a user should know before publishing."""
    for file in files:
        if file.changed is not None and file.name != CHECKSUMS:
            yield f"{file.name}: {file.changed}"
    if kind in (EXPORTED, EXPORTED_ADAPTER) and (exported := ExportedFiles.read(directory)) is not None:
        yield from exported.check(directory)
    if kind != ADAPTER:
        return
    saved = SavedAdapter.read(directory)
    if saved.calibration is not None:
        run = shlex.quote(str(saved.calibration.parent))
        yield (
            "the base was quantized on rows of the run, which are not published: without them the adapter cannot be "
            f"used; publish the merged model instead: smollm3 merge {run}, then smollm3 push {run}/merged {repo}"
        )
    report = _comparison(directory.parent / "report.json")
    if (error := _failure(RunDir(directory.parent))) is not None:
        yield f"the run ended with an error: {error}"
    if report.get("verdict") == "worse":
        yield "on held-out rows, the adapter is worse than its base"


def _comparison(report: Path) -> Mapping[str, Any]:
    with contextlib.suppress(OSError, ValueError, ModelError):
        found = read_json(report).get("comparison")
        return found if isinstance(found, dict) else {}
    return {}
