"""A training run: settings (`start`), checks (`plan`), rows (`setup`), execution (`run`), the Trainer (`trainer`)."""
