"""Image files: which files are images, reading one as RGB, and what its header shows without reading the pixels."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from .errors import UnreadableImageError, error_reason

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image, ImageFile

ORIENTATIONS = ("exif", "stored")  # values of INPUT.ORIENTATION
ORIGINAL_WHITE_LEVEL = 255  # of Pillow's convert("RGB"), which clips larger values to white
# Formats that Pillow opens although they hold no image that it decodes: stubs of other programs' formats, video,
# metadata, and PostScript (it would start Ghostscript).
NO_IMAGE_FORMATS = frozenset(("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"))
FITS_SCALING = re.compile(rb"BZERO   = +(?!0\.?0*\s)\S|BSCALE  = +(?!1\.?0*\s)\S")  # offset not 0, scale not 1
JPEG_START, TIFF_STARTS = b"\xff\xd8", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # with + BigTIFF
HEIF_EXTENSIONS = frozenset((".heic", ".heif", ".hif"))  # of phones and cameras; they open with pillow-heif
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # ISO/IEC 23008-12
EXAMPLE_EXTENSIONS = ".jpg, .png, .webp, .tif, .avif, .heic, …"  # for messages: Pillow knows 80
MAX_KINDS = 8  # extensions in a message: one line
# Files that Windows and macOS put beside images; in lower case.
SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", "__macosx"))
NEARLY_ALL = 0.999  # quantile of an image's values, which a few hot pixels do not change
# EXIF orientation -> method of Image.transpose that turns the image upright, as in PIL.ImageOps.exif_transpose.
UPRIGHT_METHODS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
# Numbers of tags of TIFF and EXIF.
BITS_TAG, PHOTOMETRIC_TAG, ORIENTATION_TAG, SAMPLE_FORMAT_TAG = 258, 262, 274, 339


@dataclass(frozen=True)
class Decoding:
    """How an image file becomes RGB of 8 bits.

    ``white_level``, of images with more than 8 bits a channel (Pillow's modes I;16, I and F): the value that becomes
    white, as all above it. Values from 0 to it are scaled, to the nearest of 256 levels; negative ones become black. 0
    is the highest of the file's type (``find_white``). 255 is Pillow's ``convert("RGB")``.

    ``orientation``: "exif" turns an image upright by its EXIF tag; "stored" leaves its pixels where they are.
    """

    white_level: int = 0
    orientation: str = "stored"


class ImageHeader(NamedTuple):
    """What the header of an image file shows."""

    is_deep: bool  # Pillow opens it with more than 8 bits a channel: one of Decoding.white_level
    is_turned: bool  # by an EXIF tag
    is_white_known: bool = True  # by the file's type; that of 32-bit integers and floats depends on the values
    is_deep_colour: bool = False  # of 16 bits in each of several channels, of which Pillow drops the lower 8


class ImageValues(NamedTuple):
    """The values in an image of more than 8 bits a channel, and which one becomes white."""

    lowest: float
    highest: float
    nearly_highest: float  # the quantile NEARLY_ALL
    white: int
    is_inverted: bool  # 0 becomes white, and ``white`` black


def read_image(path: str | os.PathLike, decoding: Decoding = Decoding()) -> Image.Image:
    """Return the image in a file as an RGB ``PIL.Image``.

    Raises:
        UnreadableImageError: the file is absent or unreadable, PIL cannot decode it, or its values are no finite
            numbers; the message names the file.
    """
    from PIL import Image

    try:
        with open_image(path) as image:
            if image.format == "FITS" and FITS_SCALING.search(_read_head(path, 28800)):  # ten blocks of a header
                raise ValueError("its FITS header has an offset or a scale, which PIL does not apply; save it as TIFF")
            if image.format == "FITS" and image.mode != "L" and int(version("pillow").split(".")[0]) < 13:
                raise ValueError("Pillow before 13 mixes up the bytes of its values; save it as TIFF, or update Pillow")
            image.load()
            # Conversion to RGB drops this transparency on purpose; with the entry, PIL would warn of it for each image.
            if isinstance(image.info.get("transparency"), bytes):
                del image.info["transparency"]
            rgb = _convert_to_rgb(image, decoding.white_level)
            method = UPRIGHT_METHODS.get(_get_orientation(image)) if decoding.orientation == "exif" else None
            return rgb.transpose(Image.Transpose[method]) if method else rgb
    except Exception as error:  # a damaged file makes PIL's decoders raise almost any class
        raise UnreadableImageError.for_file(path, _decode_error_reason(path, error)) from error


def open_image(path: str | os.PathLike) -> ImageFile.ImageFile:
    """Return ``PIL.Image.open(path)``; HEIC images open if pillow-heif is installed."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path)
    except UnidentifiedImageError:
        if not _is_heif(path) or find_spec("pillow_heif") is None:
            raise
        import_module("pillow_heif").register_heif_opener()
        return Image.open(path)


def read_header(path: str | os.PathLike, orientation: str = "exif") -> ImageHeader:
    """Return the ``ImageHeader`` of a file; that of an 8-bit image if the file cannot be read.

    With the ``orientation`` "stored", a JPEG is not opened, as only its EXIF tag can change it.
    """
    if orientation == "stored" and _read_head(path).startswith(JPEG_START):
        return ImageHeader(False, False)
    with suppress(Exception), open_image(path) as image:
        is_deep_colour = not _is_deep(image) and ";16" in str(image.tile[:1])  # such as RGB;16B; before it is loaded
        if image.format == "PNG" and image.fp and _has_late_metadata(image.fp):
            image.load()
        # Pillow turns TIFF images upright itself, whatever the caller wants.
        is_turned = image.format != "TIFF" and _get_orientation(image) in UPRIGHT_METHODS
        return ImageHeader(_is_deep(image), is_turned, _is_white_known(image), is_deep_colour)
    return ImageHeader(False, False)


def read_values(path: str | os.PathLike, white_level: int) -> ImageValues:
    """Return the ``ImageValues`` of an image of more than 8 bits a channel."""
    import numpy as np

    with open_image(path) as image:
        if is_deep := _is_deep(image):
            values = _get_values(image)
        else:  # colour, of which Pillow drops the lower 8 bits
            values = np.asarray(image.convert("RGB"), np.uint16) * 256 + 255
        highest, nearly = values.max().item(), np.quantile(values, NEARLY_ALL, method="nearest").item()
        white = white_level if is_deep and white_level else find_white(image, highest)
        is_inverted = _is_inverted(image) and white_level != ORIGINAL_WHITE_LEVEL
        return ImageValues(values.min().item(), highest, nearly, white, is_inverted)


def find_white(image: Image.Image, maximum: float) -> int:
    """Return the white value of an image of more than 8 bits a channel, whose highest value is ``maximum``.

    It is 65,535 for 16 bits, 32,767 if they are signed, and 4,095 for a TIFF of 12 bits. Files of 32-bit integers and
    floats do not say what is white: it is the smallest of 1 (of floats), 255, 65,535 and 4,294,967,295 that no value
    exceeds twofold; so values slightly above do not change it. Raises a ``ValueError`` if all are exceeded.
    """
    if _is_white_known(image):
        is_signed = image.format == "FITS" or _get_tags(image).get(SAMPLE_FORMAT_TAG) == (2,)
        return 2 ** (_get_tags(image).get(BITS_TAG, (16,))[0] - is_signed) - 1
    levels = [*([1] if image.mode == "F" else []), 2**8 - 1, 2**16 - 1, 2**32 - 1]
    if maximum > 2 * levels[-1]:
        raise ValueError(f"its values go up to {maximum:.4g}; set INPUT.WHITE_LEVEL to the one that is white")
    return next(level for level in levels if maximum <= 2 * level)


def is_image_name(name: str) -> bool:
    """Return whether a file's name has the extension of an image, and is neither hidden nor a system's."""
    return os.path.splitext(name)[1].lower() in image_extensions() and not is_system_name(name)


def is_system_name(name: str) -> bool:
    """Return whether a file or folder is hidden (a dot before its name) or one of the system's (SYSTEM_FILES)."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


@cache
def image_extensions() -> frozenset[str]:
    """Return the extensions, such as ".jpg", of images that the installed Pillow opens, and those of HEIC."""
    from PIL import Image

    formats = Image.registered_extensions()  # registers all formats
    known = {*Image.OPEN, "MPO"} - NO_IMAGE_FORMATS  # Pillow opens MPO as a JPEG
    return HEIF_EXTENSIONS.union(extension for extension, name in formats.items() if name in known)


def find_extension(path: str | os.PathLike) -> str:
    """Return the extension of the image format that a file's content has, such as ".png"; "" if Pillow opens none."""
    from PIL import Image

    with suppress(Exception), open_image(path) as image:
        if image.format in ("JPEG", "MPO"):
            return ".jpg"  # the first one in Pillow's list is .jfif
        extensions = image_extensions()
        return next(e for e, name in Image.registered_extensions().items() if name == image.format and e in extensions)
    return ""


def count_kinds(names: Iterable[str]) -> str:
    """Return the numbers of files of the MAX_KINDS most frequent extensions, such as "3 .txt, 1 .docx"."""
    counts = Counter(sorted(os.path.splitext(name)[1].lower() or "without extension" for name in names))
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common(MAX_KINDS))
    return f"{kinds}, …" if len(counts) > MAX_KINDS else kinds


