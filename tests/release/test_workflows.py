"""The release workflow: what may be published, in which order, with which rights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from distributions import CORE, ROOT, plugins
from ruamel.yaml import YAML
from try_published import published_command

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SIGNS = {"provenance", "plugins", "core"}


@pytest.fixture(scope="module")
def jobs() -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_action_has_the_hash_of_a_commit(file: Path) -> None:
    used = re.findall(r"uses: (\S+)(?: # (\S+))?$", file.read_text(), re.MULTILINE)
    assert used
    for action, tag in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r"v\d+\.\d+\.\d+", tag), f"{action} has no version in a comment"


def test_the_site_is_published_for_releases_only() -> None:
    """`versions.py` refuses a pre-release, whose tag starts the release workflow too."""
    (pattern,) = YAML(typ="safe").load(ROOT / ".github" / "workflows" / "docs.yml")["on"]["push"]["tags"]
    literal_dots = pattern.replace(".", r"\.")
    assert re.fullmatch(literal_dots, "v0.12.0") and not re.fullmatch(literal_dots, "v0.2.0rc1")


def test_every_session_that_tests_plugins_of_others_runs_weekly() -> None:
    jobs = YAML(typ="safe").load(ROOT / ".github" / "workflows" / "newest.yml")["jobs"]
    runs = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    assert {"nox -s gallery", "nox -s long", "nox -s lint_release dist published"} <= {*runs}


def test_core_is_published_after_every_plugin(jobs: dict[str, Any]) -> None:
    assert set(jobs["plugins"]["needs"]) >= {"build", "provenance"}
    assert "plugins" in jobs["core"]["needs"]
    assert "published" in jobs["provenance"]["needs"]
    assert jobs["published"]["needs"] == "build"
    assert "needs.plugins.result == 'success'" in jobs["core"]["if"]


def test_only_jobs_that_sign_get_a_token(jobs: dict[str, Any]) -> None:
    assert {name for name, job in jobs.items() if "id-token" in job["permissions"]} == SIGNS
    assert {name for name, job in jobs.items() if job["permissions"].get("contents") == "write"} == {"notes"}
    for name in SIGNS:  # they run no code of this repository
        steps = jobs[name]["steps"]
        assert not any("actions/checkout" in step.get("uses", "") for step in steps)
        assert all(step.get("run", "mkdir").startswith("mkdir") for step in steps)


def test_each_distribution_has_an_environment_of_its_own(jobs: dict[str, Any]) -> None:
    assert jobs["plugins"]["environment"]["name"] == "${{ matrix.distribution }}"
    assert jobs["core"]["environment"]["name"] == CORE


def test_the_release_page_names_every_distribution() -> None:
    text = (ROOT / "docs" / "releasing.md").read_text()
    for name in (CORE, *(p.name for p in plugins())):
        assert f"`{name}`" in text, name


def test_the_readme_has_the_first_command_in_its_published_form() -> None:
    assert published_command() == "pip install 'smollm3-finetune[all]' && smollm3 train"
