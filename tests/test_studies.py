"""Studies: several models in one command, what they leave, and how they go on.

The study trains two tiny models on 32 images of 8 x 8 pixels and draws one picture. Its file is
written by a fixture. What needs no TensorFlow runs with one that ends the process.
"""

import dataclasses
import gc
import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import vae_research as vr
from tests import forks
from vae_research import runs
from vae_research.checkpoints import CheckpointError, weights_sha256
from vae_research.runs.cli.flags import may_change
from vae_research.runs.cli.startup import without_garbage_collection
from vae_research.runs.session import directory, experiment, resume
from vae_research.runs.session.kept import sources

CHECKOUT = Path(__file__).resolve().parents[1]
RANDOM = np.random.default_rng(0)
IMAGES = {
    "train": RANDOM.integers(0, 256, (32, 8, 8), dtype=np.uint8),
    "validation": RANDOM.integers(0, 256, (16, 8, 8), dtype=np.uint8),
    "test": RANDOM.integers(0, 256, (16, 8, 8), dtype=np.uint8),
}

STUDY = '''"""Two KL weights."""

import os
import signal

import numpy as np

import vae_research as vr
from vae_research import runs

runs.set_defaults(epochs=1, batch_size=16, latent_dim=2, importance_samples=2, jit="off")
runs.define_floats("kl_weights", (0.5, 2.0), "of the KL divergence")


def build(config, data):
    return vr.VAE(
        vr.dense_encoder(data.shape, config.latent_dim, hidden_units=(4,)),
        vr.GaussianBottleneck(config.latent_dim),
        vr.dense_decoder(data.shape, config.latent_dim, hidden_units=(4,)),
        [vr.Bernoulli(), vr.KLDivergence(weight=config.kl_weight)],
        seed=config.seed,
    )


def check(config, data):
    if len(config.kl_weights) != 2:
        raise runs.UsageError("two --kl_weights, please.")
    if len(data.test) < 10:
        raise vr.DataError("too few test images.")


def run_study(config, data, run_dir):
    codes = []
    for name, weight in zip("ab", config.kl_weights, strict=True):
        own = config.replace(kl_weight=weight)
        run = runs.train(build, config=own, data=data, run_dir=run_dir / name)
        codes.append(run.model.encode(data.test.prepare()).numpy())
        if "TERMINATE" in os.environ:
            os.kill(os.getpid(), signal.SIGTERM)  # Ctrl-C is ignored where pytest ignores it
    labels = np.arange(len(codes[0])) % 2
    vr.save_scatter(run_dir / "figures" / "codes.png", codes[1], labels, title="codes")
    return {"answer": 42}


if __name__ == "__main__":
    runs.study(run_study, check=check, needs=os.environ.get("NEEDS", "matplotlib sklearn").split())
'''


def refusal(process, exit_code):
    """The one line with which a command ended."""
    assert process.returncode == exit_code, process.stderr
    assert re.fullmatch(r"tiny_study: [^\n]+\n", process.stderr)
    return process.stderr


def read_json(path):
    return json.loads(path.read_text("utf-8"))


def contents(folder):
    """Every file below a folder, so that two looks at it can be compared."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the study's file and its data."""
    folder = tmp_path_factory.mktemp("studies")
    (folder / "tiny_study.py").write_text(STUDY, "utf-8")
    np.savez(folder / "images.npz", **IMAGES)
    return folder


@pytest.fixture(scope="module")
def study(place, without_tensorflow):
    """Runs the study's command on a run directory; `quick` without TensorFlow."""

    def run(name, *arguments, quick=True, dataset="images.npz", **environment):
        flags = [f"--dataset={place / dataset}", f"--run_dir={place / name}", *arguments]
        first = without_tensorflow if quick else None
        return forks.run(place / "tiny_study.py", *flags, cwd=place, first=first, **environment)

    return run


@pytest.fixture(scope="module")
def finished(place, study):
    """The directory of a study that ran through, and what its command printed."""
    process = study("finished", quick=False)
    assert (process.returncode, process.stderr) == (0, "")
    return place / "finished", process.stdout


# ---------------------------------------------------------------- refused beforehand


def test_what_the_study_refuses_leaves_nothing_behind(place, study):
    assert "two --kl_weights" in refusal(study("refused", "--kl_weights=1"), 2)
    np.savez(place / "few.npz", **{name: images[:8] for name, images in IMAGES.items()})
    given = ("--batch_size=8",)
    assert "too few test" in refusal(study("refused", *given, dataset="few.npz"), 3)
    assert not (place / "refused").exists()


