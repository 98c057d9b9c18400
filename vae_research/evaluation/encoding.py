"""The codes of a data set, without noise, as columns of all latents side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from vae_research.codes import CodeLayout
from vae_research.levels import WITHOUT_SUFFIX, levels
from vae_research.model import VAE

_ROWS_PER_CALL = 500


@dataclasses.dataclass(frozen=True)
class EncodedData:
    """Codes of examples.

    Attributes:
        codes: float32 `[count, columns]`, without noise, usually posterior means; the columns are
            those of `VAE.code_layout`.
        kl: float64 `[columns]`, the mean KL divergence of each column, nats; None unless every
            latent has one of its own shape.
    """

    codes: np.ndarray
    kl: np.ndarray | None


def encode_data(
    model: VAE,
    data: Mapping[str, Any],
    *,
    rows: np.ndarray | None = None,
    between_calls: Callable[[], None] | None = None,
) -> EncodedData:
    """Returns the codes of data, which are read and encoded block by block.

    Args:
        model: a VAE whose variables exist.
        data: arrays by name, or what is indexed by rows as they are, as `Split.tensors_by_block`.
        rows: numbers of the rows; by default all.
        between_calls: called before each block; it may raise to end the encoding.
    """
    rows = np.arange(len(data["inputs"])) if rows is None else rows
    codes, divergences = [], []
    for start in range(0, len(rows), _ROWS_PER_CALL):
        if between_calls is not None:
            between_calls()
        block = rows[start : start + _ROWS_PER_CALL]
        batch = {name: tf.constant(values[block]) for name, values in data.items()}
        tensors, layout = model.infer(batch, num_samples=1), model.code_layout
        codes.append(layout.flatten(model.codes_without_noise(tensors)).numpy())
        kl = kl_of_latents(tensors, layout)
        if kl is not None and layout.has_shapes(kl):
            divergences.append(layout.flatten(kl).numpy())
    kl_of_columns = None
    if divergences:
        kl_of_columns = np.concatenate(divergences).mean(axis=0, dtype=np.float64)
    return EncodedData(np.concatenate(codes), kl_of_columns)


def some_rows(count: int, most: int) -> np.ndarray:
    """Returns the numbers of all rows, or of so many random ones in order, always the same."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:most])


def kl_of_latents(tensors: Mapping[str, tf.Tensor], layout: CodeLayout) -> dict[str, Any] | None:
    """Returns the KL divergences of the rows by latent, in nats; None unless all have one.

    Args:
        tensors: of encoder and bottleneck, as `VAE.infer` returns them.
        layout: of the codes.
    """
    of_levels = levels(tensors, complete=False)
    kl = {
        (layout.only or latent) if latent == WITHOUT_SUFFIX else latent: tensors[level["kl"]]
        for latent, level in of_levels.items()
        if "kl" in level
    }
    return kl if kl and len(kl) == len(of_levels) else None
