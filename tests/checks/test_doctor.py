"""`smollm3 doctor`: faults of a machine are found, reported and contained; secrets are not shown."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.cache.store import Cache
from smollm3_finetune.checks import doctor
from smollm3_finetune.checks.probe import Probe, run_pieces
from smollm3_finetune.components.discovery import discover
from smollm3_finetune.components.requirements import conflicts, modules_of

Cli = Callable[..., Any]
PLUGIN = """
from smollm3_finetune.api import AdapterSpec, Requires, hookimpl

@hookimpl
def smollm3_adapters():
    return [
        AdapterSpec(name="acme", summary="s", factory="acme_hooks:A", requires=Requires(
            distributions=("acme-lib>=2", "acme-gone"), accelerators=("cuda",)), api=2),
        AdapterSpec(name="easy", summary="s", factory="acme_hooks:A", api=2),
    ]
"""


def requires(site: Path, *texts: str) -> None:
    """Add requirements to a fake distribution's metadata."""
    metadata = next(site.glob("*.dist-info/METADATA"))
    metadata.write_text(metadata.read_text() + "".join(f"Requires-Dist: {t}\n" for t in texts))


def record(site: Path, *modules: str) -> None:
    """Declare the modules that a fake distribution installs."""
    next(site.glob("*.dist-info")).joinpath("top_level.txt").write_text("\n".join(modules) + "\n")


# ---------------------------------------------------------------------------------------------------- probes


def test_probes_that_crash_exit_or_hang_are_reported_and_the_others_run() -> None:
    found = run_pieces(
        {
            "good": "import json; answer = json.dumps([1])",
            "raises": "raise ImportError('no\\n  such thing')",
            "crashes": "import os; os.abort()",
            "ends": "import os; os._exit(3)",
            "exits": "raise SystemExit(4)",
            "hangs": "import time; time.sleep(600)",
            "prints": "print('{\"not\": \"ours\"}'); import os; os.write(1, b'noise\\n'); answer = 2",
            "last": "answer = 1 + 1",
        },
        seconds=5,
    )
    problems = {name: probe.problem for name, probe in found.items()}
    assert problems == {
        "good": None,
        "raises": "ImportError: no such thing",
        "crashes": "Python ended with signal SIGABRT",
        "ends": "Python ended with exit code 3",
        "exits": "SystemExit: 4",
        "hangs": "it did not finish within 5 s",
        "prints": None,
        "last": None,
    }
    assert [found[n].answer for n in ("good", "prints", "last")] == ["[1]", 2, 2]


def test_a_package_built_for_another_numpy_is_reported_though_it_only_prints() -> None:
    says = "A module that was compiled using NumPy 1.x cannot be run in NumPy 2.4.0"
    found = run_pieces(
        {"before": "answer = 1", "old": f"import sys; print({says!r}, file=sys.stderr)", "after": "answer = 1"}
    )
    assert [n for n, probe in found.items() if probe.problem] == ["old"]
    assert found["old"].problem == "it was built for numpy 1, but numpy 2 is installed"


def test_many_probes_with_much_output_do_not_block() -> None:
    found = run_pieces(
        {f"p{i}": "import sys; sys.stderr.write('x' * 100_000); answer = 'y' * 50_000" for i in range(8)}
    )
    assert {len(p.answer) for p in found.values()} == {50_000}


# ------------------------------------------------------------------------------------------------ distributions


def test_conflicts_are_found_through_all_dependencies(fake_distribution: Any) -> None:
    requires(fake_distribution("acme-top"), "acme-mid>=1", 'acme-never; python_version < "3"', "acme-opt; extra == 'x'")
    requires(fake_distribution("acme-mid", "1.5"), "acme-low<2", "acme-gone", "acme-mid", "acme-extra[fast]")
    fake_distribution("acme-low", "2.0")
    requires(fake_distribution("acme-extra", "1.0"), 'acme-quick>3; extra == "fast"', "acme-slow; extra == 'slow'")
    found = {(c.distribution, c.requirement, c.found) for c in conflicts(["acme-top"])}
    assert found == {
        ("acme-mid", "acme-low<2", "2.0"), ("acme-mid", "acme-gone", None), ("acme-extra", "acme-quick>3", None)
    }  # fmt: skip
    texts = {c.text for c in conflicts(["acme-mid"])}
    assert "acme-mid 1.5 requires acme-low<2, but acme-low 2.0 is installed" in texts
    assert conflicts(["no-such-distribution"]) == []


def test_the_module_of_a_distribution_is_the_one_named_like_it(fake_distribution: Any) -> None:
    from smollm3_finetune.components.requirements import _OWNERS

    site = fake_distribution("acme-lib", "1", {"acme_lib": "", "tests": "", "aaa": ""})
    record(site, "aaa", "acme_lib", "tests", "_acme")
    _OWNERS.clear()
    assert modules_of("Acme.Lib")[0] == "acme_lib"
    assert modules_of("no-such-distribution") == []
    _OWNERS.clear()


