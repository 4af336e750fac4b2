"""Try every installed quantizer on this machine: train, merge and resume the built-in model, compared with the CPU."""
