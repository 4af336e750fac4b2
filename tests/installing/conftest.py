"""The fixtures of hand_made_wheels.py, which tests import by its name."""

from hand_made_wheels import environment, wheels  # noqa: F401
