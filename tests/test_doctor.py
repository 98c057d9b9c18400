"""scripts/doctor: what it says of run directories in every state, and that it changes nothing."""

import json
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace

import absl.flags
import keras
import numpy as np
import pytest

from tests import forks
from vae_research import checkpoints, manifests, runs
from vae_research.data import load_data
from vae_research.runs.session import directory
from vae_research.runs.session.kept import sources
from vae_research.runs.tools import doctor, run_findings


def record(epoch):
    """A line of metrics.jsonl."""
    return {"epoch": epoch, "step": 10 * epoch, "validation/loss": 3.0}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """An unfinished run with checkpoints after its first and second epoch."""
    run_dir = tmp_path_factory.mktemp("doctor") / "run"
    run_dir.mkdir()
    experiment = run_dir.parent / "vae_mnist.py"
    experiment.write_text("def build(config, data):\n    return 1.0\n")
    module = ModuleType("vae_mnist")
    exec(compile(experiment.read_text(), experiment, "exec"), vars(module))
    config = {
        "experiment": "vae_mnist",
        "file": str(experiment),
        "source": sources.keep(run_dir, sources.collect(module.build)),
        "flags": runs.configure(module.build, epochs=9).as_dict(),
        "data": {"fingerprint": "0", "streamed": False, "name": "mnist"},
        "versions": {"vae_research": "0.1"},
    }
    directory.write_json(run_dir / "config.json", config)
    metrics = run_dir / "metrics.jsonl"
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.Adam())
    model.optimizer.build(model.trainable_variables)
    for epoch, score in ((1, -3.0), (2, -4.0)):
        model.optimizer.iterations.assign(10 * epoch)
        metrics.write_text("".join(json.dumps(record(n + 1)) + "\n" for n in range(epoch)))
        logs = {"metrics.jsonl": metrics.stat().st_size}
        progress = {"logs": logs, "source": "source"}
        checkpoints.save(
            run_dir / "checkpoints", model, epoch=epoch, score=score, progress=progress
        )
    return run_dir


@pytest.fixture
def run_dir(original, tmp_path):
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def examined(run_dir):
    def contents():
        return {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}

    before = contents()
    lines, exit_code = run_findings.examine(run_dir)
    assert contents() == before
    return "\n".join(lines), exit_code


def test_an_unfinished_run(run_dir):
    text, exit_code = examined(run_dir)
    assert exit_code == 0
    assert "0000000020: intact, epoch 2" in text
    assert "0000000010: intact, epoch 1, 0.0 MB, the best" in text
    assert "metrics.jsonl: 2 epochs\n" in text
    assert "summary.json: missing" in text
    assert text.endswith("resumes at step 20.")


def test_a_run_that_has_diverged(run_dir):
    record = {"epoch": 2, "step": 10, "causes": ["val_kl"]}
    directory.write_json(run_dir / "nonfinite.json", record)
    text, exit_code = examined(run_dir)
    assert (exit_code, "diverged in epoch 2, step 10: val_kl not finite\n" in text) == (0, True)
    assert "resumes at step 20. It would diverge again. " in text.splitlines()[-1]


def test_a_keras_that_was_not_tested_is_a_note(run_dir, monkeypatch):
    assert "was tested with" not in examined(run_dir)[0]
    monkeypatch.setattr(run_findings.tested, "installed", lambda: {"keras": "4.0.0"})
    text, exit_code = examined(run_dir)
    assert (exit_code, "  note: keras 4.0.0 is newer than 3.15, " in text) == (0, True)


def test_a_finished_run(run_dir):
    directory.write_json(run_dir / "summary.json", {"status": "done"})
    assert examined(run_dir)[0].endswith("nothing, the run is complete.")


