"""Run directories: their files, reopened for other commands and resumed."""
