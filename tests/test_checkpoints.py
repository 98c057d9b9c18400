"""Checkpoints: what comes back, what is found damaged, what is refused, and what is never lost.

The model has everything whose loss would change the rest of the training: Adam's slots and step,
dropout, and moving statistics of a batch normalization. `as_new(make)` is one model for many tests,
in the state of a new one.
"""

import collections
import functools
import hashlib
import json
import os
import random
import re
import shutil

import keras
import numpy as np
import pytest

from tests.proofs import SOAK, tell
from tests.traced import as_new
from vae_research import (
    VAE,
    Bernoulli,
    Cyclical,
    GaussianBottleneck,
    KLDivergence,
    checkpoints,
    dense_decoder,
    files,
)
from vae_research.checkpoints import (
    Checkpoint,
    CheckpointError,
    FormatError,
    newest,
    restore,
    save,
)
from vae_research.state import saved_variables

SHAPE = (4, 4, 1)
LATENT = 2
BATCH = 8
IMAGES = (np.random.default_rng(0).random((24, *SHAPE)) < 0.3).astype("float32")
STEPS = len(IMAGES) // BATCH

MANIFEST, VALUES = "manifest.json", "variables.npz"
# What the variables of the model are called, by what they are for.
GROUPS = {
    "weights": "kernel",
    "optimizer slots": "momentum",
    "step": "iteration",
    "dropout": "seed_generator",
    "moving statistics": "moving_",
}


def make(
    seed=1,
    *,
    hidden=6,
    latent=LATENT,
    batch_normalization=True,
    optimizer=None,
    run_eagerly=True,
):
    """A compiled model with all its variables; `seed` chooses the initial weights."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(SHAPE, name="inputs")
    features = keras.layers.Dense(hidden, activation="relu")(keras.layers.Flatten()(inputs))
    if batch_normalization:
        features = keras.layers.BatchNormalization(momentum=0.5)(features)
    features = keras.layers.Dropout(0.3)(features)
    heads = {name: keras.layers.Dense(latent)(features) for name in ("z_mean", "z_log_var")}
    model = VAE(
        keras.Model(inputs, heads),
        GaussianBottleneck(latent),
        dense_decoder(SHAPE, latent, hidden_units=(hidden,)),
        [Bernoulli(), KLDivergence(weight=Cyclical(steps=20, cycles=None))],
    )
    optimizer = keras.optimizers.Adam(0.02) if optimizer is None else optimizer
    model.compile(optimizer, run_eagerly=run_eagerly, jit_compile=False)
    model.forward(IMAGES[:2])
    model.optimizer.build(model.trainable_variables)
    return model


def make_other():
    """A model with other initial weights."""
    return make(seed=2)


def train(model, steps=STEPS):
    data = IMAGES[: steps * BATCH]
    return model.fit(data, batch_size=BATCH, shuffle=False, verbose=0).history


def values_of(model):
    """Every variable by its place and path, as bytes: -0.0 is not 0.0, and NaN is NaN."""
    return {
        (index, variable.path): np.asarray(variable.value).tobytes()
        for index, variable in enumerate(saved_variables(model))
    }


def saved(folder, steps=(1, 1), keep=2):
    """Returns the paths of whole checkpoints, and the model that was saved last."""
    model = make()
    paths = []
    for epoch, more in enumerate(steps, start=1):
        train(model, more)
        paths.append(save(folder, model, epoch=epoch, keep=keep))
    return paths, model


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with checkpoints of steps 1 and 2, epochs 1 and 2, which no test may change."""
    folder = tmp_path_factory.mktemp("checkpoints")
    paths, model = saved(folder)
    return folder, paths, model


@pytest.fixture
def folder(original, tmp_path):
    """A copy of that folder, to be damaged."""
    copy = tmp_path / "checkpoints"
    shutil.copytree(original[0], copy)
    return copy


# There and back.


