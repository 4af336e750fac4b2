"""transformers.Trainer and PEFT without padding, as transformers offers it: one sequence, and a mask over all of it."""

from __future__ import annotations

from transformers import DataCollatorWithFlattening

from speed_peers import padded
from speed_peers.job import of_command_line

if __name__ == "__main__":
    padded.main(of_command_line(), DataCollatorWithFlattening())