# ---------------------------------------------------------------- a finished study


@pytest.mark.slow
def test_a_study_leaves_its_runs_its_pictures_and_its_answer(finished):
    run_dir, _ = finished
    assert {path.name for path in run_dir.iterdir()} == {
        *("a", "b", "config.json", "summary.json", "figures", "study", "lock", "source")
    }
    summary = read_json(run_dir / "summary.json")
    assert (summary["status"], summary["answer"]) == ("done", 42)
    assert summary["seconds_of_last_session"] > 0.0
    config = read_json(run_dir / "config.json")
    assert config["experiment"] == "tiny_study"
    assert config["file"] == str(run_dir.parent / "tiny_study.py")
    assert config["flags"]["kl_weights"] == [0.5, 2.0]
    assert (config["flags"]["epochs"], config["flags"]["latent_dim"]) == (1, 2)
    assert "kl_weight" not in config["flags"]
    assert config["data"]["fingerprint"]
    assert config["versions"]["tensorflow"] == tf.__version__


@pytest.mark.slow
def test_the_screen_says_where_to_watch_and_what_was_written(finished):
    run_dir, output = finished
    assert re.search(rf"^Watch it: .*--logdir {re.escape(str(run_dir))}$", output, re.M)
    for name in "ab":
        assert f"Run directory: {run_dir / name}\n" in output
    assert output.endswith(f"Written to {run_dir}: figures/codes.png\n")


@pytest.mark.slow
def test_pictures_are_in_tensorboard_as_run_study(finished):
    run_dir, _ = finished
    events = EventAccumulator(str(run_dir / "study"), size_guidance={"tensors": 0})
    events.Reload()
    assert events.Tags()["tensors"] == ["codes"]
    (event,) = events.Tensors("codes")
    assert event.step == 0
    width, height, encoded = tf.make_ndarray(event.tensor_proto)
    shown = tf.io.decode_png(encoded, channels=3).numpy()
    drawn = tf.io.decode_png((run_dir / "figures" / "codes.png").read_bytes(), channels=3).numpy()
    np.testing.assert_array_equal(shown, drawn)
    assert drawn.shape == (int(height), int(width), 3)
    assert len(np.unique(drawn)) > 10


@pytest.mark.slow
@pytest.mark.parametrize(("name", "weight"), [("a", 0.5), ("b", 2.0)])
def test_the_runs_of_a_study_can_be_loaded(finished, name, weight):
    run_dir, _ = finished
    run = vr.load_run(run_dir / name)
    assert run.config.kl_weight == weight
    assert run.model.objective.terms[1].weight == weight
    assert (run.summary["status"], run.summary["epochs"]) == ("done", 1)
    assert run.summary["weights_sha256"] == weights_sha256(run.model)
    assert run.config.kl_weights == (0.5, 2.0)
    assert {path.name for path in (run_dir / name).iterdir()} == {
        *("config.json", "metrics.jsonl", "summary.json", "checkpoints", "lock", "source"),
        *("train", "validation", "run", "figures", "figures.npz", "model.keras", "decoder.keras"),
        "report.html",
    }


@pytest.mark.slow
def test_a_study_itself_is_no_run(finished):
    with pytest.raises(CheckpointError, match=r"It is a study; load one of its runs: a, b\."):
        vr.load_run(finished[0])


@pytest.mark.slow
def test_a_complete_study_is_left_alone(finished, study):
    run_dir, _ = finished
    before = contents(run_dir)
    for arguments in ([], ["--resume=must"], ["--verbose=0"]):
        process = study("finished", *arguments)
        assert (process.returncode, process.stderr) == (0, "")
        assert process.stdout == f"{run_dir} is already complete.\n"
    assert contents(run_dir) == before


# ---------------------------------------------------------------- going on


@pytest.fixture(scope="module")
def interrupted(place, study):
    """A study that was terminated after its first model, and its contents at that time."""
    process = study("interrupted", "--notensorboard", quick=False, TERMINATE="1")
    assert "to resume a run that has started" in refusal(process, 143)
    return place / "interrupted", contents(place / "interrupted")


