"""Four places for the loss of a VAE in a Keras model, and the cost of each.

Idea: the same convolutional VAE with the same initial weights, noise and data, and the loss in a
layer on top (Solution I), the KL loss in a layer of the encoder (strategy 1), the loss in the
combined model (strategy 2), or in a custom training step (strategy 3). The four first train whole
epochs in turn. Then blocks of steps are timed in turn, compiled with and without XLA, together with
variants that answer smaller questions.

Command: scripts/run experiments/kl_formulations.py
Time: 20 minutes on 2 cores
Expect: no difference between the four above the spread of 20 % (medians 15.3 to 16.3 s per epoch as
a graph; a plain autoencoder 14.4 s); XLA 0.67 to 0.79 and eager execution 0.4 times as fast; a loss
of 0.0896 (strategy 1: 0.0894) in epoch 5.
"""

import math
import random
import shutil
import statistics
import time

import keras
import tensorflow as tf
from keras import ops

import vae_research as vr
from vae_research import runs

runs.set_defaults(epochs=5, latent_dim=16, binarize="none")
runs.define_float(
    "kl_factor", 0.5e-4, "in front of the latent mean of -(1 + log_var - mean^2 - var)"
)
runs.define_integers("filters", (32, 64), "channels of the encoder's convolutions")
runs.define_integer("rounds", 7, "blocks of steps that are timed of each variant", minimum=1)
runs.define_integer("block_steps", 100, "steps of a timed block", minimum=1)
runs.define_string(
    "timed",
    "all",
    "models whose steps are timed, names separated by commas, as the tables have them; Solution I, "
    "with which they are compared, is timed in any case",
)


# Each function returns a model of the given networks and the loss to pass to `compile`. Its
# docstring says where the loss is computed; the tables show it.


def solution_1(encoder, decoder, config):
    """A layer on top."""
    return on_top(encoder, decoder, config, vr.VAELossLayer(config.kl_factor)), None


def strategy_1(encoder, decoder, config):
    """KL in the encoder."""
    model = in_encoder(encoder, decoder, config, vr.KLLossLayer(config.kl_factor))
    return model, cross_entropy()


def strategy_2(encoder, decoder, config):
    """The combined model."""
    return vr.AddLossModel(encoder, decoder, config.kl_factor, seed=config.noise_seed), None


def strategy_3(encoder, decoder, config):
    """The training step."""
    pixels = math.prod(encoder.input_shape[1:])
    terms = vr.pixel_mean_terms(
        factor=config.kl_factor, pixels=pixels, latent_dim=config.latent_dim
    )
    bottleneck = vr.GaussianBottleneck(config.latent_dim)
    return vr.VAE(encoder, bottleneck, decoder, terms, seed=config.noise_seed), None


FORMULATIONS = {
    "Solution I": solution_1,
    "strategy 1": strategy_1,
    "strategy 2": strategy_2,
    "strategy 3": strategy_3,
}

LOSSES = ("total_loss", "reco_loss", "kl_loss")

# Name of a change: what is timed without it, and what is timed with it.
FUNCTION, KL_ONLY = ("loss in a function", "graph"), ("KL only on top", "graph")
CHANGES = {
    "loss in call instead of a function": (FUNCTION, ("loss in call", "graph")),
    "BCE by Keras, KL only in the layer": (FUNCTION, KL_ONLY),
    "KL layer in the encoder instead of on top": (KL_ONLY, ("KL only in the encoder", "graph")),
    "TensorFlow operations instead of keras.ops": (("keras.ops", "graph"), FUNCTION),
    "graph instead of eager, Solution I": (("Solution I", "eager"), ("Solution I", "graph")),
    "graph instead of eager, strategy 3": (("strategy 3", "eager"), ("strategy 3", "graph")),
    **{f"XLA instead of graph, {name}": ((name, "graph"), (name, "XLA")) for name in FORMULATIONS},
    "no KL loss and no noise at all": (("Solution I", "graph"), ("plain autoencoder", "graph")),
}


