"""Functions that return Keras encoders and decoders, made of layers of Keras alone."""

from typing import TYPE_CHECKING

from vae_research.lazy import lazy_names

if TYPE_CHECKING:
    from vae_research.networks.adapters import ProbabilitiesToLogits as ProbabilitiesToLogits
    from vae_research.networks.convolutional import convolutional_decoder as convolutional_decoder
    from vae_research.networks.convolutional import convolutional_encoder as convolutional_encoder
    from vae_research.networks.dense import dense_decoder as dense_decoder
    from vae_research.networks.dense import dense_encoder as dense_encoder
    from vae_research.networks.ladder import ladder_encoder as ladder_encoder
    from vae_research.networks.ladder import ladder_top_down as ladder_top_down
    from vae_research.networks.recurrent import recurrent_decoder as recurrent_decoder
    from vae_research.networks.recurrent import recurrent_encoder as recurrent_encoder
    from vae_research.networks.residual import residual_decoder as residual_decoder
    from vae_research.networks.residual import residual_encoder as residual_encoder

_MODULES = {
    "adapters": ("ProbabilitiesToLogits",),
    "convolutional": ("convolutional_decoder", "convolutional_encoder"),
    "dense": ("dense_decoder", "dense_encoder"),
    "recurrent": ("recurrent_decoder", "recurrent_encoder"),
    "residual": ("residual_decoder", "residual_encoder"),
    "ladder": ("ladder_encoder", "ladder_top_down"),
}

if not TYPE_CHECKING:
    __all__, __getattr__, __dir__ = lazy_names(__name__, _MODULES)
