"""Sources of the data sets: downloads by torchvision, instructions for manual downloads, and newly drawn splits."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from dassl.data.archives import ARCHIVE_ERRORS, unpack_archive
from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.downloads import retry
from dassl.utils import UserError, derive_seed, error_reason, mkdir_if_missing, read_json, suggest_name, write_json

if TYPE_CHECKING:
    from .split_file import SplitFile

ARCHIVE_SUFFIXES = (".gz", ".tgz", ".zip")  # of the archives that torchvision leaves beside the unpacked files
# The errors of torchvision for unreachable addresses and damaged archives.
DOWNLOAD_ERRORS = (OSError, HTTPException, *ARCHIVE_ERRORS)

LabelledPaths = dict[str, str]  # path below the image folder -> class name
TrainTestPaths = tuple[LabelledPaths, LabelledPaths]  # training and test images


@dataclass(frozen=True)
class Source:
    """The source of a data set."""

    torchvision: str = ""  # class in torchvision.datasets; empty for a manual download
    unpacked: str = ""  # torchvision's folder whose content belongs into the data set's folder
    manual: str = ""  # instruction for a manual download
    list_paths: Callable[[Path, Path], TrainTestPaths] | None = None  # lists images for a newly drawn split


# The functions list_… below are the ``list_paths`` of one data set each. They return the training and test images by
# the authors' split, or all images as training images if there is none, with the class names of CoOp's split file.
# ``base`` is the data set's folder, ``images`` its image folder. They raise an OSError if a list is missing.


def list_caltech(base: Path, images: Path) -> TrainTestPaths:
    """Return all images of Caltech101 below ``images`` as training images, except two classes that CoOp leaves out."""
    names = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
    paths = label_by_folder(images, lambda folder: names.get(folder, folder))
    return {path: name for path, name in paths.items() if name not in ("BACKGROUND_Google", "Faces_easy")}, {}


def list_pets(base: Path, images: Path) -> TrainTestPaths:
    """Return the training and test images of OxfordPets, by the lists in ``base``/annotations."""

    def read_list(split: str) -> LabelledPaths:
        """Return the images in the authors' list ``split``, trainval or test."""
        lines = (base / "annotations" / f"{split}.txt").read_text(encoding="utf-8").splitlines()
        ids = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
        return {f"{id}.jpg": id.rpartition("_")[0].lower() for id in ids}

    return read_list("trainval"), read_list("test")


def list_flowers(base: Path, images: Path) -> TrainTestPaths:
    """Return the training (with validation) and test images of OxfordFlowers, by ``setid.mat`` in ``base``."""
    from scipy.io import loadmat
    from torchvision.datasets import Flowers102

    labels = loadmat(base / "imagelabels.mat", squeeze_me=True)["labels"]
    ids = loadmat(base / "setid.mat", squeeze_me=True)

    def select_splits(*splits: str) -> LabelledPaths:
        """Return the images of the authors' ``splits``, keys of ``setid.mat``."""
        numbers = (int(number) for split in splits for number in ids[split])
        return {f"image_{number:05}.jpg": Flowers102.classes[labels[number - 1] - 1] for number in numbers}

    return select_splits("trnid", "valid"), select_splits("tstid")


def list_food(base: Path, images: Path) -> TrainTestPaths:
    """Return the training and test images of Food101, by the lists in ``base``/meta."""

    def read_list(split: str) -> LabelledPaths:
        """Return the images in the authors' list ``split``, train or test."""
        classes = read_json(base / "meta" / f"{split}.json")
        return {f"{path}.jpg": name for name, paths in classes.items() for path in paths}

    return read_list("train"), read_list("test")


def list_scenes(base: Path, images: Path) -> TrainTestPaths:
    """Return all images of SUN397 as training images; the folder a/apse/indoor gives the class name "indoor apse"."""
    return label_by_folder(images, lambda folder: " ".join(reversed(folder.split("/")[1:]))), {}


def list_textures(base: Path, images: Path) -> TrainTestPaths:
    """Return the training and test images of DescribableTextures, by the first of ten splits in ``base``/labels."""
    test = set((base / "labels" / "test1.txt").read_text(encoding="utf-8").split())
    train = {path: name for path, name in label_by_folder(images).items() if path not in test}
    return train, {path: path.partition("/")[0] for path in test}


