"""The cache of derived files: entries by key, their listing and deletion, and the runs that need them."""
