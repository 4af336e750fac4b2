"""References: which files are found, which are refused, and the error messages."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest
from smollm3_gguf import claims, smollm3_loaders
from smollm3_gguf.files import find_file
from smollm3_gguf.loader import GgufLoader
from smollm3_gguf.options import GgufOptions

from smollm3_finetune.api import ConfigError, ModelError


def refusal(path, context):
    with pytest.raises(ModelError) as caught:
        GgufLoader(GgufOptions()).open(str(path), context())
    return str(caught.value)


@pytest.mark.parametrize("ref", ["a.gguf", "dir/A.GGUF", "org/repo/model-Q4_K_M.gguf", "org/repo/sub/model.gguf"])
def test_claims_references_that_end_in_gguf(ref):
    assert claims(ref)


@pytest.mark.parametrize("ref", ["HuggingFaceTB/SmolLM3-3B", "a.gguf/", "gguf", "org/repo-GGUF", "a.gguf.txt"])
def test_does_not_claim_other_references(ref):
    assert not claims(ref)


def test_a_missing_file_suggests_the_most_similar_name(tiny_gguf, context, tmp_path):
    tiny_gguf.write(tmp_path / "smollm2-Q4_1.gguf")
    text = refusal(tmp_path / "smollm2-Q4_l.gguf", context)
    assert f"the GGUF file '{tmp_path / 'smollm2-Q4_l.gguf'}' does not exist" in text
    assert f"did you mean {tmp_path / 'smollm2-Q4_1.gguf'}?" in text


def test_a_missing_file_lists_the_files_of_the_folder(tiny_gguf, context, tmp_path):
    tiny_gguf.write(tmp_path / "smollm2-Q4_1.gguf")
    assert "/ has smollm2-Q4_1.gguf" in refusal(tmp_path / "x.gguf", context)


def test_a_missing_folder_shows_the_form_of_hub_references(context, tmp_path):
    assert "org/repo/FILE.gguf" in refusal(tmp_path / "none" / "x.gguf", context)


def test_another_format_is_not_a_gguf_file(context, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04 and so on")
    assert "is not a GGUF file: it starts with b'PK\\x03\\x04'" in refusal(tmp_path / "x.gguf", context)


def test_an_empty_file_is_not_a_gguf_file(context, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"")
    assert "is not a GGUF file" in refusal(tmp_path / "x.gguf", context)


@pytest.mark.parametrize("version", [1, 99, 0x03000000])
def test_an_unsupported_version_is_named(context, tmp_path, version):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + version.to_bytes(4, "little") + b"\0" * 16)
    assert f"GGUF version {version}" in refusal(tmp_path / "x.gguf", context)


@pytest.mark.parametrize("keep", [20, 200, 1500])
def test_a_truncated_header_is_refused(tiny_gguf, context, tmp_path, keep):
    tiny_gguf.write(tmp_path / "whole.gguf")
    (tmp_path / "x.gguf").write_bytes((tmp_path / "whole.gguf").read_bytes()[:keep])
    assert "inside its header" in refusal(tmp_path / "x.gguf", context)


def test_an_overwritten_header_is_refused(tiny_gguf, context, tmp_path):
    tiny_gguf.write(tmp_path / "x.gguf")
    data = bytearray((tmp_path / "x.gguf").read_bytes())
    data[24:600] = b"\xff" * 576
    (tmp_path / "x.gguf").write_bytes(bytes(data))
    assert "corrupt inside its header" in refusal(tmp_path / "x.gguf", context)


def test_truncated_weights_are_refused_with_both_sizes(tiny_gguf, context, tmp_path):
    tiny_gguf.write(tmp_path / "whole.gguf")
    data = (tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "x.gguf").write_bytes(data[:-5000])
    text = refusal(tmp_path / "x.gguf", context)
    assert "is truncated" in text
    assert f"but it has {len(data) - 5000:,}" in text


@pytest.mark.parametrize("architecture", ["clip", "t5", "rwkv7"])
def test_an_unsupported_architecture_is_named(tiny_gguf, context, tmp_path, architecture):
    tiny_gguf.write(tmp_path / "x.gguf", architecture=architecture)
    text = refusal(tmp_path / "x.gguf", context)
    assert f"has the architecture {architecture}, which transformers cannot read from GGUF" in text
    assert "llama" in text


def test_a_part_of_a_split_model_is_refused_with_the_command_to_join_it(tiny_gguf, context, tmp_path):
    tiny_gguf.write(tmp_path / "x.gguf", extra={"split.count": 3})
    text = refusal(tmp_path / "x.gguf", context)
    assert "one of 3 parts" in text
    assert "llama-gguf-split --merge" in text


def test_a_split_count_that_is_not_a_number_is_refused(tiny_gguf, context, tmp_path):
    tiny_gguf.write(tmp_path / "x.gguf", extra={"split.count": "three"})
    assert "its split.count is 'three', but a number was expected" in refusal(tmp_path / "x.gguf", context)


def test_the_home_directory_of_an_unknown_user_is_refused(context):
    with pytest.raises(ConfigError) as caught:
        GgufLoader(GgufOptions()).open("~nosuchuser/x.gguf", context())
    assert caught.value.message == "the model '~nosuchuser/x.gguf': the user '~nosuchuser' has no home directory"
    assert caught.value.hint == "./~nosuchuser/x.gguf"


def test_a_path_that_cannot_be_accessed_is_refused(context, tmp_path):
    path = tmp_path / ("x" * 300) / "x.gguf"  # stat() fails as for a directory without permission
    with pytest.raises(ConfigError, match="cannot be accessed: File name too long"):
        GgufLoader(GgufOptions()).open(str(path), context())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError(),
                                   RuntimeError("No space left on device (os error 28)")])  # fmt: skip
def test_resource_errors_while_downloading_are_raised_unchanged(monkeypatch, error):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **kwargs: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fails)
    with pytest.raises(type(error)) as caught:
        find_file("org/repo/tiny.gguf", None).on_disk()
    assert caught.value is error


def test_a_hub_file_in_the_cache_is_used_without_a_network(tiny_gguf, context, tmp_path, monkeypatch):
    commit = "0" * 40
    repo = tmp_path / "hub" / "models--org--repo"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots" / commit / "sub").mkdir(parents=True)
    tiny_gguf.write(repo / "snapshots" / commit / "sub" / "tiny.gguf")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = GgufLoader(GgufOptions()).open("org/repo/sub/tiny.gguf", context())
    assert source.config["model_type"] == "llama"
    assert source.pins == {"revision": commit}
    pinned = GgufLoader(GgufOptions(revision=commit)).open("org/repo/sub/tiny.gguf", context())
    assert pinned.fingerprint == source.fingerprint


def test_a_hub_file_that_cannot_be_fetched_is_an_error(context, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text = refusal("org/repo/tiny.gguf", context)
    assert "org/repo/tiny.gguf is not on disk and could not be fetched from the Hub" in text


LIGHT = """
import sys
for name in ("torch", "transformers", "gguf", "numpy", "huggingface_hub"):
    sys.modules[name] = None  # any import of it raises
import smollm3_gguf, smollm3_gguf.options, smollm3_gguf.loader
[spec] = smollm3_gguf.smollm3_loaders()
assert spec.claims("x.gguf") and not spec.claims("x")
print(spec.name)
"""


def test_the_descriptor_imports_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "gguf"


def test_checking_a_file_imports_no_torch(tiny_gguf, tmp_path):
    tiny_gguf.write(tmp_path / "x.gguf")
    code = (
        "import sys; from smollm3_gguf.files import find_file, check_file\n"
        f"check_file(find_file({str(tmp_path / 'x.gguf')!r}, None))\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_descriptor_declares_its_requirements():
    [spec] = smollm3_loaders()
    assert spec.requires.distributions
    assert spec.claims is claims
