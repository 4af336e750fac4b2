"""transformers.Trainer and PEFT with the padding-free collator of transformers: one sequence, with a mask over it."""

from __future__ import annotations

from transformers import DataCollatorWithFlattening

from speed_peers import padded
from speed_peers.job import job_from_command_line

if __name__ == "__main__":
    padded.main(job_from_command_line(), DataCollatorWithFlattening())
