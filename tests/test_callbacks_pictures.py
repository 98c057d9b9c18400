"""Callbacks that write latents, pictures, histograms and points; the geometry of a picture."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.watched import (
    BATCH,
    IMAGES,
    LATENT,
    ONE_STEP,
    SHAPE,
    VALIDATION,
    AtEpochEnd,
    autoencoder,
    float32,
    make,
    read,
    scalars,
    train,
    usual,
)
from vae_research import (
    VAE,
    Bernoulli,
    GaussianBottleneck,
    KLDivergence,
    Latents,
    Pictures,
    Projector,
    Summaries,
    decoded_plane,
    dense_decoder,
    dense_encoder,
)
from vae_research.callbacks.latents import kl_over_time
from vae_research.callbacks.pictures import reconstructions, samples
from vae_research.callbacks.tensorboard.drawing import heat, sprite, tile
from vae_research.evaluation.estimates import active_units

# Latents.


LATENT_TAGS = {"latent/active_units", "latent/permuted_code_gap"}


@pytest.mark.slow
def test_latents_are_those_of_the_data_after_every_epoch(tmp_path):
    wanted = AtEpochEnd(lambda model: active_units(model.encode(VALIDATION).numpy()).value)
    history = train(usual(), wanted, Latents(tmp_path, VALIDATION))
    assert not (tmp_path / "train").exists()
    found = scalars(tmp_path / "validation")
    assert found.keys() == LATENT_TAGS | {"latent/mutual_information", "latent/kl_total"}
    assert found["latent/active_units"] == list(zip([5, 10], wanted.found, strict=True))
    # Closed form: no noise in it, so the validation of Keras has the very number.
    assert found["latent/kl_total"] == list(zip([5, 10], float32(history["val_kl"]), strict=True))


def linear_encoder(kernel):
    """Posterior means are the inputs' first pixels, times the kernel."""
    inputs = keras.Input(SHAPE, name="inputs")
    features = keras.layers.Flatten()(inputs)
    heads = {name: keras.layers.Dense(LATENT, name=name) for name in ("z_mean", "z_log_var")}
    model = keras.Model(inputs, {name: head(features) for name, head in heads.items()})
    matrix = np.zeros([16, LATENT])
    matrix[:LATENT] = np.diag(kernel)
    heads["z_mean"].set_weights([matrix, np.ones(LATENT)])
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "count"), [([1.0, 1.0], 2), ([1.0, 0.0], 1), ([0.1, 0.1], 0)], ids=str
)
def test_active_units_are_counted(kernel, count, tmp_path):
    # The variance of a pixel is 0.2: with 0.1 for a weight, that of the mean is 0.002.
    model = make(encoder=lambda: linear_encoder(kernel), optimizer=keras.optimizers.SGD(0.0))
    train(model, Latents(tmp_path, IMAGES), **ONE_STEP)
    assert scalars(tmp_path / "validation")["latent/active_units"] == [(1, count)]


@pytest.mark.slow
@pytest.mark.parametrize(("place", "active"), [(499, 2), (500, 0)])
def test_the_first_five_hundred_examples_are_used(place, active, tmp_path):
    # One alone is another one: the last that counts, or the first that does not.
    images = np.zeros([501, *SHAPE], np.float32)
    images[place] = 1.0
    model = make(encoder=lambda: linear_encoder([10.0, 10.0]), optimizer=keras.optimizers.SGD(0.0))
    train(model, Latents(tmp_path, images), **ONE_STEP)
    assert scalars(tmp_path / "validation")["latent/active_units"] == [(1, active)]
    assert active_units(model.encode(images).numpy()).value == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("error::UserWarning")
def test_a_deviation_that_is_too_large_to_compute_is_left_out(tmp_path):
    images = VALIDATION.copy()
    images[0] = 1000.0
    model = make(encoder=lambda: linear_encoder([1.0, 1.0]), optimizer=keras.optimizers.SGD(0.0))
    latents = Latents(tmp_path, images)
    train(model, latents, **ONE_STEP)
    assert latents.inference(model)["z_log_var"].max() > 2 * np.log(np.finfo(np.float32).max)
    found = read(tmp_path / "validation")
    assert "latent/kl_over_time" in found  # its divergence is infinite, too
    ((_, buckets),) = found["latent/posterior_std"]
    assert np.isfinite(buckets).all()
    assert 0 < buckets[:, 2].sum() < VALIDATION.shape[0] * 2


