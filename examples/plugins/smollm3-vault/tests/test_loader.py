"""Tests: the promises of every loader (conformance kit), and that no changed file is read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from smollm3_vault.loader import SUMS, VaultLoader
from smollm3_vault.options import VaultOptions

from smollm3_finetune.api import ConfigError, ModelError
from smollm3_finetune.testing import LoaderConformance, context, write_small_model


def written(folder: Path, name: str = "ours", version: str = "1.0", seed: int = 0) -> Path:
    """A model in a vault."""
    directory = folder / name / version
    write_small_model(directory, seed=seed)
    sums = [f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in sorted(directory.iterdir())]
    (directory / SUMS).write_text("".join(sums))
    return directory


class TestVault(LoaderConformance):
    component = "vault"
    unknown = "vault://nothing@1.0"

    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def reference(self, directory: Path, seed: int) -> str:
        written(directory, seed=seed)
        self.monkeypatch.setenv("SMOLLM3_VAULT", str(directory))
        return "vault://ours@1.0"


def opened(folder: Path, ref: str = "vault://ours@1.0", sha256: str | None = None):  # type: ignore[no-untyped-def]
    return VaultLoader(VaultOptions(folder=str(folder), sha256=sha256)).open(ref, context(folder / "cache"))


@pytest.mark.parametrize("name", ["ours", "ours@2.0", "@1.0", "ours@../ours/1.0", "../out/ours@1.0", "ours/1.0@."])
def test_the_hint_lists_the_models_of_the_vault(tmp_path: Path, name: str) -> None:
    written(tmp_path / "vault")
    written(tmp_path / "out")
    with pytest.raises(ModelError, match="has no model") as caught:
        opened(tmp_path / "vault", f"vault://{name}")
    assert caught.value.hint == "available models: vault://ours@1.0"


def test_the_folder_must_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SMOLLM3_VAULT", raising=False)
    with pytest.raises(ConfigError, match="no folder of a vault is named"):
        VaultLoader(VaultOptions()).open("vault://ours@1.0", context(tmp_path))


def test_changed_weights_are_refused_before_they_are_read_and_a_changed_config_when_opened(tmp_path: Path) -> None:
    directory = written(tmp_path)
    weights = directory / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    source = opened(tmp_path)
    for read in (source.load, source.tokenizer, lambda: source.path, lambda: source.fingerprint):
        with pytest.raises(ModelError, match=r"model\.safetensors of .* was changed"):
            read()
    (directory / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"config\.json of .* was changed"):
        opened(tmp_path)


def test_missing_and_unlisted_files_are_refused(tmp_path: Path) -> None:
    directory = written(tmp_path)
    (directory / "extra.py").write_text("")
    with pytest.raises(ModelError, match=r"does not list extra\.py"):
        opened(tmp_path).load()
    (directory / "extra.py").rename(tmp_path / "away")
    (directory / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"lacks the file tokenizer\.json"):
        opened(tmp_path).load()


def test_a_run_pins_the_checksums(tmp_path: Path) -> None:
    directory = written(tmp_path)
    pins = opened(tmp_path).pins
    assert opened(tmp_path, **pins).config["model_type"] == "smollm3"
    (directory / SUMS).write_text((directory / SUMS).read_text().replace("  ", " *"))
    with pytest.raises(ModelError, match="is not the expected one"):
        opened(tmp_path, **pins)
    (directory / SUMS).write_text("not a checksum\n")
    with pytest.raises(ModelError, match="is damaged"):
        opened(tmp_path)