@pytest.fixture(scope="module")
def continued(interrupted, study):
    run_dir, before = interrupted
    process = study("interrupted", "--notensorboard", "--resume=must", quick=False)
    assert (process.returncode, process.stderr) == (0, "")
    return run_dir, before, process.stdout


@pytest.mark.slow
def test_an_interrupted_study_has_one_run_and_no_summary(interrupted):
    run_dir, before = interrupted
    assert run_dir / "a" / "summary.json" in before
    assert not {run_dir / "summary.json", run_dir / "b" / "config.json"} & before.keys()


@pytest.mark.slow
def test_a_study_goes_on_after_its_last_model(continued, finished):
    run_dir, before, output = continued
    assert f"{run_dir / 'a'} is already complete: 1 epochs." in output
    now = contents(run_dir)
    of_a = {path: found for path, found in before.items() if path.is_relative_to(run_dir / "a")}
    assert of_a.items() <= now.items()
    assert {path for path in now if path.is_relative_to(run_dir / "a")} == of_a.keys()
    assert read_json(run_dir / "summary.json")["answer"] == 42
    for name in "ab":
        summaries = [read_json(path / name / "summary.json") for path in (run_dir, finished[0])]
        assert summaries[0]["weights_sha256"] == summaries[1]["weights_sha256"]
        assert summaries[0]["test"] == summaries[1]["test"]
    # A picture of codes that were computed from the loaded and from the trained weights.
    pictures = [(path / "figures" / "codes.png").read_bytes() for path in (run_dir, finished[0])]
    assert pictures[0] == pictures[1]


