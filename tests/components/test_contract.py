"""Every fault of a plugin's hooks and descriptors is one sentence, with a hint for its author."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from smollm3_finetune.api import API_VERSION
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.errors import PluginError

HEAD = "from smollm3_finetune.api import *\n"
RETURN = "return [QuantizerSpec(…)]"
PIPE = "import pluggy\n@pluggy.HookimplMarker('smollm3_finetune')"


def hook(body: str, kind: str = "quantizers", before: str = "@hookimpl\n") -> str:
    return f"{HEAD}{before}def smollm3_{kind}():\n    {body}\n"


def quantizer(*fields: str, **changed: str) -> str:
    """A hook with one quantizer, some of whose fields are `changed`."""
    given = {"name": "'q'", "summary": "'s'", "factory": "'mine:Q'", "api": "1", **changed}
    return "QuantizerSpec({})".format(", ".join([*fields, *(f"{k}={v}" for k, v in given.items() if v)]))


def offers(*fields: str, **changed: str) -> str:
    return hook(f"return [{quantizer(*fields, **changed)}]")


FAULTS = {
    "a package that is not installed": (
        "import no_such_module_at_all\n", "ModuleNotFoundError: No module named 'no_such_module_at_all'",
        "pip install no_such_module_at_all, or import it inside the function that uses it"),
    "exits": ("raise SystemExit(3)\n", "SystemExit: 3", "it was raised at mine.py:1; to see its traceback: --debug"),
    "raises": (hook("raise RuntimeError('no license\\nand more')"), "RuntimeError: no license and more",
               "it was raised at mine.py:4; to see its traceback: --debug"),
    "raises in a library": (hook("return __import__('json').loads('{')"),
                            "JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 "
                            "(char 1)", "it was raised at mine.py:4; to see its traceback: --debug"),
    "a misspelled hook": (hook("return []", "quantizer"), "there is no hook 'smollm3_quantizer'",
                          "did you mean 'smollm3_quantizers'?"),
    "a misspelled hook without a mark": (hook("return []", "quantizer", ""), "there is no hook 'smollm3_quantizer'",
                                         "did you mean 'smollm3_quantizers', with @hookimpl?"),
    "an unknown hook": (hook("return []", "xyz"), "there is no hook 'smollm3_xyz'",
                        "the hooks are: smollm3_loaders, smollm3_quantizers, smollm3_adapters, smollm3_formatters, "
                        "smollm3_objectives, smollm3_evaluators, smollm3_exporters, smollm3_launchers, "
                        "smollm3_optimizers, smollm3_trackers, smollm3_commands"),
    "no mark": (hook("return []", before=""), "the hook 'smollm3_quantizers' is not decorated with @hookimpl",
                "write @hookimpl above smollm3_quantizers"),
    "no hook": ("x = 1\n", "it has no hook", "define a function such as smollm3_adapters, with @hookimpl"),
    "arguments": (hook("return []").replace("()", "(model, config)"),
                  "the hook 'smollm3_quantizers' takes no arguments, but is defined with 'model', 'config'",
                  "def smollm3_quantizers():"),
    "asynchronous": (hook("return []", before="@hookimpl\nasync "), "the hook 'smollm3_quantizers' is asynchronous",
                     "def smollm3_quantizers(): without async"),
    "a wrapper": (hook("return (yield)", before=f"{PIPE}(wrapper=True)\n"),
                  "the hook 'smollm3_quantizers' cannot be a wrapper: hooks return descriptors",
                  "write @hookimpl without arguments"),
    "an old wrapper": (hook("return []", before=f"{PIPE}(hookwrapper=True)\n"),
                       "the hook 'smollm3_quantizers' cannot be a wrapper: hooks return descriptors",
                       "write @hookimpl without arguments"),
    "a single descriptor": (hook(f"return {quantizer()}"), "smollm3_quantizers must return a list of descriptors, "
                            "but returned a single QuantizerSpec ('q')",
                            f"return a list of descriptors: {RETURN}"),
    "a list is yielded": (hook(f"yield [{quantizer()}]"),
                          "smollm3_quantizers must yield QuantizerSpec objects, but yielded an object of type list",
                          "use yield from, or return the list"),
    "nothing": (hook("pass"), "smollm3_quantizers must return an iterable of descriptors, but returned None", RETURN),
    "a mapping": (hook(f"return {{'q': {quantizer()}}}"),
                  "smollm3_quantizers must return an iterable of descriptors, but returned an object of type dict",
                  RETURN),
    "a class": (hook("return [QuantizerSpec]"),
                "smollm3_quantizers must return QuantizerSpec objects, but returned the class QuantizerSpec", RETURN),
    "another kind": (hook(f"return [{quantizer()}]", "adapters"),
                     "smollm3_adapters must return AdapterSpec objects, but returned QuantizerSpec ('q')",
                     "return it from smollm3_quantizers"),
    "an unknown field": (offers(clams="len"), "QuantizerSpec has no field 'clams'", "did you mean 'claims'?"),
    "missing fields": (offers(summary="", factory=""), "QuantizerSpec needs the fields 'summary' and 'factory'",
                       "summary='…', factory='…'"),
    "fields without names": (offers("'q'", name=""),
                             "the fields of a descriptor are keyword arguments, but one has no name",
                             "name='…', summary='…', factory='package.module:Class'"),
    "no api": (offers(api=""), "QuantizerSpec 'q' does not state the plugin API that it was written for",
               f"add api={API_VERSION}"),
    "api is text": (offers(api="'1'"), f"'q': api must be {API_VERSION}, but is '1'", f"write api={API_VERSION}"),
    "a newer api": (offers(api="99"),
                    f"'q' was written for api 99, but this smollm3-finetune has api {API_VERSION}",
                    "upgrade smollm3-finetune"),
    "an unknown operation": (offers(provides="{'read-wieght'}"), "'read-wieght' is not an operation",
                             "did you mean 'read-weight'?"),
    "one operation": (offers(provides="'forward'"),
                      "QuantizerSpec 'q': provides must be a set of operations, got 'forward'",
                      "provides={Op.FORWARD, Op.GRAD_INPUT}"),
    "a list of reasons": (offers(absent="['forward']"),
                          "QuantizerSpec 'q': absent must be a mapping, got ['forward']",
                          'absent={Op.GRAD_INPUT: "the reason"}'),
    "a wrong name": (offers(name="'My_Quant'"),
                     "the name 'My_Quant' must be lower-case words joined by single hyphens", "name='my-quant'"),
    "a wrong alias": (offers(aliases="('Q 4',)"), "the name 'Q 4' must be lower-case words joined by single hyphens",
                      "aliases=('q-4',)"),
    "aliases are text": (offers(aliases="'bnb'"), "'q': aliases must be a tuple of strings, but is 'bnb'",
                         "aliases=('bnb',)"),
    "requirements without Requires": (offers(requires="('torch',)"),
                                      "'q': requires must be a Requires, but is an object of type tuple",
                                      "requires=Requires(distributions=('torch>=2.6',))"),
    "a factory without a colon": (offers(factory="'a.b.C'"),
                                  "'q': factory must be 'package.module:Class', but is 'a.b.C'", "factory='a.b:C'"),
    "a class as options": (offers(options="NoOptions"),
                           "'q': options must be 'package.module:Class', but is the class NoOptions",
                           "options='smollm3_finetune.api:NoOptions'"),
    "no summary": (offers(summary="''"), "'q' has no summary", 'summary="what it does, in one line"'),
    "claims is called": (offers(claims="len('')"), "'q': claims must be a function, but is 0",
                         "claims=my_claims, without calling it"),
    "a flag is text": (offers(needs_calibration="'no'"), "'q': needs_calibration must be True or False, but is 'no'",
                       "needs_calibration=True"),
    "suggestions in a list": (offers(suggests="['a']"), "'q': suggests must be a mapping, but is an object of type "
                              "list", 'suggests={"train.learning_rate": 1e-4}'),
    "one name twice": (hook(f"return [{quantizer()}] * 2"), "it offers the quantizer 'q' twice",
                       "give each one a name of its own"),
    "a misspelled name of the API": ("from smollm3_finetune.api import QuantizerSpecc\n",
                                     "smollm3_finetune.api has no 'QuantizerSpecc'", "did you mean 'QuantizerSpec'?"),
    "a name of core": ("from smollm3_finetune.components.registry import Thing\n",
                       "smollm3_finetune.components.registry has no 'Thing'",
                       "plugins import smollm3_finetune.api only"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence_and_a_hint(fault: str, isolated: Path) -> None:
    source, sentence, hint = FAULTS[fault]
    Path("mine.py").write_text(source)
    with pytest.raises(PluginError) as caught:
        discover(PluginSelection.of(("mine.py",), no_plugins=True))
    said = caught.value.message.partition(") is broken: ")
    assert said[0].startswith("plugin 'mine' (mine 0+")
    assert (said[2], caught.value.hint) == (sentence, hint)


def test_a_long_text_of_a_plugin_is_cut(plugin_file: Callable[[str, str], Path]) -> None:
    with pytest.raises(PluginError) as caught:
        discover(PluginSelection.of((str(plugin_file("mine", "raise RuntimeError('word ' * 999)\n")),), True))
    assert len(caught.value.message) < 300
    assert caught.value.message.endswith("…")
    assert "\n" not in caught.value.message


def test_helper_functions_with_other_names_are_not_taken_for_hooks(plugin_file: Callable[[str, str], Path]) -> None:
    source = hook(f"return [{quantizer()}]") + "\n\ndef smollm3_version():\n    return 1\n"
    registry = discover(PluginSelection.of((str(plugin_file("mine", source)),), no_plugins=True))
    assert registry.plugins[-1].status == "active"
