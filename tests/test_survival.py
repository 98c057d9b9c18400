"""Runs that are killed go on as if they had not been: bit for bit, wherever the kill falls.

Every day one run is interrupted in each way (kills in a step and in a file, signals, errors of the
user), one after the other. With `--soak` there are long series of each, with every network, and
each interruption has a run of its own. Every proof has mutants that it must catch.
"""

import collections
import os
import random
import shutil

import numpy as np
import pytest

from tests import proofs, trials
from tests.proofs import (
    OFTEN,
    RUNS,
    SELDOM,
    SOAK,
    STATES,
    STEPS,
    WITH_CRITIC,
    calls_of_an_epoch,
    go_on,
    outcome,
    tell,
)
from vae_research import checkpoints, manifests
from vae_research.runs.session import directory

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
# What is logged for TensorBoard is cut off at a checkpoint as metrics.jsonl is, which
# `tests/test_resume.py` and `tests/test_tensorboard.py` hold every day.
COMMON = proofs.COMMON if SOAK else [*proofs.COMMON, "--notensorboard"]
EPOCHS = "--epochs=4"
# XLA compiles in every process anew.
KILLS = {"dense, XLA": 24, "dense": 40, "convolutional": 40}


def part_of(phase):
    """Returns what a process did when it was killed: steps, a save, or both at a time."""
    if phase.startswith(("in a save", "in a file")):
        return phase.partition(",")[0]
    return "steps and a save" if phase.endswith("saving") else "steps"


@pytest.mark.slow
def test_a_run_goes_on_after_an_interruption_of_each_kind(dataset, unbroken, tmp_path):
    """One after the other in one run: one comparison at its end holds for all of them."""
    epochs, run_dir = 12, tmp_path / "run"
    flags = [dataset, *COMMON, f"--epochs={epochs}", SELDOM, *RUNS["dense"]]

    def interrupted(status, **how):
        before = checkpoints.search(run_dir / "checkpoints").newest
        result = trials.run(run_dir, *flags, **how)
        assert result["status"] == status, result
        found = checkpoints.search(run_dir / "checkpoints")
        # What an interruption leaves is whole or has no name.
        assert found.damaged == ()
        return result, 0 if before is None else before.step, found.newest.step

    # SIGTERM is below, and with Ctrl-C in tests/test_runs.py.
    result, before, saved = interrupted(143, kill_in_call=3, signal="SIGHUP")
    assert result["stderr"].endswith("repeat the command with its --run_dir.\n")
    assert saved > before
    result, before, saved = interrupted(1, error_in="term")
    assert "Traceback" in result["stderr"]
    assert "RuntimeError: of the user's term" in result["stderr"]
    assert saved > before
    # A second signal ends the run at once, in the save for the first one.
    how = {"kill_in_call": 3, "signal": "SIGINT", "again_at": ["fsync", ".writing-"]}
    result, before, saved = interrupted(130, **how)
    assert result["phase"].endswith(", for the second time")
    assert result["stderr"] == ""  # no time for words
    # Kills in a step, and in a save after another that was whole.
    result, _, _ = interrupted(-9, kill_in_call=3, after=0.005)
    assert part_of(result["phase"]).startswith("steps")
    result, before, saved = interrupted(-9, kill_at=["fsync", "manifest.json", 2])
    assert result["phase"] == "in a save, before fsync of manifest.json"
    assert before < saved < STEPS * epochs
    assert go_on(run_dir, *flags) == unbroken("dense", epochs)


