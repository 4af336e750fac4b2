"""What the work of a stage needs: its place in the pipeline, the directories of earlier stages, plugins, output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from smollm3_finetune.api import BuildContext, Progress, Purpose
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.config.load import LoadedConfig
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.model.load import build_context
from smollm3_finetune.model.plan import ModelRequest
from smollm3_finetune.model.saved_adapter import FILE, SavedAdapter
from smollm3_finetune.model_files.loading import quiet_transformers
from smollm3_finetune.paths import user_path
from smollm3_finetune.pipeline.configuration import Directories, code_options, loaded_configuration
from smollm3_finetune.pipeline.inputs import Reading
from smollm3_finetune.pipeline.results import model_in
from smollm3_finetune.pipeline.stage import PipelineFile, Ref, Stage
from smollm3_finetune.runs.plugin_files import check_missing_plugin_files, check_plugin_files
from smollm3_finetune.runs.reopen import run_request, saved_configuration
from smollm3_finetune.runs.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class Work:
    """A stage, and everything that its work is done with."""

    pipeline: PipelineFile
    stage: Stage
    directory: Path
    """Where its result is to be."""
    results: Directories
    """The directories of the earlier stages that are finished."""
    reading: Reading
    warn: Callable[[str], None]

    @property
    def progress(self) -> Progress:
        return self.reading.progress

    @property
    def about(self) -> dict[str, str]:
        """What reports and cards say about the pipeline."""
        return {"pipeline": self.pipeline.name, "stage": self.stage.name}

    def loaded(self) -> LoadedConfig:
        return loaded_configuration(self.pipeline, self.stage, self.results)

    def plugins(self) -> Sequence[str]:
        """The plugin files and modules of the file and of `-p`."""
        return [*self.loaded().config.plugins, *self.reading.plugins]

    def registry(self) -> Registry:
        return self.reading.find_plugins(self.plugins())

    def context(self, purpose: Purpose) -> Callable[[], BuildContext]:
        config = self.loaded().config

        def make() -> BuildContext:
            quiet_transformers()
            return build_context(purpose, config.device, config.dtype, config.seed, progress=self.progress)

        return make

    def path_of(self, ref: Ref) -> Path | None:
        """The run or model that a reference stands for; None if its stage is not finished, or if it is not a path."""
        if ref.stage is not None:
            return None if ref.stage not in self.results else model_in(self.results[ref.stage])
        path = user_path(ref.path or "")
        return path if path.is_dir() else None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model of a stage or a path, to be merged or evaluated."""

    request: ModelRequest
    run: RunDir | None = None
    loaded: LoadedConfig | None = None
    """The configuration of the run."""


def subject_of(work: Work, ref: Ref, command: str, purpose: Purpose, quant: ComponentConfig | None = None) -> Subject:
    """The model that a finished stage or a path stands for: a run, a saved adapter, or a model.

    Raises ModelError or ConfigError as the command would.
    """
    path = work.path_of(ref)
    run = RunDir(path) if path is not None else None
    if run is not None and run.config.exists():
        options = code_options(work.pipeline, work.stage)
        check_plugin_files(run, work.plugins())
        check_missing_plugin_files(run, work.plugins(), work.registry())
        request, _ = run_request(run, (), options, command, purpose)
        return Subject(request=request, run=run, loaded=saved_configuration(run, options))
    loader, quant = work.loaded().config.loader, quant or ComponentConfig()
    if path is not None and (path / FILE).is_file() and (model := SavedAdapter.read(path).model):
        return Subject(request=ModelRequest(ref=model, loader=loader, adapter_path=path, purpose=purpose))
    ref_text = str(path) if path is not None else ref.path or ""
    return Subject(request=ModelRequest(ref=ref_text, loader=loader, quant=quant, purpose=purpose))
