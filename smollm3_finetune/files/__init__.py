"""Files that must survive: written whole or not at all, checked when read."""