# ---------------------------------------------------------------- refusals


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--latent_dim=3"], 2, "--latent_dim was 2, now 3"),
        (["--kl_weights=0.5,3"], 2, r"--kl_weights was \[0.5, 2.0\], now \[0.5, 3.0\]"),
        (["--resume=never"], 2, "holds a run already"),
        (["--kl_weight=2"], 2, "unknown flag --kl_weight.*'kl_weights'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_study_with_other_flags_is_refused(finished, study, arguments, code, message):
    before = contents(finished[0])
    assert re.search(message, refusal(study("finished", *arguments), code))
    assert contents(finished[0]) == before


def test_a_study_is_complete_with_flags_that_change_no_result(tmp_path):
    config = runs.configure(build, run_dir=str(tmp_path))
    source = sources.collect(build)
    description = {"experiment": "tiny", "file": "tiny.py", "flags": config.as_dict()}
    description |= {"data": {"fingerprint": "", "streamed": False}, "versions": {}}
    description["source"] = sources.keep(tmp_path, source)
    directory.write_config(tmp_path, description)
    evaluation = resume.results_of_study(config, description["source"])
    directory.write_json(tmp_path / "summary.json", {"status": "done", "evaluation": evaluation})

    def complete(source=source, **values):
        given, harmless = config.replace(**values), may_change(build)
        return resume.completed_study(given, tmp_path, "tiny", source, harmless)

    assert complete()
    assert complete(tensorboard=False, jit="off", checkpoint_minutes=9.0, resume="changed")
    assert not complete(epochs=99)
    assert not complete(importance_samples=3)
    with pytest.raises(runs.UsageError, match="--latent_dim was 20, now 3"):
        complete(latent_dim=3)
    edited = dataclasses.replace(source, files=source.files | {source.main: b"x = 1\n"})
    with pytest.raises(CheckpointError, match=r"test_studies\.py has changed"):
        complete(edited)
    assert not complete(edited, resume="changed")


@pytest.mark.parametrize("given", ["auto", "never", "must", "changed", "scratch"])
def test_what_a_study_allows_its_runs_are_allowed(given, tmp_path, monkeypatch):
    found = []

    def complete_run(parts, name, config, given):
        found.append(config.resume)
        raise runs.UsageError("enough")

    monkeypatch.setattr(experiment, "complete_run", complete_run)
    config = runs.configure(build, resume=given)
    with pytest.raises(runs.UsageError, match="enough"):
        runs.train(build, config=config, run_dir=tmp_path / "run")
    assert found == [given if given in ("changed", "scratch") else "auto"]


def test_what_a_study_has_made_is_searched_for_garbage(monkeypatch):
    importlib.import_module("vae_research.runs.session.training")
    monkeypatch.setattr(gc, "freeze", lambda: pytest.fail("models would never be freed"))
    with without_garbage_collection():
        assert gc.isenabled()


def test_going_on_without_a_study(place, study):
    message = refusal(study("nowhere", "--resume=must"), 4)
    assert "holds no study" in message
    assert not (place / "nowhere").exists()


@pytest.mark.slow
def test_the_directory_of_another_experiment(place, study, finished):
    other = place / "other"
    other.mkdir()
    directory.write_config(other, directory.read_config(finished[0]) | {"experiment": "vae_mnist"})
    assert "holds a run of vae_mnist, not of tiny_study" in refusal(study("other"), 2)
    foreign = place / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("")
    assert "is not empty and holds no run" in refusal(study("foreign"), 2)


@pytest.mark.slow
def test_a_study_in_use(finished, study):
    with directory.locked(finished[0]):
        before = contents(finished[0])
        assert "is in use by" in refusal(study("finished"), 5)
        assert contents(finished[0]) == before


@pytest.mark.parametrize(
    ("needs", "named"),
    [("nonsense_a", "nonsense_a"), ("nonsense_a numpy nonsense_b", "nonsense_a and nonsense_b")],
)
def test_a_missing_module_is_said_before_anything_is_done(place, study, needs, named):
    message = refusal(study("needy", NEEDS=needs), 2)
    assert f"needs {named}: pip install 'vae_research[figures]'." in message
    assert not (place / "needy").exists()


def test_data_are_looked_at_before_tensorflow(place, study):
    message = refusal(study("no data", dataset="nothing.npz"), 3)
    assert "nothing.npz" in message
    message = refusal(study("no data", "--batch_size=33"), 2)
    assert "--batch_size=33 is more than the 32 training examples" in message
    assert not (place / "no data").exists()


# ---------------------------------------------------------------- runs.train by itself


def build(config, data):
    return vr.VAE(
        vr.dense_encoder(data.shape, config.latent_dim, hidden_units=(4,)),
        vr.GaussianBottleneck(config.latent_dim),
        vr.dense_decoder(data.shape, config.latent_dim, hidden_units=(4,)),
        [vr.Bernoulli(), vr.KLDivergence(weight=config.kl_weight)],
        seed=config.seed,
    )


@pytest.mark.slow
def test_a_run_that_is_trained_from_python(place, tmp_path):
    """In a notebook: trained, loaded where it is complete, refused where flags differ."""
    dataset = str(place / "images.npz")
    sizes = {"epochs": 1, "batch_size": 16, "latent_dim": 2, "importance_samples": 2}
    sizes |= {"jit": "off", "tensorboard": False}
    config = runs.configure(build, dataset=dataset, verbose=0, **sizes).replace(kl_weight=0.5)
    given = config.as_dict()
    data = vr.load_data(dataset, rescale=config.rescale, binarize=config.binarize)
    run = runs.train(build, config=config, data=data, run_dir=tmp_path / "run")
    assert run.summary["weights_sha256"] == weights_sha256(run.model)
    assert config.as_dict() == given
    before = contents(tmp_path)
    again = runs.train(
        build, config=config.replace(resume="never", verbose=2), data=data, run_dir=tmp_path / "run"
    )
    assert contents(tmp_path) == before
    assert weights_sha256(again.model) == weights_sha256(run.model)
    with pytest.raises(runs.UsageError, match=r"--kl_weight was 0.5, now 2.0"):
        runs.train(build, config=config.replace(kl_weight=2.0), data=data, run_dir=tmp_path / "run")
    assert contents(tmp_path) == before


# ---------------------------------------------------------------- defaults, lists of numbers

EXPERIMENT = """
from vae_research import runs

runs.set_defaults({defaults})
runs.define_floats("factors", (1e-4, 2.0), "numbers")

def build(config, data):
    pass
"""


@pytest.fixture
def in_python(tmp_path, without_tensorflow):
    """Runs code beside experiments `first` (with other defaults) and `second`, without TensorFlow.

    Returns the JSON object that the code prints.
    """

    def run(code, defaults="epochs=3, latent_dim=5"):
        (tmp_path / "first.py").write_text(EXPERIMENT.format(defaults=defaults), "utf-8")
        (tmp_path / "second.py").write_text(EXPERIMENT.format(defaults=""), "utf-8")
        (tmp_path / "code.py").write_text(f"{PRELUDE}\n{code}", "utf-8")
        process = forks.run("code.py", cwd=tmp_path, first=without_tensorflow)
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout)

    return run


