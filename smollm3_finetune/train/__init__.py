"""A training run: checked by `plan`, prepared by `setup`, executed by `run` with transformers' Trainer (`trainer`)."""