def on_top(encoder, decoder, config, layer):
    """Returns a functional VAE that ends in a layer of (z_mean, z_log_var, inputs, logits)."""
    inputs = keras.Input(encoder.input_shape[1:], name="inputs")
    codes = encoder(inputs)
    z = vr.SamplingLayer(config.noise_seed)(codes["z_mean"], codes["z_log_var"])
    logits = decoder(z)["logits"]
    return keras.Model(inputs, layer(codes["z_mean"], codes["z_log_var"], inputs, logits))


def in_encoder(encoder, decoder, config, layer):
    """Returns a functional VAE with a layer of (z_mean, z_log_var) in front of the sampling."""
    inputs = keras.Input(encoder.input_shape[1:], name="inputs")
    codes = encoder(inputs)
    z_mean, z_log_var = layer(codes["z_mean"], codes["z_log_var"])
    whole_encoder = keras.Model(inputs, vr.SamplingLayer(config.noise_seed)(z_mean, z_log_var))
    return keras.Model(inputs, decoder(whole_encoder(inputs))["logits"])


class LossLayer(keras.layers.Layer):
    """Base of layers that add a loss: `factor` is in front of its KL part."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor


class InFunction(LossLayer):
    """The whole loss, in a function that `call` calls."""

    def vae_loss(self, z_mean, z_log_var, inputs, logits):
        reco = tf.nn.sigmoid_cross_entropy_with_logits(inputs, logits)
        kl = -self.factor * (1.0 + z_log_var - tf.square(z_mean) - tf.exp(z_log_var))
        return tf.reduce_mean(reco) + tf.reduce_mean(kl)

    def call(self, z_mean, z_log_var, inputs, logits):
        self.add_loss(self.vae_loss(z_mean, z_log_var, inputs, logits))
        return logits


class InCall(LossLayer):
    """The whole loss, in `call`."""

    def call(self, z_mean, z_log_var, inputs, logits):
        reco = tf.nn.sigmoid_cross_entropy_with_logits(inputs, logits)
        kl = -self.factor * (1.0 + z_log_var - tf.square(z_mean) - tf.exp(z_log_var))
        self.add_loss(tf.reduce_mean(reco) + tf.reduce_mean(kl))
        return logits


class WithKerasOps(LossLayer):
    """The whole loss, in operations of Keras."""

    def call(self, z_mean, z_log_var, inputs, logits):
        reco = ops.binary_crossentropy(inputs, logits, from_logits=True)
        kl = -self.factor * (1.0 + z_log_var - ops.square(z_mean) - ops.exp(z_log_var))
        self.add_loss(ops.mean(reco) + ops.mean(kl))
        return logits


class KLOnTop(LossLayer):
    """The KL part, on top."""

    def call(self, z_mean, z_log_var, inputs, logits):
        kl = -self.factor * (1.0 + z_log_var - tf.square(z_mean) - tf.exp(z_log_var))
        self.add_loss(tf.reduce_mean(kl))
        return logits


class KLInEncoder(LossLayer):
    """The KL part, in the encoder."""

    def call(self, z_mean, z_log_var):
        kl = -self.factor * (1.0 + z_log_var - tf.square(z_mean) - tf.exp(z_log_var))
        self.add_loss(tf.reduce_mean(kl))
        return z_mean, z_log_var


def made_of(layer, loss=None):
    """Returns a function like those above: `layer` on top, and `loss` in `compile`."""

    def make(encoder, decoder, config):
        model = on_top(encoder, decoder, config, layer(config.kl_factor))
        return model, loss() if loss else None

    return make


def cross_entropy():
    return keras.losses.BinaryCrossentropy(from_logits=True)


def kl_in_encoder(encoder, decoder, config):
    layer = KLInEncoder(config.kl_factor)
    return in_encoder(encoder, decoder, config, layer), cross_entropy()


def plain_autoencoder(encoder, decoder, config):
    inputs, z_mean = encoder.inputs, encoder.output["z_mean"]  # without the other head
    return keras.Model(inputs, decoder(z_mean)["logits"]), cross_entropy()


# The smaller questions. None of these models has metrics.
VARIANTS = {
    "loss in a function": made_of(InFunction),
    "loss in call": made_of(InCall),
    "keras.ops": made_of(WithKerasOps),
    "KL only on top": made_of(KLOnTop, cross_entropy),
    "KL only in the encoder": kl_in_encoder,
    "plain autoencoder": plain_autoencoder,
}


class Candidate:
    """A model that is trained in turn with others.

    Args:
        make: one of the functions above.
        config: the flags.
        data: its training data.
        reports: whether its logs have the three losses.
        settings: passed to `compile`.
    """

    def __init__(self, make, config, data, *, reports=False, **settings):
        keras.utils.set_random_seed(config.init_seed)  # the same initial weights for all
        encoder = vr.convolutional_encoder(data.shape, config.latent_dim, filters=config.filters)
        decoder = vr.convolutional_decoder(
            data.shape, config.latent_dim, filters=config.filters[::-1]
        )
        self.model, loss = make(encoder, decoder, config)
        self.model.compile(keras.optimizers.Adam(config.learning_rate), loss, **settings)
        self.batch = pair if loss else alone
        self.callbacks = [vr.ReportLosses()] if reports else []
        self.config, self.data = config, data

    def fit(self, epoch, steps):
        """Trains some steps of an epoch; returns the seconds and the losses."""
        batches = self.data.train.batches(
            self.config.batch_size, self.config.data_seed, first_epoch=epoch
        ).map(self.batch)
        times = []
        clock = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda *_: times.append(time.perf_counter()),
            on_epoch_end=lambda *_: times.append(time.perf_counter()),
        )
        callbacks = [clock, runs.StopAtSignal(), runs.StopWhenDiverged(), *self.callbacks]
        history = self.model.fit(
            batches, steps_per_epoch=steps, callbacks=callbacks, shuffle=False, verbose=0
        ).history
        return times[1] - times[0], {name: values[-1] for name, values in history.items()}


def alone(batch):
    return batch["inputs"]


def pair(batch):
    return batch["inputs"], batch["inputs"]


def folder_of(name, run_dir):
    return run_dir / name.replace(" ", "_")


def train_epochs(config, data, run_dir):
    """Trains the four formulations, an epoch of each in turn; returns times and losses by name."""
    candidates = {
        name: Candidate(make, config, data, reports=True, jit_compile=False)
        for name, make in FORMULATIONS.items()
    }
    for name in candidates:  # an interrupted study starts from the beginning
        shutil.rmtree(folder_of(name, run_dir), ignore_errors=True)
    steps = data.train.steps(config.batch_size)
    seconds = {name: [] for name in candidates}
    losses = {}
    summaries = vr.Summaries(run_dir)
    for epoch in range(config.epochs):
        for name in in_turn(candidates, epoch):
            duration, logs = candidates[name].fit(epoch, steps)
            seconds[name].append(duration)
            losses[name] = {kind: logs[kind] for kind in LOSSES}
            values = losses[name] | {"seconds_per_epoch": duration}
            summaries.scalars(folder_of(name, run_dir).name, values, (epoch + 1) * steps)
        say(config, f"epoch {epoch + 1}/{config.epochs}: {describe(seconds, losses)}")
    summaries.close()
    return seconds, losses


def describe(seconds, losses):
    return ", ".join(
        f"{name} {found[-1]:.1f} s, loss {losses[name]['total_loss']:.5f}"
        for name, found in seconds.items()
    )


def timed_names(config):
    """Returns the names of the models that are timed."""
    known = [*FORMULATIONS, *VARIANTS]
    given = known if config.timed == "all" else [name.strip() for name in config.timed.split(",")]
    for name in given:
        if name not in known:
            raise runs.UsageError(
                f"--timed={config.timed} has {name!r}; the models are {', '.join(known)}, or all."
            )
    return {"Solution I", *given}


def time_blocks(config, data):
    """Times blocks of steps in turn; returns seconds per epoch by name and settings."""
    names = timed_names(config)
    graph = {"jit_compile": False}
    ways = {"graph": graph, "XLA": {"jit_compile": True}}
    candidates = {
        (name, way): Candidate(make, config, data, **settings)
        for way, settings in ways.items()
        for name, make in FORMULATIONS.items()
        if name in names
    }
    for name, make in VARIANTS.items():
        if name in names:
            candidates[name, "graph"] = Candidate(make, config, data, **graph)
    for name in ("Solution I", "strategy 3"):
        if name in names:
            settings = {"run_eagerly": True, "jit_compile": False}
            candidates[name, "eager"] = Candidate(FORMULATIONS[name], config, data, **settings)
    for candidate in candidates.values():
        candidate.fit(0, 2)  # traces and compiles
    scale = data.train.steps(config.batch_size) / config.block_steps
    seconds = {key: [] for key in candidates}
    for turn in range(config.rounds):
        for key in in_turn(candidates, turn):
            seconds[key].append(candidates[key].fit(turn, config.block_steps)[0] * scale)
        say(config, f"round {turn + 1}/{config.rounds} of timed blocks is done")
    return seconds


def in_turn(candidates, turn):
    """Returns the candidates in a random order that depends on `turn`."""
    return random.Random(turn).sample(list(candidates), len(candidates))


def say(config, text):
    if config.verbose:
        print(text, flush=True)


def check(config, data):
    """Refuses data that are not images, and names of models that there are not."""
    timed_names(config)
    if not data.is_image:
        raise vr.DataError(f"{data.name} has no images, which this study needs; see --dataset.")


def run_study(config, data, run_dir):
    """Trains, times, and writes tables and the bar chart."""
    trained, losses = train_epochs(config, data, run_dir)
    blocks = time_blocks(config, data)
    answers = {
        change: ratios(blocks[after], blocks[before])
        for change, (before, after) in CHANGES.items()
        if before in blocks and after in blocks
    }
    vr.save_bars(
        run_dir / "figures" / "seconds_per_epoch.png",
        {", ".join(key): found for key, found in blocks.items()},
        title=f"Convolutional VAE, {len(data.train):,} images, batch {config.batch_size}",
        unit="seconds per epoch (median; line from smallest to largest)",
        groups={", ".join(key): key[1] for key in blocks},
    )
    return {
        "tables": "\n".join(tables(trained, losses, blocks, answers)),
        "epochs": config.epochs,
        "losses": losses,
        "seconds_per_epoch": {
            "trained": trained,
            "timed": {", ".join(key): found for key, found in blocks.items()},
        },
        "times_as_fast": answers,
    }


def tables(trained, losses, blocks, answers):
    """Yields the tables: trained in turn, each at its best, all that was timed, changes."""
    head = ["seconds per epoch", "times as fast as Solution I, median (min to max)"]
    # The first epoch includes tracing.
    after_first = {name: found[1:] or found for name, found in trained.items()}
    base = after_first["Solution I"]
    yield runs.markdown_table(
        ["trained in turn", "the loss stands in", *head, *LOSSES],
        [
            [name, FORMULATIONS[name].__doc__.rstrip("."), *cells(found, base)]
            + [f"{value:.6f}" for value in losses[name].values()]
            for name, found in after_first.items()
        ],
    )
    best = {
        name: min(("graph", "XLA"), key=lambda way: statistics.median(blocks[name, way]))
        for name in FORMULATIONS
        if (name, "graph") in blocks
    }
    base = blocks["Solution I", best["Solution I"]]
    yield runs.markdown_table(
        ["at its best", *head],
        [[f"{name}, {way}", *cells(blocks[name, way], base)] for name, way in best.items()],
    )
    base = blocks["Solution I", "graph"]
    yield runs.markdown_table(
        ["timed in turn", *head],
        [[", ".join(key), *cells(found, base)] for key, found in blocks.items()],
    )
    yield runs.markdown_table(
        ["what is changed", "times as fast"],
        [[change, runs.median_and_range(found, 2)] for change, found in answers.items()],
    )


def cells(seconds, than):
    return [runs.median_and_range(seconds, 1), runs.median_and_range(ratios(seconds, than), 2)]


def ratios(seconds, than):
    """Returns how many times as fast as `than` each turn was."""
    return [b / a for a, b in zip(seconds, than, strict=True)]


if __name__ == "__main__":
    runs.study(run_study, check=check, needs=["matplotlib"])
