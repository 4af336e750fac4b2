"""Sweeps: one run for each combination of values, from one file; each trial is an ordinary run directory.

`file`      the YAML file: the run, the values, the trials
`ranges`    random values
`naming`    names of trials, errors that name them
`layout`    the directory of a sweep
`plan`      the check of every trial before the first one runs
`decide`    which trials are kept, continued or run
`trials`    how a trial is started, and what became of it
`run`       the loop over the trials
`results`   the trials in the order of the objective, and whether they can be compared
`status`    the table of trials
"""

from __future__ import annotations
