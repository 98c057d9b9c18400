"""Levels: which divergences and densities of a forward pass belong to which latent, by their names.

The rule is in the vocabulary of `vae_research.tensors`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# What is known of a level; several have their names behind it.
OF_LEVELS = ("kl", "log_posterior", "log_prior")
# The latent that names without a suffix are about.
WITHOUT_SUFFIX = "z"

_NAME = re.compile(rf"({'|'.join(OF_LEVELS)})(?:_(.+))?")


def level_of(name: str) -> tuple[str, str] | None:
    """Returns which part of which level a tensor has by its name, or None if of no level.

    >>> level_of("log_prior_z_2"), level_of("kl"), level_of("logits")
    (('log_prior', 'z_2'), ('kl', 'z'), None)
    """
    found = _NAME.fullmatch(name)
    return (found[1], found[2] or WITHOUT_SUFFIX) if found else None


def levels(tensors: Mapping[str, Any], *, complete: bool = True) -> dict[str, dict[str, str]]:
    """Returns the levels of a forward pass: by latent, the names of the parts that were written.

    A single latent whose prior was not written, and which has no divergence, has no level.

    Args:
        tensors: of the forward pass.
        complete: the whole pass was made; otherwise modules may yet write the rest of a level.

    Raises:
        ValueError: a level was written twice, or one of several is not complete.

    >>> levels({"z": 0, "kl_z": 0, "log_posterior_top": 0, "log_prior_top": 0})["top"]
    {'log_posterior': 'log_posterior_top', 'log_prior': 'log_prior_top'}
    """
    found: dict[str, dict[str, str]] = {}
    for name in tensors:
        if (of := level_of(name)) is not None:
            part, latent = of
            level = found.setdefault(latent, {})
            if part in level:
                raise ValueError(
                    f"The forward pass wrote {level[part]!r} and {name!r}, both of the latent "
                    f"{latent!r}: write one of them."
                )
            level[part] = name
    for latent, level in found.items() if complete else ():
        if "kl" in level or len(level) == 2:
            continue
        if len(found) == 1 and latent == WITHOUT_SUFFIX:
            return {}
        (written,) = level.values()
        raise ValueError(
            f"The forward pass wrote {written!r}, which makes {latent!r} a level of latents, and "
            f"not the rest of it: the ELBO needs 'kl_{latent}', or both 'log_posterior_{latent}' "
            f"and 'log_prior_{latent}'. A tensor that is no density of a latent has another name."
        )
    return found
