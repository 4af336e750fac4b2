"""Finds and loads the tasks that users name; each fault is one sentence with a hint, before a model is loaded."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from smollm3_finetune.api import ConfigError, DataError, EvaluationContext, SmolLM3Error, is_resource_error
from smollm3_lm_eval.options import HarnessOptions

FILES = (".yaml", ".yml")
NETWORK = ("OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError", "ConnectError", "DatasetNotFoundError",
           "HfHubHTTPError", "ReadTimeout", "ConnectTimeout")  # fmt: skip
"""Names of exceptions that mean that a dataset could not be downloaded."""


def load_tasks(
    references: Sequence[str], options: HarnessOptions, ctx: EvaluationContext
) -> dict[str, tuple[Any, str]]:
    """By name, each task and the reference that stands for it, if that stands for several; ready for the first model.

    Raises ConfigError for a task that does not exist or cannot be loaded, and DataError for its documents.
    """
    for reference in references:
        path = _is_file(reference) or os.sep in reference
        if path and not (_is_file(reference) and Path(reference).expanduser().is_file()):
            hint = "--tasks ./my_task.yaml" if _is_file(reference) else "names of task files end in .yaml"
            raise ConfigError(f"the task file {reference!r} does not exist", hint=hint)
    manager = _manager(references, options)
    found: dict[str, tuple[Any, str]] = {}
    for reference in references:
        tasks = _loaded(manager, reference)
        group = Path(reference).stem if _is_file(reference) else reference
        for name, task in tasks.items():
            if name in found:
                raise ConfigError(f"the task {name!r} is in {reference!r} and in another task", hint="name it once")
            with _explained(name, task):
                _prepare(name, task, options)
            found[name] = (task, group if len(tasks) > 1 else "")
    return found


def _is_file(reference: str) -> bool:
    return reference.lower().endswith(FILES)


def _manager(references: Sequence[str], options: HarnessOptions) -> Any:
    """The harness's index of tasks; that of its own tasks takes seconds, so it is made only if it may be needed."""
    from lm_eval.tasks import TaskManager

    for directory in options.include:
        if not Path(directory).expanduser().is_dir():
            raise ConfigError(f"include: {directory!r} is not a directory", hint="--evaluator-opt include=DIR")
    include = [str(Path(directory).expanduser()) for directory in options.include]
    alone = all(_is_file(r) and _stands_alone(r) for r in references)
    return TaskManager(include_path=include or None, include_defaults=not alone)


def _stands_alone(reference: str) -> bool:
    """Whether a file defines one task, not a group that may name the harness's own. Raises ConfigError."""
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        about = load_yaml(Path(reference).expanduser(), resolve_func=False)
    except Exception as e:  # of the YAML library, which is the harness's choice
        if is_resource_error(e):
            raise
        raise ConfigError(f"the task file {reference!r} is not valid YAML: {_line(e)}",
                          hint="see docs/new_task_guide.md of lm-evaluation-harness") from e  # fmt: skip
    if not isinstance(about, Mapping) or not {"task", "group"} & set(about):
        raise ConfigError(f"the task file {reference!r} has no key 'task'", hint="task: my_task")
    return isinstance(about.get("task"), str) and "group" not in about


def _loaded(manager: Any, reference: str) -> dict[str, Any]:
    """The tasks that a reference stands for."""
    if not _is_file(reference) and reference not in manager.task_index:
        near = difflib.get_close_matches(reference, manager.all_tasks, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "to see all: lm-eval ls tasks; for a file: ./my_task.yaml"
        raise ConfigError(f"lm-eval has no task {reference!r}", hint=hint)
    with _explained(reference, None):
        found: dict[str, Any] = manager.load([reference])["tasks"]
    return found


class _explained:
    """Turns an exception of a task into an error of one sentence, and passes those that are about this machine."""

    def __init__(self, name: str, task: Any) -> None:
        self.name, self.task = name, task

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, SmolLM3Error) or is_resource_error(error):
            return
        causes = list(_causes(error))
        if any(type(e).__name__ in NETWORK for e in causes):
            raise DataError(
                f"the documents of the task {self.name!r} are not on this computer and cannot be downloaded: "
                f"{_line(error)}",
                hint="connect to the network once, or use a local task: --tasks ./my_task.yaml",
            ) from error
        if isinstance(error, OSError):
            raise DataError(
                f"the documents of the task {self.name!r} cannot be read: {_line(error)}",
                hint="paths in data_files are relative to the working directory",
            ) from error
        raise ConfigError(
            f"the task {self.name!r} cannot be used: {type(error).__name__}: {_line(error)}",
            hint="to see the traceback: --debug",
        ) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _prepare(name: str, task: Any, options: HarnessOptions) -> None:
    """Set the number of examples, as the harness does for its own models, and build the first prompt as a trial."""
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(
            f"the task {name!r} runs code that the model writes, which smollm3 does not",
            hint="merge the adapter, and evaluate the model with lm-eval run --confirm_run_unsafe_code",
        )
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(f"the task {name!r} has images or sound, but the model reads text", hint="name a text task")
    own = task.get_config("num_fewshot")
    if own is None or (options.num_fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=options.num_fewshot or 0)
    task.set_fewshot_seed(seed=0)
    task.build_all_requests(limit=1, rank=0, world_size=1, system_instruction=options.system)
