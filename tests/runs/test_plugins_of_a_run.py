"""A run used again with its plugins: which options were set, other versions, moved files, a file made a package."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune import load_model
from smollm3_finetune.api import AdapterSpec
from smollm3_finetune.components.kinds import ADAPTER
from smollm3_finetune.components.recorded import compare_recorded, keeps_meaning
from smollm3_finetune.components.registry import RegisteredComponent
from smollm3_finetune.config.yaml12 import dump_yaml, read_yaml
from smollm3_finetune.errors import IncompatibleError
from smollm3_finetune.files.json import read_json

Cli = Callable[..., Any]
SCALE = (Path(__file__).parents[1] / "out_of_tree" / "scale_adapter.py").read_text()
SAYS = (
    SCALE.replace("api import (", "api import (\n    given,")
    .replace(
        "        import torch\n",
        '        ctx.progress.say(f"given: {sorted(given(self.options))}")\n        import torch\n',
    )
    .replace('ends with this.")', 'ends with this.")\n    spare: int = option(3, "Nothing.")')
)
"""The example adapter, which also says which of its options were set."""
assert SAYS.count("given") == 3
TRAIN = (
    "train", "--adapter", "scale", "--set", "data.limit=20", "--set", "train.sample_tokens=1", "--set",
    "data.max_length=64", "--set", "train.save_every=1",
)  # fmt: skip
RUN, ADAPTER_PATH = "run", "run/adapter"


def adapter(module: str, source: str = SAYS, **fields: str) -> str:
    """The source of the adapter as the module `module`, with more fields of its descriptor."""
    more = "".join(f"            {k}={v},\n" for k, v in fields.items())
    return source.replace("scale_adapter:", f"{module}:").replace("            api=2,\n", f"{more}            api=2,\n")


def generate(cli: Cli, *args: Any) -> Any:
    return cli("generate", RUN, "--prompt", "Hi", "--max-new-tokens", "1", *args)


def commands(*plugins: str) -> dict[str, tuple[str, ...]]:
    """Every command that uses a run or its adapter."""
    return {
        "generate": ("generate", RUN, "--prompt", "Hi", "--max-new-tokens", "1", *plugins),
        "merge": ("merge", RUN, "--output", "merged", *plugins),
        "adapter": ("generate", "tiny", "--adapter-path", ADAPTER_PATH, "--prompt", "Hi", "--max-new-tokens", "1",
                    *plugins),
        "merged adapter": ("merge", "tiny", "--adapter-path", ADAPTER_PATH, "--output", "merged", *plugins),
        "resume": ("train", "--resume", RUN, "--max-steps", "2", *plugins),
    }  # fmt: skip


def test_a_run_of_a_plugin_file_is_used_wherever_the_file_is_and_after_it_became_a_package(
    cli: Cli, plugin_file: Callable[[str, str], Path], fake_distribution: Any, tmp_path: Path
) -> None:
    file = plugin_file("my_scale", adapter("my_scale"))
    options = ("--adapter-opt", "layers=o_proj", "--max-steps", "1", "--output", RUN)
    first = cli(*TRAIN, *options, "-p", file)
    assert first.code == 0, first.stderr
    # the default value was set on the command line: every later command reports it, and no other option
    only = "given: ['layers']"
    assert only in first.stderr
    assert read_yaml(Path(RUN, "run.yaml"))[0]["given"] == ["adapter.layers"]
    assert read_json(Path(ADAPTER_PATH, "smollm3.json"))["given"]["adapter"] == ["layers"]
    for name, command in commands("-p", str(file)).items():
        done = cli(*command)
        assert (done.code, done.stderr.count(only)) == (0, done.stderr.count("given: ")), (name, done.stderr)
        assert only in done.stderr, name
        shutil.rmtree("merged", ignore_errors=True)
    again = ("train", "--config", f"{RUN}/run.yaml", "--output", "again", "-p", file, "--dry-run", "--json")
    for more, names in ((), ["adapter.layers"]), (("--adapter-opt", "spare=3"), ["adapter.layers", "adapter.spare"]):
        assert json.loads(cli(*again, *more).stdout)["config"]["given"] == names

    # without the file; with another name; with another content; then wherever it is
    missing = generate(cli)
    assert (missing.code, f"the run run used the plugin file {file}" in missing.stderr) == (2, True), missing.stderr
    assert f"hint: pass it again: -p {file}" in missing.stderr
    moved = tmp_path / "elsewhere" / "my_scale.py"
    moved.parent.mkdir()
    file.rename(moved)
    gone = generate(cli)
    assert (gone.code, f"{file}, which the run run used, no longer exists" in gone.stderr) == (6, True), gone.stderr
    assert "hint: pass a copy with the same content: -p PATH/TO/my_scale.py; its SHA-256 begins with" in gone.stderr
    renamed = moved.with_name("other_name.py")
    shutil.copy(moved, renamed)
    wrong = generate(cli, "-p", renamed)
    assert (wrong.code, "other_name.py was called my_scale.py when the run run used it" in wrong.stderr) == (2, True)
    shutil.copy(moved, "my_scale.py")
    found = generate(cli)
    assert (found.code, "hint: pass it again: -p my_scale.py" in found.stderr) == (2, True), found.stderr
    file.write_text(moved.read_text() + "\nCHANGED = True\n")
    changed = generate(cli, "-p", file)
    assert (changed.code, f"the plugin file {file} has changed since the run run used it" in changed.stderr) == (
        3,
        True,
    )
    assert "hint: to use an unchanged copy: -p my_scale.py" in changed.stderr
    adapter_alone = cli(*commands("-p", str(file))["adapter"])
    assert (adapter_alone.code, "the plugin 'my_scale' has changed since it was used for" in adapter_alone.stderr) == (
        3, True,
    ), adapter_alone.stderr  # fmt: skip
    file.unlink()
    Path("my_scale.py").unlink()
    del sys.modules["my_scale"]  # another process would not have it
    there = generate(cli, "-p", moved)
    assert (there.code, only in there.stderr) == (0, True), there.stderr

    # the file becomes a package
    moved.unlink()
    site = fake_distribution("acme-scale", "1.0", {"acme_scale": adapter("acme_scale")}, {"acme": "acme_scale"})
    unsaid = generate(cli)
    assert (unsaid.code, "no longer exists" in unsaid.stderr) == (6, True), unsaid.stderr
    replaces = '("my_scale:scale",)'
    (site / "acme_scale.py").write_text(adapter("acme_scale", replaces=replaces), encoding="utf-8")
    del sys.modules["acme_scale"]
    for name in ("generate", "merge", "resume"):
        done = cli(*("3" if part == "2" else part for part in commands()[name]))
        assert (done.code, only in done.stderr) == (0, True), (name, done.stderr)
        made = "the run" if name == "resume" else "the adapter run/adapter"
        assert f"{made} was made with my_scale 0+" in done.stderr
        assert ", now acme-scale 1.0" in done.stderr
    assert read_yaml(Path(RUN, "run.yaml"))[0]["adapter"]["name"] == "acme-scale:scale"
    assert generate(cli).code == 0


def test_every_command_refuses_a_run_of_another_major_version(cli: Cli, fake_distribution: Any) -> None:
    site = fake_distribution("acme-scale", "1.2", {"acme_scale": adapter("acme_scale")}, {"acme": "acme_scale"})
    assert cli(*TRAIN, "--max-steps", "1", "--output", RUN).code == 0

    def install(version: str, source: str) -> None:
        about = next(site.glob("*.dist-info"))
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-scale\nVersion: {version}\n")
        about.rename(about.with_name(f"acme_scale-{version}.dist-info"))
        (site / "acme_scale.py").write_text(source)
        sys.modules.pop("acme_scale", None)
        importlib.invalidate_caches()

    install("1.3.1", adapter("acme_scale"))
    for name, command in commands().items():
        done = cli(*command)
        assert done.code == 0, (name, done.stderr)
        made = "the run" if name == "resume" else "the adapter run/adapter"
        assert done.stderr.count("was made with acme-scale") == 1, (name, done.stderr)
        assert f"{made} was made with acme-scale 1.2, now 1.3.1" in done.stderr
        shutil.rmtree("merged", ignore_errors=True)
    # the new version has other options too: the reason is the version
    install("2.0", adapter("acme_scale").replace("spare:", "extra:").replace("layers:", "targets:"))
    for name, command in commands().items():
        done = cli(*command)
        assert (done.code, done.stdout) == (3, ""), (name, done.stderr)
        assert "but 2.0 is installed" in done.stderr, (name, done.stderr)
        assert "hint: smollm3 plugins install acme-scale==1." in done.stderr, (name, done.stderr)
        assert "targets" not in done.stderr
        assert not Path("merged").exists()
    with pytest.raises(IncompatibleError, match=r"the adapter run/adapter was made with acme-scale 1\.\S+, but 2\.0"):
        load_model("tiny", adapter_path=ADAPTER_PATH)
    install("2.0", adapter("acme_scale", same_since='"1.2"'))
    assert generate(cli).code == 0


def component(version: str, since: str = "", *, file: bool = False) -> RegisteredComponent:
    spec = AdapterSpec(
        name="scale", summary="s", factory="a:B", same_since=since, replaces=("my_scale:scale", "old-dist:scale"), api=2
    )
    return RegisteredComponent(
        kind=ADAPTER,
        spec=spec,
        distribution="acme",
        version=version,
        plugin="acme",
        origin="mine.py" if file else "entry point",
    )


@pytest.mark.parametrize(
    ("old", "now", "since", "same"),
    [
        ("1.2", "1.9.1", "", True),
        ("1.9", "1.2", "", True),
        ("1.9", "2.0", "", False),
        ("2.0", "1.9", "", False),
        ("0.3.0", "0.3.9", "", True),
        ("0.3.0", "0.4.0", "", False),
        ("0.9", "1.0", "", False),
        ("1.0rc1", "1.0", "", True),
        ("1!1.0", "1.0", "", False),
        ("0.3.0", "0.4.0", "0.3", True),
        ("0.2.9", "0.4.0", "0.3", False),
        ("1.0", "1.4", "1.2", False),
        ("1.5", "1.4", "1.2", True),
        ("2.0", "1.4", "1.2", False),
        ("0+12345678", "0+87654321", "", True),  # a module of -p
        ("0+12345678", "0.1", "", False),
        ("unknown", "unknown2", "", False),
    ],
)
def test_versions_of_the_same_meaning(old: str, now: str, since: str, same: bool) -> None:
    assert keeps_meaning(old, component(now, since)) is same


def test_recorded_versions_are_compared_by_distribution_and_former_distribution() -> None:
    one = component("3.0")
    assert compare_recorded({"acme": "3.0", "other": "1"}, [one], "the run") == []
    assert compare_recorded({"other": "1"}, [one], "the run") == []
    assert compare_recorded({"old-dist": "1.0"}, [one, one], "the run") == [
        "the run was made with old-dist 1.0, now acme 3.0"
    ]
    with pytest.raises(IncompatibleError, match="'acme' has changed since it was used for the run"):
        compare_recorded({"acme": "0+12345678"}, [component("0+87654321", file=True)], "the run")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"replaces": '"my_scale:scale"'}, "replaces must be a tuple of strings"),
        ({"replaces": '("my_scale",)'}, "replaces must hold names such as 'my_plugin:scale', but has 'my_scale'"),
        ({"same_since": "1.2"}, "same_since must be a version such as '1.2', but is 1.2"),
    ],
)
def test_wrong_fields_of_a_descriptor_are_named(
    cli: Cli, plugin_file: Callable[[str, str], Path], field: dict[str, str], message: str
) -> None:
    done = cli("plugins", "list", "-p", plugin_file("my_scale", adapter("my_scale", **field)))
    assert done.code == 7
    assert message in done.stderr


def test_a_run_of_an_earlier_release_has_set_what_differs_from_the_defaults(
    cli: Cli, plugin_file: Callable[[str, str], Path]
) -> None:
    file = plugin_file("my_scale", adapter("my_scale"))
    assert cli(*TRAIN, "--adapter-opt", "layers=v_proj", "--max-steps", "1", "--output", RUN, "-p", file).code == 0
    config = Path(RUN, "run.yaml")
    values, _ = read_yaml(config)
    del values["given"]
    config.write_text(dump_yaml(values))
    # a formatter of another version, whose rows have the same tokens
    versions = Path(RUN, "versions.json")
    versions.write_text(json.dumps({**read_json(versions), "rows": "rows of another version"}))
    done = cli("train", "--resume", RUN, "--max-steps", "2", "-p", file)
    assert (done.code, "given: ['layers']" in done.stderr) == (0, True), done.stderr
    versions.write_text(json.dumps({**read_json(versions), "tokens": "other tokens"}))
    done = cli("train", "--resume", RUN, "--max-steps", "3", "-p", file)
    assert (done.code, "the rows of the run run, or their rendering, have changed" in done.stderr) == (3, True)
