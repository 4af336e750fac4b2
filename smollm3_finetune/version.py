"""The version of this distribution. This module imports nothing."""

__version__ = "0.1.0"
