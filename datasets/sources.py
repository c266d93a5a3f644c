"""Where data sets come from: torchvision downloads most, some are fetched by hand; and splits of one's own."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from dassl.data.archives import ARCHIVE_ERRORS, unpack_archive
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError, derive_seed, error_reason, mkdir_if_missing, read_json, suggest_name, write_json

ARCHIVE_SUFFIXES = (".gz", ".tgz", ".zip")  # which torchvision leaves beside what was in them
# What torchvision raises for addresses that cannot be reached and for archives that arrived damaged.
DOWNLOAD_ERRORS = (OSError, HTTPException, *ARCHIVE_ERRORS)

LabelledPaths = dict[str, str]  # path below the image folder -> class name


@dataclass(frozen=True)
class Source:
    """Where a data set comes from."""

    torchvision: str = ""  # its class there; empty: to be fetched by hand
    left: str = ""  # the folder that torchvision leaves, whose content goes to the data set's folder
    manual: str = ""
    own_split: Callable[[Path, Path], tuple[LabelledPaths, LabelledPaths]] | None = (
        None  # images for training, for testing
    )


def list_caltech(base: Path, images: Path) -> tuple[LabelledPaths, LabelledPaths]:
    names = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
    found = label_by_folder(images, lambda folder: names.get(folder, folder))
    return {path: name for path, name in found.items() if name not in ("BACKGROUND_Google", "Faces_easy")}, {}


def list_pets(base: Path, images: Path) -> tuple[LabelledPaths, LabelledPaths]:
    def listed(split: str) -> LabelledPaths:
        lines = (base / "annotations" / f"{split}.txt").read_text(encoding="utf-8").splitlines()
        ids = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
        return {f"{id}.jpg": id.rpartition("_")[0].lower() for id in ids}

    return listed("trainval"), listed("test")


def list_flowers(base: Path, images: Path) -> tuple[LabelledPaths, LabelledPaths]:
    from scipy.io import loadmat
    from torchvision.datasets import Flowers102

    labels = loadmat(base / "imagelabels.mat", squeeze_me=True)["labels"]
    ids = loadmat(base / "setid.mat", squeeze_me=True)

    def listed(*splits: str) -> LabelledPaths:
        numbers = (int(number) for split in splits for number in ids[split])
        return {f"image_{number:05}.jpg": Flowers102.classes[labels[number - 1] - 1] for number in numbers}

    return listed("trnid", "valid"), listed("tstid")


def list_food(base: Path, images: Path) -> tuple[LabelledPaths, LabelledPaths]:
    def listed(split: str) -> LabelledPaths:
        classes = read_json(base / "meta" / f"{split}.json")
        return {f"{path}.jpg": name for name, paths in classes.items() for path in paths}

    return listed("train"), listed("test")


def list_scenes(base: Path, images: Path) -> tuple[LabelledPaths, LabelledPaths]:
    # a/apse/indoor -> indoor apse
    return label_by_folder(images, lambda folder: " ".join(reversed(folder.split("/")[1:]))), {}


def list_textures(base: Path, images: Path) -> tuple[LabelledPaths, LabelledPaths]:
    test = set((base / "labels" / "test1.txt").read_text(encoding="utf-8").split())
    train = {path: name for path, name in label_by_folder(images).items() if path not in test}
    return train, {path: path.partition("/")[0] for path in test}


def list_land(base: Path, images: Path) -> tuple[LabelledPaths, LabelledPaths]:
    names = {
        "AnnualCrop": "Annual Crop Land",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "SeaLake": "Sea or Lake",
    }
    return label_by_folder(images, lambda folder: names.get(folder, folder)), {}


def list_cars(base: Path, images: Path) -> tuple[LabelledPaths, LabelledPaths]:
    from scipy.io import loadmat

    names = loadmat(base / "devkit" / "cars_meta.mat", squeeze_me=True)["class_names"].tolist()

    def listed(file: Path, folder: str) -> LabelledPaths:
        rows = loadmat(file, squeeze_me=True)["annotations"]
        models = {f"{folder}/{row['fname']}": names[int(row["class"]) - 1].rpartition(" ") for row in rows}
        return {path: f"{year} {model}" for path, (model, _, year) in models.items()}  # 2012 Audi TT RS Coupe

    train = listed(base / "devkit" / "cars_train_annos.mat", "cars_train")
    return train, listed(base / "cars_test_annos_withlabels.mat", "cars_test")


def label_by_folder(images: Path, name: Callable[[str], str] = str) -> LabelledPaths:
    """All images below a folder; ``name`` makes a class name of the folder that an image lies in."""
    found = sorted(path.relative_to(images) for path in images.rglob("*.jpg") if not path.name.startswith("."))
    return {path.as_posix(): name(path.parent.as_posix()) for path in found}


SOURCES = {
    "Caltech101": Source("Caltech101", "caltech101", own_split=list_caltech),
    "OxfordPets": Source("OxfordIIITPet", "oxford-iiit-pet", own_split=list_pets),
    "OxfordFlowers": Source("Flowers102", "flowers-102", own_split=list_flowers),
    "Food101": Source("Food101", "food-101", own_split=list_food),
    "FGVCAircraft": Source("FGVCAircraft", "fgvc-aircraft-2013b/data"),
    "SUN397": Source("SUN397", ".", own_split=list_scenes),
    "DescribableTextures": Source("DTD", "dtd/dtd", own_split=list_textures),
    "EuroSAT": Source("EuroSAT", "eurosat", own_split=list_land),
    "StanfordCars": Source(
        manual="cars_train, cars_test, devkit and cars_test_annos_withlabels.mat; their first address is gone, "
        "https://github.com/pytorch/vision/issues/7545 tells of copies",
        own_split=list_cars,
    ),
    "UCF101": Source(
        manual="UCF-101-midframes.zip, unpacked; https://drive.google.com/file/d/10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O",
        own_split=lambda base, images: (label_by_folder(images), {}),
    ),
    "ImageNetV2": Source(
        manual="https://s3-us-west-2.amazonaws.com/imagenetv2public/imagenetv2-matched-frequency.tar.gz, unpacked"
    ),
    "ImageNetSketch": Source(manual="what https://github.com/HaohanWang/ImageNet-Sketch offers, unpacked to images/"),
    "ImageNetA": Source(manual="what https://github.com/hendrycks/natural-adv-examples offers, unpacked"),
    "ImageNetR": Source(manual="what https://github.com/hendrycks/imagenet-r offers, unpacked"),
}


def find_dataset(name: str) -> type:
    """Return the data set of that name, as in the registry or as its config is called."""
    plain = name.lower().replace("_", "").replace("-", "")
    for cls in map(DATASET_REGISTRY.get, SOURCES):
        if plain in (cls.__name__.lower(), cls.__module__.rpartition(".")[2].replace("_", "")):
            return cls
    raise UserError(
        f'unknown data set "{name}"; {suggest_name(name, SOURCES)}. tools/prepare_imagenette.py prepares ImageNette'
    )


def download_dataset(name: str, base: Path, last: str) -> None:
    """Have torchvision download to a temporary folder, and move what belongs to the data set to ``base``: the image
    folder ``last``, as it tells that the rest is there."""
    import torchvision

    def checked(archive: str, folder: str, compression: str | None) -> None:
        unpack_archive(Path(archive), Path(folder))

    torchvision.datasets.utils._ARCHIVE_EXTRACTORS.update({".tar": checked, ".zip": checked})  # all it unpacks with
    source = SOURCES[name]
    mkdir_if_missing(base.parent)
    try:
        with tempfile.TemporaryDirectory(dir=base.parent, prefix=f".{base.name}.") as temporary:
            getattr(torchvision.datasets, source.torchvision)(temporary, download=True)
            base.mkdir(exist_ok=True)
            for entry in sorted(Path(temporary, source.left).iterdir(), key=lambda entry: entry.name == last):
                if entry.suffix not in ARCHIVE_SUFFIXES and not (base / entry.name).exists():
                    entry.rename(base / entry.name)
    except DOWNLOAD_ERRORS as error:
        raise UserError(
            f"cannot download {name} ({error_reason(error)}). Run the command again, or fetch it elsewhere: its images "
            f"belong into {base / last}"
        ) from error


def draw_split(train: LabelledPaths, test: LabelledPaths) -> dict[str, list]:
    """A split in the format of split files: a fifth of the training images for validation; without test images half
    for training, a fifth for validation, the rest for testing. The draw depends on the paths alone."""
    ends = (0.8, 1.0) if test else (0.5, 0.7)
    classes = defaultdict(list)
    for path, name in sorted(train.items()):
        classes[name].append(path)
    labels = {name: label for label, name in enumerate(sorted({*train.values(), *test.values()}))}
    split = {"train": [], "val": [], "test": [[path, labels[name], name] for path, name in sorted(test.items())]}
    for name, paths in classes.items():
        drawn = sorted(paths, key=derive_seed)
        of_train, of_val = (round(len(drawn) * end) for end in ends)
        parts = {"train": drawn[:of_train], "val": drawn[of_train:of_val], "test": drawn[of_val:]}
        for part, paths in parts.items():
            split[part] += [[path, labels[name], name] for path in sorted(paths)]
    return split


def prepare_dataset(name: str, root: Path, own_split: bool) -> type:
    """Put the images of a data set where its config looks for them, or say what to fetch; return its class.

    Args:
        own_split: draw a split if there is none.
    """
    cls = find_dataset(name)
    base, source = root / cls.dataset_dir, SOURCES[cls.__name__]
    images = base / cls.images
    if own_split and not hasattr(cls, "split_path"):
        raise UserError(f"{cls.__name__} needs no split file: its images are split already")
    if images.is_dir():
        print(f"{images} is there already")
    elif source.manual:
        raise UserError(f"{cls.__name__} is to be fetched by hand: {source.manual}. It belongs into {images}")
    else:
        download_dataset(cls.__name__, base, last=cls.images)
        print(f"{images} written")
    if hasattr(cls, "split_path"):
        _prepare_split(cls, root, own_split)
    return cls


def _prepare_split(cls: type, root: Path, own: bool) -> None:
    """Say where the split file comes from, or write one of one's own."""
    path = cls.split_path(root)
    if path.exists():
        print(f"{path} is there already")
    elif own:
        base = root / cls.dataset_dir
        try:
            train, test = SOURCES[cls.__name__].own_split(base, base / cls.images)
        except OSError as error:
            raise UserError(f"cannot draw a split of {cls.__name__}: {error}") from error
        if not train:
            raise UserError(f"there are no images (.jpg) below {base / cls.images}")
        split = draw_split(train, test)
        write_json(split, path)
        print(f"{path} written: {', '.join(f'{len(items):,} {part}' for part, items in split.items())}")
        print("It is a split of your own: accuracies on it do not compare with published ones, which are on CoOp's")
    else:
        print(f"Now fetch CoOp's split, {path.name}, from {cls.split_url()} and put it into {path.parent}")
