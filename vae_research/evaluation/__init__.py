"""Estimates on held-out data, and diagnostics of a latent space."""
