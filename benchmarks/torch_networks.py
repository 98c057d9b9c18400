"""The networks in PyTorch, for `pytorch.py` and `pythae_trainer.py`; images are channels first."""

from __future__ import annotations

import math

from torch import nn

from benchmarks.works import Work

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


def encoder(work: Work) -> nn.Sequential:
    """Returns the layers from an image to the features that the heads read."""
    activation = _ACTIVATIONS[work.activation]
    layers, width = [], 784
    channels = 1
    for filters in work.filters:
        layers += [nn.Conv2d(channels, filters, 3, stride=2, padding=1), activation()]
        channels, width = filters, math.prod(work.grid)
    layers.append(nn.Flatten())
    for units in work.hidden_units:
        layers += [nn.Linear(width, units), activation()]
        width = units
    return nn.Sequential(*layers)


def head(work: Work) -> nn.Linear:
    """Returns a layer from features to one value for each latent dimension."""
    return nn.Linear(work.hidden_units[-1], work.latent_dim)


def decoder(work: Work) -> nn.Sequential:
    """Returns the layers from z to logits, `[rows, 1, 28, 28]`."""
    activation = _ACTIVATIONS[work.activation]
    layers, width = [], work.latent_dim
    if not work.filters:
        for units in reversed(work.hidden_units):
            layers += [nn.Linear(width, units), activation()]
            width = units
        return nn.Sequential(*layers, nn.Linear(width, 784), nn.Unflatten(1, (1, 28, 28)))
    height, breadth, channels = work.grid
    layers += [nn.Linear(width, math.prod(work.grid)), activation()]
    layers.append(nn.Unflatten(1, (channels, height, breadth)))
    for filters in reversed(work.filters):
        layers.append(
            nn.ConvTranspose2d(channels, filters, 3, stride=2, padding=1, output_padding=1)
        )
        layers.append(activation())
        channels = filters
    return nn.Sequential(*layers, nn.ConvTranspose2d(channels, 1, 3, padding=1))


def initialise_like_keras(network: nn.Module) -> None:
    """Sets Glorot's uniform weights and biases of zero, as for every contender."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
