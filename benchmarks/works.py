"""The networks, batches and data that all contenders share. No heavy imports."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np

import vae_research as vr

LEARNING_RATE = 1e-3
IMPORTANCE_SAMPLES = 200
TEST_IMAGES = 10_000
# Of annealed importance sampling: images and chains of each, and gradients in a transition.
ANNEALED_IMAGES, CHAINS, LEAPFROG_STEPS = 50, 16, 10

_KERNEL = 3 * 3


@dataclasses.dataclass(frozen=True)
class Work:
    """A model with a Gaussian posterior and Bernoulli pixels, trained by Adam on MNIST.

    Attributes:
        name: on the command line.
        title: in tables.
        hidden_units: sizes of the encoder's dense layers; the decoder mirrors them. A
            convolutional decoder has none: it begins with its grid.
        filters: channels of the encoder's convolutions, each 3 x 3 with stride 2, before the dense
            layers; the decoder mirrors them. Empty for a dense network.
        activation: "relu" or "tanh".
        latent_dim: latent dimensions.
        batch_size: images in a step; the last batch of an epoch holds the rest.
        images: in an epoch, the first of the training split.
    """

    name: str
    title: str
    hidden_units: tuple[int, ...]
    latent_dim: int
    batch_size: int
    filters: tuple[int, ...] = ()
    activation: str = "relu"
    images: int = 50_000

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Work:
        """Returns the work whose `dataclasses.asdict` was written as JSON, which has no tuples."""
        lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
        return cls(**(fields | lists))

    @property
    def grid(self) -> tuple[int, int, int]:
        """Height, width and channels between a convolutional network and its dense layers."""
        side = 28 // 2 ** len(self.filters)
        return side, side, self.filters[-1]

    def multiply_adds(self) -> list[int]:
        """Returns the multiply-adds of each layer for one image, in the order of the layers."""
        if not self.filters:
            units = (784, *self.hidden_units)
            there = [a * b for a, b in itertools.pairwise(units)]
            head = units[-1] * self.latent_dim
            return [*there, 2 * head, head, *reversed(there)]
        encoder, channels, side = [], 1, 28
        for filters in self.filters:
            side //= 2
            encoder.append(side * side * _KERNEL * channels * filters)
            channels = filters
        units = (math.prod(self.grid), *self.hidden_units)
        encoder += [a * b for a, b in itertools.pairwise(units)]
        encoder.append(units[-1] * 2 * self.latent_dim)
        decoder = [self.latent_dim * math.prod(self.grid)]
        for filters in reversed(self.filters):
            # A transposed convolution multiplies at every position of its smaller input.
            decoder.append(side * side * _KERNEL * channels * filters)
            channels, side = filters, side * 2
        decoder.append(side * side * _KERNEL * channels)
        return [*encoder, *decoder]

    def flops_per_image(self) -> float:
        """Returns floating-point operations of matrix products in a training step, per image.

        Forward, gradient of the weights, gradient of the inputs; the image needs no gradient.
        """
        layers = self.multiply_adds()
        return 2.0 * (3 * sum(layers) - layers[0])

    def flops_per_sample(self) -> float:
        """Returns floating-point operations of the decoder for one sample of one image."""
        return 2.0 * sum(self.multiply_adds()[len(self.multiply_adds()) // 2 :])

    def training_images(self) -> np.ndarray:
        """Returns `[images, 28, 28, 1]` uint8."""
        return _mnist().train.raw[: self.images]

    def test_images(self, count: int) -> np.ndarray:
        """Returns the first test images, `[count, 28, 28, 1]` uint8."""
        return _mnist().test.raw[:count]


def as_float(images: np.ndarray) -> np.ndarray:
    """Returns grey values from 0 to 1, float32."""
    return images.astype(np.float32) / np.float32(255.0)


def _mnist() -> vr.Data:
    return vr.load_data("mnist")


DENSE_128 = Work("dense_128", "dense 784-400-z40, batch 128", (400,), 40, 128)
# Fewer images if the slowest contender would need half a minute or more for all of them.
DENSE_20 = Work(
    "dense_20",
    "dense tanh 784-200-200-z50, batch 20",
    (200, 200),
    50,
    20,
    activation="tanh",
    images=20_000,
)
CONVOLUTIONAL = Work(
    "convolutional",
    "convolutional, the networks of the Keras VAE example, batch 128",
    (16,),
    2,
    128,
    filters=(32, 64),
    images=10_000,
)
WORKS = {work.name: work for work in (DENSE_128, DENSE_20, CONVOLUTIONAL)}
