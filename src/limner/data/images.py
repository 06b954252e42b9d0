"""From any picture to the pixels of an encoder: safe decoding, then exactly what the stock processors compute.

`load_image` makes one RGB picture of whatever it is given, and refuses what could hurt (a header that promises
3.6 billion pixels, a file cut off in the middle) before or while it decodes, in one sentence. `PixelSettings` is
the resize, crop and normalisation of an encoder's own processor, read from its configuration.
"""

from __future__ import annotations

import io
import stat
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 89_478_485
"""Larger pictures are refused from their header. Pillow's own warning limit: decoded, this many take 256 MB."""
MAX_BYTES = 256 * 2**20
"""Larger files are not read."""
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif", ".mpo"}
)
"""File names that a folder scan takes for pictures (compared in lower case)."""
UNREAD = frozenset({".heic", ".heif", ".jxl"})
"""Of pictures that are not read here: a folder scan leaves them out, and says so."""

# Nothing else is tried: Pillow also reads PostScript (by running Ghostscript) and many formats nobody captions.
# Multi-picture JPEGs (MPO) come through JPEG.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "AVIF")

# EXIF orientation -> the operation that turns the stored picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What a file that is no picture turns out to be, by its first bytes.
_IMPOSTORS = (
    (b"<svg", "an SVG drawing"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"version https://git-lfs", "a Git LFS pointer (fetch the real file with `git lfs pull`)"),
    (b"%pdf", "a PDF document"),
    (b"ftypheic", "a HEIC photo (convert it to JPEG)"),
    (b"ftypheix", "a HEIC photo (convert it to JPEG)"),
    (b"ftypmif1", "a HEIF photo (convert it to JPEG)"),
    (b"jxl \r\n", "a JPEG XL picture (convert it to JPEG)"),
    (b"<?xml", "an XML document"),
)


@runtime_checkable
class StoredImage(Protocol):
    """A picture's encoded bytes somewhere else: in a tar shard, in an Arrow table. Small and picklable."""

    @property
    def name(self) -> str: ...

    def read(self) -> bytes: ...


ImageSource = str | Path | bytes | Image.Image | np.ndarray | StoredImage


