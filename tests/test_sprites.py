"""Sprites: what is drawn, that a number is an image for ever, and how the splits are cut."""

import hashlib

import numpy as np
import pytest

from vae_research.data import DataError, load_data
from vae_research.data.factors import Factors
from vae_research.data.sprites import HUES, SHAPES, VALUES, Sprites

SIZES = (3, 6, 40, 32, 32)


def image(side, *numbers):
    sprites = Sprites(side)
    return sprites.images_of(sprites.rows_of(np.array([numbers])))[0, :, :, 0]


def moments(picture):
    """Area and centre (x to the right, y down), in units of the image."""
    y, x = np.nonzero(picture)
    size = len(picture)
    return picture.sum() / size**2, np.array([x.mean() + 0.5, y.mean() + 0.5]) / size


# What is drawn.


@pytest.mark.parametrize("side", [64, 32])
def test_a_pixel_is_one_if_its_centre_is_in_the_shape(side):
    """Pixel by pixel, in words of geometry, against the rendering by cached masks."""
    random = np.random.default_rng(0)
    sprites = Sprites(side)
    rows = random.integers(0, sprites.count, 60)
    found = sprites.images_of(rows)
    assert (found.dtype, found.shape) == (np.uint8, (60, side, side, 1))
    y, x = (np.mgrid[:side, :side] + 0.5) * (64 / side)
    for row, picture in zip(rows, found[..., 0], strict=True):
        shape, scale, orientation, right, down = np.unravel_index(row, SIZES)
        turned = np.exp(-1j * np.linspace(0, 2 * np.pi, 40)[orientation])
        point = ((x - 16.5 - right) - 1j * (y - 16.5 - down)) * turned / (8 + 1.6 * scale)
        u, v = point.real, point.imag
        if shape == 0:
            inside = (abs(u) <= 0.7) & (abs(v) <= 0.7)
        elif shape == 1:
            inside = np.hypot(u / 2, v) <= 0.49
        else:
            a, b = u / 0.78, v / 0.78 + 0.25
            inside = a**2 + b**2 - 1 <= np.cbrt(a**2 * b**3)
        np.testing.assert_array_equal(picture, inside)


@pytest.mark.parametrize("side", [64, 32])
def test_no_sprite_is_cut_off_and_steps_are_steps(side):
    sprites = Sprites(side)
    numbers = np.array([[s, 5, o, x, x] for s in range(3) for o in range(40) for x in (0, 31)])
    images = sprites.images_of(sprites.rows_of(numbers))[..., 0].reshape(120, 2, side, side)
    # The last place is 31 steps from the first: 31 pixels, or 15 and another phase.
    if side == 64:
        np.testing.assert_array_equal(images[:, 0, :33, :33], images[:, 1, 31:, 31:])
        assert not images[:, 0, 33:].any() and not images[:, 1, :31].any()
    for first, last in images:
        (area, begin), (again, end) = moments(first), moments(last)
        assert again == pytest.approx(area, abs=0.01)
        np.testing.assert_allclose(end - begin, 31 / 64, atol=0.5 / side + 1e-9)


def test_areas_are_those_of_the_formulas():
    """A square of side 1.4, an ellipse of axes 0.98 and 0.49; times the square of the radius."""
    for shape, area in ((0, 1.96), (1, np.pi * 0.98 * 0.49)):
        for scale, radius in enumerate(VALUES["scale"] * 16):
            areas = [image(64, shape, scale, o, 16, 16).sum() for o in range(40)]
            assert np.mean(areas) == pytest.approx(area * radius**2, rel=0.02)


def test_symmetries_are_those_of_the_shapes():
    alike = {}
    for number, shape in enumerate(SHAPES):
        pictures = [image(64, number, 4, o, 16, 16)[16:49, 16:49] for o in range(40)]
        np.testing.assert_array_equal(pictures[0], pictures[39])  # 2 pi is 0
        turns = [all((np.rot90(p, k) == p).all() for p in pictures) for k in (1, 2, 3)]
        alike[shape] = 1 + sum(turns)
        # 90 degrees are 9.75 steps of the orientation: none but the last repeats the first.
        assert not (pictures[0] == pictures[10]).all()
    assert alike == {"square": 4, "ellipse": 2, "heart": 1}


def test_a_heart_is_upright_at_first_and_turns_against_the_clock():
    heart = image(64, 2, 5, 0, 16, 16)
    np.testing.assert_array_equal(heart[:, 16:49], heart[:, 16:49][:, ::-1])  # left as right
    widths = heart.sum(axis=1)[np.flatnonzero(heart.any(axis=1))]
    assert widths[-1] <= 3 < widths.max() and widths.argmax() < len(widths) / 2  # a tip below
    assert (heart[np.flatnonzero(heart.any(axis=1))[0], 32:34] == 0).all()  # a notch above
    quarter = image(64, 2, 5, 10, 16, 16)  # 92 degrees: the tip is on the right
    columns = np.flatnonzero(quarter.any(axis=0))
    assert quarter[:, columns[-1]].sum() <= 4 < quarter[:, columns[0]].sum()