@pytest.mark.slow
def test_every_variable_comes_back_bit_for_bit(tmp_path):
    model = make()
    fresh = values_of(model)
    train(model, 1)
    # What a way through text, or a comparison with ==, would lose.
    odd = [3.4e38, -3.4e38, -0.0, 1e-42, np.nextafter(np.float32(1.0), np.float32(2.0)), 0.1]
    saved_variables(model)[1].assign(np.array(odd, "float32"))
    wanted = values_of(model)
    for group, part in GROUPS.items():
        found = [key for key in wanted if part in key[1]]
        assert found, group
        assert any(wanted[key] != fresh[key] for key in found), f"{group} did not move"

    path = save(tmp_path, model, epoch=7)
    found = newest(tmp_path)
    assert found == Checkpoint(path, step=1, epoch=7)
    assert found.path.parent == tmp_path
    other = make(seed=2)
    assert values_of(other).keys() != wanted.keys() or values_of(other) != wanted
    restore(other, found)
    assert list(values_of(other).values()) == list(wanted.values())
    assert other.step == 1
    assert values_of(model) == wanted


@pytest.mark.slow
def test_values_are_plain_arrays_that_numpy_reads_alone(original):
    _, paths, model = original
    described = json.loads((paths[-1] / MANIFEST).read_text())["content"]["variables"]
    with np.load(paths[-1] / VALUES, allow_pickle=False) as values:
        for index, variable in enumerate(saved_variables(model)):
            np.testing.assert_array_equal(values[f"{index:05d}"], variable.numpy())
            assert described[index]["path"] == variable.path
    assert names(paths[-1]) == [MANIFEST, VALUES]


@pytest.mark.slow
def test_a_restored_model_goes_on_as_the_original_does(tmp_path):
    original = make()
    train(original, 1)
    save(tmp_path, original, epoch=1)
    restored = make(seed=2)
    restore(restored, newest(tmp_path))
    wanted = train(original, 2)
    assert train(restored, 2) == wanted
    assert checkpoints.weights_sha256(restored) == checkpoints.weights_sha256(original)


@pytest.fixture(scope="module")
def after_training(original):
    """Kernels and figures of a model that goes on from a checkpoint without a group of variables.

    The group is as a fresh model has it. One model, so that its steps are traced once.
    """
    model = make(run_eagerly=False)
    fresh = [variable.numpy() for variable in saved_variables(make(seed=2))]

    @functools.cache
    def train_without(group):
        restore(model, newest(original[0]))
        for value, variable in zip(fresh, saved_variables(model), strict=True):
            if group is not None and GROUPS[group] in variable.path:
                variable.assign(value)
        train(model)
        values = values_of(model).items()
        kernels = [value for (_, path), value in values if path == "logits/kernel"]
        return kernels, model.evaluate(IMAGES, verbose=0)

    return train_without


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_what_a_checkpoint_could_forget_would_change_the_training(group, after_training):
    """The mutants of the test before: one group of variables stays as a fresh model has it."""
    (kernels, figures), (other_kernels, other_figures) = map(after_training, (None, group))
    # Not by the variables of the group itself: by what they do to the weights.
    if group == "moving statistics":  # they are used in evaluation alone
        assert figures != other_figures
    else:
        assert kernels != other_kernels


# Where there is none.


def test_no_checkpoint_is_none(tmp_path):
    assert newest(tmp_path / "missing") is None
    assert newest(tmp_path) is None
    (tmp_path / "notes").mkdir()
    (tmp_path / "0000000007").write_text("a file")
    (tmp_path / "0000000008.old").mkdir()
    assert newest(tmp_path) is None


def test_the_newest_is_that_of_the_largest_step(folder):
    # As text, "20" is after "100"; by time, the copy of step 1 is after that of step 2.
    shutil.copytree(folder / "0000000001", folder / "100")
    shutil.copytree(folder / "0000000002", folder / "20")
    assert newest(folder).path.name == "100"


# Damage.


def flip(position):
    def damage(path):
        content = bytearray((path / VALUES).read_bytes())
        content[int(position * (len(content) - 1))] ^= 1
        (path / VALUES).write_bytes(content)

    return damage


def cut(name, keep):
    def damage(path):
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[: int(keep * len(content))])

    return damage


def lengthen(path):
    (path / VALUES).write_bytes((path / VALUES).read_bytes() + b"\0")


def empty(path):
    for file in path.iterdir():
        file.unlink()


