"""Model directories: read, loaded, written, and published complete or not at all."""