PRELUDE = """
import contextlib, io, json, sys
from vae_research import runs
from vae_research.runs.cli.flags import parse
import first, second

def error_of(function, *arguments, **options):
    try:
        return ["accepted", function(*arguments, **options).as_dict()]
    except Exception as error:  # its type is what is asked for
        return [type(error).__name__, str(error)]
"""


def test_set_defaults(in_python):
    code = """
def help_of(build):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        parse(build, ["--help"])
    return [line.strip() for line in printed.getvalue().splitlines() if "--epochs" in line]

found = {"help": [help_of(first.build), help_of(second.build)]}
found["configure"] = [runs.configure(module).epochs for module in (first, second)]
found["given"] = runs.configure(first, epochs=2).epochs
found["other"] = runs.configure(first).latent_dim
# Flags that were given stay given in a process: last what is given.
found["parse"] = [parse(module.build, []).epochs for module in (first, second)]
found["command"] = [parse(module.build, ["--epochs=2"]).epochs for module in (first, second)]
print(json.dumps(found))
"""
    found = in_python(code, defaults="epochs=3, latent_dim=5")
    assert found["help"] == [["--epochs=3"], ["--epochs=10"]]
    assert found["configure"] == found["parse"] == [3, 10]
    assert (found["given"], found["other"]) == (2, 5)
    assert found["command"] == [2, 2]


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ("epoch=3", "set_defaults(epoch=...): there is no such standard flag. Did you mean 'epo"),
        # A flag of the experiment has its default where it is defined.
        ("factors=(1.0,)", "set_defaults(factors=...): there is no such standard flag."),
        ("epochs=0", "must be an integer >= 1"),
    ],
)
def test_set_defaults_refuses(in_python, defaults, message):
    code = """
errors = [error_of(runs.configure, first), error_of(parse, first.build, [])]
print(json.dumps([errors, error_of(runs.configure, second)[0]]))
"""
    errors, second = in_python(code, defaults)
    for kind, text in errors:
        assert kind == "ValueError"
        assert message in text
    assert second == "accepted"


def test_a_bad_default_names_its_flag(in_python):
    code = "print(json.dumps(error_of(runs.configure, first)))"
    _, text = in_python(code, "epochs=0")
    assert "epochs" in text


def test_define_floats(in_python):
    code = """
texts = ["1e-4,2", "3", "0", "a", "", "-1", "nan", "1,,2", "1,2,", "inf", "1e39", " ", "1;2"]
found = [error_of(runs.configure, first, factors=text) for text in texts]
found += [error_of(parse, first.build, [f"--factors={text}"]) for text in texts[3:] + texts[:1]]
print(json.dumps([[kind, end if kind != "accepted" else end["factors"]] for kind, end in found]))
"""
    found = in_python(code, defaults="")
    assert found[:3] == [["accepted", factors] for factors in ([1e-4, 2.0], [3.0], [0.0])]
    assert found.pop() == ["accepted", [1e-4, 2.0]]
    for kind, text in found[3:]:
        assert kind == "UsageError"
        assert "factors" in text
        assert "must be finite numbers >= 0 separated by commas" in text


def test_define_floats_takes_numbers_from_python(in_python):
    code = """
values = [(0.5, 2), [1e-4], (1, -1), (float("nan"),), (True,), 5.0]
found = [error_of(runs.configure, first, factors=value) for value in values]
found = [[kind, end["factors"] if kind == "accepted" else None] for kind, end in found]
print(json.dumps(found))
"""
    found = in_python(code, defaults="")
    assert found[:2] == [["accepted", [0.5, 2.0]], ["accepted", [1e-4]]]
    assert found[2:] == [["UsageError", None]] * 4


def test_define_floats_needs_one_number(in_python):
    code = "print(json.dumps(error_of(runs.configure, first, factors=())))"
    assert in_python(code, defaults="")[0] == "UsageError"


def test_the_default_of_a_list_is_shown_as_it_is_typed(place, without_tensorflow):
    process = forks.run(place / "tiny_study.py", "--help", cwd=place, first=without_tensorflow)
    assert (process.returncode, process.stderr) == (0, "")
    assert "  --kl_weights=0.5,2.0\n" in process.stdout
    assert "  --epochs=1\n" in process.stdout
    assert "  --latent_dim=2\n" in process.stdout
