"""The components of plugins: discovered, registered, selected by name, and checked for this machine and each other."""
