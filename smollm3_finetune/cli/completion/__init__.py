"""Completion of the command line in bash, zsh and fish: the shell calls `smollm3` with the line, and reads the answers.

The answering process imports click and no command. It reads the options of a command and what the plugins offer from
small files in the cache, which it writes where they are missing. `scripts/` has what the shells read.
"""

from __future__ import annotations

VARIABLE = "_SMOLLM3_COMPLETE"
"""The environment variable in which a shell's script says that it asks for completions: `bash_complete`."""
LINE = "_SMOLLM3_LINE"
"""The command line up to the cursor."""
WORD = "_SMOLLM3_WORD"
"""bash only: the last word of the line, as bash divides it."""
SHELLS = ("bash", "zsh", "fish")
