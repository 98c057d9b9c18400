"""Areas against closed forms, neighbours against scikit-learn, t-SNE by what it must keep.

A normal cloud with standard deviations a and b has the share p of its mass in an ellipse of area
`chi2 * pi * a * b`, where chi2 is the quantile of a chi-square distribution with 2 degrees of
freedom: 5.991 for p = 0.95 and 1.386 for p = 0.5.
"""

import math

import numpy as np
import pytest
from scipy.stats import gaussian_kde
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from vae_research import neighbour_accuracy, occupied_area, t_sne

NORMAL = np.random.default_rng(0).normal(size=(1500, 2))
QUANTILES = {0.95: 5.991, 0.5: 1.386}


def area(codes, **options):
    """On a coarse grid, which is enough for these shapes and fast."""
    return occupied_area(codes, **({"cells": 80} | options))


def rotated(codes, degrees):
    turn = math.radians(degrees)
    turn = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    return codes @ turn.T


# ---------------------------------------------------------------- area


@pytest.mark.parametrize("share", QUANTILES)
def test_area_of_a_normal_cloud(share):
    codes = np.random.default_rng(1).normal(size=(10_000, 2)) * [3.0, 0.25]
    exact = QUANTILES[share] * math.pi * 3.0 * 0.25
    # 10,000 codes: the share inside of a region is known to sqrt(0.95 * 0.05 / 10000) = 0.2 %,
    # which is 1.5 % of the area; the density of 10 neighbours adds some roughness of its edge.
    assert area(codes, share=share) == pytest.approx(exact, rel=0.1)


def test_area_of_a_uniform_square():
    codes = np.random.default_rng(2).uniform(size=(1500, 2))
    assert area(codes * 4.0) == pytest.approx(0.95 * 16.0, rel=0.05)


def test_area_scales_with_the_codes():
    found = area(NORMAL)
    for scale in (1e-3, 7.0, 1e4):
        assert area(NORMAL * scale) == pytest.approx(found * scale**2, rel=0.01)


def test_area_knows_no_place_direction_and_order():
    found = area(NORMAL)
    assert area(NORMAL + np.array([300.0, -20.0])) == pytest.approx(found, rel=0.01)
    assert area(NORMAL[::-1]) == pytest.approx(found, rel=0.01)
    assert area(NORMAL[:, ::-1]) == pytest.approx(found, rel=0.01)
    assert area(rotated(NORMAL, 90)) == pytest.approx(found, rel=0.01)
    stretched = NORMAL * [2.0, 0.5]
    assert area(rotated(stretched, 45)) == pytest.approx(area(stretched), rel=0.02)


def test_area_of_the_finer_grid_is_the_same():
    assert area(NORMAL) == pytest.approx(area(NORMAL, cells=160), rel=0.01)


def test_area_grows_with_the_share():
    areas = [area(NORMAL, share=share) for share in (0.1, 0.5, 0.9, 0.99)]
    assert areas == sorted(areas)
    assert areas[0] < 0.1 * areas[-1]


def test_one_bandwidth_for_all_codes_would_be_caught():
    """The mutant: a Gaussian kernel of Scott's width calls a star three times as large."""
    codes = star(2000)
    density = gaussian_kde(codes.T)
    axes = [np.linspace(low - 1.0, high + 1.0, 80) for low, high in codes_range(codes)]
    grid = np.stack(np.meshgrid(*axes), axis=0).reshape(2, -1)
    inside = density(grid) >= np.quantile(density(codes.T), 0.05)
    smeared = inside.sum() * math.prod(axis[1] - axis[0] for axis in axes)
    assert smeared > 2.0 * area(codes)


def test_few_codes_far_away_are_left_out():
    """A box around all codes would be a million times as large."""
    codes = NORMAL.copy()
    codes[:10] = 6.0 * codes[:10] / np.linalg.norm(codes[:10], axis=1, keepdims=True)
    assert area(codes) == pytest.approx(area(NORMAL), rel=0.12)


def test_two_close_clusters_have_twice_the_area_of_one():
    apart = np.where(np.arange(len(NORMAL))[:, np.newaxis] % 2, [5.0, 0.0], 0.0)
    assert area(NORMAL + apart) == pytest.approx(2.0 * area(NORMAL), rel=0.1)


