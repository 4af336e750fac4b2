"""Install, upgrade and uninstall plugins with pip or uv, and find them in an index: `smollm3 plugins install`."""
