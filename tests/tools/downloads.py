"""Small archives in place of those that torchvision downloads."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile

from PIL import Image
from scipy.io import savemat


def tar(files: dict[str, bytes]) -> bytes:
    """Return a tar.gz archive with the content of each path in ``files``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    """Return a ZIP archive with the content of each path in ``files``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def matlab(**values: object) -> bytes:
    """Return a MATLAB file with these variables."""
    buffer = io.BytesIO()
    savemat(buffer, values)
    return buffer.getvalue()


def numbered(*patterns: str, count: int = 10) -> list[str]:
    """Return each pattern with the numbers 1 to ``count`` in its ``{}``."""
    return [pattern.format(i) for pattern in patterns for i in range(1, count + 1)]


def images(*patterns: str, count: int = 10) -> dict[str, bytes]:
    """Return path -> JPEG for the paths of ``numbered``; all images are the same."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    return dict.fromkeys(numbered(*patterns, count=count), file.getvalue())


def lines(*texts: str) -> bytes:
    """Return the bytes of a text file with these lines."""
    return "".join(f"{text}\n" for text in texts).encode()


CALTECH = images(
    *(f"101_ObjectCategories/{name}/image_{{:04}}.jpg" for name in ("airplanes", "crab", "BACKGROUND_Google"))
)
BREEDS = ("Abyssinian", "american_bulldog")
FOOD = {split: numbered(f"apple_pie/{split}{{}}", count=5) for split in ("train", "test")}
TEXTURES = numbered("banded/banded_{}.jpg", "woven/woven_{}.jpg")
SPLITS = ("train", "val", "trainval", "test")
# name of a data set in configs/datasets -> file name -> content
DOWNLOADS = {
    "caltech101": {"caltech-101.zip": zipped({"caltech-101/101_ObjectCategories.tar.gz": tar(CALTECH)})},
    "oxford_pets": {
        "images.tar.gz": tar(images(*(f"images/{breed}_{{}}.jpg" for breed in BREEDS))),
        "annotations.tar.gz": tar(
            {
                "annotations/test.txt": lines(*(f"{breed}_{i} 1 1 1" for breed in BREEDS for i in (1, 2))),
                "annotations/trainval.txt": lines(*(f"{breed}_{i} 1 1 1" for breed in BREEDS for i in range(3, 11))),
            }
        ),
    },
    "oxford_flowers": {
        "102flowers.tgz": tar(images("jpg/image_{:05}.jpg", count=20)),
        "imagelabels.mat": matlab(labels=[1] * 10 + [2] * 10),
        "setid.mat": matlab(trnid=[1, 2, 11, 12], valid=[3, 4, 13, 14], tstid=[*range(5, 11), *range(15, 21)]),
    },
    "food101": {
        "food-101.tar.gz": tar(
            {f"food-101/meta/{split}.json": json.dumps({"apple_pie": paths}).encode() for split, paths in FOOD.items()}
            | images(*(f"food-101/images/{path}.jpg" for paths in FOOD.values() for path in paths), count=1)
        )
    },
    "dtd": {
        "dtd-r1.0.1.tar.gz": tar(
            {f"dtd/labels/{split}1.txt": lines(*TEXTURES[i::3]) for i, split in enumerate(("train", "val", "test"))}
            | images(*(f"dtd/images/{path}" for path in TEXTURES), count=1)
        )
    },
    "eurosat": {"EuroSAT.zip": zipped(images("2750/Forest/Forest_{}.jpg", "2750/SeaLake/SeaLake_{}.jpg"))},
    "sun397": {
        "SUN397.tar.gz": tar(
            {"SUN397/ClassName.txt": lines("/a/abbey", "/a/apse/indoor")}
            | images("SUN397/a/abbey/sun_{}.jpg", "SUN397/a/apse/indoor/sun_{}.jpg")
        )
    },
    "fgvc_aircraft": {
        "fgvc-aircraft-2013b.tar.gz": tar(
            {"fgvc-aircraft-2013b/data/variants.txt": lines("Yak-42")}
            | {
                f"fgvc-aircraft-2013b/data/images_variant_{split}.txt": lines(*numbered(f"{split}{{}} Yak-42", count=3))
                for split in SPLITS
            }
            | images(*(f"fgvc-aircraft-2013b/data/images/{split}{{}}.jpg" for split in SPLITS), count=3)
        )
    },
}
