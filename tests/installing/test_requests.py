"""What a user may name: distributions, components, wheels, directories, URLs; and what is refused, with a hint."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hand_made_wheels import CORE, PLUGIN, POINTS, write_wheel

from smollm3_finetune.errors import ConfigError, PluginError, Problems
from smollm3_finetune.installing.environment import installed
from smollm3_finetune.installing.failures import NotFound, failure
from smollm3_finetune.installing.index import IndexedPlugin, PluginIndex, embedded_index, plugin_index
from smollm3_finetune.installing.installer import Sources
from smollm3_finetune.installing.plan import make_plan
from smollm3_finetune.installing.requests import Parser

ROOT = Path(__file__).parents[2]
PROJECT = '[project]\nname = "Acme.Rows"\nversion = "1.0"\n'
ENTRY = '[project.entry-points.smollm3_finetune]\nacme = "acme_rows"\n'


def parser(**values: Any) -> Parser:
    has_source = values.pop("has_source", True)
    return Parser(index=embedded_index(), found=values.pop("found", {}), has_source=has_source,
                  has_index=values.pop("has_index", has_source), **values)  # fmt: skip


def test_a_component_names_its_distribution_with_extras_and_version() -> None:
    request = parser().parse("onnx[onnxruntime]==0.1.0")
    assert (request.argument, request.name) == (("smollm3-onnx[onnxruntime]==0.1.0",), "smollm3-onnx")


def test_a_name_of_a_stranger_is_passed_on() -> None:
    request = parser().parse("acme-quant>=2")
    assert (request.argument, request.name, request.is_name) == (("acme-quant>=2",), "acme-quant", True)


def test_a_typing_error_is_refused_and_can_be_meant() -> None:
    with pytest.raises(ConfigError) as caught:
        parser(has_source=False).parse("gptqq")
    assert "did you mean 'gptq'?" in str(caught.value) and "install 'gptqq>=0'" in str(caught.value)
    assert parser(has_source=False).parse("gptqq>=0").argument == ("gptqq>=0",)


def test_an_installed_distribution_that_is_not_a_plugin_is_refused() -> None:
    with pytest.raises(PluginError, match=r"torch \S+ is not a plugin of smollm3") as caught:
        parser(found=installed(), has_source=False).parse("torch")
    assert "pip install torch" in str(caught.value.hint)


def test_core_is_not_a_plugin() -> None:
    with pytest.raises(ConfigError, match="is not a plugin"):
        parser().parse("smollm3-finetune")


def test_a_plugin_of_this_repository_is_taken_from_the_clone() -> None:
    request = parser(has_source=False, repository=ROOT).parse("gptq")
    assert request.argument == (str(ROOT / "plugins/smollm3-gptq"),) and not request.editable
    assert request.from_index is not None


def test_a_plugin_that_was_not_published_with_this_core_needs_a_source() -> None:
    with pytest.raises(ConfigError, match="was not published together with") as caught:
        parser(has_source=False).parse("gptq")
    assert caught.value.hint == (
        "name a source: --find-links DIR; in a clone of the repository: smollm3 plugins install ./plugins/smollm3-gptq"
    )
    assert parser(has_source=True).parse("gptq").argument == ("smollm3-gptq",)


def test_a_name_that_may_be_anybodys_is_taken_from_the_named_folder_only(tmp_path: Path) -> None:
    """On the default package index, a stranger's version 99 would be preferred to the version of the folder."""
    for version in ("0.1.0", "0.3.0", "0.4.0rc1"):
        write_wheel(tmp_path, "smollm3-gptq", version, {"smollm3_gptq.py": ""}, [CORE], {"gptq": "smollm3_gptq"})
    named = parser(has_index=False, folders=(tmp_path,))
    assert named.parse("gptq").argument == (str(tmp_path / "smollm3_gptq-0.3.0-py3-none-any.whl"),)
    assert named.parse("gptq[x]<0.2").argument == (str(tmp_path / "smollm3_gptq-0.1.0-py3-none-any.whl[x]"),)
    for text in ("gptq==9", "smollm3-quanto"):
        with pytest.raises(ConfigError, match=rf"was not published together with .* {tmp_path} has no "):
            named.parse(text)


