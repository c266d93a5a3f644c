"""Images become RGB as in PIL, those of 16 bits scaled, turned ones upright; unreadable files raise one clear error."""

from __future__ import annotations

import errno
import re
import struct
import subprocess
import sys
import warnings
import zlib
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps

from dassl.data.decoding import ORIGINAL, count_changes, describe_changes, describe_deep_images, format_decoding
from dassl.utils import Decoding, UnreadableImageError, UserError, read_image
from dassl.utils.images import ImageHeader, find_extension, image_extensions, is_image_name, read_header

RNG = np.random.default_rng(0)
COLOURS = Image.fromarray(RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8))
PALETTE = COLOURS.quantize(16)
FRAMES = [Image.fromarray(RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)) for _ in range(3)]
ORIENTATION = 0x0112  # EXIF's tag
ROTATED = Image.Exif()
ROTATED[ORIENTATION] = 6  # the EXIF orientation "turn by 90 degrees", which PIL's conversion ignores
UPRIGHT = Decoding(orientation="exif")

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
    """Assert that ``read_image``, as in the original, returns the pixels of ``convert_with_pil``."""
    picture, expected = read_image(path, ORIGINAL), convert_with_pil(path)
    assert (picture.mode, picture.size) == ("RGB", expected.size)
    assert np.array_equal(np.asarray(picture), np.asarray(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_decodes_as_pil_converts_it(tmp_path, kind):
    suffix, picture, options = KINDS[kind]
    path = tmp_path / f"picture.{suffix}"
    picture.save(path, **options)
    assert_reads_as_pil(path)
    assert len(np.unique(np.asarray(read_image(path)))) > 1  # not blank
    if kind not in ("16 bits", "F"):
        assert np.array_equal(np.asarray(read_image(path)), np.asarray(read_image(path, ORIGINAL)))


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


# ---- more than 8 bits a channel ----


def read_grey(path: Path, white_level: int = 0) -> np.ndarray:
    """Return the grey values (height, width) of an image; its three channels must be the same."""
    pixels = np.asarray(read_image(path, Decoding(white_level)))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize(("suffix", "order"), [("png", "<"), ("tiff", "<"), ("tiff", ">"), ("jp2", "<"), ("pgm", "<")])
def test_sixteen_bits_are_scaled_to_the_nearest_of_256_levels(tmp_path, suffix, order):
    values, path = np.arange(0, 2**16, 17, dtype=np.uint16)[:3840].reshape(60, 64), tmp_path / f"scan.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 64 60 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values.astype(f"{order}u2")).save(path)
    assert read_header(path) == ImageHeader(True, False)
    expected = [round(Fraction(value * 255, 65535)) for value in values.ravel().tolist()]
    assert read_grey(path).ravel().tolist() == expected
    for white in (255, 1000, 4095, 65521):
        expected = [round(Fraction(min(value, white) * 255, white)) for value in values.ravel().tolist()]
        assert read_grey(path, white).ravel().tolist() == expected


def write_tiff(path: Path, rows: np.ndarray, bits: int, **tags: int) -> None:
    """Write an uncompressed grey TIFF with the bytes of ``rows`` (height, bytes of a row) and these further tags."""
    height, width = rows.shape[0], rows.shape[1] * 8 // bits
    numbers = {"photometric": 262, "sample_format": 339}
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 0, 277: 1, 278: height, 279: rows.nbytes}
    entries |= {numbers[name]: value for name, value in tags.items()}
    entries[273] = 8 + 2 + 12 * len(entries) + 4  # the pixels follow the list of tags
    listed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    path.write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + listed + b"\0" * 4 + rows.tobytes())


def test_tags_of_a_tiff_say_what_its_values_mean(tmp_path):
    path = tmp_path / "scan.tif"
    write_tiff(path, np.array([[0xFF, 0xF0, 0x00], [0x80, 0x04, 0x00]], np.uint8), 12)
    assert read_grey(path).tolist() == [[255, 0], [128, 64]]  # of 4,095
    write_tiff(path, np.array([[0, 30000, 65535]], "<u2").view(np.uint8), 16, photometric=0)  # 0 is white
    assert read_grey(path).tolist() == [[255, 255 - 117, 0]]
    write_tiff(path, np.array([[0, 2**31, 2**32 - 1]], "<u4").view(np.uint8), 32)
    assert read_grey(path).tolist() == [[0, 128, 255]]
    write_tiff(path, np.array([[-5, 0, 255]], "<i4").view(np.uint8), 32, sample_format=2)
    assert read_grey(path).tolist() == [[0, 0, 255]]
    write_tiff(path, np.array([[-5, 0, 200, 32767]], "<i2").view(np.uint8), 16, sample_format=2)
    assert read_grey(path).tolist() == [[0, 0, 2, 255]]
    assert "negative values become black" in describe_deep_images([str(path)], Decoding())


