"""scripts/doctor: what it says of run directories in every state, and that it changes nothing."""

import json
import shutil
from types import ModuleType

import keras
import pytest

from vae_research import checkpoints, manifests
from vae_research.runs.session import directory, sources
from vae_research.runs.tools import doctor


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
        "flags": {"epochs": 9, "batch_size": 8, "precision": "float32"},
        "data": {"fingerprint": "0", "streamed": False},
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
    lines, exit_code = doctor.examine(run_dir)
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


def test_the_command(run_dir, tmp_path, capsys):
    assert doctor.main([str(run_dir)]) == 0
    assert capsys.readouterr().out.startswith(f"{run_dir}: vae_mnist, --epochs=9\n")
    assert doctor.main([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert doctor.main([]) == 2
