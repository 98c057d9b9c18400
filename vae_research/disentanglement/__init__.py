"""Metrics of disentanglement: what single codes say about single factors of the images.

Pure functions of `codes [n, d]` and `factors [n, k]` in NumPy. A factor is a column of integers
that name the values of a cause of the images, such as shape or position. Two metrics draw images
themselves, by a `Sampler`; UDR compares the codes of several models and knows no factors.

Every metric returns a `Score`, or one by name if it has several parts. Metrics that fit classifiers
need scikit-learn (the extra `disentanglement`). TensorFlow is not imported.
"""

from typing import TYPE_CHECKING

from vae_research.lazy import lazy_names

if TYPE_CHECKING:
    from vae_research.disentanglement.attributes import sap as sap
    from vae_research.disentanglement.gap import mig as mig
    from vae_research.disentanglement.importance import dci as dci
    from vae_research.disentanglement.information import mutual_information as mutual_information
    from vae_research.disentanglement.modularity import (
        modularity_explicitness as modularity_explicitness,
    )
    from vae_research.disentanglement.pairs import beta_vae_score as beta_vae_score
    from vae_research.disentanglement.predictive_information import infomec as infomec
    from vae_research.disentanglement.ranking import udr as udr
    from vae_research.disentanglement.samplers import FunctionSampler as FunctionSampler
    from vae_research.disentanglement.samplers import RowSampler as RowSampler
    from vae_research.disentanglement.samplers import Sampler as Sampler
    from vae_research.disentanglement.scores import Score as Score
    from vae_research.disentanglement.votes import factor_vae_score as factor_vae_score

_MODULES = {
    "attributes": ("sap",),
    "gap": ("mig",),
    "importance": ("dci",),
    "information": ("mutual_information",),
    "modularity": ("modularity_explicitness",),
    "pairs": ("beta_vae_score",),
    "predictive_information": ("infomec",),
    "ranking": ("udr",),
    "samplers": ("FunctionSampler", "RowSampler", "Sampler"),
    "scores": ("Score",),
    "votes": ("factor_vae_score",),
}

if not TYPE_CHECKING:
    __all__, __getattr__, __dir__ = lazy_names(__name__, _MODULES)
