"""One run: flags, run directory, going on, ending early, and coming back as Python objects.

Flags are global to a process, and so are signals: what they do is seen in processes of their own,
most of them forks. Whatever needs no TensorFlow runs with a `tensorflow` and a `keras` that end the
process. Trainings are tiny: 32 images of 8 x 8 pixels, 2 steps an epoch.
"""

import html
import json
import os
import platform
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests import forks
from vae_research import checkpoints, estimate, load_run, manifests, runs
from vae_research.data import DataError
from vae_research.evaluation import tag_of
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.session import directory

CHECKOUT = Path(__file__).resolve().parents[1]
VAE_MNIST = CHECKOUT / "experiments" / "vae_mnist.py"
OWN_LOSS_TERM = CHECKOUT / "experiments" / "own_loss_term.py"

RANDOM = np.random.default_rng(0)
TRAIN = RANDOM.integers(0, 256, (32, 8, 8), dtype=np.uint8)
HELD_OUT = RANDOM.integers(0, 256, (2, 16, 8, 8), dtype=np.uint8)

TINY = ["--batch_size=16", "--latent_dim=2", "--importance_samples=2"]
# The weight of the KL divergence depends on the step, which must therefore survive an interruption.
# Nothing is saved by the clock: a machine that is busy would have more checkpoints.
FLAGS = [*TINY, "--hidden_units=4", "--kl_warmup_steps=3", "--checkpoint_minutes=0"]
FLAGS += ["--jit=off", "--epochs=2"]  # test_repeatability.py has a run that XLA compiles
# Where neither of them matters: they are most of a tiny run.
QUICKLY = ["--jit=off", "--notensorboard"]
CLOCK = {"seconds", "images_per_second"}


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, train=TRAIN, validation=HELD_OUT[0], test=HELD_OUT[1])
    return path


def trained(*arguments, **options):
    """A command that must succeed; returns what it printed."""
    process = forks.run(*arguments, **options)
    assert process.returncode == 0, process.stderr
    return process.stdout


def refusal(process, exit_code):
    """The one line with which a command ended."""
    assert "Traceback" not in process.stderr
    assert process.returncode == exit_code, process.stderr
    assert re.fullmatch(r"[^\n]+\n", process.stderr)
    return process.stderr


def read_json(path):
    return json.loads(path.read_text("utf-8"))


def metrics_of(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def without_clock(record):
    return {key: value for key, value in record.items() if key not in CLOCK}


def contents(folder):
    """Every file below a folder, so that two looks at it can be compared."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


# ---------------------------------------------------------------- flags

# Prints the flags that an experiment gets from a command line.
PARSE = """
import json
import sys
from vae_research import runs
from vae_research.runs.cli.errors import RunError
from vae_research.runs.cli.flags import parse

runs.define_float("kl_weight", 1.0, "weight of the KL divergence")
runs.define_boolean("shuffle", True, "a switch that is on")

def build(config, data):
    pass

try:
    print(json.dumps(parse(build, sys.argv[1:]).as_dict()))
except RunError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"epochs": 10, "run_eagerly": False, "shuffle": True, "kl_weight": 1.0}),
        (["--epochs=3", "--epochs=3"], {"epochs": 3}),
        (["--epochs", "3", "-epochs=3"], {"epochs": 3}),
        (["--run_eagerly", "--noshuffle"], {"run_eagerly": True, "shuffle": False}),
        (["--run_eagerly=true", "--shuffle=false"], {"run_eagerly": True, "shuffle": False}),
        (["--noshuffle", "--noshuffle", "--shuffle=false"], {"shuffle": False}),
        (["--run_eagerly", "--kl_weight", "2"], {"run_eagerly": True, "kl_weight": 2.0}),
        (["--dataset=a=b,c d", "--rescale=unit"], {"dataset": "a=b,c d", "rescale": "unit"}),
        (["--epochs=3", "--epochs=4"], "--epochs is given twice, as 3 and as 4."),
        (["--shuffle", "--noshuffle"], "--shuffle is given twice, as true and as false."),
        (["--noshuffle", "--shuffle=true"], "--shuffle is given twice, as false and as true."),
    ],
    ids=lambda value: " ".join(value) or "none" if isinstance(value, list) else "",
)
def test_forms_of_flags(arguments, expected, tmp_path, without_tensorflow):
    process = forks.run("-c", PARSE, *arguments, cwd=tmp_path, first=without_tensorflow)
    if isinstance(expected, str):
        assert (process.returncode, process.stderr) == (1, f"{expected}\n")
    else:
        found = json.loads(process.stdout)
        assert {name: found[name] for name in expected} == expected


def test_a_config_names_the_nearest_flag():
    config = runs.Config(latent_dim=3, kl_weight=1.0)
    assert (config.latent_dim, config.as_dict()) == (3, {"latent_dim": 3, "kl_weight": 1.0})
    with pytest.raises(AttributeError, match=r"'latentdim'.*Did you mean 'latent_dim'"):
        config.latentdim  # noqa: B018
    assert not hasattr(config, "beta")


def test_importing_defines_no_flag_and_needs_no_tensorflow(tmp_path, without_tensorflow):
    code = """
from absl import flags
before = set(flags.FLAGS)
import vae_research
from vae_research import load_run, runs
from vae_research.runs.cli import command, errors, flags as ours
from vae_research.runs.session import directory, loading
assert set(flags.FLAGS) == before, set(flags.FLAGS) - before
print("imported")
"""
    process = forks.alone("-c", code, cwd=tmp_path, first=without_tensorflow)
    assert (process.stdout, process.stderr) == ("imported\n", "")