def write_fits(path: Path, values: np.ndarray, *cards: str) -> None:
    """Write a FITS image of big-endian values, with further ``cards`` in its header."""
    bits = values.itemsize * (-8 if values.dtype.kind == "f" else 8)
    numbers = {"BITPIX": bits, "NAXIS": 2, "NAXIS1": values.shape[1], "NAXIS2": values.shape[0]}
    listed = ["SIMPLE  =                    T", *(f"{key:8}= {number:20}" for key, number in numbers.items()), *cards]
    header = "".join(f"{card:80}" for card in (*listed, "END")).encode()
    path.write_bytes(header + b" " * (-len(header) % 2880) + values.tobytes() + b"\0" * (-values.nbytes % 2880))


def test_fits_is_read_as_its_type_says_or_refused_where_pillow_would_be_wrong(tmp_path):
    path = tmp_path / "star.fits"
    write_fits(path, np.array([[0, 128]], "u1"))
    assert read_grey(path).tolist() == [[0, 128]]
    cards = "BZERO   =                  0.0", "BSCALE  =             1"
    for values, grey in (([[0, 32767, -9]], [[0, 255, 0]]), ([[0, 0.5, 1]], [[0, 128, 255]])):
        write_fits(path, np.array(values, ">f4" if 0.5 in values[0] else ">i2"), *cards)
        if int(PIL.__version__.split(".")[0]) >= 13:
            assert read_grey(path).tolist() == grey
        else:
            with pytest.raises(UnreadableImageError, match="star.fits as an image: Pillow before 13 mixes up"):
                read_image(path)
    for card in ("BZERO   =                32768", "BSCALE  =                  0.1"):
        write_fits(path, np.array([[0, 32767]], ">i2"), card)
        with pytest.raises(UnreadableImageError, match=r"star.fits as an image: its FITS header has an offset or"):
            read_image(path)