@pytest.mark.slow
def test_without_a_posterior_there_is_no_divergence(tmp_path):
    train(autoencoder(), Latents(tmp_path, VALIDATION), epochs=1)
    assert scalars(tmp_path / "validation").keys() == LATENT_TAGS


@pytest.mark.slow
def test_without_validation_the_divergence_of_training_does_not_stand_in_for_it(tmp_path):
    history = train(usual(), Latents(tmp_path, VALIDATION), validation=None, epochs=1)
    assert "kl" in history
    found = scalars(tmp_path / "validation").keys()
    assert found == LATENT_TAGS | {"latent/mutual_information"}


# Pictures.


def pictures(folder):
    """Returns `{tag: [(step, picture), ...]}` with pictures `[height, width, channels]`, 8 bits."""
    found = {}
    for tag, written in read(folder).items():
        if written[0][1].shape != (3,):
            continue
        found[tag] = []
        for step, (width, height, encoded) in written:
            picture = tf.io.decode_png(encoded).numpy()
            assert picture.shape[:2] == (int(height), int(width))
            found[tag].append((step, picture))
    return found


def assert_same_picture(found, wanted):
    assert found.dtype == np.uint8
    assert found.shape == wanted.shape
    # Within the step of 8 bits, whichever way it was rounded.
    np.testing.assert_allclose(found / 255.0, wanted, atol=1.001 / 255.0)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_pictures_are_those_of_the_model_after_every_epoch(channels, tmp_path):
    shape = (4, 3, channels)
    images = np.random.default_rng(2).random((24, *shape)).astype("float32")
    wanted = AtEpochEnd(
        lambda model: (reconstructions(model, images[:6], 3), samples(model, 3, rows=4))
    )
    pictured = Pictures(tmp_path, images, columns=3)
    train(make(shape=shape), pictured, wanted, data=images[: 2 * BATCH], validation=None)
    assert not (tmp_path / "train").exists()
    found = pictures(tmp_path / "validation")
    assert found.keys() == {"reconstructions", "errors", "samples", "traversals", "plane"}
    for place, tag in enumerate(("reconstructions", "samples")):
        assert [step for step, _ in found[tag]] == [2, 4]
        for (_, picture), epoch in zip(found[tag], wanted.found, strict=True):
            # Of other numbers of channels than one and three, the first is shown.
            assert picture.shape[-1] == {1: 1, 2: 1, 3: 3}[channels]
            assert_same_picture(picture, epoch[place])
    assert not np.array_equal(found["reconstructions"][0][1], found["reconstructions"][1][1])


@pytest.mark.slow
def test_originals_are_above_what_the_model_makes_of_them(tmp_path):
    model = usual()
    train(model, Pictures(tmp_path, IMAGES, columns=3), epochs=1)
    ((_, picture),) = pictures(tmp_path / "validation")["reconstructions"]
    made = model.reconstruct(IMAGES[:6]).numpy()
    assert picture.shape == (4 * 6 - 2, 3 * 6 - 2, 1)  # four rows of 4 pixels and gaps of 2
    for index in range(6):
        line, column = divmod(index, 3)
        left = 6 * column
        for top, wanted in ((12 * line, IMAGES[index]), (12 * line + 6, made[index])):
            assert_same_picture(picture[top : top + 4, left : left + 4], wanted)


@pytest.mark.slow
def test_images_and_codes_are_the_same_at_every_epoch(tmp_path):
    model = usual(0.0)
    train(model, Pictures(tmp_path, IMAGES), shuffle=True)
    for tag, ((_, first), (_, second)) in pictures(tmp_path / "validation").items():
        np.testing.assert_array_equal(first, second, err_msg=tag)
        assert len(np.unique(first)) > 10, tag  # it is no empty picture


@pytest.mark.slow
def test_a_deterministic_bottleneck_has_no_samples(tmp_path):
    train(autoencoder(), Pictures(tmp_path, IMAGES))
    assert pictures(tmp_path / "validation").keys() == {
        "reconstructions",
        "errors",
        "traversals",
        "plane",
    }


