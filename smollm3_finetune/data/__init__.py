"""Rows: where they are (`sources`), how they are read (`files`, `hub`), formatted, split and tokenized."""
