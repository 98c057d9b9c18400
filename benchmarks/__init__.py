"""Compares the training of this package with other programs; `scripts/benchmark` runs it.

There is one file per contender, which runs in its own process and environment: `ours.py`,
`keras_fit.py`, `pytorch.py`, `jax_scan.py`, `pythae_trainer.py`. `works.py` defines what all of
them train, `protocol.py` the requests to them, `sections.py` what is measured, `tables.py` the
tables.
"""
