"""Tests: the promises of every loader (conformance kit), and the behavior of this loader."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from smollm3_finetune.api import ModelError
from smollm3_finetune.testing import LoaderConformance, context, write_small_model

from smollm3_vault.loader import VaultLoader
from smollm3_vault.options import VaultOptions


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs in its own directory; pytest restores the previous one."""
    monkeypatch.chdir(tmp_path)


class TestVault(LoaderConformance):
    """Inherited tests: opening reads no weights, fingerprints, tokenizer, load, at."""

    component = "vault"
    unknown = "vault://nothing"

    def reference(self, directory: Path, seed: int) -> str:
        write_small_model(directory / "models" / "small", seed=seed)
        os.chdir(directory)  # the option `folder` is `models`, below it
        return "vault://small"


@pytest.mark.parametrize("name", ["absent", "", "../small"])
def test_the_hint_lists_the_models_of_the_folder(tmp_path: Path, name: str) -> None:
    write_small_model(tmp_path / "here" / "small")
    loader = VaultLoader(VaultOptions(folder="here"))
    with pytest.raises(ModelError, match="has no model") as caught:
        loader.open(f"vault://{name}", context(tmp_path / "cache"))
    assert caught.value.hint == "available models: small"
