"""Several runs beside each other: values of the configuration that differ, and answers to the same prompt."""

from __future__ import annotations

from collections.abc import Sequence

from smollm3_finetune.report.run_view import RunView, Shortened

MISSING = "—"


def differences(views: Sequence[RunView]) -> list[tuple[str, list[str]]]:
    """(key, the value in each run) for the keys whose values are not all equal."""
    values = [{v.key: v.shown for v in view.config} for view in views]
    keys = dict.fromkeys(key for one in values for key in one)
    found = [(key, [one.get(key, MISSING) for one in values]) for key in keys]
    return [(key, several) for key, several in found if len(set(several)) > 1]


def answers(views: Sequence[RunView], letters: Sequence[str]) -> list[tuple[str, list[tuple[str, Shortened]]]]:
    """(prompt, [(letter, the answer after training)]) for each prompt, in the order of the runs."""
    found: dict[str, list[tuple[str, Shortened]]] = {}
    for letter, view in zip(letters, views, strict=True):
        if view.after is not None:
            prompt = view.prompt[-1][1].text if view.prompt else ""
            found.setdefault(prompt, []).append((letter, view.after))
    return list(found.items())