@pytest.mark.soak
@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_goes_on_bit_for_bit(name, dataset, unbroken, tmp_path):
    wanted, phases = unbroken(name), collections.Counter()
    flags = [dataset, *COMMON, EPOCHS, SELDOM, *RUNS[name]]
    random_, listed = random.Random(name), None
    calls, number, count = 4 * len(calls_of_an_epoch(name)), 0, KILLS[name]
    while phases.total() < count:
        if number % 3 == 2:
            if listed is None:
                listed = trials.run(tmp_path / "effects", *flags, list_effects=True)["effects"]
            kill = {"kill_at_effect": random_.randrange(5, len(listed))}  # behind config.json
        else:
            call, after = random_.randrange(1, calls), random_.uniform(0.0, 0.02)
            kill = {"kill_in_call": call, "after": after}
        run_dir = tmp_path / f"run{number}"
        number += 1
        result = trials.run(run_dir, *flags, **kill)
        assert result["status"] == -9, result
        phases[part_of(result["phase"])] += 1
        # What a kill leaves is whole or has no name.
        assert checkpoints.search(run_dir / "checkpoints").damaged == ()
        assert go_on(run_dir, *flags) == wanted
    tell(f"kills, {name}", survived=phases.total(), phases=phases)
    assert phases["steps"] + phases["steps and a save"] >= count / 2


@pytest.fixture(scope="module")
def stateful(dataset, tmp_path_factory):
    """The flags of a run with a state of another kind, and the outcome if nothing happens to it."""
    found = {}

    def of(name):
        if name not in found:
            own = {flag.partition("=")[0] for flag in STATES[name]}
            common = [f for f in (*COMMON, EPOCHS) if f.partition("=")[0] not in own]
            run_dir = tmp_path_factory.mktemp(name) / "run"
            place = dataset
            if "--stream" in STATES[name]:
                np.save(run_dir.parent / "rows.npy", proofs.IMAGES)
                place = f"--dataset={run_dir.parent / 'rows.npy'}"
            flags = [place, *common, SELDOM, *STATES[name]]
            found[name] = flags, go_on(run_dir, *flags, experiment=name)
        return found[name]

    return of


def killed_somewhere(random_, run_dir, flags, **how):
    """Kills a run of 4 epochs in or soon after one of its calls; returns what it was doing."""
    calls = 4 * len(calls_of_an_epoch("dense"))
    kill = {"kill_in_call": random_.randrange(1, calls), "after": random_.uniform(0.0, 0.02)}
    result = trials.run(run_dir, *flags, **kill, **how)
    assert result["status"] == -9, result
    return part_of(result["phase"])


@pytest.mark.slow
@pytest.mark.parametrize("name", STATES if SOAK else ["with_critic", "vq_vae"])
def test_a_killed_run_goes_on_whatever_has_a_state(name, stateful, tmp_path):
    flags, wanted = stateful(name)
    random_, phases, count = random.Random(name), collections.Counter(), 20 if SOAK else 1
    for number in range(count):
        run_dir = tmp_path / f"run{number}"
        phases[killed_somewhere(random_, run_dir, flags, experiment=name)] += 1
        assert go_on(run_dir, *flags, experiment=name) == wanted
    tell(f"kills, {name}", survived=count, phases=phases)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["streamed", "conditional_vae"])
