"""Judging a model: the losses of single rows, and whether a change of the loss is more than chance."""