def in_python(code, first=None):
    """Runs code with the experiments importable; returns the JSON object that it prints."""
    process = forks.run("-c", code, cwd=CHECKOUT, first=first)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_configure_gives_the_flags_of_the_command(without_tensorflow):
    code = """
import json
from experiments import vae_mnist
from vae_research import runs
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.cli.flags import parse

found = {}
config = runs.configure(vae_mnist)
found["defaults"] = config.as_dict()
found["by build"] = runs.configure(vae_mnist.build).as_dict()
given = {"latent_dim": 3, "kl_weight": 0.5, "hidden_units": (8, 4), "rescale": "unit"}
found["given"] = runs.configure(vae_mnist, **given).as_dict()
found["afterwards"] = runs.configure(vae_mnist).as_dict()
bad = [
    {"latent_dims": 3}, {"latent_dim": 0}, {"latent_dim": 2.5}, {"kl_weight": float("nan")},
    {"network": "dens"}, {"hidden_units": (8, 0)}, {"seed": 2**32},
]
found["errors"] = []
for values in bad:
    try:
        runs.configure(vae_mnist, **values)
    except UsageError as error:
        found["errors"].append(str(error))
found["command"] = parse(vae_mnist.build, []).as_dict()
print(json.dumps(found))
"""
    found = in_python(code, without_tensorflow)
    usual = {"epochs": 10, "batch_size": 128, "latent_dim": 20, "seed": 0, "dataset": "mnist"}
    usual |= {"hidden_units": [500], "kl_weight": 1.0, "run_dir": None, "debug": False}
    assert usual.items() <= found["defaults"].items()
    assert found["by build"] == found["afterwards"] == found["command"] == found["defaults"]
    given = {"latent_dim": 3, "kl_weight": 0.5, "hidden_units": [8, 4], "rescale": "unit"}
    assert found["given"] == found["defaults"] | given
    expected = ["'latent_dim'", ">= 1", ">= 1", ">= 0", "'dense'", ">= 1", "4294967295"]
    for part, message in zip(expected, found["errors"], strict=True):
        assert part in message


@pytest.mark.slow
def test_two_experiments_of_one_process_may_use_the_same_flag():
    code = """
import json
from experiments import iwae_mnist, vae_mnist
from vae_research import runs

print(json.dumps([runs.configure(vae_mnist).hidden_units, runs.configure(iwae_mnist).hidden_units]))
"""
    assert in_python(code) == [[500], [200, 200]]


def test_help_explains_every_flag(tmp_path, without_tensorflow):
    process = forks.alone(VAE_MNIST, "--help", cwd=tmp_path, first=without_tensorflow)
    assert (process.returncode, process.stderr) == (0, "")
    code = """
import json
from experiments import vae_mnist
from vae_research import runs

print(json.dumps([vae_mnist.__doc__.strip(), runs.configure(vae_mnist).as_dict()]))
"""
    document, defaults = in_python(code, without_tensorflow)
    assert process.stdout.startswith(document)
    entries = re.findall(r"^  --(\w+)(?:=(.*))?\n {8}(.+)$", process.stdout, re.MULTILINE)
    assert sorted(name for name, *_ in entries) == sorted(defaults)
    for name, default, text in entries:
        value = defaults[name]
        if default:
            assert default == (",".join(map(str, value)) if isinstance(value, list) else str(value))
        else:
            assert "default" in text  # what it depends on, or what happens without the flag
        if isinstance(value, int | float | list) and not isinstance(value, bool):
            assert re.search(r"\((an? |integers)[\w ,<>=.]+\)$", text)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["--help", "-h", "--helpfull"])
def test_help_is_given_beside_bad_flags_too(form, tmp_path, without_tensorflow):
    arguments = [VAE_MNIST, "--epochs=0", form]
    assert "--latent_dim=20" in trained(*arguments, cwd=tmp_path, first=without_tensorflow)


# ---------------------------------------------------------------- a finished run


FILES = "config", "summary"


# Of the session: between the fast tests of this file and its slow ones come those of other files.
@pytest.fixture(scope="session")
def finished(tmp_path_factory, images):
    """The directory of a run of two epochs, and what its command printed."""
    folder = tmp_path_factory.mktemp("finished")
    flags = [*FLAGS, f"--dataset={images}", f"--run_dir={folder / 'run'}"]
    # Started as a shell does it: nothing is to be seen of the import of TensorFlow either.
    process = forks.alone(VAE_MNIST, *flags, cwd=folder)
    assert (process.returncode, process.stderr) == (0, "")
    assert [path.name for path in folder.iterdir()] == ["run"]
    return folder / "run", process.stdout


@pytest.fixture(scope="session")
def loaded(finished):
    return load_run(finished[0])


def test_everything_of_the_contract_is_there_and_nothing_else(finished):
    run_dir, _ = finished
    assert {path.name for path in run_dir.iterdir()} == {
        *("config.json", "metrics.jsonl", "summary.json", "checkpoints", "lock", "source"),
        *("train", "validation", "run", "figures", "figures.npz", "model.keras", "decoder.keras"),
        "report.html",
    }
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["0000000004"]
    for split in ("train", "validation"):
        assert list((run_dir / split).glob("events.out.tfevents.*"))


def test_the_screen_says_where_and_how_to_watch_and_what_came_out(finished):
    run_dir, output = finished
    assert f"Run directory: {run_dir}\n" in output
    assert re.search(
        rf"^Watch it: .*tensorboard .*--logdir {re.escape(str(run_dir))}$", output, re.M
    )
    assert "32 train, 16 validation, 16 test, each 8x8x1" in output
    assert re.search(r"^Training: epochs 1 to 2, 2 steps each$", output, re.M)
    assert len(re.findall(r"^epoch [12]/2 \| train .* \| validation .*nats", output, re.M)) == 2
    _, _, table = output.partition("Test figures:\n")
    for name, figure in read_json(run_dir / "summary.json")["test"].items():
        pattern = rf"^  {name} +{figure['value']:.2f} \+- .* 16 examples$"
        assert re.search(pattern, table, re.M), name