def _is_deep(image: Image.Image) -> bool:
    """Return whether Pillow opens an image with more than 8 bits a channel; of colour images, it drops the others."""
    return image.mode == "F" or image.mode.partition(";")[0] == "I"


def _is_white_known(image: Image.Image) -> bool:
    """Return whether the type of an image says what is white: other than 32-bit integers and floats."""
    if image.mode == "I":  # Pillow scales PPM to 16 bits
        return image.format in ("PNG", "PPM") or _get_tags(image).get(BITS_TAG) == (16,)
    return image.mode != "F"


def _get_tags(image: Image.Image) -> Mapping[int, Any]:
    """Return the tags of a TIFF; of other formats, {}."""
    return getattr(image, "tag_v2", {})


def _is_inverted(image: Image.Image) -> bool:
    """Return whether 0 is white, as in some TIFF files; of those, Pillow inverts 8 bits only."""
    return _get_tags(image).get(PHOTOMETRIC_TAG) == 0


def _convert_to_rgb(image: Image.Image, white_level: int) -> Image.Image:
    """Return a loaded image in RGB, as ``Decoding`` describes for ``white_level``."""
    import numpy as np
    from PIL import Image

    if white_level == ORIGINAL_WHITE_LEVEL or not _is_deep(image):
        return image.convert("RGB")
    values = _get_values(image)
    white = white_level or find_white(image, values.max().item())
    np.maximum(np.minimum(values, white, out=values), 0, out=values)
    values *= 255 / white
    grey = np.rint(values, out=values).astype(np.uint8)
    return Image.fromarray(255 - grey if _is_inverted(image) else grey).convert("RGB")


