"""What a run that goes on is told, and what its parts remember."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from vae_research.runs.cli.errors import DivergedError, FileSystemError, UsageError
from vae_research.runs.session import directory, logs, reproducibility
from vae_research.runs.session.fit.saving import Saving
from vae_research.runs.session.fit.stopping import StopWhenDiverged, WarnOfCollapse
from vae_research.runs.tools import replay

PROFILE = {"device": "CPU", "cpu": "A", "threads": "2 cores"}


def test_the_same_profile_is_bit_exact():
    assert reproducibility.claim(PROFILE, {}) == "bit-exact"
    assert reproducibility.claim(PROFILE, PROFILE, "bit-exact") == "bit-exact"


@pytest.mark.parametrize("name", ["cpu", "threads"])
def test_another_profile_is_valid_and_not_bit_exact(name):
    other = PROFILE | {name: "another"}
    answer = reproducibility.claim(other, PROFILE, "bit-exact")
    assert answer == f"valid, not bit-exact: {name} was {PROFILE[name]}, now another"
    # What is lost once does not come back in the next session.
    assert reproducibility.claim(other, other, answer) == answer


def test_a_gpu_promises_less():
    assert reproducibility.claim(PROFILE | {"device": "T4"}, {}).startswith("valid, not bit-exact")


def test_logs_are_cut_off_at_the_checkpoint(tmp_path):
    (tmp_path / "train").mkdir()
    metrics, first = tmp_path / "metrics.jsonl", tmp_path / "train/events.out.tfevents.1"
    metrics.write_text("one\n")
    first.write_bytes(b"abc")
    lengths = logs.lengths(tmp_path)
    metrics.write_text("one\ntwo\nthr")
    first.write_bytes(b"abcd\0\0")  # a damaged tail
    later = tmp_path / "train/events.out.tfevents.2"
    later.write_bytes(b"x")
    (tmp_path / "train/vectors.tsv").write_text("kept")
    assert logs.rewind(tmp_path, lengths) == []
    assert (metrics.read_text(), first.read_bytes(), later.exists()) == ("one\n", b"abc", False)
    assert (tmp_path / "train/vectors.tsv").exists()
    metrics.write_text("o")
    first.unlink()
    assert logs.rewind(tmp_path, lengths) == ["metrics.jsonl", "train/events.out.tfevents.1"]


def test_a_kl_divergence_of_nothing_is_warned_of_once(recwarn):
    callback = WarnOfCollapse()
    for divergence in (0.001, 0.001, 5.0, 0.001, 0.001):
        callback.on_epoch_end(0, {"val_kl": divergence})
    assert len(recwarn) == 0
    for _ in range(3):
        callback.on_epoch_end(0, {"val_kl": np.float32(0.001)})
    assert len(recwarn) == 1
    assert "KL divergence was below 0.01 nats at 3 evaluations" in str(recwarn[0].message)


def test_out_of_memory_is_one_line_with_a_hint(tmp_path):
    saving = Saving(tmp_path, [], None, None, {})
    error = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating\nmore")
    message = r"out of memory.*--batch_size"
    with pytest.raises(FileSystemError, match=message) as raised, saving.after_an_error():
        raise error
    assert raised.value.exit_code == 7
    assert "\n" not in str(raised.value)


def test_a_run_directory_that_is_removed_is_not_made_again(tmp_path):
    saving = Saving(tmp_path / "run", [], None, None, {})
    saving.set_model(
        SimpleNamespace(step=3, steps_per_epoch=5, running_sums=list, stop_training=False)
    )
    with pytest.raises(FileSystemError, match=r"run was removed or renamed while") as raised:
        saving.on_train_end()
    assert raised.value.exit_code == 7
    assert list(tmp_path.iterdir()) == []


def test_validation_that_is_not_finite_leaves_a_record(tmp_path):
    callback = StopWhenDiverged(tmp_path)
    callback.set_model(SimpleNamespace(step=10))
    callback.on_epoch_end(0, {"loss": 1.0, "val_loss": 1.0})
    assert list(tmp_path.iterdir()) == []
    words = r"epoch 2 .step 10.: not finite are val_kl.* validation data with extreme values, "
    with pytest.raises(DivergedError, match=words):
        callback.on_epoch_end(1, {"loss": 1.0, "val_loss": np.nan, "val_kl": np.nan})
    record = directory.read_nonfinite(tmp_path)
    assert record == {"epoch": 2, "step": 10, "causes": ["val_kl"]}
    with pytest.raises(UsageError, match="diverged in epoch 2, in no training step: val_kl not"):
        replay.replay(tmp_path)


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path):
    values = {"test": {"elbo": {"value": np.nan, "error": [1.5, -np.inf]}}, "ok": True}
    directory.write_json(tmp_path / "summary.json", values)
    found = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert found == {"test": {"elbo": {"value": None, "error": [1.5, None]}}, "ok": True}


def test_a_disk_without_room_for_the_files_is_refused(tmp_path, monkeypatch):
    for files, left, refused in ((1000, 99, True), (1000, 100, False), (0, 0, False)):
        found = SimpleNamespace(f_files=files, f_favail=left)
        monkeypatch.setattr(os, "statvfs", lambda path, found=found: found)
        monkeypatch.setattr(directory.shutil, "disk_usage", lambda path: SimpleNamespace(free=9))
        if refused:
            with pytest.raises(FileSystemError, match=r"room for 99 more files .inodes.*100"):
                directory.refuse_full_disk(tmp_path, 1)
        else:
            directory.refuse_full_disk(tmp_path, 1)


def test_a_disk_without_room_for_the_checkpoints_is_refused(tmp_path):
    directory.refuse_full_disk(tmp_path / "not" / "there", 1)
    with pytest.raises(FileSystemError, match=r"has [\d,]+ MB free.*need 1,000,000,000,000 MB"):
        directory.refuse_full_disk(tmp_path / "not" / "there", 10**18)
