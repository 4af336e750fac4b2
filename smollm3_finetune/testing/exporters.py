"""Conformance tests for exporters: the same bytes each time, and a `verify` that finds what is wrong with them.

from smollm3_finetune.testing import ExporterConformance

class TestNpz(ExporterConformance):
    component = "npz"
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from smollm3_finetune.api import BuildContext, Check, Exported, ModelSource, Purpose, directory_source
from smollm3_finetune.components.kinds import EXPORTER
from smollm3_finetune.components.negotiation import environment, refined
from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.files.json import read_json, write_json
from smollm3_finetune.merge.gate import TEXTS, fixed_rows
from smollm3_finetune.model.compare import apart
from smollm3_finetune.model.plan import ModelRequest, choose_loader, open_source
from smollm3_finetune.model_files.loading import quiet_transformers
from smollm3_finetune.model_files.writing import EXPORT_FIGURES
from smollm3_finetune.pipeline.results import model_in
from smollm3_finetune.shipping.gate import of_model
from smollm3_finetune.testing.conformance import demand, fail, outcome, plugin_path, skip
from smollm3_finetune.testing.round_trips import RoundTripTests, Written
from smollm3_finetune.testing.small import write_small_model

LIGHT = """
import json, sys
from smollm3_finetune.checks.calls import light_calls
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import EXPORTER
files, name = json.loads(sys.argv[1])
component = discover(PluginSelection(files=tuple(files))).find(EXPORTER, name)
component.options_class()
for _, _, call in light_calls(component):
    call()