def load_image(
    source: ImageSource, draft_size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decodes a picture into 8-bit RGB, upright.

    EXIF orientation is applied, transparency is laid over white, 16-bit greys are scaled (not clipped), palettes
    and CMYK are converted; of an animation the first frame is taken.

    Args:
        source: a path, encoded bytes, a stored picture, a PIL image, or an array (H, W, 3) uint8.
        draft_size: (height, width). A JPEG may then be decoded at 1/2, 1/4 or 1/8 of its size, much faster, but
            never smaller than this on either side. Not bit-equal to the full decoding.
        max_pixels: the limit that the header is held against before anything is decoded.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a picture, damaged, or too large; the message names it and says what to do.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        name, image = "the picture", source
    else:
        name = image_name(source)
        image = _open(image_bytes(source), name)
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(
            f"{name} has {width:,} x {height:,} pixels, more than the limit of {max_pixels:,}; make it smaller."
        )
    if width * height == 0:
        raise ValueError(f"{name} has no pixels ({width} x {height}).")
    try:
        # Only of JPEGs: to ask a PNG for its orientation decodes it, and a second look finds nothing amiss.
        if draft_size is not None and image.format in ("JPEG", "MPO"):
            turned = _orientation(image) >= 5  # stored lying on its side
            image.draft("RGB", (draft_size[0], draft_size[1]) if turned else (draft_size[1], draft_size[0]))
        image.load()
        orientation = _orientation(image)  # after loading: PNG keeps it behind the pixels, TIFF has applied it
        rgb = _to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise ValueError(f"{name} cannot be decoded ({_reason(error)}); replace or remove it.") from error
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def image_bytes(source: str | Path | bytes | StoredImage) -> bytes:
    """The encoded bytes of a picture that is a file, in a shard, or bytes already.

    Raises:
        FileNotFoundError, ValueError: no such file; a folder or a device; empty; larger than `MAX_BYTES`.
    """
    name = image_name(source)
    if isinstance(source, str | Path):
        data = _read_file(Path(source), name)
    else:
        data = source if isinstance(source, bytes) else source.read()
    if not data:
        raise ValueError(f"{name} is empty (0 bytes); replace or remove it.")
    if len(data) > MAX_BYTES:
        raise ValueError(f"{name} has {len(data):,} bytes, more than the limit of {MAX_BYTES:,}; make it smaller.")
    return data


def image_name(source: ImageSource) -> str:
    """How messages call a picture."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, bytes | np.ndarray | Image.Image):
        return "the picture"
    return source.name


def _read_file(path: Path, name: str) -> bytes:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no file {name}.") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise ValueError(f"{name} is {kind}; a picture file was expected.")
    if status.st_size > MAX_BYTES:
        raise ValueError(
            f"{name} has {status.st_size:,} bytes, more than the limit of {MAX_BYTES:,}; make it smaller."
        )
    return path.read_bytes()


def _open(data: bytes, name: str) -> Image.Image:
    """Reads the header only."""
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        head = data[:1024].lower()
        kind = next((kind for mark, kind in _IMPOSTORS if mark in head), None)
        wanted = "JPEG, PNG, GIF, BMP, WebP, TIFF or AVIF"
        if kind is None:
            raise ValueError(f"{name} is not a picture in {wanted} format, or its header is damaged.") from error
        raise ValueError(f"{name} is {kind}, not a picture; {wanted} was expected.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} has more than {MAX_PIXELS:,} pixels; make it smaller.") from error
    except Exception as error:
        raise ValueError(
            f"{name} has a header that cannot be read ({_reason(error)}); replace or remove it."
        ) from error


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or array.size == 0:
        raise ValueError(
            f"A picture given as an array must be (height, width, 3) of uint8, got {array.shape} of {array.dtype}."
        )
    return Image.fromarray(np.ascontiguousarray(array), "RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except (SyntaxError, ValueError, TypeError, OSError, LookupError, struct.error):
        return 1  # a damaged EXIF block tells no orientation; the picture itself may be sound


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scaled_grey(image)
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _scaled_grey(image: Image.Image) -> Image.Image:
    """More than 8 bits a pixel: white is 65,535 (1.0 for fractions). Pillow's own conversion would clip at 255."""
    values = np.asarray(image).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("its pixels hold NaN or infinity")
    top = float(values.max())
    white = 1.0 if image.mode == "F" and top <= 1.0 else 65_535.0 if top <= 65_535.0 else top
    grey = np.clip(np.rint(values * (255.0 / white)), 0, 255).astype(np.uint8)
    return Image.fromarray(grey, "L").convert("RGB")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."


@dataclass(frozen=True)
class PixelSettings:
    """What an encoder's image processor does to an RGB picture, in this order: resize, crop, scale, normalise.

    `pixels` equals the stock Pillow-backed processors of transformers to 1e-6 (tests hold it against ten).
    """

    size: tuple[int, int]
    """(height, width) of the result."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rescale: float = 1 / 255
    """Grey levels are multiplied by this before mean and standard deviation."""
    resample: int = 3
    """Pillow's number of the filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic."""
    resize: Literal["stretch", "shortest_edge", "pad", "none"] = "stretch"
    """stretch: to `size`, the aspect ratio is lost. shortest_edge: the short side to `edge`, then the centre is cut
    out. pad: the mean colour makes it square first. none: only the centre is cut out."""
    edge: int | None = None
    """The short side's length under shortest_edge."""
    bgr: bool = False
    """Blue comes first and red last, as MobileViT wants it."""

    def __post_init__(self) -> None:
        if (self.resize == "shortest_edge") != (self.edge is not None):
            raise ValueError("PixelSettings.edge goes with resize='shortest_edge', and only with it.")
        if min(self.size) < 1 or min(self.std) <= 0:
            raise ValueError(f"PixelSettings needs a positive size and std, got {self.size} and {self.std}.")

    @classmethod
    def from_processor_config(cls, config: dict[str, Any]) -> PixelSettings:
        """Reads a preprocessor_config.json (or the nested form of processor_config.json).

        The stock class itself fills in what an old file leaves out.

        Raises:
            ValueError: a processor that makes anything but one picture of fixed size.
        """
        from limner.data.processors import settings_of_processor

        return settings_of_processor(config)

    @property
    def draft_size(self) -> tuple[int, int]:
        """What to ask `load_image` for: decoding no smaller than this never enlarges a picture that is larger."""
        return (self.edge, self.edge) if self.edge is not None else self.size

    def array(self, image: Image.Image) -> np.ndarray:
        """The resized, cropped picture: (H, W, 3) uint8, before scaling and normalisation."""
        height, width = self.size
        if self.resize == "shortest_edge":
            image = self._to_edge(image)
        elif self.resize != "none":
            square = self._padded(image) if self.resize == "pad" else image
            image = square.resize((width, height), resample=self.resample)
        if image.size != (width, height):  # a crop beyond the border fills with black, as the stock one does
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        return np.array(image)[..., ::-1].copy() if self.bgr else np.array(image)

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """(3, H, W) float32: what the encoder takes."""
        return self.normalize(torch.from_numpy(self.array(image)))

    def normalize(self, array: torch.Tensor) -> torch.Tensor:
        """(..., H, W, 3) uint8 -> (..., 3, H, W) float32. A look-up: each of 256 levels is computed once."""
        if array.device.type == "cpu":  # numpy's take is eight times faster than indexing
            table, levels = self._table.numpy(), array.numpy()
            return torch.from_numpy(np.stack([table[c].take(levels[..., c]) for c in range(3)], axis=-3))
        channels = torch.arange(3, device=array.device)[:, None, None]
        return self._table.to(array.device)[channels, array.movedim(-1, -3).long()]

    @cached_property
    def _table(self) -> torch.Tensor:
        # In the stock order and number formats (double product, then single), so that results are equal to the bit.
        levels = (np.arange(256, dtype=np.float64) * self.rescale).astype(np.float32)
        mean, std = (np.array(v, dtype=np.float32)[:, None] for v in (self.mean, self.std))
        return torch.from_numpy((levels[None, :] - mean) / std)  # (3, 256)

    def _to_edge(self, image: Image.Image) -> Image.Image:
        assert self.edge is not None
        short, long = sorted(image.size)
        # A strip of 20,000 x 1 would become a gigapixel: only the middle survives the crop, so cut that out first.
        reach = 16 * short * max(1, max(self.size) // self.edge)
        if long > reach:
            left, top = max(0, image.width - reach) // 2, max(0, image.height - reach) // 2
            image = image.crop((left, top, image.width - left, image.height - top))
            short, long = sorted(image.size)
        scaled = int(self.edge * long / short)
        wide = image.width > image.height
        return image.resize((scaled, self.edge) if wide else (self.edge, scaled), resample=self.resample)

    def _padded(self, image: Image.Image) -> Image.Image:
        side = max(image.size)
        red, green, blue = (int(level * 255) for level in self.mean)
        square = Image.new("RGB", (side, side), (red, green, blue))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square