def test_a_version_does_not_make_a_name_ours(fake_distribution: Any) -> None:
    with pytest.raises(ConfigError, match="was not published together with"):
        parser(has_source=False).parse("gptq==0.1.0")
    assert parser(has_source=False, repository=ROOT).parse("gptq==0.1.0").argument == (
        str(ROOT / "plugins/smollm3-gptq"),
    )
    with pytest.raises(ConfigError, match="was not published together with"):
        parser(has_source=False, repository=ROOT).parse("gptq==9")
    fake_distribution("smollm3-gptq", "0.1.0", {}, {"gptq": "smollm3_gptq"})
    found = {n: d for n, d in installed().items() if n == "smollm3-gptq"}
    assert parser(found=found, has_source=False).parse("gptq").is_name  # it is installed: nothing is fetched
    with pytest.raises(ConfigError, match="was not published together with"):
        parser(found=found, has_source=False).parse("gptq>=0.2")


def test_an_index_that_is_only_added_is_not_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """PIP_EXTRA_INDEX_URL is set for torch for CPUs."""
    installer: Any = SimpleNamespace(name="pip")
    for name in ("PIP_INDEX_URL", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://example.org/whl/cpu")
    assert not Sources().names_any(installer) and not Sources().names_index(installer)
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels https://example.org/wheels")
    assert Sources().names_any(installer) and not Sources().names_index(installer)
    assert Sources(find_links=("/mine",)).folders(installer) == (Path("/mine"), Path("/wheels"))
    monkeypatch.setenv("PIP_INDEX_URL", "https://example.org/simple")
    assert Sources().names_index(installer)


def test_core_from_a_package_index_has_its_plugins_there(fake_distribution: Any) -> None:
    fake_distribution("smollm3-finetune", "0.1.0")
    assert parser(found=installed(), has_source=False).parse("hqq").argument == ("smollm3-hqq",)


def test_a_wheel_is_read_before_anything_is_installed(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, "acme-rows", "1.0", PLUGIN, [CORE], POINTS)
    request = parser().parse(str(wheel))
    assert request.name == "acme-rows" and request.contents is not None
    assert request.contents.plugins == ("acme",) and "acme_rows/rows.py" in request.contents.files
    plain = write_wheel(tmp_path, "acme-plain", "1.0", {"acme_plain.py": ""})
    with pytest.raises(PluginError, match=r"acme-plain 1.0 in \S+ is not a plugin"):
        parser().parse(str(plain))


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x05\x06" + 18 * b"\0"])
def test_a_damaged_wheel_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "acme_rows-1.0-py3-none-any.whl"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="is not a wheel"):
        parser().parse(str(file))


def test_a_directory_is_editable_unless_a_copy_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PROJECT + ENTRY)
    request = parser().parse(str(tmp_path))
    assert request.argument == ("-e", str(tmp_path)) and request.name == "acme-rows" and request.editable
    assert parser(copies=True).parse(f"{tmp_path}[extra]").argument == (f"{tmp_path}[extra]",)


def test_a_directory_without_pyproject_names_those_inside(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "pyproject.toml").write_text(PROJECT + ENTRY)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pyproject.toml").write_text(PROJECT)
    with pytest.raises(ConfigError, match=r"has no pyproject\.toml") as caught:
        parser().parse(str(tmp_path))
    assert caught.value.hint == f"did you mean {tmp_path / 'mine'}?"


