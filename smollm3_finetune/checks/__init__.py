"""Looking at plugins and at this machine, and saying what is wrong: `smollm3 plugins check` and `smollm3 doctor`."""
