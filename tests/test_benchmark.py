"""scripts/benchmark: what needs no other environment than the project's.

That the figures of a table are right is asserted here; how large they are is not.
"""

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vae_research as vr
from benchmarks import contenders, protocol, sections, streams, tables
from benchmarks.contenders import BY_NAME, CONTENDERS, Contender, ContenderError, Worker
from benchmarks.works import CONVOLUTIONAL, DENSE_20, DENSE_128, WORKS, as_float
from tests import forks

CHECKOUT = Path(__file__).resolve().parents[1]
MACHINE = {"processor": "p", "memory": "m", "system": "s", "tcmalloc": "none"}
PROGRAM = [sys.executable, "-m", "benchmarks"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of the program, with few images and two contenders, as a shell starts it."""
    folder = tmp_path_factory.mktemp("benchmark")
    flags = ["--only=dense_128,nll", "--contenders=ours,keras_fit", "--rounds=1", "--images=2000"]
    flags += ["--seconds=0.1", "--epochs=2", "--nll_images=5", f"--output={folder}"]
    done = subprocess.run([*PROGRAM, *flags], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (written,) = folder.iterdir()
    assert done.stdout == (written / "tables.md").read_text() + "\n"
    return json.loads((written / "results.json").read_text())


@pytest.mark.soak
def test_both_train_the_same_model(results):
    section = results["sections"]["dense_128"]
    ours, keras = (section["lines"][name]["losses"] for name in ("ours", "keras_fit"))
    assert len(ours) == len(keras) == 2
    # About 360 and 220 nats: 16 steps each from other weights, in another order.
    np.testing.assert_allclose(ours, keras, rtol=0.05)
    assert tables.disagreeing(section) == []


SMALL = dataclasses.replace(DENSE_128, hidden_units=(50,), images=2000)
# Two epochs of each contender in one process, without XLA.
BOTH = """
import json
import sys
from benchmarks.keras_fit import KerasFit
from benchmarks.ours import Ours
from benchmarks.works import Work

losses = []
for contender, variant in ((Ours, {"jit": "off"}), (KerasFit, {"jit_compile": False})):
    go_on = iter([True, True, False])
    built = contender(Work.from_json(json.loads(sys.argv[1])), variant)
    losses.append(built.train(lambda: next(go_on), None))
print(json.dumps(losses))
"""


@pytest.mark.slow
def test_both_train_the_same_small_model():
    work = json.dumps(dataclasses.asdict(SMALL))
    done = forks.run("-c", BOTH, work, cwd=CHECKOUT)
    assert done.returncode == 0, done.stderr
    ours, keras = json.loads(done.stdout.splitlines()[-1])
    assert len(ours) == len(keras) == 2
    # 16 steps each from other weights, in another order.
    np.testing.assert_allclose(ours, keras, rtol=0.05)


@pytest.mark.soak
def test_a_process_trains_whole_epochs_in_a_turn():
    contender = dataclasses.replace(BY_NAME["keras_fit"], variant={"jit_compile": False})
    with Worker(contender) as worker:
        prepared = worker.prepare(SMALL, 1)
        measured = worker.ask("measure", seconds=0.01)
        assert {"python", "tensorflow", "keras"} == worker.ask("versions")["versions"].keys()
    assert measured["images"] >= 2000
    assert measured["images"] % 2000 == 0
    assert measured["seconds"] >= 0.01
    assert measured["loss"] < prepared["losses"][-1]
    assert measured["peak_memory"] > 2**27


@pytest.mark.soak
def test_every_turn_trains_whole_epochs(results):
    for line in results["sections"]["dense_128"]["lines"].values():
        assert len(line["measured"]) == 1
        for measured in line["measured"]:
            assert measured["images"] >= 2000
            assert measured["images"] % 2000 == 0
            assert measured["seconds"] >= 0.1
            assert measured["loss"] < line["losses"][-1]
            assert measured["peak_memory"] > 2**27


@pytest.mark.soak  # a process that is compiled once more, and once for the likelihood
def test_likelihood_is_above_that_of_pixels_drawn_by_a_coin(results):
    lines = results["sections"]["nll"]["lines"]
    assert list(lines) == ["ours"]
    assert 50.0 < lines["ours"]["nll"] < 784 * math.log(2.0)


@pytest.mark.soak
def test_tables_have_a_line_for_each_contender(results):
    text = tables.markdown(results)
    for name in ("ours", "keras_fit"):
        assert f"| {BY_NAME[name].title} | " in text
    assert "tensorflow 2." in text
    assert "GFLOP/s in float32" in text


def line(title, speeds, **more):
    measured = [{"images": speed, "seconds": 1.0, "peak_memory": 2**30} for speed in speeds]
    whole = {"losses": [100.0], "images": 50_000, "precision": "float32", "description": "so"}
    return {"title": title, "measured": measured} | whole | more


def test_a_ratio_is_that_of_turns_of_one_round():
    # The machine was half as fast in the second round; in each round the ratio is 3.
    lines = {"ours": line("us", [6000, 3000]), "keras_fit": line("them", [2000, 1000])}
    section = {"work": {"title": "t", "images": 50_000}, "flops_per_image": 1.0, "epochs": 1}
    text = tables.markdown(
        {
            "machine": MACHINE,
            "sections": {"dense_128": section | {"lines": lines}},
        }
    )
    assert "| us | 4,500 (3,000 to 6,000) | 3.00 (3.00 to 3.00) |" in text


@pytest.mark.parametrize(("seconds_of_a_turn", "turns"), [(1.0, 3), (9.0, 1)])
def test_who_is_far_too_slow_has_one_turn(monkeypatch, seconds_of_a_turn, turns):
    class Slow:
        contender = BY_NAME["jax_step"]

        def ask(self, do, seconds):
            return {"images": 1, "seconds": seconds_of_a_turn}

    monkeypatch.setattr(sections, "_say", lambda text: None)
    monkeypatch.setattr(sections, "_BETWEEN_TURNS_SECONDS", 0.0)
    line = {"measured": []}
    for number in range(3):
        sections._one_turn(line, Slow(), 1.0, number)
    assert len(line["measured"]) == turns


class FakeEvaluation:
    """A worker that evaluates 50 images a second; its figure is their number."""

    def __init__(self, contender):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def prepare(self, work, epochs):
        return {"losses": [100.0] * epochs}

    def ask(self, do, count=0):
        figures = {"nll": float(count), "images": count, "seconds": count / 50.0}
        return {"versions": {}} if do == "versions" else {"peak_memory": 2**30, **figures}


def test_the_likelihood_is_of_the_same_images_and_a_turn_is_filled(monkeypatch):
    monkeypatch.setattr(sections, "Worker", FakeEvaluation)
    monkeypatch.setattr(sections, "_say", lambda text: None)
    monkeypatch.setattr(sections, "_BETWEEN_TURNS_SECONDS", 0.0)
    settings = type("Settings", (), {"rounds": 2, "seconds": 1.0, "epochs": 1, "nll_images": 5})
    ours = [BY_NAME["ours"], BY_NAME["keras_fit"]]  # of which one has no such figure
    section = sections.negative_log_likelihood(DENSE_128, ours, settings)
    (line,) = section["lines"].values()
    # 5 images take 0.1 seconds and 15 take 0.3; 45 are the first that take half a second.
    assert (line["nll"], line["images"]) == (5.0, 45)
    assert [measured["images"] for measured in line["measured"]] == [45, 45]
    text = tables.markdown({"machine": MACHINE, "sections": {"nll": section}})
    assert f"| {BY_NAME['ours'].title} | 50 (50 to 50) | - | 5.0 | 1,024 MB |" in text
    assert [each["images"] for each in section["ceiling"]] == [45, 45]
    assert "| noise and decoder products of this package alone | 50 (50 to 50) | - |" in text


@pytest.mark.parametrize(("rate", "largest"), [(1e12, 2048), (1e9, 512), (1e7, 128)])
def test_a_matrix_product_is_measured_within_a_time(rate, largest, monkeypatch):
    now, sides = [0.0], []
    monkeypatch.setattr(protocol.time, "perf_counter", lambda: now[0])

    def product(side):
        def multiply():
            now[0] += 2.0 * side**3 / rate
            sides.append(side)

        return multiply

    assert protocol.best_matrix_product(product, 2048) == pytest.approx(rate)
    assert max(sides) == largest
    assert now[0] < 10.0


def test_a_contender_that_does_not_answer_is_ended(monkeypatch, tmp_path):
    program = tmp_path / "waits"
    program.write_text(f"#!{sys.executable}\nimport signal\nsignal.pause()\n")
    program.chmod(0o755)
    monkeypatch.setattr(contenders, "python_of", lambda environment: str(program))
    monkeypatch.setattr(contenders, "_LONGEST_SECONDS", 0.2)
    with (
        pytest.raises(ContenderError, match=r"^ours took more than 0 seconds to measure$"),
        Worker(BY_NAME["ours"]) as worker,
    ):
        worker.ask("measure")


def test_another_training_is_named():
    lines = {name: line(name, [1], losses=[100.0]) for name in "abc"}
    lines["c"]["losses"] = [106.0]
    lines["few"] = line("few", [1], losses=[300.0], images=1280)
    assert tables.disagreeing({"work": {"images": 50_000}, "lines": lines}) == ["c"]


@pytest.mark.slow
def test_a_contender_that_ends_is_a_line_and_not_the_end(monkeypatch):
    broken = Contender("broken", "broken", "no_such_module", "project")
    with Worker(broken) as worker, pytest.raises(ContenderError, match="No module named"):
        worker.prepare(DENSE_128, 1)
    monkeypatch.setattr(sections, "_say", lambda text: None)
    settings = type("Settings", (), {"rounds": 1, "seconds": 0.1, "epochs": 1})
    section = sections.turns(DENSE_128, [broken], settings)
    assert "No module named" in section["lines"]["broken"]["failure"]
    assert "No module named" in tables.markdown(
        {
            "machine": MACHINE,
            "sections": {"dense_128": section},
        }
    )


class FakeWorker:
    """Its first step comes after 8 seconds, or 2 where the folder of caches is not empty."""

    def __init__(self, contender, caches):
        self.started, self.seconds = 100.0, 2.0 if any(caches.iterdir()) else 8.0
        (caches / "program").touch()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def prepare(self, work, epochs):
        return {"first_step": self.started + self.seconds, "peak_memory": 2**30}


def test_the_second_start_finds_what_the_first_has_compiled(monkeypatch):
    monkeypatch.setattr(sections, "Worker", FakeWorker)
    section = sections.start(DENSE_128, [BY_NAME["jax_scan"]], None)
    found = section["lines"]["jax_scan"]
    assert (found["cold"], found["warm"]) == (8.0, 2.0)
    text = tables.markdown({"machine": MACHINE, "sections": {"start": section}})
    assert "| JAX, scan over an epoch | 8.0 | 2.0 | 1,024 MB |" in text


@pytest.mark.slow
def test_callbacks_are_at_work_in_every_other_epoch(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    np.savez(tmp_path / "data.npz", x_train=images, x_val=images[:9], x_test=images[:9])
    flags = [f"--dataset={tmp_path}/data.npz", f"--run_dir={tmp_path}/run", "--epochs=8"]
    flags += ["--batch_size=10", "--hidden_units=4", "--importance_samples=1", "--verbose=0"]
    done = forks.run("-m", "benchmarks.every_other", *flags, "--jit=off", cwd=CHECKOUT)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["once"] > 0.0
    assert len(figures["with"]) == len(figures["without"]) == 2  # the third to the sixth of seven
    # What was written at the ends of epochs 1, 3, 5 and 7.
    rows = (tmp_path / "run" / "validation" / "kl_per_dimension.tsv").read_text().splitlines()
    assert [int(row.split("\t")[0]) for row in rows] == [4, 12, 20, 28]
    records = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(records) == 8


def test_the_cost_of_logging_is_told_in_percent_of_the_run_without(monkeypatch):
    """0.5 s once and 0.1 s in each of 20 epochs, beside a run of 50 s."""
    answer = {"once": 0.5, "with": [2.1, 9.0, 2.1], "without": [2.0, 2.0, 2.0]}
    commands = []

    def run(command):
        commands.append(command)
        return f"...\n{json.dumps(answer)}\n"

    monkeypatch.setattr(sections, "_output_of", run)
    monkeypatch.setattr(sections, "_save_first_images", lambda path, counts: None)
    times = iter([100.0, 150.0])
    monkeypatch.setattr(sections.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(sections, "_say", lambda text: None)
    settings = type("Settings", (), {"rounds": 1, "run_epochs": 15})
    section = sections.logging([], settings)
    alternating, without = commands
    flags = {"--epochs=124", "--binarize=dynamic", "--batch_size=128", "--gradients_every_steps=25"}
    assert flags <= set(alternating)
    assert any(re.fullmatch("--dataset=.*few.npz", flag) for flag in alternating)
    assert {"--epochs=20", "--notensorboard"} <= set(without)
    (line,) = section["rounds"]
    assert line["whole"] == 50.0
    assert line["cost"] == pytest.approx(0.5 + 20 * 0.1)
    table = tables.markdown({"machine": MACHINE, "sections": {"logging": section}})
    assert "| added, percent | 5.00 (5.00 to 5.00) |" in table


@pytest.mark.slow
def test_the_images_of_short_epochs_are_the_first_ones(tmp_path):
    sections._save_first_images(tmp_path / "few.npz", {"train": 7, "validation": 5, "test": 3})
    few, all_of_them = vr.load_data(str(tmp_path / "few.npz")), vr.load_data("mnist")
    for name, count in {"train": 7, "validation": 5, "test": 3}.items():
        wanted = getattr(all_of_them, name).prepare(slice(0, count))
        np.testing.assert_array_equal(getattr(few, name).prepare(), wanted)


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
def test_operations_are_those_of_the_networks(work):
    from benchmarks.keras_fit import networks

    def multiply_adds(layer):
        kernel = math.prod(layer.kernel.shape)
        if len(layer.kernel.shape) == 2:
            return kernel
        transposed = "Transpose" in type(layer).__name__ and layer.strides[0] > 1
        places = layer.input.shape if transposed else layer.output.shape
        return kernel * places[1] * places[2]

    layers = [layer for network in networks(work) for layer in network.layers]
    assert sum(work.multiply_adds()) == sum(
        multiply_adds(layer) for layer in layers if hasattr(layer, "kernel")
    )


def test_dense_operations_by_hand():
    assert DENSE_128.flops_per_image() == 2 * (3 * (2 * 784 * 400 + 3 * 400 * 40) - 784 * 400)
    assert DENSE_20.flops_per_image() == 2 * (
        3 * (2 * 784 * 200 + 2 * 200 * 200 + 3 * 200 * 50) - 784 * 200
    )


def test_images_are_those_of_the_training_split():
    images = CONVOLUTIONAL.training_images()
    assert images.shape == (10_000, 28, 28, 1)
    assert images.dtype == np.uint8
    values = as_float(images[:10])
    assert values.dtype == np.float32
    assert (values.min(), values.max()) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--only=dense", "dense is not among dense_128, "),
        ("--contenders=keras", "keras is not among ours, "),
        ("--rounds=0", "invalid positive int value: '0'"),
        ("--seconds=inf", "invalid positive float value: 'inf'"),
    ],
)
def test_bad_flags(flag, message):
    done = forks.run("-m", "benchmarks", flag, cwd=CHECKOUT)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.slow
def test_the_program_itself_loads_no_framework():
    # Its memory and its threads would stand beside those that are measured.
    program = "import sys, benchmarks.__main__; print({'tensorflow', 'keras'} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert done.stdout == "set()\n", done.stderr


def test_every_contender_has_its_module():
    for contender in CONTENDERS:
        assert (CHECKOUT / "benchmarks" / f"{contender.module}.py").exists()


def test_streams_are_measured_beside_rows_on_the_device(tmp_path):
    streams.write_images(tmp_path / "images", 20)
    streams.write_rows(tmp_path / "rows.npy", 20)
    assert vr.load_data(tmp_path / "images").shape == (32, 32, 3)
    assert vr.load_data(tmp_path / "rows.npy", stream=True).shape == (28, 28, 1)
    cases = []
    for case in ("pillow", "reader"):
        measured = streams.measure(case, tmp_path / "images", 0.01)
        assert measured["images"] % (16 if case == "reader" else 20) == 0
        assert measured["images"] / measured["seconds"] > 0
        cases.append({"case": case, "data": "images", "measured": [measured]})
    device = {"images": 300, "seconds": 2.0, "memory": 2**20}
    cases.append({"case": "device", "data": "images", "measured": [device]})
    cases[0]["measured"][0] = {"images": 100, "seconds": 2.0, "memory": 2**20}
    text = tables.markdown(
        {"machine": MACHINE, "sections": {"streams": {"rows": 20, "cases": cases}}}
    )
    row = next(line for line in text.splitlines() if "rows on the device" in line)
    assert "| 20 JPEG files of 32 x 32 | rows on the device | 150 (150 to 150) |" in row
    assert "| 3.00 (3.00 to 3.00) | 1 MB |" in row
