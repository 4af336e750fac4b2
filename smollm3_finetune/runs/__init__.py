"""Run directories: what a run keeps, reopened for other commands and resumed."""
