"""The strategy of several workers. Imports TensorFlow."""

from __future__ import annotations

import json
import os

import tensorflow as tf
from tensorflow.python.distribute import collective_all_reduce_strategy as collective
from tensorflow.python.eager import context

from vae_research.runs.cli import signals
from vae_research.runs.cli.errors import PeerLostError
from vae_research.runs.cluster.channel import Connected
from vae_research.runs.cluster.guard import ended_after
from vae_research.runs.cluster.tf_config import VARIABLE

# Seconds in which TensorFlow must connect workers that are all there.
_TO_CONNECT = 50
# TensorFlow takes a worker for dead after 10 seconds without a word, which a busy machine may need.
_HEARTBEAT_TIMEOUT = 40


def multiworker_strategy(peers: Connected) -> tf.distribute.Strategy:
    """Returns the strategy of this worker, when TensorFlow is connected with all others.

    TensorFlow must not have run an operation in this process.

    Args:
        peers: connections to them. All must call this, at about the same time.

    Raises:
        PeerLostError: TensorFlow cannot connect with the others.
    """
    task = peers.task
    # With one kind of tasks: number 0 is the chief.
    addresses = [str(address) for address in task.addresses]
    os.environ[VARIABLE] = json.dumps(
        {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": task.number}}
    )
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader="/job:worker/replica:0/task:0",
        cluster_register_timeout_in_ms=_TO_CONNECT * 1000,
        heartbeat_timeout_in_ms=_HEARTBEAT_TIMEOUT * 1000,
        coordinated_jobs=[
            collective.coordination_config_pb2.CoordinatedJob(
                name="worker", num_tasks=len(addresses)
            )
        ],
    )
    failed = (
        f"TensorFlow did not connect the workers within {_TO_CONNECT} seconds, though they had "
        "reached each other. One of them has ended, or a port in TF_CONFIG is closed for others."
    )
    peers.gather("connecting TensorFlow", None)
    try:
        with ended_after(_TO_CONNECT, failed):
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except (tf.errors.OpError, RuntimeError) as error:
        raise PeerLostError(f"{failed} ({str(error).partition(chr(10))[0]})") from error
    # TensorFlow has taken SIGTERM for itself.
    signals.wait_for_steps()
    return strategy