def list_land(base: Path, images: Path) -> TrainTestPaths:
    """Return all images of EuroSAT below ``images`` as training images."""
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


def list_cars(base: Path, images: Path) -> TrainTestPaths:
    """Return the training and test images of StanfordCars, by the annotations (.mat) in ``base``."""
    from scipy.io import loadmat

    names = loadmat(base / "devkit" / "cars_meta.mat", squeeze_me=True)["class_names"].tolist()

    def read_annotations(file: Path, folder: str) -> LabelledPaths:
        """Return ``file``'s images, in ``folder``; the class "Audi R8 Coupe 2012" becomes "2012 Audi R8 Coupe"."""
        rows = loadmat(file, squeeze_me=True)["annotations"]
        models = {f"{folder}/{row['fname']}": names[int(row["class"]) - 1].rpartition(" ") for row in rows}
        return {path: f"{year} {model}" for path, (model, _, year) in models.items()}

    train = read_annotations(base / "devkit" / "cars_train_annos.mat", "cars_train")
    return train, read_annotations(base / "cars_test_annos_withlabels.mat", "cars_test")


def label_by_folder(images: Path, to_classname: Callable[[str], str] = str) -> LabelledPaths:
    """Return all .jpg images below ``images``, labelled by ``to_classname`` of the relative path of their folder."""
    paths = sorted(path.relative_to(images) for path in images.rglob("*.jpg") if not path.name.startswith("."))
    return {path.as_posix(): to_classname(path.parent.as_posix()) for path in paths}


SOURCES = {
    "Caltech101": Source("Caltech101", "caltech101", list_paths=list_caltech),
    "OxfordPets": Source("OxfordIIITPet", "oxford-iiit-pet", list_paths=list_pets),
    "OxfordFlowers": Source("Flowers102", "flowers-102", list_paths=list_flowers),
    "Food101": Source("Food101", "food-101", list_paths=list_food),
    "FGVCAircraft": Source("FGVCAircraft", "fgvc-aircraft-2013b/data"),
    "SUN397": Source("SUN397", ".", list_paths=list_scenes),
    "DescribableTextures": Source("DTD", "dtd/dtd", list_paths=list_textures),
    "EuroSAT": Source("EuroSAT", "eurosat", list_paths=list_land),
    "StanfordCars": Source(
        manual="cars_train, cars_test, devkit and cars_test_annos_withlabels.mat; the authors' site is gone, "
        "https://github.com/pytorch/vision/issues/7545 lists copies",
        list_paths=list_cars,
    ),
    "UCF101": Source(
        manual="UCF-101-midframes.zip, unpacked; https://drive.google.com/file/d/10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O",
        list_paths=lambda base, images: (label_by_folder(images), {}),
    ),
    "ImageNetV2": Source(
        manual="https://s3-us-west-2.amazonaws.com/imagenetv2public/imagenetv2-matched-frequency.tar.gz, unpacked"
    ),
    "ImageNetSketch": Source(manual="the images of https://github.com/HaohanWang/ImageNet-Sketch, unpacked to images/"),
    "ImageNetA": Source(manual="the images of https://github.com/hendrycks/natural-adv-examples, unpacked"),
    "ImageNetR": Source(manual="the images of https://github.com/hendrycks/imagenet-r, unpacked"),
}


def find_dataset(name: str) -> type:
    """Return the class of a data set in ``SOURCES`` by its registry or config name; capitals, - and _ do not count.

    Raises ``UserError`` for an unknown name.
    """
    plain = name.lower().replace("_", "").replace("-", "")
    for cls in map(DATASET_REGISTRY.get, SOURCES):
        if plain in (cls.__name__.lower(), cls.__module__.rpartition(".")[2].replace("_", "")):
            return cls
    raise UserError(
        f'unknown data set "{name}"; {suggest_name(name, SOURCES)}. tools/prepare_imagenette.py prepares ImageNette'
    )


