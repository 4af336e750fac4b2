"""The built-in exporter `safetensors`."""
