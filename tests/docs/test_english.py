"""User-visible texts are plain technical English: phrases that tripped readers do not come back.

    python tests/docs/test_english.py [--all] [PATH …]

prints every finding as `file:line: pattern: text`, and exits with 1 if there is one. Scanned are the messages, help and
option texts of core and of every plugin under plugins/, the docstrings of commands and of the public modules, the
templates of `plugins new`, and the documentation pages outside of code. `--all` also scans the other docstrings and
the comments, which the test does not. PATH limits the output to files or folders.

What to write instead: docs/english.md.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ALLOWED: set[tuple[str, str]] = {
    ("plugins/smollm3-gptq/smollm3_gptq/options.py", "dequantise"),  # a former value, which saved runs hold
}
"""(file, phrase): findings that are correct English. An entry that matches nothing fails the test."""

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "noxfile.py").exists())
PAGES = (
    "*.md", "docs/*.md", "plugins/*.md", "plugins/*/README.md", "examples/plugins/*.md", "examples/plugins/*/README.md",
)  # fmt: skip
CODE = ("smollm3_finetune/**/*.py", "plugins/*/smollm3_*/**/*.py", "examples/plugins/*/smollm3_*/**/*.py")
DATA = ("smollm3_finetune/checks/*.json",)
TEMPLATES = ("smollm3_finetune/**/*.tmpl",)
PUBLIC = ("smollm3_finetune/api/", "smollm3_finetune/api/hookspecs.py", "smollm3_finetune/testing/")
"""Modules whose docstrings are shown on documentation pages."""

# ------------------------------------------------------------------------------------------------------ patterns

AMERICAN_ISE = (
    "advertise", "advise", "anise", "appraise", "arise", "braise", "bruise", "chastise", "comprise",
    "compromise", "concise", "cruise", "demise", "despise", "devise", "disguise", "enterprise", "excise",
    "exercise", "expertise", "franchise", "guise", "improvise", "incise", "liaise", "likewise", "malaise",
    "merchandise", "noise", "otherwise", "paradise", "poise", "praise", "precise", "premise", "promise",
    "raise", "reprise", "revise", "rise", "supervise", "surprise", "televise", "treatise", "turquoise", "vise",
    "wise",
)  # fmt: skip
"""Words that end in -ise in American English too. Words that end in -wise, such as `layerwise`, need no entry."""

_STEMS = "|".join(sorted((w[:-3] for w in AMERICAN_ISE), key=len, reverse=True))
_NOT_ISE = rf"(?!(?:un|im|semi|re)*(?:{_STEMS})is)(?!\w*wise|disable)"
BRITISH = "|".join((
    rf"{_NOT_ISE}[a-z]+is(?:e|ed|es|er|ers|ing|able)",
    r"(?!improvisation|supervision)[a-z]+isations?",
    r"(?:de)?(?:analys|catalys|paralys)(?:e|ed|es|ing|er|ers)(?<!analyses)",
    r"(?:dis|mis|un)?(?:behavi|col|fav|flav|harb|hon|hum|lab|neighb|rum|vap|arm|endeav|sav)our\w*",
    r"(?:centr|fibr|litr|metr|theatr)es?(?<!centres)|centred",
    r"grey\w*|artefacts?|catalogues?|programmes?|cheques?|judgement|licence|defence|offence|whilst|amongst|learnt|burnt"
    r"|spelt|ageing|acknowledgement",
    r"(?:un)?(?:label|model|travel|signal|channel|tunnel|level|fuel|dial|total|cancel|marshal)l(?:ed|ing|er|ers)"
    r"(?<!cancelled)(?<!cancelling)",
    r"fulfil|enrol|instal|skilful",
))  # fmt: skip
PATTERNS: dict[str, str] = {
    "is no": r"(?<!there\s)\b(?:is|are|was|were|be) no\b"
    r"(?! (?:longer|more than|less than|fewer than|later than|better))",
    "where there is none": r"where there (?:is|are|was|were) (?:none|no|nothing)"
    r"|where (?:it|they) can be had|can be had",
    "what is learned": r"\bwhat (?:is|was|are|were|has been|had been) (?:not )?(?:learned|learnt|made|there|seen|kept|"
    r"given|held|used|converted|marked)\b",
    "of what": r"(?:^|[.:;] )of what\b",
    "is there": r"\b(?:is|are|was|were) (?:not )?there\b(?=\s*(?:[,.;:)]|$|already|yet|any ?more))"
    r"|not there (?:yet|any)",
    "told": r"\btold\b",
    "mend": r"\bmend(?:s|ed|ing)?\b",
    "lies, stands": r"\b(?:lies|stands)\b(?! (?:for|out|still|alone)\b)|\bto (?:lie|stand)\b(?! (?:for|out)\b)"
    r"|\b(?:lie|stand) (?:in|on|at|under|beside|below|above|before|behind|along|one)\b",
    "all the same": r"\ball the same\b"
    r"(?! (?:\w+ )?(?:length|size|shape|dtype|type|kind|rank|width|device|value|version))",
    "meanwhile": r"\bmeanwhile\b",
    "goes on": r"\b(?:goes|go|went|going) on\b(?! (?:to|top)\b)",
    "in few bits": r"\bin few bits\b",
    "for good": r"\bfor good\b(?! (?:reason|measure))",
    "for a person": r"\bfor a person\b",
    "learned tokens": r"\blearn(?:ed|t) (?:tokens?|messages?|turns?|text|parts?)\b|\blearn(?:s|ed|t)? from\b"
    r"|\b(?:is|are|was|were|be|been|being) (?:not )?learn(?:ed|t)\b"
    r"|\b(?:not|nothing|none|tokens?|turns?) learn(?:ed|t)\b",
    "does not suffice": r"\b(?:does|do|did|will|would|can|could|may)(?: not|n't) suffice\b",
    "held out": r"\bthat (?:is|was|are|were) held out\b",
    "verb": r"(?<!subject,\s)\bverbs?\b",
    "reasonings": r"\breasonings\b",
    "likeliest": r"\blikeliest\b",
    "British": rf"\b(?:{BRITISH})\b",
}
"""The name of each pattern, and what it matches. A space matches any white space, so a phrase may cross a line."""

COMPILED = {name: re.compile(pattern.replace(" ", r"\s+"), re.IGNORECASE) for name, pattern in PATTERNS.items()}


class Text(NamedTuple):
    """A piece of text, and the line of the file on which it begins."""

    content: str
    line: int


class Finding(NamedTuple):
    file: str
    line: int
    pattern: str
    phrase: str
    context: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.pattern}: {self.context}"


def matches(content: str) -> Iterator[tuple[int, str, str]]:
    """(offset, name of the pattern, matched phrase) of every match in a text."""
    for name, pattern in COMPILED.items():
        for match in pattern.finditer(content):
            yield match.start(), name, " ".join(match.group().split())


# --------------------------------------------------------------------------------------------------- reading files


def blank(match: re.Match[str]) -> str:
    """As many characters and lines as the match, without its words."""
    return re.sub(r"\S", "¤", match.group())


CODE_LEFT = re.compile(r"¤+(?:\s+¤+)*")
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+|~~~+).*?^(?P=indent)(?P=fence) *$", re.MULTILINE | re.DOTALL)
NOT_PROSE = (
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)", re.DOTALL),
    re.compile(r"\]\([^)\s]*\)"),
    re.compile(r"https?://\S+"),
)
INDENTED = re.compile(r"(?<=\n\n)(?: {4,}\S.*\n?|\n)+")


def prose(content: str, code: re.Pattern[str] = FENCE) -> str:
    """`content` with code, links and comments blanked out, line by line as long as before."""
    for pattern in (code, *NOT_PROSE):
        content = pattern.sub(blank, content)
    return content


def docstring_prose(content: str) -> str:
    """A docstring without its code: indented blocks behind an empty line, doctests, names in backticks."""
    lines = [" " * len(line) if line.lstrip().startswith(("smollm3 ", ">>> ", "$ ")) else line
             for line in content.split("\n")]  # fmt: skip
    return prose("\n".join(lines), INDENTED)


REGULAR = {"compile", "search", "match", "fullmatch", "sub", "subn", "finditer", "findall", "split"}


def is_regular_expression(call: ast.Call) -> bool:
    function = call.func
    return (
        isinstance(function, ast.Attribute) and function.attr in REGULAR
        and isinstance(function.value, ast.Name) and function.value.id in ("re", "regex")
    )  # fmt: skip


def is_command(function: ast.AST) -> bool:
    """Whether a function is a click command, whose docstring is its help."""
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    calls = [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]
    return any(isinstance(c, ast.Attribute) and c.attr in ("command", "group") for c in calls)


class PythonTexts(ast.NodeVisitor):
    """The messages of a module; its docstrings in lists of their own, user-visible or internal."""

    def __init__(self, public: bool) -> None:
        self.public = public
        self.messages: list[Text] = []
        self.visible: list[Text] = []
        self.internal: list[Text] = []

    def generic_visit(self, node: ast.AST) -> None:
        body = getattr(node, "body", None)
        statements = body if isinstance(body, list) else []  # that of a lambda is an expression
        command = is_command(node)
        for at, statement in enumerate(statements):
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                value = statement.value
                if isinstance(value.value, str):  # a docstring, also of an attribute
                    shown = self.public or (command and at == 0)
                    (self.visible if shown else self.internal).append(Text(docstring_prose(value.value), value.lineno))
        super().generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):
            self.visit(node.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.messages.append(Text(prose(node.value), node.lineno))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        parts = []
        for part in node.values:
            if isinstance(part, ast.Constant):
                parts.append(str(part.value))
            else:
                parts.append("{…}")
                self.visit(part)
        self.messages.append(Text(prose("".join(parts)), node.lineno))

    def visit_Call(self, node: ast.Call) -> None:
        for child in node.args[1:] if is_regular_expression(node) else (node.func, *node.args):
            self.visit(child)
        for keyword in node.keywords:
            self.visit(keyword.value)


def comments(source: str) -> Iterator[Text]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith(("# type:", "# noqa", "# fmt:")):
            yield Text(prose(token.string), token.start[0])


def json_texts(content: str) -> Iterator[Text]:
    """The string values of a JSON file, none of its keys; all of them on the line on which they are found."""

    def values(item: object) -> Iterator[str]:
        if isinstance(item, str):
            yield item
        elif isinstance(item, list | dict):
            for child in item.values() if isinstance(item, dict) else item:
                yield from values(child)

    for value in values(json.loads(content)):
        at = content.find(json.dumps(value, ensure_ascii=False))
        yield Text(prose(value), content.count("\n", 0, max(at, 0)) + 1)


def texts_of(path: Path, everything: bool = False) -> Iterator[Text]:
    """The texts of one file that users read; `everything`: also those that only developers read."""
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        public = path.relative_to(ROOT).as_posix().startswith(PUBLIC) if path.is_relative_to(ROOT) else False
        found = PythonTexts(public)
        found.visit(ast.parse(content))
        yield from (*found.messages, *found.visible)
        if everything:
            yield from (*found.internal, *comments(content))
    elif path.suffix == ".json":
        yield from json_texts(content)
    else:
        yield Text(prose(content), 1)


@cache
def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")


def findings_of(path: Path, everything: bool = False) -> Iterator[Finding]:
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    for text in texts_of(path, everything):
        for offset, pattern, phrase in matches(text.content):
            line = text.line + text.content.count("\n", 0, offset)
            if path.suffix == ".py":  # strings that are written in several pieces: the piece that holds the phrase
                near = range(line, min(line + 12, len(lines_of(path)) + 1))
                line = next((n for n in near if phrase.lower() in lines_of(path)[n - 1].lower()), line)
            start, end = max(0, offset - 60), offset + len(phrase) + 60
            context = " ".join(CODE_LEFT.sub("…", text.content[start:end]).split())
            yield Finding(name, line, pattern, phrase, context)


def scanned_files() -> list[Path]:
    globs = (*PAGES, *CODE, *DATA, *TEMPLATES)
    return sorted({p for pattern in globs for p in ROOT.glob(pattern) if ".venv" not in p.parts and p.is_file()})


@cache
def all_findings(everything: bool = False) -> tuple[Finding, ...]:
    return tuple(sorted({f for path in scanned_files() for f in findings_of(path, everything)}))


def is_allowed(finding: Finding) -> bool:
    return (finding.file, finding.phrase) in ALLOWED


# ----------------------------------------------------------------------------------------------------------- tests


def test_texts_are_plain_technical_english() -> None:
    found = [f for f in all_findings() if not is_allowed(f)]
    assert not found, "see docs/english.md\n" + "\n".join(map(str, found))


def test_every_allowed_phrase_is_needed() -> None:
    unused = ALLOWED - {(f.file, f.phrase) for f in all_findings()}
    assert not unused, f"ALLOWED matches nothing: {sorted(unused)}"


PLANTED = {
    "'x' is no directory": "is no",
    "names that are no classes": "is no",
    "the default where there is none": "where there is none",
    "What is learned, in tokens.": "what is learned",
    "what was made before": "what is learned",
    "Of what it needs, half is found.": "of what",
    "whether the file is there": "is there",
    "the run is not there any more": "is there",
    "The adapter is told its rank.": "told",
    "fix the rows, or mend the file": "mend",
    "the folder in which it lies": "lies, stands",
    "It stands before the tokens.": "lies, stands",
    "groups lie along the inputs": "lies, stands",
    "--any-base uses it all the same": "all the same",
    "another run took it meanwhile": "meanwhile",
    "--max-steps 120 goes on": "goes on",
    "weights in few bits": "in few bits",
    "it changes the layer for good": "for good",
    "a table for a person": "for a person",
    "the number of learned tokens": "learned tokens",
    "stripped and not learned": "learned tokens",
    "the memory does not suffice": "does not suffice",
    "rows that were held out": "held out",
    "smollm3 VERB --help": "verb",
    "Verbs:": "verb",
    "has two reasonings": "reasonings",
    "0: the likeliest.": "likeliest",
    "quantise and tokenise": "British",
    "the tokeniser, recognised": "British",
    "normalisation": "British",
    "behaviour, colour": "British",
    "grey artefacts": "British",
    "labelled rows": "British",
}
HARMLESS = (
    "there is no home directory of 'x'", "the file is no longer used", "the rate is no more than 1", "nobody",
    "it stands for a mapping", "they all the same shape", "all the same length", "and so on, ongoing", "goodness",
    "supervised tokens", "a precise, layerwise, blockwise exercise", "otherwise raise, revised, promised, noise",
    "supervising", "unsupervised training", "imprecise", "advised, comprises, rising", "cancelled", "analyses",
    "is there a GPU", "disable adapters", "weights in fewer bits", "part of what is promised",
    "the files are there because of a test", "metric meters", "a parallel model", "filling",
    "recommend, amended, commend", "standard, believes, replies, families, standing", "adverb, verbose, proverb",
    "subject, verb, object",
    "parameter, perimeter, honorary, four hours, tour, your, our, hour",
    "advertised, rowwise, element-wise, wiser",
)  # fmt: skip


@pytest.mark.parametrize("sentence", PLANTED)
def test_planted_sentence_is_found(sentence: str) -> None:
    assert PLANTED[sentence] in {name for _, name, _ in matches(sentence)}


@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern_has_a_planted_sentence(name: str) -> None:
    assert name in PLANTED.values()


@pytest.mark.parametrize("sentence", HARMLESS)
def test_correct_sentence_is_not_found(sentence: str) -> None:
    assert list(matches(sentence)) == []


PLANTED_MODULE = '''
"""A module: it mends what nobody reads."""
import re

import click

VERB = re.compile("told|mend")
"""Told to developers only."""


@click.command(help=f"Tokenise {VERB} rows.")
@click.option("--x", help="The folder in which "
              "the file lies.")
def command() -> None:
    """Show what was told.

        smollm3 verb

    The option `verb` is code.
    """
    raise ValueError("'x' is no"
                     " directory")


def helper() -> None:
    """Told to nobody."""  # meanwhile
'''


def test_texts_of_a_module_are_found_where_they_are_written(tmp_path: Path) -> None:
    file = tmp_path / "planted.py"
    file.write_text(PLANTED_MODULE, encoding="utf-8")
    assert [(f.line, f.pattern) for f in sorted(findings_of(file))] == [
        (11, "British"), (13, "lies, stands"), (15, "told"), (21, "is no"),
    ]  # fmt: skip
    internal = set(findings_of(file, everything=True)) - set(findings_of(file))
    assert sorted((f.line, f.pattern) for f in internal) == [
        (2, "mend"), (8, "told"), (26, "meanwhile"), (26, "told"),
    ]  # fmt: skip


PLANTED_PAGE = """# A verb

