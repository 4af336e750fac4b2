"""Batches without padding and losses without unused logits, for any objective.

`attention`      attention inside each row of a sequence that holds several rows
`probe`          a measurement on the loaded model: are rows in one sequence independent?
`packing`        rows packed into sequences of limited length
`order`          the order of examples in each pass
`filler`         items that make a pass divisible by the number of processes
`head`           the output layer and the loss at supervised positions only
`cross_entropy`  a cross-entropy that needs less memory
`eager`          functions that torch.compile skips
`strategy`       selects for a run which of these are used, and reports the reason if one is not

`api/batches.py` builds the sequence of several rows.
"""
