"""A convolutional VAE on colour images of your own, read from their folder while it trains.

Paper: Salimans et al. 2017 (arXiv:1701.05517, PixelCNN++), equation 2, with one component: levels
of pixels have a rounded logistic distribution, no density, so that bits per dimension compare with
those of other models. The images of the figures are emoji:
  npm pack emoji-datasource-twitter@16.0.0
  tar xzf emoji-datasource-twitter-16.0.0.tgz package/img/twitter/64

Command: scripts/run experiments/own_data.py --dataset=package/img/twitter/64 --background=white \
    --image_size=32
Time: 190 s of processor time, 12 minutes on 2 busy cores
Expect: test ELBO -10386 nats (4.88 bits per dimension), NLL 10286 (4.83) (seed 0; error 127)
"""

import vae_research as vr
from vae_research import runs

runs.set_defaults(stream=True, epochs=12, batch_size=32, latent_dim=64, importance_samples=50)
runs.define_integers("filters", (16, 32, 64), "channels of the convolutions; each halves the size")
runs.define_integers("hidden_units", (256,), "units of the dense layers, from the image to z")


def data(config):
    """Returns the data set that the flags name; half of the training images are mirrored."""
    return runs.load_data(config).augmented(vr.mirrored)


def build(config, data):
    """Returns the model."""
    if data.train.raw.dtype.kind != "u" or (data.rescale, data.binarize) != ("unit", "none"):
        raise runs.UsageError(f"{data.name} has no levels; experiments/sigma_vae.py needs none.")
    size, filters, units = config.latent_dim, config.filters, config.hidden_units
    backwards = {"filters": filters[::-1], "hidden_units": units[::-1]}
    outputs = ["x_mean", "x_log_var"]
    encoder = vr.convolutional_encoder(data.shape, size, filters=filters, hidden_units=units)
    decoder = vr.convolutional_decoder(data.shape, size, outputs=outputs, **backwards)
    levels = int(data.train.scaling.divisor) + 1
    terms = [vr.DiscretizedLogistic(levels=levels), vr.KLDivergence()]
    return vr.VAE(encoder, vr.GaussianBottleneck(size), decoder, terms, seed=config.noise_seed)


if __name__ == "__main__":
    runs.main(build, data=data)
