"""Classifiers of scikit-learn, fitted without its warnings about what the metrics define."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np


def fitted(model: Any, features: np.ndarray, labels: np.ndarray) -> Any:
    """Returns a classifier that was fitted; it may end by its number of steps.

    Args:
        model: of scikit-learn.
        features: `[n, d]`.
        labels: `[n]`, which may have nearly as many values as rows.
    """
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        return model.fit(features, labels)
