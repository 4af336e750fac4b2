"""Using a loaded model: generating answers, and computing the held-out loss."""
