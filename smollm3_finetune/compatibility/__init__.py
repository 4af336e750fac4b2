"""Which quantizer works with which adapter, and on what evidence: measured, declared, refused or unknown."""
