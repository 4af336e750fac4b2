"""Exporting: a model or an adapter is written for other software, verified, and kept only if every check passes.

`names`    the exporter and the output directory that a user names
`plan`     names, options and rows, checked before weights are read
`subject`  what the exporter receives
`dense`    the full-precision model that an exporter of models writes
`run`      the procedure
`report`   `export.json` and the report of the command
`card`     the model card
"""

from __future__ import annotations
