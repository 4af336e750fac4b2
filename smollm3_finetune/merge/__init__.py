"""Merging: an adapter folded into dense weights, saved as an ordinary model, and measured before it is kept.

`run` is the procedure, `gate` what is measured and how much is let through, `tensors` what is checked tensor by
tensor, `output` the directory that appears whole or not at all, `written` what is put into it, `card` its README,
`requantize` the quantized checkpoint that may be made of it.
"""

from __future__ import annotations
