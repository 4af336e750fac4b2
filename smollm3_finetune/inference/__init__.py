"""Using a loaded model: generating answers."""
