"""The kit's fixtures do what they say, for those who ask for them; importing the kit takes neither pytest nor torch.

The fixtures are used in a pytest run in a process of its own: here they would be hidden by those of `conftest.py`.
`test_kit_own.py` uses the one that needs torch.
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
    return [QuantizerSpec(name="acme-4bit", summary="four bits", factory="acme.inner.heavy:Quantizer", api=1)]
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
    offer = discover(PluginSelection.of(())).find(QUANTIZER, "acme-4bit")
    assert (offer.distribution, offer.version) == ("acme", "1.5")
    assert offer._import("factory").__name__ == "Quantizer"


def test_its_modules_are_forgotten():
    assert "acme" not in sys.modules
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("acme")


def test_the_command_line_sees_it_in_this_process_and_in_another(cli, run_cli, fake_distribution):
    fake_distribution("acme", "1.5", {"acme": HOOKS}, {"acme": "acme"})
    for run in (cli, run_cli):
        result = run("plugins", "list")
        assert result.code == 0, result.stderr
        assert "acme-4bit" in result.stdout
    assert cli("plugins", "info", "nothing-of-the-kind").code == 2


def test_the_embedded_model_is_there(tiny_model):
    assert json.loads((tiny_model / "config.json").read_text())["num_hidden_layers"] == 8
"""
WITHOUT = """
import pytest

NAMES = ["empty_registry", "fake_distribution", "small_model", "tiny_model", "cli", "run_cli", "own_cache"]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_not_there_unasked(request, name):
    with pytest.raises(pytest.FixtureLookupError):
        request.getfixturevalue(name)
"""


def run_pytest(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    file = folder / "test_uses.py"
    file.write_text(source, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", str(file), "-c", str(folder / "pytest.ini")]
    return subprocess.run([*command, "-p", "no:cacheprovider"], capture_output=True, text=True, check=False)


def test_the_fixtures_do_what_they_say(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, USES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


def test_the_fixtures_are_not_loaded_unasked(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, WITHOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout


def test_importing_the_kit_takes_neither_pytest_nor_torch() -> None:
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
