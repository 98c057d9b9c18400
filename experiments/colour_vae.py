"""A VAE of colour images: residual networks, and a mixture of logistic distributions per pixel.

Paper: Salimans et al. 2017 (arXiv:1701.05517, PixelCNN++), equations 2 and 3, for the likelihood of
a pixel, in which green depends on red, and blue on both; He et al. 2016 (arXiv:1603.05027) and Wu
and He 2018 (arXiv:1803.08494) for the blocks of the networks. The images of the figures are emoji:
  npm pack emoji-datasource-twitter@16.0.0
  tar xzf emoji-datasource-twitter-16.0.0.tgz package/img/twitter/64

Command: scripts/run experiments/colour_vae.py --dataset=package/img/twitter/64 \
    --background=white --image_size=32
Time: 28 minutes on 2 cores that had a run of all tests beside it
Expect: test ELBO -8969 nats (4.21 bits per dimension), NLL 8842 (4.15) (seed 0; error 117; the
importance weights are worth 1.1 samples); own_data.py, a smaller network with one logistic
distribution for each channel, has 4.83
"""

import vae_research as vr
from vae_research import runs

runs.set_defaults(epochs=12, batch_size=32, latent_dim=64, importance_samples=50)
runs.define_integers("filters", (16, 32, 64), "channels of the levels; each halves the size")
runs.define_integer("blocks", 1, "residual blocks in each level")
runs.define_integer("components", 5, "of the mixture")


def data(config):
    """Returns the data set that the flags name; half of the training images are mirrored."""
    return runs.load_data(config).augmented(vr.mirrored)


def build(config, data):
    """Returns the model."""
    if data.train.raw.dtype.kind != "u" or (data.rescale, data.binarize) != ("unit", "none"):
        raise runs.UsageError(f"{data.name} has no levels; experiments/sigma_vae.py needs none.")
    levels = int(data.train.scaling.divisor) + 1
    size, filters, outputs = config.latent_dim, config.filters, 10 * config.components
    encoder = vr.residual_encoder(data.shape, size, filters=filters, blocks=config.blocks)
    decoder = vr.residual_decoder(
        data.shape,
        size,
        filters=filters[::-1],
        blocks=config.blocks,
        outputs={"x_mixture": outputs},
    )
    likelihood = vr.DiscretizedLogisticMixture(components=config.components, levels=levels)
    terms = [likelihood, vr.KLDivergence()]
    return vr.VAE(encoder, vr.GaussianBottleneck(size), decoder, terms, seed=config.noise_seed)


if __name__ == "__main__":
    runs.main(build, data=data)
