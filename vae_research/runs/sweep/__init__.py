"""Many runs of one experiment: a grid or list of settings with seeds, or a search by Optuna."""
