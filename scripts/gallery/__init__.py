"""The gallery: installs each plugin of a list, runs its tests and its cells, keeps the results, and writes the page."""
