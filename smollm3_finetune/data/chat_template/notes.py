"""The notes that rendering makes on a conversation; users see how many rows have each."""

from __future__ import annotations

REWRITTEN = "turn rewritten by the template"
"""A turn that later messages change, in an example that does not end there."""
OWN_EXAMPLE = "rewritten turn in an example of its own"
NO_TRACE = "answer without the trace that the prompt opens"
NO_PREFIX = "answer that does not begin with the generation prompt"
NO_END = "the template ends no turn: nothing teaches the model to stop"
ENDED = "the template ends no turn: {!r} is supervised as the end"

WARNED = "the template ends no turn"
"""How the notes begin that are printed as warnings before training."""
REASONS = {
    REWRITTEN: "the template rewrites its answers, so no prompt leads to them",
    NO_TRACE: (
        "the generation prompt ends in '<think>', but the rendered answer has no trace (use rows with reasoning, or "
        "another template: data.template=FILE)"
    ),
    NO_PREFIX: (
        "the rendered answer does not begin with the generation prompt (use another template: data.template=FILE)"
    ),
    "earlier reasoning stripped": "answers whose reasoning is stripped are not supervised (data.history=strip)",
    "empty turn": "empty turn: an answer that is empty or contains only reasoning is not supervised",
}
"""What a note means for a row without supervised tokens."""