It is
told.

```console
$ smollm3 verb
```

<!-- help: VERB -->
[mended](docs/verb.md) `verb`
"""


def test_texts_of_a_page_are_found_outside_of_code(tmp_path: Path) -> None:
    file = tmp_path / "planted.md"
    file.write_text(PLANTED_PAGE, encoding="utf-8")
    assert [(f.line, f.pattern) for f in sorted(findings_of(file))] == [(1, "verb"), (4, "told"), (11, "mend")]


def test_texts_of_a_json_file_are_its_values(tmp_path: Path) -> None:
    file = tmp_path / "planted.json"
    file.write_text('[{"verb": 1,\n "says": "mend it"}]', encoding="utf-8")
    assert [(f.line, f.pattern) for f in findings_of(file)] == [(2, "mend")]


def test_scan_reads_the_whole_project() -> None:
    names = {p.relative_to(ROOT).as_posix() for p in scanned_files()}
    assert {"README.md", "docs/plugins.md", "smollm3_finetune/main.py", "plugins/smollm3-peft/README.md"} <= names
    assert any(n.endswith(".tmpl") for n in names) and any(n.endswith(".json") for n in names)
    assert any(n.startswith("plugins/smollm3-peft/smollm3_peft/") for n in names)


def main() -> int:
    parser = argparse.ArgumentParser(description="Print phrases that docs/english.md replaces.")
    parser.add_argument("--all", action="store_true", help="Scan internal docstrings and comments too.")
    parser.add_argument("--count", action="store_true", help="Print the number of findings of each folder.")
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="Only findings in these files or folders.")
    arguments = parser.parse_args()
    only = [p.resolve() for p in arguments.paths]
    found = [
        f for f in all_findings(arguments.all)
        if not is_allowed(f) and (not only or any((ROOT / f.file).is_relative_to(p) for p in only))
    ]  # fmt: skip
    if arguments.count:
        for folder, count in sorted(Counter(Path(f.file).parent.as_posix() for f in found).items()):
            print(f"{count:5} {folder}")
    else:
        print(*found, sep="\n", end="\n" if found else "")
    print(f"{len(found)} findings", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
