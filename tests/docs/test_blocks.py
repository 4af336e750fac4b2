"""Every block of commands, Python, YAML or TOML on a page is run or checked; a block that is not has a reason here.

tutorial pages            test_tutorials.py runs them
regions of pages          test_docs.py compares them with the code
console and bash          each command is parsed, and its components, options and keys are looked up
python                    compiled; what it imports exists
yaml                      validated as a run, a pipeline or a sweep, with its components
toml                      read; its entry points are those of a plugin
"""

from __future__ import annotations

import ast
import importlib.util
import re
import textwrap
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
from command_lines import NAMED, check, command_lines, forget_examples, registry_with
from pages import EVERY, FENCE, Block, blocks, name_of
from regions import ROOT, text_of
from shell_lines import check_line

from smollm3_finetune.errors import SmolLM3Error

pytestmark = pytest.mark.plugins

RUN = ("docs/tutorial-adapter.md", "docs/tutorial-quantizer.md")
"""Pages whose blocks test_tutorials.py runs."""
ABSENT = {
    "mine": "a component of the reader", "acme": "a plugin that `plugins new` creates",
    "acme-quant": "a package of somebody else", "rtn4": "of a tutorial",
    "bottleneck": "of a tutorial", "nonne": "a misspelled name, on purpose",
}  # fmt: skip
"""Names of components and plugins that no package here has, each with the reason."""
NOT_CHECKED = {
    ("plugins/smollm3-slurm/README.md", "#!/bin/bash"): "a template of a batch script; its plugin's tests fill one",
    ("plugins/smollm3-lm-eval/README.md", "task: colors"): "a task of lm-evaluation-harness, not a configuration",
}
"""Blocks that nothing checks, each with the reason."""
NOT_INSTALLED = ("trl", "ray", "mlx", "mlx_lm", "onnxruntime", "llama_cpp")
"""Packages that examples import, and that the tests do not install."""
CHECKED = ("console", "bash", "python", "yaml", "toml")


@pytest.fixture(scope="module", autouse=True)
def examples_forgotten() -> Iterator[None]:
    forget_examples()
    yield
    forget_examples()


Failed = (SmolLM3Error, click.ClickException, AssertionError, ValueError, SyntaxError)


def checked_blocks(page: Path) -> Iterator[Block]:
    for block in blocks(page):
        if block.language in CHECKED and (name_of(page), block.first) not in NOT_CHECKED:
            yield block


# --------------------------------------------------------------------------------------------------- shell lines


def shell_lines(block: Block) -> Iterator[tuple[str, bool]]:
    """The command lines of a block, each with whether its output shows an error."""
    line, shown = "", ""
    joined = block.body.replace("\\\n", " ")
    if block.language == "bash":
        yield from ((one, False) for one in joined.splitlines() if one and not one.startswith("#"))
        return
    for one in [*joined.splitlines(), "$ "]:
        if one.startswith("$ "):
            if line:
                yield line, re.search(r"^error: |^Error: |^Usage: ", shown, re.MULTILINE) is not None
            line, shown = one[2:], ""
        else:
            shown += f"{one}\n"


def check_shell(block: Block) -> None:
    for line, fails in shell_lines(block):
        if fails:
            continue  # test_hints.py types these and their hints
        line = re.sub(r"\s#\s.*$", "", line)
        try:
            check_line(line, text_of(block.page), ABSENT)
        except Failed as e:
            raise AssertionError(f"{block.where}: $ {line}\n{message(e)}") from e


def message(error: BaseException) -> str:
    return error.format_message() if isinstance(error, click.ClickException) else str(error)


# --------------------------------------------------------------------------------------------------------- python


def parsed_python(body: str) -> ast.Module:
    """A block as Python. It may be part of a function, or signatures that end without a body."""
    text = textwrap.dedent(body)
    for attempt in (text, f"def page():\n{textwrap.indent(text, '    ')}", _with_bodies(text)):
        try:
            return ast.parse(attempt)
        except SyntaxError as e:
            error = e
    raise error


def _with_bodies(text: str) -> str:
    """Signatures, alone on their lines, with a body."""
    return re.sub(r"^( *def .*[^:\s])\s*$", r"\1: ...", text, flags=re.MULTILINE)


