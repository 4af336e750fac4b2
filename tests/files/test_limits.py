"""Files of strangers: sizes, depths, pipes and devices. Each is refused by name, at once."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from smollm3_finetune.errors import ConfigError, ModelError
from smollm3_finetune.files.checksums import damage
from smollm3_finetune.files.json import names_code, read_json
from smollm3_finetune.files.limits import LIMITS, BeyondLimit, check_regular, load_json, parse_json
from smollm3_finetune.files.patterns import check_patterns
from smollm3_finetune.files.separate import Ended, TooLong, TooMuchMemory, in_separate_process

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security.md"
NAMES = [f"model.layers.{n}.self_attn.{'x' * 30}" for n in range(4)]


def test_a_pipe_and_a_device_are_not_read(tmp_path: Path) -> None:
    pipe = tmp_path / "config.json"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="it is a named pipe, not a file"):
        load_json(pipe)
    with pytest.raises(ModelError, match=r"config\.json is a named pipe"):
        check_regular(tmp_path)
    pipe.unlink()
    pipe.symlink_to("/dev/zero")
    with pytest.raises(ModelError, match="cannot be read as JSON: it is a device, not a file"):
        read_json(pipe)


def test_a_file_of_exactly_the_limit_is_read_and_one_byte_more_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMOLLM3_MAX_JSON_MB", "1")
    file = tmp_path / "a.json"
    file.write_text('"' + "a" * 999_998 + '"')
    assert len(load_json(file)) == 999_998
    file.write_text('"' + "a" * 999_999 + '"')
    with pytest.raises(BeyondLimit, match=r"larger than 1 MB \(the limit is SMOLLM3_MAX_JSON_MB=1\)"):
        load_json(file)
    with pytest.raises(ModelError) as e:
        read_json(file)
    assert e.value.hint == "if you trust the file: SMOLLM3_MAX_JSON_MB=2"


@pytest.mark.parametrize("levels", [99, 101, 5_000, 200_000])
@pytest.mark.parametrize(("opening", "inner", "closing"), [("[", "1", "]"), ('{"a":', "1", "}")])
def test_nested_json_beyond_the_limit_is_refused(levels: int, opening: str, inner: str, closing: str) -> None:
    text = opening * levels + inner + closing * levels
    if levels < 100:
        assert parse_json(text)
        return
    with pytest.raises(BeyondLimit, match="nested too deeply, more than 100 levels"):
        parse_json(text)


def test_wide_json_is_not_deep() -> None:
    assert len(parse_json(json.dumps([[n] for n in range(1000)]))) == 1000


@pytest.mark.parametrize("value", ["0", "-1", "x", "1e3", "9" * 30, "٣"])
def test_a_wrong_limit_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOLLM3_MAX_DEPTH", value)
    with pytest.raises(ConfigError, match="SMOLLM3_MAX_DEPTH must be a positive integer"):
        parse_json("[" * 150 + "]" * 150)


def test_every_limit_is_documented_with_its_default() -> None:
    text = PAGE.read_text(encoding="utf-8")
    documented = dict(re.findall(r"\| `(SMOLLM3_MAX_\w+)` \| ([\d,]+) \|", text))
    assert documented == {limit.variable: f"{limit.default:,}" for limit in LIMITS}


def test_every_promise_has_tests_that_exist() -> None:
    promises = re.findall(r"^\| (\w.*) \| (`.*`) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(promises) >= 10
    for promise, tests in promises:
        for file, name in re.findall(r"`(\S+)::(\w+)`", tests):
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), (promise, name)
        assert "::" in tests, promise


def test_code_is_found_in_every_part_of_a_config() -> None:
    assert names_code({"text_config": {"x": [{"auto_map": {}}]}})
    assert not names_code({"text_config": {"x": ["auto_map"]}})


def test_expressions_that_end_are_accepted() -> None:
    check_patterns([r".*\.(q|v)_proj", "q_proj", "a|b", 5, None], NAMES)


@pytest.mark.parametrize("pattern", ["(x+x+)+y"])
def test_an_expression_that_does_not_end_is_refused(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOLLM3_MAX_SECONDS", "1")
    with pytest.raises(BeyondLimit, match=r"takes more than 1 seconds \(the limit is SMOLLM3_MAX_SECONDS=1\)"):
        check_patterns([pattern], NAMES)


@pytest.mark.parametrize("pattern", ["(", "a{99999999999}", "[", "*a", "(" * 5000 + ")" * 5000])
def test_an_invalid_expression_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"is not a regular expression|matching module names"):
        check_patterns([pattern], NAMES)


def script(tmp_path: Path, body: str) -> Path:
    file = tmp_path / "script.py"
    file.write_text(f"def answer(job):\n    {body}\n")
    return file


def test_a_checksum_of_a_name_that_no_file_system_takes_is_a_missing_file(tmp_path: Path) -> None:
    for name in ("x" * 5000, "a\0b", "../../etc/passwd", ""):
        (tmp_path / "checksums.json").write_text(json.dumps({"sha256": {name: "0" * 64}}))
        assert damage(tmp_path) == f"{name[:255]} is missing"


def test_a_separate_process_answers(tmp_path: Path) -> None:
    assert in_separate_process(script(tmp_path, "return job[::-1]"), [1, "ä"], seconds=5) == ["ä", 1]


def test_a_separate_process_that_crashes_is_reported(tmp_path: Path) -> None:
    with pytest.raises(Ended, match="ended Python with signal SIGSEGV"):
        in_separate_process(script(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"), None)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory")
def test_a_separate_process_has_limits(tmp_path: Path) -> None:
    with pytest.raises(TooMuchMemory):
        in_separate_process(script(tmp_path, "return len(bytes(1 << 30))"), None, memory=1 << 28)
    with pytest.raises(TooLong, match="takes more than 1 seconds"):
        in_separate_process(script(tmp_path, "while True: pass"), None, seconds=1)
