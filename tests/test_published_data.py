"""The published files of dSprites and 3D Shapes, as small files of the same layout."""

import sys

import h5py
import numpy as np
import pytest

from vae_research.data import DataError, load_data
from vae_research.data.factors import Factors
from vae_research.data.sources import Rows
from vae_research.data.sprites import VALUES, Sprites

SHAPES_3D = {
    "floor_hue": np.linspace(0, 0.9, 10),
    "wall_hue": np.linspace(0, 0.9, 10),
    "object_hue": np.linspace(0, 0.9, 10),
    "scale": np.linspace(0.75, 1.25, 8),
    "shape": np.arange(4.0),
    "orientation": np.linspace(-30, 30, 15),
}


def save_dsprites(path, **more):
    """Every 9973rd row, with the arrays of the published file and its pickled description."""
    sprites = Sprites(64)
    rows = np.arange(0, sprites.count, 9_973)
    numbers = sprites.numbers_of(rows)
    white = np.zeros((len(rows), 1), np.int64)
    values = [VALUES[name][column] for name, column in zip(VALUES, numbers.T, strict=True)]
    np.savez_compressed(
        path,
        imgs=sprites.images_of(rows)[..., 0],
        latents_classes=np.concatenate([white, numbers], axis=1),
        latents_values=np.stack([np.ones(len(rows)), *values], axis=1),
        metadata=np.array({"author": "unknown"}, dtype=object),
        **more,
    )
    return rows


def test_dsprites_has_its_factors_without_the_colour(tmp_path):
    rows = save_dsprites(tmp_path / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz")
    data = load_data(tmp_path / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz")
    assert data.factors.names == ("shape", "scale", "orientation", "x", "y")
    assert data.factors.sizes[:2] == (3, 6) and data.shape == (64, 64, 1)
    assert not data.grey_values and data.value_range() == (0.0, 1.0)
    assert any("not used: metadata" in warning for warning in data.warnings)
    sprites, found = Sprites(64), []
    for split in data.splits:
        numbers = split.arrays["factors"]
        np.testing.assert_array_equal(split.raw, sprites.images_of(sprites.rows_of(numbers)))
        angles = VALUES["orientation"][numbers[:, 2]].astype(np.float32)
        np.testing.assert_array_equal(split.arrays["latents_values"][:, 3], angles)
        found.extend(sprites.rows_of(numbers))
    assert sorted(found) == rows.tolist()


def test_own_factors_beside_those_of_dsprites_are_kept(tmp_path):
    count = len(save_dsprites(tmp_path / "a.npz"))
    save_dsprites(tmp_path / "own.npz", factors=np.arange(count)[:, np.newaxis] % 4)
    assert load_data(tmp_path / "own.npz").factors == Factors(("factor_0",), (4,))


@pytest.fixture
def shapes_3d(tmp_path):
    """400 random rows; the values of each factor are those of the authors."""
    random = np.random.default_rng(0)
    numbers = np.stack([random.integers(0, len(v), 400) for v in SHAPES_3D.values()], axis=1)
    numbers[:15] = np.minimum(np.arange(15)[:, None], [len(v) - 1 for v in SHAPES_3D.values()])
    values = [v[column] for v, column in zip(SHAPES_3D.values(), numbers.T, strict=True)]
    images = random.integers(0, 256, (400, 8, 8, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(400) % 256
    images[:, 0, 0, 1] = np.arange(400) // 256
    with h5py.File(tmp_path / "3dshapes.h5", "w") as file:
        file.create_dataset("images", data=images, chunks=(50, 8, 8, 3), compression="gzip")
        file.create_dataset("labels", data=np.stack(values, axis=1))
    return tmp_path / "3dshapes.h5", images, numbers


@pytest.mark.parametrize("stream", [False, True])
def test_3d_shapes_has_its_factors(shapes_3d, stream):
    path, images, numbers = shapes_3d
    data = load_data(path, stream=stream)
    assert data.factors == Factors(tuple(SHAPES_3D), (10, 10, 10, 8, 4, 15))
    assert isinstance(data.train.raw, Rows) == stream
    assert [len(split) for split in data.splits] == [320, 40, 40]
    assert (data.is_image, str(data.train.scaling)) == (True, "x / 255")
    seen = []
    for split in data.splits:
        raw = split.raw[:]
        rows = raw[:, 0, 0, :2].astype(int) @ [1, 256]
        np.testing.assert_array_equal(raw, images[rows])
        np.testing.assert_array_equal(split.arrays["factors"][:], numbers[rows])
        seen.extend(rows)
    assert sorted(seen) == list(range(400))
    few = np.array([7, 3, 7])  # in any order, and again
    np.testing.assert_array_equal(data.train.raw[few], data.train.raw[:][few])


def test_3d_shapes_that_do_not_fit_in_memory_are_streamed(shapes_3d, monkeypatch):
    monkeypatch.setattr("vae_research.data.readers.published.fits", lambda *arguments: False)
    assert load_data(shapes_3d[0]).train.is_streamed


def test_other_hdf5_files_are_refused(tmp_path, shapes_3d, monkeypatch):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.create_dataset("pictures", data=np.zeros((3, 4, 4)))
    with pytest.raises(DataError, match=r"layout of 3D Shapes.*found pictures.*numpy.savez"):
        load_data(tmp_path / "other.h5")
    (tmp_path / "text.h5").write_text("some text")
    with pytest.raises(DataError, match=r"text.h5 cannot be read as HDF5"):
        load_data(tmp_path / "text.h5")
    with pytest.raises(DataError, match=r"absent.h5 does not exist"):
        load_data(tmp_path / "absent.h5")
    streamed = load_data(shapes_3d[0], stream=True)
    shapes_3d[0].unlink()
    with pytest.raises(DataError, match=r"cannot be read any more"):
        streamed.train.raw[:3]


def test_without_h5py_a_message_says_how_to_install_it(shapes_3d, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"3dshapes.h5 is read by h5py: pip install h5py"):
        load_data(shapes_3d[0])