@pytest.mark.slow
def test_two_far_clusters_have_twice_the_area_of_one():
    apart = np.where(np.arange(len(NORMAL))[:, np.newaxis] % 2, 100.0, 0.0)
    found = area(NORMAL + apart, cells=600)
    assert found == pytest.approx(2.0 * area(NORMAL), rel=0.3)


def star(count):
    """Ten rays, 10 long and 1 wide, from 2 to 12 around 0: as an autoencoder lays out classes."""
    random = np.random.default_rng(3)
    angle = np.arange(count) % 10 * (2.0 * math.pi / 10.0)
    along, across = random.uniform(2.0, 12.0, count), random.uniform(-0.5, 0.5, count)
    ray, side = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    return (along * ray + across * side).T


def codes_range(codes):
    return zip(codes.min(axis=0), codes.max(axis=0), strict=True)


@pytest.mark.parametrize(("count", "tolerance"), [(2000, 0.3), (10_000, 0.1)])
def test_area_of_a_star(count, tolerance):
    found = area(star(count), cells=200)
    assert found == pytest.approx(0.95 * 10 * 10.0, rel=tolerance)


@pytest.mark.parametrize(
    "codes",
    [
        np.full((50, 2), 0.1),
        np.stack([NORMAL[:, 0], NORMAL[:, 0]], axis=1),
        np.zeros((0, 2)),
        NORMAL[:1],
        NORMAL[:2],
    ],
    ids=["equal", "diagonal", "none", "one", "two"],
)
def test_degenerate_codes_occupy_0(codes):
    assert area(codes) == 0.0


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize(("slope", "offset"), [(0.0, 3.0), (1.0 / 3.0, 0.0)])
def test_codes_on_a_line_occupy_0(slope, offset, kind):
    x = NORMAL[:, 0].astype(kind)
    codes = np.stack([x, np.array(slope, kind) * x + np.array(offset, kind)], axis=1)
    assert area(codes, cells=30) == 0.0


def test_more_codes_than_neighbours_have_an_area():
    assert area(NORMAL[:11]) > 0.0
    assert area(NORMAL[:10]) == 0.0
    assert area(NORMAL[:10], neighbours=3) > 0.0


@pytest.mark.parametrize("shape", [(10,), (10, 1), (10, 3), (2, 10), (10, 2, 1)])
def test_area_needs_a_plane(shape):
    with pytest.raises(ValueError, match=r"\[count, 2\]"):
        area(np.ones(shape))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 95, math.nan, math.inf])
def test_area_needs_a_share(share):
    with pytest.raises(ValueError, match="share"):
        area(NORMAL, share=share)


def test_area_of_codes_that_are_not_finite():
    codes = NORMAL[:20].copy()
    codes[3, 0] = math.nan
    with pytest.raises(ValueError):
        area(codes)


def test_area_changes_no_argument():
    codes = NORMAL[:50].copy()
    area(codes)
    np.testing.assert_array_equal(codes, NORMAL[:50])
    assert type(area(codes.astype(np.float32))) is float


# ---------------------------------------------------------------- neighbours


def clusters(count, size, latent=2, far=50.0):
    """Codes of `count` clusters on a line, and their labels."""
    labels = np.repeat(np.arange(count), size)
    codes = np.random.default_rng(4).normal(size=(count * size, latent))
    codes[:, 0] += far * labels
    return codes, labels


@pytest.mark.parametrize("latent", [1, 2, 16])
def test_neighbours_of_separated_clusters_are_right(latent):
    codes, labels = clusters(3, 20, latent)
    assert neighbour_accuracy(codes, labels) == 1.0
    # Labels need not begin at 0, nor be without gaps.
    assert neighbour_accuracy(codes, 100 - 7 * labels) == 1.0


@pytest.mark.parametrize("count", [2, 10])
def test_neighbours_of_random_labels_are_right_by_chance(count):
    random = np.random.default_rng(5)
    found = neighbour_accuracy(random.normal(size=(3000, 2)), random.integers(0, count, 3000))
    # Standard error of a share of 1/2 of 3000: 0.009.
    assert found == pytest.approx(1.0 / count, abs=4 * 0.009)


