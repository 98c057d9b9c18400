"""Discrete codes on MNIST: relaxed categorical variables, alone or beside continuous latents.

Paper: Jang et al. 2017, Categorical Reparameterization with Gumbel-Softmax (arXiv:1611.01144);
Maddison et al. 2017 (arXiv:1611.00712). With --joint, one variable of ten classes beside continuous
latents, with a capacity of its own for each (Dupont 2018, arXiv:1804.00104). Training draws relaxed
codes, whose figures are not bounds; validation and test draw one-hot codes.

Command: scripts/run experiments/categorical_mnist.py
Time: 17 minutes on 2 cores that five trainings shared; 5 with --joint
Expect: test NLL 103.7 nats, ELBO -118.8, KL 23.5 of at most 20 log(10) = 46.1 (seed 0); with
--joint 104.9 and -111.3, KL 21.0 of z and 2.25 of c
"""

import math

import keras

import vae_research as vr
from vae_research import runs

runs.define_boolean("joint", False, "one variable c of ten classes beside continuous latents z")
runs.define_integer("variables", 20, "categorical variables, without --joint", minimum=1)
runs.define_integer("classes", 10, "of each of them, without --joint", minimum=2)
runs.define_float("temperature", 0.5, "of relaxed codes, at the end of its annealing")
runs.define_float("capacity", 20.0, "of z with --joint, nats; that of c is log(10)")
runs.define_float("gamma", 10.0, "weight of the distances from the capacities, with --joint")
runs.define_integers("hidden_units", (500,), "units of the dense layers, from the image to z")


def annealed(end, start, config):
    """Returns a schedule from one number to another in the first half of the epochs."""
    return vr.LinearWarmup(start=start, peak=end, epochs=max(config.epochs / 2, 1))


def build(config, data):
    """Returns the model."""
    shape = (10,) if config.joint else (config.variables, config.classes)
    temperature = annealed(config.temperature, max(1.0, config.temperature), config)
    bottleneck = vr.RelaxedCategoricalBottleneck(shape, temperature=temperature)
    code, heads = "z", {"z_logits": math.prod(shape)}
    terms = [vr.Bernoulli(), vr.KLDivergence()]
    if config.joint:
        code, size = "c", config.latent_dim
        heads = {"z_mean": size, "z_log_var": size, "c_logits": 10}
        bottleneck = vr.JointBottleneck({"z": vr.GaussianBottleneck(size), "c": bottleneck})
        capacities = {"z": config.capacity, "c": math.log(10.0)}
        terms = [vr.Bernoulli()]
        for latent, capacity in capacities.items():
            capacity = annealed(capacity, 0.0, config)
            terms.append(vr.CapacityKL(latent=latent, capacity=capacity, weight=config.gamma))

    units = config.hidden_units
    inputs = keras.Input(data.shape, name="inputs")
    written = vr.dense_encoder(data.shape, 1, hidden_units=units, outputs=heads)(inputs)
    written[f"{code}_logits"] = keras.layers.Reshape(shape)(written[f"{code}_logits"])
    codes = {name: keras.Input(size, name=name) for name, size in bottleneck.latents.items()}
    flat = [keras.layers.Flatten()(each) for each in codes.values()]
    flat = keras.layers.Concatenate()(flat) if config.joint else flat[0]
    decoder = vr.dense_decoder(data.shape, flat.shape[-1], hidden_units=units[::-1])
    return vr.VAE(
        keras.Model(inputs, written, name="encoder"),
        bottleneck,
        keras.Model(codes if config.joint else codes[code], decoder(flat), name="decoder"),
        terms,
        seed=config.noise_seed,
    )


if __name__ == "__main__":
    runs.main(build)
