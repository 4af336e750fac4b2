"""Which options and configuration sections name a component, and of which kind."""

from __future__ import annotations

COMPONENTS = {
    "loader": "loader",
    "quant": "quantizer",
    "adapter": "adapter",
    "objective": "objective",
    "formatter": "formatter",
    "launcher": "launcher",
    "optimizer": "optimizer",
    "tracker": "tracker",
}
"""The kind of the component of each configuration section."""
NAMING = {
    **{f"--{section}": (kind,) for section, kind in COMPONENTS.items()},
    "--evaluator": ("evaluator",),
    "--to": ("exporter",),
    "--requantize": ("quantizer",),
    "--ship-as": ("quantizer", "exporter"),
    "--with-adapter": ("adapter",),
}
"""The kinds of the components that an option names."""
