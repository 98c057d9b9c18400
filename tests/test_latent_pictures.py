"""The decoded plane of a decoder that is known, and vectors as TensorBoard's projector reads them.

The decoder fills an image with its code: the first channel is z[0], the second z[1], so that every
image of the plane says which code it was made from.
"""

import json

import keras
import numpy as np
import pytest
from google.protobuf import text_format
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.projector import ProjectorConfig
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
from werkzeug.test import Client

import vae_research as vr

HEIGHT, WIDTH = 2, 3
SHAPE = (HEIGHT, WIDTH, 3)


def known(latent_dim=2, shape=SHAPE):
    """A model whose p(x|z) has the mean z[0], z[1], 0 in the three channels of every pixel."""
    z = keras.Input((latent_dim,), name="z")
    weights = np.zeros((latent_dim, *shape), "float32")
    weights[0, ..., 0] = 1.0
    weights[1, ..., 1 % shape[-1]] = 1.0
    dense = keras.layers.Dense(int(np.prod(shape)), use_bias=False)
    decoder = keras.Model(z, {"x_mean": keras.layers.Reshape(shape)(dense(z))})
    dense.set_weights([weights.reshape(latent_dim, -1)])
    encoder = vr.dense_encoder(shape, latent_dim, hidden_units=(2,))
    terms = [vr.Gaussian(), vr.KLDivergence()]
    return vr.VAE(encoder, vr.GaussianBottleneck(latent_dim), decoder, terms)


def cell(picture, column, row_from_below, columns):
    """One image of a picture of `columns` by `columns`."""
    top = (columns - 1 - row_from_below) * HEIGHT
    return picture[top : top + HEIGHT, column * WIDTH : (column + 1) * WIDTH]


@pytest.mark.parametrize("columns", [1, 3, 5])
def test_an_image_is_decoded_from_the_middle_of_its_cell(columns):
    low, high = (0.1, 0.2), (0.4, 0.9)
    picture = vr.decoded_plane(known(), low, high, columns=columns)
    assert picture.shape == (columns * HEIGHT, columns * WIDTH, 3)
    for i in range(columns):
        for j in range(columns):
            middle = [
                low[0] + (i + 0.5) / columns * (high[0] - low[0]),
                low[1] + (j + 0.5) / columns * (high[1] - low[1]),
                0.0,
            ]
            expected = np.broadcast_to(middle, SHAPE)
            np.testing.assert_allclose(cell(picture, i, j, columns), expected, atol=1e-6)


def test_a_plane_has_20_images_along_an_axis_without_gaps():
    picture = vr.decoded_plane(known(), np.array([0.0, 0.0]), np.array([1.0, 1.0]))
    assert picture.shape == (20 * HEIGHT, 20 * WIDTH, 3)
    # 1/40, 3/40, ...: the middles of twentieths.
    middles = (np.arange(20) + 0.5) / 20
    np.testing.assert_allclose(picture[0, ::WIDTH, 0], middles, atol=1e-6)
    np.testing.assert_allclose(picture[::HEIGHT, 0, 1], middles[::-1], atol=1e-6)


def test_values_of_a_plane_outside_of_0_and_1_are_brought_in_by_their_own_range():
    # Codes are -0.5 and 2.5 in z[0]; 0.25 and 0.75 in z[1].
    picture = vr.decoded_plane(known(), (-2.0, 0.0), (4.0, 1.0), columns=2)
    np.testing.assert_allclose(cell(picture, 0, 0, 2)[..., 0], 0.0, atol=1e-6)
    np.testing.assert_allclose(cell(picture, 1, 0, 2)[..., 0], 1.0, atol=1e-6)
    np.testing.assert_allclose(cell(picture, 0, 1, 2)[..., 1], (0.75 + 0.5) / 3.0, atol=1e-6)


@pytest.mark.parametrize("latent_dim", [3, 16])
def test_a_plane_has_two_latent_dimensions(latent_dim):
    with pytest.raises(ValueError, match=f"2 latent dimensions; the model has {latent_dim}"):
        vr.decoded_plane(known(latent_dim), (0.0, 0.0), (1.0, 1.0))