def check_python(block: Block) -> None:
    try:
        tree = parsed_python(block.body)
    except SyntaxError as e:
        raise AssertionError(f"{block.where}: {e.msg} in line {e.lineno} of the block: {e.text}") from e
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                assert importable(alias.name, block), f"{block.where}: import {alias.name}"
        elif isinstance(node, ast.ImportFrom) and importable(str(node.module), block):
            check_names(node, block)
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{block.where}: from {node.module} import …: there is no such module")


def importable(module: str, block: Block) -> bool:
    """Whether a module exists here, or is a package that the tests do not install, or a file that the page writes."""
    top = module.partition(".")[0]
    if top in NOT_INSTALLED or f"{top}.py" in text_of(block.page):
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def check_names(node: ast.ImportFrom, block: Block) -> None:
    """Each imported name exists; modules of other libraries are not imported for that."""
    if not str(node.module).startswith("smollm3_"):
        return
    names = defined(str(node.module))
    for alias in node.names:
        exists = alias.name in names or importable(f"{node.module}.{alias.name}", block)
        assert exists, f"{block.where}: {node.module} has no {alias.name}"


@cache
def defined(module: str) -> frozenset[str]:
    """The names that the source of a module defines or imports at its top level, also for type checkers only."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    body = list(ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body)
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.If):  # TYPE_CHECKING
            body += node.body
        elif isinstance(node, ast.ImportFrom | ast.Import):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return frozenset(found)


# ----------------------------------------------------------------------------------------------------------- yaml


def check_yaml(block: Block, folder: Path) -> None:
    file = folder / "page.yaml"
    text = block.body
    keys = set(re.findall(r"^(\w+):", text, re.MULTILINE))
    try:
        if "stages" in keys:
            check_pipeline(file, text)
        elif keys & {"grid", "random", "trials"}:
            check_sweep(file, text)
        else:
            check_run(file, text)
    except Failed as e:
        raise AssertionError(f"{block.where}: {str(e).replace(str(file), block.where)}") from e


def check_run(file: Path, text: str) -> None:
    from smollm3_finetune.config.load import assemble, file_settings

    file.write_text(text, encoding="utf-8")
    check_components(assemble([file_settings(file)]).config)


def check_pipeline(file: Path, text: str) -> None:
    from smollm3_finetune.config.load import assemble
    from smollm3_finetune.pipeline.file import read_pipeline

    file.write_text(text, encoding="utf-8")
    for stage in read_pipeline(file).stages:
        check_components(assemble([stage.settings]).config)


def check_sweep(file: Path, text: str) -> None:
    from smollm3_finetune.config.load import assemble
    from smollm3_finetune.sweep.file import read_sweep

    if not re.search(r"^run:", text, re.MULTILINE):  # the page shows the values, without the run
        text = f"run: {{model: tiny}}\n{text}"
    file.write_text(text, encoding="utf-8")
    sweep = read_sweep(file)
    for trial in sweep.trials:
        check_components(assemble([sweep.run, trial.settings]).config)


def check_components(config: Any) -> None:
    """The components that a configuration names exist, and have its options."""
    from smollm3_finetune.components.selection import choose
    from smollm3_finetune.config.load import ship_config
    from smollm3_finetune.config.schema import COMPONENT_SECTIONS

    registry = registry_with(())
    chosen = {section: getattr(config, section) for section in COMPONENT_SECTIONS}
    found = [(NAMED[section], one) for section, one in chosen.items() if section in NAMED and one.name]
    if (ship := ship_config(config)) is not None:
        kind = NAMED["to"] if ship.name in {c.spec.name for c in registry.of(NAMED["to"])} else NAMED["quant"]
        found.append((kind, ship))
    for kind, one in found:
        choose(registry, kind, one.name, one)


# ----------------------------------------------------------------------------------------------------------- toml


def check_toml(block: Block) -> None:
    try:
        tables = tomllib.loads(block.body)
    except tomllib.TOMLDecodeError as e:
        raise AssertionError(f"{block.where}: {e}") from e
    groups = tables.get("project", {}).get("entry-points", {})
    assert set(groups) <= {"smollm3_finetune"}, f"{block.where}: entry points {sorted(groups)}"


# ---------------------------------------------------------------------------------------------------------- tests


def check_block(block: Block, folder: Path) -> None:
    if block.language in ("console", "bash"):
        check_shell(block)
    elif block.language == "python":
        check_python(block)
    elif block.language == "yaml":
        check_yaml(block, folder)
    else:
        check_toml(block)


@pytest.mark.parametrize("page", [p for p in EVERY if name_of(p) not in RUN], ids=name_of)
def test_every_block_of_a_page_is_checked(page: Path, tmp_path: Path) -> None:
    for block in checked_blocks(page):
        check_block(block, tmp_path)


@pytest.mark.parametrize("page", EVERY, ids=name_of)
def test_components_and_keys_of_command_lines_in_the_text_exist(page: Path) -> None:
    wrong = [body for _, body in FENCE.findall(text_of(page)) if re.search("^error: ", body, re.MULTILINE)]
    problems = []
    for line in command_lines([page]):
        if name_of(page) not in RUN and not any(line.text in body for body in wrong):  # test_hints.py types these
            try:
                check(line.text, ABSENT, complete=False)
            except Failed as e:
                problems.append(f"{line.text}\n{message(e)}")
    assert problems == []


def test_pages_that_are_run_are_those_of_the_test_that_runs_them() -> None:
    source = text_of(ROOT / "tests/docs/test_tutorials.py")
    assert all(f'"{Path(page).name}"' in source for page in RUN)


def test_every_exception_is_needed() -> None:
    found = {(name_of(page), block.first) for page in EVERY for block in blocks(page)}
    assert set(NOT_CHECKED) <= found
    text = "".join(text_of(page) for page in EVERY)
    assert [name for name in ABSENT if name not in text] == []


BROKEN = [
    ("console", "$ smollm3 train --quant gptq --quant-opt bitz=4\n", "no option 'bitz'"),
    ("console", "$ smollm3 train --quant gptqq\n", "no quantizer 'gptqq'"),
    ("console", "$ smollm3 train --set train.max_stepz=3\n", "max_stepz"),
    ("console", "$ smollm3 train --set train.max_steps=many\n", "max_steps"),
    ("console", "$ smollm3 export RUN --to gguf --tipe q8_0\n", "No such option '--tipe'"),
    ("console", "$ smollm3 merge\n", "TARGET is missing"),
    ("console", "$ pip install ./plugins/smollm3-gone\n", "not a distribution"),
    ("console", "$ nox -s gone\n", "no session 'gone'"),
    ("console", "$ torchrun --nproc-per-node 2 -m smollm3_finetune.main train --adapter lorra\n", "no adapter 'lorra'"),
    ("console", "$ python benchmarks/verdict_rows.py tiny --rose 600\n", "no option --rose"),
    ("console", "$ unheard-of --x\n", "nothing checks unheard-of"),
    ("console", "$ smollm3 train --data 'rows.jsonl\n", "quote"),
    ("python", "from smollm3_finetune.api import Gone\n", "has no Gone"),
    ("python", "import smollm3_gone\n", "import smollm3_gone"),
    ("python", "return (\n", "never closed"),
    ("yaml", "quant: {name: gptq, bitz: 4}\n", "no option 'bitz'"),
    ("yaml", "trane: {max_steps: 1}\n", "trane"),
    ("yaml", "stages: [{name: a, adapter: lorra}]\n", "no adapter 'lorra'"),
    ("yaml", "grid: {adapter.rank: [1], train.lerning_rate: [1]}\n", "lerning_rate"),
    ("toml", "[project.entry-points.smollm3]\nmine = 'mine'\n", "entry points"),
]


@pytest.mark.parametrize(("language", "body", "says"), BROKEN)
def test_a_wrong_block_is_found(language: str, body: str, says: str, tmp_path: Path) -> None:
    block = Block(ROOT / "docs/quickstart.md", 1, language, body)
    with pytest.raises(AssertionError, match=re.escape(says)):
        check_block(block, tmp_path)