def test_a_tiff_that_pil_cannot_read_is_not_called_unknown(tmp_path):
    write_tiff(tmp_path / "a.tif", np.array([[0.5, 1]], "<f8").view(np.uint8), 64, sample_format=3)
    with pytest.raises(UnreadableImageError, match=r"a TIFF of a kind that PIL does not read.*64-bit floats"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("highest", "white"),
    [(0.8, 1), (1.004, 1), (2.0, 1), (2.1, 255), (260.0, 255), (511.0, 65535), (1e5, 65535), (131071.0, 2**32 - 1)],
)
def test_the_highest_value_decides_what_is_white_and_may_exceed_it_a_little(tmp_path, highest, white):
    path = tmp_path / "f.tiff"
    for dtype in (np.float32, np.int32) if highest > 2.1 else (np.float32,):
        values = np.array([[-1, 0, highest / 2, highest]], dtype)
        Image.fromarray(values).save(path)
        assert read_grey(path).tolist() == [[0, 0, *(round(255 * min(float(x) / white, 1)) for x in values[0, 2:])]]


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "NaN"), (np.inf, "infinite"), (1e10, "up to 1e.10; set INPUT.WHITE_LEVEL")]
)
def test_values_without_a_grey_level_make_a_float_image_unreadable(tmp_path, value, reason):
    Image.fromarray(np.array([[0, value]], np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(UnreadableImageError, match=f"f.tiff as an image: .*{reason}"):
        read_image(tmp_path / "f.tiff")


def test_colours_of_16_bits_stay_as_pillow_scales_them(tmp_path):
    values = np.array([[[0, 257 * 10, 65535], [257 * 30, 40 * 257, 257 * 50]]], ">u2")
    chunks = [
        b"IHDR" + struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0),
        b"IDAT" + zlib.compress(b"\0" + values.tobytes()),
    ]
    write_png(tmp_path / "rgb.png", chunks)
    assert read_header(tmp_path / "rgb.png") == ImageHeader(False, False, is_deep_colour=True)
    assert np.asarray(read_image(tmp_path / "rgb.png")).tolist() == [[[0, 10, 255], [30, 40, 50]]]


def write_png(path: Path, chunks: list[bytes]) -> None:
    """Write a PNG of these chunks, each its name and its content, before an IEND."""
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (*chunks, b"IEND")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_the_note_gives_the_values_and_advises_for_dark_images_only(tmp_path):
    def write(name, low, high, dtype=np.uint16):
        Image.fromarray(np.array([[low, high]], dtype)).save(tmp_path / name)
        return str(tmp_path / name)

    scans = [write("0.png", 1000, 4780), write("1.png", 1200, 4000)]
    COLOURS.save(tmp_path / "plain.png")
    note = describe_deep_images([*scans, str(tmp_path / "plain.png"), "absent.png"], Decoding())
    for text in (
        "channel: 2; in 2 of them",
        "1,000 to 4,780",
        "65,535 becomes white",
        "dark",
        "set INPUT.WHITE_LEVEL 8191",
    ):
        assert text in note
    note = describe_deep_images([*scans, write("2.png", 0, 60000)], Decoding())
    assert "In 2 of 3, nearly all values are at most 4,780, so they stay dark" in note
    assert note.endswith("set INPUT.WHITE_LEVEL 8191, which clips the others")
    assert "dark" not in describe_deep_images([write("2.png", 0, 60000)], Decoding())
    assert "8,191 becomes white" in (known := describe_deep_images(scans, Decoding(8191)))
    assert "dark" not in known
    assert "255 becomes white, and so does all above" in describe_deep_images(scans, ORIGINAL)
    assert describe_deep_images([str(tmp_path / "plain.png")], Decoding()) == describe_deep_images([], Decoding()) == ""
    assert "0.25 to 0.5. 1 becomes white" in describe_deep_images([write("f.tiff", 0.25, 0.5, np.float32)], Decoding())
    note = describe_deep_images([write("f.tiff", 0.01, 0.1, np.float32)], Decoding())
    assert note.endswith("at most 0.1, so they stay dark: scale the values in the files")
    note = describe_deep_images([write("f.tiff", 0, 50.5, np.float32)], Decoding())
    assert note.endswith("at most 50.5, so they stay dark: if 63 is white, set INPUT.WHITE_LEVEL 63")


def test_a_hot_pixel_does_not_hide_that_an_image_stays_dark(tmp_path):
    values = np.full((40, 40), 4000, np.uint16)
    values[3, 3] = 65535
    Image.fromarray(values).save(tmp_path / "scan.png")
    note = describe_deep_images([str(tmp_path / "scan.png")], Decoding())
    assert "values go from 4,000 to 65,535" in note
    assert "In 1 of 1, nearly all values are at most 4,000, so they stay dark: if 4,095 is white" in note


def test_the_note_on_a_tiff_whose_0_is_white_does_not_call_it_dark(tmp_path):
    path = tmp_path / "scan.tif"
    write_tiff(path, np.array([[0, 4000]], "<u2").view(np.uint8), 16, photometric=0)
    note = describe_deep_images([str(path)], Decoding())
    assert "dark" not in note
    assert "65,535 becomes white; black, where a TIFF's 0 is white" in note
    assert "so they stay pale: if 4,095 is white, set INPUT.WHITE_LEVEL 4095" in note


def test_the_note_names_the_rare_image_whose_white_differs(tmp_path):
    paths = [str(tmp_path / f"{i:02}.tiff") for i in range(70)]
    for i, path in enumerate(paths):
        Image.fromarray(np.array([[0, 3 if i == 37 else 1.004]], np.float32)).save(path)
    note = describe_deep_images(paths, Decoding())
    assert f"White is 1 in 69, 255 in 1 (such as {paths[37]}); INPUT.WHITE_LEVEL gives all the same" in note
    assert "White is" not in describe_deep_images(paths, Decoding(2))


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_16_bits_in_colour_at_levels_of_12_are_said_to_stay_dark(tmp_path, colour_type, channels):
    def write(name: str, white: int) -> str:
        values = np.random.default_rng(0).integers(0, white + 1, (30, 40, channels)).astype(">u2")
        values[..., 3 if channels == 4 else 1 if channels == 2 else 3 :] = 65535  # alpha
        rows = b"".join(b"\0" + row.tobytes() for row in values)
        header = b"IHDR" + struct.pack(">IIBBBBB", 40, 30, 16, colour_type, 0, 0, 0)
        write_png(tmp_path / name, [header, b"IDAT" + zlib.compress(rows)])
        return str(tmp_path / name)

    dark, bright = write("dark.png", 4095), write("bright.png", 65535)
    for decoding in (Decoding(), ORIGINAL):
        note = describe_deep_images([dark, bright], decoding)
        assert "or with alpha: 2. In 1 of 2, nearly all values are at most 4,095, so they stay dark: scale" in note
        assert "INPUT.WHITE_LEVEL does not apply to them" in note
        assert describe_deep_images([bright], decoding) == ""
    assert count_changes([dark], Decoding()) == {}


def test_16_bits_in_colour_in_a_tiff_are_noted_too(tmp_path):
    path, values = tmp_path / "a.tif", np.full((2, 12), 4000, "<u2").view(np.uint8)
    entries = [(256, 4), (257, 2), (258, 16), (259, 1), (262, 2), (273, 150), (277, 3), (278, 2), (279, values.nbytes)]
    listed = b"".join(
        struct.pack("<HHIHHHxx", tag, 3, 3, 142, 0, 0)[:12] if tag == 258 else struct.pack("<HHII", tag, 4, 1, value)
        for tag, value in entries
    )
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + listed + b"\0" * 4
    path.write_bytes(head.ljust(142, b"\0") + struct.pack("<HHHxx", 16, 16, 16) + values.tobytes())
    assert read_header(path) == ImageHeader(False, False, is_deep_colour=True)
    assert "at most 4,095, so they stay dark" in describe_deep_images([str(path)], Decoding())


def test_the_note_reads_the_values_of_few_images(tmp_path, monkeypatch):
    paths = [str(tmp_path / f"{i}.png") for i in range(100)]
    for i, path in enumerate(paths):
        Image.fromarray(np.array([[i, 40000 + i]], np.uint16)).save(path)
    note = describe_deep_images(paths, Decoding())
    assert "channel: 100;" in note
    assert 0 < int(re.search(r"in (\d+) of them", note)[1]) <= 32


# ---- orientation ----


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "avif", "jp2"])
def test_exif_turns_images_upright_as_pillows_function_does(tmp_path, suffix, orientation):
    path, exif = tmp_path / f"phone.{suffix}", Image.Exif()
    exif[ORIENTATION] = orientation
    COLOURS.save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(np.asarray(read_image(path, UPRIGHT)), expected)
    changes = not np.array_equal(np.asarray(read_image(path, Decoding())), expected)
    assert read_header(path).is_turned == changes
    assert changes == (orientation > 1 and suffix not in ("tiff", "jp2"))  # Pillow itself turns TIFF


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("kind", ["eXIf", "XMP"])
def test_metadata_of_a_png_count_wherever_they_stand(tmp_path, kind, is_late):
    xmp = b"iTXtXML:com.adobe.xmp\0\0\0\0\0" + b'<x tiff:Orientation="6"/>'
    metadata = b"eXIf" + ROTATED.tobytes()[6:] if kind == "eXIf" else xmp
    pixels = [b"IHDR" + struct.pack(">IIBBBBB", 2, 1, 8, 0, 0, 0, 0), b"IDAT" + zlib.compress(b"\0\x10\x20")]
    write_png(
        tmp_path / "a.png", [*pixels, b"tEXtdate\0now", metadata] if is_late else [pixels[0], metadata, pixels[1]]
    )
    assert read_header(tmp_path / "a.png") == ImageHeader(False, True)
    assert np.asarray(read_image(tmp_path / "a.png", UPRIGHT))[..., 0].tolist() == [[16], [32]]
    write_png(tmp_path / "b.png", [*pixels, b"tEXtdate\0now"])
    assert read_header(tmp_path / "b.png") == ImageHeader(False, False)