# ----------------------------------------------------------------------------------------------- the whole command


def test_the_whole_report(run_cli: Cli, fake_distribution: Any) -> None:
    """A real look at this machine, with a plugin that needs what is not there and a package that crashes."""
    others = ",".join(importlib.metadata.entry_points(group="smollm3_finetune").names)
    lib = fake_distribution("acme-lib", "1.0", {"acme_lib": "import os; os.abort()\n"})
    record(lib, "acme_lib")
    requires(lib, "acme-base>=3")
    requires(fake_distribution("acme", "1.0", {"acme_hooks": PLUGIN}, {"acme": "acme_hooks"}), "acme-lib")
    fake_distribution("bad", "1.0", {"bad_hooks": "raise RuntimeError('no license')\n"}, {"bad": "bad_hooks"})
    result = run_cli("doctor", "--json", "--device", "cpu", HF_TOKEN="hf_secret", OMP_NUM_THREADS="2",
                     SMOLLM3_DISABLE_PLUGINS=others)  # fmt: skip
    assert result.code == 0, result.stderr
    assert "hf_secret" not in result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["possible"] is True
    assert report["environment"]["HF_TOKEN"] == "(set, not shown)"
    assert report["environment"]["OMP_NUM_THREADS"] == "2"
    assert report["devices"][0]["name"] == "cpu" and report["devices"][0]["total"] > 0
    for name in ("torch", "transformers", "safetensors", "acme", "acme-lib"):
        assert report["versions"][name], name
    assert report["versions"]["acme-gone"] is None
    assert report["cache"]["root"] == os.environ["SMOLLM3_CACHE"]
    wrong = {f["check"]: f for f in report["findings"] if not f["ok"]}
    assert "signal SIGABRT" in wrong["acme-lib 1.0 can be imported"]["found"]
    assert "acme-lib 1.0 requires acme-base>=3" in wrong["its requirements are met"]["found"]
    assert "no license" in wrong["the plugin bad (bad 1.0) works"]["found"]
    assert wrong["the plugin bad (bad 1.0) works"]["fix"] == "smollm3 plugins check bad"
    unusable = [f["found"] for f in report["findings"] if f["check"] == "adapter 'acme' can be used on cpu"]
    assert {part for text in unusable for part in ("acme-lib>=2", "acme-gone", "cuda only") if part in text} == {
        "acme-lib>=2", "acme-gone", "cuda only"
    }  # fmt: skip
    assert not any("easy" in check for check in wrong)
    assert not any(f["serious"] for f in wrong.values())


# -------------------------------------------------------------------------------------- parts, without the probes


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Probe]:
    """How pieces go, by their names; what is not named here goes well. Nothing is imported."""
    told: dict[str, Probe] = {}

    def run(pieces: dict[str, str], seconds: float = 0) -> dict[str, Probe]:
        good = Probe(answer={"torch": "2", "devices": []})
        return {name: told.get(name, good) for name in pieces}

    monkeypatch.setattr(doctor, "run_pieces", run)
    return told