def _get_values(image: Image.Image) -> np.ndarray:
    """Return the values (height, width), fp64, of an image of more than 8 bits; ValueError for infinity or NaN."""
    import numpy as np

    values, tags = np.array(image, np.float64), _get_tags(image)
    if image.format == "FITS" and image.mode == "I;16":  # signed; Pillow reads them unsigned
        values[values >= 2**15] -= 2**16
    if tags.get(BITS_TAG) == (32,) and tags.get(SAMPLE_FORMAT_TAG, (1,)) == (1,):  # unsigned; Pillow reads them signed
        values[values < 0] += 2**32
    if not np.isfinite(values).all():
        raise ValueError("it has values that are infinite or no numbers (NaN)")
    return values


def _get_orientation(image: Image.Image) -> Any:
    """Return the orientation, from 1 to 8, in the metadata read so far; 1 if there is none, or it is damaged."""
    from PIL import Image

    with suppress(Exception):  # damaged metadata makes PIL raise almost any class; the pixels may be good
        return Image.Image.getexif(image).get(ORIENTATION_TAG, 1)  # PNG's method would decode the pixels
    return 1


def _has_late_metadata(file: IO[bytes]) -> bool:
    """Return whether a PNG has EXIF or XMP after its pixels, as from ImageMagick; ``file`` keeps its position."""
    position, has_pixels = file.tell(), False
    file.seek(8)  # behind the signature
    try:
        while len(head := file.read(8)) == 8:
            end = file.tell() + int.from_bytes(head[:4], "big") + 4
            has_pixels = has_pixels or head[4:] == b"IDAT"
            if has_pixels and head[4:] in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
                keyword = file.read(22).partition(b"\0")[0]
                if head[4:] == b"eXIf" or keyword in (b"XML:com.adobe.xmp", b"Raw profile type exif"):
                    return True
            file.seek(end)
        return False
    finally:
        file.seek(position)


def _is_heif(path: str | os.PathLike) -> bool:
    """Return whether the content of a file begins as that of a HEIC or HEIF image."""
    head = _read_head(path)
    return head[4:8] == b"ftyp" and head[8:] in HEIF_BRANDS


def _read_head(path: str | os.PathLike, size: int = 12) -> bytes:
    """Return the first ``size`` bytes of a file; b"" if it cannot be read."""
    with suppress(OSError, ValueError), open(path, "rb") as file:
        return file.read(size)
    return b""


def _decode_error_reason(path: str | os.PathLike, error: Exception) -> str:
    """Return why PIL cannot read the image at ``path``, as the end of a message that names the file."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # PIL's message names the file
        if _is_heif(path):
            return "it is a HEIC image, which needs a package: pip install pillow-heif"
        if _read_head(path).startswith(TIFF_STARTS):
            kind = "a TIFF of a kind that PIL does not read, such as one of 64-bit floats, or damaged"
            return f"it is {kind}; save it with 8 or 16 bits a channel"
        return "it is in no format that PIL knows, or damaged"
    if isinstance(error, Image.DecompressionBombError):
        assert Image.MAX_IMAGE_PIXELS is not None  # without a limit, PIL does not raise this error
        pixels, limit = int(re.findall(r"\d+", str(error))[0]), 2 * Image.MAX_IMAGE_PIXELS
        return f"it has {pixels:,} pixels; to protect the memory, PIL decodes {limit:,} at most; scale it down"
    return getattr(error, "strerror", None) or error_reason(error)
