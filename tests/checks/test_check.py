"""`smollm3 plugins check`: each fault of a plugin is reported with a fix, and correct plugins pass."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.components.lifetimes import HOOKS as HOOK_LIFETIMES
from smollm3_finetune.components.lifetimes import Lifetime

Cli = Callable[..., Any]
GOOD = """
from dataclasses import dataclass

from smollm3_finetune.api import (
    AdapterSpec, FormatterSpec, LoaderSpec, Op, QuantizerSpec, Requires, directory_source, hookimpl, option
)


@dataclass(frozen=True, kw_only=True)
class Options:
    bits: int = option(4, "Bits of a weight.", ge=2, le=8)
    skip: tuple[str, ...] = option((), "Layers to leave out.")


def refine(spec, options, env):
    return spec.without({Op.GRAD_INPUT: "not there"}) if env.device == "mps" else spec


@hookimpl
def smollm3_quantizers():
    return [
        QuantizerSpec(
            name="mine", summary="mine", factory="mine:Mine", options="mine:Options", refine=refine,
            claims=lambda config: (config.get("quantization_config") or {}).get("quant_method") == "mine",
            requires=Requires(distributions=("click>=8",), accelerators=("cpu", "cuda")), aliases=("my-own",),
            suggests={"train.learning_rate": 1e-4},
            api=2,
        )
    ]


class Mine:
    def __init__(self, options):
        self.options = options

    def load(self, source, ctx):
        raise NotImplementedError
