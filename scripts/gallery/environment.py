"""An environment for one plugin, over the running one: its wheel, and requirements that are not installed yet."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gallery.plugins import EXAMPLES, ROOT, Plugin

LIMIT_S = 1800
"""The longest that a command may take."""


@dataclass(frozen=True)
class Outcome:
    code: int
    seconds: float
    output: str

    @property
    def reason(self) -> str:
        """The line of the output that states the error, or the last one."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith(("error:", "gallery:"))]
        return (errors or lines or [f"exit code {self.code}"])[-1 if not errors else 0]


class Environment:
    """Sees the packages of the running environment, but of the plugins in examples/plugins only those installed in it.

    Plugins that are tested one after the other do not see each other.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        venv.create(path, with_pip=False, symlinks=True)
        self.python = path / "bin" / "python"
        (site,) = path.glob("lib/python*/site-packages")
        self.site = site
        over = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (site / "over.pth").write_text(over, encoding="utf-8")
        (path / "bin" / "smollm3").write_text(
            f"#!{self.python}\nimport sys\n\nfrom smollm3_finetune.main import main\n\nsys.exit(main())\n",
            encoding="utf-8",
        )
        (path / "bin" / "smollm3").chmod(0o755)

    @property
    def variables(self) -> dict[str, str]:
        before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        kept = [p for p in before if p and not Path(p).resolve().is_relative_to(EXAMPLES)]
        return {
            **os.environ,
            "PATH": f"{self.path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(kept),
            "SMOLLM3_CACHE": str(self.path / "cache"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "COLUMNS": "200",
        }

    def install(self, plugins: Iterable[Plugin]) -> Outcome:
        """Build the wheel of each plugin, and install it with its requirements."""
        wheels = self.path / "wheels"
        for plugin in plugins:
            built = self._pip("wheel", "--no-deps", "--wheel-dir", str(wheels), str(plugin.folder))
            if built.code:
                return built
        pip = (
            "--python",
            str(self.python),
            "install",
            "--no-warn-script-location",
            "-c",
            str(ROOT / "constraints.txt"),
        )
        return self._pip(*pip, *map(str, sorted(wheels.glob("*.whl"))))

    def _pip(self, *words: str) -> Outcome:
        return self.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words], self.path)

    def run(self, command: list[str], cwd: Path) -> Outcome:
        """Run a command, with both streams as its output."""
        cwd.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        try:
            done = subprocess.run(
                command,
                cwd=cwd,
                env=self.variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Outcome(124, time.monotonic() - began, f"error: took more than {LIMIT_S} s")
        return Outcome(done.returncode, time.monotonic() - began, done.stdout)

    def script(self, text: str, cwd: Path) -> Outcome:
        """Run lines of a shell; the first that fails ends it."""
        return self.run(["sh", "-ec", text], cwd)