print(json.dumps(sorted({m.split(".")[0] for m in sys.modules} & {"torch", "transformers"})))
"""
VOCABULARY = 2048
STOP = 4
"""The token that ends a turn of the small model."""


class ExporterConformance(RoundTripTests):
    """Subclass it and name the exporter; the tests are inherited. An exporter of adapters also needs `adapter`."""

    kind = EXPORTER
    dtype = "float32"
    precision: ClassVar[float] = 0.0
    """The largest relative error of a weight that `reload` returns: what the format rounds."""
    unverified: ClassVar[Sequence[str]] = ()
    """Names of written files that `verify` does not read, such as a license."""

    def model(self, directory: Path) -> ModelSource:
        """Write the model that is exported into `directory`, and open it: a random SmolLM3 of two layers.

        Override it if the format does not hold that architecture.
        """
        write_small_model(directory, biases=False)
        write_json(directory / "generation_config.json", {"eos_token_id": [STOP], "pad_token_id": 2})
        return directory_source(directory, ref="small")

    def adapter(self, directory: Path) -> Path:
        """Write an adapter of that model into `directory`, for an exporter that takes an adapter."""
        skip("it takes an adapter: override adapter(), which writes one")

    # --------------------------------------------------------------------------------------- parts

    def subject(self, tmp_path: Path) -> Exported:
        """What is exported."""
        place = tmp_path / "source"
        quiet_transformers()  # as the command does
        source = self.model(place / "model")
        saved = None
        if self.spec().takes == "adapter":
            (place / "adapter").mkdir()
            saved = self.adapter(place / "adapter")
        tokenizer = source.tokenizer()
        rows = fixed_rows(tokenizer, VOCABULARY)
        return Exported(
            model=source,
            adapter=saved,
            name="small",
            texts=lambda: TEXTS,
            rows=lambda: [{"input_ids": row, "labels": row} for row in rows],
            prompts=lambda: rows,
        )

    def context(self, tmp_path: Path, purpose: Purpose = Purpose.EXPORT) -> BuildContext:
        return super().context(tmp_path, purpose)

    def written(self, tmp_path: Path, subject: Exported, name: str = "out") -> Path:
        """The directory that `write` has filled."""
        out = tmp_path / name
        out.mkdir()
        _, error = outcome(lambda: self.exporter().write(subject, out, self.context(tmp_path)))
        if error is not None:
            fail(f"write() failed: {type(error).__name__}: {error}")
        return out

    def exporter(self) -> Any:
        return self.choose().create()

    def checks(self, tmp_path: Path, subject: Exported, out: Path) -> Sequence[Check]:
        found, error = outcome(lambda: list(self.exporter().verify(subject, out, self.context(tmp_path))))
        if error is not None:
            fail(f"verify() failed on the exporter's own files: {type(error).__name__}: {error}")
        assert found is not None
        return found

    def has_round_trip(self) -> bool:
        return bool(refined(self.choose(), environment(self.device, Purpose.TRAIN)).round_trips)

    def trained_source(self, tmp_path: Path) -> ModelSource:
        return self.model(tmp_path / "trained")

    def written_weights(self, source: ModelSource, tmp_path: Path, context: BuildContext) -> Written:
        subject, out = replace(self.subject(tmp_path), model=source), tmp_path / "written"
        out.mkdir()
        context = replace(context, purpose=Purpose.EXPORT)
        made = self.exporter()
        made.write(subject, out, context)
        model = made.reload(subject, out, context)
        demand(model is not None, "round_trips is declared, but reload() returns None")
        return of_model(model)

    # --------------------------------------------------------------------------------------- tests

    def test_writing_twice_gives_the_same_bytes(self, tmp_path: Path) -> None:
        subject = self.subject(tmp_path)
        first, again = (_digests(self.written(tmp_path, subject, name)) for name in ("one", "two"))
        demand(bool(first), "write() has written no file into `out`")
        demand(set(first) == set(again), f"a second write() makes other files: {sorted(set(first) ^ set(again))[:2]}")
        odd = sorted(name for name in first if first[name] != again[name])
        demand(not odd, f"a second write() gives {', '.join(odd[:2])} other bytes: write no time, path or random value")

    def test_verify_passes_on_its_own_output(self, tmp_path: Path) -> None:
        subject = self.subject(tmp_path)
        checks = self.checks(tmp_path, subject, self.written(tmp_path, subject))
        wrong = next((c for c in checks if not isinstance(c, Check)), None)
        demand(wrong is None, f"verify() returns a {type(wrong).__name__}, not a Check")
        failed = [c for c in checks if c.passed is False]
        demand(not failed, f"verify() refuses what write() has written: {[f'{c.name}: {c.says}' for c in failed]}")
        demand(
            any(c.passed for c in checks),
            "verify() returns no check with a verdict: at least one must have passed=True",
        )
        for check in checks:
            demand(bool(check.says), f"the check {check.name!r} says nothing: `says` is shown to users")
            _, error = outcome(lambda c=check: json.dumps(dict(c.figures)))
            demand(error is None, f"the figures of the check {check.name!r} cannot be written as JSON: {error}")
        names = [c.name for c in checks]
        demand(len(set(names)) == len(names), f"two checks have the same name: {names}")

    def test_verify_finds_altered_files(self, tmp_path: Path) -> None:
        subject = self.subject(tmp_path)
        out = self.written(tmp_path, subject)
        for name, what in _alterations(out, self.unverified):
            altered = tmp_path / "altered"
            shutil.copytree(out, altered)
            _alter(altered / name, what)
            checks, error = outcome(lambda: list(self.exporter().verify(subject, altered, self.context(tmp_path))))  # noqa: B023
            if error is not None and not isinstance(error, SmolLM3Error):
                fail(
                    f"verify() raises {type(error).__name__} ({error}) if {name} is {what}: return a Check with "
                    "passed=False, or raise ModelError"
                )
            found = error is not None or any(c.passed is False for c in checks or ())
            demand(found, f"verify() passes although {name} is {what}: compare what is in the file, not what was meant")
            shutil.rmtree(altered)

    def test_reload_returns_the_written_weights(self, tmp_path: Path) -> None:
        subject = self.subject(tmp_path)
        out = self.written(tmp_path, subject)
        model = self._reloaded(tmp_path, subject, out)
        if model is None:
            skip("reload() returns None: nothing is read back")
        state = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
        dtypes = {value.dtype for value in state.values()}
        demand(dtypes == {torch.float32}, f"reload() returns weights in {dtypes}, but must return float32")
        devices = {value.device.type for value in state.values()}
        demand(devices == {self.device}, f"reload() returns weights on {devices}, but ctx.device is {self.device}")
        source = subject.model.load(dtype=torch.float32).state_dict()
        if odd := sorted(set(state) ^ {n for n, v in source.items() if v.is_floating_point()}):
            fail(f"reload() returns another model: {odd[0]} is only in one of them")
        for name, value in state.items():
            error = apart(value.cpu(), source[name])
            demand(
                error <= self.precision,
                f"{name} of reload() differs by {error:.2g} (limit {self.precision:.2g}): set `precision` to what the "
                "format rounds",
            )
        self._reads_what_is_written(tmp_path, subject, out, state)

    def _reads_what_is_written(self, tmp_path: Path, subject: Exported, out: Path, state: dict[str, Any]) -> None:
        """Fail if reloading an altered file gives the same weights."""
        altered = tmp_path / "altered"  # a copy: loaded weights may be mapped from the files
        shutil.copytree(out, altered)
        largest = max((f for f in altered.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
        _alter(largest, "altered in its middle")
        again, error = outcome(lambda: self.exporter().reload(subject, altered, self.context(tmp_path)))
        if error is not None or again is None:
            return
        now = again.state_dict()
        same = all(torch.equal(value, now[name]) for name, value in state.items() if name in now)
        demand(not same, f"reload() returns the same weights although {largest.name} was altered: read the files")

    def _reloaded(self, tmp_path: Path, subject: Exported, out: Path) -> Any:
        model, error = outcome(lambda: self.exporter().reload(subject, out, self.context(tmp_path)))
        if error is not None:
            fail(f"reload() failed on the exporter's own files: {type(error).__name__}: {error}")
        return model

    def test_a_loader_opens_what_is_written_if_that_is_declared(self, tmp_path: Path) -> None:
        if not refined(self.choose(), environment(self.device, Purpose.EXPORT)).loads:
            skip("loads is not declared")
        subject = self.subject(tmp_path)
        out, context = self.written(tmp_path, subject), self.context(tmp_path)
        files = {str(f.relative_to(out)): f.stat().st_size for f in out.rglob("*") if f.is_file()}
        write_json(out / EXPORT_FIGURES, {"files": files})
        ref = str(model_in(out))

        def loaded() -> Any:
            source, _ = open_source(choose_loader(self.registry(), ModelRequest(ref=ref)), ref, context)
            return source.load(dtype=torch.float32)

        model, error = outcome(loaded)
        if model is None:
            fail(f"loads is declared, but no loader opens {Path(ref).name}: {error}")
        wanted = subject.model.load(dtype=torch.float32).state_dict()
        for name, value in model.state_dict().items():
            demand(name in wanted, f"{name} of the loaded model is not one of the source")
            error_of = apart(value.float(), wanted[name].float())
            demand(
                error_of <= self.precision,
                f"{name} of the loaded model differs by {error_of:.2g} (limit {self.precision:.2g})",
            )

    def test_the_source_is_as_before(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        subject = self.subject(tmp_path)
        work = tmp_path / "work-directory"
        work.mkdir()
        monkeypatch.chdir(work)
        before = _digests(tmp_path / "source")
        out = self.written(tmp_path, subject)
        kept = _digests(out)
        self.checks(tmp_path, subject, out)
        self._reloaded(tmp_path, subject, out)
        odd = sorted(name for name, value in _digests(tmp_path / "source").items() if before.get(name) != value)
        demand(not odd, f"{', '.join(odd[:2])} of the source is new or changed: write into `out` only")
        demand(not any(work.iterdir()), "it writes into the working directory: write into `out` only")
        demand(_digests(out) == kept, "verify() or reload() changes the written files")

    def test_it_is_quiet(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        logger = logging.getLogger()
        handlers, level = list(logger.handlers), logger.level
        subject = self.subject(tmp_path)
        capfd.readouterr()
        out = self.written(tmp_path, subject)
        self.checks(tmp_path, subject, out)
        self._reloaded(tmp_path, subject, out)
        said = capfd.readouterr()
        demand(not said.out + said.err, f"it prints {(said.out + said.err).strip()[:200]!r}: use `ctx.progress`")
        demand(logger.level == level and logger.handlers == handlers, "it changes the root logger")

    def test_an_unknown_model_is_a_clear_error(self, tmp_path: Path) -> None:
        subject = self.subject(tmp_path)
        if subject.adapter is not None:
            skip("it takes an adapter, whatever its base is")
        config = tmp_path / "source" / "model" / "config.json"
        if not config.is_file():
            skip("model() writes no config.json into `directory`")
        write_json(config, {**read_json(config), "model_type": "nobody", "architectures": ["NobodyForCausalLM"]})
        source = directory_source(config.parent, ref="small")
        unknown = Exported(model=source, name="small", prompts=subject.prompts, rows=subject.rows)
        out = tmp_path / "out"
        out.mkdir()
        choice, context = self.choose(), self.context(tmp_path)

        def exported() -> Sequence[Check]:
            if choice.spec.check is not None:
                choice.spec.check(choice.options, source)
            exporter = choice.create()
            exporter.write(unknown, out, context)
            return list(exporter.verify(unknown, out, context))

        checks, error = outcome(exported)
        if error is not None and not isinstance(error, SmolLM3Error):
            fail(
                f"a model of an unknown architecture raises {type(error).__name__} ({error}): raise IncompatibleError, "
                "in `check` of the descriptor if config.json shows it"
            )
        if isinstance(error, SmolLM3Error):
            demand(bool(error.message), "the error for a model of an unknown architecture has no message")
            return
        demand(bool(checks), "verify() returns no check for a model of an unknown architecture")

    def test_check_and_refine_are_light(self) -> None:
        job = json.dumps([[str(plugin_path(type(self), p)) for p in self.plugins], self.component])
        done = subprocess.run([sys.executable, "-c", LIGHT, job], capture_output=True, text=True, check=False)
        demand(done.returncode == 0, f"check() or refine() fails in a new process: {done.stderr[-300:]}")
        heavy = json.loads(done.stdout)
        demand(
            not heavy,
            f"the module with the hooks, check() or refine() imports {', '.join(heavy)}: commands that only plan would "
            "import it, so move the import into the factory's module",
        )


def _digests(directory: Path) -> dict[str, str]:
    """The hash of each file below a directory, by its relative name."""
    files = (f for f in sorted(directory.rglob("*")) if f.is_file())
    return {str(f.relative_to(directory)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def _alterations(out: Path, unverified: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The files of an export, each missing and cut to half; the largest also with one bit changed."""
    files = sorted((f for f in out.rglob("*") if f.is_file()), key=lambda f: -f.stat().st_size)
    for number, file in enumerate(files):
        name = str(file.relative_to(out))
        if name not in unverified:
            if number == 0:
                yield name, "altered in its middle"
            yield name, "cut to half"
            yield name, "missing"


def _alter(file: Path, what: str) -> None:
    content = file.read_bytes()
    if what == "missing":
        file.unlink()
    elif what == "cut to half":
        file.write_bytes(content[: len(content) // 2])
    else:
        at = len(content) * 3 // 5
        file.write_bytes(content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :])
