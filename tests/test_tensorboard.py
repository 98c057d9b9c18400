"""A finished run in TensorBoard: by its data API, and in a browser, dashboard by dashboard.

The browser is Chromium, without a window. `scripts/check` brings it where it may; where there is
none the tests that need it are skipped, or fail where CI=true says that nothing may be missing.
Screenshots are kept in test-artefacts/.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import vae_research as vr
from tests import forks
from vae_research.callbacks.latents import kl_over_time

CHECKOUT = Path(__file__).resolve().parents[1]
SCREENSHOTS = CHECKOUT / "test-artefacts"
SPLITS = "train", "validation"
RUNS = "first", "second"
PATIENCE = 600.0  # seconds; a guard against what hangs, and not how long a machine may take

pytestmark = pytest.mark.slow


# ---------------------------------------------------------------- what is looked at


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs: `first` was begun, and continued by another process; `second` logs by step."""
    folder = tmp_path_factory.mktemp("tensorboard")
    mnist = vr.load_data("mnist")
    arrays = {}
    for split, count in (("train", 1500), ("validation", 400), ("test", 100)):
        part = getattr(mnist, split)
        arrays |= {split: part.raw[:count], f"{split}_labels": part.labels[:count]}
    np.savez(folder / "digits.npz", **arrays)
    common = [f"--dataset={folder / 'digits.npz'}", "--binarize=dynamic", "--batch_size=50"]
    common += ["--hidden_units=64", "--importance_samples=2", "--learning_rate=0.003", "--jit=off"]
    for name, *flags in (
        ("first", "--latent_dim=2", "--epochs=2"),
        ("first", "--latent_dim=2", "--epochs=4"),
        ("second", "--latent_dim=3", "--epochs=2", "--log_every_steps=10", "--name=wide one"),
    ):
        program, run_dir = CHECKOUT / "experiments" / "vae_mnist.py", folder / "runs" / name
        done = forks.run(program, f"--run_dir={run_dir}", *common, *flags, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder / "runs"


@pytest.fixture(scope="module")
def server(folder):
    """The address of a TensorBoard that has read both runs."""
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={folder}", "--port=0"]
    command += ["--samples_per_plugin=images=200,text=200"]
    nothing = subprocess.DEVNULL
    process = subprocess.Popen(
        command, stdin=nothing, stdout=nothing, stderr=subprocess.PIPE, text=True
    )
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            found = re.search(r"TensorBoard \S+ at (http://\S+/)", line)
            if found:
                break
        else:
            pytest.fail(f"TensorBoard did not start: {''.join(lines)}")
        # A pipe that nobody reads would stop it.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        scalars = "data/plugin/scalars/tags"
        wait_until(lambda: "test/elbo" in get(found[1], scalars).get("second/run", {}))
        yield found[1]
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)


def get(server, path, **query):
    """The JSON that TensorBoard's data API answers with."""
    address = f"{server}{path}?{urllib.parse.urlencode(query)}" if query else server + path
    with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
        return json.load(answer)


def metrics_of(folder, name):
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def series(server, run, tag):
    """The steps and values of a scalar."""
    points = get(server, "data/plugin/scalars/scalars", run=run, tag=tag)
    return [int(step) for _, step, _ in points], [value for _, _, value in points]


# ---------------------------------------------------------------- by the data API


def test_runs_are_those_of_the_folder(server):
    parts = "run", "train", "validation"
    wanted = [f"{run}/{part}" for run in RUNS for part in parts]
    assert sorted(get(server, "data/runs")) == wanted


@pytest.mark.parametrize("split", ["train", "validation"])
def test_scalars_are_those_of_the_metrics_file_also_after_a_resume(server, folder, split):
    records = metrics_of(folder, "first")
    assert [record["step"] for record in records] == [30, 60, 90, 120]
    tags = {}
    for key in records[0]:
        place, _, name = key.partition("/")
        if place == split:
            tags[key] = name if name in ("loss", "elbo") or "/" in name else f"terms/{name}"
    assert len(tags) == 6
    listed = get(server, "data/plugin/scalars/tags")[f"first/{split}"]
    assert set(tags.values()) <= listed.keys()
    for key, tag in tags.items():
        steps, values = series(server, f"first/{split}", tag)
        assert steps == [30, 60, 90, 120], tag
        wanted = [np.float32(record[key]) for record in records]
        assert values == pytest.approx(wanted, rel=1e-6), tag
    if split == "train":  # each callback measures the time for itself
        steps, values = series(server, "first/train", "images_per_second")
        assert steps == [30, 60, 90, 120]
        assert min(values) > 0.0