@pytest.mark.slow
def test_fewer_images_than_columns_are_shown_all_the_same(tmp_path):
    train(usual(), Pictures(tmp_path, IMAGES[:2], columns=5), epochs=1)
    ((_, picture),) = pictures(tmp_path / "validation")["reconstructions"]
    assert picture.shape == (2 * 6 - 2, 5 * 6 - 2, 1)
    assert (picture[:, 12:] == 255).all()


@pytest.mark.slow
def test_as_many_samples_as_the_prior_is_measured_with(tmp_path):
    drawn = Pictures(tmp_path, IMAGES, columns=250).draw(make())
    assert drawn["samples"].shape == (4 * 6 - 2, 250 * 6 - 2, 1)


@pytest.mark.slow
def test_errors_are_those_of_the_pixels(tmp_path):
    model = usual(0.0)
    train(model, Pictures(tmp_path, IMAGES, columns=3), epochs=1)
    ((_, picture),) = pictures(tmp_path / "validation")["errors"]
    # Its scale and the words of its scale are to the right and below.
    assert picture.shape[0] > 2 * 6 - 2 and picture.shape[1] > 3 * 6 - 2
    wanted = heat(np.abs(IMAGES[:6] - model.reconstruct(IMAGES[:6]).numpy())[..., 0])
    for index in range(6):
        line, column = divmod(index, 3)
        found = picture[6 * line : 6 * line + 4, 6 * column : 6 * column + 4]
        assert_same_picture(found, wanted[index])


def decode_of_codes():
    """A decoder whose image shows its code: the first pixels are logistic functions of z."""
    z = keras.Input([3], name="z")
    logits = keras.layers.Dense(16, use_bias=False)
    decoder = keras.Model(z, {"logits": keras.layers.Reshape(SHAPE)(logits(z))})
    logits.set_weights([np.eye(3, 16)])
    return decoder


@pytest.mark.slow
def test_traversals_move_one_dimension_a_row_and_those_with_most_divergence_come_first(tmp_path):
    keras.utils.set_random_seed(7)
    encoder = dense_encoder(SHAPE, 3, hidden_units=(8,))
    # Of the dimensions 0, 1, 2 the middle one has the largest divergence and the first has none.
    for name in ("z_mean", "z_log_var"):
        kernel, bias = encoder.get_layer(name).get_weights()
        kernel[:, 0] = 0.0
        if name == "z_mean":
            kernel[:, 1], kernel[:, 2] = 5.0 * kernel[:, 1], 0.5 * kernel[:, 2]
        encoder.get_layer(name).set_weights([kernel, bias])
    model = VAE(encoder, GaussianBottleneck(3), decode_of_codes(), [Bernoulli(), KLDivergence()])
    model.compile(keras.optimizers.SGD(0.0))
    drawn = Pictures(tmp_path, IMAGES).draw(model)
    divergence = model.infer(IMAGES)["kl"].numpy().mean(axis=0)
    assert np.argsort(-divergence).tolist() == [1, 2, 0]
    code = model.encode(IMAGES[:1]).numpy()[0]
    prior = model.bottleneck.sample_prior(1000, tf.constant([1, 0])).numpy()
    picture = drawn["traversals"]
    assert picture.shape == (3 * 6 - 2, 7 * 6 - 2, 1)
    for row, dimension in enumerate([1, 2, 0]):
        for at in range(7):
            wanted = code.copy()
            wanted[dimension] = prior[:, dimension].mean() + prior[:, dimension].std() * (-3.0 + at)
            pixels = picture[6 * row, 6 * at : 6 * at + 3, 0]
            np.testing.assert_allclose(pixels, 1.0 / (1.0 + np.exp(-wanted)), atol=1e-5)


def test_at_most_twenty_dimensions_are_traversed(tmp_path):
    keras.utils.set_random_seed(7)
    model = VAE(
        dense_encoder(SHAPE, 25, hidden_units=(8,)),
        GaussianBottleneck(25),
        dense_decoder(SHAPE, 25, hidden_units=(8,)),
        [Bernoulli(), KLDivergence()],
    )
    drawn = Pictures(tmp_path, IMAGES).draw(model)
    assert drawn["traversals"].shape == (20 * 6 - 2, 7 * 6 - 2, 1)
    assert "plane" not in drawn


