"""What replicas cost: the time of a step on 1, 2 and 4 devices of a processor, and in 2 processes.

    python -m benchmarks.scaling --turns=7

Each setup is a process of its own (two for two workers) that has built all models before anything
is measured. In every turn each of them trains the same steps, one setup after the other, so that
what else the machine does meets all of them. The table has medians over turns. Two workers have
half of the cores each.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, nullcontext

SETUPS = ("one device", "2 devices", "4 devices", "2 processes")
# Units of the hidden layers, and rows in a batch.
CASES = ((32, 64), (1024, 64), (1024, 1024))
STEPS = 10


def main() -> None:
    """Measures, and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        serve(given.worker)
        return
    setups = {name: start(name) for name in SETUPS}
    for processes in setups.values():
        for process in processes:
            assert process.stdout.readline() == "ready\n"
    bytes_of = {}
    times: dict[tuple[str, int], list[float]] = {}
    for case in range(len(CASES)):
        for turn in range(given.turns + 1):
            for name, processes in setups.items():
                answers = ask(processes, case)
                bytes_of[case] = answers[0]["bytes"]
                if turn:  # the first one compiles
                    seconds = max(answer["seconds"] for answer in answers)
                    times.setdefault((name, case), []).append(seconds)
    for processes in setups.values():
        for process in processes:
            process.stdin.close()
            process.wait()
    print(f"| bytes of the sum | rows | {' | '.join(SETUPS)} |")
    print(f"| --- | --- | {' | '.join('---' for _ in SETUPS)} |")
    for case, (_, rows) in enumerate(CASES):
        cells = [1e3 * statistics.median(times[name, case]) / STEPS for name in SETUPS]
        shown = " | ".join(f"{cell:.1f}" for cell in cells)
        print(f"| {bytes_of[case] / 1e6:.2f} MB | {rows} | {shown} |")


def start(setup: str) -> list[subprocess.Popen[str]]:
    """Starts the processes of a setup."""
    count = 2 if setup == "2 processes" else 1
    with ExitStack() as stack:
        listeners = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        workers = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in listeners]
    started = []
    cores = sorted(os.sched_getaffinity(0))
    for index in range(count):
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(task), "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, "-m", "benchmarks.scaling", f"--worker={setup}"]
        os.sched_setaffinity(0, cores[index::count])  # the process inherits it
        started.append(
            subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
    os.sched_setaffinity(0, cores)
    return started


def ask(processes: list[subprocess.Popen[str]], case: int) -> list[dict[str, float]]:
    """Has all processes of a setup train one case at a time."""
    for process in processes:
        process.stdin.write(f"{case}\n")
        process.stdin.flush()
    return [json.loads(process.stdout.readline()) for process in processes]


def serve(setup: str) -> None:
    """Trains what is asked for on standard input."""
    import numpy as np
    import tensorflow as tf

    import vae_research as vr

    if setup.endswith("devices"):
        count = int(setup.partition(" ")[0])
        (processor,) = tf.config.list_physical_devices("CPU")
        parts = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(processor, parts)
        strategy = tf.distribute.MirroredStrategy(
            [f"CPU:{index}" for index in range(count)],
            cross_device_ops=tf.distribute.ReductionToOneDevice(),
        )
    elif setup == "2 processes":
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    else:
        strategy = None
    most = STEPS * max(rows for _, rows in CASES)
    images = (np.random.default_rng(0).random([most, 28, 28, 1]) < 0.3).astype("float32")
    models = {}
    print("ready", flush=True)
    for line in sys.stdin:
        units, rows = CASES[int(line)]
        train = images[: rows * STEPS]
        data = vr.Data.from_arrays(train, train[:8], train[:8])
        if (units, rows) not in models:
            with nullcontext() if strategy is None else strategy.scope():
                vae = vr.VAE(
                    vr.dense_encoder(data.shape, 20, hidden_units=(units,)),
                    vr.GaussianBottleneck(20),
                    vr.dense_decoder(data.shape, 20, hidden_units=(units,)),
                    [vr.Bernoulli(), vr.KLDivergence()],
                )
                vae.compile("adam", steps_per_execution=STEPS)
            batches = data.train.on_device(rows, seed=0)
            vae.fit(batches, verbose=0)
            models[units, rows] = vae, batches
        vae, batches = models[units, rows]
        began = time.perf_counter()
        vae.fit(batches, verbose=0)
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "bytes": 4 * vae.count_params()}), flush=True)


if __name__ == "__main__":
    main()
