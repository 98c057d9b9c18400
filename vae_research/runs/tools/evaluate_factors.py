"""Scores of disentanglement of a run: `scripts/evaluate RUN --disentanglement`."""

from __future__ import annotations

from pathlib import Path

from vae_research.runs.cli import signals, streams
from vae_research.runs.report.screen import print_figures
from vae_research.runs.session import directory
from vae_research.runs.session.factors import refuse_without_factors


def evaluate_factors(run_dir: str | Path, seed: int = 0) -> None:
    """Compares the codes of the test data with their factors, prints scores and writes them.

    The weights are those of the newest intact checkpoint.

    Args:
        run_dir: the run directory.
        seed: of what the metrics draw.

    Raises:
        RunError, DataError, CheckpointError: it cannot be done.
    """
    run_dir = Path(run_dir).expanduser().absolute()
    directory.read_config(run_dir)  # before TensorFlow is loaded
    with streams.hide_startup_output():
        from vae_research.runs.session.disentanglement import save_scores, score_split
        from vae_research.runs.session.loading import load_run

    run = load_run(run_dir)
    refuse_without_factors(run.data)
    with directory.locked(run_dir):
        signals.wait_for_steps()
        print(f"Weights of step {run.model.step:,}. Test data, codes beside factors:", flush=True)
        scores = score_split(
            run.model,
            run.data,
            run.data.test,
            run.names,
            seed=seed,
            between_calls=signals.raise_if_received,
        )
        print_figures(scores.figures, scores.notes, 0, dict.fromkeys(scores.figures, ""))
        written = save_scores(run_dir, run.model, run.data, run.names, scores, tensorboard=False)
    print(f"Written to {run_dir}: {', '.join(written)}")
