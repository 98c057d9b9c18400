"""Keras callbacks that write to TensorBoard, to metrics.jsonl and to the screen.

Each works on its own with plain Keras `fit`. `Scalars`, `Latents`, `Pictures`, `Gradients`,
`Projector`, `Overview`, `HParams` and `Profile` write for TensorBoard; `MetricsFile` and `Console`
do not. An `Inference` lets several of them share one pass over the validation data.

To write your own, derive from `keras.callbacks.Callback`, or from a class in `base`:

- `EpochCallback` measures every epoch: define `on_record(self, record)`, which is called at the end
  of each one with an `EpochRecord`.
- `StepCallback` counts optimizer steps, however many a compiled call makes: define
  `on_step(self, step)`.
- `Resumable` marks a callback with state within an epoch: define `get_state` and `set_state`, and a
  resumed run restores it.

>>> from vae_research.callbacks.base import EpochCallback
>>> class PrintLoss(EpochCallback):
...     def on_record(self, record):
...         print(record.epoch, record.figures["train"]["loss"])
"""