@pytest.mark.slow
def test_the_plane_is_that_of_the_prior_and_that_of_the_codes_without_one(tmp_path):
    model = make()
    prior = model.bottleneck.sample_prior(1000, tf.constant([1, 0])).numpy()
    low = prior.mean(axis=0) - 3.0 * prior.std(axis=0)
    wanted = decoded_plane(model, low, low + 6.0 * prior.std(axis=0), columns=16)
    np.testing.assert_allclose(Pictures(tmp_path, IMAGES).draw(model)["plane"], wanted, atol=1e-5)
    model = autoencoder()
    codes = model.encode(IMAGES).numpy()
    low = codes.mean(axis=0) - 3.0 * codes.std(axis=0)
    wanted = decoded_plane(model, low, low + 6.0 * codes.std(axis=0), columns=16)
    np.testing.assert_allclose(Pictures(tmp_path, IMAGES).draw(model)["plane"], wanted, atol=1e-5)


# The picture and the histograms of latent dimensions.


@pytest.mark.slow
def test_the_divergence_of_dimensions_over_time_goes_on_after_an_interruption(tmp_path):
    def rows():
        lines = (tmp_path / "validation" / "kl_per_dimension.tsv").read_text().splitlines()
        return np.array([line.split("\t") for line in lines], float)

    kept = AtEpochEnd(lambda model: model.infer(VALIDATION)["kl"].numpy().mean(axis=0))
    model = usual()
    train(model, Latents(tmp_path, VALIDATION), kept)
    # Another process, which goes on after the second epoch, and does the third one twice.
    train(model, Latents(tmp_path, VALIDATION), kept, epochs=3, initial_epoch=2)
    np.testing.assert_array_equal(rows()[:, 0], [5, 10, 15])
    np.testing.assert_allclose(rows()[:, 1:], kept.found, rtol=1e-5)
    model.step_counter.assign(10)
    train(model, Latents(tmp_path, VALIDATION), kept, epochs=3, initial_epoch=2)
    picture = pictures(tmp_path / "validation")["latent/kl_over_time"][-1][1]
    history = np.stack([*kept.found[:2], kept.found[3]])
    assert_same_picture(picture, kl_over_time(history))


@pytest.mark.slow
def test_histograms_have_every_example_and_dimension(tmp_path):
    train(usual(), Latents(tmp_path, VALIDATION), epochs=1)
    found = read(tmp_path / "validation")
    for tag, count in (
        ("latent/kl_per_dimension", LATENT),
        ("latent/posterior_mean", len(VALIDATION) * LATENT),
        ("latent/posterior_std", len(VALIDATION) * LATENT),
    ):
        buckets = next(value for _, value in found[tag])
        assert buckets[:, 2].sum() == count


@pytest.mark.slow
def test_pictures_of_another_model_are_of_its_own_prior(tmp_path):
    pictures = Pictures(tmp_path, IMAGES)
    other = VAE(
        dense_encoder(SHAPE, 3), GaussianBottleneck(3), dense_decoder(SHAPE, 3), [Bernoulli()]
    )
    pictures.draw(usual())
    drawn = pictures.draw(other)["samples"]
    assert np.array_equal(drawn, Pictures(tmp_path, IMAGES).draw(other)["samples"])


class Codebook(GaussianBottleneck):
    """Writes what has no row for every example, and a code beside z."""

    def call(self, z_mean, z_log_var, seed):
        found = super().call(z_mean, z_log_var, seed)
        return found | {"perplexity": tf.constant(3.0), "codebook": tf.zeros([500, 2])}


@pytest.mark.slow
def test_a_bottleneck_may_write_what_has_no_rows(tmp_path):
    model = VAE(
        dense_encoder(SHAPE, LATENT, hidden_units=(8,)),
        Codebook(LATENT),
        dense_decoder(SHAPE, LATENT, hidden_units=(8,)),
        [Bernoulli(), KLDivergence()],
    )
    model.compile("adam", run_eagerly=True)
    train(model, Latents(tmp_path, VALIDATION), **ONE_STEP)
    assert "latent/permuted_code_gap" in scalars(tmp_path / "validation")


# The projector.


