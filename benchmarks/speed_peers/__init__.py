"""The parts of `benchmarks/speed.py` and `benchmarks/preference.py`.

`job`         the fixed job: the rows, their order, and the settings of every contestant
`contestants` the command of each contestant
`bare`        a loop in plain PyTorch and PEFT that skips unnecessary computations; frozen
`padded`      transformers.Trainer and PEFT, as in their documentation
`flattened`   the same with the padding-free collator of transformers
`marks/`      records the optimizer steps in the process of every contestant, without changes to the contestant
`measure`     one run of a contestant: its marks, its processor time, its memory
`figures`     ratios with confidence intervals, and the table
`pairs`       the job of `preference.py`: pairs of answers, and the commands that train on them
`picture`     the table as an SVG
`profiling`   the time of a step by kind of operation
`growth`      time and memory for several sequence lengths, batch sizes, ranks and vocabularies
"""
