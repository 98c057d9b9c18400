"""Replicas that share each batch compute what one device does.

All runs in one process on several devices of the processor, see `tests.replicas`; 1e-5 is what the
sums of float32 in another order may leave after 50 steps (found for two devices: at most 4e-8).
"""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tests import forks
from tests.proofs import SOAK
from vae_research.distribution import Share, questions, with_share
from vae_research.tensors import Tensors

MODELS = [
    *("dense", "convolutional", "importance_weighted", "beta_tcvae", "factor_vae"),
    "vector_quantized",
]
# 66 rows: 21 leave a batch of 3, fewer than 4 replicas; 22 do not divide by 4, and 20 do.
CASES = [[name, 2, 21] for name in MODELS]
CASES += [["dense", 1, 21], ["dense", 2, 20], ["convolutional_with_adam", 4, 21]]
if SOAK:
    CASES += [[name, 4, rows] for name in MODELS for rows in (20, 21, 22)]
    CASES += [[name, 1, 22] for name in MODELS]


VAE_MNIST, BETA_TCVAE = (
    forks.CHECKOUT / "experiments" / f"{name}.py" for name in ("vae_mnist", "beta_tcvae")
)


def asked(tmp_path, **what):
    process = forks.run("-m", "tests.replicas", json.dumps(what), cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return asked(tmp_path_factory.mktemp("replicas"), cases=CASES, more=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_loss_and_weights_are_those_of_one_device(case, found):
    result = next(each for each in found["compared"] if each["case"] == case)
    assert result["steps"] >= 50
    assert result["weights"] < 1e-5
    assert result["figures"]["loss"] < 1e-5
    assert result["figures"]["val_loss"] < 1e-5
    assert max(result["figures"].values()) < 1e-4


@pytest.mark.slow
def test_noise_is_row_by_row_that_of_one_device(found):
    assert found["noise"] == []


@pytest.mark.slow
def test_rows_of_all_kinds_come_from_all_replicas(found):
    assert found["gathered"] == []


def test_a_batch_statistic_is_given_scalars_as_they_were_written():
    tensors = Tensors({"z": tf.ones([2, 3]), "temperature": tf.constant(0.5)})
    with with_share(Share(2, 4, 4, 2)), questions():
        whole = tensors.of_whole_batch()
        assert whole.tap("term", "temperature").numpy() == 0.5
        assert whole.tap("term", "z").shape == (4, 3)
    assert tensors.read == {"z", "temperature"}


@pytest.mark.slow
def test_gradients_are_clipped_after_they_are_added_up(found):
    assert found["clipped"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("undeclared", "The module 0 .* whole_batch = True"),
        ("noise", "The module 0 .* draws noise by other functions"),
        ("own step", "OwnStep.train_step .* by_replica = True"),
        ("added loss", "The encoder .* 'add_loss'"),
        ("moved", r"The encoder .* \(moved\)"),
        ("own layer", "The encoder .* whole_batch = True"),
        ("unsynchronised", r"BatchNormalization\(synchronized=True\)"),
        ("dropout", "Dropout .* generator of Keras"),
        ("term", "Loss term 'spread' .* batch_statistic = True"),
        ("least mean", "Loss term 'least_mean' .* batch_statistic = True"),
        ("activity", "activity_regularizer"),
        ("accumulation", r"^SGD\(gradient_accumulation_steps=2\) does"),
        ("overwriting", r"^SGD\(ema_overwrite_frequency=3\) does"),
        ("scaled accumulation", r"^Adam\(gradient_accumulation_steps=2\) does"),
        ("critic's accumulation", r"^SGD\(gradient_accumulation_steps=2\) does"),
        ("small batch", "batch of 1 rows is smaller than the number of replicas, 2"),
        ("arrays", "replicas share the batches of data.train.on_device"),
    ],
)
def test_what_replicas_cannot_share_is_refused_by_name(name, message, found):
    assert found["refused"][name] is not None
    with pytest.raises(ValueError, match=message):
        raise ValueError(found["refused"][name])


@pytest.mark.slow
def test_what_stands_on_the_wrong_side_of_a_scope(found):
    messages = found["out of place"]
    assert messages["compile_after_the_scope"] is None
    assert (
        "The optimizer has variables that were made outside of the scope"
        in (messages["optimizer_before_the_scope"])
    )
    assert "The layer 'functional" in messages["network_before_the_scope"]
    assert "This model was built outside of it" in messages["model_before_the_scope"]


@pytest.mark.soak
def test_gradients_that_are_not_divided_are_noticed(tmp_path):
    found = asked(tmp_path, cases=[["importance_weighted", 2, 22]], mutant="gradients_not_divided")
    assert found["compared"][0]["weights"] > 1e-4


def test_a_batch_is_shared_out_once():
    for size in range(1, 20):
        for replicas in range(1, 6):
            shares = [Share.of(replica, replicas, size) for replica in range(replicas)]
            rows = [row for share in shares for row in range(share.start, share.stop)]
            copies = shares[0].copies
            assert rows == [*range(size)] * copies
            assert (copies == 1) == (size >= replicas)
            assert max(share.count for share in shares) - min(share.count for share in shares) <= 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with images, and a run of one epoch that two devices have shared."""
    path = tmp_path_factory.mktemp("runs")
    images = np.random.default_rng(0).integers(0, 256, (66, 8, 8), dtype=np.uint8)
    np.savez(path / "images.npz", train=images[:34], validation=images[34:50], test=images[50:])
    run(path, "first", epochs=1)
    return path


def run(folder, name, *flags, epochs, devices=2):
    """Runs an experiment on several devices; returns its summary."""
    process = forks.run(
        VAE_MNIST,
        *("--dataset=images.npz", "--batch_size=16", "--latent_dim=2", "--hidden_units=4"),
        *("--importance_samples=2", "--checkpoint_minutes=0", "--notensorboard", "--verbose=0"),
        *(f"--device=cpu:{devices}", "--strategy=mirrored", f"--epochs={epochs}", *flags),
        f"--run_dir={name}",
        cwd=folder,
    )
    assert process.returncode == 0, process.stderr
    return json.loads((folder / name / "summary.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_run_of_several_devices_resumes_bit_for_bit(folder):
    shutil.copytree(folder / "first", folder / "resumed")
    resumed, unbroken = run(folder, "resumed", epochs=2), run(folder, "unbroken", epochs=2)
    assert resumed["reproducibility"] == unbroken["reproducibility"] == "bit-exact"
    assert resumed["state_sha256"] == unbroken["state_sha256"]
    assert resumed["test"] == unbroken["test"]


@pytest.mark.slow
def test_with_another_number_of_devices_a_run_is_valid_and_not_bit_exact(folder):
    shutil.copytree(folder / "first", folder / "other")
    resumed = run(folder, "other", epochs=2, devices=3)
    assert resumed["reproducibility"] == "valid, not bit-exact: replicas was 2, now 3"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device=cpu", "--strategy=mirrored"], "--device=cpu:2 makes two devices"),
        (["--device=cpu:3", "--strategy=mirrored", "--batch_size=2"], "--batch_size=2 is smaller"),
        (["--device=cpu:0"], "auto, cpu, gpu, cpu:N, gpu:N"),
        (["--strategy=sharded"], "must be one of none, mirrored, multiworker"),
        (["--device=gpu:2", "--strategy=mirrored"], "gpu:2, and TensorFlow finds no GPU"),
        (["--device=cpu:2"], "--device=cpu:2 is 2 devices, of which a run without a strategy uses"),
    ],
)
def test_what_cannot_be_shared_is_answered_in_one_line(flags, message, folder):
    assert message in refusal(VAE_MNIST, *flags, folder=folder)


@pytest.mark.slow
def test_a_program_of_xla_cannot_wait_for_other_replicas(folder):
    flags = "--device=cpu:2", "--strategy=mirrored", "--jit=on"
    message = "--jit=on, and within a step the replicas of this model wait for each other"
    assert message in refusal(BETA_TCVAE, *flags, folder=folder)


def refusal(experiment, *flags, folder):
    process = forks.run(experiment, "--dataset=images.npz", "--run_dir=refused", *flags, cwd=folder)
    assert process.returncode == 2, process.stderr
    assert len(process.stderr.strip().splitlines()) == 1
    return process.stderr
