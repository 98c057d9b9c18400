"""The loss of a VAE at the four places of a Keras model that the reference text compares.

| where the loss is added | what to use | `compile` | `fit` |
| --- | --- | --- | --- |
| on top of encoder and decoder ("Solution I") | `VAELossLayer` | `loss=None` | `fit(x)` |
| in the encoder, KL only (strategy 1) | `KLLossLayer` | `loss=` cross-entropy | `fit(x, x)` |
| in the combined model (strategy 2) | `AddLossModel` | `loss=None` | `fit(x)` |
| in the training step (strategy 3) | `VAE`, with `pixel_mean_terms` | no loss | `fit(x)` |

All four train the same objective, that of many Keras recipes: binary cross-entropy, averaged over
pixels, plus a factor times `-(1 + log_var - mean^2 - var)`, averaged over latent dimensions.

- `layers` has the first three, the `SamplingLayer` that they share, and their two losses per row.
- `recipes` has `pixel_mean_terms`, the loss terms of the fourth, and says which beta the factor is.
- `report_losses` has `ReportLosses`, a callback that gives all four the same names in the logs.
"""
