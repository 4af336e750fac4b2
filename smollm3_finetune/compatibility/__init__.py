"""Which quantizer works with which adapter, and how that is known: measured, declared, refused or unknown."""
