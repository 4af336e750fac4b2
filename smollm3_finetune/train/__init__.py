"""A training run: planned (`plan`), carried out (`run`) on transformers' Trainer (`trainer`), kept in a `rundir`."""
