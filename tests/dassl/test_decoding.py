"""Images of every kind are read as PIL converts them to RGB; unreadable files raise one clear error."""

from __future__ import annotations

import errno
import re
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dassl.utils import UnreadableImageError, UserError, read_image

RNG = np.random.default_rng(0)
COLOURS = Image.fromarray(RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8))
PALETTE = COLOURS.quantize(16)
FRAMES = [Image.fromarray(RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)) for _ in range(3)]
ROTATED = Image.Exif()
ROTATED[0x0112] = 6  # the EXIF orientation "turn by 90 degrees", which PIL's conversion ignores

KINDS = {
    "RGB": ("png", COLOURS, {}),
    "RGB with a transparent colour": ("png", COLOURS, {"transparency": (1, 2, 3)}),
    "RGBA": ("png", Image.fromarray(RNG.integers(0, 256, (12, 10, 4), dtype=np.uint8)), {}),
    "L with a transparent grey": ("png", COLOURS.convert("L"), {"transparency": 7}),
    "16 bits": ("png", Image.fromarray(RNG.integers(0, 2**16, (12, 10), dtype=np.uint16)), {}),
    "F": ("tiff", Image.fromarray(RNG.random((12, 10), dtype=np.float32) * 300), {}),
    "P with a transparent colour": ("png", PALETTE, {"transparency": 3}),
    "P with degrees of transparency": ("png", PALETTE, {"transparency": bytes(range(0, 160, 10))}),
    "CMYK": ("jpg", COLOURS.convert("CMYK"), {}),
    "turned by EXIF": ("jpg", COLOURS, {"exif": ROTATED}),
    "animated": ("png", FRAMES[0], {"save_all": True, "append_images": FRAMES[1:], "duration": 50}),
}


def convert_with_pil(path: Path) -> Image.Image:
    """Return the image as PIL converts it to RGB."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(path).convert("RGB")


def assert_reads_as_pil(path: Path) -> None:
    """Assert that ``read_image`` returns the pixels of :func:`convert_with_pil`."""
    picture, expected = read_image(path), convert_with_pil(path)
    assert (picture.mode, picture.size) == ("RGB", expected.size)
    assert np.array_equal(np.asarray(picture), np.asarray(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_decodes_as_pil_converts_it(tmp_path, kind):
    suffix, picture, options = KINDS[kind]
    path = tmp_path / f"picture.{suffix}"
    picture.save(path, **options)
    assert_reads_as_pil(path)
    assert len(np.unique(np.asarray(read_image(path)))) > 1  # not blank


def test_reading_a_palette_image_with_transparency_warns_of_nothing(tmp_path):
    PALETTE.save(tmp_path / "picture.png", transparency=bytes(range(16)))
    with warnings.catch_warnings(record=True) as caught_warnings:
        warnings.simplefilter("always")
        for _ in range(3):
            read_image(tmp_path / "picture.png")
        assert caught_warnings == []
        Image.open(tmp_path / "picture.png").convert("RGB")
        assert "Transparency" in str(caught_warnings[0].message)  # PIL itself warns


def make_content(suffix: str) -> bytes:
    """Return the content of an image file of noise."""
    file = BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, suffix)
    return file.getvalue()


@pytest.mark.parametrize("suffix", ["png", "jpeg", "gif", "webp"])
@pytest.mark.parametrize("fraction", [0, 0.5, 0.9])
def test_a_truncated_file_is_refused_by_name_where_pil_refuses_it(tmp_path, suffix, fraction):
    path, content = tmp_path / f"cut.{suffix}", make_content(suffix)
    path.write_bytes(content[: int(fraction * len(content))])
    try:
        convert_with_pil(path)
    except Exception:
        with pytest.raises(UnreadableImageError, match=f"cannot read {re.escape(str(path))} as an image: .+"):
            read_image(path)
    else:
        assert_reads_as_pil(path)


def test_any_damage_raises_unreadable_image_error(tmp_path):
    """PIL raises errors of many classes, such as NotImplementedError for a damaged DDS file."""
    errors, path = [], tmp_path / "damaged"
    rng = np.random.default_rng(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for suffix in ("png", "jpeg", "gif", "webp", "tiff", "ico", "ppm", "dds"):
            content = np.frombuffer(make_content(suffix), np.uint8)
            for _ in range(20):
                damaged = content.copy()
                damaged[rng.integers(0, min(len(content), 200), 4)] = rng.integers(0, 256, 4)
                path.write_bytes(damaged.tobytes())
                try:
                    read_image(path)
                except UnreadableImageError as error:
                    errors.append(error)
    assert len(errors) > 20
    assert all(str(error).startswith(f"cannot read {path} as an image: ") for error in errors)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError("Input/output error")])
def test_errors_of_the_disk_or_the_memory_make_an_image_unreadable_too(monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(UnreadableImageError) as caught:
        read_image("a.png")
    assert (caught.value.path, caught.value.reason) == ("a.png", "Input/output error")
    assert str(caught.value) == "cannot read a.png as an image: Input/output error"


def test_an_absent_file_or_a_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"absent.png as an image: No such file or directory"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(UnreadableImageError, match=re.escape(f"cannot read {tmp_path} as an image: ")):
        read_image(tmp_path)


def test_a_decompression_bomb_is_refused_with_its_size_and_pils_limit(tmp_path):
    path = tmp_path / "bomb.png"
    limit = Image.MAX_IMAGE_PIXELS
    side = int((2 * limit) ** 0.5) + 1
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + b"\x01\x00\x00\x00\x00"  # a bit a pixel
    chunk = b"\0\0\0\x0d" + header + zlib.crc32(header).to_bytes(4, "big")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\1IDAT")
    with pytest.raises(UnreadableImageError) as caught:
        read_image(path)
    for text in (path, f"{side * side:,} pixels", f"{2 * limit:,} at most", "scale it down"):
        assert str(text) in str(caught.value)
    assert limit == Image.MAX_IMAGE_PIXELS
