"""The `smollm3` command inside the process of a test."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any, NamedTuple


class Result(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    def report(self) -> dict[str, Any]:
        """The JSON output of a command that succeeded."""
        assert self.code == 0, self.stderr
        report: dict[str, Any] = json.loads(self.stdout)
        return report


OFFLINE = {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
"""Environment variables for a command in a test: without the Hub, and with lines of one width."""


def smollm3(*args: Any) -> Result:
    """Run `smollm3 ARGS` in this process. Fails if a hint of it names an option that does not exist."""
    from smollm3_finetune.main import main
    from smollm3_finetune.testing.hints import check_hints

    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(a) for a in args])
        except SystemExit as e:
            code = e.code
    check_hints([str(a) for a in args], err.getvalue())
    return Result(int(code or 0), out.getvalue(), err.getvalue())
