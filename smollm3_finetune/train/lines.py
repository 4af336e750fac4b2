"""Files of a run with one JSON object per line, such as metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm3_finetune.errors import WriteError
from smollm3_finetune.files.failures import writing
from smollm3_finetune.files.writing import append_text
from smollm3_finetune.train.finite import finite


@dataclass
class Lines:
    """A file that grows during a run; `say` is called once if a line cannot be written."""

    path: Path
    say: Callable[[str], None]
    failed: bool = False

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a line. If that fails, report it once and continue: what it says is displayed too.

        Raises WriteError if the run directory no longer exists, because nothing could be saved then.
        """
        line = json.dumps({k: v if finite(v) else None for k, v in row.items()}, ensure_ascii=False) + "\n"
        try:
            with writing(self.path):
                append_text(self.path, line)
        except WriteError as e:
            if not self.path.parent.is_dir():
                raise
            if not self.failed:
                self.say(f"warning: {e.message}; the run continues, and some of its lines will be missing")
            self.failed = True