def test_a_plane_is_drawn_from_low_to_high(tmp_path):
    """What `save_plane` writes is what `decoded_plane` returns."""
    picture = vr.decoded_plane(known(), (0.0, 0.0), (1.0, 1.0), columns=4)
    vr.save_plane(tmp_path / "plane.png", picture, (0.0, 0.0), (1.0, 1.0), title="plane")
    assert (tmp_path / "plane.png").stat().st_size > 1000


# ---------------------------------------------------------------- projector

CODES = np.random.default_rng(0).normal(size=(25, 3)).astype("float32") * [1.0, 1e-3, 1e6]
LABELS = np.arange(25) % 10


def written(folder, labels=None, codes=CODES):
    summaries = vr.Summaries(folder)
    summaries.vectors("study", "codes", codes, labels)
    summaries.close()
    return folder / "study"


def config_of(folder):
    text = (folder / "projector_config.pbtxt").read_text("utf-8")
    return text_format.Parse(text, ProjectorConfig())


def projector(log_dir):
    """Returns a function that asks TensorBoard's projector on a folder, by route."""
    events = EventMultiplexer().AddRunsFromDirectory(str(log_dir))
    events.Reload()
    provider = MultiplexerDataProvider(events, str(log_dir))
    plugin = ProjectorPlugin(TBContext(data_provider=provider, logdir=str(log_dir)))
    apps = plugin.get_plugin_apps()

    def ask(route, status=200, **query):
        answer = Client(apps[route]).get("/", query_string=query)
        assert answer.status_code == status, answer.text
        return answer

    return ask


def test_vectors_come_back(tmp_path):
    folder = written(tmp_path, LABELS)
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    (embedding,) = config_of(folder).embeddings
    assert embedding.tensor_name == "codes"
    found = np.loadtxt(folder / embedding.tensor_path, delimiter="\t")
    # Six digits: half a unit of the sixth.
    np.testing.assert_allclose(found, CODES, rtol=5e-6)
    labels = (folder / embedding.metadata_path).read_text("utf-8")
    # One column has no head: the projector would take it for the first point.
    assert labels.splitlines() == [str(label) for label in LABELS]


def test_vectors_without_labels(tmp_path):
    folder = written(tmp_path)
    (embedding,) = config_of(folder).embeddings
    assert not embedding.metadata_path
    others = {path.name for path in folder.iterdir() if "tfevents" not in path.name}
    assert others == {"codes.tsv", "projector_config.pbtxt"}


def test_labels_may_be_words(tmp_path):
    folder = written(tmp_path, ["coat" if label else "bag or shoe" for label in LABELS])
    (embedding,) = config_of(folder).embeddings
    lines = (folder / embedding.metadata_path).read_text("utf-8").splitlines()
    assert (len(lines), lines[:2]) == (25, ["bag or shoe", "coat"])


@pytest.mark.parametrize("others", [False, True], ids=["alone", "beside a run's events"])
def test_tensorboard_shows_the_vectors(tmp_path, others):
    if others:
        summaries = vr.Summaries(tmp_path / "factor_0.5")
        summaries.scalars("train", {"loss": 1.0}, step=1)
        summaries.close()
    written(tmp_path, LABELS)
    ask = projector(tmp_path)
    assert ask("/runs").json == ["study"]
    (embedding,) = json.loads(ask("/info", run="study").text)["embeddings"]
    assert (embedding["tensorName"], embedding["tensorShape"]) == ("codes", [25, 3])
    served = ask("/tensor", run="study", name="codes").data
    assert len(served) == 25 * 3 * 4
    found = np.frombuffer(served, "<f4").reshape(25, 3)
    np.testing.assert_allclose(found, CODES, rtol=5e-6)
    labels = ask("/metadata", run="study", name="codes").text
    assert labels.split() == [str(label) for label in LABELS]


def test_tensorboard_without_labels(tmp_path):
    written(tmp_path)
    ask = projector(tmp_path)
    assert len(ask("/tensor", run="study", name="codes").data) == 25 * 3 * 4
    assert "No metadata" in ask("/metadata", status=400, run="study", name="codes").text


def test_vectors_are_the_only_ones_of_their_split(tmp_path):
    """Written again, without labels: the old labels are not shown beside the new points."""
    written(tmp_path, LABELS)
    written(tmp_path, codes=CODES[:7])
    ask = projector(tmp_path)
    (embedding,) = json.loads(ask("/info", run="study").text)["embeddings"]
    assert embedding["tensorShape"] == [7, 3]
    assert "metadataPath" not in embedding
