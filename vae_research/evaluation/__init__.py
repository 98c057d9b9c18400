"""Estimates on held-out data, and diagnostics of a latent space."""

# Behind the names of figures under a prior that was fitted after training.
FITTED = "_fitted_prior"

# Figures that say how good an estimate or a code is, and not how good the model.
DIAGNOSTICS = ("active_units", "effective_sample_size", "large_pareto_k")

# Scores of disentanglement among the figures; the first three stand for the others.
SCORES = (
    *("mig", "dci_disentanglement", "factor_vae_score"),
    *("dci_completeness", "dci_informativeness", "sap", "beta_vae_score"),
    *("modularity", "explicitness", "infom", "infoe", "infoc"),
)

# How the note on these scores begins.
NOTE_ON_SCORES = "Scores of disentanglement"


def tag_of(name: str) -> str:
    """Returns the tag of a test figure in TensorBoard, which shows the first five by name.

    Diagnostics, scores of disentanglement, and the same figures in bits come after the others.

    >>> tag_of("elbo"), tag_of("bits_per_dimension_elbo"), tag_of("active_units")
    ('test/elbo', 'test_bits/bits_per_dimension_elbo', 'test_diagnostics/active_units')
    >>> tag_of("mig")
    'test_disentanglement/mig'
    """
    if name in SCORES:
        return f"test_disentanglement/{name}"
    if name.removesuffix(FITTED) in DIAGNOSTICS:
        return f"test_diagnostics/{name}"
    return f"test_bits/{name}" if name.startswith("bits_per_dimension") else f"test/{name}"