def test_damaged_exif_leaves_an_image_as_it_is_stored(tmp_path):
    COLOURS.save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0" + b"\xff" * 40)
    COLOURS.save(tmp_path / "b.png", exif=b"Exif\0\0no TIFF")
    for name in ("a.jpg", "b.png"):
        assert read_header(tmp_path / name) == ImageHeader(False, False)
        assert read_image(tmp_path / name, UPRIGHT).size == COLOURS.size


def test_a_deep_image_can_be_turned_too(tmp_path):
    Image.fromarray(np.array([[0, 65535]], np.uint16)).save(tmp_path / "a.png", exif=ROTATED)
    assert read_header(tmp_path / "a.png") == ImageHeader(True, True)
    assert np.asarray(read_image(tmp_path / "a.png", UPRIGHT))[..., 0].tolist() == [[0], [255]]


# ---- what the decoding changes ----


def test_only_images_that_are_decoded_otherwise_than_originally_are_described(tmp_path):
    names = ("plain.jpg", "turned.jpg", "deep.png", "both.png")
    plain, turned, deep, both = paths = [str(tmp_path / name) for name in names]
    COLOURS.save(plain)
    COLOURS.save(turned, exif=ROTATED)
    scan = Image.fromarray(np.array([[0, 65535]], np.uint16))
    scan.save(deep)
    scan.save(both, exif=ROTATED)
    described = {white: [describe_changes(path, Decoding(white, "exif")) for path in paths] for white in (0, 255, 9)}
    assert described[255] == ["", " upright", "", " upright"]
    assert described[0] == ["", " upright", " white level 0", " white level 0 upright"]
    assert described[9] == ["", " upright", " white level 9", " white level 9 upright"]
    assert [describe_changes(path, Decoding()) for path in paths] == ["", "", " white level 0", " white level 0"]
    assert count_changes(paths, Decoding(0, "exif")) == {"turned": 2, "scaled": 2, "white_level": 0}
    assert count_changes(paths, Decoding(4095)) == {"scaled": 2, "white_level": 4095}
    assert count_changes(paths, ORIGINAL) == count_changes([plain], Decoding(0, "exif")) == {}
    assert "INPUT.WHITE_LEVEL 9 (2 images scaled)" in format_decoding(count_changes(paths, Decoding(9)))
    assert "255, INPUT.ORIENTATION stored" in format_decoding({})


