"""Deletes what is no longer needed of runs: checkpoints of finished runs, and runs that ended before their first one.

Adapters, reports, metrics and configurations are kept, and so is every file that no run writes. A run that is being
trained holds its lock, which is taken before anything is deleted.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from smollm3_finetune.cache.use import forget_run
from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.files.checksums import damage
from smollm3_finetune.files.partial import PARTIAL, partial_name
from smollm3_finetune.files.room import size_of
from smollm3_finetune.model.saved_adapter import FILE as DESCRIPTION
from smollm3_finetune.runs.best import BEST, LAST
from smollm3_finetune.runs.checkpoints import DAMAGED
from smollm3_finetune.runs.details import is_resumable
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.summary import RunSummary

OTHERS = re.compile(rf"{re.escape(DAMAGED)}checkpoint-\d+|{re.escape(PARTIAL)}.*")
"""Names in `checkpoints/` that a run writes, besides those of checkpoints."""
ADAPTERS = re.compile(rf"({re.escape(BEST)}|{re.escape(LAST)})\d+")
"""Adapters in `checkpoints/` that only a resumed run needs: the published one is also in `adapter/`."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What is to be deleted of a run."""

    run: RunDir
    state: str
    paths: tuple[Path, ...]
    """Directories in `checkpoints/`, or the run directory."""
    bytes: int
    keep_checkpoints: int

    @property
    def whole(self) -> bool:
        """Whether the run directory itself is deleted."""
        return self.paths == (self.run.path,)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A run of which nothing is deleted, and why."""

    run: RunDir
    reason: str


def prunable(
    runs: Iterable[RunSummary],
    *,
    keep_checkpoints: int = 0,
    older_than: float = 0.0,
    known: Iterable[RunSummary] = (),
) -> tuple[list[Removal], list[Kept]]:
    """What can be deleted of runs, and the runs that are kept although they use space; nothing is deleted.

    `keep_checkpoints` of the newest checkpoints of each finished run are kept. Runs that changed in the last
    `older_than` seconds are skipped. A checkpoint from which one of the `known` runs started is kept.
    """
    removals, kept = [], []
    now = time.time()
    starts = {Path(run.facts.start_from).resolve(): run.path for run in known if run.facts.start_from}
    for summary in sorted(runs, key=lambda summary: summary.path):
        if older_than and now - last_change(summary.path) < older_than:
            continue
        found = _removal(summary, keep_checkpoints)
        if isinstance(found, Removal) and (used := _started_from(found, starts)):
            kept += [
                Kept(run=found.run, reason=f"{path.name}: {starts[path.resolve()]} started from it") for path in used
            ]
            found = _without(found, used)
        if isinstance(found, Removal):
            removals.append(found)
        elif found is not None:
            kept.append(found)
    return removals, kept


def _removal(summary: RunSummary, keep_checkpoints: int) -> Removal | Kept | None:
    """What can be deleted of a run, or why nothing can; None if there is nothing that could be."""
    run, state = RunDir(summary.path), summary.state
    if state == "running":
        return Kept(run=run, reason="it is being trained")
    if state == "damaged":
        return Kept(run=run, reason=f"it is damaged: {summary.damage}")
    if state == "finished":
        if not (paths := deletable(run, keep_checkpoints)):
            return None
        if not (run.adapter / DESCRIPTION).is_file():
            return Kept(run=run, reason="it has no complete adapter, so a checkpoint is its only copy")
        size = sum(map(size_of, paths))
        return Removal(run=run, state=state, paths=tuple(paths), bytes=size, keep_checkpoints=keep_checkpoints)
    with contextlib.suppress(OSError):
        if _is_empty(run):
            return Removal(run=run, state=state, paths=(run.path,), bytes=summary.bytes, keep_checkpoints=0)
    reason = "it failed" if state == "failed" else "it was interrupted"
    if is_resumable(run, summary):
        reason += ", and can be resumed"
    elif steps := run.saved.best.steps():
        reason += f", and {run.saved.best.at(max(steps))} is its best adapter"
    return Kept(run=run, reason=reason)


def _started_from(removal: Removal, starts: Mapping[Path, Path]) -> list[Path]:
    """The directories of a removal from which another run started."""
    return [path for path in removal.paths if path.resolve() in starts]


def _without(removal: Removal, kept: Sequence[Path]) -> Removal | None:
    """A removal without some of its directories; None if nothing is left."""
    paths = tuple(path for path in removal.paths if path not in kept)
    return replace(removal, paths=paths, bytes=sum(map(size_of, paths))) if paths else None


def _is_empty(run: RunDir) -> bool:
    """Whether a run has neither a checkpoint nor a best adapter. The latter can be used without the run."""
    return run.holds_nothing() and not run.saved.best.steps()


def deletable(run: RunDir, keep: int) -> list[Path]:
    """The directories in `checkpoints/` that a run wrote, without the newest `keep` checkpoints; links are left out."""
    if run.checkpoints.is_symlink() or not run.checkpoints.is_dir():
        return []
    known = [c.path for c in run.saved.all()]
    found = known[: len(known) - keep] if keep else known
    inside = [p for p in sorted(run.checkpoints.iterdir()) if p.is_dir()]
    others = [p for p in inside if OTHERS.fullmatch(p.name) or (not keep and ADAPTERS.fullmatch(p.name))]
    return [path for path in (*found, *others) if not path.is_symlink()]


def last_change(directory: Path) -> float:
    """When a file directly in a run directory was changed last, as a Unix time; 0 if it cannot be read."""
    times = [0.0]
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            with contextlib.suppress(OSError):
                times.append(path.lstat().st_mtime)
    return max(times)


def remove(removal: Removal) -> str | None:
    """Delete it; why it could not be deleted, or was kept because the run has changed, else None.

    The adapter of a finished run is compared with its checksums first: a checkpoint can replace a damaged one.
    """
    try:
        return _remove(removal)
    except SmolLM3Error as e:
        return e.message
    except OSError as e:
        return f"it cannot be deleted: {e.strerror or e}"


def _remove(removal: Removal) -> str | None:
    run = removal.run
    with contextlib.ExitStack() as stack:
        if removal.whole:
            stack.callback(run.remove_empty)  # runs after the lock is released
        stack.enter_context(run.held())
        if removal.whole:
            if not _is_empty(run):
                return "it has changed"
            forget_run(run.path)
            run.discard()
        else:
            if not run.report.is_file():
                return "it has been resumed"
            if (found := damage(run.adapter)) is not None:
                return f"its adapter is damaged ({found}), and a checkpoint can replace it"
            for path in set(removal.paths) & set(deletable(run, removal.keep_checkpoints)):
                aside = partial_name(path)  # a checkpoint is complete or absent, even if this process is killed
                if path.name.startswith(PARTIAL):
                    aside = path
                else:
                    path.rename(aside)
                shutil.rmtree(aside)
            with contextlib.suppress(OSError):
                run.checkpoints.rmdir()
    if removal.whole and run.path.exists():
        return "some of its files cannot be deleted"
    return None


def reason(removal: Removal) -> str:
    """What is deleted, for a list: `checkpoint-60, checkpoint-40`, or `the whole run: failed before …`."""
    if removal.whole:
        return f"the whole run: {removal.state} before its first checkpoint"
    return ", ".join(path.name for path in removal.paths)


def total(removals: Sequence[Removal]) -> int:
    """Their bytes."""
    return sum(removal.bytes for removal in removals)
