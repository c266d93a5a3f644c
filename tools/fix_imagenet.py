"""Write ``classnames.txt`` for the ImageNet class folders that are there, with the names that CLIP's authors chose.

    python tools/fix_imagenet.py --root ./data
    python tools/fix_imagenet.py --root ./data --folder imagenet21k      # for DATASET.NAME ImageFolder

Names come from open_clip (which holds CLIP's curated names in class order) and timm (which holds the folder names in
the same order). With ``--folder``, class folders of ImageNet-21k lie in it, or in its train, val and test; they get the
first word of WordNet, which timm holds for 21,841 of them. A file that is there is kept unless ``--force``.
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


def locate_package_file(package: str, path: str) -> Path:
    """A file of an installed package; the package itself, seconds of imports, stays unloaded."""
    try:
        return Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError as error:
        raise UserError(f"the package {package} is missing: pip install -r requirements.txt") from error


def load_imagenet_names() -> dict[str, str]:
    """ImageNet's 1,000 folder names -> CLIP's class names."""
    folders = locate_package_file("timm", "timm/data/_info/imagenet_synsets.txt").read_text().split()
    metadata = runpy.run_path(str(locate_package_file("open_clip_torch", "open_clip/zero_shot_metadata.py")))
    return dict(zip(folders, metadata["IMAGENET_CLASSNAMES"], strict=True))


def load_imagenet21k_names() -> dict[str, str]:
    """ImageNet-21k's 21,841 folder names -> the first word that WordNet has for each. Some have the same."""
    information = locate_package_file("timm", "timm/data/_info")
    lines = (information / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    words = dict(line.split("\t", 1) for line in lines)
    folders = (information / "imagenet22k_synsets.txt").read_text().split()
    return {folder: words[folder].partition(",")[0].strip() for folder in folders}


def list_class_folders(images: Path, names: Sequence[str]) -> list[str]:
    """The names of the folders in those folders below ``images`` that are there, sorted."""
    splits = [images / split for split in names if (images / split).is_dir()]
    folders = {p.name for split in splits for p in split.iterdir() if p.is_dir() and not p.name.startswith(".")}
    if not folders:
        raise UserError(f"no class folders in {' or '.join(f'{images}/{split}' for split in names)}")
    return sorted(folders)


def fix_imagenet(root: Path, force: bool = False, folder: str = "") -> Path:
    """Write ``<root>/imagenet/classnames.txt``, or that of a ``folder`` with ImageNet-21k's classes; returns its path.

    Folders that are not ImageNet's are listed and left out.

    Raises:
        UserError: there are no class folders, or none of them is ImageNet's.
    """
    path = root / (folder or "imagenet") / "classnames.txt"
    if path.exists() and not force:
        print(f"{path} is there already; --force writes it anew")
        return path
    if folder:
        names, below = load_imagenet21k_names(), root / folder
        folders = list_class_folders(below, ("train", "val", "test") if (below / "train").is_dir() else ("",))
    else:
        names, folders = load_imagenet_names(), list_class_folders(root / "imagenet" / "images", ("train", "val"))
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("./data"), help="folder of the data sets (./data)")
    parser.add_argument("--force", action="store_true", help="replace the file that is there")
    parser.add_argument("--folder", default="", help="of ImageNet-21k's class folders, below --root")
    args = parser.parse_args(argv)
    fix_imagenet(args.root, args.force, args.folder)


if __name__ == "__main__":
    sys.exit(main())
