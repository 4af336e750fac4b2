"""New plugins: `smollm3 plugins new`."""
