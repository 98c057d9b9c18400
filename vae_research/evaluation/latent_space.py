"""How codes lie in the latent space: the room they take, and how well classes separate.

Needs scikit-learn (the extra `figures`); NumPy in, NumPy out.
"""

from __future__ import annotations

import math

import numpy as np


def occupied_area(
    codes: np.ndarray, *, share: float = 0.95, neighbours: int = 10, cells: int = 600
) -> float:
    """Returns the area of the region of the plane where a share of the codes lies most densely.

    The density at a place is judged by the distance to its 10th nearest code. The region is where
    that distance is at most the one that a share of the codes has itself, and its area is counted
    on a grid. It is a highest density region (Hyndman 1996,
    doi:10.1080/00031305.1996.10474359) by the nearest neighbour estimate of the density, which
    follows clusters and rays that one bandwidth for all codes would smear. For one normal cloud
    with standard deviations a and b and a share of 0.95 it is `5.99 * pi * a * b`. Codes that are
    all on a line, or no more than neighbours, occupy 0.

    Args:
        codes: `[count, 2]`.
        share: of the codes, above 0 and below 1.
        neighbours: which nearest code is meant; more of them smooth more.
        cells: of the grid along each axis.

    Raises:
        ValueError: the codes are not in a plane, or `share` is no share.
    """
    from sklearn.neighbors import NearestNeighbors

    codes = np.asarray(codes, np.float64)
    if codes.ndim != 2 or codes.shape[1] != 2:
        raise ValueError(f"An area needs codes of shape [count, 2], got {codes.shape}.")
    if not 0.0 < share < 1.0:
        raise ValueError(f"share must be above 0 and below 1, got {share}.")
    if len(codes) <= neighbours:
        return 0.0
    lengths = np.linalg.svd(codes - codes.mean(axis=0), compute_uv=False)
    if lengths[1] <= 1e-6 * lengths[0]:
        return 0.0
    search = NearestNeighbors(n_neighbors=neighbours).fit(codes)
    limit = np.quantile(search.kneighbors(codes)[0][:, -1], share)
    edges = zip(codes.min(axis=0) - limit, codes.max(axis=0) + limit, strict=True)
    axes = [np.linspace(low, high, cells) for low, high in edges]
    grid = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    inside = np.count_nonzero(search.kneighbors(grid)[0][:, -1] <= limit)
    return float(inside * math.prod(float(axis[1] - axis[0]) for axis in axes))


def neighbour_accuracy(codes: np.ndarray, labels: np.ndarray, *, neighbours: int = 10) -> float:
    """Returns the share of codes that have the most frequent label of their nearest neighbours.

    Each code is judged by the others (leave one out); of equally frequent labels the smaller wins.

    Args:
        codes: `[count, latent]`.
        labels: `[count]` integers.
        neighbours: how many are asked, fewer than there are codes.

    Raises:
        ValueError: lengths differ, or there are too few codes.
    """
    from sklearn.neighbors import NearestNeighbors

    labels = np.asarray(labels)
    if len(codes) != len(labels):
        raise ValueError(f"There are {len(codes)} codes and {len(labels)} labels.")
    if not 1 <= neighbours < len(codes):
        raise ValueError(
            f"neighbours must be from 1 to {len(codes) - 1}, one less than the codes; got "
            f"{neighbours}."
        )
    nearest = NearestNeighbors(n_neighbors=neighbours).fit(codes).kneighbors(return_distance=False)
    classes, indices = np.unique(labels, return_inverse=True)
    votes = np.stack([(indices[nearest] == index).sum(axis=1) for index in range(len(classes))])
    return float(np.mean(votes.argmax(axis=0) == indices))


def t_sne(codes: np.ndarray) -> np.ndarray:
    """Returns `[count, 2]`: t-SNE of the codes, with perplexity 30 (fewer for few codes).

    It begins with the two main components, so that the same codes give the same picture. Van der
    Maaten and Hinton 2008, Visualizing Data using t-SNE. Distances between clusters and their sizes
    mean nothing in the picture; who is a neighbour of whom does.

    Args:
        codes: `[count, latent]`.

    Raises:
        ValueError: fewer than 4 codes, fewer than 2 latent dimensions, or all codes are equal.
    """
    from sklearn.manifold import TSNE

    codes = np.asarray(codes)
    if codes.ndim != 2 or len(codes) < 4 or codes.shape[1] < 2:
        raise ValueError(f"t-SNE needs at least 4 codes of 2 dimensions, got {codes.shape}.")
    if np.all(codes == codes[0]):
        raise ValueError("All codes are equal; t-SNE needs codes that differ.")
    perplexity = min(30.0, (len(codes) - 1) / 3.0)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(codes)
