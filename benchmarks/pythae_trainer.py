"""pythae's trainer and its `get_nll`, with the same networks.

At its best: the epoch of the trainer without the copies and files of `train` around it, fused Adam,
denormal numbers as zero, tcmalloc if it is installed. `get_nll` takes one image at a time, so its
batch is all samples of an image.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback

from benchmarks.protocol import serve
from benchmarks.torch_networks import decoder, encoder, head, initialise_like_keras
from benchmarks.works import IMPORTANCE_SAMPLES, LEARNING_RATE, Work, as_float


class Encoder(BaseEncoder):
    """Encoder with the interface of pythae."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.features, self.mean, self.log_var = encoder(work), head(work), head(work)

    def forward(self, x: torch.Tensor) -> ModelOutput:
        features = self.features(x)
        return ModelOutput(embedding=self.mean(features), log_covariance=self.log_var(features))


class Decoder(BaseDecoder):
    """Decoder with the interface of pythae: pixels between 0 and 1."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.logits = decoder(work)

    def forward(self, z: torch.Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=torch.sigmoid(self.logits(z)))


class FirstStep(TrainingCallback):
    """Calls `step_done` after each step."""

    step_done: Callable[[], None] | None = None

    def on_train_step_end(self, training_config: Any, **kwargs: Any) -> None:
        if self.step_done is not None:
            self.step_done()


class Pythae:
    """pythae's trainer; there is one variant."""

    def __init__(self, work: Work, variant: dict[str, Any]) -> None:
        logging.disable(logging.INFO)
        torch.manual_seed(0)
        torch.set_num_threads(os.cpu_count() or 1)
        torch.set_flush_denormal(True)
        self.work = work
        images = torch.from_numpy(as_float(work.training_images())).permute(0, 3, 1, 2)
        config = VAEConfig((1, 28, 28), work.latent_dim, reconstruction_loss="bce")
        self.model = VAE(config, Encoder(work), Decoder(work))
        initialise_like_keras(self.model)
        self.folder = tempfile.TemporaryDirectory()
        self.callback = FirstStep()
        self.trainer = BaseTrainer(
            self.model,
            BaseDataset(images.contiguous(), torch.zeros(len(images))),
            training_config=BaseTrainerConfig(
                output_dir=self.folder.name,
                num_epochs=10**6,
                per_device_train_batch_size=work.batch_size,
                learning_rate=LEARNING_RATE,
                optimizer_cls="Adam",
                optimizer_params={"fused": True},
            ),
            callbacks=[self.callback],
        )
        self.trainer.prepare_training()
        self.epoch = 0
        self.description = f"{torch.get_num_threads()} threads"

    def train(self, go_on: Callable[[], bool], step_done: Callable[[], None] | None) -> list[float]:
        """Trains whole epochs. The trainer's loss is a mean over batches."""
        self.callback.step_done = step_done
        losses = []
        while go_on():
            self.epoch += 1
            losses.append(float(self.trainer.train_step(self.epoch)))
        return losses

    @torch.inference_mode()
    def negative_log_likelihood(self, count: int) -> float:
        """Returns the importance-weighted figure of pythae's own method."""
        images = torch.from_numpy(as_float(self.work.test_images(count))).permute(0, 3, 1, 2)
        self.model.eval()
        samples = IMPORTANCE_SAMPLES
        return -float(self.model.get_nll(images, n_samples=samples, batch_size=samples))


if __name__ == "__main__":
    serve(Pythae, ("python", "pythae", "torch"))
