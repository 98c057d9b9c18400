"""How codes lie in the latent space: the room they take, and how well classes separate.

Needs the extra `figures` (scikit-learn, which brings scipy); NumPy in, NumPy out.
"""

from __future__ import annotations

import math

import numpy as np


def occupied_area(codes: np.ndarray, *, share: float = 0.95, cells: int = 200) -> float:
    """Returns the area of the smallest region of the plane that holds a share of the codes.

    The density of the codes is estimated with a Gaussian kernel (Scott's bandwidth). The region is
    where the density is at least that of the code that `1 - share` of all codes lie below
    (a highest density region: Hyndman 1996, doi:10.1080/00031305.1996.10474359), and its area is
    counted on a grid over the codes and three bandwidths around them. For one normal cloud with
    standard deviations a and b and a share of 0.95 that is `5.99 * pi * a * b`. Codes that are all
    on a line occupy 0.

    Args:
        codes: `[count, 2]`.
        share: of the codes, above 0 and below 1.
        cells: of the grid along each axis.

    Raises:
        ValueError: the codes are not in a plane, or `share` is no share.
    """
    from scipy.linalg import LinAlgError
    from scipy.stats import gaussian_kde

    codes = np.asarray(codes, np.float64)
    if codes.ndim != 2 or codes.shape[1] != 2:
        raise ValueError(f"An area needs codes of shape [count, 2], got {codes.shape}.")
    if not 0.0 < share < 1.0:
        raise ValueError(f"share must be above 0 and below 1, got {share}.")
    if len(codes) < 3:
        return 0.0
    try:
        density = gaussian_kde(codes.T)
    except LinAlgError:
        return 0.0
    bandwidth = np.sqrt(np.diag(density.covariance))
    edges = zip(codes.min(axis=0) - 3 * bandwidth, codes.max(axis=0) + 3 * bandwidth, strict=True)
    axes = [np.linspace(low, high, cells) for low, high in edges]
    grid = np.stack(np.meshgrid(*axes), axis=0).reshape(2, -1)
    threshold = np.quantile(density(codes.T), 1.0 - share)
    cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    return float(np.count_nonzero(density(grid) >= threshold) * cell)


def neighbour_accuracy(codes: np.ndarray, labels: np.ndarray, *, neighbours: int = 10) -> float:
    """Returns the share of codes that have the label of most of their nearest neighbours.

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


def t_sne(codes: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Returns `[count, 2]`: t-SNE of the codes, with perplexity 30 (fewer for few codes).

    Van der Maaten and Hinton 2008, Visualizing Data using t-SNE. Distances between clusters and
    their sizes mean nothing in the picture; who is a neighbour of whom does.
    """
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(codes) - 1) / 3.0)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(codes)
