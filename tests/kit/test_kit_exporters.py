"""Variants of the example exporter with one fault each fail the kit with a sentence that names it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.testing import ExporterConformance

EXAMPLE = Path(__file__).parents[2] / "examples" / "npz_export.py"


class TestNpz(ExporterConformance):
    component = "npz"
    plugins = (EXAMPLE,)


SAVE = 'np.savez(out / f"{subject.name}.npz", **self.rounded(subject))'
CHECKS = "passed=not odd"
FAULTS: dict[str, tuple[str, str, str, str]] = {
    "time": (
        "test_writing_twice_gives_the_same_bytes", SAVE,
        f"{SAVE}\n        (out / 'when.txt').write_text(str(__import__('time').time_ns()))", "when.txt other bytes",
    ),
    "no file": ("test_writing_twice_gives_the_same_bytes", SAVE, "pass", "has written no file"),
    "refuses": ("test_verify_passes_on_its_own_output", CHECKS, "passed=False", "refuses what write() has written"),
    "no verdict": ("test_verify_passes_on_its_own_output", CHECKS, "passed=None", "no check with a verdict"),
    "blind": ("test_verify_finds_altered_files", "self.read(subject, out)\n        odd",
              "self.rounded(subject)\n        odd", "verify() passes although small.npz is altered"),
    "raises": ("test_verify_finds_altered_files", "(OSError, ValueError, zipfile.BadZipFile)", "OSError",
               "verify() raises"),
    "rounds": ("test_reload_returns_the_written_weights", "from_numpy(array).float()",
               "from_numpy(array).half().float()", "set `precision` to what the format rounds"),
    "not read": ("test_reload_returns_the_written_weights", "in self.read(subject, out).items()",
                 "in self.rounded(subject).items()", "returns the same weights although small.npz was altered"),
    "source": ("test_the_source_is_as_before", SAVE, f"{SAVE}\n        (subject.model.path / 'new').touch()",
               "new of the source is new or changed"),
    "directory": ("test_the_source_is_as_before", SAVE, f"{SAVE}\n        open('log.txt', 'w').close()",
                  "writes into the working directory"),
    "prints": ("test_it_is_quiet", SAVE, f"{SAVE}\n        print('saved')", "it prints 'saved'"),
    "heavy": ("test_check_and_refine_are_light", "from dataclasses import dataclass\n",
              "from dataclasses import dataclass\n\nimport torch\n", "imports torch"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_with_a_sentence(
    fault: str,
    plugin_file: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    test, right, wrong, sentence = FAULTS[fault]
    name = f"faulty_npz_{fault.replace(' ', '_')}"
    source = EXAMPLE.read_text().replace("npz_export:", f"{name}:")
    assert right in source
    file = plugin_file(name, source.replace(right, wrong))

    class Faulty(TestNpz):
        plugins = (file,)

    more: dict[str, dict[str, Any]] = {
        "test_it_is_quiet": {"tmp_path": tmp_path, "capfd": capfd},
        "test_the_source_is_as_before": {"tmp_path": tmp_path, "monkeypatch": monkeypatch},
        "test_check_and_refine_are_light": {},
    }
    with pytest.raises(pytest.fail.Exception, match=re.escape(sentence)):
        getattr(Faulty(), test)(**more.get(test, {"tmp_path": tmp_path}))
