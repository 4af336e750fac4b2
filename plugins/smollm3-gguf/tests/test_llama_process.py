"""The process of llama.cpp, with a module in place of llama-cpp-python that aborts, fails to import or is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from smollm3_gguf.llama import checks_with_llama_cpp, quantize_with_llama_cpp
from smollm3_gguf.llama_process import LlamaRefusedError, LlamaUnusableError, llama

from smollm3_finetune.api import BuildContext, Exported, MissingRequirementError, ModelError
from smollm3_finetune.testing import small_source

FAKE = """
import ctypes, os
print("a banner on standard output")
llama_log_callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def llama_log_set(callback, data): globals()["log"] = callback
def llama_backend_init(): pass
class params: pass
def llama_model_default_params(): return params()
def llama_model_quantize_default_params(): return ctypes.c_int(0)
"""
ABORTS = (
    FAKE
    + """
def llama_model_load_from_file(path, params):
    os.write(2, b"x.cpp:1: GGML_ASSERT(n > 0) failed\\nmore\\n")
    os.abort()
def llama_model_quantize(source, out, params): os.abort()
"""
)
REFUSES = (
    FAKE
    + """
def llama_model_load_from_file(path, params):
    log(2, b"a warning", None)
    log(4, b"llama_model_load: error loading model: unknown pre-tokenizer type: 'x'\\n", None)
    log(4, b"failed to load model\\n", None)
"""
)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a module with this source in place of `llama_cpp.llama_cpp`."""

    def put(source: str) -> None:
        package = tmp_path / "library" / "llama_cpp"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("__version__ = '0.0'\n")
        (package / "llama_cpp.py").write_text(source)
        monkeypatch.syspath_prepend(str(package.parent))

    return put


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smollm3_gguf.llama_process.installed", lambda: False)


def a_file(directory: Path, tiny_gguf: Any) -> Path:
    directory.mkdir()
    tiny_gguf.write(directory / "model.gguf")
    return directory


@pytest.fixture
def subject() -> Exported:
    return Exported(model=small_source(), name="small", prompts=lambda: [[1, 2, 3]])


def test_without_the_library_there_is_no_verdict_and_a_line_to_type(
    missing: None, subject: Exported, tmp_path: Path, tiny_gguf: Any, context: Callable[..., BuildContext]
) -> None:
    out = a_file(tmp_path / "out", tiny_gguf)
    (check,) = checks_with_llama_cpp(subject, out, context())
    assert check.passed is None
    assert "pip install 'llama-cpp-python>=" in check.says


def test_quantizing_without_the_library_names_it(
    missing: None, tmp_path: Path, context: Callable[..., BuildContext]
) -> None:
    with pytest.raises(
        MissingRequirementError, match=r"q4_k_m needs llama\.cpp, and llama-cpp-python is not installed\n"
    ) as raised:
        quantize_with_llama_cpp(tmp_path / "a.gguf", tmp_path / "b.gguf", "q4_k_m", context())
    assert raised.value.hint is not None
    assert raised.value.hint.startswith("pip install")


def test_a_library_that_does_not_import_is_no_fault_of_the_file(
    library: Any, subject: Exported, tmp_path: Path, tiny_gguf: Any, context: Callable[..., BuildContext]
) -> None:
    library("import a_library_that_is_missing")
    (check,) = checks_with_llama_cpp(subject, a_file(tmp_path / "out", tiny_gguf), context())
    assert check.passed is None
    assert "a_library_that_is_missing" in check.says


def test_an_abort_is_a_failed_check(
    library: Any,
    subject: Exported,
    tmp_path: Path,
    tiny_gguf: Any,
    context: Callable[..., BuildContext],
    capfd: pytest.CaptureFixture[str],
) -> None:
    library(ABORTS)
    (check,) = checks_with_llama_cpp(subject, a_file(tmp_path / "out", tiny_gguf), context())
    assert check.passed is False
    assert check.says == "llama.cpp refuses the file: it ended with SIGABRT: x.cpp:1: GGML_ASSERT(n > 0) failed"
    assert capfd.readouterr() == ("", "")


def test_an_abort_while_quantizing_is_an_error(
    library: Any, tmp_path: Path, context: Callable[..., BuildContext]
) -> None:
    library(ABORTS)
    with pytest.raises(ModelError, match="did not quantize to q6_k: it ended with SIGABRT"):
        quantize_with_llama_cpp(tmp_path / "a.gguf", tmp_path / "b.gguf", "q6_k", context())


def test_the_reason_of_a_refusal_is_the_first_error_message(library: Any, tmp_path: Path) -> None:
    library(REFUSES)
    with llama() as engine, pytest.raises(LlamaRefusedError, match=r"^error loading model: unknown pre-tokenizer"):
        engine.open(tmp_path / "x.gguf", 8)


def test_a_killed_process_is_no_fault_of_the_file(library: Any, tmp_path: Path) -> None:
    library(FAKE + "def llama_model_load_from_file(path, params): os.kill(os.getpid(), 9)\n")
    with llama() as engine, pytest.raises(LlamaUnusableError, match="was killed"):
        engine.open(tmp_path / "x.gguf", 8)


def test_the_process_ends_with_the_context(library: Any) -> None:
    library(FAKE)
    with llama() as engine:
        process = engine._process
        assert process.poll() is None
    assert process.poll() is not None
