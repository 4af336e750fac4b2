"""The documentation agrees with the code.

Everything that can be generated from the code is a region of a page (see regions.py). Each region is compared with the
code. `SMOLLM3_UPDATE_DOCS=1 pytest tests/docs/test_docs.py` updates them.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from command_lines import command_lines, parse
from pages import DOCS, EXAMPLES, FENCE, OURS, PAGES, REGION, name_of
from regions import KINDS_OF_REGION, PUBLIC_MODULES, ROOT, own_fields, text_of

from smollm3_finetune import api
from smollm3_finetune.api import hookspecs
from smollm3_finetune.components.kinds import KINDS
from smollm3_finetune.config import schema

UPDATE = os.environ.get("SMOLLM3_UPDATE_DOCS", "") not in ("", "0")
COLUMNS = "100"


# ------------------------------------------------------------------------------------------ running commands


@pytest.fixture
def examples(isolated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plugin files in `examples/`, importable as if they had not been imported before."""
    shutil.copytree(EXAMPLES, isolated / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    for file in EXAMPLES.glob("*.py"):
        monkeypatch.delitem(sys.modules, file.stem, raising=False)
    monkeypatch.setenv("COLUMNS", COLUMNS)
    return isolated / "examples"


# ------------------------------------------------------------------------------------------- regions of pages


def regions() -> Iterator[Any]:
    for page in OURS:
        for found in REGION.finditer(text_of(page)):
            kind, argument = found["kind"], found["argument"]
            marks = [pytest.mark.plugins] if kind == "run-plugins" else []
            yield pytest.param(page, kind, argument, marks=marks, id=f"{name_of(page)}: {kind}: {argument}")


@pytest.mark.parametrize(("page", "kind", "argument"), list(regions()))
def test_regions_of_pages_agree_with_the_code(page: Path, kind: str, argument: str, examples: Path) -> None:
    right = KINDS_OF_REGION[kind](argument)
    opening = f"<!-- {kind}: {argument} -->\n"
    if UPDATE:
        before, _, rest = text_of(page).partition(opening)
        _, _, after = rest.partition("<!-- end -->")
        page.write_text(f"{before}{opening}{right}<!-- end -->{after}", encoding="utf-8")
    found = next(r for r in REGION.finditer(text_of(page)) if (r["kind"], r["argument"]) == (kind, argument))
    assert found["body"] == right


def has_region(page: str, kind: str, argument: str) -> bool:
    found = REGION.finditer(text_of(DOCS / page))
    return any((r["kind"], r["argument"]) == (kind, argument) for r in found)


# ------------------------------------------------------------------------------------------ nothing is missing


def test_every_hook_has_its_signature_and_its_descriptor_in_the_docs() -> None:
    hooks = [name for name, value in vars(hookspecs).items() if name.startswith("smollm3_") and callable(value)]
    assert sorted(hooks) == sorted(k.hook for k in KINDS)
    for kind in KINDS:
        assert has_region("hooks.md", "hook", kind.hook)
        if own_fields(kind.spec.__name__):
            assert has_region("hooks.md", "fields", kind.spec.__name__)
    assert has_region("hooks.md", "fields", "ComponentSpec")


def test_every_public_name_is_on_the_reference_page() -> None:
    text = text_of(DOCS / "api.md")
    assert [module for module in PUBLIC_MODULES if not has_region("api.md", "names", module)] == []
    assert [name for name in api.__all__ if f"### {name}\n" not in text] == []


def test_every_configuration_key_is_in_the_docs() -> None:
    text = text_of(DOCS / "configuration.md")
    for section in ("top", *schema.PLAIN_SECTIONS):
        assert has_region("configuration.md", "options", section)
    for section in schema.COMPONENT_SECTIONS:
        assert f"`{section}`" in text


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[str]:
    yield " ".join(path) or "smollm3"
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from commands(inner, (*path, name))


def test_every_command_has_its_help_in_the_docs() -> None:
    from smollm3_finetune.cli import cli

    for command in commands(cli):
        assert has_region("cli.md", "help", command), command


def test_every_exit_code_is_in_the_docs() -> None:
    assert has_region("errors.md", "exit-codes", "-")


def test_every_environment_variable_is_in_the_docs() -> None:
    code = "".join(text_of(f) for f in (ROOT / "smollm3_finetune").rglob("*.py"))
    docs = "".join(text_of(p) for p in OURS)
    for variable in sorted(set(re.findall(r"\bSMOLLM3_[A-Z_]+\b", code))):
        assert variable in docs, variable


# -------------------------------------------------------------------------------------------------- the README


def test_the_readme_begins_with_the_two_commands() -> None:
    """`.ci/run` extracts and runs exactly these blocks."""
    blocks = [body.strip() for language, body in FENCE.findall(text_of(ROOT / "README.md")) if language == "bash"]
    assert blocks == [
        "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt . ./plugins/*/ && .venv/bin/smollm3 train",
        ".venv/bin/pip install -c constraints.txt -e '.[test]' && .venv/bin/nox",
    ]


# ------------------------------------------------------------------------------------------------ command lines


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_line_of_a_page_parses(page: Path) -> None:
    for line in command_lines([page]):
        try:
            parse(line.text)
        except (click.ClickException, ValueError) as e:
            pytest.fail(f"{name_of(page)}: {line.text}: {e}")


def test_command_lines_are_found_and_an_invalid_one_does_not_parse() -> None:
    assert len(list(command_lines())) > 40
    with pytest.raises(click.NoSuchOption):
        parse("smollm3 train --quantt x")
    with pytest.raises(click.UsageError):
        parse("smollm3 trian")


# --------------------------------------------------------------------------------------------------------- links


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as on GitHub, and those written as `<a id="…"></a>`."""
    text = FENCE.sub("", text_of(page))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    named = re.findall(r'<a id="([^"]+)"></a>', text)
    return {*named, *(re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings)}


@pytest.mark.parametrize("page", OURS, ids=name_of)
def test_links_between_pages_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name_of(page)}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{name_of(page)}: {target}"


def test_every_page_is_linked_from_the_index() -> None:
    index = text_of(DOCS / "index.md")
    for page in DOCS.glob("*.md"):
        assert page.name == "index.md" or f"]({page.name}" in index, page.name
    decisions = text_of(DOCS / "design-notes.md")
    for page in (DOCS / "decisions").glob("*.md"):
        assert f"](decisions/{page.name}" in decisions, page.name


# ------------------------------------------------------------------------------------------------------- errors


def messages() -> list[str]:
    """The first column of the tables of messages in errors.md; `…` stands for variable parts."""
    prose = REGION.sub("", text_of(DOCS / "errors.md"))
    return re.findall(r"^\| `([^`]+)` \| [^|`]", prose, re.MULTILINE)


@pytest.mark.parametrize("message", messages())
def test_every_documented_message_exists(message: str) -> None:
    """The fixed parts of a message occur in the code of core or a plugin, or in a test that expects them."""
    files = [*(ROOT / "smollm3_finetune").rglob("*.py"), *(ROOT / "plugins").glob("*/smollm3_*/*.py"),
             *(f for f in (ROOT / "tests").rglob("*.py") if f != Path(__file__))]  # fmt: skip
    sources = [re.sub(r'"\s*\n\s*f?"', "", text_of(f)) for f in files]  # joins strings over several lines
    parts = [p.strip() for p in message.split("…") if len(p.strip()) > 3]
    assert parts
    assert any(all(part in source for part in parts) for source in sources), message


# ----------------------------------------------------------------------------------------------------- examples


def train_two_steps(cli: Any, *arguments: str) -> Path:
    """A run of two steps; returns its directory."""
    result = cli(
        "train", "--device", "cpu", "--data", "examples/rows.jsonl", "--max-steps", "2", "--batch-size", "2",
        "--set", "train.sample_tokens=4", "--output", "run", *arguments,
    )  # fmt: skip
    assert result.code == 0, result.stderr
    return Path("run")


def test_the_example_adapter_trains_through_the_command_line(cli: Any, examples: Path) -> None:
    run = train_two_steps(cli, "-p", "examples/scale_adapter.py", "--adapter", "scale")
    assert (run / "adapter" / "adapter.safetensors").exists()
    answer = cli("generate", "run", "-p", "examples/scale_adapter.py", "--prompt", "Hello!", "--max-new-tokens", "2")
    assert answer.code == 0, answer.stderr


def test_the_example_adapter_and_quantizer_train_as_on_the_dense_copy(examples: Path) -> None:
    """In float64, so that the only error is rounding of 1e-16 per product."""
    from smollm3_finetune.testing import check_composition, plan

    files = (str(examples / "int8_rows.py"), str(examples / "scale_adapter.py"))
    result = check_composition(plan("tiny", quant="int8-rows", adapter="scale", dtype="float64", plugins=files))
    assert result.identity == 0
    assert result.moved > 1e-3
    assert max(result.gradients.values()) <= 1e-9
    assert max(result.logits.values()) <= 1e-9
    assert set(result.weights.values()) == {0.0}
    assert result.restored <= 1e-9
    assert result.base_trained == []


def test_the_example_rows_are_read(run_cli: Any, examples: Path) -> None:
    rows = ("--data", "examples/rows.jsonl", "--set", "data.held_out=0")
    result = run_cli("config", "validate", "--adapter", "full", "--device", "cpu", *rows)
    assert result.code == 0, result.stderr
    assert "8 training rows" in result.stdout
    shown = [line for line in text_of(DOCS / "quickstart.md").splitlines() if line.startswith('{"messages"')]
    assert shown and set(shown) <= set(text_of(EXAMPLES / "rows.jsonl").splitlines())


@pytest.mark.plugins
def test_the_example_configuration_is_valid(run_cli: Any, examples: Path) -> None:
    result = run_cli("config", "validate", "--config", "examples/run.yaml", "--device", "cpu")
    assert result.code == 0, result.stderr


@pytest.mark.parametrize("file", ["tests/out_of_tree/vault_loader.py", "tests/out_of_tree/scale_adapter.py",
                                  "tests/out_of_tree/one_way_quantizer.py"])  # fmt: skip
def test_files_shown_on_how_to_pages_are_run_by_other_tests(file: str) -> None:
    stem = Path(file).stem
    assert any(stem in text_of(f) for f in (ROOT / "tests").rglob("*.py") if f != Path(__file__))


@pytest.mark.plugins
def test_the_number_of_peft_methods_is_correct(cli: Any) -> None:
    import json

    records = json.loads(cli("plugins", "list", "--json").stdout)
    components = next(r["components"] for r in records if r["distribution"] == "smollm3-peft")
    adapters = [c for c in components if c.startswith("adapter ")]
    for page in ("README.md", "CHANGELOG.md", "plugins/README.md"):
        assert f"and {len(adapters) - 3} other" in text_of(ROOT / page), page
