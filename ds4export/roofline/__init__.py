"""The roofline on paper: bytes and operations of every op of a step, over published peaks of five GPUs.

Owns arithmetic on a config and a step's shape; docs/kernels/roofline.md is its page. Nothing here has seen a GPU: every
time is predicted. Refuses to be evidence of speed.

    devices.py      published peaks, and what they are assumed to allow
    kernel.py       what one launch moves and computes
    layouts.py      the bytes of a cache row, native and packed
    linears.py      ops that multiply by a matrix of the checkpoint
    attention.py    ops that read the state of a sequence
    rows.py         ops that go through the rows of a token once
    step.py         which ops a step of the model calls
    predict.py      the bound of an op, the time of its kernels, and what keeps them from the bound
"""
