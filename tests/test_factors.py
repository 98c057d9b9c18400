"""Factors of a data set: names, sizes and numbers, from what is given to whoever reads them."""

import numpy as np
import pytest

from vae_research.data import Data, DataError, load_data
from vae_research.data.factors import Factors
from vae_research.data.sources import rows_of_array

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype=np.uint8)
NUMBERS = np.stack([np.arange(30) % 3, np.arange(30) // 15], axis=1).astype(np.int32)


def test_integers_of_two_axes_are_factors_with_the_sizes_of_all_splits():
    data = Data.from_arrays({"inputs": IMAGES, "factors": NUMBERS})
    assert data.factors == Factors(("factor_0", "factor_1"), (3, 2))
    for split in data.splits:
        assert split.arrays["factors"].dtype == np.int64
        assert split.arrays["factors"].shape == (len(split), 2)
    named = Data.from_arrays({"inputs": IMAGES, "factors": NUMBERS}, factors=("hue", "size"))
    assert named.factors == Factors(("hue", "size"), (3, 2))
    assert named.fingerprint == data.fingerprint
    one_value = {"inputs": IMAGES[:5], "factors": np.full((5, 2), [4, 0])}
    rest = {"inputs": IMAGES[5:], "factors": NUMBERS[5:]}
    assert Data.from_arrays(rest, one_value, one_value).factors.sizes == (5, 2)


def test_an_npz_file_may_have_factors(tmp_path):
    np.savez(tmp_path / "data.npz", images=IMAGES, factors=NUMBERS)
    data = load_data(tmp_path / "data.npz")
    assert data.factors == Factors(("factor_0", "factor_1"), (3, 2))
    assert len(data.test.arrays["factors"]) == 3


def test_factors_stay_with_data_that_are_changed_or_streamed():
    data = Data.from_arrays({"inputs": IMAGES, "factors": NUMBERS})
    changed = data.dequantized().augmented(lambda batch, key: batch)
    assert changed.factors is data.factors
    rows = {"inputs": rows_of_array(IMAGES), "factors": rows_of_array(NUMBERS.astype(np.int64))}
    streamed = Data.from_arrays(rows, kind="images", factors=("a", "b"))
    assert streamed.factors == Factors(("a", "b"), (3, 2))
    known = Data.from_arrays(rows, kind="images", factors=Factors(("a", "b"), (7, 7)))
    assert known.factors.sizes == (7, 7)
    np.testing.assert_array_equal(
        streamed.test.arrays["factors"][:], data.test.arrays["factors"][:]
    )


def test_other_arrays_of_that_name_are_no_factors():
    floats = Data.from_arrays({"inputs": IMAGES, "factors": NUMBERS / 2})
    assert floats.factors is None and floats.train.arrays["factors"].dtype == np.float32
    assert Data.from_arrays({"inputs": IMAGES, "factors": NUMBERS[:, 0]}).factors is None
    negative = Data.from_arrays({"inputs": IMAGES, "factors": NUMBERS - 1})
    assert negative.factors is None
    assert "factors are numbers from 0, and -1 is among them" in negative.warnings[0]


@pytest.mark.parametrize(
    ("array", "given", "message"),
    [
        (NUMBERS, ("a",), "factors has 2 columns, and 1 names are given"),
        (NUMBERS, ("a", "a"), "distinct names"),
        (NUMBERS, NUMBERS, "distinct names, got ndarray"),
        (NUMBERS / 2, ("a", "b"), r"array of integers \[n, k\]"),
        (NUMBERS, Factors(("a", "b"), (2, 2)), r"factors reach \[2, 1\], sizes are \(2, 2\)"),
    ],
)
def test_names_that_do_not_fit_are_refused(array, given, message):
    with pytest.raises(DataError, match=message):
        Data.from_arrays({"inputs": IMAGES, "factors": array}, factors=given)
    with pytest.raises(DataError, match="found none"):
        Data.from_arrays(IMAGES, factors=("a", "b"))


def test_factors_check_themselves():
    for names, sizes in ((("a", "a"), (1, 1)), (("a",), (0,)), ((), ()), (("a",), (1, 2))):
        with pytest.raises(ValueError, match=r"factor.*got Factors"):
            Factors(names, sizes)