def test_what_a_command_refuses_is_not_said_to_resume(run_dir, original):
    experiment = original.parent / "vae_mnist.py"
    text = experiment.read_text()
    experiment.write_text(text.replace("1.0", "2.0"))
    found, exit_code = examined(run_dir)
    assert exit_code == 4
    assert "  vae_mnist.py has changed since\n" in found
    assert "or resume with --resume=changed" in found.splitlines()[-1]
    directory.write_json(run_dir / "summary.json", {"status": "done"})
    found, exit_code = examined(run_dir)
    assert (exit_code, "with more --epochs the command refuses" in found) == (0, True)
    (run_dir / "summary.json").unlink()
    moved = experiment.rename(run_dir.parent / "vae_mnist.py")
    assert "vae_mnist.py is not there, and is not compared" in examined(run_dir)[0]
    config = directory.read_config(run_dir) | {"file": str(moved)}
    directory.write_json(run_dir / "config.json", config)
    assert examined(run_dir)[1] == 4
    moved.write_text(text)
    assert examined(run_dir)[1] == 0
    experiment.write_text(text)

    other = run_dir / "checkpoints/0000000030"
    shutil.copytree(run_dir / "checkpoints/0000000020", other)
    content = manifests.read_manifest(other)
    content["progress"]["identity"] = "another"
    (other / "manifest.json").write_bytes(manifests.manifest(content))
    found, exit_code = examined(run_dir)
    assert (exit_code, "what is damaged or not of this run." in found) == (4, True)
    shutil.rmtree(other)

    (run_dir / "source/vae_mnist.py").write_text("")
    found, exit_code = examined(run_dir)
    assert (exit_code, "remove, what is damaged" in found) == (4, True)


def test_one_checkpoint_is_damaged_and_a_save_was_interrupted(run_dir):
    (run_dir / "checkpoints/0000000020/variables.npz").write_bytes(b"x")
    (run_dir / "checkpoints/.writing-0000000030").mkdir()
    (run_dir / "checkpoints/0000000005.damaged").mkdir()
    text, exit_code = examined(run_dir)
    assert exit_code == 0
    assert "0000000020: cannot be used: " in text
    assert "variables.npz has changed" in text
    assert "interrupted save: checkpoints/.writing-0000000030" in text
    assert "0000000005.damaged: was damaged, kept aside" in text
    assert text.endswith("resumes at step 10.")


def test_no_checkpoint_is_whole(run_dir):
    for path in (run_dir / "checkpoints").iterdir():
        (path / "manifest.json").unlink()
    text, exit_code = examined(run_dir)
    assert exit_code == 4
    assert "no checkpoint is intact" in text


def test_none_yet(run_dir):
    shutil.rmtree(run_dir / "checkpoints")
    text, exit_code = examined(run_dir)
    assert exit_code == 0
    assert text.endswith("starts it again.")


def test_logs_that_are_shorter_or_longer_than_the_checkpoint_knows(run_dir):
    with open(run_dir / "metrics.jsonl", "a") as stream:
        stream.write('{"epoch": 3}\n')
    assert "metrics.jsonl: 13 bytes after the newest checkpoint" in examined(run_dir)[0]
    size = (run_dir / "metrics.jsonl").stat().st_size - 13
    (run_dir / "metrics.jsonl").write_text("")
    assert f"metrics.jsonl has 0 bytes; it had {size} at" in examined(run_dir)[0]


def test_a_run_that_is_in_use(run_dir):
    with directory.locked(run_dir):
        text, _ = examined(run_dir)
    assert "in use: process " in text
    assert text.endswith("wait for the process that writes to this directory.")
    assert "in use: no" in examined(run_dir)[0]


