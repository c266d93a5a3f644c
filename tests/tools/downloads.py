"""What torchvision would download, with small files in place of the real ones."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile

from PIL import Image
from scipy.io import savemat


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    return file.getvalue()


def content_of(name: str) -> bytes:
    return picture() if name.endswith(".jpg") else FILES[name]


def tar(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(content_of(name))
            archive.addfile(info, io.BytesIO(content_of(name)))
    return buffer.getvalue()


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, content_of(name))
    return buffer.getvalue()


def matlab(**values: object) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, values)
    return buffer.getvalue()


def numbered(pattern: str, count: int = 10) -> list[str]:
    return [pattern.format(i) for i in range(1, count + 1)]


def lines(*texts: str) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


PETS = [*numbered("Abyssinian_{}"), *numbered("american_bulldog_{}")]
FOOD = {split: {"apple_pie": numbered("apple_pie/" + split + "{}", 5)} for split in ("train", "test")}
TEXTURES = [*numbered("banded/banded_{}.jpg"), *numbered("woven/woven_{}.jpg")]
AIRCRAFT = {split: numbered("{}" + f"{i}", 3) for i, split in enumerate(("train", "val", "trainval", "test"))}

# What the archives hold, and what is downloaded as it is.
FILES: dict[str, bytes] = {
    "annotations/trainval.txt": lines(*(f"{pet} 1 1 1" for pet in PETS if not pet.endswith(("1", "2")))),
    "annotations/test.txt": lines(*(f"{pet} 1 1 1" for pet in PETS if pet.endswith(("1", "2")))),
    "imagelabels.mat": matlab(labels=[1] * 10 + [2] * 10),
    "setid.mat": matlab(trnid=[1, 2, 11, 12], valid=[3, 4, 13, 14], tstid=[*range(5, 11), *range(15, 21)]),
    "food-101/meta/train.json": json.dumps(FOOD["train"]).encode(),
    "food-101/meta/test.json": json.dumps(FOOD["test"]).encode(),
    "dtd/labels/train1.txt": lines(*TEXTURES[::3]),
    "dtd/labels/val1.txt": lines(*TEXTURES[1::3]),
    "dtd/labels/test1.txt": lines(*TEXTURES[2::3]),
    "SUN397/ClassName.txt": lines("/a/abbey", "/a/apse/indoor"),
    "fgvc-aircraft-2013b/data/variants.txt": lines("Yak-42"),
    **{
        f"fgvc-aircraft-2013b/data/images_variant_{split}.txt": lines(*(f"{i} Yak-42" for i in ids))
        for split, ids in AIRCRAFT.items()
    },
}
FILES["caltech-101/101_ObjectCategories.tar.gz"] = tar(
    *(
        name
        for folder in ("airplanes", "crab", "BACKGROUND_Google")
        for name in numbered(f"101_ObjectCategories/{folder}/image_{{:04}}.jpg")
    )
)
# Config name -> what is downloaded, what lies in the data set's folder, class names, sizes of its own split.
DOWNLOADS = {
    "caltech101": (
        {"caltech-101.zip": zipped("caltech-101/101_ObjectCategories.tar.gz")},
        {"101_ObjectCategories"},
        ["airplane", "crab"],
        (10, 4, 6),
    ),
    "oxford_pets": (
        {
            "images.tar.gz": tar(*(f"images/{pet}.jpg" for pet in PETS)),
            "annotations.tar.gz": tar("annotations/trainval.txt", "annotations/test.txt"),
        },
        {"images", "annotations"},
        ["abyssinian", "american_bulldog"],
        (12, 4, 4),
    ),
    "oxford_flowers": (
        {
            "102flowers.tgz": tar(*numbered("jpg/image_{:05}.jpg", 20)),
            "imagelabels.mat": FILES["imagelabels.mat"],
            "setid.mat": FILES["setid.mat"],
        },
        {"jpg", "imagelabels.mat", "setid.mat"},
        ["hard-leaved pocket orchid", "pink primrose"],
        (6, 2, 12),
    ),
    "food101": (
        {
            "food-101.tar.gz": tar(
                "food-101/meta/train.json",
                "food-101/meta/test.json",
                *(f"food-101/images/{path}.jpg" for part in FOOD.values() for path in part["apple_pie"]),
            )
        },
        {"images", "meta"},
        ["apple_pie"],
        (4, 1, 5),
    ),
    "dtd": (
        {
            "dtd-r1.0.1.tar.gz": tar(
                *(f"dtd/labels/{split}1.txt" for split in ("train", "val", "test")),
                *(f"dtd/images/{path}" for path in TEXTURES),
            )
        },
        {"images", "labels"},
        ["banded", "woven"],
        (12, 2, 6),
    ),
    "eurosat": (
        {"EuroSAT.zip": zipped(*numbered("2750/Forest/Forest_{}.jpg"), *numbered("2750/SeaLake/SeaLake_{}.jpg"))},
        {"2750"},
        ["Forest", "Sea or Lake"],
        (10, 4, 6),
    ),
    "sun397": (
        {
            "SUN397.tar.gz": tar(
                "SUN397/ClassName.txt",
                *numbered("SUN397/a/abbey/sun_{}.jpg"),
                *numbered("SUN397/a/apse/indoor/sun_{}.jpg"),
            )
        },
        {"SUN397"},
        ["abbey", "indoor apse"],
        (10, 4, 6),
    ),
    "fgvc_aircraft": (
        {
            "fgvc-aircraft-2013b.tar.gz": tar(
                "fgvc-aircraft-2013b/data/variants.txt",
                *(f"fgvc-aircraft-2013b/data/images_variant_{split}.txt" for split in AIRCRAFT),
                *(f"fgvc-aircraft-2013b/data/images/{i}.jpg" for ids in AIRCRAFT.values() for i in ids),
            )
        },
        {"images", "variants.txt", *(f"images_variant_{split}.txt" for split in AIRCRAFT)},
        ["Yak-42"],
        (3, 3, 3),
    ),
}
