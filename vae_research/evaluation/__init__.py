"""Estimates on held-out data, and diagnostics of a latent space."""

# Behind the names of figures under a prior that was fitted after training.
FITTED = "_fitted_prior"
