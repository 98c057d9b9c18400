"""Real kinds of image files: pixels are those of Pillow, or the file is refused by name."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from vae_research.data import DataError, load_data
from vae_research.data.readers import images

RANDOM = np.random.default_rng(0)
SMOOTH = np.clip(np.add.outer(np.arange(20) * 9, np.arange(24) * 3), 0, 255).astype(np.uint8)
GREY = Image.fromarray(SMOOTH)
RGB = Image.fromarray(np.stack([SMOOTH, SMOOTH[::-1], SMOOTH[:, ::-1]], -1))
RGBA = Image.merge("RGBA", (*RGB.split(), Image.fromarray(SMOOTH[::-1, ::-1].copy())))
DEEP = Image.fromarray(SMOOTH.astype(np.uint16) * 200 + 7)
SIZE = (20, 24)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def deep_colours() -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", 24, 20, 16, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(20 * (1 + 24 * 6)))
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def huge() -> bytes:
    """A PNG whose header claims 30 000 x 30 000 pixels."""
    content = bytearray(saved(GREY, "PNG"))
    content[16:24] = struct.pack(">II", 30_000, 30_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


ICC = RANDOM.bytes(200_000)  # more than a segment of 64 kB
PALETTE = RGB.quantize(16)
FRAMES = {"save_all": True, "append_images": [RGB.rotate(90)]}

READ = {
    "grey.png": saved(GREY, "PNG"),
    "one_bit.png": saved(GREY.convert("1"), "PNG"),
    "rgb.png": saved(RGB, "PNG"),
    "palette.png": saved(PALETTE, "PNG"),
    "deep_grey.png": saved(DEEP, "PNG"),
    "interlaced_text.png": saved(RGB, "PNG", compress_level=1, dpi=(300, 300)),
    "turned.png": saved(RGB, "PNG", exif=turned(6)),
    "grey.jpg": saved(GREY, "JPEG"),
    "rgb.jpg": saved(RGB, "JPEG", quality=70),
    "no_subsampling.jpg": saved(RGB, "JPEG", subsampling=0, quality=95),
    "progressive.jpg": saved(RGB, "JPEG", progressive=True),
    "large_icc.jpg": saved(RGB, "JPEG", icc_profile=ICC),
    "large_comment.jpg": saved(RGB, "JPEG", comment=RANDOM.bytes(60_000)),
    **{f"turned_{n}.jpg": saved(RGB, "JPEG", exif=turned(n)) for n in range(1, 9)},
    "pair.jpg": saved(RGB, "MPO", **FRAMES),
    "rgb.bmp": saved(RGB, "BMP"),
    "grey.bmp": saved(GREY, "BMP"),
    "palette.bmp": saved(PALETTE, "BMP"),
    "lossy.webp": saved(RGB, "WEBP"),
    "lossless.webp": saved(RGB, "WEBP", lossless=True),
}
TRANSPARENT = {
    "rgba.png": saved(RGBA, "PNG"),
    "la.png": saved(RGBA.convert("LA"), "PNG"),
    "palette.png": saved(PALETTE, "PNG", transparency=bytes(range(0, 256, 16))),
    "trns_grey.png": saved(GREY, "PNG", transparency=int(SMOOTH[3, 4])),
    "trns_rgb.png": saved(RGB, "PNG", transparency=RGB.getpixel((4, 3))),
    "rgba.webp": saved(RGBA, "WEBP", lossless=True),
    "turned.png": saved(RGBA, "PNG", exif=turned(6)),
}
REFUSED = {
    "cmyk.jpg": (saved(RGB.convert("CMYK"), "JPEG"), "has CMYK pixels"),
    "deep_rgb.png": (deep_colours(), "has 16 bits a channel"),
    "deep_trns.png": (saved(DEEP, "PNG", transparency=7), "has 16 bits a channel"),
    "animated.png": (saved(RGB, "PNG", **FRAMES), "is an animation"),
    "animated.webp": (saved(RGB, "WEBP", **FRAMES), "is an animation"),
    "gif.png": (saved(PALETTE, "GIF"), "is not a PNG, JPEG, BMP or WebP"),
    "tiff.png": (saved(RGB, "TIFF"), "is not a PNG, JPEG, BMP or WebP"),
    "text.png": (b"some text", "is not a PNG, JPEG, BMP or WebP"),
    "nothing.png": (b"", "is empty"),
    "truncated.png": (READ["rgb.png"][:-30], "cannot be decoded"),
    "cut_checksum.png": (READ["rgb.png"][:-20], "cannot be decoded"),
    "flipped_checksum.png": (READ["rgb.png"][:-14] + b"\0\0" + READ["rgb.png"][-12:], "cannot be"),
    "truncated.jpg": (READ["rgb.jpg"][:-60], "cannot be decoded"),
    "truncated.bmp": (READ["rgb.bmp"][:-60], "cannot be decoded"),
    "truncated.webp": (READ["lossless.webp"][:-60], ""),
    "flipped_bit.png": (READ["rgb.png"].replace(b"IDAT", b"IDAT\x01", 1), "cannot be decoded"),
    "huge.png": (huge(), "decompression bomb"),
}


def read(path, background=None) -> np.ndarray:
    """Header and pixels, as a folder reads them."""
    found = images.header(path)
    channels = 1 if "grey" in found.kind else 3
    return images.decoded(path, (found.height, found.width), channels, background)


@pytest.mark.parametrize("name", READ)
def test_pixels_are_those_of_pillow(name, tmp_path):
    (tmp_path / name).write_bytes(READ[name])
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(READ[name])))
    if expected.mode in ("P", "1"):
        expected = expected.convert("RGB" if expected.mode == "P" else "L")
    values = read(tmp_path / name)
    assert values.dtype == (np.uint16 if name.startswith("deep") else np.uint8)
    np.testing.assert_array_equal(values.squeeze(), np.asarray(expected))


@pytest.mark.parametrize("background", ["white", "#203040"])
@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparency_is_refused_or_laid_on_a_background(name, background, tmp_path):
    path = tmp_path / name
    path.write_bytes(TRANSPARENT[name])
    with pytest.raises(DataError, match=rf"{name} is .*transparency; .*--background"):
        images.decoded(path, SIZE, 3)
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    *colours, alpha = np.moveaxis(np.asarray(image).astype(float), -1, 0)
    behind = images.colour(background)
    values = images.decoded(path, image.size[::-1], 3, background)
    for channel, (front, back) in enumerate(zip(colours, behind, strict=True)):
        exact = (front * alpha + back * (255 - alpha)) / 255
        np.testing.assert_allclose(values[..., channel], exact, atol=1)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_converted_is_refused_by_name(name, tmp_path):
    content, words = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_random_damage_never_escapes_as_another_error(tmp_path):
    refused = 0
    for name, whole in READ.items():
        for _ in range(10):
            damaged = bytearray(whole)
            for place in (RANDOM.integers(min(len(whole), 100)), RANDOM.integers(len(whole))):
                damaged[place] = RANDOM.integers(256)
            (tmp_path / name).write_bytes(damaged)
            try:
                read(tmp_path / name, background="black")
            except DataError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > len(READ)


def test_exif_data_behind_the_pixels_are_not_missed(tmp_path):
    content = saved(RGB, "PNG", exif=turned(6))
    start = content.index(b"eXIf") - 4
    length = 12 + struct.unpack(">I", content[start : start + 4])[0]
    moved = content[:start] + content[start + length : -12] + content[start : start + length]
    (tmp_path / "late.png").write_bytes(moved + content[-12:])
    with pytest.raises(DataError, match=r"late\.png has EXIF data behind its pixels"):
        read(tmp_path / "late.png")


def test_smaller_pixels_are_means_of_their_area(tmp_path):
    (tmp_path / "grey.png").write_bytes(READ["grey.png"])
    (tmp_path / "deep.png").write_bytes(READ["deep_grey.png"])
    means = SMOOTH.reshape(5, 4, 6, 4).mean(axis=(1, 3))
    small = images.decoded(tmp_path / "grey.png", (5, 6), 1)[..., 0]
    np.testing.assert_allclose(small, means, atol=1)  # Pillow rounds after each axis
    deep = images.decoded(tmp_path / "deep.png", (5, 6), 1)[..., 0]
    np.testing.assert_allclose(deep, means * 200 + 7, atol=0.51)


def test_a_folder_of_16_bits_keeps_them(tmp_path):
    for number in range(4):
        deep = Image.fromarray(SMOOTH.astype(np.uint16) * 10 + number)
        (tmp_path / f"{number}.png").write_bytes(saved(deep, "PNG"))
    data = load_data(tmp_path)
    assert data.train.raw.dtype == np.uint16
    assert data.train.raw[0].max() == 2400
    (tmp_path / "5.png").write_bytes(READ["grey.png"])
    with pytest.raises(DataError, match=r"4 16-bit grey, 1 grey images, .*0\.png"):
        load_data(tmp_path)


def test_a_folder_with_transparent_images(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(READ["rgb.png"])
    (tmp_path / "clear.png").write_bytes(TRANSPARENT["rgba.png"])
    with pytest.raises(DataError, match=r"clear\.png is RGB with transparency; .*--background"):
        load_data(tmp_path)
    assert load_data(tmp_path, background="white").shape == (20, 24, 3)
    with pytest.raises(DataError, match="--background=blau"):
        load_data(tmp_path, background="blau")


def test_the_order_of_parallel_decoding_is_that_of_the_names(tmp_path, monkeypatch):
    monkeypatch.setattr("vae_research.data.readers.folders._SUBMITTED_AT_ONCE", 7)
    for number in range(30):
        side = 400 if number % 3 == 0 else 4  # large ones take longer
        picture = Image.new("L", (side, side), number)
        (tmp_path / f"{number:02d}.png").write_bytes(saved(picture, "PNG"))
    data = load_data(tmp_path, image_size=4)
    assert sorted(split_means := [int(row.mean()) for row in data.train.raw]) == split_means


def test_importing_images_needs_no_tensorflow(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(READ["rgb.jpg"])
    program = (
        "import sys; from vae_research.data import load_data; load_data(sys.argv[1]); "
        "print([name for name in ('tensorflow', 'keras') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout == "[]\n"
