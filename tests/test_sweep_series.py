"""Sweeps at full length: 24 points beside 24 commands, and sweeps that are killed again and again.

Every day there are four points, and one kill. `pytest -rP` shows what was counted.
"""

import json
import os
import random
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import forks
from tests.proofs import SOAK, tell
from tests.test_sweep import COMMAND, EXPERIMENT, TINY, state_of, weights
from vae_research import checkpoints
from vae_research.runs.sweep import record

JOBS = 2  # points at a time, and commands beside them
KILLS = 20 if SOAK else 1


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def resident(pid):
    """Memory of a process in bytes, pages that it shares among them."""
    with open(f"/proc/{pid}/statm") as numbers:
        return int(numbers.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def watched(process, into):
    """Returns the memory of a sweep by the number of points that have ended, and its end."""
    memory = {}
    while process.is_running():
        if (into / "sweep.json").exists():
            done, size = [*state_of(into).values()].count("done"), resident(process.pid)
            if size:  # it has not ended meanwhile
                memory.setdefault(done, size)  # after the last point it writes a page
        time.sleep(0.1)
    return memory, process.ended()


@pytest.mark.soak
def test_24_points_take_at_most_0_6_of_the_time_of_24_commands(dataset, tmp_path):
    weighted = [f"--over=kl_weight={','.join(map(str, range(1, 9)))}", "--seeds=3"]
    weighted += [f"--jobs={JOBS}"]
    flags = [*TINY, dataset]
    used, began = cpu_seconds(), time.monotonic()
    sweep = forks.start_alone(*COMMAND, *weighted, *flags, "--into=sweep", cwd=tmp_path)
    memory, sweep = watched(sweep, tmp_path / "sweep")
    seconds, used = time.monotonic() - began, cpu_seconds() - used
    assert sweep.returncode == 0, sweep.stderr
    points = record.read(tmp_path / "sweep").points
    assert len(points) == 24
    used_alone, began = cpu_seconds(), time.monotonic()
    commands = []
    for name, point in points.items():
        own = [f"--{flag}={value}" for flag, value in point["flags"].items()]
        own += [f"--threads={point['threads']}", f"--run_dir={tmp_path / 'alone' / name}"]
        commands.append([EXPERIMENT, *flags, *own, "--verbose=0"])
    for command in commands:  # as a loop of a shell
        alone = forks.alone(*command, cwd=tmp_path)
        assert alone.returncode == 0, alone.stderr
    seconds_alone, used_alone = time.monotonic() - began, cpu_seconds() - used_alone
    again, began = (
        [
            [*command[:-2], f"--run_dir={tmp_path / 'two'}/{at}", command[-1]]
            for at, command in enumerate(commands)
        ],
        time.monotonic(),
    )
    with ThreadPoolExecutor(JOBS) as pool:  # as many at a time as points: only forks save time
        for alone in pool.map(lambda command: forks.alone(*command, cwd=tmp_path), again):
            assert alone.returncode == 0, alone.stderr
    seconds_together = time.monotonic() - began
    for name in points:
        assert weights(tmp_path / "sweep" / name) == weights(tmp_path / "alone" / name), name
    growth = memory[max(memory)] / memory[min(count for count in memory if count >= 3)] - 1
    tell(
        "24 points and 24 commands",
        seconds=[round(each, 1) for each in (seconds, seconds_alone, seconds_together)],
        cpu_seconds=[round(used, 1), round(used_alone, 1)],
        ratio=round(seconds / seconds_alone, 3),
        ratio_to_two_at_a_time=round(seconds / seconds_together, 3),
        growth_of_memory=round(growth, 4),
        megabytes=round(memory[max(memory)] / 1e6),
    )
    assert seconds <= 0.6 * seconds_alone
    assert abs(growth) <= 0.02


@pytest.mark.slow
def test_a_sweep_that_is_killed_at_random_loses_nothing_and_repeats_nothing(dataset, tmp_path):
    """Its points are those of an undisturbed sweep; steps that were saved are not trained again."""
    seeds, epochs = (6, 20) if SOAK else (2, 6)
    # Two steps in each epoch, each saved.
    flags = [*TINY[1:], dataset, f"--epochs={epochs}", f"--seeds={seeds}", "--jobs=2"]
    flags += ["--checkpoint_steps=1", "--steps_per_call=1", "--checkpoint_minutes=0"]
    whole = forks.run(*COMMAND, *flags, "--into=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    chance, kills, steps, into = random.Random(0), 0, {}, tmp_path / "killed"
    all_steps = seeds * epochs * 2
    finished = {}
    while True:
        process = forks.start(*COMMAND, *flags, "--into=killed", cwd=tmp_path)
        if kills < KILLS:
            left = all_steps - sum(steps.values())
            more = chance.randrange(1, left // KILLS + 2)
            wait_until_saved(process, into, sum(steps.values()) + more)
            process.send_signal(signal.SIGKILL)
            kills += 1
        if process.ended().returncode != -signal.SIGKILL:
            assert process.returncode == 0, process.stderr
            break
        with record.locked(into):  # the points have saved
            for name, state in state_of(into).items():
                newest = checkpoints.newest(into / name / "checkpoints")
                assert (newest.step if newest else 0) >= steps.get(name, 0), name
                steps[name] = newest.step if newest else 0
                if state == "done":
                    summary = (into / name / "summary.json").stat()
                    assert finished.setdefault(name, summary) == summary
    names = state_of(into)
    assert [*names.values()] == ["done"] * seeds
    for name in names:
        assert weights(into / name) == weights(tmp_path / "whole" / name)
        records = [
            [json.loads(line)["step"] for line in (folder / name / "metrics.jsonl").open()]
            for folder in (into, tmp_path / "whole")
        ]
        assert records[0] == records[1]
    tell("kills of a sweep", kills=kills, finished_before_the_last=len(finished))


def wait_until_saved(process, into, steps):
    """Waits until all points together have saved so many steps, or for the end of the sweep."""
    while process.is_running():
        # Those that are whole have their step as name.
        names = [os.listdir(folder) for folder in into.glob("*/checkpoints")]
        saved = [max((int(name) for name in each if name.isdigit()), default=0) for each in names]
        if sum(saved) >= steps:
            break
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.soak)],
)
def test_a_signal_ends_all_points_with_a_save(number, code, dataset, tmp_path):
    flags = [*TINY[1:], dataset, "--epochs=100000", "--seeds=2", "--jobs=2", "--into=sweep"]
    process = forks.start(*COMMAND, *flags, cwd=tmp_path)
    into = tmp_path / "sweep"
    while process.is_running() and len([*into.glob("*/metrics.jsonl")]) < 2:
        time.sleep(0.05)
    process.send_signal(number)
    process.ended()
    assert process.returncode == code, process.stderr
    assert process.stderr.count("\n") == 1
    assert "the same command resumes" in process.stderr
    assert [*state_of(into).values()] == ["interrupted"] * 2
    for name in state_of(into):
        saved = checkpoints.newest(into / name / "checkpoints")
        assert saved is not None
        assert saved.step > 0
