"""Work of the main process for which the others wait, as the merge of `--fresh-adapter`: two processes of torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os
import torch.distributed as dist
from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.train.distributed.processes import done_by_main

dist.init_process_group("gloo")
rank, new_group, waits = os.environ["RANK"], dist.new_group, []

def noted(**kwargs):
    waits.append(kwargs["timeout"].days)
    return new_group(**kwargs)

dist.new_group = noted

def act():
    open("made-by-" + rank, "w").close()

def fail():
    raise ValueError("the disk is full")

done_by_main(act, "the base")
lines = [f"made: {os.path.exists('made-by-0')}, timeout of {waits[0]} days"]
try:
    done_by_main(fail, "the base")
except (ValueError, SmolLM3Error) as e:
    lines.append(f"{type(e).__name__}: {getattr(e, 'message', e)}")
open("rank-" + rank, "w").write("\\n".join(lines))
"""


@pytest.mark.long
def test_the_others_wait_for_days_and_learn_of_a_failure(isolated: Path) -> None:
    Path("program.py").write_text(PROGRAM)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [*launcher, "program.py"], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Path("rank-0").read_text().splitlines() == ["made: True, timeout of 7 days", "ValueError: the disk is full"]
    assert Path("rank-1").read_text().splitlines() == [
        "made: True, timeout of 7 days",
        "SmolLM3Error: the base failed in the main process",
    ]
    assert not Path("made-by-1").exists()
