"""Any picture becomes upright 8-bit RGB or one clear sentence; pixels equal the stock processors'."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limner.data.images import MAX_PIXELS, PixelSettings, load_image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photo(real_data: Path) -> Image.Image:
    return load_image(real_data / "nasty" / "sugarshack.mpo")  # 640 x 480, the first of two pictures


REFUSED = {
    "bomb_1bit_60000x60000.png": "pixels; make it smaller",
    "decompression_bomb.gif": "pixels; make it smaller",
    "png_huge_iccp_60MB.png": "Decompressed data too large",
    "broken_data_stream.png": "cannot be decoded",
    "jpeg_half.jpg": "truncated",
    "truncated_jpeg.jpg": "truncated",
    "html_named.jpg": "is a web page, not a picture",
    "svg_named.jpg": "is an SVG drawing, not a picture",
    "zero_bytes.jpg": "is empty (0 bytes)",
    "PILLOW-LICENSE": "is not a picture",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_hurt_is_refused_in_one_sentence(real_data: Path, name: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_image(real_data / "nasty" / name)
    assert name in str(caught.value)
    assert REFUSED[name] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_everything_else_in_the_nasty_folder_becomes_rgb(real_data: Path) -> None:
    sizes = {
        path.name: load_image(path).size for path in (real_data / "nasty").iterdir() if path.name not in REFUSED
    }
    assert sizes == {
        "anim3_red_lime_blue.gif": (64, 48),
        "avif_hopper.avif": (128, 128),
        "cmyk.jpg": (192, 256),
        "exif_orientation_3.jpg": (96, 64),
        "exif_orientation_6.jpg": (96, 64),
        "gray16.png": (128, 96),
        "hopper.webp": (128, 128),
        "hopper_orientation_5.jpg": (128, 128),
        "name with space & ünïcode 图.jpg": (192, 256),
        "palette_transparent.png": (192, 256),
        "rgba_half_transparent.png": (192, 256),
        "sugarshack.mpo": (640, 480),
        "wide_20000x1.png": (20000, 1),
    }
    assert all(load_image(real_data / "nasty" / name).mode == "RGB" for name in sizes)


def test_the_first_frame_of_an_animation_is_taken(real_data: Path) -> None:
    assert load_image(real_data / "nasty" / "anim3_red_lime_blue.gif").getpixel((10, 10)) == (255, 0, 0)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_pixel_limit_is_decided_from_the_header() -> None:
    side = int(MAX_PIXELS**0.5) + 1
    picture = bytearray(encoded(Image.new("1", (8, 8)), "PNG"))
    picture[16:24] = side.to_bytes(4, "big") * 2  # the header promises, the data does not follow
    picture[29:33] = zlib.crc32(bytes(picture[12:29])).to_bytes(4, "big")
    with pytest.raises(ValueError, match=f"the picture has {side:,} x {side:,} pixels, more than the limit"):
        load_image(bytes(picture))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_come_upright(orientation: int) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12] = (255, 0, 0)
    upright[8:, 12:] = (0, 0, 255)
    stored = {  # the inverse of what EXIF says to do
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright.transpose(1, 0, 2), 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
        assert np.array_equal(np.array(load_image(data)), upright), kind


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_leaves_the_picture_as_stored() -> None:
    data = encoded(Image.new("RGB", (8, 4), "red"), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert load_image(data).size == (8, 4)


def test_transparency_is_laid_over_white() -> None:
    half_red = Image.new("RGBA", (2, 2), (255, 0, 0, 128))
    assert load_image(encoded(half_red, "PNG")).getpixel((0, 0)) == (255, 127, 127)
    for mode, clear in (("RGBA", (0, 0, 0, 0)), ("LA", (0, 0))):
        assert load_image(encoded(Image.new(mode, (2, 2), clear), "PNG")).getpixel((1, 1)) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert load_image(encoded(palette, "PNG", transparency=1)).getpixel((0, 0)) == (255, 255, 255)
    keyed = encoded(Image.new("RGB", (2, 2), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert load_image(keyed).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        assert np.array(load_image(encoded(Image.fromarray(ramp), kind)))[0, :, 0].tolist() == [0, 1, 128, 255]
    fractions = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert np.array(load_image(encoded(fractions, "TIFF")))[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(ValueError, match="NaN"):
        load_image(encoded(Image.fromarray(np.array([[np.nan]], dtype=np.float32)), "TIFF"))


def test_cmyk_is_not_a_negative(real_data: Path) -> None:
    """Adobe stores CMYK inverted; the same photo lies beside it as plain RGB."""
    cmyk = np.array(load_image(real_data / "nasty" / "cmyk.jpg"), dtype=float)
    plain = np.array(load_image(real_data / "nasty" / "name with space & ünïcode 图.jpg"), dtype=float)
    assert np.abs(cmyk - plain).mean() < 12
    assert np.abs((255 - cmyk) - plain).mean() > 40


def test_arrays_are_checked() -> None:
    array = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    assert np.array_equal(np.array(load_image(array)), array)
    for wrong in (array[..., 0], array.astype(np.float32), array[:0], np.zeros((3, 4, 5), np.uint8)):
        with pytest.raises(ValueError, match="must be \\(height, width, 3\\) of uint8"):
            load_image(wrong)


def test_missing_files_folders_and_pointers(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no file .*gone\.jpg"):
        load_image(tmp_path / "gone.jpg")
    with pytest.raises(ValueError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(ValueError, match="Git LFS pointer"):
        load_image(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match="not a regular file"):
        load_image("/dev/zero")


def test_draft_decoding_is_smaller_never_too_small_and_near(photo: Image.Image) -> None:
    big = photo.resize((1800, 1350))
    data = encoded(big, "JPEG", quality=95)
    drafted = load_image(data, draft_size=(224, 224))
    assert drafted.size == (450, 338)  # a quarter; an eighth would be 225 x 169
    settings = PixelSettings((224, 224))
    full, fast = (settings.array(image).astype(float) for image in (load_image(data), drafted))
    assert np.abs(full - fast).mean() < 2  # of 255
    lying = Image.Exif()
    lying[0x0112] = 6
    turned = encoded(big, "JPEG", exif=lying)
    assert load_image(turned, draft_size=(450, 337)).size == (338, 450)


@pytest.mark.filterwarnings("ignore")
def test_damage_anywhere_gives_a_picture_or_a_sentence() -> None:
    """Some thousand files with flipped and cut bytes: nothing but ValueError comes out, and nothing hangs."""
    picture = Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 50).convert("RGB")
    kinds = [(kind, {}) for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF")]
    files = [encoded(picture, kind, **options) for kind, options in [*kinds, ("JPEG", {"progressive": True})]]
    rng = np.random.default_rng(0)
    outcomes = {"picture": 0, "sentence": 0}
    for number in range(1600):
        data = bytearray(files[number % len(files)])
        for place in rng.integers(0, min(len(data), 400 if number % 3 else len(data)), rng.integers(1, 12)):
            data[place] = rng.integers(0, 256)
        if number % 5 == 0:
            data = data[: rng.integers(1, len(data))]
        try:
            assert load_image(bytes(data)).mode == "RGB"
            outcomes["picture"] += 1
        except ValueError as error:
            assert "\n" not in str(error)
            outcomes["sentence"] += 1
    assert min(outcomes.values()) > 200


STOCK = [
    ("SiglipImageProcessor", {}),
    ("SiglipImageProcessor", {"size": {"height": 384, "width": 320}, "resample": 2}),
    ("CLIPImageProcessor", {}),
    ("CLIPImageProcessor", {"size": 336, "crop_size": 336}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 100}, "crop_size": {"height": 120, "width": 90}}),
    ("ViTImageProcessor", {}),
    ("ViTImageProcessor", {"do_rescale": False, "do_normalize": False}),
    ("MobileNetV2ImageProcessor", {}),
    ("BitImageProcessor", {"size": {"shortest_edge": 256}}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}}),
    ("ConvNextImageProcessor", {}),
    ("EfficientNetImageProcessor", {"rescale_offset": True}),
    ("EfficientNetImageProcessor", {"include_top": False}),
    ("LevitImageProcessor", {}),
    ("MobileViTImageProcessor", {}),
    ("PoolFormerImageProcessor", {}),
    ("LlavaImageProcessor", {"do_pad": True, "size": {"height": 96, "width": 96}, "do_center_crop": False}),
]


@pytest.mark.parametrize(("name", "config"), STOCK)
def test_pixels_equal_the_stock_processor(real_data: Path, photo: Image.Image, name: str, config: dict) -> None:
    import transformers

    processor = getattr(transformers, name + "Pil")(**config)
    settings = PixelSettings.from_processor_config(processor.to_dict())
    assert PixelSettings.from_processor_config({"image_processor_type": name, **config}) == settings
    small = load_image(real_data / "nasty" / "exif_orientation_3.jpg")
    for image in (photo, photo.transpose(Image.Transpose.ROTATE_90), small):
        expected = processor(images=image, return_tensors="pt")["pixel_values"][0].float()
        pixels = settings.pixels(image)
        assert pixels.shape == (3, *settings.size)
        assert pixels.dtype == torch.float32
        assert (pixels - expected).abs().max() < 1e-6


def test_the_shipped_mobilenet_configuration(real_data: Path, photo: Image.Image) -> None:
    import json

    from transformers import MobileNetV2ImageProcessorPil

    config = json.loads((real_data / "models/mobilenet-v2-0.35-224/preprocessor_config.json").read_text())
    settings = PixelSettings.from_processor_config(config)
    assert (settings.size, settings.resize, settings.resample) == ((224, 224), "stretch", 2)
    expected = MobileNetV2ImageProcessorPil(**config)(images=photo, return_tensors="pt")["pixel_values"][0]
    assert (settings.pixels(photo) - expected).abs().max() < 1e-6


def test_a_strip_does_not_become_a_gigapixel(real_data: Path) -> None:
    strip = load_image(real_data / "nasty" / "wide_20000x1.png")
    for name in ("CLIPImageProcessor", "SiglipImageProcessor"):
        settings = PixelSettings.from_processor_config({"image_processor_type": name})
        assert settings.pixels(strip).shape == (3, 224, 224)


def test_processors_of_varying_size_are_refused() -> None:
    with pytest.raises(ValueError, match="fixed size"):
        PixelSettings.from_processor_config({"image_processor_type": "Siglip2ImageProcessor"})
    with pytest.raises(ValueError, match="varying size"):
        PixelSettings.from_processor_config({"image_processor_type": "CLIPImageProcessor", "do_center_crop": False})
    with pytest.raises(ValueError, match="not known"):
        PixelSettings.from_processor_config({"image_processor_type": "NoSuchImageProcessor"})


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DonutImageProcessor", {}),
        ("NougatImageProcessor", {}),
        ("GLPNImageProcessor", {}),
        ("BridgeTowerImageProcessor", {}),
        ("Pix2StructImageProcessor", {}),
        ("Kosmos2_5ImageProcessor", {}),
        ("ZoeDepthImageProcessor", {"size": {"height": 40, "width": 40}}),
        ("SmolVLMImageProcessor", {"size": {"height": 40, "width": 40}}),
        ("TextNetImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": 32, "do_center_crop": True}),
    ],
)
def test_processors_that_do_more_are_refused_in_a_sentence(name: str, config: dict) -> None:
    with pytest.raises(ValueError, match=name):
        PixelSettings.from_processor_config({"image_processor_type": name, **config})


@pytest.mark.parametrize("draft", [None, (8, 8)])
def test_a_damaged_png_is_found_whatever_size_is_asked_for(tmp_path: Path, draft: tuple[int, int] | None) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ValueError, match="cannot be decoded"):
        load_image(bytes(data), draft)