def test_a_code_is_no_neighbour_of_itself():
    line = np.arange(8.0)[:, np.newaxis]
    assert neighbour_accuracy(line, np.arange(8) % 2, neighbours=1) == 0.0
    # Nor is one of several equal codes: the other one is its neighbour.
    twice = np.repeat(line, 2, axis=0)
    assert neighbour_accuracy(twice, np.arange(16) // 2, neighbours=1) == 1.0
    assert neighbour_accuracy(twice, np.arange(16) % 2, neighbours=1) == 0.0


@pytest.mark.parametrize("neighbours", [1, 4, 10])
def test_neighbours_as_in_scikit_learn(neighbours):
    random = np.random.default_rng(6)
    labels = random.integers(0, 4, 60)
    codes = random.normal(size=(60, 3)) + labels[:, np.newaxis]
    expected = cross_val_score(
        KNeighborsClassifier(neighbours), codes, labels, cv=LeaveOneOut()
    ).mean()
    assert neighbour_accuracy(codes, labels, neighbours=neighbours) == pytest.approx(expected)
    order = random.permutation(60)
    again = neighbour_accuracy(codes[order], labels[order], neighbours=neighbours)
    assert again == pytest.approx(expected)


def test_of_equally_frequent_labels_the_smaller_wins():
    # The neighbours of 0.0 are -1.0 and 1.1, those of -1.0 are 0.0 and 1.1, and so on.
    codes = np.array([[-1.0], [0.0], [1.1]])
    assert neighbour_accuracy(codes, [5, 7, 9], neighbours=2) == 0.0
    assert neighbour_accuracy(codes, [5, 5, 9], neighbours=2) == pytest.approx(2 / 3)
    assert neighbour_accuracy(codes, [5, 9, 9], neighbours=2) == 0.0


@pytest.mark.parametrize("neighbours", [0, -1, 10, 11])
def test_neighbours_must_be_fewer_than_the_codes(neighbours):
    with pytest.raises(ValueError, match="neighbours must be an integer from 1 to 9"):
        neighbour_accuracy(NORMAL[:10], np.zeros(10, int), neighbours=neighbours)


def test_codes_and_labels_must_be_as_many():
    with pytest.raises(ValueError, match=r"There are 20 codes and 19 labels\."):
        neighbour_accuracy(NORMAL[:20], np.zeros(19, int))


# ---------------------------------------------------------------- t-SNE


@pytest.fixture
def one_thread():
    """So few codes are not worth threads, which wait for each other on a busy machine."""
    with threadpool_limits(1):
        yield


def test_t_sne_keeps_clusters_apart_and_repeats(one_thread):
    codes, labels = clusters(2, 12, latent=8)
    before = codes.copy()
    picture = t_sne(codes)
    assert picture.shape == (24, 2)
    assert np.isfinite(picture).all()
    assert neighbour_accuracy(picture, labels, neighbours=5) == 1.0
    np.testing.assert_array_equal(t_sne(codes), picture)
    np.testing.assert_array_equal(codes, before)


def test_t_sne_leaves_numpys_random_numbers_alone(one_thread):
    state = np.random.get_state()
    t_sne(NORMAL[:10])
    for before, after in zip(state, np.random.get_state(), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("count", [4, 7])
def test_t_sne_of_few_codes(count, one_thread):
    picture = t_sne(np.random.default_rng(7).normal(size=(count, 5)))
    assert picture.shape == (count, 2)
    assert np.isfinite(picture).all()
    assert len(np.unique(picture, axis=0)) == count


@pytest.mark.parametrize(
    ("codes", "words"),
    [(NORMAL[:7, :1], "2 dimensions"), (NORMAL[:3], "4 codes"), (np.ones([7, 3]), "equal")],
    ids=["one dimension", "three codes", "equal codes"],
)
def test_t_sne_of_codes_without_a_picture(codes, words):
    with pytest.raises(ValueError, match=words):
        t_sne(codes)
