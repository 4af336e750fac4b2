"""The fixtures of published.py, which tests import by its name."""

from published import hub  # noqa: F401