def test_a_directory_without_an_entry_point_is_not_a_plugin(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    with pytest.raises(PluginError, match="is not a plugin"):
        parser().parse(str(tmp_path))
    (tmp_path / "pyproject.toml").write_text("[project\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        parser().parse(str(tmp_path))


def test_a_bare_name_of_a_directory_needs_a_slash(isolated: Path) -> None:
    (isolated / "my-plugin").mkdir()
    (isolated / "my-plugin" / "pyproject.toml").write_text(PROJECT + ENTRY)
    with pytest.raises(ConfigError) as caught:
        parser(has_source=False).parse("my-plugin")
    assert caught.value.hint is not None
    assert (
        caught.value.hint.startswith("smollm3 plugins install ./my-plugin; ")
        and "--find-links DIR" in caught.value.hint
    )


def test_a_named_source_wins_over_a_directory_of_that_name(isolated: Path) -> None:
    (isolated / "acme-rows").mkdir()
    (isolated / "acme-rows" / "pyproject.toml").write_text(PROJECT + ENTRY)
    request = parser(named_source=True).parse("acme-rows")
    assert (request.argument, request.is_name) == (("acme-rows",), True)
    with pytest.raises(ConfigError, match="there is a directory of that name"):
        parser(named_source=False).parse("acme-rows")  # a variable of pip alone is not an answer to this command


@pytest.mark.parametrize("name", ["ternary", "threes"])
def test_the_short_name_of_a_wheel_names_its_distribution(tmp_path: Path, name: str) -> None:
    """A short form of the distribution, or the name of a plugin in the wheel."""
    write_wheel(tmp_path / "dist", "smollm3-ternary", "0.1.0", PLUGIN, [CORE], {"threes": "acme_rows"})
    named = parser(folders=(tmp_path / "dist",))
    with pytest.raises(ConfigError) as caught:
        named.parse(name)
    assert f"has {name!r}" in caught.value.message
    assert "did you mean smollm3-ternary?" in str(caught.value.hint) and "--index FILE" in str(caught.value.hint)
    assert named.parse("smollm3-ternary").is_name and named.parse(f"{name}>=0").is_name


class Lacking:
    """An installer that finds nothing."""

    name = "pip"

    def resolve(self, *args: Any) -> Any:
        raise NotFound("ternery")


def test_a_name_that_no_source_has_is_compared_with_wheels(tmp_path: Path) -> None:
    write_wheel(tmp_path / "dist", "smollm3-ternary", "0.1.0", PLUGIN, [CORE], POINTS)
    installer: Any = Lacking()
    for links, said in [((str(tmp_path / "dist"),), "did you mean smollm3-ternary? "), ((), "plugins search WORD; ")]:
        sources = Sources(find_links=links, offline=True)
        asked = parser(folders=sources.folders(installer)).parse("ternery")
        with pytest.raises(ConfigError, match="no --find-links has ternery") as caught:
            make_plan([asked], installer, sources, {}, embedded_index())
        assert said in str(caught.value.hint)
        assert "names of components come from the index of plugins: --index FILE" in str(caught.value.hint)


def test_a_plugin_of_an_index_of_ones_own_needs_a_source(tmp_path: Path) -> None:
    """`plugins index` states that the default package index does not have it: there it may be a stranger's."""
    entry = IndexedPlugin(name="acme-rows", summary="", plugins=("acme",), components=(), published=False)
    private = Parser(index=PluginIndex((entry,)), found={})
    with pytest.raises(ConfigError, match="not on the default package index") as caught:
        private.parse("acme")
    assert caught.value.hint == "name a source: --find-links DIR, or --index-url URL"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("./missing", "does not exist"),
        ("a b c", "is not the name of a plugin"),
        ("--evil", "is not the name of a plugin"),
        ("ftp://example.org/x.whl", "has the scheme 'ftp'"),
        ("http://example.org/x-1.0-py3-none-any.whl", "is not encrypted"),
    ],
)
def test_what_cannot_be_installed_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        parser().parse(text)
    assert caught.value.hint


def test_a_plugin_file_needs_no_installation(isolated: Path) -> None:
    (isolated / "mine.py").write_text("")
    with pytest.raises(ConfigError) as caught:
        parser().parse("mine.py")
    assert caught.value.hint == "use it with -p: smollm3 train -p mine.py"


def test_a_url_is_shown_without_its_password() -> None:
    request = parser().parse("https://user:secret@example.org/acme_rows-1.0-py3-none-any.whl")
    assert request.source == "https://…@example.org/acme_rows-1.0-py3-none-any.whl"
    assert (request.name, request.version, request.argument[0].count("secret")) == ("acme-rows", "1.0", 1)
    assert "secret" not in request.shown
    for scheme in ("ftp", "http"):
        with pytest.raises(ConfigError) as caught:
            parser().parse(f"{scheme}://user:secret@example.org/acme_rows-1.0-py3-none-any.whl")
        assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"--index http://…@example\.org/x must be an https") as caught:
        plugin_index("http://user:secret@example.org/x")
    assert "secret" not in str(failure("ERROR: https://me:secret@example.org/x: 404 Client Error", "pip"))


def test_independent_problems_are_reported_together() -> None:
    with pytest.raises(Problems) as caught:
        parser().parse_all(["./missing", "a b", "gptq"])
    assert len(caught.value.problems) == 2
