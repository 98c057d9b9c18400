"""The objective: which loss terms are trained, how they are weighed, and what is reported.

Whoever wants to know how a loss comes about reads `objective.py`: its `__call__` is the one place
where terms, weights and samples are joined. Beside it: `weights.py` weighs terms at a step,
`elbo.py` finds the divergences of a forward pass, `roles.py` says which part of a bound a term is,
`report.py` has the result, and `checks.py` refuses terms that make no objective.
"""

from vae_research.objective.checks import check_labels as check_labels
from vae_research.objective.elbo import log_prior_ratio as log_prior_ratio
from vae_research.objective.objective import Objective as Objective
from vae_research.objective.report import LARGER_IS_BETTER as LARGER_IS_BETTER
from vae_research.objective.report import CriticReport as CriticReport
from vae_research.objective.report import LossReport as LossReport
from vae_research.objective.weights import ControllerStates as ControllerStates
from vae_research.objective.weights import controllers_of as controllers_of
from vae_research.objective.weights import plus as plus
from vae_research.objective.weights import weights_of as weights_of
