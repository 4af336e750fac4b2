"""The fixtures of the kit work and are loaded only on request; importing the kit imports neither pytest nor torch.

The fixtures run in a separate pytest process, because the fixtures of `conftest.py` would hide them here.
`test_kit_own.py` uses the fixture that needs torch.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

USES = """
import importlib.metadata
import json
import sys

import pytest

from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import QUANTIZER

pytest_plugins = ["smollm3_finetune.testing.fixtures"]

HOOKS = '''
from smollm3_finetune.api import QuantizerSpec, hookimpl

@hookimpl
def smollm3_quantizers():
    return [QuantizerSpec(name="acme-4bit", summary="four bits", factory="acme.inner.heavy:Quantizer", api=2)]
'''


def test_an_empty_registry_offers_nothing_and_discovery_is_off(empty_registry, fake_distribution):
    fake_distribution("acme", "1.5", {"acme": HOOKS}, {"acme": "acme"})
    assert empty_registry.of(QUANTIZER) == []
    assert {p.name: p.status for p in discover(PluginSelection.of(())).plugins}.get("acme") is None


def test_a_fake_distribution_is_discovered(fake_distribution):
    modules = {"acme": HOOKS, "acme.inner": "", "acme.inner.heavy": "class Quantizer: pass"}
    site = fake_distribution("acme", "1.5", modules, {"acme": "acme"})
    assert (site / "acme" / "inner" / "heavy.py").exists()
    assert importlib.metadata.version("acme") == "1.5"
    component = discover(PluginSelection.of(())).find(QUANTIZER, "acme-4bit")
    assert (component.distribution, component.version) == ("acme", "1.5")
    assert component._import("factory").__name__ == "Quantizer"


def test_modules_of_a_fake_distribution_are_removed():
    assert "acme" not in sys.modules
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("acme")


def test_cli_and_run_cli_see_a_fake_distribution(cli, run_cli, fake_distribution):
    fake_distribution("acme", "1.5", {"acme": HOOKS}, {"acme": "acme"})
    for run in (cli, run_cli):
        result = run("plugins", "list")
        assert result.code == 0, result.stderr
        assert "acme-4bit" in result.stdout
    assert cli("plugins", "info", "nothing-of-the-kind").code == 2


def test_tiny_model_is_the_embedded_model(tiny_model):
    assert json.loads((tiny_model / "config.json").read_text())["num_hidden_layers"] == 8
"""
WITHOUT = """
import pytest

NAMES = ["empty_registry", "fake_distribution", "small_model", "tiny_model", "cli", "run_cli", "own_cache"]


@pytest.mark.parametrize("name", NAMES)
def test_fixtures_are_not_loaded_by_default(request, name):
    with pytest.raises(pytest.FixtureLookupError):
        request.getfixturevalue(name)
"""


def run_pytest(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    file = folder / "test_uses.py"
    file.write_text(source, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", str(file), "-c", str(folder / "pytest.ini")]
    return subprocess.run([*command, "-p", "no:cacheprovider"], capture_output=True, text=True, check=False)


def test_the_fixtures_work(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, USES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


def test_the_fixtures_are_loaded_only_on_request(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, WITHOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout


def test_importing_the_kit_imports_neither_pytest_nor_torch() -> None:
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "import smollm3_finetune.testing as t\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert set(t.__all__) <= set(dir(t)) | set(t.HEAVY)\n"
        "assert t.QuantizerConformance and t.AdapterConformance and t.LoaderConformance and t.stub_base\n"
        "try:\n    t.nothing\nexcept AttributeError as e:\n    assert 'nothing' in str(e)\n"
        "else:\n    raise SystemExit('no AttributeError')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
