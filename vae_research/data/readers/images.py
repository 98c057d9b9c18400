"""One image file: what its header says, and its pixels. Pillow decodes; TensorFlow is not needed.

PNG, JPEG, BMP and WebP, whatever the name says. Pixels are those of Pillow: JPEG by the accurate
method of libjpeg, turned as EXIF says. Whatever would lose something in silence is refused by name:
transparency without a background, animations, CMYK, and colours of 16 bits a channel.
"""

import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageColor, ImageFile, ImageOps

from vae_research.data.checks import DataError
from vae_research.data.readers.file_checks import reason

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

_LARGEST_SIDE = 2**15
_KINDS = {"1": "grey", "L": "grey", "LA": "grey", "RGB": "RGB", "RGBA": "RGB", "P": "palette"}
_DEEP_GREY = ("I;16", "I;16B", "I;16L", "I")
# Values of EXIF's orientation that exchange height and width.
_LYING = (5, 6, 7, 8)


class Header(NamedTuple):
    """What the header of an image says, without its pixels.

    Attributes:
        height, width: in pixels, after the turn that EXIF asks for.
        kind: "grey", "RGB", "palette" or "16-bit grey".
        transparent: whether it has an alpha channel or a transparent colour.
    """

    height: int
    width: int
    kind: str
    transparent: bool


def header(path: Path) -> Header:
    """Size and kind of an image.

    Raises:
        DataError: no PNG, JPEG, BMP or WebP, a damaged one, a decompression bomb, or one that is
            not converted: an animation, CMYK, 16-bit colours.
    """
    with _opened(path) as image:
        return _header_of(image, path)


def decoded(
    path: Path, size: tuple[int, int], channels: int, background: str | None = None
) -> np.ndarray:
    """The pixels of an image, `[height, width, channels]`: uint16 if it is 16-bit grey, else uint8.

    Args:
        path: of the file.
        size: height and width in pixels. If the image has others, each new pixel is the mean of the
            area that it covers (`Resampling.BOX`).
        channels: 1 for grey (ITU-R 601 luma of a colour image) or 3 for RGB.
        background: colour behind a transparent image, see `colour`; None refuses it.

    Raises:
        DataError: as `header`, or the pixels are truncated or damaged.
    """
    with _opened(path) as image:
        found = _header_of(image, path)
        refuse_transparent(path, found, background)
        if found.kind == "16-bit grey" and channels != 1:
            raise DataError(f"{path} has 16 bits a pixel, which become no colours; --channels=1")
        exif = image.info.get("exif")
        try:
            if image.format == "PNG":  # decoding skips its checksums; only they reveal all damage
                with _opened(path) as checked:
                    checked.verify()
            image.load()
            is_behind = image.info.get("exif") != exif
            ImageOps.exif_transpose(image, in_place=True)
        except Exception as error:  # damaged bytes make decoders raise whatever they come upon
            raise DataError(f"{path} cannot be decoded, {reason(error)}") from error
        if is_behind:
            raise DataError(f"{path} has EXIF data behind its pixels; save it again")
    upright: Image.Image = image
    if background is not None and found.transparent:
        opaque = Image.new("RGBA", upright.size, (*colour(background), 255))
        upright = Image.alpha_composite(opaque, upright.convert("RGBA"))
    if found.kind == "16-bit grey":
        upright = upright.convert("F")  # exact; Pillow resizes no integers of 16 bits
    else:
        # A palette of one bit would be converted by dithering, RGB would not.
        upright = upright.convert("RGB") if upright.mode not in ("1", "L", "RGB") else upright
        wanted = "L" if channels == 1 else "RGB"
        upright = upright.convert(wanted) if upright.mode != wanted else upright
    height, width = size
    if upright.size != (width, height):
        upright = upright.resize((width, height), Image.Resampling.BOX)
    dtype = np.uint16 if found.kind == "16-bit grey" else np.uint8
    values = np.asarray(upright)
    values = np.rint(values) if values.dtype.kind == "f" else values
    return values.astype(dtype).reshape(height, width, channels)


def colour(name: str) -> tuple[int, int, int]:
    """Red, green and blue of a colour, 0 to 255: "white", "black", "#rrggbb", as Pillow reads it.

    Raises:
        ValueError: there is no such colour.
    """
    return ImageColor.getrgb(name)[:3]


def refuse_transparent(path: Path, found: Header, background: str | None) -> None:
    """Raises DataError if an image needs a background and there is none."""
    if found.transparent and background is None:
        raise DataError(
            f"{path} is {found.kind} with transparency; give the colour behind it, "
            "--background=white, black or #rrggbb"
        )


def _opened(path: Path) -> ImageFile.ImageFile:
    """The image whose pixels are not read yet."""
    try:
        status = path.lstat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is not a regular file")
    if status.st_size == 0:
        raise DataError(f"{path} is empty")
    try:
        return Image.open(path, formats=FORMATS)
    except Image.UnidentifiedImageError:
        with path.open("rb") as stream:
            start = stream.read(4)
        raise DataError(
            f"{path} is not a PNG, JPEG, BMP or WebP image, or its header is damaged; it begins "
            f"with {start!r}"
        ) from None
    except Exception as error:  # damaged bytes make decoders raise whatever they come upon
        raise DataError(f"{path} cannot be decoded, {reason(error)}") from error


def _header_of(image: ImageFile.ImageFile, path: Path) -> Header:
    # A pair of photographs in one JPEG (MPO) has a main picture; an animation has none.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise DataError(f"{path} is an animation; give its pictures one by one")
    # The mode of 16-bit colours is one of 8 bits; only the raw mode tells.
    raw_mode = str(image.tile[0].args) if image.tile else ""
    transparent = image.has_transparency_data
    if image.mode in _DEEP_GREY and not transparent:
        kind = "16-bit grey"
    elif ";16" in raw_mode or image.mode in _DEEP_GREY:
        raise DataError(f"{path} has 16 bits a channel, of which 8 would be lost; convert it first")
    elif image.mode not in _KINDS:
        raise DataError(f"{path} has {image.mode} pixels; convert it to grey or RGB first")
    else:
        kind = _KINDS[image.mode]
    if not (0 < image.height <= _LARGEST_SIDE and 0 < image.width <= _LARGEST_SIDE):
        raise DataError(f"{path} claims to have {image.height} x {image.width} pixels")
    try:
        # The method of PNG images would decode one to search behind its pixels.
        turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation) in _LYING
    except Exception as error:
        raise DataError(f"{path} has damaged EXIF data, {reason(error)}") from error
    height, width = (image.width, image.height) if turned else (image.height, image.width)
    return Header(height, width, kind, transparent)