@pytest.mark.slow
def test_points_are_the_codes_of_the_last_epoch_with_labels_and_thumbnails(tmp_path):
    labels = np.arange(13) % 3
    model = usual()
    train(model, Projector(tmp_path, VALIDATION, labels, VALIDATION), epochs=3)
    folder = tmp_path / "validation"
    codes = np.loadtxt(folder / "codes.tsv", delimiter="\t")
    wanted = model.encode(VALIDATION).numpy()
    np.testing.assert_allclose(codes[:, :LATENT], wanted, rtol=1e-5, atol=1e-6)
    # Of fewer than three columns the projector draws nothing.
    np.testing.assert_array_equal(codes[:, LATENT:], np.zeros([len(VALIDATION), 1]))
    assert (folder / "codes_labels.tsv").read_text().split() == [str(label) for label in labels]
    picture = tf.io.decode_png((folder / "codes_sprite.png").read_bytes()).numpy()
    assert_same_picture(picture, sprite(VALIDATION)[0])
    config = (folder / "projector_config.pbtxt").read_text()
    for part in ("codes.tsv", "codes_labels.tsv", "codes_sprite.png", "single_image_dim: 4"):
        assert part in config
    assert list(folder.glob("events.*"))  # without one the plugin does not see the folder


@pytest.mark.slow
@pytest.mark.parametrize(("epochs", "written"), [(1, 2), (2, 2), (3, 3), (4, 3)])
def test_points_are_written_every_so_many_epochs_and_at_the_end(
    epochs, written, tmp_path, monkeypatch
):
    count = []
    monkeypatch.setattr(Summaries, "vectors", lambda *arguments: count.append(1))
    train(usual(), Projector(tmp_path, VALIDATION, every_epochs=2), epochs=epochs)
    assert len(count) == written


# The geometry of a picture.


def numbered(count, shape, first=1):
    """Images of one value each, tenths."""
    return np.stack([np.full(shape, (first + index) / 10.0) for index in range(count)])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("gap", [1, 2, 5])
def test_tile_puts_every_image_at_its_place(channels, gap):
    height, width, columns = 3, 2, 2
    groups = [
        numbered(3, (height, width, channels), first=1),
        numbered(1, (height, width, channels), first=5),
        numbered(2, (height, width, channels), first=7),
    ]
    picture = tile(groups, columns, gap=gap)
    shown = 3 if channels == 3 else 1
    # Two lines for the first group, one for each other.
    assert picture.shape == (4 * height + 3 * gap, columns * width + gap, shown)
    wanted = np.ones(picture.shape)
    for line, column, value in [
        (0, 0, 0.1),
        (0, 1, 0.2),
        (1, 0, 0.3),
        (2, 0, 0.5),
        (3, 0, 0.7),
        (3, 1, 0.8),
    ]:
        top, left = line * (height + gap), column * (width + gap)
        wanted[top : top + height, left : left + width] = value
    np.testing.assert_allclose(picture, wanted, atol=1e-7)


def test_tile_without_gaps_is_the_images_side_by_side():
    picture = tile([numbered(4, (3, 2, 1))], 2, gap=0)
    np.testing.assert_allclose(picture[:3, :, 0], [[0.1, 0.1, 0.2, 0.2]] * 3, atol=1e-7)


def test_tile_shows_the_first_of_two_channels_and_all_of_three():
    image = np.random.default_rng(0).random([1, 3, 3, 3]).astype("float32")
    np.testing.assert_array_equal(tile([image], 1), image[0])
    np.testing.assert_array_equal(tile([image[..., :2]], 1), image[0, ..., :1])


def test_tile_leaves_values_that_can_be_shown_and_brings_in_others():
    inside = np.linspace(0.2, 0.7, 4).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(tile([inside], 1), inside[0], atol=1e-7)
    # Standardised data: from -2 to 3, by one scale for all groups.
    outside = [
        np.array([[-2.0, 0.5]]).reshape(1, 1, 2, 1),
        np.array([[3.0, 1.0]]).reshape(1, 1, 2, 1),
    ]
    picture = tile(outside, 1, gap=1)[..., 0]
    np.testing.assert_allclose(picture, [[0.0, 0.5], [1.0, 1.0], [1.0, 0.6]], atol=1e-7)
