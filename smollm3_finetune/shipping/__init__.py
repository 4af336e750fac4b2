"""Training what is shipped: the forward computes with the weights that a quantized format will have.

`target`   the format of `train.ship_as`, chosen and checked before weights are read
`record`   `shipped.json` and `grids.safetensors`, which are saved with the adapter
`layers`   one layer: its dense, merged and shipped weight, and the straight-through gradient
`install`  the shipped forward of a loaded model
`gate`     comparing what was written with what training computed
"""