"""
LIGHT = "its hooks and options do not import torch or another large library"
HOOKS = "its hooks have known names and @hookimpl"
LOADS = "it can be imported and its descriptors are valid"
TYPES = "its options have supported types"
HELP = "every option has help"
TRIP = "its defaults are valid and survive run.yaml"
FACTORY = "factory mine:Mine creates the component"
METHODS = "its methods accept the protocol's arguments"
CLAIMS = "claims accepts any input and does not claim everything"
REFINE = "refine works on every device and for every purpose"
NAMES = "no other component uses its name or aliases"
PLANNED = "what is called while a run is planned does not import torch or transformers"
CHECK = "check accepts a small model, or refuses it with a hint"
OPEN = "open returns a source, or refuses the reference with a hint"
FORMAT = "it converts a row, or raises ValueError with the reason"

BROKEN = {
    "torch at the top": (("\nfrom", "import torch\nfrom", 1), LIGHT, "torch at", "inside a function"),
    "torch swallowed": (
        ("class Mine:", "try:\n    import numpy\nexcept ImportError:\n    numpy = None\n\n\nclass Mine:", 1),
        LIGHT, "numpy at", "TYPE_CHECKING",
    ),
    "prints": (("class Mine:", "print('hello from mine')\n\n\nclass Mine:", 1),
               "importing its hooks and options prints nothing",
               "hello from mine", "use logging"),
    "misspelled hook": (("smollm3_quantizers", "smollm3_quantisers", 1), HOOKS, "no hook smollm3_quantisers",
                      "did you mean smollm3_quantizers?"),
    "undecorated": (("@hookimpl\n", "", 1), HOOKS, "smollm3_quantizers has no @hookimpl", "write @hookimpl above"),
    "second misspelled": (("class Mine:", "def smollm3_adapter():\n    return []\n\n\nclass Mine:", 1), HOOKS,
                        "smollm3_adapter", "did you mean smollm3_adapters?"),
    "syntax": (("class Mine:", "class Mine", 1), LOADS, "SyntaxError", "mine.py:"),
    "missing module": (("\nfrom", "import no_such_module_at_all\nfrom", 1), LOADS, "no_such_module_at_all",
                       "pip install no_such_module_at_all"),
    "unknown field": (('summary="mine"', 'summary="mine", color=1', 1), LOADS, "color", "its fields: name"),
    "bad alias": (("my-own", "My Own", 1), LOADS, "'My Own'", "aliases=('my-own',)"),
    "newer api": (("api=2,", "api=99,", 1), LOADS, "api 99", "upgrade"),
    "no api": (("            api=2,\n", "", 1), LOADS, "QuantizerSpec 'mine' does not state", "add api="),
    "offers nothing": (("    return [\n        Q", "    return []\n    [\n        Q", 1), LOADS,
                       "its hooks offer nothing", "return a descriptor"),
    "no options": (("mine:Options", "mine:Optoins", 1), "options mine:Optoins is a dataclass", "Optoins", ""),
    "not frozen": (("frozen=True, ", "", 1), "options mine:Options is a frozen dataclass", "it is mutable",
                   "@dataclass(frozen=True"),
    "odd type": (("skip: tuple[str, ...]", "skip: object", 1), TYPES, "skip: object", "Literal"),
    "silent": (('"Layers to leave out."', '""', 1), HELP, "skip", "One line of help"),
    "default out of range": (("option(4,", "option(9,", 1), TRIP, "expected integer", "within its range"),
    "default of another type": (("option(4,", "option('four',", 1), TRIP, "got 'four'", "within its range"),
    "default that is no list": (("option((), ", "option(None, ", 1), TRIP, "list of strings", "within its range"),
    "no factory": (("mine:Mine", "mine:Mein", 1), "factory mine:Mein creates the component", "Mein", ""),
    "factory that fails": (("self.options = options", "options.gone", 1), FACTORY, "gone", "mine.py:"),
    "no load": (("def load(", "def laod(", 1), FACTORY, "has no method 'load'", "did you mean 'laod'"),
    "wrong signature": (("def load(self, source, ctx)", "def load(self, source)", 1), METHODS,
                        "load(source, ctx): too many", "protocol"),
    "bad write": (("    def load(", "    def write(self, out):\n        pass\n\n    def load(", 1), METHODS,
                  "write(source, out, ctx)", "protocol"),
    "no requirement": (("click>=8", "click >> 8", 1), "it can be checked", "click >> 8", ""),
    "unmet": (("click>=8", "click>=999", 1), "its requirements are met (click>=999)", "is installed",
              "pip install 'click>=999'"),
    "odd accelerator": (('"cuda")', '"gpu")', 1), "its accelerators are torch devices", "gpu", "cuda"),
    "unknown suggestion": (("train.learning_rate", "train.learning_rat", 1),
                           "its suggestions are configuration keys (train.learning_rat)", "learning_rat",
                           "smollm3 config show"),
    "impossible suggestion": (("1e-4", "-1", 1), "its suggestions are configuration keys (train.learning_rate)",
                              "greater than 0", "smollm3 config show"),
    "late suggestion": (('"train.learning_rate": 1e-4', '"data.held_out": 0.5', 1), "its suggestions select no rows",
                        "data.held_out would apply too late", "keys of train"),
    "claims raises": (('(config.get("quantization_config") or {})', 'config["quantization_config"]', 1), CLAIMS,
                      "KeyError", ".get()"),
    "claims everything": (('.get("quant_method") == "mine"', ".keys() is not None", 1), CLAIMS, "claims({})", ".get()"),
    "refine raises": (("env.device", "env.gpu", 1), REFINE, "gpu", "return the QuantizerSpec"),
    "refine on one device": (("return spec.without", 'return None if env.device == "cuda" else spec.without', 1),
                             REFINE, "it returns None", "return the QuantizerSpec"),
    "refine without ops": (("{Op.GRAD_INPUT:", '{"fly":', 1), REFINE, "'fly' is not a valid Op", "QuantizerSpec"),
    "taken name": (('name="mine"', 'name="none"', 1), NAMES, "'none' by smollm3-finetune", "another name"),
    "taken alias": (("my-own", "none", 1), NAMES, "'none' by smollm3-finetune", "--quant mine:mine"),
    "alias that is the name": (('"my-own",', '"my-own", "my-own",', 1), "its aliases are distinct", "my-own",
                                "once"),
}  # fmt: skip


def checks(cli: Cli, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    result = cli("plugins", "check", "--json", *arguments)
    assert result.code in (0, 7), result.stderr
    return result.code, [{**c, "plugin": p["plugin"]} for p in json.loads(result.stdout) for c in p["checks"]]


def failed(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {c["check"]: c for c in found if not c["ok"]}


def test_a_good_plugin_passes_every_check(cli: Cli, plugin_file: Callable[[str, str], Path]) -> None:
    code, found = checks(cli, str(plugin_file("mine", GOOD)))
    assert (code, failed(found)) == (0, {})
    names = {c["check"] for c in found}
    assert {LIGHT, HOOKS, LOADS, TYPES, HELP, TRIP, FACTORY, METHODS, CLAIMS, REFINE, NAMES} <= names


@pytest.mark.parametrize("case", BROKEN)
def test_each_fault_is_reported_with_a_fix(case: str, cli: Cli, plugin_file: Callable[[str, str], Path]) -> None:
    (before, after, times), check, says, fix = BROKEN[case]
    assert GOOD.count(before) >= times
    code, found = checks(cli, str(plugin_file("mine", GOOD.replace(before, after, times))))
    assert code == 7
    wrong = failed(found)
    assert check in wrong, wrong
    assert says in wrong[check]["found"]
    assert fix in wrong[check]["fix"]
    assert "\n" not in wrong[check]["found"]


def test_an_older_api_is_a_warning_with_a_date(cli: Cli, plugin_file: Callable[[str, str], Path]) -> None:
    code, found = checks(cli, str(plugin_file("mine", GOOD.replace("api=2,", "api=1,"))))
    (only,) = failed(found).values()
    assert (code, only["serious"], only["fix"]) == (0, False, "write api=2")
    assert only["found"] == "api 1 is deprecated since 2026-11-29, works until 2027-11-29 at least"


def test_a_deprecated_hook_is_a_warning_with_a_date(
    cli: Cli, plugin_file: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    life = Lifetime(since=date(2026, 1, 1), deprecated=date(2026, 2, 1), instead="use smollm3_loaders")
    monkeypatch.setattr("smollm3_finetune.checks.plugin.LIFETIMES", {**HOOK_LIFETIMES, "smollm3_quantizers": life})
    code, found = checks(cli, str(plugin_file("mine", GOOD)))
    (only,) = failed(found).values()
    assert (code, only["serious"], only["fix"]) == (0, False, "use smollm3_loaders")
    assert only["found"] == "smollm3_quantizers is deprecated since 2026-02-01, works until 2027-02-01 at least"


EVERY_KIND = """
from pathlib import Path