def test_steps_within_an_epoch_average_to_the_epoch(server, folder):
    for name in ("loss", "elbo"):
        steps, values = series(server, "second/train", name)
        assert steps == [10, 20, 30, 40, 50, 60]
        for epoch, record in enumerate(metrics_of(folder, "second")):
            mean = np.mean(values[3 * epoch : 3 * epoch + 3])
            assert mean == pytest.approx(record[f"train/{name}"], rel=1e-5)


def test_every_kind_of_data_has_its_tags(server):
    def tags(plugin, run, path="tags"):
        return set(get(server, f"data/plugin/{plugin}/{path}").get(run, ()))

    pictures = {"reconstructions", "errors", "samples", "traversals", "plane"}
    assert tags("images", "first/validation") == pictures | {"latent/kl_over_time"}
    assert tags("images", "second/validation") == pictures - {"plane"} | {"latent/kl_over_time"}
    histograms = {"latent/kl_per_dimension", "latent/posterior_mean", "latent/posterior_std"}
    assert tags("histograms", "first/validation") == histograms
    assert tags("distributions", "first/validation") == histograms
    assert tags("text", "first/validation") == {"latent/diagnosis"}
    texts = {"model/summary", "model/terms", "run/settings", "test/notes"}
    assert tags("text", "first/run") == texts
    assert get(server, "data/plugin/graphs/info")["first/run"]["run_graph"] is True
    assert "first/validation" in get(server, "data/plugin/projector/runs")
    (points,) = get(server, "data/plugin/projector/info", run="first/validation")["embeddings"]
    assert points["tensorShape"] == [400, 3]  # two dimensions, and zeros for the third
    assert points["metadataPath"] == "codes_labels.tsv"
    assert points["sprite"] == {"imagePath": "codes_sprite.png", "singleImageDim": [28, 28]}
    assert get(server, "data/plugin/custom_scalars/layout")["category"]


