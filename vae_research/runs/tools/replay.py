"""Repeats the step at which a run diverged, and shows what is not finite in it.

scripts/replay RUN
"""

from __future__ import annotations

import sys
from pathlib import Path

from vae_research import checkpoints
from vae_research.checkpoints import CheckpointError
from vae_research.runs.cli import streams
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.cli.tools import exit_code_of
from vae_research.runs.session import directory
from vae_research.runs.session.loading import rebuild


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if the step fails again, 1 if it does not, otherwise the exit code of a run."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print("Usage: scripts/replay RUN", file=sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    run_dir = Path(arguments[0]).expanduser().absolute()
    return exit_code_of("replay", lambda: replay(run_dir))


def replay(run_dir: Path) -> int:
    """Prints what is not finite in the step, from its forward pass to its update.

    Raises:
        UsageError: the folder holds no run, or the run did not diverge.
    """
    record = directory.read_nonfinite(run_dir)
    if record is None:
        directory.read_config(run_dir)  # "holds no run" comes before "has not diverged"
        raise UsageError(f"{run_dir} has no nonfinite.json: it has not diverged.")
    if "checkpoint" not in record or "rows" not in record:
        raise UsageError(
            f"{run_dir} diverged in epoch {record['epoch']}, in no training step: "
            f"{' and '.join(record['causes'])} not finite."
        )
    with streams.hide_startup_output():
        import tensorflow as tf

        from vae_research.runs.session.building import names_read
        from vae_research.runs.session.fit.causes import causes
        from vae_research.runs.session.fit.gate import Step

    model, data, config, _ = rebuild(run_dir)
    if not data.train.is_repeatable:
        raise UsageError(
            f"the rows of {run_dir} came from a tf.data pipeline and cannot be read again; the "
            f"state before the step is in {run_dir / record['checkpoint']}."
        )
    if max(record["rows"], default=0) >= len(data.train) or min(record["rows"], default=0) < 0:
        raise CheckpointError(
            f"{run_dir / directory.NONFINITE} names rows that the data do not have"
        )
    found = checkpoints.load(run_dir / record["checkpoint"], model)
    batches = data.train.on_device(
        config.batch_size, config.data_seed, names=names_read(model, data)
    )
    step = Step(
        tf.constant(found.epoch, tf.int64),
        tf.constant(found.position, tf.int64),
        tf.constant(record["rows"], tf.int32),
    )
    print(f"{run_dir}: epoch {record['epoch']}, step {record['step']}, from the state before it")
    failed = causes(model, step.batch(batches))
    print(f"then: not finite was {' and '.join(record['causes'])}")
    print(f"now:  {' and '.join(failed) + ' not finite' if failed else 'all is finite'}")
    if not failed:
        print(
            "It may be what only the compiled step does; the state is in "
            f"{run_dir / record['checkpoint']}."
        )
    return 0 if failed else 1


if __name__ == "__main__":
    sys.exit(main())