DAMAGES = {
    "first byte flipped": flip(0.0),
    "byte flipped in the middle": flip(0.5),
    "last byte flipped": flip(1.0),
    "values cut": cut(VALUES, 0.9),
    "values of no length": cut(VALUES, 0.0),
    "values longer": lengthen,
    "values missing": lambda path: (path / VALUES).unlink(),
    "values of another checkpoint": lambda path: shutil.copy(
        next(other for other in sorted(path.parent.iterdir()) if other != path) / VALUES,
        path / VALUES,
    ),
    "manifest missing": lambda path: (path / MANIFEST).unlink(),
    "manifest cut": cut(MANIFEST, 0.5),
    "manifest of no length": cut(MANIFEST, 0.0),
    "manifest no text": lambda path: (path / MANIFEST).write_bytes(b"\xff\xfe\x00"),
    "manifest no object": lambda path: (path / MANIFEST).write_text("[]"),
    "manifest without checksum": lambda path: (path / MANIFEST).write_text("{}"),
    "empty directory": empty,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_found_and_the_older_one_used(damage, folder, original):
    older, damaged = folder / "0000000001", folder / "0000000002"
    intact = newest(folder)
    assert intact == Checkpoint(damaged, step=2, epoch=2)
    DAMAGES[damage](damaged)
    assert newest(folder) == Checkpoint(older, step=1, epoch=1)

    # The model that asks for the damaged one all the same keeps what it has.
    model = original[2]
    before = values_of(model)
    with pytest.raises(CheckpointError, match=damaged.name):
        restore(model, intact)
    assert values_of(model) == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_checkpoints_that_are_all_damaged_are_an_error_and_not_a_new_start(damage, folder):
    DAMAGES[damage](folder / "0000000001")
    empty(folder / "0000000002")
    with pytest.raises(CheckpointError, match=r"no checkpoint can be used") as raised:
        newest(folder)
    assert "0000000001" in str(raised.value)
    assert "0000000002" in str(raised.value)


def edit_manifest(path, *, sign=False, **changes):
    """Changes entries of a manifest, and its checksum where it is to be `sign`ed."""
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["content"] |= changes
    if sign:
        text = json.dumps(manifest["content"], sort_keys=True)
        manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (path / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("change", [{"epoch": 3}, {"step": 5}, {"optimizer": "SGD"}])
def test_a_changed_manifest_is_found_where_the_values_are_whole(change, folder):
    edit_manifest(folder / "0000000002")
    assert newest(folder) == Checkpoint(folder / "0000000002", step=2, epoch=2)
    edit_manifest(folder / "0000000002", **change)
    assert newest(folder) == Checkpoint(folder / "0000000001", step=1, epoch=1)


@pytest.mark.slow
def test_no_flipped_bit_of_a_manifest_changes_what_is_restored(folder):
    file = folder / "0000000002" / MANIFEST
    older, intact = (Checkpoint(folder / f"{n:010d}", step=n, epoch=n) for n in (1, 2))
    content = file.read_bytes()
    found = set()
    for position in [*range(0, 120, 1 if SOAK else 3), *range(120, len(content), 41)]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        found.add(newest(folder))
    # White space may become other white space.
    assert older in found
    assert found <= {older, intact}


def sign_values(path):
    """Makes the manifest say that the file of values is as it should be."""
    content = (path / VALUES).read_bytes()
    written = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(path, sign=True, files={VALUES: written})


def mutate(folder, random_):
    """Does one thing to the newest of two checkpoints; returns in words what."""
    older, newer = folder / "0000000001", folder / "0000000002"
    name = random_.choice([MANIFEST, VALUES])
    content = (newer / name).read_bytes()
    kind = random_.choice(["flip", "cut", "lengthen", "zeros", "delete", "swap", "stale", "other"])
    if kind == "flip":
        at, bit = random_.randrange(len(content)), random_.randrange(8)
        content = content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
    elif kind == "cut":
        content = content[: random_.randrange(len(content))]
    elif kind == "lengthen":
        content += random_.randbytes(random_.randrange(1, 100))
    elif kind == "zeros":
        start = random_.randrange(len(content) - 20)
        content = content[:start] + bytes(20) + content[start + 20 :]
        kind += " where there were none" if content != (newer / name).read_bytes() else ""
    elif kind == "delete":
        (newer / name).unlink()
        return f"{kind} {name}"
    elif kind == "swap":
        (newer / MANIFEST).rename(newer / "aside")
        (newer / VALUES).rename(newer / MANIFEST)
        (newer / "aside").rename(newer / VALUES)
        return kind
    else:  # the file of the older checkpoint: a stale manifest, or stale values
        content = (older / name).read_bytes()
    (newer / name).write_bytes(content)
    return f"{kind} {name}"


@pytest.mark.slow
def test_mutations_are_all_found(original, tmp_path):
    random_, kinds = random.Random(0), collections.Counter()
    while kinds.total() < (300 if SOAK else 60):
        folder = tmp_path / str(kinds.total())
        shutil.copytree(original[0], folder)
        before = content_of(folder)
        kind = mutate(folder, random_)
        if content_of(folder) == before:  # zeros where there were zeros
            shutil.rmtree(folder)
            continue
        kinds[kind] += 1
        found = checkpoints.search(folder)
        assert found.newest == Checkpoint(folder / "0000000001", step=1, epoch=1), kind
        assert [path.name for path, _ in found.damaged] == ["0000000002"], kind
    assert len(kinds) >= 14, kinds
    tell("mutations", caught=kinds.total(), kinds=kinds)


def test_the_proof_notices_values_that_nobody_compares(original, tmp_path, monkeypatch):
    monkeypatch.setattr(
        files,
        "sha256",
        lambda path: json.loads((path.parent / MANIFEST).read_text())["content"]["files"][
            path.name
        ]["sha256"],
    )
    with pytest.raises(AssertionError):
        test_mutations_are_all_found(original, tmp_path)


class Payload:
    """Pickled, an object that makes a directory when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def put_pickle(path, index, marker):
    """Puts a pickle where a variable was, with the right checksums."""
    with np.load(path / VALUES) as values:
        arrays = dict(values)
    arrays[f"{index:05d}"] = np.array([Payload(marker)], dtype=object)
    with open(path / VALUES, "wb") as stream:
        np.savez(stream, **arrays)
    sign_values(path)


def test_pickled_values_are_refused_and_not_run(folder, original, tmp_path):
    path, marker = folder / "0000000002", tmp_path / "marker"
    put_pickle(path, 0, marker)
    before = values_of(original[2])
    assert newest(folder).step == 1
    with pytest.raises(CheckpointError, match="allow_pickle"):
        restore(original[2], Checkpoint(path, step=2, epoch=2))
    assert not marker.exists()
    assert values_of(original[2]) == before
    # The mutant runs it.
    with np.load(path / VALUES, allow_pickle=True) as values:
        _ = values["00000"]
    assert marker.exists()


@pytest.mark.slow
def test_values_that_cannot_be_read_leave_the_model_as_it_was(folder, tmp_path):
    model = as_new(make_other)
    put_pickle(folder / "0000000002", len(saved_variables(model)) - 1, tmp_path / "marker")
    before = values_of(model)
    with pytest.raises(CheckpointError):
        restore(model, Checkpoint(folder / "0000000002", step=2, epoch=2))
    assert values_of(model) == before


# Another model.

OTHERS = {
    # What differs, and what the message must name: saved, and in the model.
    "wider": ({"hidden": 7}, r"dense\S*/kernel \(16, 6\).*dense\S*/kernel \(16, 7\)"),
    "more latents": ({"latent": 3}, r"/kernel \(6, 2\).*/kernel \(6, 3\)"),
    "fewer layers": (
        {"batch_normalization": False},
        r"batch_normalization\S*/gamma \(6,\).*seed_generator\S* \(2,\)",
    ),
    "other slots": (
        {"optimizer": lambda: keras.optimizers.SGD(0.1)},
        r"has adam\S*/\S+_momentum \(16, 6\) where the model has nothing",
    ),
    "more slots": (
        {"optimizer": lambda: keras.optimizers.Adam(0.02, amsgrad=True)},
        r"has nothing.* where the model has adam\S*/\S+ \(16, 6\)",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_architecture_is_refused_by_name_and_shape_before_anything_is_changed(
    other, original
):
    settings, message = OTHERS[other]
    settings = {name: value() if name == "optimizer" else value for name, value in settings.items()}
    model = make(seed=2, **settings)
    before = values_of(model)
    with pytest.raises(CheckpointError, match=message):
        restore(model, newest(original[0]))
    assert values_of(model) == before
    assert model.step == 0


@pytest.mark.slow
def test_a_difference_in_the_last_slot_changes_nothing_in_the_first(original):
    """As many variables, and all but the last of one shape: a loop that checks and assigns by turns
    would have changed the weights by the time that it finds out."""
    model = make(seed=2)
    last = model.optimizer.variables[-1]
    assert tuple(last.shape) == (16,)
    odd = keras.Variable(np.zeros([17], "float32"), name="odd")
    # Keras has no public way to exchange a slot.
    model.optimizer._variables[-1] = odd
    assert any(variable is odd for variable in saved_variables(model))
    before = values_of(model)
    with pytest.raises(CheckpointError, match=r"\(16,\) where the model has \S*odd \(17,\)"):
        restore(model, newest(original[0]))
    assert values_of(model) == before


@pytest.mark.slow
def test_slots_of_another_optimizer_are_refused_where_shapes_agree(tmp_path):
    model = make(optimizer=keras.optimizers.RMSprop(0.01))
    train(model, 1)
    save(tmp_path, model, epoch=1)
    other = make(optimizer=keras.optimizers.Adagrad(0.01))
    shapes = [[variable.shape for variable in saved_variables(found)] for found in (model, other)]
    assert shapes[0] == shapes[1]
    before = values_of(other)
    with pytest.raises(
        CheckpointError, match="optimizer was RMSprop, and that of the model is Adagrad"
    ):
        restore(other, newest(tmp_path))
    assert values_of(other) == before


# What is kept.


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_are_kept(keep, tmp_path):
    model = as_new(make)
    for epoch in range(1, 5):
        model.step_counter.assign(epoch)
        path = save(tmp_path, model, epoch=epoch, keep=keep)
        assert path == tmp_path / f"{epoch:010d}"
        first = max(1, epoch - keep + 1)
        assert names(tmp_path) == [f"{step:010d}" for step in range(first, epoch + 1)]
        assert newest(tmp_path) == Checkpoint(path, step=epoch, epoch=epoch)


def test_three_are_kept_and_the_best(tmp_path):
    model = as_new(make)
    for epoch, score in enumerate([1.0, 5.0, None, 3.0, 4.0, 2.0], start=1):
        model.step_counter.assign(epoch)
        save(tmp_path, model, epoch=epoch, score=score)
    assert names(tmp_path) == [f"{step:010d}" for step in (2, 4, 5, 6)]


class Crash(BaseException):
    """Ends a save where a kill would."""


def watch(monkeypatch, effects, *, crash_at=None, error=None):
    """Notes every effect of a save on a file; at one of them the save ends, or the disk is full."""

    def before(effect, path):
        effects.append((effect, path))
        if crash_at == len(effects) - 1:
            raise error or Crash

    monkeypatch.setattr(files, "before", before)


def effects_of_a_save(folder, monkeypatch):
    """Returns the effects of a third save, after which two of the checkpoints stay."""
    model = as_new(make)
    restore(model, newest(folder))
    model.step_counter.assign(3)  # the state of another step
    effects = []
    with monkeypatch.context() as context:
        watch(context, effects)
        save(folder, model, epoch=3, keep=2)
    return effects, model


def test_a_save_flushes_before_it_renames_and_removes_last(folder, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    effects, _ = effects_of_a_save(folder, monkeypatch)
    assert len(flushed) == [effect for effect, _ in effects].count("fsync")  # each asks the system
    aside, target = folder / ".writing-0000000003", folder / "0000000003"
    old, removed = folder / "0000000001", folder / ".removing-0000000001"
    assert [(effect, path) for effect, path in effects if effect != "write"] == [
        ("create", aside),
        ("create", aside / VALUES),
        ("fsync", aside / VALUES),
        ("create", aside / MANIFEST),
        ("fsync", aside / MANIFEST),
        ("fsync", aside),
        ("rename", target),
        ("fsync", folder),
        ("rename", removed),
        ("fsync", folder),
        ("remove", removed / MANIFEST),
        ("remove", removed / VALUES),
        ("remove", removed),
    ]
    assert not old.exists()
    assert names(target) == [MANIFEST, VALUES]


@pytest.mark.slow
def test_nothing_is_removed_before_the_new_one_is_read_back(folder, monkeypatch):
    rename = files.rename

    def rename_and_damage(source, target):
        rename(source, target)
        flip(0.5)(target)  # a disk that returns something else than was written

    model = as_new(make)
    restore(model, newest(folder))
    model.step_counter.assign(3)
    monkeypatch.setattr(files, "rename", rename_and_damage)
    with pytest.raises(CheckpointError, match="has changed since it was written"):
        save(folder, model, epoch=3, keep=1)
    assert names(folder) == ["0000000001", "0000000002", "0000000003"]
    assert newest(folder).step == 2


def content_of(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.slow
@pytest.mark.parametrize("block", [2**10, files.BLOCK])
def test_a_full_disk_at_any_effect_leaves_a_checkpoint_and_the_next_save_succeeds(
    block, original, tmp_path, monkeypatch
):
    monkeypatch.setattr(files, "BLOCK", block)
    start = tmp_path / "start"
    shutil.copytree(original[0], start)
    probe = tmp_path / "probe"
    shutil.copytree(start, probe)
    effects, model = effects_of_a_save(probe, monkeypatch)
    assert len([effect for effect, _ in effects if effect == "write"]) >= (5 if block < 5000 else 2)
    for at in range(len(effects)):
        folder = tmp_path / f"full at {at}"
        shutil.copytree(start, folder)
        with monkeypatch.context() as context:
            watch(context, [], crash_at=at, error=OSError(28, "No space left on device"))
            with pytest.raises(OSError, match="No space left"):
                save(folder, model, epoch=3, keep=2)
        renamed = [effect for effect, _ in effects[:at]].count("rename") > 0
        assert newest(folder).epoch == (3 if renamed else 2)
        if not renamed:
            assert content_of(folder) == content_of(start)
        model.step_counter.assign_add(1)  # the state of another step
        save(folder, model, epoch=4, keep=2)
        assert newest(folder).epoch == 4
        assert [name for name in names(folder) if name.startswith(".")] == []


class PowerCut:
    """A disk that has, of what was written, only what was flushed before the power failed."""

    def __init__(self, at):
        self.at, self.number, self.unflushed = at, 0, set()

    def before(self, effect, path):
        if self.number == self.at:
            raise Crash
        self.number += 1
        if effect == "create" and not path.is_dir():
            self.unflushed.add(path)
        elif effect == "fsync":
            self.unflushed.discard(path)
        elif effect == "rename":
            inside = {file for file in self.unflushed if path.name in file.parent.name}
            self.unflushed = self.unflushed - inside | {path / file.name for file in inside}

    def lose(self):
        for path in self.unflushed:
            if path.is_file():
                path.write_bytes(b"")


def power_cuts(original, tmp_path, monkeypatch):
    """Returns what is found after a power cut at every effect of a save."""
    found, at, model = [], 0, as_new(make)
    while True:
        folder = tmp_path / f"cut at {at}"
        shutil.copytree(original[0], folder)
        cut = PowerCut(at)
        restore(model, newest(folder))
        model.step_counter.assign(3)
        with monkeypatch.context() as context:
            context.setattr(files, "before", cut.before)
            context.setattr(shutil, "rmtree", lambda *arguments, **options: None)
            try:
                save(folder, model, epoch=3, keep=2)
            except Crash:
                cut.lose()
            else:
                return found
        found.append(checkpoints.search(folder))
        at += 1


@pytest.mark.slow
def test_a_power_cut_at_any_effect_loses_no_checkpoint(original, tmp_path, monkeypatch):
    found = power_cuts(original, tmp_path, monkeypatch)
    assert len(found) >= 15
    assert [search.damaged for search in found] == [()] * len(found)
    steps = [search.newest.step for search in found]
    assert steps == sorted(steps)
    assert set(steps) == {2, 3}


@pytest.mark.slow
def test_the_proof_notices_a_rename_before_the_flush(original, tmp_path, monkeypatch):
    def write(path, fill):
        before = files.before
        # Flushing is left out; behind the rename it would come too late.
        files.before = lambda effect, path: effect == "fsync" or before(effect, path)
        try:
            return written(path, fill)
        finally:
            files.before = before

    written = files.write
    monkeypatch.setattr(files, "write", write)
    found = power_cuts(original, tmp_path, monkeypatch)
    assert any(search.damaged for search in found)


@pytest.mark.slow
def test_saving_a_step_again_leaves_the_first_in_place(folder):
    model = as_new(make)
    restore(model, newest(folder))
    save(folder, model, epoch=9)
    assert names(folder) == ["0000000001", "0000000002", "0000000002-2"]
    assert newest(folder).epoch == 9


def test_what_was_just_saved_is_never_removed(folder):
    model = as_new(make)
    model.step_counter.assign(1)
    shutil.rmtree(folder / "0000000001")
    path = save(folder, model, epoch=1, keep=1)  # beside step 2, which is newer
    assert path.exists()


@pytest.mark.parametrize("keep", [0, -1])
def test_keeping_less_than_one_is_refused(keep, folder, original):
    with pytest.raises(ValueError, match=f"keep must be an integer >= 1, got {keep}"):
        save(folder, original[2], epoch=2, keep=keep)
    assert names(folder) == ["0000000001", "0000000002"]


@pytest.mark.slow
def test_what_a_killed_writer_left_is_no_checkpoint(folder):
    for name in (".writing-0000000009", ".removing-0000000003"):
        shutil.copytree(folder / "0000000002", folder / name)
    (folder / ".writing-0000000003").mkdir()
    assert newest(folder) == Checkpoint(folder / "0000000002", step=2, epoch=2)
    model = as_new(make)
    restore(model, newest(folder))
    model.step_counter.assign(3)
    path = save(folder, model, epoch=3)
    assert names(folder) == ["0000000001", "0000000002", "0000000003"]
    assert newest(folder) == Checkpoint(path, step=3, epoch=3)


# What a manifest may say.


def renamed_file(path, name, target=None):
    """Makes a manifest name another file for the values."""
    manifest = json.loads((path / MANIFEST).read_text())
    (expected,) = manifest["content"]["files"].values()
    edit_manifest(path, sign=True, files={name: expected})


def linked(name):
    def damage(path):
        (path / name).rename(path.parent.parent / f"elsewhere-{name}")
        (path / name).symlink_to(path.parent.parent / f"elsewhere-{name}")

    return damage


def link_folder(path):
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def not_finite(path):
    with np.load(path / VALUES) as values:
        arrays = dict(values)
    arrays["00000"] = np.full_like(arrays["00000"], np.nan)
    with open(path / VALUES, "wb") as stream:
        np.savez(stream, **arrays)
    sign_values(path)


def other_shape(path):
    with np.load(path / VALUES) as values:
        arrays = dict(values)
    arrays["00000"] = arrays["00000"][:-1]
    with open(path / VALUES, "wb") as stream:
        np.savez(stream, **arrays)
    sign_values(path)


FORGED = {
    "a file outside the folder": (
        lambda path: renamed_file(path, f"../0000000001/{VALUES}"),
        "outside its folder",
    ),
    "an absolute path": (lambda path: renamed_file(path, "/etc/passwd"), "outside its folder"),
    "values that are a link": (linked(VALUES), "symbolic link"),
    "a manifest that is a link": (linked(MANIFEST), "symbolic link"),
    "a folder that is a link": (link_folder, "symbolic link"),
    "values that are a pipe": (
        lambda path: ((path / VALUES).unlink(), os.mkfifo(path / VALUES)),
        "not a regular file",
    ),
    "another format": (
        lambda path: edit_manifest(path, sign=True, format="of somebody else"),
        "unknown format",
    ),
    "values that are not finite": (not_finite, "not finite"),
    "values of another shape": (other_shape, r"\(15, 6\).*manifest has.*\(16, 6\)"),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_checkpoint_that_no_save_writes_is_refused_and_the_older_one_used(what, folder, original):
    forge, message = FORGED[what]
    path = folder / "0000000002"
    forge(path)
    found = checkpoints.search(folder)
    assert found.newest == Checkpoint(folder / "0000000001", step=1, epoch=1)
    ((damaged, problem),) = found.damaged
    assert damaged == path
    assert re.search(message, problem)
    before = values_of(original[2])
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(path, original[2])
    assert values_of(original[2]) == before


@pytest.mark.parametrize(("version", "advice"), [(1, "to resume it"), (9, "or a newer one")])
def test_another_format_is_refused_and_no_older_checkpoint_is_used_instead(version, advice, folder):
    edit_manifest(folder / "0000000002", sign=True, version=version, package="9.9")
    message = rf"format {version}.*written by vae_research 9\.9: install that {advice}"
    with pytest.raises(FormatError, match=message):
        newest(folder)


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model.pickle"])
def test_other_formats_are_refused(name, original, tmp_path):
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="can run code"):
        original[2].load_checkpoint(tmp_path / name)


def test_damaged_ones_are_kept_aside(folder):
    (folder / "0000000002" / VALUES).write_bytes(b"damaged")
    checkpoints.set_aside(checkpoints.search(folder))
    assert names(folder) == ["0000000001", "0000000002.damaged"]
    assert (folder / "0000000002.damaged" / VALUES).read_bytes() == b"damaged"
    assert checkpoints.search(folder) == checkpoints.Search(newest(folder))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["kernel", "momentum", "moving_variance"])
def test_values_that_are_not_finite_are_never_written(part, value, tmp_path):
    model = as_new(make)
    (variable, *_) = [v for v in saved_variables(model) if part in v.path]
    broken = np.array(variable.numpy())
    broken.flat[-1] = value
    variable.assign(broken)
    with pytest.raises(checkpoints.NotFiniteError, match=part):
        save(tmp_path, model, epoch=1)
    assert names(tmp_path) == []


# By themselves, and beside the training.


@pytest.mark.slow
def test_a_model_loads_a_checkpoint_by_its_path(original):
    model = as_new(make_other)
    assert model.load_checkpoint(original[1][-1]) == Checkpoint(original[1][-1], step=2, epoch=2)
    assert list(values_of(model).values()) == list(values_of(original[2]).values())


@pytest.mark.slow
def test_a_model_that_is_not_compiled_loads_its_own_variables(original):
    compiled = make(seed=2)
    model = VAE.from_config(compiled.get_config())
    model.forward(IMAGES[:2])
    assert getattr(model, "optimizer", None) is None
    model.load_checkpoint(original[1][-1])
    for mine, theirs in zip(model.get_weights(), original[2].get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_folder_of_checkpoints_is_no_checkpoint(original):
    with pytest.raises(CheckpointError, match=r"give one of them, as .*0000000002"):
        original[2].load_checkpoint(original[0])


@pytest.mark.slow
def test_a_save_beside_the_training_has_the_state_of_its_moment(tmp_path):
    model = as_new(make)
    train(model, 1)
    wanted = values_of(model)
    saver = checkpoints.Saver(tmp_path)
    saver.save(model, epoch=1)
    for _ in range(2):  # while it is being written, and after
        train(model, 1)
    saver.wait()
    other = as_new(make_other)
    restore(other, newest(tmp_path))
    assert list(values_of(other).values()) == list(wanted.values())
    assert values_of(model) != wanted


@pytest.mark.slow
def test_a_save_that_fails_beside_the_training_is_told_once(tmp_path, monkeypatch):
    model = as_new(make)
    saver = checkpoints.Saver(tmp_path)
    with monkeypatch.context() as context:
        watch(context, [], crash_at=2, error=OSError(28, "No space left on device"))
        saver.save(model, epoch=0)
        with pytest.raises(OSError, match="No space left"):
            saver.wait()
    saver.wait()
    saver.save(model, epoch=0)
    saver.wait()
    assert newest(tmp_path).epoch == 0


# The hash of a state.


@pytest.mark.slow
def test_the_hash_is_that_of_equal_runs_alone():
    hashes = []
    for steps, seed in [(1, 1), (1, 1), (2, 1), (1, 2)]:
        model = make(seed)
        train(model, steps)
        hashes.append(checkpoints.weights_sha256(model))
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    assert all(len(found) == 64 for found in hashes)


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_the_hash_sees_every_variable(group):
    model = as_new(make)
    before = checkpoints.weights_sha256(model)
    for variable in saved_variables(model):
        if GROUPS[group] in variable.path:
            value = np.array(variable.numpy())
            changed = value.copy()
            changed.flat[-1] += 1
            variable.assign(changed)
            assert checkpoints.weights_sha256(model) != before, variable.path
            variable.assign(value)
    assert checkpoints.weights_sha256(model) == before


@pytest.mark.slow
def test_the_state_has_no_running_means(original):
    """They are no part of a run's result, and their number depends on what was traced so far."""
    model = make()
    before = checkpoints.weights_sha256(model)
    variables = len(saved_variables(model))
    model.evaluate(IMAGES, verbose=0)
    assert model.examples_seen == len(IMAGES)
    assert checkpoints.weights_sha256(model) == before
    train(model, 1)
    assert len(saved_variables(model)) == variables == len(saved_variables(original[2]))
    tracked = {id(variable) for metric in model.metrics for variable in metric.variables}
    assert not tracked & {id(variable) for variable in saved_variables(model)}