def test_config_json(finished, images):
    run_dir, _ = finished
    config = read_json(run_dir / "config.json")
    assert config["experiment"] == "vae_mnist"
    assert config["file"] == str(VAE_MNIST)
    given = {"epochs": 2, "batch_size": 16, "latent_dim": 2, "hidden_units": [4], "seed": 0}
    assert given.items() <= config["flags"].items()
    terms = {"reconstruction": "Bernoulli()", "kl": "KLDivergence(weight=LinearWarmup(steps=3))"}
    assert config["terms"] == terms
    assert set(config["versions"]) == {
        *("vae_research", "git_commit", "python", "tensorflow", "keras", "numpy")
    }
    assert config["versions"]["python"] == platform.python_version()
    (session,) = config["sessions"]
    assert re.fullmatch(r"vae_mnist \d{4}-\d\d-\d\dT\S+ [0-9a-f]{8}", config["identity"])
    assert session["started"] <= session["ended"]
    assert session["command"].endswith(f"--run_dir={run_dir}")
    assert (session["host"], session["source"]) == (platform.node(), config["source"])
    assert set(config["versions"]) - {"vae_research"} <= set(session)
    assert config["data"]["name"] == images.name
    assert config["data"]["counts"] == {"train": 32, "validation": 16, "test": 16}
    assert config["data"]["shape"] == [8, 8, 1]
    assert re.fullmatch("[0-9a-f]{64}", config["data"]["fingerprint"])
    assert config["device"]
    assert config["effective_beta"] == 1.0
    assert config["seeds"] == {"init_seed": 0, "data_seed": 0, "noise_seed": 0}
    assert config["flags"]["init_seed"] is None  # with another --seed it is another one
    note = config["likelihood"].pop("note")  # the pictures are grey
    assert note.startswith("Bernoulli on grey values is not a normalised likelihood")
    assert config["likelihood"] == {"measure": "probability of targets"}


def test_metrics_jsonl_has_a_line_for_each_epoch(finished):
    run_dir, _ = finished
    records = metrics_of(run_dir)
    figures = {"loss", "elbo", "reconstruction", "kl", "weight/reconstruction", "weight/kl"}
    figures |= {"contribution/kl"}  # the mean of products, as the weight changes with the step
    splits = {f"{split}/{name}" for split in ("train", "validation") for name in figures}
    for epoch, record in enumerate(records, 1):
        assert set(record) == {"epoch", "step", *CLOCK} | splits
        assert (record["epoch"], record["step"]) == (epoch, 2 * epoch)
        for split in ("train", "validation"):
            parts = -record[f"{split}/reconstruction"] - record[f"{split}/kl"]
            assert record[f"{split}/elbo"] == pytest.approx(parts, rel=1e-5)
    assert len(records) == 2
    # After 2 of 3 steps the warm-up is at 2/3, after 4 it is over.
    assert records[0]["train/weight/kl"] == pytest.approx(2 / 3)
    assert records[1]["train/weight/kl"] == 1.0


def test_summary_json(finished, loaded):
    run_dir, _ = finished
    summary = read_json(run_dir / "summary.json")
    assert set(summary) >= {
        "status",
        "epochs",
        "steps",
        "best_epoch",
        "parameters",
        "notes",
        *CLOCK,
    }
    assert (summary["status"], summary["epochs"], summary["steps"]) == ("done", 2, 4)
    names = ["elbo", "reconstruction", "kl", "negative_log_likelihood", "active_units"]
    # No bits per dimension: a Bernoulli likelihood of grey values is not a probability.
    assert sorted(summary["test"]) == sorted([*names, "effective_sample_size"])
    of_weights = {"monte_carlo_error", "by_samples"}
    for name, figure in summary["test"].items():
        further = of_weights if name == "negative_log_likelihood" else set()
        assert set(figure) == {"value", "standard_error", "count"} | further, name
        assert figure["count"] == 16
        assert figure["standard_error"] >= 0
    other = {"active_units": "latent dimensions", "effective_sample_size": "samples"}
    assert summary["units"] == dict.fromkeys(summary["test"], "nats") | other
    best = max(metrics_of(run_dir), key=lambda record: record["validation/elbo"])
    assert summary["best_epoch"] == best["epoch"]
    # Encoder 64-4-(2, 2), decoder 2-4-64, with biases.
    assert summary["parameters"] == (65 * 4 + 2 * 5 * 2) + (3 * 4 + 5 * 64)
    assert summary["weights_sha256"] == checkpoints.weights_sha256(loaded.model)


def test_figures_are_pictures(finished):
    import tensorflow as tf

    run_dir, _ = finished
    shapes = {
        path.stem: tf.io.decode_png(path.read_bytes()).shape.as_list()
        for path in (run_dir / "figures").iterdir()
    }
    # Ten images of 8 x 8 side by side with gaps of 2: two pairs of rows, and eight rows of samples.
    assert shapes.pop("reconstructions") == [4 * 10 - 2, 10 * 10 - 2, 1]
    assert shapes.pop("samples") == [8 * 10 - 2, 10 * 10 - 2, 1]
    assert set(shapes) <= {"curves"}  # drawn where matplotlib is installed


