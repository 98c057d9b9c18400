"""Many short runs of the experiment below, each in a fork (see `tests.forks`).

A trial trains with real flags, and is killed where it is told to be, from inside, so that the phase
in which it died is known.
"""

import errno
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests import forks


def run(run_dir, *flags, **how):
    """Runs a trial; returns its status (exit code, or minus a signal), phase, and stderr.

    Keywords:
        kill_at_effect: the number of a file effect.
        kill_at: an effect, the name of its path, and which one of these, from 1.
        kill_in_call, after: a call of the compiled steps, and seconds after its beginning, in
            another thread, for which the next call waits; at once without them.
        signal: instead of SIGKILL.
        again_at: effect and beginning of the name of its path, where a first signal is followed by
            another.
        error_in: a "term" in the sixth call, a "callback" at the end of the first epoch from the
            third on, or the file of "metrics".
        experiment: the name of one whose `build` makes the model, instead of the one below; or
            "with_critic" and "with_callbacks", for what is below.
        failing_steps: at which the loss of that critic is not a number, counted from 0.
        fill_in_call, free_in_call, filler: before which call a file takes all that is left of
            its disk, and before which one it is removed.
        hold_for: folder and count: the first call waits until so many other trials have come to
            theirs, or to their end.
        list_effects: the result has `effects`, each with the name of its path.
        mutant: see `tests.mutants`.
        whole: to write figures and networks as well.
    """
    (result,) = together([([f"--run_dir={run_dir}", *flags], how)])
    return result


def together(trials):
    """Runs trials at the same time, each a pair of flags and of keywords as `run` has them."""
    with tempfile.TemporaryDirectory() as folder:
        begun = []
        for number, (flags, how) in enumerate(trials):
            answers = Path(folder, str(number))
            answers.touch()
            asked = json.dumps({"flags": flags, "answers": str(answers), **how})
            begun.append((forks.start("-m", "tests.trials", asked, cwd=folder), answers))
        return [_result(process.ended(), answers) for process, answers in begun]


def _result(process, answers):
    result = {"status": process.returncode, "phase": "ended", "stderr": process.stderr}
    for line in answers.read_text().splitlines():
        result |= json.loads(line)
    return result


# ---------------------------------------------------------------- in the server


def build(config, data):
    """A small VAE with dropout and batch normalization, dense or convolutional.

    Its optimizer has slots, and takes a third of the time that Adam needs to be traced.
    """
    import keras

    import vae_research as vr

    layers = keras.layers
    inputs = keras.Input(data.shape, name="inputs")
    features = inputs
    if config.network == "convolutional":
        features = layers.Conv2D(4, 3, strides=2, activation="relu")(features)
    features = layers.Dense(8, activation="relu")(layers.Flatten()(features))
    features = layers.Dropout(0.2)(layers.BatchNormalization()(features))
    heads = {name: layers.Dense(2)(features) for name in ("z_mean", "z_log_var")}
    model = vr.VAE(
        keras.Model(inputs, heads),
        vr.GaussianBottleneck(2),
        vr.dense_decoder(data.shape, 2, hidden_units=(8,)),
        [vr.Bernoulli(), vr.KLDivergence(weight=vr.LinearWarmup(steps=15))],
        seed=config.seed,
    )
    if not config.ema:  # whose optimizer a run makes
        optimizer = keras.optimizers.SGD(config.learning_rate, momentum=0.9)
        model.compile(optimizer, run_eagerly=config.run_eagerly)
    return model


