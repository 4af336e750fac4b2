"""The job script of a run, from a template."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smollm3_finetune.api import ConfigError, Launch
from smollm3_slurm import processes, processes_per_node

HERE = Path(__file__).parent
PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")
OF_TEMPLATE = ("sbatch", "start")
"""The placeholders of a template: the options of sbatch, and what starts the processes."""


def job_script(options: Any, launch: Launch) -> str:
    """What sbatch gets: a shell script whose first lines are options."""
    text = (HERE / "template.sh").read_text(encoding="utf-8")
    if options.template is not None:
        text = read_template(Path(options.template).expanduser())
    start = _filled(
        (HERE / "start.sh").read_text(encoding="utf-8"),
        {
            "run": shlex.quote(str(launch.run)),
            "port": str(options.port) if options.port else "$((10000 + SLURM_JOB_ID % 20000))",
            "srun": shlex.join(_srun(options)),
            "command": shlex.join(launch.command),
            "requeue": "yes" if options.requeue else "no",
        },
    )
    before = [*options.setup, *(f"export {name}={shlex.quote(value)}" for name, value in launch.environment.items())]
    start = "".join(f"{line}\n" for line in before) + start
    return _filled(text, {"sbatch": "\n".join(f"#SBATCH {line}" for line in _lines(options)), "start": start})


def read_template(path: Path) -> str:
    """A user's template. Raises ConfigError if it cannot be read, or would not start the processes."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not text in UTF-8"
        raise ConfigError(f"launcher.template: {path} cannot be read: {reason}", hint="omit it") from e
    found = PLACEHOLDER.findall(text)
    if unknown := next((name for name in found if name not in OF_TEMPLATE), None):
        raise ConfigError(
            f"launcher.template: {path} has the unknown placeholder {{{{{unknown}}}}}",
            hint="the placeholders are {{sbatch}} and {{start}}",
        )
    if missing := next((name for name in OF_TEMPLATE if found.count(name) != 1), None):
        raise ConfigError(
            f"launcher.template: {path} must have the placeholder {{{{{missing}}}}} once",
            hint="{{sbatch}} stands for the options of sbatch, {{start}} for what starts the processes",
        )
    if not text.startswith("#!"):
        raise ConfigError(
            f"launcher.template: the first line of {path} must name a shell", hint="begin it with #!/bin/bash"
        )
    return text


def _filled(text: str, values: Mapping[str, str]) -> str:
    return PLACEHOLDER.sub(lambda found: values[found[1]], text)


def _lines(options: Any) -> list[str]:
    """The options of sbatch that do not depend on the run; paths are arguments of sbatch."""
    wanted = {
        "nodes": options.nodes,
        "ntasks-per-node": processes_per_node(options),
        "gpus-per-node": options.gpus_per_node,
        "cpus-per-task": options.cpus_per_task,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "time": options.time,
        "mem": options.memory,
    }
    own = [f"--{name}={_quoted(str(value))}" for name, value in wanted.items() if value is not None]
    own += ["--open-mode=append", f"--signal=USR1@{options.signal_seconds}"]
    return [*own, "--requeue" if options.requeue else "--no-requeue", *options.sbatch]


def _quoted(value: str) -> str:
    """A value in a line of options: sbatch removes quotes and backslashes as a shell does, but expands nothing."""
    if re.fullmatch(r"[^\s\"'\\#]+", value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _srun(options: Any) -> list[str]:
    """srun starts one task for each process, and ends all of them if one fails."""
    more = [f"--cpus-per-task={options.cpus_per_task}"] if options.cpus_per_task else []
    return ["srun", f"--ntasks={processes(options)}", "--kill-on-bad-exit=1", *more]
