"""Which environments are changed, with which program, and what is kept and what stays."""

from __future__ import annotations

import sys
import sysconfig
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hand_made_wheels import HOOKS, ROWS, write_wheel

from smollm3_finetune import stopping
from smollm3_finetune.cli.output.installing import print_checks
from smollm3_finetune.errors import ConfigError, IncompatibleError, MissingRequirementError, SmolLM3Error
from smollm3_finetune.installing import choose
from smollm3_finetune.installing.contents import of_wheel, overwritten
from smollm3_finetune.installing.environment import check_environment, constraints, installed
from smollm3_finetune.installing.examine import examined
from smollm3_finetune.installing.index import embedded_index
from smollm3_finetune.installing.install import install
from smollm3_finetune.installing.installer import Resolved, Sources
from smollm3_finetune.installing.plan import make_plan
from smollm3_finetune.installing.requests import Parser
from smollm3_finetune.installing.uninstall import Removal, installed_plugin, only_required_by, uninstall
from smollm3_finetune.installing.upgrade import upgrades
from smollm3_finetune.installing.uv import Uv

Cli = Callable[..., Any]


def test_an_environment_of_the_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEP 668: the marker is beside the standard library."""
    (tmp_path / "EXTERNALLY-MANAGED").touch()
    before = sysconfig.get_path
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    check_environment()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path) if name == "stdlib" else before(name))
    with pytest.raises(IncompatibleError, match="is managed by the operating system") as caught:
        check_environment()
    assert caught.value.hint is not None and "python3 -m venv .venv" in caught.value.hint


def environment_of(made_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, uv: bool, pip: bool) -> None:
    (tmp_path / "pyvenv.cfg").write_text(f"home = /usr/bin\n{made_by} = 1\n")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(choose.PathFinder, "find_spec", lambda name: object() if pip else None)
    monkeypatch.delenv("UV", raising=False)
    folder = tmp_path / "programs"
    folder.mkdir()
    if uv:
        (folder / "uv").write_text("#!/bin/sh\n")
        (folder / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize(
    ("made_by", "uv", "pip", "chosen"),
    [("version", True, True, "pip"), ("version", True, False, "uv"), ("uv", True, True, "uv"),
     ("uv", False, True, "pip"), ("uv", True, False, "uv")],
)  # fmt: skip
def test_the_program_that_installs(
    made_by: str, uv: bool, pip: bool, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment_of(made_by, tmp_path, monkeypatch, uv=uv, pip=pip)
    assert choose.choose_installer().name == chosen


def test_an_environment_without_pip_and_uv_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment_of("version", tmp_path, monkeypatch, uv=False, pip=False)
    with pytest.raises(MissingRequirementError, match="has no pip, and uv was not found") as caught:
        choose.choose_installer()
    assert caught.value.hint == f"{tmp_path / 'python'} -m ensurepip, or install uv"


def test_every_installed_distribution_is_pinned_except_what_may_change(fake_distribution: Any) -> None:
    fake_distribution("acme-odd", "not a version")
    pins = constraints(installed().values(), ["Click"])
    assert pins["torch"].startswith("torch==") and pins["transformers"].startswith("transformers==")
    assert "click" not in pins and "acme-odd" not in pins


def test_a_name_that_may_change_must_be_installed(cli: Cli) -> None:
    result = cli("plugins", "install", "acme-rows", "--allow-change", "trch", "--offline", "--dry-run")
    assert result.code == 2 and "--allow-change trch: it is not installed" in result.stderr
    assert "did you mean 'torch'?" in result.stderr


@pytest.mark.parametrize("command", [("install", "gptq"), ("upgrade",), ("uninstall", "gptq")])
def test_nothing_is_changed_without_confirmation(cli: Cli, command: tuple[str, ...]) -> None:
    for more in ((), ("--json",)):
        result = cli("plugins", *command, *more)
        assert (result.code, result.stdout) == (2, "")
        assert "needs confirmation" in result.stderr and "--yes" in result.stderr


def test_sources_are_checked(cli: Cli) -> None:
    missing = cli("plugins", "install", "x", "--find-links", "nowhere", "--dry-run")
    assert missing.code == 2 and "--find-links nowhere does not exist" in missing.stderr
    both = cli("plugins", "install", "x", "--offline", "--index-url", "https://example.org", "--dry-run")
    assert both.code == 2 and "--offline uses no package index" in both.stderr


# ------------------------------------------------------------------------------------------------- uninstall, upgrade


def dependent(fake_distribution: Any, name: str, *requires: str, plugin: bool = False) -> None:
    points = {name: f"{name}_hooks"} if plugin else {}
    site = fake_distribution(name, "1.0", {}, points)
    about = site / f"{name.replace('-', '_')}-1.0.dist-info" / "METADATA"
    about.write_text(about.read_text() + "".join(f"Requires-Dist: {r}\n" for r in requires))


def test_what_only_the_removed_plugin_requires_stays_and_is_named(fake_distribution: Any) -> None:
    dependent(fake_distribution, "acme", "kernel", "shared", "torch", "chosen", plugin=True)
    dependent(fake_distribution, "kernel", "deep", 'extra-only; extra == "x"')
    dependent(fake_distribution, "deep", "kernel")
    dependent(fake_distribution, "shared")
    dependent(fake_distribution, "other", "shared", plugin=True)
    dependent(fake_distribution, "extra-only")
    dependent(fake_distribution, "chosen")
    chosen = next(Path(p) for p in sys.path if p.endswith("site/chosen"))
    (chosen / "chosen-1.0.dist-info" / "REQUESTED").touch()
    assert only_required_by({"acme"}, installed()) == {"kernel", "deep", "extra-only"}
    assert only_required_by({"acme", "other"}, installed()) == {"kernel", "deep", "extra-only", "shared"}


@pytest.mark.parametrize(
    ("name", "said", "hint"),
    [
        ("torch", r"torch \S+ is not a plugin", "pip uninstall torch"),
        ("smollm3-finetune", "is not a plugin", "pip uninstall smollm3-finetune"),
        ("acne", "no plugin named 'acne' is installed", "did you mean 'acme'?"),
    ],
)
def test_only_plugins_are_uninstalled(fake_distribution: Any, name: str, said: str, hint: str) -> None:
    dependent(fake_distribution, "acme", plugin=True)
    dependent(fake_distribution, "smollm3-finetune")
    with pytest.raises(ConfigError, match=said) as caught:
        installed_plugin(name, installed(), embedded_index())
    assert caught.value.hint == hint


def test_a_plugin_of_another_directory_is_neither_uninstalled_nor_upgraded(cli: Cli, fake_distribution: Any) -> None:
    dependent(fake_distribution, "acme", plugin=True)
    for command in ("uninstall", "upgrade"):
        result = cli("plugins", command, "acme", "--yes")
        assert result.code == 2 and "which does not belong to this environment" in result.stderr
        assert "PYTHONPATH" in result.stderr


def test_a_plugin_of_a_directory_is_left_out_of_an_upgrade_unless_a_source_is_named(fake_distribution: Any) -> None:
    dependent(fake_distribution, "acme", plugin=True)
    place = next(Path(p) for p in sys.path if p.endswith("site/acme"))
    (place / "acme-1.0.dist-info" / "direct_url.json").write_text('{"url": "file:///nowhere", "dir_info": {}}')
    found = {n: d for n, d in installed().items() if n == "acme"}
    requests, left = upgrades((), found, embedded_index(), False)
    assert requests == [] and "acme" in left


def test_an_upgrade_never_takes_a_name_that_may_be_anybodys_from_the_default_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_distribution: Any
) -> None:
    """A plugin that came from a folder of wheels looks as if it had come from a package index."""
    dependent(fake_distribution, "smollm3-quanto", plugin=True)
    monkeypatch.setattr("smollm3_finetune.installing.environment.InstalledDistribution.is_outside", False)
    found = {n: d for n, d in installed().items() if n == "smollm3-quanto"}
    requests, left = upgrades((), found, embedded_index(), False)
    assert requests == [] and "may be anybody's on a package index" in left["smollm3-quanto"]
    for version in ("0.9", "1.1"):
        write_wheel(tmp_path, "smollm3-quanto", version, {"q.py": ""}, points={"smollm3-quanto": "q"})
    (request,), left = upgrades((), found, embedded_index(), True, False, (tmp_path,))
    assert (request.argument, left) == ((str(tmp_path / "smollm3_quanto-1.1-py3-none-any.whl"),), {})
    (tmp_path / "smollm3_quanto-1.1-py3-none-any.whl").unlink()
    with pytest.raises(ConfigError, match="has no newer file in"):
        upgrades(("quanto",), found, embedded_index(), True, False, (tmp_path,))
    (request,), left = upgrades((), found, embedded_index(), True, True)
    assert request.argument == ("smollm3-quanto",)


# -------------------------------------------------------------------------------------------- an installer of the test


class Recorded:
    """An installer whose answers the test states, and which writes what it installs."""

    name = "pip"

    def __init__(self, *resolved: Resolved, site: Path | None = None, stops: bool = False) -> None:
        self.resolved, self.site, self.stops, self.removed = list(resolved), site, stops, list[str]()

    def resolve(self, wanted: Any, pins: Any, sources: Sources, upgrade: Any = ()) -> list[Resolved]:
        return self.resolved

    def stage(self, wanted: Any, sources: Sources, folder: Path) -> None:
        for (text,) in wanted:
            name, _, version = text.partition("==")
            write_wheel(folder, name, version, {f"{name}.py": ""}, points={name: name})

    def install(self, wanted: Any, pins: Any, sources: Sources, folder: Path, builds: bool) -> None:
        assert self.site is not None
        for one in self.resolved:
            about = self.site / f"{one.name}-{one.version}.dist-info"
            about.mkdir(parents=True)
            (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {one.name}\nVersion: {one.version}\n")
            if self.stops:
                raise stopping.Stop("SIGINT", 130)

    def uninstall(self, names: Any) -> None:
        self.removed += names

    def shown(self, *arguments: str) -> str:
        return " ".join(("pip", *arguments))


def planned(installer: Recorded, *texts: str, allow: tuple[str, ...] = ()) -> Any:
    found = installed()
    requests = Parser(index=embedded_index(), found=found, has_source=True).parse_all(texts)
    return make_plan(requests, installer, Sources(), found, embedded_index(), allow)


PLUGIN = Resolved(name="acme", version="1.0", requires=("smollm3-finetune",))


def test_a_replacement_that_constraints_do_not_reach_is_refused() -> None:
    """Such as a requirement with an address."""
    torch = Resolved(name="torch", version="1.9")
    with pytest.raises(IncompatibleError, match=r"would replace torch \S+ with 1.9") as caught:
        planned(Recorded(PLUGIN, torch), "acme")
    assert caught.value.hint == "to replace it anyway: --allow-change torch"
    plan = planned(Recorded(PLUGIN, torch), "acme", allow=("Torch",))
    assert [(c.name, c.requested) for c in plan.changes] == [("acme", True), ("torch", False)]


def test_core_is_never_replaced(fake_distribution: Any) -> None:
    dependent(fake_distribution, "smollm3-finetune")
    with pytest.raises(IncompatibleError, match="would replace smollm3-finetune itself"):
        planned(Recorded(PLUGIN, Resolved(name="smollm3-finetune", version="9")), "acme", allow=("smollm3-finetune",))


def test_a_stop_says_what_was_installed_until_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    other = Resolved(name="zeta", version="1.0", requires=())
    with pytest.raises(stopping.Stop) as caught:
        install(planned(Recorded(PLUGIN, other, site=site, stops=True), "acme"))
    assert caught.value.hint == ("acme was installed; to remove it: pip uninstall acme; to continue: the same command")


def test_a_distribution_that_turns_out_not_to_be_a_plugin_is_uninstalled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uv does not show the requirements of what it would install."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    installer = Recorded(PLUGIN, Resolved(name="zeta", version="1.0"), site=site)
    with pytest.raises(
        SmolLM3Error, match=r"acme 1.0 is not a plugin of smollm3: .* acme, zeta were uninstalled again"
    ):
        install(planned(installer, "acme"))
    assert installer.removed == ["acme", "zeta"]


def test_a_second_command_does_not_change_the_environment_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    plan = planned(Recorded(PLUGIN, site=site), "acme")

    class Nested(Recorded):
        def stage(self, wanted: Any, sources: Sources, folder: Path) -> None:
            install(plan)

    with pytest.raises(ConfigError, match="another command changes the plugins of this environment"):
        install(planned(Nested(PLUGIN, site=site), "acme"))


def test_uninstalling_waits_for_no_other_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_distribution: Any
) -> None:
    dependent(fake_distribution, "zeta", plugin=True)
    site = tmp_path / "place"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    removal = Removal(distributions=(installed()["zeta"],), stays=(), needed_by={}, installer=Recorded())

    class Nested(Recorded):
        def stage(self, wanted: Any, sources: Sources, folder: Path) -> None:
            uninstall(removal)

    with pytest.raises(ConfigError, match="another command changes the plugins of this environment"):
        install(planned(Nested(PLUGIN, site=site), "acme"))


def test_a_plugin_that_would_replace_the_program_of_another_is_refused(tmp_path: Path, fake_distribution: Any) -> None:
    """pip replaces `smollm3` without a word, and deletes it when the plugin is uninstalled."""
    site = fake_distribution("acme-tool", "1.0", {})
    (site / "acme_tool-1.0.dist-info" / "entry_points.txt").write_text("[console_scripts]\nacme-run = acme:main\n")
    wheel = write_wheel(tmp_path, "acme", "1.0", {"acme.py": ""}, points={"acme": "acme"})
    assert overwritten(of_wheel(wheel), list(installed().values())) is None
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("acme-1.0.data/scripts/acme-run", "#!python\n")
    contents = of_wheel(wheel)
    assert contents.commands == {"acme-run"}
    assert overwritten(contents, list(installed().values())) == ("the program acme-run", "acme-tool")
    tool = replace(contents, name="Acme.Tool")
    assert overwritten(tool, list(installed().values())) is None  # its own


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("git+https://token@example.org/acme.git@v1", "https://example.org/acme.git"),
        ("git+https://token@example.org/acme.git", "https://****@example.org/acme.git"),
        ("git+ssh://git@example.org/acme.git", "ssh://git@example.org/acme.git"),
    ],
)
def test_an_address_with_a_token_is_recognized_among_what_is_resolved(text: str, url: str) -> None:
    plan = planned(Recorded(Resolved(name="acme", version="1.0", requires=("smollm3-finetune",), url=url)), text)
    assert [c.requested for c in plan.changes] == [True]
    assert "token" not in str(plan.changes[0].as_dict())


# ---------------------------------------------------------------------------------------------------------------- uv

UV = """#!{python}
import sys
open({log!r}, "a").write(" ".join(sys.argv[1:]) + "\\n")
print("Resolved 3 packages in 2ms\\nWould download 2 packages\\nWould install 2 packages", file=sys.stderr)
print(" - acme-rows==1.0\\n + acme-rows==1.1\\n + acme-base @ file:///wheels/acme_base-2.0.whl", file=sys.stderr)
"""


def test_the_dry_run_of_uv_is_read_and_gets_every_pin(tmp_path: Path) -> None:
    program, log = tmp_path / "uv", tmp_path / "log"
    program.write_text(UV.format(python=sys.executable, log=str(log)))
    program.chmod(0o755)
    sources = Sources(find_links=("/wheels",), offline=True)
    found = Uv(str(program)).resolve([("acme-rows",)], ["torch==2"], sources, ["acme-rows"])
    assert [(f.name, f.version, f.url) for f in found] == [
        ("acme-rows", "1.1", ""), ("acme-base", "", "file:///wheels/acme_base-2.0.whl")
    ]  # fmt: skip
    (line,) = log.read_text().splitlines()
    assert line.startswith(f"pip install --python {sys.executable} -c ")
    assert line.endswith("--dry-run --upgrade-package acme-rows --find-links /wheels --no-index acme-rows")


# ------------------------------------------------------------------------------------------------------------ checks


def test_checks_report_each_plugin_with_the_line_that_uninstalls_a_broken_one(
    fake_distribution: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    modules = {"acme_rows.hooks": HOOKS, "acme_rows.rows": ROWS, "acme_bad": "raise RuntimeError('no license')\n"}
    fake_distribution("acme-rows", "1.0", modules, {"acme": "acme_rows.hooks", "bad": "acme_bad"})
    fake_distribution("acme-exit", "2.0", {"acme_exit": "import os\nos._exit(3)\n"}, {"exit": "acme_exit"})
    found = {one.plugin: one for one in examined(["acme-rows", "acme-exit"])}
    assert found["acme"].ok and found["acme"].components == ("formatter acme-rows",)
    assert found["bad"].broken and found["bad"].failed == ("RuntimeError: no license",)
    assert found["exit"].broken and "Python ended with exit code 3" in found["exit"].failed[0]
    print_checks(list(found.values()))
    shown = capsys.readouterr().out
    assert "acme-exit 2.0: importing it or calling its hooks: Python ended with exit code 3" in shown
    assert "  to uninstall it: smollm3 plugins uninstall acme-exit\n" in shown
    assert "to use acme: --formatter acme-rows\n" in shown and "to use bad" not in shown


def test_several_names_that_are_wrong_are_reported_together(cli: Cli) -> None:
    result = cli("plugins", "uninstall", "acne", "torch", "--dry-run")
    assert result.code == 2 and result.stderr.count("error: ") == 2
