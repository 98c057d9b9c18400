"""Many short runs, each in a process of its own that is cheap to make.

A server imports TensorFlow once and forks for every trial, before TensorFlow computes anything: a
trial then costs a second or two, and not five. It reads one line of JSON from its standard input
for the trials that are to run at a time, and answers with one line. A trial trains the experiment
below with real flags, and is killed where it is told to be, from inside, so that the phase in which
it died is known.
"""

import errno
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

    def together(self, trials):
        """Runs trials at the same time, each a pair of flags and of keywords as `run` has them."""
        lines = [{"flags": flags, **how} for flags, how in trials]
        self.process.stdin.write(json.dumps(lines) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def run(self, run_dir, *flags, **how):
        """Runs a trial; returns its status (exit code, or minus a signal), phase, and stderr.

        Keywords:
            kill_at_effect: the number of a file effect.
            kill_at: an effect, the name of its path, and which one of these, from 1.
            kill_in_call, after: a call of the compiled steps, and seconds after its beginning, in
                another thread; at once without them.
            signal: instead of SIGKILL.
            again_at: effect and name of its path, where a first signal is followed by another.
            error_in: a "term", a "callback", or the file of "metrics".
            fill_in_call, free_in_call, filler: before which call a file takes all that is left of
                its disk, and before which one it is removed.
            hold_for: folder, count and seconds: the first call waits until so many other trials
                have ended.
            list_effects: the result has `effects`, each with the name of its path.
            mutant: see `tests.mutants`.
            whole: to write figures and networks as well.
        """
        (result,) = self.together([([f"--run_dir={run_dir}", *flags], how)])
        return result

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
    """Does to its own process what it is told to, and says in which phase it was killed."""

    def __init__(self, how, answer):
        self.how, self.answer = how, answer
        self.effects = []
        self.calls = 0
        self.phase = "starting"
        self.saving = False

    def install(self):
        from vae_research import checkpoints, files
        from vae_research.callbacks import metrics_file
        from vae_research.runs.session import gate, training

        files.before = self.before
        write, guard, estimate = checkpoints.write, gate.FiniteGate.__call__, training.estimate
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
                    self.phase = "between two calls"

            return watched_run

        def watched_estimate(*arguments, **options):
            self.phase = "after training"
            return estimate(*arguments, **options) if self.how.get("whole") else {}

        def watched_log(callback, record):
            if error_in == "callback" and record.epoch == 3:
                raise RuntimeError("of the user's callback")
            log(callback, record)

        def append(path, lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        if error_in == "metrics":
            metrics_file.append = append
        metrics_file.MetricsFile.on_record = watched_log
        checkpoints.write = watched_write
        gate.FiniteGate.__call__ = watched_guard
        training.estimate = watched_estimate
        if not self.how.get("whole"):
            training.Session.write = lambda *arguments: None

    def before_call(self):
        if self.calls == 1 and "hold_for" in self.how:
            self.hold(**self.how["hold_for"])
        if self.calls == self.how.get("fill_in_call"):
            fill_disk(self.how["filler"])
        if self.calls == self.how.get("free_in_call"):
            os.remove(self.how["filler"])
        if self.calls == self.how.get("kill_in_call"):
            if "after" in self.how:
                threading.Thread(target=self.kill_later, daemon=True).start()
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
        if signals.is_received() and [effect, name] == self.how.get("again_at"):
            self.kill(f"{where}, before {effect} of {name}, for the second time")
            time.sleep(60)  # the first thread hears of it

    def hold(self, folder, count, seconds):
        deadline = time.monotonic() + seconds
        while len(os.listdir(folder)) < count and time.monotonic() < deadline:
            time.sleep(0.05)

    def kill_later(self):
        time.sleep(self.how["after"])
        self.kill(f"{self.phase}, saving" if self.saving else self.phase)

    def kill(self, phase):
        os.write(self.answer, json.dumps({"phase": phase}).encode() + b"\n")
        os.kill(os.getpid(), getattr(signal, self.how.get("signal", "SIGKILL")))

    def ended(self):
        if self.how.get("list_effects"):
            os.write(self.answer, json.dumps({"effects": self.effects}).encode() + b"\n")


def fill_disk(filler):
    """Makes a file that takes all that is left of the disk, to the last block."""
    with open(filler, "wb", buffering=0) as stream:
        for size in (2**20, 2**12):
            try:
                while True:
                    stream.write(bytes(size))
            except OSError:
                continue


def trial(how, answer):
    """Runs a trial in this process, which ends with it; returns its exit code."""
    from tests.mutants import MUTANTS
    from vae_research import runs

    random.seed(0)
    sys.argv = ["trials.py"]
    watch = Watch(how, answer)
    watch.install()
    if "mutant" in how:
        MUTANTS[how["mutant"]]()
    try:
        runs.main(build, [*FLAGS, *how["flags"]])
    except SystemExit as end:
        return end.code or 0
    finally:
        watch.ended()
        if "hold_for" in how:
            Path(how["hold_for"]["folder"], str(os.getpid())).touch()
    return 0


FLAGS = ["--batch_size=8", "--importance_samples=2", "--verbose=0", "--device=cpu"]


def serve():
    """Answers trials until standard input ends."""
    # What a shell has ignored in the background, or nohup, a run does not listen to.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    import vae_research.runs.session.training  # noqa: F401  (before the forks, for all of them)
    from vae_research import runs

    runs.define_choice("network", "dense", ("dense", "convolutional"), "encoder")
    for line in sys.stdin:
        children = [begin(how) for how in json.loads(line)]
        print(json.dumps([end(*child) for child in children]), flush=True)


def begin(how):
    """Forks; returns the child, a pipe on which it answers, and the file of what it prints."""
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
    return child, reading, errors


def end(child, reading, errors):
    """Waits for a trial, and returns what came of it."""
    _, status = os.waitpid(child, 0)
    result = {"status": os.waitstatus_to_exitcode(status), "phase": "ended"}
    with os.fdopen(reading) as answers:
        for line in answers:
            result |= json.loads(line)
    with os.fdopen(errors, "rb") as stream:
        stream.seek(0)
        result["stderr"] = stream.read().decode()
    return result


if __name__ == "__main__":
    serve()
