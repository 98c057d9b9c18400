"""What would break one promise of a run each. The proofs must notice all of them.

A mutant is a function that spoils the package in the process of a trial; see `tests.trials`.
"""

import contextlib


def slots_dropped():
    """Checkpoints without the slots of the optimizer."""
    from vae_research import checkpoints

    saved_by_group = checkpoints.saved_by_group
    checkpoints.saved_by_group = lambda model: [
        found for found in saved_by_group(model) if "momentum" not in found[1].path
    ]


def critic_dropped():
    """Checkpoints without the critics."""
    from vae_research import checkpoints

    saved_by_group = checkpoints.saved_by_group
    checkpoints.saved_by_group = lambda model: [
        found for found in saved_by_group(model) if not found[0].startswith("critic")
    ]


def codebook_dropped():
    """Checkpoints without the moving averages of a codebook."""
    from vae_research import checkpoints

    saved_by_group = checkpoints.saved_by_group
    checkpoints.saved_by_group = lambda model: [
        found for found in saved_by_group(model) if not found[1].path.endswith("/counts")
    ]


def callbacks_dropped():
    """The callbacks of an experiment begin anew where a run goes on."""
    from vae_research.runs.session.fit.own_callbacks import OwnCallbacks

    OwnCallbacks.set_state = lambda *arguments: None


def position_dropped():
    """A run that goes on within an epoch begins it anew."""
    from vae_research.data import Split

    on_device = Split.on_device
    Split.on_device = lambda *args, **kwargs: on_device(*args, **kwargs | {"first_position": 0})


def sums_dropped():
    """Running means begin anew where a run goes on."""
    from vae_research.model import VAE

    VAE.set_running_sums = lambda *arguments: None


def logs_kept():
    """What was logged after the checkpoint stays."""
    from vae_research.runs.session import logs

    logs.rewind = lambda *arguments: []


def written_in_place():
    """A checkpoint has its name from the beginning."""
    from vae_research import checkpoints, files, manifests

    checkpoints._remove_remains = lambda folder: None
    rename = files.rename
    manifests.ASIDE = ""
    files.rename = lambda source, target: None if source == target else rename(source, target)


def waiting_lines_dropped():
    """Lines of metrics.jsonl that a full disk has kept back are in no checkpoint."""
    from vae_research.callbacks.base import EpochCallback
    from vae_research.callbacks.metrics_file import MetricsFile

    MetricsFile.get_state = EpochCallback.get_state


def signal_ends_at_once():
    """A signal ends the process where it finds it."""
    import os

    from vae_research.runs.cli import signals

    signals._record = lambda number, frame: os._exit(128 + number)


def lock_dropped():
    """Nobody holds a run directory."""
    from vae_research.runs.session import directory

    directory.locked = lambda *arguments, **options: contextlib.nullcontext()


MUTANTS = {
    function.__name__: function
    for function in (
        slots_dropped,
        critic_dropped,
        codebook_dropped,
        callbacks_dropped,
        position_dropped,
        sums_dropped,
        logs_kept,
        written_in_place,
        waiting_lines_dropped,
        signal_ends_at_once,
        lock_dropped,
    )
}


def gradients_not_divided():
    """The loss of a replica is the mean over its own rows."""
    from vae_research import distribution, steps

    weighted_mean = steps.weighted_mean

    def of_own_rows(*arguments):
        with distribution.whole_batch():
            return weighted_mean(*arguments)

    steps.weighted_mean = of_own_rows