from smollm3_finetune.api import *


def check(options, source):
    if source.config["model_type"] != "mine":
        raise IncompatibleError("mine reads models of type 'mine' only", hint="use another quantizer")


@hookimpl
def smollm3_quantizers():
    return [QuantizerSpec(name="mine", summary="q", factory="mine:Mine", api=2, check=check, claims=lambda c: False,
                          refine=lambda spec, options, env: spec)]


@hookimpl
def smollm3_loaders():
    return [LoaderSpec(name="mine", summary="l", factory="mine:Mine", api=2, claims=lambda ref: ref.endswith("/mine"))]


@hookimpl
def smollm3_formatters():
    return [FormatterSpec(name="mine", summary="f", factory="mine:Mine", api=2, claims=lambda row: "ask" in row)]


class Mine:
    columns = ("ask", "answer")

    def __init__(self, options): ...
    def load(self, source, ctx): ...

    def open(self, ref, ctx):
        if not ref.endswith("tiny"):
            raise ModelError(f"there is no model {ref!r}", hint="--model PATH")
        return directory_source(Path(ref), ref=ref)

    def __call__(self, row):
        if "ask" not in row:
            raise ValueError("it has no question")
        return Conversation(messages=[{"role": "user", "content": row["ask"]}])
"""

IMPORTS = {
    "a hook": ("def smollm3_loaders():", "def smollm3_loaders():\n    import torch", "torch at {file}:20"),
    "claims": ("claims=lambda c: False", "claims=lambda c: __import__('torch')",
               "claims of quantizer 'mine' imports torch at {file}:14"),
    "refine": ("env: spec", "env: __import__('transformers') and spec",
               "refine of quantizer 'mine' imports transformers at {file}:15"),
    "check": ("def check(options, source):", "def check(options, source):\n    import torch",
              "check of quantizer 'mine' imports torch at {file}:8"),
    "a formatter": ("row):\n", "row):\n        import torch\n",
                    "the formatter of formatter 'mine' imports torch at {file}:40"),
    "open": ("ctx):\n        if", "ctx):\n        import torch\n        if",
             "open of loader 'mine' imports torch at {file}:35"),
}  # fmt: skip


@pytest.mark.parametrize("case", IMPORTS)
def test_an_import_of_torch_is_found_by_calling_the_function(
    case: str, plugin_file: Callable[[str, str], Path]
) -> None:
    from smollm3_finetune.checks.light import heavy_imports

    before, after, says = IMPORTS[case]
    assert EVERY_KIND.count(before) == 1
    file = plugin_file("mine", EVERY_KIND.replace(before, after))
    light = heavy_imports(str(file))
    called = {f"{function} imports {module} at {line}" for function, module, line in light.called}
    assert called | {f"{module} at {line}" for module, line in light.heavy} == {says.format(file=file)}


CALLS = {
    "check raises": ("source.config[", "source.gone[", CHECK,
                     "check raises AttributeError: 'DirectorySource' object has no attribute 'gone' ({file}:8)"),
    "check refuses without a hint": (', hint="use another quantizer"', "", CHECK,
                                     "check refuses without a hint: mine reads models of type 'mine' only"),
    "check returns a text": ("    if source.config", "    return 'no'\n    if source.config", CHECK,
                             "check(options, source) returned 'no', which is ignored"),
    "open raises": ("raise ModelError(f\"there is no model {ref!r}\", hint=\"--model PATH\")",
                    "raise FileNotFoundError(ref)", OPEN,
                    "open('no-such-directory/model') raises FileNotFoundError: no-such-directory/model ({file}:36)"),
    "open returns nothing": ("return directory_source(Path(ref), ref=ref)", "return None", OPEN,
                             "open(a small model) returned None, not a ModelSource with a mapping as config"),
    "a formatter returns a mapping": ("return Conversation(", "return dict(", FORMAT,
                                      "a row with the columns ask, answer: it returned an object of type dict, not a "
                                      "Conversation"),
    "a formatter fails": ('row["ask"]}', '1 / 0}', FORMAT,
                          "a row with the columns ask, answer raises ZeroDivisionError: division by zero ({file}:42)"),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_each_fault_of_a_function_is_found_by_calling_it(case: str, plugin_file: Callable[[str, str], Path]) -> None:
    from smollm3_finetune.checks.component import component_findings
    from smollm3_finetune.components.discovery import PluginSelection, discover

    before, after, check, says = CALLS[case]
    assert EVERY_KIND.count(before) == 1
    file = plugin_file("mine", EVERY_KIND.replace(before, after))
    registry = discover(PluginSelection.of((str(file),), no_plugins=True))
    findings = [f for c in registry.components if c.origin == str(file) for f in component_findings(c, registry)]
    (wrong,) = [f for f in findings if not f.ok]
    assert (wrong.check, wrong.found) == (check, says.format(file=file))
    assert wrong.fix


def test_a_plugin_of_every_kind_that_follows_the_contract_passes(
    cli: Cli, plugin_file: Callable[[str, str], Path]
) -> None:
    source = EVERY_KIND.replace("ctx):\n        if", "ctx):\n        import torch\n        if")
    code, found = checks(cli, str(plugin_file("mine", source)))
    assert code == 0
    assert {PLANNED, CHECK, OPEN, FORMAT} <= {c["check"] for c in found if c["ok"]}
    (warning,) = failed(found).values()
    assert warning["check"] == "opening a model does not import torch or transformers"


def test_an_option_that_must_be_set_is_not_a_fault(cli: Cli, plugin_file: Callable[[str, str], Path]) -> None:
    required = GOOD.replace('bits: int = option(4, "Bits of a weight.", ge=2, le=8)', "bits: int = required()")
    field = "def required():\n    from dataclasses import field\n    return field(metadata={'help': 'Bits.'})\n\n\n"
    code, found = checks(cli, str(plugin_file("mine", required.replace("@dataclass", f"{field}@dataclass", 1))))
    assert code == 0, failed(found)
    (warning,) = failed(found).values()
    assert warning["found"] == "not checked: quant.bits: a value is required"


def test_all_wrong_hook_names_are_reported_together(cli: Cli, plugin_file: Callable[[str, str], Path]) -> None:
    source = GOOD.replace("@hookimpl\n", "") + "\n\ndef smollm3_loader():\n    return []\n"
    _, found = checks(cli, str(plugin_file("mine", source)))
    assert [c["found"] for c in found if c["check"] == HOOKS] == [
        "there is no hook smollm3_loader", "smollm3_quantizers has no @hookimpl"
    ]  # fmt: skip


def test_a_crash_while_importing_is_contained(run_cli: Cli, fake_distribution: Any) -> None:
    fake_distribution("acme", "1", {"acme_hooks": "import os\nos.environ.get('GO') and os.abort()\n" + GOOD},
                      {"acme": "acme_hooks"})  # fmt: skip
    from smollm3_finetune.checks.light import heavy_imports

    light = heavy_imports("acme_hooks")
    assert light.failed is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GO", "1")
        light = heavy_imports("acme_hooks")
    assert light.failed is not None and "Python ended with" in light.failed


def test_nothing_in_the_working_directory_is_imported_by_checks_or_probes(
    cli: Cli, plugin_file: Callable[[str, str], Path], isolated: Path
) -> None:
    from smollm3_finetune.checks.probe import run_pieces

    for name in ("torch", "dataclasses", "pluggy"):
        (isolated / f"{name}.py").write_text("raise RuntimeError('imported from the working directory')\n")
    code, found = checks(cli, str(plugin_file("mine", GOOD)))
    assert (code, failed(found)) == (0, {})
    assert run_pieces({"import": "import dataclasses, pluggy"})["import"].problem is None


def test_installed_plugins_are_checked_separately(cli: Cli, fake_distribution: Any) -> None:
    """A plugin that imports torch does not affect the check of others; plugins are found by all their names."""
    acme = GOOD.replace("mine:", "acme_hooks:")
    zeta = "import transformers\n" + GOOD.replace("mine:", "zeta_hooks:").replace('"mine"', '"other"')
    zeta = zeta.replace("my-own", "yours")
    fake_distribution("acme-tools", "1.0", {"acme_hooks": acme}, {"acme": "acme_hooks"})
    fake_distribution("zeta-tools", "2.0", {"zeta_hooks": zeta}, {"zeta": "zeta_hooks"})
    found = checks(cli, "acme")[1] + checks(cli, "zeta")[1]
    light = {c["plugin"]: c["ok"] for c in found if c["check"] == LIGHT}
    assert (light["acme"], light["zeta"]) == (True, False)
    for name in ("acme", "acme-tools", "mine", "my-own"):
        code, found = checks(cli, name)
        assert ({c["plugin"] for c in found}, failed(found), code) == ({"acme"}, {}, 0)


def test_a_plugin_is_not_blamed_for_the_imports_of_another(
    cli: Cli, fake_distribution: Any, plugin_file: Callable[[str, str], Path]
) -> None:
    """Not for those of a `-p` file, and not for those of a plugin with the same entry-point name."""
    acme = GOOD.replace("mine:", "acme_hooks:")
    fake_distribution("acme", "1.0", {"acme_hooks": acme}, {"tools": "acme_hooks"})
    heavy = "import transformers\nprint('hello')\n" + GOOD.replace('"mine"', '"other"').replace("my-own", "yours")
    fake_distribution("zeta", "1.0", {"zeta_hooks": heavy.replace("mine:", "zeta_hooks:")}, {"tools": "zeta_hooks"})
    file = plugin_file("heavy", heavy.replace("mine:", "heavy:").replace('"other"', '"third"').replace("yours", "his"))
    _, found = checks(cli, "acme", "-p", str(file))
    assert {c["plugin"] for c in found} == {"tools"}
    assert set(failed(found)) == {"no other distribution has its entry-point name"}
    assert LIGHT in failed(checks(cli, "zeta")[1])
    assert LIGHT in failed(checks(cli, str(file))[1])


def test_two_distributions_with_one_name_are_both_reported(cli: Cli, fake_distribution: Any) -> None:
    for name in ("acme", "zeta"):
        source = GOOD.replace("mine:", f"{name}_hooks:")
        fake_distribution(name, "1.0", {f"{name}_hooks": source}, {"tools": f"{name}_hooks"})
    _, found = checks(cli, "acme")
    wrong = failed(found)
    assert "'mine' by zeta 1.0" in wrong[NAMES]["found"]
    assert "zeta 1.0" in wrong["no other distribution has its entry-point name"]["found"]


def test_a_broken_installed_plugin_is_reported_and_others_pass(cli: Cli, fake_distribution: Any) -> None:
    fake_distribution("acme", "1.0", {"acme_hooks": GOOD.replace("mine:", "acme_hooks:")}, {"acme": "acme_hooks"})
    fake_distribution("bad", "1.0", {"bad_hooks": "raise RuntimeError('no license')\n"}, {"bad": "bad_hooks"})
    result = cli("plugins", "check", "bad")
    assert result.code == 7
    assert "✗ it can be imported and its descriptors are valid: RuntimeError: no license" in result.stdout
    assert result.stdout.rstrip().splitlines()[-1].endswith(" 1 failed")
    result = cli("plugins", "check", "acme")
    assert (result.code, "✓ quantizer 'mine': every option has help" in result.stdout) == (0, True)


EVERYTHING = """
import json
from smollm3_finetune.checks.plugin import check, targets
from smollm3_finetune.components.discovery import CORE_DISTRIBUTION
found = [t for t in (*targets("builtin", ()), *targets(None, ())) if t.distribution.startswith("smollm3-")]
print(json.dumps({t.name: [f.as_dict() for f in check(t)] for t in found}))
"""


def test_the_built_in_components_and_the_plugins_of_this_repository_pass() -> None:
    """Those that are installed; in a process of its own, since implementations are imported."""
    done = subprocess.run([sys.executable, "-c", EVERYTHING], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert failed(found["builtin"]) == {}
    assert len(found["builtin"]) > 50
    for plugin in found:  # one whose package is not installed is right all the same
        wrong = {name for name in failed(found[plugin]) if not name.startswith(("its requirements are met", "factory"))}
        assert not wrong, (plugin, failed(found[plugin]))


def test_an_unknown_name_is_an_error_with_a_suggestion(cli: Cli, fake_distribution: Any) -> None:
    fake_distribution("acme", "1", {"acme_hooks": GOOD.replace("mine:", "acme_hooks:")}, {"acme": "acme_hooks"})
    for name, hint in (("acmee", "did you mean 'acme'?"), ("xyzzy", "smollm3 plugins list")):
        result = cli("plugins", "check", name)
        assert (result.code, hint in result.stderr) == (2, True)
    sys.modules.pop("acme_hooks")
    result = cli("plugins", "check", "acme", "-p", "no:acme")
    assert (result.code, "is disabled" in result.stderr) == (2, True)
    assert "acme_hooks" not in sys.modules
    assert cli("plugins", "check", "gone.py").code == 2
    assert "finetune'?" not in cli("plugins", "check", "smollm3-nothere").stderr  # core is not a plugin
    assert "hint: smollm3 plugins install xyzzy; to see" in cli("plugins", "check", "xyzzy").stderr
    assert cli("plugins", "check", "--no-plugins").code == 2


def test_a_package_that_is_not_installed_is_refused_with_the_command_that_installs_it(cli: Cli, isolated: Path) -> None:
    project = isolated / "smollm3-lengths" / "pyproject.toml"
    project.parent.mkdir()
    (isolated / "other").mkdir()
    assert "hint: -p PATH/TO/plugin.py" in cli("plugins", "check", "./other").stderr
    project.touch()
    for text in ("./smollm3-lengths", "smollm3-lengths/", "smollm3-lengths", str(project.parent)):
        result = cli("plugins", "check", text)
        shown = text if "/" in text else f"./{text}"
        assert (result.code, result.stderr.partition("hint: ")[2]) == (2, f"smollm3 plugins install {shown}\n")
    result = cli("plugins", "list", "-p", "smollm3-lengths")
    assert (result.code, "hint: smollm3 plugins install ./smollm3-lengths\n" in result.stderr) == (2, True)


def test_a_file_that_is_also_installed_is_checked_as_a_file(cli: Cli, fake_distribution: Any) -> None:
    """As with `pip install -e` of one module: discovery has it once, as what is installed."""
    source = GOOD.replace("mine:", "acme_hooks:")
    site = fake_distribution("acme-mine", "1.2", {"acme_hooks": source}, {"acme": "acme_hooks"})
    other = GOOD.replace("mine:", "zeta_hooks:").replace('"mine"', '"zeta"').replace("my-own", "zeta-own")
    fake_distribution("zeta", "1.0", {"zeta_hooks": other}, {"zeta": "zeta_hooks"})  # the last in order
    result = cli("plugins", "check", "--json", str(site / "acme_hooks.py"))
    assert result.code == 0, result.stderr
    (only,) = json.loads(result.stdout)
    assert (only["plugin"], only["distribution"]) == ("acme", "acme-mine")
    assert "factory acme_hooks:Mine creates the component" in {c["check"] for c in only["checks"]}


def test_a_file_is_checked_together_with_other_names(cli: Cli, plugin_file: Callable[[str, str], Path]) -> None:
    mine = str(plugin_file("mine", GOOD))
    other = GOOD.replace("mine:", "other:").replace('"mine"', '"other"').replace("my-own", "other-own")
    result = cli("plugins", "check", "--json", mine, "-p", mine, "-p", str(plugin_file("other", other)))
    (only,) = json.loads(result.stdout)
    assert only["plugin"] == "mine"


def test_marks_are_words_if_the_terminal_cannot_show_symbols(
    run_cli: Cli, plugin_file: Callable[[str, str], Path]
) -> None:
    result = run_cli("plugins", "check", str(plugin_file("mine", GOOD)), PYTHONIOENCODING="ascii")
    assert result.code == 0, result.stderr
    assert "  ok its hooks have known names" in result.stdout


# ------------------------------------------------------------------------------------------------------ deep


def test_the_kit_passes_a_good_adapter_and_names_what_a_bad_one_breaks(run_cli: Cli, isolated: Path) -> None:
    """A new adapter as it is, and one whose `disabled` does nothing, both in one file."""
    assert run_cli("plugins", "new", "adapter", "right", "--file", "--output", "pair.py").code == 0
    right = Path("pair.py").read_text()
    bad = (
        '\n\nclass Lying(RightAdapter):\n    def attach(self, base, ctx, total_steps):\n'
        "        adapted = super().attach(base, ctx, total_steps)\n"
        "        adapted.disabled = __import__('contextlib').nullcontext\n        return adapted\n"
    )  # fmt: skip
    spec = right[right.index("        AdapterSpec(") : right.index("    ]\n")]
    wrong = spec.replace('"right"', '"wrong"').replace("pair:RightAdapter", "pair:Lying")
    assert wrong != spec
    Path("pair.py").write_text(right.replace(spec, f"{spec.rstrip()},\n{wrong}") + bad)
    result = run_cli("plugins", "check", "pair.py", "--deep", "--json")
    assert result.code == 7, result.stderr
    found = {
        c["subject"]: c for c in json.loads(result.stdout)[0]["checks"] if "passes the conformance kit" in c["check"]
    }
    assert found["adapter 'right'"]["ok"]
    assert "passed" in found["adapter 'right'"]["found"]
    assert not found["adapter 'wrong'"]["ok"]
    assert "test_disabled_gives_the_base: " in found["adapter 'wrong'"]["found"]


def test_the_kit_runs_on_formatters_without_rows_of_their_own(cli: Cli, isolated: Path) -> None:
    """A new formatter as it is, and one that does not look at the type of a column."""
    assert cli("plugins", "new", "formatter", "right", "--file", "--output", "both.py").code == 0
    right = Path("both.py").read_text()
    spec = right[right.index("        FormatterSpec(") : right.index("    ]\n")]
    wrong = spec.replace('"right"', '"wrong"').replace("both:RightFormatter", "both:Careless")
    careless = (
        "\n\nclass Careless(RightFormatter):\n    def __call__(self, row):\n"
        "        return Conversation(messages=({'role': 'user', 'content': row['question'].strip()},))\n"
    )
    Path("both.py").write_text(right.replace(spec, f"{spec.rstrip()},\n{wrong}") + careless)
    result = cli("plugins", "check", "both.py", "--deep", "--json")
    found = {
        c["subject"]: c for c in json.loads(result.stdout)[0]["checks"] if "passes the conformance kit" in c["check"]
    }
    assert found["formatter 'right'"]["ok"], found
    assert "test_damaged_rows_are_converted_or_a_value_error: " in found["formatter 'wrong'"]["found"]


@pytest.mark.long
def test_the_kit_runs_on_objectives(cli: Cli, isolated: Path) -> None:
    assert cli("plugins", "new", "objective", "right", "--file", "--output", "both.py").code == 0
    right = Path("both.py").read_text()
    spec = right[right.index("        ObjectiveSpec(") : right.index("    ]\n")]
    wrong = spec.replace('"right"', '"wrong"').replace("both:RightObjective", "both:Halved")
    halved = (
        "\n\nclass Halved(RightObjective):\n    def loss_sum(self, model, batch):\n"
        "        total, count = super().loss_sum(model, batch)\n        return total / 2, count\n"
    )
    Path("both.py").write_text(right.replace(spec, f"{spec.rstrip()},\n{wrong}") + halved)
    result = cli("plugins", "check", "both.py", "--deep", "--json")
    found = {
        c["subject"]: c for c in json.loads(result.stdout)[0]["checks"] if "passes the conformance kit" in c["check"]
    }
    assert found["objective 'right'"]["ok"], found
    assert "test_the_held_out_loss_is_that_of_training: " in found["objective 'wrong'"]["found"]


def test_deep_without_pytest_shows_what_to_install(
    cli: Cli, plugin_file: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "pytest" else real(n, *a))
    result = cli("plugins", "check", str(plugin_file("mine", GOOD)), "--deep")
    assert (result.code, "pip install 'pytest>=8.3'" in result.stderr) == (4, True)


ENDS = {
    "os._exit": ("import os; os._exit(3)", "importing it or calling its hooks: Python ended with exit code 3"),
    "interrupt": ("raise KeyboardInterrupt", "importing it raises KeyboardInterrupt"),
    "hang": ("import time; time.sleep(600)", "importing it or calling its hooks: it did not finish within 3 s"),
}


def test_a_plugin_that_crashes_python_is_named_by_its_distribution(cli: Cli, fake_distribution: Any) -> None:
    fake_distribution("acme-deadly", "1.0", {"deadly_hooks": "import os; os._exit(3)"}, {"deadly": "deadly_hooks"})
    done = cli("plugins", "check", "acme-deadly", "--json")
    assert done.code == 7
    (only,) = json.loads(done.stdout)
    assert (only["plugin"], only["distribution"], only["ok"]) == ("deadly", "acme-deadly", False)
    hooks = {"deadly_hooks": "import os; os._exit(3)", "good_hooks": GOOD}
    fake_distribution("acme-two", "1.0", hooks, {"end": "deadly_hooks", "fine": "good_hooks"})
    done = cli("plugins", "check", "acme-two", "--json")
    assert done.code == 7
    assert [one["plugin"] for one in json.loads(done.stdout)] == ["end", "fine"]
    done = cli("plugins", "check", "its-component")
    assert done.code == 2
    assert "skipped: deadly (importing it or calling its hooks: Python ended with exit code 3)" in done.stderr
    assert "no installed plugin, distribution or component is named 'its-component'" in done.stderr


def test_a_plugin_that_hangs_is_reported_after_a_limit(
    cli: Cli, fake_distribution: Any, isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smollm3_finetune.checks.plugin.SECONDS", 3.0)
    fake_distribution("deadly", "1.0", {"deadly_hooks": ENDS["hang"][0]}, {"deadly": "deadly_hooks"})
    fake_distribution("good", "1.0", {"good_hooks": GOOD}, {"good": "good_hooks"})
    done = cli("plugins", "check")
    assert done.code == 7
    assert f"it can be imported: {ENDS['hang'][1]}" in done.stdout
    assert "good (good 1.0)" in done.stdout


@pytest.mark.parametrize("case", ["os._exit", "interrupt", pytest.param("hang", marks=pytest.mark.long)])
def test_a_plugin_that_crashes_or_hangs_is_reported_and_others_are_checked(
    case: str, cli: Cli, fake_distribution: Any, isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smollm3_finetune.checks.plugin.SECONDS", 3.0)
    text, found = ENDS[case]
    fake_distribution("deadly", "1.0", {"deadly_hooks": text}, {"deadly": "deadly_hooks"})
    fake_distribution("good", "1.0", {"good_hooks": GOOD}, {"good": "good_hooks"})
    done = cli("plugins", "check")
    assert done.code == 7
    assert f"it can be imported: {found}" in done.stdout
    assert "good (good 1.0)" in done.stdout
    done = cli("plugins", "check", "deadly", "--json")
    assert done.code == 7
    (only,) = json.loads(done.stdout)
    assert only["plugin"] == "deadly"
    assert not only["ok"]
    done = cli("plugins", "check", "good", "--json")  # nobody asked for the other one
    (only,) = json.loads(done.stdout)
    assert only["plugin"] == "good"
    assert "deadly" not in done.stdout
    assert f"skipped: deadly ({found})" in done.stderr
    Path("deadly_file.py").write_text(text)
    done = cli("plugins", "check", "deadly_file.py")
    assert done.code == 7
    assert found in done.stdout


@pytest.mark.parametrize("command", [("plugins", "list", "--json"), ("compat", "--json")])
def test_output_of_a_plugin_at_import_does_not_enter_the_json(
    command: tuple[str, ...], cli: Cli, fake_distribution: Any
) -> None:
    fake_distribution("chatty", "1.0", {"chatty_hooks": "print('hello from chatty')"}, {"chatty": "chatty_hooks"})
    done = cli(*command)
    json.loads(done.stdout)
    assert "hello from chatty" in done.stderr
