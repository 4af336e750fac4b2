"""The loop of `smollm3 chat`: reading, slash commands, interrupts."""