def download_dataset(name: str, base: Path, last: str) -> None:
    """Download data set ``name`` of ``SOURCES`` with torchvision to a temporary folder, and move its files to ``base``.

    Files that ``base`` has stay. The image folder ``last`` is moved last, so it exists only if all files do.
    Raises ``UserError`` if the download fails.
    """
    import torchvision

    def unpack_safely(archive: str, folder: str, compression: str | None) -> None:
        """Unpack with our checks, in place of torchvision's function, which has none; ``compression`` is ignored."""
        unpack_archive(Path(archive), Path(folder))

    torchvision.datasets.utils._ARCHIVE_EXTRACTORS.update({".tar": unpack_safely, ".zip": unpack_safely})
    source = SOURCES[name]
    mkdir_if_missing(base.parent)
    try:
        with tempfile.TemporaryDirectory(dir=base.parent, prefix=f".{base.name}.") as temporary:
            retry(lambda: getattr(torchvision.datasets, source.torchvision)(temporary, download=True), name)
            base.mkdir(exist_ok=True)
            for entry in sorted(Path(temporary, source.unpacked).iterdir(), key=lambda entry: entry.name == last):
                if entry.suffix not in ARCHIVE_SUFFIXES and not (base / entry.name).exists():
                    entry.rename(base / entry.name)
    except DOWNLOAD_ERRORS as error:
        raise UserError(
            f"cannot download {name} ({error_reason(error)}). Run the command again, or fetch it by hand: its images "
            f"belong into {base / last}"
        ) from error


def draw_split(train: LabelledPaths, test: LabelledPaths) -> dict[str, list]:
    """Draw a split, by the paths alone, and return it in the format of split files (``datasets.split_file``).

    Of each class in ``train``, a fifth becomes val. If ``test`` is empty, 50% remain, 20% become val, 30% test.
    """
    train_end, val_end = (0.8, 1.0) if test else (0.5, 0.7)
    classes = defaultdict(list)
    for path, name in sorted(train.items()):
        classes[name].append(path)
    labels = {name: label for label, name in enumerate(sorted({*train.values(), *test.values()}))}
    split = {"train": [], "val": [], "test": [[path, labels[name], name] for path, name in sorted(test.items())]}
    for name, paths in classes.items():
        drawn = sorted(paths, key=derive_seed)
        i, j = round(train_end * len(drawn)), round(val_end * len(drawn))
        for key, paths in (("train", drawn[:i]), ("val", drawn[i:j]), ("test", drawn[j:])):
            split[key] += [[path, labels[name], name] for path in sorted(paths)]
    return split


def prepare_dataset(name: str, root: Path, own_split: bool) -> type:
    """Download a data set into the data root ``root``, prepare its split file, and return its class.

    Existing images and split files stay. A missing split file is drawn if ``own_split``; if not, a message says where
    to get the one of CoOp's authors. ``name`` is as for ``find_dataset``.

    Raises:
        UserError: the images need a manual download, which the message describes; the download or draw fails; the name
            is unknown; or ``own_split`` is set for a data set without split file.
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


def _prepare_split(cls: type[SplitFile], root: Path, own_split: bool) -> None:
    """Prepare the split file of ``cls`` in the data root ``root``; an existing one stays.

    A missing one is drawn and written if ``own_split``. If not, a message says where to get that of CoOp's authors.
    """
    path = cls.split_path(root)
    if path.exists():
        print(f"{path} is there already")
    elif own_split:
        base = root / cls.dataset_dir
        try:
            train, test = SOURCES[cls.__name__].list_paths(base, base / cls.images)
        except OSError as error:
            raise UserError(f"cannot draw a split of {cls.__name__}: {error}") from error
        if not train:
            raise UserError(f"there are no images (.jpg) below {base / cls.images}")
        split = draw_split(train, test)
        write_json(split, path)
        print(f"{path} written: {', '.join(f'{len(items):,} {key}' for key, items in split.items())}")
        print("It is a split of your own: accuracies on it do not compare with published ones, which are on CoOp's")
    else:
        print(f"Now fetch CoOp's split, {path.name}, from {cls.split_url()} and put it into {path.parent}")
