"""Write ``classnames.txt`` for existing ImageNet class folders, with the class names that CLIP's authors chose.

    python tools/fix_imagenet.py --root ./data
    python tools/fix_imagenet.py --root ./data --folder imagenet21k      # for DATASET.NAME ImageFolder

The class names come from open_clip (CLIP's names in class order), the folder names from timm (in the same order).
``--folder`` has class folders of ImageNet-21k, or such folders in train, val and test; each of its 21,841 classes gets
its first word in WordNet, from timm. An existing file stays unless ``--force``.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import UserError, atomic_write, command_line
from dassl.utils.images import is_system_name


def locate_package_file(package: str, path: str) -> Path:
    """Return the path of a file in an installed package. The package is not imported, which would take seconds.

    ``path`` is relative to site-packages. Raise ``UserError`` if ``package`` is not installed.
    """
    try:
        return Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError as error:
        raise UserError(f"the package {package} is missing: pip install -r requirements.txt") from error


def load_imagenet_names() -> dict[str, str]:
    """Return CLIP's class name for each of ImageNet's 1,000 folder names (WordNet ids), in class order."""
    folders = locate_package_file("timm", "timm/data/_info/imagenet_synsets.txt").read_text().split()
    metadata = runpy.run_path(str(locate_package_file("open_clip_torch", "open_clip/zero_shot_metadata.py")))
    return dict(zip(folders, metadata["IMAGENET_CLASSNAMES"], strict=True))


def load_imagenet21k_names() -> dict[str, str]:
    """Return the first WordNet word for each of ImageNet-21k's 21,841 folder names; the words are not unique."""
    info_folder = locate_package_file("timm", "timm/data/_info")
    lines = (info_folder / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    words = dict(line.split("\t", 1) for line in lines)
    folders = (info_folder / "imagenet22k_synsets.txt").read_text().split()
    return {folder: words[folder].partition(",")[0].strip() for folder in folders}


def find_class_folders(images: Path, splits: Sequence[str]) -> list[str]:
    """Return the folder names in ``images/<split>`` of all existing splits, sorted, without duplicates.

    Raise ``UserError`` if there is none.
    """
    paths = [path for split in splits if (images / split).is_dir() for path in (images / split).iterdir()]
    folders = {path.name for path in paths if path.is_dir() and not is_system_name(path.name)}
    if not folders:
        raise UserError(f"no class folders in {' or '.join(f'{images}/{split}' for split in splits)}")
    return sorted(folders)


def fix_imagenet(root: Path, force: bool = False, folder: str = "") -> Path:
    """Write ``<root>/imagenet/classnames.txt`` and return its path. Class folders unknown to ImageNet are printed.

    Args:
        force: True to replace an existing file, which otherwise stays as it is.
        folder: folder below ``root`` with ImageNet-21k's classes, which gets the file instead; "": ImageNet's.

    Raises:
        UserError: there are no class folders, or none of them is ImageNet's.
    """
    path = root / (folder or "imagenet") / "classnames.txt"
    if path.exists() and not force:
        print(f"{path} is there already; --force writes it anew")
        return path
    if folder:
        names, images = load_imagenet21k_names(), root / folder
        folders = find_class_folders(images, ("train", "val", "test") if (images / "train").is_dir() else ("",))
    else:
        names, folders = load_imagenet_names(), find_class_folders(root / "imagenet" / "images", ("train", "val"))
    known = [folder for folder in folders if folder in names]
    unknown = [folder for folder in folders if folder not in names]
    if not known:
        raise UserError(f"none of the class folders is ImageNet's: {', '.join(unknown)}")
    with atomic_write(path) as file:
        file.writelines(f"{folder} {names[folder]}\n" for folder in known)
    print(f"{path} written: {len(known)} classes")
    if unknown:
        print(f"Not ImageNet's: {', '.join(unknown)}. Remove these folders, or add a line <folder> <name> for each")
    return path


@command_line()
def main(argv: list[str] | None = None) -> None:
    """Write ``classnames.txt`` of the data set that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("./data"), help="folder of the data sets (./data)")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument("--folder", default="", help="folder below --root with ImageNet-21k's class folders")
    args = parser.parse_args(argv)
    fix_imagenet(args.root, args.force, args.folder)


if __name__ == "__main__":
    sys.exit(main())
