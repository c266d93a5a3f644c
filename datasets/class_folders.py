"""Images in class folders, as ImageNet comes: ``images/{train,val}/<folder>/…`` and ``classnames.txt``."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import permutations
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS
from yacs.config import CfgNode

from dassl.data.datasets import Datum
from dassl.utils import UserError

from . import few_shot_split
from .links import LinkPolicy, check_link_target, scan_folder
from .protocol import FewShotDataset

CLASSNAMES_FILE = "classnames.txt"


class ClassFolders(FewShotDataset):
    """A data set below ``<DATASET.ROOT>/<dataset_dir>``, with however many class folders there are.

    The folder ``val`` is the test set; validation images come from the training images (:class:`FewShotDataset`).

    Raises:
        UserError: a folder or name is missing, a class is empty, or a file is no image; the message names it.
    """

    download_hint = ""  # what to do where the data is missing

    def __init__(self, cfg: CfgNode):
        base = self.folder(cfg)
        layout = f"{self.dataset_dir}/images/train and …/val with one folder a class"
        roots = [base / "images" / split for split in ("train", "val")]
        folders = list_class_folders(roots, f"DATASET.ROOT (--root) must hold {layout}{self.download_hint}")
        writer = f"tools/fix_imagenet.py --root {base.parent} writes it for ImageNet's folders"
        names = match_classnames(base / CLASSNAMES_FILE, folders, writer)
        links = LinkPolicy(cfg, base)
        train, test = (list_images(root, names, links) for root in roots)
        super().__init__(cfg, train, test)


def list_class_folders(roots: Sequence[Path], hint: str) -> list[str]:
    """Return the names of the folders in each of ``roots``, which must have the same ones, sorted.

    Raises:
        UserError: so it is not; or there is no such root, and ``hint`` says what to do.
    """
    folders = {}
    for root in roots:
        if not root.is_dir():
            raise UserError(f"no folder {root}. {hint}")
        entries = [e for e in root.iterdir() if not e.name.startswith(".") and e.name != few_shot_split.SPLIT_FOLDER]
        for entry in entries:
            check_link_target(entry)
        folders[root] = sorted(entry.name for entry in entries if entry.is_dir())
        if not folders[root]:
            raise UserError(f"{root} has no class folders")
    for root, other in permutations(roots, 2):
        if missing := sorted(set(folders[other]) - set(folders[root])):
            raise UserError(f"{root} lacks class folders that {other.name} has: {', '.join(missing)}")
    return folders[roots[0]]


def list_images(root: Path, names: dict[str, str], links: LinkPolicy) -> list[Datum]:
    """Return the images of each class folder below ``root``.

    Labels count the folders in the order of ``names``, which maps them to class names. ``links`` decides which links
    among them are followed.
    """
    items = []
    links.check((root / folder for folder in names if (root / folder).is_symlink()), root)
    for label, (folder, classname) in enumerate(names.items()):
        found = {name: is_link for name, is_link in scan_folder(root / folder).items() if not name.startswith(".")}
        links.check((root / folder / name for name, is_link in found.items() if is_link), root)
        files = sorted(found)
        if not files:
            raise UserError(f"the class folder {root / folder} is empty")
        for file in files:
            path = root / folder / file
            if not file.lower().endswith(IMG_EXTENSIONS):
                if path.is_dir():
                    raise UserError(f"{path} is a folder; images lie in the class folder itself, {path.parent}")
                raise UserError(f"{path} is not an image ({', '.join(IMG_EXTENSIONS)}); remove it")
            items.append(Datum(path, label, classname=classname))
    return items


def match_classnames(path: Path, folders: Iterable[str], hint: str) -> dict[str, str]:
    """Return the ``folders`` with the names that the file ``path`` gives them."""
    names = read_classnames(path, hint)
    if nameless := [folder for folder in folders if _normalize_unicode(folder) not in names]:
        form = "<folder> <class name>, with a tab between the two where the folder's name has spaces"
        raise UserError(f"{path} has no name for the folders {', '.join(nameless)}; its lines are {form}")
    return {folder: names[_normalize_unicode(folder)] for folder in folders}


def _normalize_unicode(name: str) -> str:
    """Accents as parts of their letters: macOS writes the names of folders otherwise."""
    return unicodedata.normalize("NFC", name)


def read_classnames(path: Path, hint: str = "") -> dict[str, str]:
    """Return folder name -> class name, from lines such as ``n01440764 tench``; a tab ends a name that has spaces.

    Accents of a folder's name are parts of their letters (NFC).

    Raises:
        UserError: the file is missing (``hint`` says what to do then), a line is not of that form, or two lines
            give one folder different names.
    """
    if not os.path.isfile(path):
        raise UserError(f"no {path}: it names the class folders, one a line (n01440764 tench). {hint}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # Notepad puts a mark before the first line
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read, or is not UTF-8 text: {error}") from error
    names, lines_of = {}, {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line:
            continue
        folder, _, name = line.partition("\t" if "\t" in line else " ")
        if not name.strip():
            raise UserError(f'{path}, line {number}: "{line}" is not "<folder> <class name>"')
        folder, name = _normalize_unicode(folder.strip()), name.strip()
        first = lines_of.setdefault(folder, number)
        if names.setdefault(folder, name) != name:
            raise UserError(f'{path}: line {first} names {folder} "{names[folder]}", line {number} "{name}"')
    return names
