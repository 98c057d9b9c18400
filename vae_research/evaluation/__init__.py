"""Estimates on held-out data, and diagnostics of a latent space."""

# Behind the names of figures under a prior that was fitted after training.
FITTED = "_fitted_prior"

# Figures that say how good an estimate or a code is, and not how good the model.
DIAGNOSTICS = ("active_units", "effective_sample_size", "large_pareto_k")