def build_with_critic(config, data):
    """The VAE of `build` with a critic of the codes, which also has an optimizer with slots."""
    import keras
    import tensorflow as tf

    import vae_research as vr

    class Judge(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.network = keras.Sequential([keras.layers.Dense(4, "relu"), keras.layers.Dense(1)])

        def call(self, z, z_prior):
            logits = self.network(z)[:, 0], self.network(z_prior)[:, 0]
            return dict(zip(("code_logit", "prior_logit"), logits, strict=True))

    class CrossEntropy(vr.LossTerm):
        def per_example(self, code_logit, prior_logit, step):
            fails = tf.reduce_any([tf.equal(step, float(bad)) for bad in [-1, *FAILING_STEPS]])
            value = tf.nn.softplus(code_logit) + tf.nn.softplus(-prior_logit)
            return value * tf.where(fails, float("nan"), 1.0)

    class Fooling(vr.LossTerm):
        def per_example(self, code_logit):
            return tf.nn.softplus(-code_logit)

    plain = build(config, data)
    return vr.VAE(
        plain.encoder,
        plain.bottleneck,
        plain.decoder,
        [*plain.objective.terms, Fooling()],
        critics=[vr.Critic(Judge(), [CrossEntropy()], keras.optimizers.Adam(0.01), steps=2)],
        seed=config.seed,
    )


FAILING_STEPS = []  # of its critic, in this process


def callbacks(config, data):
    """Callbacks that train otherwise, and stop at another time, if anything of them is lost."""
    import keras

    import vae_research as vr

    class Falling(keras.callbacks.Callback):
        """Lowers the learning rate in every epoch, and in every third call, and at the end."""

        def __init__(self):
            super().__init__()
            self.calls, self.rates = 0, []

        def lower(self, factor):
            rate = self.model.optimizer.learning_rate
            rate.assign(rate * factor)

        def on_train_begin(self, logs=None):
            self.lower(0.9)

        def on_epoch_begin(self, epoch, logs=None):
            self.lower(0.8)

        def on_train_batch_end(self, batch, logs=None):
            self.calls += 1
            if self.calls % 3 == 0:
                self.lower(0.7)

        def on_epoch_end(self, epoch, logs=None):
            self.rates.append(float(self.model.optimizer.learning_rate))
            logs["rate"], logs["val_rates"] = self.rates[-1], sum(self.rates)

    class Kinds(vr.callbacks.EpochCallback):
        """Remembers a set, which JSON does not know."""

        def __init__(self):
            super().__init__()
            self.seen = set()

        def on_record(self, record):
            self.seen.add(record.step)
            if len(self.seen) % 2 == 0:
                self.model.optimizer.learning_rate.assign(0.01 / len(self.seen))

        def get_state(self):
            return super().get_state() | {"seen": sorted(self.seen)}

        def set_state(self, state):
            super().set_state(state)
            self.seen = set(state["seen"])

    small = {"min_delta": 1000.0}  # an improvement that no epoch makes after the first
    return [
        Falling(),
        keras.callbacks.ReduceLROnPlateau("val_elbo", patience=1, **small),
        keras.callbacks.EarlyStopping("val_elbo", patience=3, **small),
        Kinds(),
    ]


class Watch:
    """Does to its own process what it is told to, and says in which phase it was killed."""

    def __init__(self, how):
        self.how = how
        self.effects = []
        self.calls = 0
        self.phase = "starting"
        self.saving = False
        self.killer = None

    def install(self):
        from vae_research import checkpoints, files
        from vae_research.callbacks import metrics_file
        from vae_research.runs.session import results
        from vae_research.runs.session.fit import gate

        files.before = self.before
        write, guard, estimate = checkpoints.write, gate.FiniteGate.__call__, results.estimate
        log, error_in = metrics_file.MetricsFile.on_record, self.how.get("error_in")

        def watched_write(*arguments):
            self.saving = True
            try:
                return write(*arguments)
            finally:
                self.saving = False

        def watched_guard(gate, loop):
            run = guard(gate, loop)

            def watched_run(iterator):
                if error_in == "term" and self.calls == 5:
                    raise RuntimeError("of the user's term")
                self.phase = "in a call"
                self.calls += 1
                self.before_call()
                try:
                    return run(iterator)
                finally:
                    if self.killer is not None:
                        self.killer.join()  # however busy the machine is
                    self.phase = "between two calls"

            return watched_run

        def watched_estimate(*arguments, **options):
            self.phase = "after training"
            return estimate(*arguments, **options) if self.how.get("whole") else {}

        def watched_log(callback, record):
            if error_in == "callback" and record.epoch >= 3:
                raise RuntimeError("of the user's callback")
            log(callback, record)

        def append(path, lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        if error_in == "metrics":
            metrics_file.append = append
        metrics_file.MetricsFile.on_record = watched_log
        checkpoints.write = watched_write
        gate.FiniteGate.__call__ = watched_guard
        results.estimate = watched_estimate
        if not self.how.get("whole"):
            results.Results.write = lambda *arguments: None

    def before_call(self):
        if self.calls == 1 and "hold_for" in self.how:
            self.hold(**self.how["hold_for"])
        if self.calls == self.how.get("fill_in_call"):
            fill_disk(self.how["filler"])
        if self.calls == self.how.get("free_in_call"):
            os.remove(self.how["filler"])
        if self.calls == self.how.get("kill_in_call"):
            if "after" in self.how:
                self.killer = threading.Thread(target=self.kill_later, daemon=True)
                self.killer.start()
            else:
                self.kill(self.phase)

    def before(self, effect, path):
        from vae_research.runs.cli import signals

        number, name = len(self.effects), path.name
        self.effects.append([effect, name])
        where = "in a save" if "checkpoints" in path.parts else "in a file of the run"
        at_name = [effect, name, self.effects.count([effect, name])]
        if number == self.how.get("kill_at_effect") or at_name == self.how.get("kill_at"):
            self.kill(f"{where}, before {effect} of {name}")
        again, beginning = self.how.get("again_at", ("never", ""))
        if signals.is_received() and effect == again and name.startswith(beginning):
            self.kill(f"{where}, before {effect} of {name}, for the second time")
            time.sleep(60)  # the first thread hears of it

    def hold(self, folder, count):
        note(folder)
        while len(os.listdir(folder)) <= count:
            time.sleep(0.02)

    def kill_later(self):
        time.sleep(self.how["after"])
        self.kill(f"{self.phase}, saving" if self.saving else self.phase)

    def kill(self, phase):
        self.answer(phase=phase)
        os.kill(os.getpid(), getattr(signal, self.how.get("signal", "SIGKILL")))

    def answer(self, **found):
        with open(self.how["answers"], "a") as stream:
            stream.write(json.dumps(found) + "\n")

    def ended(self):
        if self.how.get("list_effects"):
            self.answer(effects=self.effects)


def fill_disk(filler):
    """Makes a file that takes all that is left of the disk, to the last block."""
    with open(filler, "wb", buffering=0) as stream:
        for size in (2**20, 2**12):
            try:
                while True:
                    stream.write(bytes(size))
            except OSError:
                continue


def note(folder):
    """Says in a folder of `hold_for` that this process came to its first call, or to its end."""
    Path(folder, str(os.getpid())).touch()


def trial(how):
    """Runs a trial in this process, which ends with it."""
    from tests.mutants import MUTANTS
    from vae_research import runs

    random.seed(0)
    sys.argv = ["trials.py"]
    runs.define_choice("network", "dense", ("dense", "convolutional"), "encoder")
    watch = Watch(how)
    watch.install()
    if "mutant" in how:
        MUTANTS[how["mutant"]]()
    FAILING_STEPS.extend(how.get("failing_steps", []))
    name = how.get("experiment")
    own = name in BUILDS
    module = None if own else importlib.import_module(f"experiments.{name}")
    make, data = BUILDS[name] if own else module.build, getattr(module, "data", None)
    try:
        runs.main(make, [*FLAGS, *how["flags"]], data=data, callbacks=CALLBACKS.get(name))
    finally:
        watch.ended()
        if "hold_for" in how:
            note(how["hold_for"]["folder"])


BUILDS = {None: build, "streamed": build, "with_critic": build_with_critic, "with_callbacks": build}
CALLBACKS = {"with_callbacks": callbacks, "with_critic": callbacks}
FLAGS = ["--batch_size=8", "--importance_samples=2", "--verbose=0", "--device=cpu"]

if __name__ == "__main__":
    trial(json.loads(sys.argv[1]))
