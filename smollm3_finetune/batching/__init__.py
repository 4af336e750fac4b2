"""Batches without padding and losses without unused logits, for any objective.

`flat`       the rows of a batch one behind the other, as one sequence
`attention`  a model's attention kept inside each row of such a sequence
`probe`      whether it is kept there, measured on the loaded model
`packing`    rows put together up to a longest sequence
`head`       the output layer and the loss at supervised positions only

`train/batches.py` decides for a run what of it is used, and says so where something is not.
"""
