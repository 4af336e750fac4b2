"""Answers of a loaded model and its loss on held-out rows."""