def test_the_command(run_dir, tmp_path, capsys, monkeypatch):
    assert doctor.main([str(run_dir)]) == 0
    assert capsys.readouterr().out.startswith(f"{run_dir}: vae_mnist, --epochs=9\n")
    assert doctor.main([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert doctor.main([]) == 2
    assert doctor.main([str(run_dir), "--epochs=2"]) == 2
    assert doctor.main([f"{run_dir}.py"]) == 2
    assert "run.py." in capsys.readouterr().err
    assert doctor.main([str(run_dir.parent)]) == 2  # a folder of runs
    (tmp_path / "other.py").write_text("print('no experiment')")
    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr("absl.flags.FLAGS", absl.flags.FlagValues())
        patched.setattr("sys.argv", [])
        patched.setattr("sys.path", [""])
        assert doctor.main([str(tmp_path / "other.py")]) == 2
    assert "called neither runs.main nor runs.study" in capsys.readouterr().err


def examined_in_fork(folder, *arguments, first=None):
    before = sorted(folder.rglob("*"))
    process = forks.run("-m", doctor.__name__, *arguments, cwd=folder, first=first)
    assert sorted(folder.rglob("*")) == before
    return process


def test_data(tmp_path, without_tensorflow):
    images = np.arange(40 * 16, dtype=np.uint8).reshape(40, 4, 4) % 16
    np.savez(tmp_path / "images.npz", train=images)
    process = examined_in_fork(tmp_path, "images.npz", "--binarize=none", first=without_tensorflow)
    assert process.returncode == 0, process.stderr
    assert "32 train, 4 validation, 4 test, each 4x4x1" in process.stdout
    assert "rescale unit (x / 15)" in process.stdout
    assert "Values: 0 to 1, as" in process.stdout
    assert process.stdout.endswith("images.npz can be used.\n")
    assert "images.npz: 4 of 4 validation images are also in train" in process.stderr
    refused = examined_in_fork(tmp_path, "images.npz", "--epochs=3", first=without_tensorflow)
    assert (refused.returncode, "--epochs is no flag of the data" in refused.stderr) == (2, True)


def test_data_of_a_run_that_have_changed_or_are_gone(run_dir, tmp_path):
    images = np.random.default_rng(0).random((20, 4, 4))
    np.savez(tmp_path / "images.npz", train=images)
    config = directory.read_config(run_dir)
    config["flags"]["dataset"] = str(tmp_path / "images.npz")
    config["data"]["fingerprint"] = load_data(tmp_path / "images.npz").fingerprint
    directory.write_json(run_dir / "config.json", config)
    text, exit_code = examined(run_dir)
    assert (exit_code, f"data: {tmp_path}/images.npz, unchanged\n" in text) == (0, True)
    np.savez(tmp_path / "images.npz", train=images[::-1])
    text, exit_code = examined(run_dir)
    assert (exit_code, "images.npz has changed since" in text) == (4, True)
    (tmp_path / "images.npz").unlink()
    text, exit_code = examined(run_dir)
    assert (exit_code, "data cannot be used: " in text) == (3, True)
    assert text.endswith("restore the data with which the run was started.")


def test_a_disk_without_room_for_the_rest_of_a_run(run_dir, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    text, exit_code = examined(run_dir)
    assert (exit_code, "the checkpoints of this run need" in text) == (7, True)
    directory.write_json(run_dir / "summary.json", {"status": "done", "notes": ["Odd."]})
    text, exit_code = examined(run_dir)
    assert (exit_code, "  note: Odd.\n" in text) == (0, True)


OWN = '''"""A model that a flag makes wrong."""

import keras
import tensorflow as tf

import vae_research as vr
from vae_research import runs

runs.define_string("wrong", "nothing", "what is wrong")
COUNT = tf.Variable(1.0, name="of_somebody")


class Own(vr.LossTerm):
    def per_example(self, z):
        return COUNT * vr.sum_over_event(z**2)


class Half(keras.callbacks.Callback):
    def get_state(self):
        return {}


def build(config, data):
    return vr.VAE(
        vr.dense_encoder(data.shape, 2, hidden_units=(4,)),
        vr.GaussianBottleneck(2),
        vr.dense_decoder(data.shape, 2, hidden_units=(4,)),
        [vr.Bernoulli(), vr.KLDivergence(), *([Own()] if config.wrong == "state" else [])],
    )


def callbacks(config, data):
    return [Half()] if config.wrong == "callback" else []


if __name__ == "__main__":
    runs.main(build, callbacks=callbacks)
'''


@pytest.mark.slow
def test_an_experiment_is_checked_as_its_run_checks_it(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    np.savez(tmp_path / "images.npz", train=np.random.default_rng(0).random((20, 4, 4)))
    flags = ["--dataset=images.npz", "--batch_size=8", "--jit=off", "--run_dir=run"]
    process = examined_in_fork(tmp_path, "own.py", *flags)
    assert process.returncode == 0, process.stderr
    said = process.stdout.splitlines()
    assert said[0].startswith("Data: images.npz, 16 train")
    assert said[-1] == (
        "Nothing was found that would stop this run. It would start a new run in "
        f"{tmp_path / 'run'}."
    )
    study = Path(__file__).parents[1] / "experiments/latent_space.py"
    process = examined_in_fork(tmp_path, study, "--run_dir=run", "--epochs=1")
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.endswith(f"as the study needs them. Directory: {tmp_path / 'run'}.\n")
    for wrong, words in (("state", "of_somebody"), ("callback", "Half defines get_state and not")):
        process = examined_in_fork(tmp_path, "own.py", *flags, f"--wrong={wrong}")
        assert (process.returncode, words in process.stderr) == (2, True)