def test_a_run_on_data_of_another_kind_survives_signals_and_damage(name, stateful, tmp_path):
    """A signal, then damage to the newest checkpoint: the run goes on from the one before."""
    flags, wanted = stateful(name)
    random_, codes, damaged = random.Random(name), collections.Counter(), collections.Counter()
    for number in range(20):
        run_dir = tmp_path / f"run{number}"
        signal, code = random_.choice([("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 143)])
        call = random_.randrange(5, 8)
        how = {"kill_in_call": call, "after": random_.uniform(0.0, 0.02), "signal": signal}
        result = trials.run(run_dir, *flags, experiment=name, **how)
        assert result["status"] == code, result
        codes[signal] += 1
        newest = checkpoints.newest(run_dir / "checkpoints").path
        victim = random_.choice(sorted(path for path in newest.iterdir() if path.stat().st_size))
        content = bytearray(victim.read_bytes())
        content[random_.randrange(len(content))] ^= 1 << random_.randrange(8)
        victim.write_bytes(content)
        damaged[victim.name] += 1
        assert checkpoints.search(run_dir / "checkpoints").damaged
        assert go_on(run_dir, *flags, experiment=name) == wanted
    tell(f"signals and damage, {name}", survived=20, signals=codes, damaged=damaged)


@pytest.mark.soak
def test_steps_that_a_critic_spoils_are_skipped_and_counted_the_same_after_a_kill(
    stateful, tmp_path
):
    flags, untouched = stateful("with_critic")
    flags = [*flags, "--on_nonfinite=skip"]
    random_, phases = random.Random(0), collections.Counter()
    for number in range(10):
        # Not the first of an epoch: the validation before it is made at the same step.
        failing = random_.sample([step for step in range(4 * STEPS) if step % STEPS], 3)
        how = {"experiment": "with_critic", "failing_steps": failing}
        wanted = go_on(tmp_path / f"whole{number}", *flags, **how)
        run_dir = tmp_path / f"run{number}"
        phases[killed_somewhere(random_, run_dir, flags, **how)] += 1
        assert go_on(run_dir, *flags, **how) == wanted != untouched
        for folder in (tmp_path / f"whole{number}", run_dir):
            content = manifests.verify(checkpoints.newest(folder / "checkpoints").path)
            assert content["step"] == 4 * STEPS
            assert content["progress"]["callbacks"]["FiniteGate"]["skipped"] == 3
    tell("skipped steps of a critic", runs=10, skipped=3, phases=phases)


@pytest.mark.soak
@pytest.mark.parametrize("name", WITH_CRITIC)
def test_the_proof_notices_a_critic_that_is_lost(name, stateful, tmp_path):
    flags, wanted = stateful(name)
    how = {"experiment": name, "mutant": "critic_dropped"}
    cut_off(tmp_path / "run", flags, **how)
    result = trials.run(tmp_path / "run", *flags, **how)
    assert result["status"] != 0 or outcome(tmp_path / "run").metrics != wanted.metrics


@pytest.mark.soak
def test_the_proof_notices_a_codebook_that_begins_anew(stateful, tmp_path):
    flags, wanted = stateful("vq_vae")
    how = {"experiment": "vq_vae", "mutant": "codebook_dropped"}
    cut_off(tmp_path / "run", flags, **how)
    assert go_on(tmp_path / "run", *flags, **how).metrics != wanted.metrics


@pytest.mark.soak
def test_the_proof_notices_callbacks_that_begin_anew(stateful, tmp_path):
    flags, wanted = stateful("with_callbacks")
    how = {"experiment": "with_callbacks", "mutant": "callbacks_dropped"}
    cut_off(tmp_path / "run", flags, **how)
    assert go_on(tmp_path / "run", *flags, **how) != wanted


@pytest.mark.soak
def test_a_kill_at_every_effect_on_files(dataset, unbroken, tmp_path):
    flags = [dataset, *COMMON, EPOCHS, SELDOM, *RUNS["dense"]]
    effects = trials.run(tmp_path / "listed/run", *flags, list_effects=True)["effects"]
    kinds = collections.Counter(effect for effect, _ in effects)
    assert set(kinds) == {"create", "write", "fsync", "rename", "remove"}
    killed, parts = collections.Counter(), collections.Counter()
    for number in range(len(effects)):
        run_dir = tmp_path / str(number) / "run"
        result = trials.run(run_dir, *flags, kill_at_effect=number)
        assert result["status"] == -9, result
        effect, name = effects[number]
        assert result["phase"].endswith(f"before {effect} of {name}")
        killed[effect] += 1
        parts[part_of(result["phase"])] += 1
        assert checkpoints.search(run_dir / "checkpoints").damaged == ()
        assert go_on(run_dir, *flags) == unbroken("dense")
    tell("kills at every effect", of=len(effects), survived=killed, phases=parts)


@pytest.mark.soak
def test_many_kills_in_one_run(dataset, unbroken, tmp_path):
    kills, epochs = 20, 55
    flags = [dataset, *COMMON, f"--epochs={epochs}", OFTEN, *RUNS["dense"]]
    run_dir, random_, steps, phases = tmp_path / "run", random.Random(1), [], collections.Counter()
    for _ in range(kills):
        # In four calls, of which the first may have nothing to do, two saves are begun. The second
        # has waited for the first.
        call, after = random_.choice([5, 6]), random_.uniform(0.0, 0.005)
        result = trials.run(run_dir, *flags, kill_in_call=call, after=after)
        assert result["status"] == -9, result
        phases[part_of(result["phase"])] += 1
        steps.append(checkpoints.newest(run_dir / "checkpoints").step)
    assert steps == sorted(set(steps))  # each session came further than the one before
    assert go_on(run_dir, *flags) == unbroken("dense", epochs)
    tell("kills in one run", survived=kills, phases=phases, saved_steps=steps, of=STEPS * epochs)


def some_signals(code, name, count):
    """Yields calls, and seconds after their beginning."""
    random_, calls = random.Random(code), 4 * len(calls_of_an_epoch(name))
    for _ in range(count):
        yield random_.randrange(3, calls), random_.uniform(0.0, 0.005)


def signalled(run_dir, flags, name, call, **how):
    """Has a run of four epochs get a signal in a call; returns the step that is saved."""
    result = trials.run(run_dir, *flags, kill_in_call=call, **how)
    saved = checkpoints.newest(run_dir / "checkpoints").step
    # Not one call is lost; the signal may have come before or after the one that is counted.
    starts = [epoch * STEPS + at for epoch in range(4) for at in calls_of_an_epoch(name)]
    per_call = starts[1]
    assert starts[call - 1] <= saved <= starts[call - 1] + 2 * per_call
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS if SOAK else ["dense"])
@pytest.mark.parametrize(
    ("signal", "code"),
    [
        ("SIGTERM", 143),
        pytest.param("SIGINT", 130, marks=pytest.mark.soak),
        pytest.param("SIGHUP", 143, marks=pytest.mark.soak),
    ],
)
def test_a_signal_saves_at_its_step(signal, code, name, dataset, unbroken, tmp_path):
    flags = [dataset, *COMMON, EPOCHS, SELDOM, *RUNS[name]]
    count = 5 if SOAK else 1
    for number, (call, after) in enumerate(some_signals(code, name, count)):
        run_dir = tmp_path / f"run{number}"
        result = signalled(run_dir, flags, name, call, after=after, signal=signal)
        assert result["status"] == code, result
        assert result["stderr"].endswith("repeat the command with its --run_dir.\n")
        assert go_on(run_dir, *flags) == unbroken(name)
    tell(f"{signal}, {name}", survived=count)


@pytest.mark.slow
def test_the_proof_notices_a_signal_that_does_not_save(dataset, tmp_path):
    flags = [dataset, *COMMON, EPOCHS, SELDOM, *RUNS["dense"]]
    how = {"signal": "SIGTERM", "mutant": "signal_ends_at_once"}
    with pytest.raises(AssertionError):
        # From step 10 on. No state is being written: those of steps 8 and 13 are.
        signalled(tmp_path / "run", flags, "dense", 5, **how)


@pytest.mark.soak
@pytest.mark.parametrize("effect", ["create", "fsync", "rename"])
def test_55_a_second_signal_ends_at_once_and_does_no_damage(effect, dataset, unbroken, tmp_path):
    flags = [dataset, *COMMON, EPOCHS, SELDOM, *RUNS["dense"]]
    # Named by the step: the save of step 8 may be under way when the first signal comes.
    name = "0000000013" if effect == "rename" else ".writing-0000000013"
    how = {"kill_in_call": 5, "signal": "SIGINT", "again_at": [effect, name]}
    result = trials.run(tmp_path / "run", *flags, **how)
    assert result["status"] == 130
    assert result["phase"] == f"in a save, before {effect} of {name}, for the second time"
    assert result["stderr"] == ""  # no time for words
    found = checkpoints.search(tmp_path / "run" / "checkpoints")
    assert (found.newest.step, found.damaged) == (8, ())
    assert go_on(tmp_path / "run", *flags) == unbroken("dense")


@pytest.mark.soak
@pytest.mark.parametrize("where", ["term", "callback"])
def test_an_error_of_the_user_is_shown_after_a_save(where, dataset, unbroken, tmp_path):
    flags = [dataset, *COMMON, EPOCHS, SELDOM, *RUNS["dense"]]
    run_dir = tmp_path / "run"
    result = trials.run(run_dir, *flags, error_in=where)
    assert result["status"] == 1  # Python's, for an error that nobody has caught
    assert "Traceback" in result["stderr"]
    assert f"RuntimeError: of the user's {where}" in result["stderr"]
    # Two calls an epoch: the sixth begins at step 13, and the third epoch ends at step 15.
    assert checkpoints.newest(run_dir / "checkpoints").step == {"term": 13, "callback": 15}[where]
    assert go_on(run_dir, *flags) == unbroken("dense")


def starts_together(dataset, folder, count, **how):
    """Starts a run `count` times at once; who trains waits for the others to end, or to train."""
    (folder / "there").mkdir()
    flags = [f"--run_dir={folder / 'run'}", dataset, *COMMON, EPOCHS, SELDOM, *RUNS["dense"]]
    hold_for = {"folder": str(folder / "there"), "count": count - 1}
    return trials.together([(flags, {"hold_for": hold_for, **how})] * count)


@pytest.mark.slow
def test_simultaneous_starts_are_one_run(dataset, unbroken, tmp_path):
    count = 20 if SOAK else 2
    results = starts_together(dataset, tmp_path, count)
    codes = sorted(result["status"] for result in results)
    assert codes == [0, *[5] * (count - 1)]
    assert outcome(tmp_path / "run") == unbroken("dense")
    tell("simultaneous starts", started=count, ran=codes.count(0), refused=codes.count(5))


@pytest.mark.slow
def test_the_proof_notices_a_lock_that_nobody_holds(dataset, tmp_path):
    """The directory is locked by this process; what does not end with 5 comes to its first call."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    flags = [dataset, *COMMON, EPOCHS, SELDOM, *RUNS["dense"]]
    with directory.locked(run_dir):
        result = trials.run(run_dir, *flags, kill_in_call=1, mutant="lock_dropped")
    assert result["status"] == -9, result


CUT_OFF = {"kill_at": ["fsync", "manifest.json", 2]}


def cut_off(run_dir, flags, **how):
    """Has a run killed in the middle of an epoch, with a checkpoint there."""
    result = trials.run(run_dir, *flags, **CUT_OFF, **how)
    assert result["status"] == -9, result
    assert checkpoints.newest(run_dir / "checkpoints").position


@pytest.fixture(scope="module")
def killed(dataset, tmp_path_factory):
    """The directory of a run that was cut off."""
    run_dir = tmp_path_factory.mktemp("killed") / "run"
    cut_off(run_dir, [dataset, *COMMON, EPOCHS, SELDOM, *RUNS["dense"]])
    return run_dir


@pytest.mark.soak
@pytest.mark.parametrize(
    "mutant", ["slots_dropped", "logs_kept", "position_dropped", "sums_dropped"]
)
def test_the_proof_notices_what_is_lost(mutant, killed, dataset, unbroken, tmp_path):
    flags = [dataset, *COMMON, EPOCHS, SELDOM, *RUNS["dense"]]
    run_dir = tmp_path / "run"
    if mutant == "slots_dropped":  # already while it is saved
        cut_off(run_dir, flags, mutant=mutant)
    else:
        shutil.copytree(killed, run_dir)
    result = trials.run(run_dir, *flags, mutant=mutant)
    assert result["status"] != 0 or outcome(run_dir) != unbroken("dense")


@pytest.mark.soak
def test_the_run_that_the_mutants_share_goes_on_without_them(killed, dataset, unbroken, tmp_path):
    flags = [dataset, *COMMON, EPOCHS, SELDOM, *RUNS["dense"]]
    shutil.copytree(killed, tmp_path / "run")
    assert go_on(tmp_path / "run", *flags) == unbroken("dense")


@pytest.mark.soak
def test_the_proof_notices_a_checkpoint_that_is_written_in_place(dataset, tmp_path):
    flags = [dataset, *COMMON, EPOCHS, OFTEN, *RUNS["dense"]]
    how = {"kill_at": ["write", "variables.npz", 2], "mutant": "written_in_place"}
    result = trials.run(tmp_path / "run", *flags, **how)
    assert result["status"] == -9, result
    assert checkpoints.search(tmp_path / "run" / "checkpoints").damaged != ()
