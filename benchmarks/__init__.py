"""This package's training beside that of other programs; `scripts/benchmark` runs it.

One file for each contender, which runs in a process and an environment of its own: `ours.py`,
`keras_fit.py`, `pytorch.py`, `jax_scan.py`, `pythae_trainer.py`. `works.py` is what all of them
train, `protocol.py` how they are asked, `sections.py` what is asked, `tables.py` what is written.
"""
