"""A disk that fills up in the middle of a run: what stays, what is told, and what goes on.

The disk is a small tmpfs, which root may mount. `tests/test_checkpoints.py` fills one by injection,
at every effect of a save.
"""

import contextlib
import os
import subprocess

import pytest

from tests import trials
from tests.proofs import COMMON, OFTEN, RUNS, SOAK, go_on, outcome, tell
from vae_research import checkpoints

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
FLAGS = [*COMMON, "--epochs=4", OFTEN, *RUNS["dense"]]
CALLS = 8


@pytest.fixture
def disk(tmp_path):
    """A function that makes a disk of 4 MB."""
    with contextlib.ExitStack() as mounted:

        def make():
            path = tmp_path / str(len(os.listdir(tmp_path)))
            path.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", "size=4m", "vae_research-test", path]
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
            except (OSError, subprocess.CalledProcessError) as error:
                why = getattr(error, "stderr", None) or error
                pytest.skip(f"a tmpfs cannot be mounted here: {str(why).strip()}")
            mounted.callback(subprocess.run, ["umount", "--lazy", path], check=True)
            return path

        yield make


def filled(disk, call, free=None):
    """Returns how a trial fills a disk, and makes room again."""
    how = {"fill_in_call": call, "filler": str(disk / "filler")}
    return how if free is None else how | {"free_in_call": free}


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_7_and_it_goes_on_when_there_is_room(disk, dataset, unbroken):
    kept, calls = [], range(1, CALLS + 1) if SOAK else [4]
    for call in calls:
        path = disk()
        result = trials.run(path / "run", dataset, *FLAGS, **filled(path, call))
        assert result["status"] == 7, result
        assert "cannot be saved: No space left on device" in result["stderr"]
        assert "Traceback" not in result["stderr"]
        found = checkpoints.search(path / "run" / "checkpoints")
        assert found.damaged == ()
        assert call < 3 or found.newest is not None
        kept.append(0 if found.newest is None else found.newest.step)
        # As long as it is full: in one line, and nothing gets worse.
        again = trials.run(path / "run", dataset, *FLAGS)
        assert again["status"] == 7, again
        assert checkpoints.search(path / "run" / "checkpoints") == found
        (path / "filler").unlink()
        assert go_on(path / "run", dataset, *FLAGS) == unbroken("dense")
    tell("full disk, room after the end", runs=len(calls), kept_steps=kept)


def told_of(result):
    """Returns what a run said about a disk that was full: whatever waits is told once."""
    told = result["stderr"].splitlines()
    for once in ("metrics.jsonl cannot be written", "What TensorBoard shows"):
        assert len([line for line in told if once in line]) <= 1, told
    return told


@pytest.mark.soak
def test_a_full_disk_that_has_room_again_is_told_and_costs_nothing(disk, dataset, unbroken):
    places = [(a, b) for a in range(1, CALLS) for b in range(a + 1, CALLS + 1)]
    warned = 0
    for full, free in places:
        path = disk()
        result = trials.run(path / "run", dataset, *FLAGS, **filled(path, full, free))
        assert result["status"] == 0, result
        told = told_of(result)
        warned += len([line for line in told if "a checkpoint was not written" in line]) > 0
        if full == 1 and free > 2:  # an epoch is over meanwhile
            assert "metrics.jsonl cannot be written" in result["stderr"]
        assert outcome(path / "run") == unbroken("dense")
    assert warned
    tell("full disk, room in mid-run", runs=len(places), with_saves_that_failed=warned)


def killed_with_lines_that_wait(disk, dataset, **how):
    """Returns what comes of a run whose first lines are in a checkpoint alone when it is killed.

    The disk was full meanwhile, and has room again.
    """
    path = disk()
    how |= {"kill_at": ["create", ".writing-0000000015", 1]}
    result = trials.run(path / "run", dataset, *FLAGS, **filled(path, 1, 5), **how)
    assert result["status"] == -9, result
    told = "\n".join(told_of(result))
    for words in ("a checkpoint was not written", "metrics.jsonl cannot be written"):
        assert words in told
    assert checkpoints.newest(path / "run" / "checkpoints").step == 13
    return go_on(path / "run", dataset, *FLAGS, **how | {"kill_at": None})


@pytest.mark.soak
def test_lines_that_wait_survive_a_kill(disk, dataset, unbroken):
    assert killed_with_lines_that_wait(disk, dataset) == unbroken("dense")


@pytest.mark.soak
def test_the_proof_notices_lines_that_are_lost(disk, dataset, unbroken):
    how = {"mutant": "waiting_lines_dropped"}
    assert killed_with_lines_that_wait(disk, dataset, **how) != unbroken("dense")


@pytest.mark.slow
def test_lines_that_wait_at_the_end_come_with_the_next_start(dataset, unbroken, tmp_path):
    result = trials.run(tmp_path / "run", dataset, *FLAGS, error_in="metrics")
    assert result["status"] == 7, result
    assert "metrics.jsonl cannot be written. All is saved" in result["stderr"]
    assert checkpoints.newest(tmp_path / "run" / "checkpoints").epoch == 4
    assert go_on(tmp_path / "run", dataset, *FLAGS) == unbroken("dense")
