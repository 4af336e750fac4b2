"""Publishes planned files in a repository of the Hub, in one commit."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Progress
from smollm3_finetune.errors import ConfigError
from smollm3_finetune.hub.failures import explained, no_token, offline
from smollm3_finetune.hub.plan import PushPlan
from smollm3_finetune.model_files.card_mark import is_generated
from smollm3_finetune.model_files.model_card import FILE as CARD
from smollm3_finetune.progress import Silent

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MAIN = "main"


def push(plan: PushPlan, progress: Progress | None = None) -> dict[str, Any]:
    """Publish the files of a plan: create the repository if it does not exist, and commit once. Returns the report.

    The token is that of `hf auth login` or `HF_TOKEN`, and the host that of `HF_ENDPOINT`. A model card in the
    repository that somebody edited is kept, unless the plan replaces it.

    Raises ConfigError if the repository is public and should be private, or offline mode is on, ModelError if the Hub
    refuses the card, and SmolLM3Error for other failures of the upload.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token

    began, progress = time.monotonic(), progress or Silent()
    endpoint, notes = constants.ENDPOINT, list(plan.notes)
    if constants.is_offline_mode():
        raise offline()
    with explained(plan.repo, endpoint), _quiet_hub() as said:
        token = get_token()
        if token is None:
            raise no_token(endpoint)
        api = HfApi(endpoint=endpoint, token=token, library_name="smollm3-finetune")
        repo = plan.repo if "/" in plan.repo else f"{api.whoami()['name']}/{plan.repo}"
        _prepare(api, repo, plan)
        before = _head(api, repo, plan.revision)
        files = plan.files
        if before and not plan.replace_card and _edited_there(api, repo, before, plan):
            files = [file for file in files if file.name != CARD]
            notes.append(f"{CARD} was edited in the repository and is kept; to replace it: --replace-card")
        operations = [CommitOperationAdd(file.name, file.content or file.path) for file in files]
        progress.say(f"uploading {len(files)} files, {plan.size / 1e6:.1f} MB, to {repo}")
        done = api.create_commit(
            repo, operations, commit_message=plan.message or f"Upload {plan.kind}", revision=plan.revision
        )
    notes += said
    return {
        "repo": repo,
        "url": url_of(endpoint, repo, plan.revision),
        "commit": done.oid,
        "changed": done.oid != before,
        "revision": plan.revision or MAIN,
        **described(plan, {file.name for file in files}),
        "notes": notes,
        "seconds": round(time.monotonic() - began, 1),
    }


def described(plan: PushPlan, names: set[str] | None = None) -> dict[str, Any]:
    """The part of the report that the plan determines; `names` are the published files, by default all."""
    return {
        "kind": plan.kind,
        "directory": str(plan.directory),
        "files": [{"name": f.name, "bytes": f.size} for f in plan.files if names is None or f.name in names],
        "left_out": [{"name": one.name, "why": one.why} for one in plan.left_out],
        "notes": list(plan.notes),
    }


def url_of(endpoint: str, repo: str, revision: str | None) -> str:
    """The page of the repository, at the host that was used."""
    branch = "" if revision in (None, MAIN) else f"/tree/{revision}"
    return f"{endpoint}/{repo}{branch}"


def _prepare(api: HfApi, repo: str, plan: PushPlan) -> None:
    """Create the repository and the branch if they do not exist."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        about = api.model_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=plan.private or None, exist_ok=True)
        about = api.model_info(repo)
    if plan.private and not about.private:
        raise ConfigError(
            f"--private: {repo} exists and is public",
            hint="make it private in its settings, choose another name, or leave out --private",
        )
    if plan.revision is not None and plan.revision != MAIN and not plan.revision.startswith("refs/"):
        api.create_branch(repo, branch=plan.revision, exist_ok=True)


def _head(api: HfApi, repo: str, revision: str | None) -> str | None:
    """The commit that the revision is at."""
    sha = api.model_info(repo, revision=revision).sha
    return str(sha) if sha else None


def _edited_there(api: HfApi, repo: str, commit: str, plan: PushPlan) -> bool:
    """Whether the repository has a model card that somebody edited, and that is not the one to be published."""
    from huggingface_hub.errors import RemoteEntryNotFoundError
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    ours = next((file.content for file in plan.files if file.name == CARD), None) or b""
    headers = build_hf_headers(token=api.token)
    answer = get_session().get(f"{api.endpoint}/{repo}/resolve/{commit}/{CARD}", headers=headers, follow_redirects=True)
    try:
        hf_raise_for_status(answer)
    except RemoteEntryNotFoundError:
        return False
    there: bytes = answer.content
    return there.split() != ours.split() and not is_generated(there.decode("utf-8", errors="replace"))


@contextlib.contextmanager
def _quiet_hub() -> Iterator[list[str]]:
    """Inside the context, warnings of the Hub's client are collected, one line each, instead of printed.

    Its progress bars are shown only in a terminal.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    before, said = logging.get_verbosity(), list[str]()
    logging.set_verbosity_error()
    without_bars = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if without_bars:  # each step would be a line
        disable_progress_bars()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
            said += [" ".join(str(w.message).split()) for w in caught if w.category is UserWarning]
    finally:
        logging.set_verbosity(before)
        if without_bars:
            enable_progress_bars()
