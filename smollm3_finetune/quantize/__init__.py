"""Quantized checkpoints: of a full-precision model, and of a merged one."""
