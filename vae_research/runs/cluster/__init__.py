"""Several processes that train one model: who they are, what they tell each other, how they end.

`joined` connects the workers of a command; `peers` is what they then have.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vae_research.checkpoints import CheckpointError
from vae_research.data import DataError
from vae_research.runs.cli import signals
from vae_research.runs.cli.config import Config
from vae_research.runs.cli.errors import RunError, UsageError
from vae_research.runs.cluster import tf_config
from vae_research.runs.cluster.channel import Alone, Connected, Peers
from vae_research.runs.cluster.rendezvous import connect

if TYPE_CHECKING:
    import tensorflow as tf

_joined: list[Connected] = []


def peers() -> Peers:
    """Returns the workers of this command; one that runs alone has no others."""
    return _joined[-1] if _joined else Alone()


def strategy() -> tf.distribute.Strategy:
    """Returns the strategy of the workers that are joined. Imports TensorFlow."""
    from vae_research.runs.cluster.strategy import multiworker_strategy

    return multiworker_strategy(_joined[-1])


@contextmanager
def agreed_signals() -> Iterator[None]:
    """Within it a signal to one worker is one to all, from their next `signals.agree` on."""
    others = peers()
    if others.count == 1:
        yield
        return

    def exchange(received: list[int]) -> list[int]:
        return [number for each in others.gather("signals", received) for number in each]

    with signals.agree_by(exchange):
        yield


@contextmanager
def joined(config: Config) -> Iterator[None]:
    """Connects the workers of a command, if its strategy has several, and ends with them.

    Raises:
        UsageError: TF_CONFIG is missing or wrong, or --device asks for several of a processor.
        PeerLostError: another worker did not come, or was lost meanwhile.
    """
    if config.strategy != "multiworker":
        yield
        return
    if config.device.startswith("cpu:") and config.device != "cpu:1":
        raise UsageError(
            f"--device={config.device}: a worker has one device of its processor. Start more "
            "workers instead."
        )
    task = tf_config.read()
    if len(task.addresses) == 1:
        tf_config.check_address(task.address)
        yield
        return

    def announce(sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)

    found = connect(task, config.worker_timeout, announce)
    _joined.append(found)
    code, message = 1, ""
    try:
        yield
        code = 0
    except BaseException as error:
        error = _known(found, error)
        code, message = _ending(error)
        raise error
    finally:
        _joined.remove(found)
        found.close(code, message)


def _known(found: Connected, error: BaseException) -> BaseException:
    """Returns the error that is behind one of TensorFlow, if that is the end of another worker."""
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None or not isinstance(error, tensorflow.errors.OpError):
        return error
    own = (tensorflow.errors.InvalidArgumentError, tensorflow.errors.ResourceExhaustedError)
    return error if isinstance(error, own) else found.reason(error)


def _ending(error: BaseException) -> tuple[int, str]:
    """Returns the exit code with which an error ends this process, and what others are told."""
    if isinstance(error, RunError):
        return error.exit_code, str(error)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1, ""
    for kind, code in (
        (KeyboardInterrupt, 130),
        (DataError, 3),
        (CheckpointError, 4),
        (OSError, 7),
    ):
        if isinstance(error, kind):
            return code, str(error)
    return 1, f"{type(error).__name__}: {error}"