def problems(cli: Cli, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    result = cli("doctor", "--no-plugins", "--json", *arguments)
    report = json.loads(result.stdout)
    assert report["possible"] is (result.code == 0)
    return result.code, {f["check"]: f for f in report["findings"] if not f["ok"]}


def test_without_torch_or_transformers_no_run_is_possible(cli: Cli, probes: dict[str, Probe]) -> None:
    probes["devices"] = Probe(problem="Python ended with signal SIGILL")
    code, wrong = problems(cli)
    assert (code, wrong["torch works"]["found"]) == (1, "Python ended with signal SIGILL")
    probes.clear()
    probes["import transformers"] = Probe(problem="ImportError: numpy.core")
    code, wrong = problems(cli)
    assert code == 1
    assert next(f for c, f in wrong.items() if c.startswith("transformers "))["serious"]
    assert "Fix the items marked ✗ first." in cli("doctor", "--no-plugins").stdout


def test_the_device_of_torch_is_used_for_the_components(
    cli: Cli, probes: dict[str, Probe], fake_distribution: Any
) -> None:
    gpu = {"name": "cuda:0", "title": "A GPU", "free": 1e9, "total": 2e9, "bfloat16": True}
    probes["devices"] = Probe(answer={"torch": "2", "devices": [gpu]})
    fake_distribution("acme", "1.0", {"acme_hooks": PLUGIN}, {"acme": "acme_hooks"})
    shown = cli("doctor").stdout
    assert "cuda:0: A GPU, 1.0 GB of 2.0 GB free" in shown
    assert "torch works, on cpu, cuda:0" in shown
    assert "adapter 'acme' can be used on cuda:0: adapter 'acme' requires acme-gone" in shown
    assert "cuda only" not in shown
    probes["devices"] = Probe(answer={"torch": "2", "devices": [], "note": "built for CUDA 13 but finds no device"})
    code, wrong = problems(cli)
    assert (code, "CUDA 13" in wrong["torch finds the GPU that it was built for"]["found"]) == (0, True)


def test_a_known_problem_is_checked_only_if_its_packages_are_installed(
    cli: Cli, probes: dict[str, Probe], fake_distribution: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known = tmp_path / "known.json"
    known.write_text(json.dumps([
        {"installed": ["acme-lib"], "needs": ["acme-gone"], "says": "acme-lib imports it undeclared"},
        {"installed": ["acme-lib"], "python": "import acme_lib.old", "says": "too old", "fix": "pip install -U acme"},
        {"installed": ["acme-lib", "acme-absent"], "python": "1 / 0", "says": "never asked"},
    ]))  # fmt: skip
    monkeypatch.setattr(doctor, "KNOWN", known)
    fake_distribution("acme-lib", "1.0")
    probes["known 1"] = Probe(problem="ImportError: torch 3")
    report = doctor.examine(discover())
    found = [f for f in report.findings if f.check == "acme-lib 1.0: no known problem"]
    assert [f.ok for f in found] == [False, False]
    assert found[0].found == "acme-lib imports it undeclared (missing: acme-gone)"
    assert found[0].fix == "pip install acme-gone"
    assert (found[1].found, found[1].fix) == ("too old (ImportError: torch 3)", "pip install -U acme")
    assert report.possible


def test_the_known_problems_are_well_formed() -> None:
    for problem in json.loads(doctor.KNOWN.read_text(encoding="utf-8")):
        assert problem["installed"] and problem["says"]
        assert ("python" in problem and "fix" in problem) or problem["needs"]
        compile(problem.get("python", ""), "known_problems.json", "exec")


def test_a_cache_that_cannot_be_written_is_an_error(
    cli: Cli, probes: dict[str, Probe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SMOLLM3_CACHE", str(tmp_path / "file"))
    code, wrong = problems(cli)
    (check,) = (c for c in wrong if c.startswith("the cache "))
    assert (code, "SMOLLM3_CACHE=DIR" in wrong[check]["fix"]) == (1, True)


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME"])
def test_a_cache_that_cannot_be_accessed_is_reported(
    cli: Cli, probes: dict[str, Probe], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("SMOLLM3_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, f"/{'x' * 300}")
    code, wrong = problems(cli)
    check = wrong["the cache can be read"]
    assert (code, "SMOLLM3_CACHE=DIR" in check["fix"]) == (1, True)
    assert check["found"].endswith("cannot be accessed: File name too long")
    assert "\n  cannot be accessed\n" in cli("doctor", "--no-plugins").stdout


def test_the_cache_size_and_a_full_disk_are_reported(
    cli: Cli, probes: dict[str, Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(Path(os.environ["SMOLLM3_CACHE"]))
    cache.get_or_build("gguf", {"k": 1}, lambda out: (out / "part").write_bytes(b"x" * 3000) and None)
    shown = cli("doctor", "--no-plugins").stdout
    assert "1 entry, 3.0 kB" in shown
    monkeypatch.setattr(doctor, "LOW_DISK", 1e30)
    code, wrong = problems(cli)
    assert (code, "smollm3 cache clean" in wrong["the disk of the cache has enough space"]["fix"]) == (0, True)


@pytest.mark.parametrize(
    ("name", "value", "check", "code"),
    [
        ("WORLD_SIZE", "two", "WORLD_SIZE is a number", 1),
        ("OMP_NUM_THREADS", "all", "OMP_NUM_THREADS is a number", 0),
        ("WORLD_SIZE", "4", "no launcher variables are left over", 0),
    ],
)
def test_variables_that_break_runs_are_reported(
    cli: Cli, probes: dict[str, Probe], monkeypatch: pytest.MonkeyPatch, name: str, value: str, check: str, code: int
) -> None:
    assert check not in problems(cli)[1]
    monkeypatch.setenv(name, value)
    ended, wrong = problems(cli)
    assert (ended, value in wrong[check]["found"]) == (code, True)


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_SECRET_KEY", "SMOLLM3_PASSWORD"])
def test_no_secret_is_ever_shown(
    cli: Cli, probes: dict[str, Probe], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    shown = cli("doctor", "--no-plugins").stdout
    assert "s3cret" not in shown
    assert "TOKENIZERS_PARALLELISM=false" in shown


def test_a_wrong_device_is_an_error(cli: Cli) -> None:
    result = cli("doctor", "--device", "gpu")
    assert (result.code, "did you mean 'cuda'? Without" in result.stderr) == (2, True)


def test_a_broken_plugin_file_is_reported(cli: Cli, probes: dict[str, Probe], isolated: Path) -> None:
    Path("broken.py").write_text("import no_such_module_at_all")
    done = cli("doctor", "-p", "broken.py", "--json")
    findings = [f for f in json.loads(done.stdout)["findings"] if not f["ok"]]
    assert any("no_such_module_at_all" in f["found"] for f in findings)
    assert done.code == 1