def test_contents_decide_which_images_need_no_look(tmp_path, monkeypatch):
    scan, photo = str(tmp_path / "scan.jpg"), str(tmp_path / "photo.png")
    Image.fromarray(np.array([[0, 65535]], np.uint16)).save(scan, "PNG")
    COLOURS.save(photo, "JPEG", exif=ROTATED)
    assert count_changes([scan, photo], Decoding()) == {"scaled": 1, "white_level": 0}
    assert describe_changes(scan, Decoding()) == " white level 0"
    assert "channel: 1;" in describe_deep_images([scan, photo], Decoding())
    assert describe_changes(photo, UPRIGHT) == " upright"
    monkeypatch.setattr(Image, "open", lambda _: pytest.fail("opened"))
    assert read_header(photo, "stored") == ImageHeader(False, False)


def test_the_headers_of_very_many_images_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("dassl.data.decoding.MAX_HEADERS", 2)
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    assert count_changes(paths, Decoding(0, "exif")) == {"turned": -1, "scaled": -1, "white_level": 0}
    assert count_changes([path.replace("png", "JPEG") for path in paths], Decoding()) == {}


# ---- which files are images ----


def test_what_pillow_opens_is_an_image_and_other_files_are_not():
    assert {
        ".jpg",
        ".jfif",
        ".webp",
        ".mpo",
        ".jp2",
        ".tga",
        ".avif",
        ".heic",
        ".tif",
        ".psd",
        ".fits",
    } <= image_extensions()
    assert not {".pdf", ".mpg", ".mpeg", ".h5", ".grib", ".eps", ".ps", ".wmf", ".txt"} & image_extensions()
    assert is_image_name("A.JPG")
    assert not any(map(is_image_name, ("._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "jpg", "a.jpg.txt")))


def test_the_extension_follows_from_the_content(tmp_path):
    for suffix, extension in {"jpeg": ".jpg", "png": ".png", "webp": ".webp", "tiff": ".tif"}.items():
        COLOURS.save(tmp_path / "photo", suffix)
        assert find_extension(tmp_path / "photo") == extension
    (tmp_path / "photo").write_text("text")
    assert find_extension(tmp_path / "photo") == ""


def test_a_wrong_extension_does_not_matter_to_an_image_that_pillow_opens(tmp_path):
    COLOURS.save(tmp_path / "a.png", "JPEG")
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), np.asarray(convert_with_pil(tmp_path / "a.png")))


HEIC_HEAD = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_heic_names_the_package_that_opens_it(tmp_path, monkeypatch):
    monkeypatch.setattr("dassl.utils.images.find_spec", lambda name: None)
    for name in ("phone.heic", "phone.jpg"):
        (tmp_path / name).write_bytes(HEIC_HEAD)
        with pytest.raises(UnreadableImageError, match="HEIC image.*pip install pillow-heif"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["phone.heic", "phone.jpg"])
def test_heic_opens_with_the_package(tmp_path, name):
    pytest.importorskip("pillow_heif", reason="needs the optional package pillow-heif")
    script = "import sys, pillow_heif; from PIL import Image; pillow_heif.register_heif_opener(); "
    script += "Image.new('RGB', (64, 32), (200, 30, 30)).save(sys.argv[1], 'HEIF')"
    subprocess.run([sys.executable, "-c", script, tmp_path / name], check=True)  # the opener is not registered here
    image = read_image(tmp_path / name)
    assert image.size == (64, 32)
    assert np.abs(np.asarray(image).astype(int) - (200, 30, 30)).max() < 12
