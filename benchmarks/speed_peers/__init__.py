"""The parts of `benchmarks/speed.py`.

`job`         the frozen job: rows, their order, and what every contestant is told
`contestants` the command of each
`bare`        a loop in plain PyTorch and PEFT that leaves out what need not be computed; frozen
`padded`      transformers.Trainer and PEFT, as their documentation has it
`flattened`   the same with the collator of transformers that leaves padding out
`marks/`      what every contestant's process notes down at each optimizer step, without the contestant knowing
`measure`     one run of a contestant: its marks, its processor time, its memory
`figures`     ratios with confidence intervals, and the table
`picture`     the table as an SVG
`growth`      time and memory over sequence length, batch, rank and vocabulary
"""
