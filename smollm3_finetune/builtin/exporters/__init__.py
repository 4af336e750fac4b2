"""The built-in exporters: `safetensors` and `peft`."""
