"""A model directory: read, loaded, written, and published whole or not at all."""
