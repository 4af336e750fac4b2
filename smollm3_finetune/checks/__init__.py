"""Checks of plugins and of this machine: `smollm3 plugins check` and `smollm3 doctor`."""
