"""The process of llama.cpp, with a module in place of llama-cpp-python that aborts, fails to import or is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from smollm3_gguf.checks import stops_of
from smollm3_gguf.llama import check_predictions, check_tokens, checks_with_llama_cpp, quantize_with_llama_cpp
from smollm3_gguf.llama_limits import Precision
from smollm3_gguf.llama_process import OLDEST, LlamaRefusedError, LlamaUnusableError, check_installed, llama
from smollm3_gguf.predictions import Agreement

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
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a module with this source in place of `llama_cpp.llama_cpp`."""

    def put(source: str, version: str = OLDEST) -> None:
        package = tmp_path / "library" / "llama_cpp"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"__version__ = {version!r}\n")
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


def test_an_old_library_is_named_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smollm3_gguf.llama_process.installed", lambda: True)
    monkeypatch.setattr("smollm3_gguf.llama_process.version", lambda name: "0.3.2")
    with pytest.raises(MissingRequirementError, match=r"llama-cpp-python 0\.3\.2 is too old"):
        check_installed("q4_k_m")


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


LACKS_MEMORY = REFUSES.replace("unknown pre-tokenizer type: 'x'", "unable to allocate CPU buffer")


@pytest.mark.parametrize(
    ("source", "version", "says"),
    [
        (REFUSES, "0.2.90", "llama-cpp-python 0.2.90 is too old, and 0.3.36 or later is needed: pip install"),
        (LACKS_MEMORY, OLDEST, "llama.cpp lacks memory or disk space: error loading model: unable to allocate"),
        (FAKE, OLDEST, "llama-cpp-python 0.3.36 failed: AttributeError: "),
        (FAKE + "def llama_model_load_from_file(*_): os._exit(3)", OLDEST, "ended with exit status 3"),
        (FAKE + "def llama_model_load_from_file(*_): os.kill(os.getpid(), 4)", OLDEST, "for another processor: pip"),
    ],
    ids=["old", "memory", "other interface", "exit", "other processor"],
)
def test_what_is_no_fault_of_the_file_gives_no_verdict(
    source: str,
    version: str,
    says: str,
    library: Any,
    subject: Exported,
    tmp_path: Path,
    tiny_gguf: Any,
    context: Callable[..., BuildContext],
) -> None:
    library(source, version)
    (check,) = checks_with_llama_cpp(subject, a_file(tmp_path / "out", tiny_gguf), context())
    assert check.passed is None
    assert says in check.says


class Engine:
    """Answers as llama.cpp with these tokens does; a text has the ids of the tokenizer."""

    def __init__(self, tokenizer: Any, texts: list[str], ends: list[int]) -> None:
        self.tokenizer, self.texts, self.ends = tokenizer, texts, ends

    def tokens(self) -> tuple[list[str], list[int]]:
        return self.texts, self.ends

    def tokenize(self, texts: list[str], special: bool) -> list[list[int]]:
        return [self.tokenizer(text, add_special_tokens=special)["input_ids"] for text in texts]


def test_tokens_are_compared_by_their_ids(subject: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer may have a gap in its ids, so its last id can be larger than its size."""
    monkeypatch.setattr("smollm3_gguf.llama.FUZZED", 3)
    tokenizer: Any = subject.model.tokenizer()
    size = subject.model.config["vocab_size"]
    held = {i: token for token, i in tokenizer.get_vocab().items() if i < size - 3}
    held[size - 1] = "<far>"
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda self: {token: i for i, token in held.items()})
    texts = [held.get(i, f"[PAD{i}]") for i in range(size)]
    stops = stops_of(subject)
    more = next(i for i in range(5, size) if i not in {*stops, tokenizer.eos_token_id})
    check = check_tokens(Engine(tokenizer, texts, [*stops, more]), subject)  # type: ignore[arg-type]
    assert check.passed, check.says
    assert check.says.endswith(f"it also ends at {more}, {texts[more]!r}, which the model does not stop at")
    check = check_tokens(Engine(tokenizer, [*texts[:-1], "<other>"], stops), subject)  # type: ignore[arg-type]
    assert check.says == f"token {size - 1} is '<far>', in the file '<other>'"


def test_predictions_at_one_position_of_a_row_have_a_scale() -> None:
    torch.manual_seed(0)
    agreement, random = Agreement(), torch.randn(6, 9)
    agreement.add(random, [2], random[[2]] + 0.01 * torch.randn(1, 9), torch.tensor([3]))
    assert agreement.scale > 0.1 > 1e-3 > agreement.kl > 0
    assert agreement.comparable
    agreement = Agreement()
    agreement.add(random[:1].repeat(6, 1), [2], random[[1]], torch.tensor([3]))
    assert not agreement.comparable


def test_prompts_of_one_token_give_no_verdict() -> None:
    made = Exported(model=small_source(), name="small", prompts=lambda: [[1], [2]])
    kind = Precision(tensors="", quantized=False, logits=1.0, divergence=1.0)
    check = check_predictions(None, None, made, kind)  # type: ignore[arg-type]
    assert (check.passed, check.says) == (None, "not compared: no row has two tokens")


def test_the_process_ends_with_the_context(library: Any) -> None:
    library(FAKE)
    with llama() as engine:
        process = engine._process
        assert process.poll() is None
    assert process.poll() is not None
