"""Statistics of codes: the area they occupy, how well classes separate, t-SNE.

Needs scikit-learn (the extra `figures`). NumPy in and out.
"""

from __future__ import annotations

import math

import numpy as np

from vae_research.arguments import checked_integer
from vae_research.extras import require

_PACKAGES = {"sklearn": "scikit-learn"}


def occupied_area(
    codes: np.ndarray, *, share: float = 0.95, neighbours: int = 10, cells: int = 600
) -> float:
    """Returns the area of the densest region of the plane that holds a share of the codes.

    The density at a point is estimated from the distance to its 10th nearest code. The region is
    where this distance is at most its `share` quantile over the codes; the area is counted on a
    grid. It is a highest density region (Hyndman 1996, doi:10.1080/00031305.1996.10474359) with the
    nearest neighbour estimate of the density, which follows clusters and rays that a single
    bandwidth would smear. For one normal cloud with standard deviations a and b and a share of 0.95
    it is `5.99 * pi * a * b`. Codes on a line, or no more codes than neighbours, occupy 0.

    Args:
        codes: `[count, 2]`.
        share: of the codes, above 0 and below 1.
        neighbours: number of the nearest code that is used; larger numbers smooth more.
        cells: number of grid cells along each axis.

    Raises:
        ValueError: the codes are not in a plane, or `share` is out of range.
    """
    require("a search for neighbours", "figures", _PACKAGES)
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
    """Returns the share of codes with the label that is most frequent among their neighbours.

    Each code is classified by the others (leave one out); ties go to the smaller label.

    Args:
        codes: `[count, latent]`.
        labels: `[count]` integers.
        neighbours: number of nearest codes, less than the number of codes.

    Raises:
        ValueError: lengths differ, or `neighbours` is out of range.
    """
    require("a search for neighbours", "figures", _PACKAGES)
    from sklearn.neighbors import NearestNeighbors

    labels = np.asarray(labels)
    if len(codes) != len(labels):
        raise ValueError(f"There are {len(codes)} codes and {len(labels)} labels.")
    checked_integer("neighbours", neighbours, 1, len(codes) - 1, why="one less than the codes")
    nearest = NearestNeighbors(n_neighbors=neighbours).fit(codes).kneighbors(return_distance=False)
    classes, indices = np.unique(labels, return_inverse=True)
    votes = np.stack([(indices[nearest] == index).sum(axis=1) for index in range(len(classes))])
    return float(np.mean(votes.argmax(axis=0) == indices))


def t_sne(codes: np.ndarray) -> np.ndarray:
    """Returns `[count, 2]`: t-SNE of the codes, with perplexity 30 (fewer for few codes).

    It starts from the first two principal components, so that the same codes give the same picture.
    Only neighbourhoods have a meaning in the picture, not the sizes of clusters or the distances
    between them. Van der Maaten and Hinton 2008, Visualizing Data using t-SNE.

    Args:
        codes: `[count, latent]`.

    Raises:
        ValueError: fewer than 4 codes, fewer than 2 latent dimensions, or all codes equal.
    """
    require("t-SNE", "figures", _PACKAGES)
    from sklearn.manifold import TSNE

    codes = np.asarray(codes)
    if codes.ndim != 2 or len(codes) < 4 or codes.shape[1] < 2:
        raise ValueError(f"t-SNE needs at least 4 codes of 2 dimensions, got {codes.shape}.")
    if np.all(codes == codes[0]):
        raise ValueError("All codes are equal; t-SNE needs codes that differ.")
    perplexity = min(30.0, (len(codes) - 1) / 3.0)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(codes)
