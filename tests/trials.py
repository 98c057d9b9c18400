"""Many short runs, each in a process of its own that is cheap to make.

A server imports TensorFlow once and forks for every trial, before TensorFlow computes anything: a
trial then costs a second or two, and not five. It reads one line of JSON for each trial from its
standard input and answers with one line. A trial trains the experiment below with real flags, and
is killed where it is told to be, from inside, so that the phase in which it died is known.

Mutants break one promise each; the proofs must notice all of them.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


class Trials:
    """The server, from the outside."""

    def __init__(self):
        environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "TF_CPP_MIN_LOG_LEVEL": "3"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.trials"],
            cwd=CHECKOUT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start(self, run_dir, *flags, **how):
        """Begins a trial; `end` returns the result of the one that was begun first."""
        how |= {"flags": [f"--run_dir={run_dir}", *flags]}
        self.process.stdin.write(json.dumps(how) + "\n")
        self.process.stdin.flush()

    def end(self):
        """Returns status (exit code, or minus a signal), phase, effects and stderr of a trial."""
        return json.loads(self.process.stdout.readline())

    def run(self, run_dir, *flags, **how):
        """Runs a trial.

        Keywords: `kill_at_effect`, the number of a file effect of the checkpoints; `kill_in_call`
        and `after`, a call of the compiled steps and seconds after its beginning; `signal` instead
        of SIGKILL; `error_in`, a "term" or a "callback"; `mutant`;
        `whole`, to write figures and networks as well.
        """
        self.start(run_dir, *flags, **how)
        return self.end()

    def close(self):
        """Ends the server."""
        self.process.stdin.close()
        self.process.wait(timeout=60)


# ---------------------------------------------------------------- in the server


def build(config, data):
    """A small VAE with dropout and batch normalization, dense or convolutional."""
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
    return vr.VAE(
        keras.Model(inputs, heads),
        vr.GaussianBottleneck(2),
        vr.dense_decoder(data.shape, 2, hidden_units=(8,)),
        [vr.Bernoulli(), vr.KLDivergence(weight=vr.LinearWarmup(steps=15))],
        seed=config.seed,
    )


class Watch:
    """Kills the process where it is told to, and says in which phase it was."""

    def __init__(self, how, answer):
        self.how, self.answer = how, answer
        self.effects = self.calls = 0
        self.phase = "starting"
        self.saving = False

    def install(self):
        from vae_research import checkpoints, files
        from vae_research.callbacks import records
        from vae_research.runs import gate, training

        files.before = self.before
        write, run, evaluate = checkpoints.write, gate.FiniteGate._run, training.evaluate

        def watched_write(*arguments):
            self.saving = True
            try:
                return write(*arguments)
            finally:
                self.saving = False

        def watched_run(*arguments):
            self.phase = "in a call"
            self.calls += 1
            if self.calls == self.how.get("kill_in_call"):
                threading.Thread(target=self.kill_later, daemon=True).start()
            try:
                return run(*arguments)
            finally:
                self.phase = "between two calls"

        def watched_evaluate(*arguments, **options):
            self.phase = "after training"
            return evaluate(*arguments, **options) if self.how.get("whole") else {}

        def failing(callback, record):
            if record.epoch == 3:
                raise RuntimeError("of the user's callback")
            log(callback, record)

        def failing_run(*arguments):
            if self.calls == 5:
                raise RuntimeError("of the user's term")
            return watched_run(*arguments)

        log = records.MetricsFile.on_record
        error_in = self.how.get("error_in")
        if error_in == "callback":
            records.MetricsFile.on_record = failing
        checkpoints.write = watched_write
        gate.FiniteGate._run = failing_run if error_in == "term" else watched_run
        training.evaluate = watched_evaluate
        if not self.how.get("whole"):
            training._write_results = lambda *arguments: None

    def before(self, effect, path):
        if "checkpoints" not in path.parts:
            return
        if self.effects == self.how.get("kill_at_effect"):
            self.phase = f"in a save, before {effect} of {path.name}"
            self.kill()
        self.effects += 1

    def kill_later(self):
        time.sleep(self.how.get("after", 0.0))
        self.kill()

    def kill(self):
        number = getattr(signal, self.how.get("signal", "SIGKILL"))
        phase = f"{self.phase}, saving" if self.saving and "save" not in self.phase else self.phase
        os.write(self.answer, json.dumps({"phase": phase}).encode())
        os.kill(os.getpid(), number)


def noise_with_state():
    """Noise of the training from a generator that no checkpoint knows."""
    import tensorflow as tf

    from vae_research import model

    generator = tf.random.Generator.from_seed(1, alg="philox")
    model.training_key = lambda seed, step: generator.uniform_full_int([2], tf.int64)


def slots_dropped():
    """Checkpoints without the optimizer's momenta."""
    from vae_research import checkpoints

    state_of = checkpoints.state_of
    checkpoints.state_of = lambda model: [v for v in state_of(model) if "velocity" not in v.path]


def position_dropped():
    """A run that goes on within an epoch begins it anew."""
    from vae_research.data import Split

    resident = Split.resident
    Split.resident = lambda *args, **kwargs: resident(*args, **kwargs | {"first_position": 0})


def sums_dropped():
    """Running means begin anew where a run goes on."""
    from vae_research.model import VAE

    VAE.set_running_sums = lambda *arguments: None


def logs_kept():
    """What was logged after the checkpoint stays."""
    from vae_research.runs import logs

    logs.rewind = lambda *arguments: []


def written_in_place():
    """A checkpoint has its name from the beginning."""
    from vae_research import checkpoints, files, manifests

    checkpoints._remove_remains = lambda folder: None
    rename = files.rename
    manifests.ASIDE = ""
    files.rename = lambda source, target: None if source == target else rename(source, target)


MUTANTS = {
    function.__name__: function
    for function in (
        noise_with_state,
        slots_dropped,
        position_dropped,
        sums_dropped,
        logs_kept,
        written_in_place,
    )
}


def trial(how, answer):
    """Runs a trial in this process, which ends with it."""
    from vae_research import runs

    random.seed(0)
    sys.argv = ["trials.py"]
    Watch(how, answer).install()
    if "mutant" in how:
        MUTANTS[how["mutant"]]()
    try:
        runs.main(build, [*FLAGS, *how["flags"]])
    except SystemExit as end:
        return end.code or 0
    return 0


FLAGS = ["--batch_size=8", "--importance_samples=2", "--verbose=0", "--device=cpu"]


def serve():
    """Answers trials until standard input ends."""
    import vae_research.runs.training  # noqa: F401  (before the forks, for all of them)
    from vae_research import runs

    runs.define_choice("network", "dense", ("dense", "convolutional"), "encoder")
    for line in sys.stdin:
        how = json.loads(line)
        reading, writing = os.pipe()
        errors = os.memfd_create("stderr")
        child = os.fork()
        if child == 0:
            os.close(reading)
            os.dup2(errors, 2)
            os.dup2(errors, 1)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            code = 70
            try:
                code = trial(how, writing)
            except BaseException:
                import traceback

                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
        os.close(writing)
        _, status = os.waitpid(child, 0)
        said = os.read(reading, 10_000)
        os.close(reading)
        os.lseek(errors, 0, os.SEEK_SET)
        result = {
            "status": os.waitstatus_to_exitcode(status),
            "phase": json.loads(said)["phase"] if said else "ended",
            "stderr": os.read(errors, 100_000).decode(),
        }
        os.close(errors)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    serve()