def test_the_table_of_runs_has_settings_and_test_figures(server, folder):
    def post(what, wanted):
        request = urllib.request.Request(
            f"{server}data/plugin/hparams/{what}",
            data=json.dumps(wanted).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    # The dashboard shows the first five of either until others are chosen.
    shown_first = post("experiment", {"experimentName": ""})
    metrics = [each["name"]["tag"] for each in shown_first["metricInfos"]]
    likelihoods = ("elbo", "kl", "negative_log_likelihood", "reconstruction")
    assert metrics[:4] == [f"test/{name}" for name in likelihoods]
    settings = [each["name"] for each in shown_first["hparamInfos"] if each.get("differs")]
    assert settings == [each["name"] for each in shown_first["hparamInfos"]][: len(settings)]
    assert "latent_dim" in settings
    columns = [{"hparam": "latent_dim"}, {"metric": {"group": "", "tag": "test/elbo"}}]
    wanted = {"startIndex": 0, "sliceSize": 10, "colParams": columns}
    rows = post("session_groups", wanted | {"allowedStatuses": ["STATUS_SUCCESS"]})["sessionGroups"]
    assert {row["hparams"].get("name") for row in rows} == {None, "wide one"}
    found = {}
    for row in rows:
        figures = {each["name"]["tag"]: each["value"] for each in row["metricValues"]}
        found[row["hparams"]["latent_dim"]] = figures["test/elbo"]
    summaries = [json.loads((folder / name / "summary.json").read_text()) for name in RUNS]
    elbos = [summary["test"]["elbo"]["value"] for summary in summaries]
    assert found == {2.0: pytest.approx(elbos[0]), 3.0: pytest.approx(elbos[1])}


def test_the_diagnosis_is_that_of_the_last_epoch(server, folder):
    run, tag = "first/validation", "latent/diagnosis"
    assert "<strong>healthy" in get(server, "data/plugin/text/text", run=run, tag=tag)[-1]["text"]


# ---------------------------------------------------------------- in a browser


def soak(*values):
    return pytest.param(*values, marks=pytest.mark.soak)


def missing(reason):
    """Skips, or fails where nothing may be missing."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and CI=true")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("the browser test needs playwright (pip install 'vae_research[test]')")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        missing("the browser test needs Chromium (Debian: apt-get install chromium)")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"]
    # The projector draws with WebGL, here without a graphics card.
    flags += ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("browser profile")),
            executable_path=program,
            headless=True,
            args=flags,
            viewport={"width": 1400, "height": 1000},
        )
        yield context
        context.close()


@pytest.fixture
def opened(browser, server, request):
    """Opens a dashboard; what it looks like in the end is kept as a picture."""
    page = browser.new_page()
    page.set_default_timeout(1000.0 * PATIENCE)

    def open_dashboard(name):
        page.goto(f"{server}#{name}")
        return page

    yield open_dashboard
    SCREENSHOTS.mkdir(exist_ok=True)
    name = re.sub(r"\W+", "_", request.node.name.removeprefix("test_")).strip("_")
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
    page.close()


def test_the_report_needs_nothing_but_its_file(browser, folder, tmp_path):
    report = shutil.copy(folder / "first" / "report.html", tmp_path / "report.html")
    page = browser.new_page()
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(report.as_uri())
    assert page.locator("h1").inner_text() == "vae_mnist"
    sizes = page.locator("img").evaluate_all("all => all.map(each => each.naturalWidth)")
    assert len(sizes) == 3 and min(sizes) > 100
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()] and not said
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) <= 0
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "report.png", full_page=True)
    page.close()


def shown(page, element, tag, run=None):
    """The element of a dashboard that shows a tag (of a run), once it is there."""
    all_of_them = page.locator(element)
    found = []

    def is_there():
        places = all_of_them.evaluate_all("all => all.map(each => [each.tag, each.run || null])")
        found[:] = [
            at for at, place in enumerate(places) if place[0] == tag and run in (None, place[1])
        ]
        return found

    wait_until(is_there)
    return all_of_them.nth(found[0])


def only(page, tag):
    """Has a dashboard show one tag."""
    page.locator("tf-tag-filterer input").fill(f"^{tag}$")


# Both splits in one chart; the values of all figures are compared above.
@pytest.mark.parametrize(("tag", "splits"), [("elbo", SPLITS), soak("gradients/total", ["train"])])
def test_scalars(tag, splits, opened, server):
    page = opened("scalars")
    only(page, tag)
    card = shown(page, "tf-scalar-card", tag)
    card.locator("svg").first.wait_for()
    runs = set(card.evaluate("card => card.dataToLoad.map(each => each.run)"))
    assert runs == {f"{run}/{split}" for run in RUNS for split in splits}
    # A line for each run, through its points.
    chart = card.locator("vz-line-chart2")
    drawn = """chart => Object.entries(chart._chart ? chart._chart.name2datasets : {}).map(
        ([name, line]) => [JSON.parse(name)[1], line.data().map(at => [at.step, at.scalar])])"""
    wait_until(lambda: {name for name, points in chart.evaluate(drawn) if points} == runs)
    for run, points in chart.evaluate(drawn):
        assert tuple(map(list, zip(*points, strict=True))) == series(server, run, tag)


def test_custom_scalars(opened):
    page = opened("custom_scalars")
    for title, matches in (
        ("reconstruction, KL and ELBO (nats)", 12),
        ("weights of the terms", 8),
    ):
        card = page.locator("tf-custom-scalar-multi-line-chart-card", has_text=title)
        card.get_by_text(f"Matches ({matches})").wait_for()
        card.locator("svg path").first.wait_for(state="attached")


def test_pictures_are_those_of_the_checkpoint(server, pictures_of_the_checkpoint):
    for tag, wanted in pictures_of_the_checkpoint.items():
        found = get(server, "data/plugin/images/images", run="first/validation", tag=tag, sample=0)
        address = f"{server}data/plugin/images/individualImage?{found[-1]['query']}"
        with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
            picture = tf.io.decode_png(answer.read()).numpy()
        np.testing.assert_array_equal(picture, np.rint(wanted * 255.0).astype(np.uint8), tag)


def test_images(opened, server, pictures_of_the_checkpoint):
    page, tag = opened("images"), "traversals"
    only(page, tag)
    image = shown(page, "tf-image-loader", tag, "first/validation").locator("img")
    image.wait_for()
    wait_until(lambda: image.evaluate("image => image.complete && image.naturalWidth > 0"))
    answer = page.request.get(urllib.parse.urljoin(server, image.get_attribute("src")))
    found = tf.io.decode_png(answer.body()).numpy()
    wanted = pictures_of_the_checkpoint[tag]
    np.testing.assert_array_equal(found, np.rint(wanted * 255.0).astype(np.uint8))


@pytest.fixture(scope="module")
def pictures_of_the_checkpoint(folder):
    """What the last pictures of the first run must be, computed from its checkpoint."""
    run = vr.load_run(folder / "first")
    images = run.data.validation.prepare()
    pictures = vr.Pictures(folder, images).draw(run.model)
    rows = np.loadtxt(folder / "first" / "validation" / "kl_per_dimension.tsv")
    assert rows[:, 0].tolist() == [30, 60, 90, 120]
    last = run.model.infer(images)["kl"].numpy().mean(axis=0)
    np.testing.assert_allclose(rows[-1, 1:], last, rtol=1e-4)
    return pictures | {"latent/kl_over_time": kl_over_time(rows[:, 1:])}


@pytest.mark.parametrize("dashboard", ["histograms", soak("distributions")])
def test_histograms(dashboard, opened):
    page = opened(dashboard)
    for tag in ("latent/kl_per_dimension", "latent/posterior_mean", "latent/posterior_std"):
        only(page, tag)
        for run in ("first/validation", "second/validation"):
            loader = shown(page, f"tf-{dashboard.removesuffix('s')}-loader", tag, run)
            loader.locator("svg path").first.wait_for(state="attached")


@pytest.mark.soak
def test_text(opened, folder):
    page = opened("text")
    for tag, words in (
        ("latent/diagnosis", ["dimensions"]),
        ("model/summary", ["encoder", "z_log_var", "GaussianBottleneck", "decoder", "logits"]),
        ("model/terms", ["KLDivergence()", "Bernoulli()"]),
        ("run/settings", ["latent_dim", "learning_rate", "digits.npz"]),
    ):
        only(page, tag)
        loader = shown(page, "tf-text-loader", tag)
        loader.locator("tf-markdown-view").first.wait_for()
        for word in words:
            loader.get_by_text(word).first.wait_for()
    only(page, "run/settings")
    page.locator("tf-text-loader table").first.wait_for()


def test_graph_of_one_step(opened):
    page = opened("graphs")
    for name in ("encoder", "bottleneck", "decoder", "reconstruction", "kl", "optimizer"):
        page.locator(f"tf-graph-scene g.nodes g.node[data-name='{name}']").first.wait_for(
            state="attached"
        )


def test_projector_shows_points(opened):
    page = opened("projector")
    frame = page.frame_locator("iframe").frame_locator("iframe")
    frame.locator(".numDataPoints", has_text="400").wait_for()
    canvas = frame.locator("canvas").first
    canvas.wait_for()

    def dark():
        picture = tf.io.decode_png(canvas.screenshot(), channels=3).numpy()
        return np.mean(picture.max(axis=-1) < 100)

    # The thumbnails are grey, and larger than the axes.
    wait_until(lambda: dark() > 0.01)


def test_hparams_has_a_row_for_each_run(opened):
    page = opened("hparams")
    cells = page.locator("tf-hparams-table-view vaadin-grid-cell-content")
    for name in RUNS:
        cells.filter(has_text=re.compile(rf"runs/{name}\s*$")).first.wait_for()


# ---------------------------------------------------------------- small things


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.1)
