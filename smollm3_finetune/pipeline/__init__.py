"""Pipelines: stages that train, merge, quantize and evaluate, in one file; each stage is an ordinary directory.

`file`      the YAML file: stages, defaults, references to earlier stages
`options`   the keys of `merge` and `eval`
`layout`    the directory of a pipeline
`state`     the state file and the lock
`inputs`    what a stage depends on, by content
`results`   what a stage has made, by content
`decide`    which stages are kept, continued or run
`check`     the check of every stage before anything runs
`training`, `merging`, `quantizing`, `evaluating`  the work of one stage
`naming`    errors that name the stage
`run`       the loop over the stages
`status`    the table of stages
"""

from __future__ import annotations