def test_colours_are_hues_of_the_same_shapes():
    sprites, grey = Sprites(64, colour=True), Sprites(64)
    assert sprites.factors.names == ("hue", *grey.factors.names)
    rows = np.array([5, 5 + grey.count, 7 + 5 * grey.count])
    found = sprites.images_of(rows)
    for picture, row, hue in zip(found, (5, 5, 7), (0, 1, 5), strict=True):
        expected = grey.images_of(np.array([row]))[0] * np.array(HUES[hue])
        np.testing.assert_array_equal(picture, expected)


# Numbers.


def test_rows_are_numbered_as_those_of_dsprites():
    """latents_bases of its metadata without the colour, which has one value."""
    sprites = Sprites(64)
    assert sprites.count == 737_280
    assert sprites.factors == Factors(("shape", "scale", "orientation", "x", "y"), SIZES)
    rows = np.random.default_rng(0).integers(0, sprites.count, 1000)
    numbers = sprites.numbers_of(rows)
    np.testing.assert_array_equal(numbers @ [245760, 40960, 1024, 32, 1], rows)
    np.testing.assert_array_equal(sprites.rows_of(numbers), rows)
    with pytest.raises(ValueError, match="invalid entry"):
        sprites.rows_of([[3, 0, 0, 0, 0]])


def test_an_image_is_a_function_of_its_number_alone():
    sprites = Sprites(32)
    rows = np.arange(50) * 14_741
    together = sprites.images_of(rows)
    for row, picture in zip(rows, together, strict=True):
        np.testing.assert_array_equal(sprites.images_of(np.array([row]))[0], picture)
    digest = hashlib.sha256(together.tobytes()).hexdigest()
    assert digest.startswith("f8aae4a63a54")  # of the first version: they never change


# Splits.


def test_splits_are_disjoint_and_never_change():
    data = load_data("sprites_32")
    assert data.summary()["counts"] == {"train": 717_280, "validation": 10_000, "test": 10_000}
    assert data.shape == (32, 32, 1) and data.is_image and not data.grey_values
    assert data.value_range() == (0.0, 1.0) and data.warnings == ()
    assert data.factors.sizes == SIZES
    bases = np.array([245760, 40960, 1024, 32, 1])
    rows = [split.arrays["factors"][:] @ bases for split in data.splits]
    assert len(np.unique(np.concatenate(rows))) == 737_280
    assert rows[2][:3].tolist() == [500196, 641511, 445174]  # the permutation never changes
    images = Sprites(32).images_of(rows[2][5:9])
    np.testing.assert_array_equal(data.test.raw[5:9], images)
    # Pictures that differ only in their place are equal at all places.
    masks = Sprites(64).images_of(np.arange(720) * 1024).reshape(720, -1)
    _, alike = np.unique(masks, axis=0, return_inverse=True)
    pictures = [alike.reshape(-1)[numbers // 1024] * 1024 + numbers % 1024 for numbers in rows]
    assert np.isin(pictures[2], pictures[0]).mean() == pytest.approx(0.1036, abs=5e-5)


def test_correlated_factors_have_the_density_of_the_paper():
    data = load_data("sprites_32", correlated="scale, x,0.2")
    plain = load_data("sprites_32")
    np.testing.assert_array_equal(data.test.arrays["factors"][:], plain.test.arrays["factors"][:])
    assert data.fingerprint != plain.fingerprint
    bases = np.array([245760, 40960, 1024, 32, 1])
    rows = [split.arrays["factors"][:] @ bases for split in data.splits]
    assert len(np.unique(np.concatenate(rows))) == sum(map(len, rows))
    a, b = np.mgrid[:6, :32]
    density = np.exp(-((a / 5 - b / 31) ** 2) / (2 * 0.2**2))
    density /= density.sum()
    for split in (data.train, data.validation):
        numbers = split.arrays["factors"][:]
        counts = np.zeros((6, 32))
        np.add.at(counts, (numbers[:, 1], numbers[:, 3]), 1)
        expected = density * len(numbers)
        # Chi-squared of 191 degrees of freedom: above 293 with probability 1e-6.
        assert ((counts - expected) ** 2 / expected).sum() < 293
        others = np.corrcoef(numbers[:, [0, 2, 3, 4]].T)
        assert abs(others - np.eye(4)).max() < 5 / np.sqrt(len(numbers))


@pytest.mark.parametrize(
    "text", ["scale,x", "scale,x,0", "scale,x,nan", "scale,scale,1", "scale,size,1", "x,y,a", ""]
)
def test_correlations_that_cannot_be_are_refused(text):
    with pytest.raises(DataError, match="not two different ones of shape, scale, orientation"):
        load_data("sprites_32", correlated=text)


def test_what_sprites_cannot_do_is_refused_by_name():
    with pytest.raises(DataError, match="'mnist' cannot have correlated factors; sprites, "):
        load_data("mnist", correlated="scale,x,0.2")
    with pytest.raises(DataError, match="--nostream: sprites is rendered"):
        load_data("sprites", stream=False)
    with pytest.raises(DataError, match="leave 12130 images; with a larger sigma"):
        load_data("sprites", correlated="shape,orientation,0.001")
    with pytest.raises(DataError, match="did you mean 'sprites_colour'"):
        load_data("sprites_color")
