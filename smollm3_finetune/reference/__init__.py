"""The model that a loss compares the trained one with: the base, the model at the start of the run, or another one."""
