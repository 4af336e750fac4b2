"""Merging: an adapter is folded into dense weights, which are saved as an ordinary model and checked before it is kept.

`run`      the procedure
`gate`     the figures that are measured, and their limits
`tensors`  checks of single tensors
`remedy`   the command that trains a run again for the format
`report`   `merge.json` and the report of the command
`card`     the model card

`quantize.requantize` writes a quantized checkpoint of a merged model.
"""

from __future__ import annotations