def test_event_files_have_the_same_tags_in_both_splits(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir, _ = finished
    tags, steps = {}, {}
    for split in ("train", "validation"):
        names = set()
        for path in (run_dir / split).glob("events.out.tfevents.*"):
            events = EventAccumulator(str(path)).Reload()
            names |= set(events.Tags()["tensors"])
            for name in events.Tags()["tensors"]:
                steps[split, name] = [event.step for event in events.Tensors(name)]
        tags[split] = names
    shared = {"loss", "elbo"} | {
        f"{kind}/{name}"
        for kind in ("terms", "weight", "contribution")
        for name in ("reconstruction", "kl")
    }
    pictures = {"reconstructions", "errors", "samples", "traversals", "plane"}
    latent = {"active_units", "kl_total", "permuted_code_gap", "mutual_information"}
    latent |= {"kl_per_dimension", "kl_over_time", "posterior_mean", "posterior_std", "diagnosis"}
    gradients = {"total", "encoder/reconstruction", "encoder/kl", "decoder/reconstruction"}
    gradients = {f"gradients/{name}" for name in gradients | {"cosine/kl"}}
    assert tags["train"] == shared | gradients | {"learning_rate", "images_per_second"}
    assert tags["validation"] == shared | pictures | {f"latent/{name}" for name in latent}
    # The x axis is the optimizer step. Of 500 steps without an interval there is the last alone.
    diagnosis = steps.pop(("validation", "latent/diagnosis"))
    assert set(diagnosis) <= {2, 4}
    for (split, name), found in steps.items():
        assert found == ([4] if name in gradients else [2, 4]), (split, name)


def test_the_report_has_what_the_other_files_say(finished):
    run_dir, _ = finished
    config, summary = (json.loads((run_dir / f"{name}.json").read_text()) for name in FILES)
    report = (run_dir / "report.html").read_text()
    words = re.sub(r"<[^>]+>", "\n", report)
    for name, figure in summary["test"].items():
        assert f"\n{name}\n" in words and f"\n{summary['units'][name]}\n" in words, name
        assert f"\n{figure['count']:,}\n" in words
    differs = words.partition("differs from its default")[2].partition("All settings")[0]
    given = {flag.removeprefix("--").partition("=")[0] for flag in [*FLAGS, "--dataset"]}
    for name, value in config["flags"].items():
        is_changed = value != config["defaults"][name] and name != "run_dir"
        assert (f"\n{name}\n" in differs) == is_changed, name
        assert not is_changed or name in given, name
    for known in (summary["weights_sha256"], config["sessions"][0]["command"], "vae_mnist.py"):
        assert html.escape(known) in report
    for line in (run_dir / "validation" / "diagnosis.txt").read_text().splitlines():
        assert html.escape(line) in report
    assert f" --epochs=4 --run_dir={html.escape(str(run_dir))}  # train it longer" in report
    pictures = len(list((run_dir / "figures").glob("*.png")))
    assert report.count('src="data:image/png;base64,') == report.count("src=") == pictures == 3
    assert "href=" not in report and "url(" not in report


def test_the_table_of_runs_has_the_test_figures(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir, _ = finished
    events = EventAccumulator(str(run_dir / "run")).Reload()
    tested = json.loads((run_dir / "summary.json").read_text())["test"]
    for name, figure in tested.items():
        (event,) = events.Tensors(tag_of(name))
        assert event.step == 4
        assert event.tensor_proto.float_val[0] == pytest.approx(figure["value"], rel=1e-6)
    assert (run_dir / "validation" / "codes_sprite.png").exists()


def test_the_lock_is_free_and_says_who_had_it(finished):
    run_dir, _ = finished
    before = (run_dir / "lock").read_text()
    assert re.fullmatch(rf"process \d+ on {re.escape(platform.node())} since \S+", before.strip())
    with directory.locked(shutil.copytree(run_dir, run_dir.parent / "copy for the lock")):
        pass


# ---------------------------------------------------------------- back in Python


def test_a_loaded_run_gives_the_figures_of_its_summary(finished, loaded):
    run_dir, _ = finished
    assert loaded.path == run_dir
    assert loaded.summary == read_json(run_dir / "summary.json")
    assert loaded.model.step == 4
    assert (len(loaded.data.train), loaded.data.name) == (32, "images.npz")
    figures = estimate(
        loaded.model, loaded.data.test.prepare(), num_samples=loaded.config.importance_samples
    )
    for name, expected in loaded.summary["test"].items():
        assert figures[name].value == pytest.approx(expected["value"], rel=1e-6), name
        error = figures[name].standard_error
        assert error == pytest.approx(expected["standard_error"], rel=1e-5), name


def test_a_loaded_run_has_the_flags_as_they_were_given(loaded):
    assert loaded.config.latent_dim == 2
    assert loaded.config.kl_warmup_steps == 3
    assert loaded.config.hidden_units == (4,)  # not a list, though JSON has no tuples


def test_a_moved_run_loads_and_is_complete(finished, loaded, images, tmp_path, without_tensorflow):
    moved = shutil.copytree(finished[0], tmp_path / "archive" / "moved run")
    assert checkpoints.weights_sha256(load_run(moved).model) == loaded.summary["weights_sha256"]
    before = contents(moved)
    flags = [*FLAGS, f"--dataset={images}", "--run_dir=archive/moved run"]
    output = trained(VAE_MNIST, *flags, cwd=tmp_path, first=without_tensorflow)
    assert f"{moved} is already complete" in output
    assert contents(moved) == before


def copy_with(run_dir, target, **changes):
    """A copy of a run with other entries in its config.json."""
    copy = shutil.copytree(run_dir, target / "copy")
    config = directory.read_config(copy)
    config["flags"] |= changes.pop("flags", {})
    directory.write_config(copy, config | changes)
    return copy


def test_loading_needs_a_run(tmp_path):
    with pytest.raises(UsageError, match=re.escape(f"{tmp_path} holds no run")):
        load_run(tmp_path)
    with pytest.raises(UsageError, match="holds no run"):
        load_run(tmp_path / "nowhere")


def test_loading_runs_the_kept_source_and_nothing_else(finished, loaded, tmp_path):
    (tmp_path / "elsewhere.py").write_text("raise SystemExit('executed')")
    copy = copy_with(finished[0], tmp_path, file=str(tmp_path / "elsewhere.py"))
    build = kept_build(loaded)
    assert Path(build.__code__.co_filename) == finished[0] / "source" / "vae_mnist.py"
    model = load_run(copy).model
    assert checkpoints.weights_sha256(model) == loaded.summary["weights_sha256"]
    with open(copy / "source" / "vae_mnist.py", "a") as stream:
        stream.write("\n# a comment, which the checksum of the kept source does not allow")
    with pytest.raises(checkpoints.CheckpointError, match=r"source is damaged.*vae_mnist\.py has"):
        load_run(copy)
    shutil.rmtree(copy / "source")
    with pytest.raises(checkpoints.CheckpointError, match=r"source is damaged.*source\.json is m"):
        load_run(copy)


def kept_build(loaded):
    """The `build` of the kept source of a loaded run."""
    (module,) = (each for name, each in sys.modules.items() if re.match(r"run_\w+\.vae_mn", name))
    return module.build


def test_loading_a_run_without_kept_source_needs_its_build(finished, loaded, tmp_path):
    copy = copy_with(finished[0], tmp_path, identity=None, source=None)
    path = next((copy / "checkpoints").iterdir()) / "manifest.json"
    content = read_json(path)["content"]
    del content["progress"]["identity"], content["progress"]["source"]
    path.write_bytes(manifests.manifest(content))
    version = read_json(copy / "config.json")["versions"]["vae_research"]
    message = rf"vae_research {version}, which made this run, did not keep.*load_run\(path, build="
    with pytest.raises(UsageError, match=message):
        load_run(copy)
    model = load_run(copy, build=kept_build(loaded)).model
    assert checkpoints.weights_sha256(model) == loaded.summary["weights_sha256"]


def test_loading_refuses_a_changed_data_set(finished, tmp_path):
    changed = TRAIN.copy()
    changed[3, 4, 5] ^= 1
    np.savez(tmp_path / "images.npz", train=changed, validation=HELD_OUT[0], test=HELD_OUT[1])
    copy = copy_with(finished[0], tmp_path, flags={"dataset": str(tmp_path / "images.npz")})
    with pytest.raises(checkpoints.CheckpointError, match="has changed"):
        load_run(copy)
    (tmp_path / "images.npz").unlink()
    with pytest.raises(DataError, match=r"images\.npz does not exist"):
        load_run(copy)


def test_loading_needs_a_checkpoint(finished, tmp_path):
    copy = copy_with(finished[0], tmp_path)
    values = next((copy / "checkpoints").iterdir()) / "variables.npz"
    damaged = bytearray(values.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    values.write_bytes(damaged)
    with pytest.raises(checkpoints.CheckpointError, match="checksum"):
        load_run(copy)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(checkpoints.CheckpointError, match="has no checkpoint"):
        load_run(copy)


CODES = np.array([[0.0, 0.0], [1.0, -2.0]], np.float32)


@pytest.mark.slow
def test_the_saved_decoder_loads_without_this_package(finished, loaded, tmp_path):
    np.save(tmp_path / "codes.npy", CODES)
    code = f"""
import sys
sys.modules["vae_research"] = None  # an import of it now fails
import keras, numpy
decoder = keras.models.load_model({str(finished[0] / "decoder.keras")!r})
numpy.save("logits.npy", decoder(numpy.load("codes.npy"))["logits"])
"""
    trained("-c", code, cwd=tmp_path, package=False)
    expected = loaded.model.decoder(CODES)["logits"]
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=1e-5)


@pytest.mark.slow
def test_the_saved_model_loads_where_this_package_is_imported(finished, loaded, tmp_path):
    code = f"""
import keras, vae_research
import numpy
model = keras.models.load_model({str(finished[0] / "model.keras")!r})
assert model.step == 4, model.step
numpy.savez("found.npz", samples=model.sample(3), predicted=model.predict(numpy.ones([5, 8, 8, 1])))
"""
    trained("-c", code, cwd=tmp_path, package=False)
    found = np.load(tmp_path / "found.npz")
    np.testing.assert_allclose(found["samples"], loaded.model.sample(3), rtol=1e-5)
    expected = loaded.model.reconstruct(np.ones([5, 8, 8, 1], np.float32))
    np.testing.assert_allclose(found["predicted"], expected, rtol=1e-5)


@pytest.mark.slow
def test_the_model_of_a_run_is_exported(loaded, tmp_path):
    import tensorflow as tf

    loaded.model.export(tmp_path / "exported", verbose=False)
    images = loaded.data.test.prepare(slice(0, 3))
    program = tf.saved_model.load(tmp_path / "exported")
    found = program.serve(tf.constant(images))
    np.testing.assert_allclose(found, loaded.model.reconstruct(images), rtol=1e-5)


# ---------------------------------------------------------------- the same run again


@pytest.fixture(scope="module")
def repeated(tmp_path_factory, images):
    """The command of the finished run once more, and with another seed, by relative paths."""
    folder = tmp_path_factory.mktemp("repeated")
    shutil.copy(images, folder)
    flags = [VAE_MNIST, *FLAGS, f"--dataset={images.name}"]
    # Nothing for TensorBoard, which must change nothing else.
    again = forks.start(*flags, "--run_dir=some/where/run", "--notensorboard", cwd=folder)
    other = forks.start(*flags, "--seed=1", "--notensorboard", cwd=folder)
    for process in (again, other):
        assert process.ended().returncode == 0, process.stderr
    (other_dir,) = (folder / "runs" / "vae_mnist").iterdir()
    assert f"Run directory: {folder / 'some/where/run'}\n" in again.stdout
    assert f"Run directory: {other_dir}\n" in other.stdout
    return folder / "some/where/run", other_dir


@pytest.mark.slow
def test_the_same_seed_is_the_same_run(finished, repeated):
    again, first = (read_json(run_dir / "summary.json") for run_dir in (repeated[0], finished[0]))
    assert without_clock(again) == without_clock(first)
    pairs = zip(metrics_of(repeated[0]), metrics_of(finished[0]), strict=True)
    assert all(without_clock(ours) == without_clock(theirs) for ours, theirs in pairs)


@pytest.mark.slow
def test_another_seed_is_another_run(finished, repeated):
    _, other_dir = repeated
    assert re.fullmatch(r"\d{8}-\d{6}", other_dir.name)  # its place, as no directory was given
    other, first = (read_json(run_dir / "summary.json") for run_dir in (other_dir, finished[0]))
    assert other["weights_sha256"] != first["weights_sha256"]
    assert other["test"]["elbo"] != first["test"]["elbo"]


@pytest.mark.slow
def test_a_run_on_a_relative_data_set_loads_from_any_folder(repeated, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load_run(repeated[0]).data.name == "images.npz"


@pytest.mark.slow
def test_one_epoch_and_then_another_are_two_epochs_at_once(finished, images, tmp_path):
    flags = [VAE_MNIST, *FLAGS[:-1], f"--dataset={images}", "--run_dir=run", "--notensorboard"]
    trained(*flags, "--epochs=1", cwd=tmp_path)
    assert [record["epoch"] for record in metrics_of(tmp_path / "run")] == [1]
    # What changes nothing in the weights may change.
    output = trained(*flags, "--epochs=2", "--verbose=2", "--resume=must", cwd=tmp_path)
    assert re.search(r"^Resuming after epoch 1 \(step 2\)$", output, re.M)

    broken, unbroken = (
        read_json(run_dir / "summary.json") for run_dir in (tmp_path / "run", finished[0])
    )
    assert without_clock(broken) == without_clock(unbroken)
    pairs = zip(metrics_of(tmp_path / "run"), metrics_of(finished[0]), strict=True)
    assert all(without_clock(ours) == without_clock(theirs) for ours, theirs in pairs)


def again(finished, images, *changes, experiment=VAE_MNIST, **options):
    """The command of the finished run once more, with changes; it must leave the run alone."""
    run_dir, _ = finished
    before = contents(run_dir)
    flags = [*FLAGS, f"--dataset={images}", f"--run_dir={run_dir}"]
    names = {change.partition("=")[0] for change in changes}
    flags = [flag for flag in flags if flag.partition("=")[0] not in names]
    process = forks.run(experiment, *flags, *changes, cwd=run_dir.parent, **options)
    assert contents(run_dir) == before
    return process


@pytest.mark.parametrize(
    ("change", "old", "new"),
    [
        ("--kl_weight=2", "1.0", "2.0"),
        ("--seed=1", "0", "1"),
        ("--init_seed=1", "0", "1"),
        ("--data_seed=1", "0", "1"),
        ("--noise_seed=1", "0", "1"),
        ("--batch_size=8", "16", "8"),
        ("--hidden_units=4,4", "[4]", "[4, 4]"),
        ("--learning_rate=0.01", "0.001", "0.01"),
        ("--rescale=unit", "None", "unit"),
    ],
)
def test_going_on_with_other_flags_is_refused(
    finished, images, change, old, new, without_tensorflow
):
    process = again(finished, images, change, "--epochs=3", first=without_tensorflow)
    line = refusal(process, 2)
    name = change.partition("=")[0]
    assert str(finished[0]) in line
    assert f"{name} was {old}, now {new}." in line


def test_all_changed_flags_are_named_at_once(finished, images, without_tensorflow):
    line = refusal(
        again(finished, images, "--seed=1", "--jit=on", "--kl_weight=2", first=without_tensorflow),
        2,
    )
    assert "--kl_weight was 1.0, now 2.0; --seed was 0, now 1." in line


def test_seeds_of_parts_that_are_the_seed_are_no_change(finished, images, without_tensorflow):
    process = again(finished, images, "--init_seed=0", "--noise_seed=0", first=without_tensorflow)
    assert "already complete" in process.stdout
    process = again(
        finished, images, "--seed=1", "--init_seed=0", "--data_seed=2", first=without_tensorflow
    )
    assert "flags: --data_seed was 0, now 2; --seed was 0, now 1." in refusal(process, 2)


def test_resume_never_wants_a_new_directory(finished, images, without_tensorflow):
    process = again(finished, images, "--resume=never", first=without_tensorflow)
    assert f"{finished[0]} holds a run already" in refusal(process, 2)


def test_resume_must_wants_an_old_directory(finished, images, tmp_path, without_tensorflow):
    process = again(finished, images, "--resume=must", first=without_tensorflow)
    assert "already complete" in process.stdout
    flags = [f"--dataset={images}", "--resume=must", "--run_dir=new"]
    process = forks.run(VAE_MNIST, *flags, cwd=tmp_path, first=without_tensorflow)
    assert f"{tmp_path / 'new'} has no checkpoint" in refusal(process, 4)
    assert list(tmp_path.iterdir()) == []


def test_a_complete_run_is_renamed_and_keeps_its_name(
    finished, images, tmp_path, without_tensorflow
):
    run_dir = shutil.copytree(finished[0], tmp_path / "run")
    flags = [*FLAGS, f"--dataset={images}", f"--run_dir={run_dir}"]

    def labels(*given):
        process = forks.run(VAE_MNIST, *flags, *given, cwd=tmp_path, first=without_tensorflow)
        assert process.returncode == 0, process.stderr
        assert "already complete" in process.stdout
        found = directory.read_config(run_dir)["flags"]
        return found["name"], found["note"]

    assert labels() == (None, None)
    assert labels("--name=wide one", "--note=a | b") == ("wide one", "a | b")
    assert labels("--note=c") == ("wide one", "c")
    assert labels("--name=other", "--dry_run") == ("wide one", "c")
    before, after = contents(finished[0]), contents(run_dir)
    assert len(before) == len(after)
    changed = {
        path.name
        for path in after
        if after[path] != before[finished[0] / path.relative_to(run_dir)]
    }
    assert changed == {"config.json", "lock"}


@pytest.mark.parametrize("text", ["", " ", "two\nlines", "\x1b[2J"])
def test_a_name_is_a_line_of_text(text, tmp_path, without_tensorflow):
    process = forks.run(VAE_MNIST, f"--name={text}", cwd=tmp_path, first=without_tensorflow)
    assert "must be a line of text, without control characters" in refusal(process, 2)


def test_a_run_of_another_experiment_is_refused(finished, images, without_tensorflow):
    changes = ["--hidden_units=4", "--kl_warmup_steps=3"]  # no flags of the other experiment
    run_dir, _ = finished
    before = contents(run_dir)
    flags = [flag for flag in FLAGS if flag not in changes]
    flags += [f"--dataset={images}", f"--run_dir={run_dir}"]
    process = forks.run(OWN_LOSS_TERM, *flags, cwd=run_dir.parent, first=without_tensorflow)
    line = refusal(process, 2)
    assert f"{run_dir} holds a run of vae_mnist, not of own_loss_term" in line
    assert contents(run_dir) == before


def test_a_directory_with_other_files_is_refused(images, tmp_path, without_tensorflow):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
    flags = [f"--dataset={images}", "--batch_size=16", "--run_dir=thesis"]
    process = forks.run(VAE_MNIST, *flags, cwd=tmp_path, first=without_tensorflow)
    assert f"{tmp_path / 'thesis'} is not empty and holds no run" in refusal(process, 2)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


def test_mnist_is_the_data_set_of_this_package(tmp_path, without_tensorflow):
    (tmp_path / "mnist").mkdir()  # which is meant by ./mnist
    flags = ["--dataset=mnist", "--batch_size=50001"]
    process = forks.run(VAE_MNIST, *flags, cwd=tmp_path, first=without_tensorflow)
    assert "50000 training examples of mnist" in refusal(process, 2)


@pytest.mark.slow
def test_the_default_batch_size_suits_a_small_data_set(tmp_path):
    bits = (TRAIN > 127).astype(np.uint8)
    np.savez(tmp_path / "bits.npz", train=bits[:20], validation=bits[20:26], test=bits[26:])
    flags = ["--dataset=bits.npz", "--run_dir=run", "--latent_dim=2", "--importance_samples=2"]
    flags += ["--hidden_units=4", *QUICKLY]
    printed = trained(VAE_MNIST, *flags, "--epochs=1", cwd=tmp_path)
    assert "rescale unit (x)" in printed  # bytes of 0 and 1 are not divided
    assert "1 steps each" in printed
    description = directory.read_config(tmp_path / "run")
    assert description["flags"]["batch_size"] == 20
    assert description["data"]["scaling"] == "x"
    assert "Training: epochs 2 to 2" in trained(VAE_MNIST, *flags, "--epochs=2", cwd=tmp_path)


def test_an_unreadable_config_is_refused(images, tmp_path, without_tensorflow):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"experiment": "vae_m')
    flags = [f"--dataset={images}", "--batch_size=16", "--run_dir=run"]
    process = forks.run(VAE_MNIST, *flags, cwd=tmp_path, first=without_tensorflow)
    assert f"{tmp_path / 'run' / 'config.json'} cannot be read" in refusal(process, 4)


def test_going_on_with_changed_data_is_refused(finished, tmp_path, without_tensorflow):
    np.savez(tmp_path / "images.npz", train=255 - TRAIN, validation=HELD_OUT[0], test=HELD_OUT[1])
    dataset = str(tmp_path / "images.npz")
    copy = copy_with(finished[0], tmp_path, flags={"dataset": dataset})
    flags = [*FLAGS[:-1], "--epochs=3", f"--dataset={dataset}", f"--run_dir={copy}"]
    process = forks.run(VAE_MNIST, *flags, cwd=tmp_path, first=without_tensorflow)
    assert "has changed" in refusal(process, 4)


# ---------------------------------------------------------------- refused once TensorFlow is there

# An experiment that does what a flag says.
OWN = '''"""An experiment of somebody."""

import shutil
import signal

import vae_research as vr
from vae_research import runs

WHAT = ("nothing", "bad setting", "explodes", "is signalled")
runs.define_choice("what", "nothing", WHAT, "what is wrong")
runs.define_string("meanwhile", None, "a run that another process ends here while this one starts")


runs.define_choice("signal", "SIGTERM", ("SIGTERM", "SIGINT"), "what arrives")
runs.define_choice("then", "swallowed", ("swallowed", "replaced"), "the signal's exception, if any")


class Signalled(vr.LossTerm):
    """Is where a signal arrives while a training step is traced, and lets no exception out.

    AutoGraph, a bare `except:` in Keras and finalizers do so; TensorFlow makes a TypeError of it.
    """

    signal: str
    then: str

    def per_example(self, kl):
        import tensorflow as tf

        if not tf.executing_eagerly():
            try:
                signal.raise_signal(getattr(signal, self.signal))
            except:  # bare: also what a signal raises, as those do that are meant here
                if self.then == "replaced":
                    raise TypeError("Failed to convert elements")
        return vr.sum_over_event(kl)


def build(config, data):
    import keras

    if config.meanwhile:
        shutil.copytree(config.meanwhile, config.run_dir)
    signalled = Signalled(weight=None, signal=config.signal, then=config.then)
    setting = 0.0 if config.what == "bad setting" else 1.0
    model = vr.VAE(
        vr.dense_encoder(data.shape, 2, hidden_units=(4,)),
        vr.GaussianBottleneck(2),
        vr.dense_decoder(data.shape, 2, hidden_units=(4,), outputs=["x_mean"]),
        [
            vr.Gaussian(standard_deviation=setting),
            vr.KLDivergence(),
            *([signalled] if config.what == "is signalled" else []),
        ],
    )
    if config.what == "explodes":
        rates = keras.optimizers.schedules.PiecewiseConstantDecay([2], [1e-3, 1e30])
        model.compile(keras.optimizers.Adam(rates))
    return model


if __name__ == "__main__":
    runs.main(build)
'''


@pytest.mark.slow
def test_refused_by_the_model_or_the_machine(images, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    flags = [*TINY, f"--dataset={images}", "--run_dir=run"]
    processes = [
        forks.start("own.py", *flags, "--what=bad setting", cwd=tmp_path),
        forks.start("own.py", *flags, "--what=bad setting", "--debug", cwd=tmp_path),
        forks.start(VAE_MNIST, *flags, "--device=gpu", cwd=tmp_path, CUDA_VISIBLE_DEVICES="-1"),
    ]
    plain, debug, gpu = (process.ended() for process in processes)
    line = refusal(plain, 2)
    assert line.startswith("own: Gaussian.standard_deviation must be positive, got 0.0")
    assert debug.returncode == 2
    assert debug.stderr.startswith("Traceback")
    assert 'own.py", line' in debug.stderr  # where in the user's file
    assert debug.stderr.endswith(line)
    assert re.search("--device=gpu.*no GPU.*--device=cpu", refusal(gpu, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["own.py"]


def test_a_directory_in_use_is_refused(images, tmp_path):
    (tmp_path / "run").mkdir()
    flags = [*TINY, f"--dataset={images}", "--run_dir=run"]
    with directory.locked(tmp_path / "run"):
        process = forks.run(VAE_MNIST, *flags, cwd=tmp_path)
        line = refusal(process, 5)
    assert f"{tmp_path / 'run'} is in use by process {os.getpid()} on {platform.node()}" in line
    assert re.search(r"since \d{4}-\d\d-\d\dT", line)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


@pytest.mark.slow
def test_a_run_that_ends_while_another_starts_is_not_overwritten(finished, images, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    flags = [*TINY, *QUICKLY, "--epochs=1", f"--dataset={images}", "--run_dir=run"]
    process = forks.run("own.py", *flags, f"--meanwhile={finished[0]}", cwd=tmp_path)
    assert f"{tmp_path / 'run'} was written to by another process" in refusal(process, 5)
    assert read_json(tmp_path / "run/summary.json") == read_json(finished[0] / "summary.json")
    assert metrics_of(tmp_path / "run") == metrics_of(finished[0])


# ---------------------------------------------------------------- ends early


@pytest.mark.slow
def test_divergence_ends_the_run_with_the_last_good_checkpoint(images, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    flags = [*TINY, f"--dataset={images}", "--run_dir=run", "--epochs=4", "--what=explodes"]
    flags += [*QUICKLY, "--checkpoint_epochs=1"]
    line = refusal(forks.run("own.py", *flags, "--binarize=none", cwd=tmp_path), 6)
    assert re.search(r"diverged in epoch 2 .*step 4.*reconstruction.*--learning_rate", line)
    run_dir = tmp_path / "run"
    assert [record["epoch"] for record in metrics_of(run_dir)] == [1]
    assert not (run_dir / "summary.json").exists()
    kept = checkpoints.newest(run_dir / "checkpoints")
    assert (kept.epoch, kept.step) == (1, 2)
    run = load_run(run_dir)
    assert run.summary is None
    assert all(np.isfinite(weights).all() for weights in run.model.get_weights())


def trained_epochs(run_dir):
    try:
        return len(metrics_of(run_dir))
    except (OSError, ValueError):  # not there yet, or in the middle of a line
        return 0


def interrupt(process, number, when):
    """Sends a signal as soon as `when()`; the process must end by itself."""
    while process.is_running() and not when():
        time.sleep(0.02)
    process.send_signal(number)
    return process.ended()


@pytest.mark.slow
def test_a_run_goes_on_after_sigterm_and_ctrl_c(images, tmp_path):
    run_dir = tmp_path / "run"
    flags = [*FLAGS[:-1], *QUICKLY, f"--dataset={images}", "--run_dir=run"]
    flags += ["--epochs=100000", "--verbose=0"]

    process = forks.start(VAE_MNIST, *flags, cwd=tmp_path)
    process = interrupt(process, signal.SIGTERM, lambda: trained_epochs(run_dir) >= 2)
    line = refusal(process, 143)
    assert re.search("terminated.*repeat the command", line)
    saved = checkpoints.newest(run_dir / "checkpoints").epoch
    assert saved >= 1
    assert not (run_dir / "summary.json").exists()

    process = forks.start(VAE_MNIST, *flags, cwd=tmp_path)  # the lock is free again
    process = interrupt(process, signal.SIGINT, lambda: trained_epochs(run_dir) >= saved + 3)
    line = refusal(process, 130)
    assert re.search("interrupted.*repeat the command", line)

    records = metrics_of(run_dir)
    assert [record["epoch"] for record in records] == list(range(1, len(records) + 1))
    assert [record["step"] for record in records] == [2 * n for n in range(1, len(records) + 1)]
    last = checkpoints.newest(run_dir / "checkpoints")
    assert len(records) - 1 <= last.epoch <= len(records)
    # The second newest may be there still, but nothing half-written.
    assert all(path.name.isdigit() for path in (run_dir / "checkpoints").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "then", "exit_code"),
    [
        ("SIGTERM", "replaced", 143),
        ("SIGINT", "swallowed", 130),
        pytest.param("SIGTERM", "swallowed", 143, marks=pytest.mark.soak),
    ],
)
def test_a_signal_is_not_lost_in_code_that_catches_it(name, then, exit_code, images, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    flags = [*TINY, f"--dataset={images}", "--run_dir=run", "--epochs=2", "--verbose=0"]
    flags += [*QUICKLY, "--what=is signalled", f"--signal={name}", f"--then={then}"]
    refusal(forks.run("own.py", *flags, cwd=tmp_path), exit_code)
    assert not (tmp_path / "run" / "summary.json").exists()
