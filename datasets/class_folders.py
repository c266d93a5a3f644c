"""Data sets in ImageNet's layout: class folders ``images/{train,val}/<folder>/…`` and a file ``classnames.txt``."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from yacs.config import CfgNode

from dassl.data.datasets import Datum
from dassl.engine.record import SPLIT_FOLDER
from dassl.utils import UserError
from dassl.utils.images import EXAMPLE_EXTENSIONS, find_extension, is_image_name, is_system_name

from .links import LinkPolicy, check_link_target, scan_folder
from .protocol import FewShotDataset

CLASSNAMES_FILE = "classnames.txt"


class ClassFolders(FewShotDataset):
    """A data set ``<DATASET.ROOT>/<dataset_dir>/images/{train,val}/<folder>/…``, with a file ``classnames.txt``.

    The folder ``val`` is the test set; validation images come from the training images (``FewShotDataset``).

    Raises:
        UserError: a folder or class name is missing, a class is empty, or a file is no image; the message names it.
    """

    download_hint = ""  # end of the error for missing data: how to get it

    def __init__(self, cfg: CfgNode):
        base = self.folder(cfg)
        layout = f"{self.dataset_dir}/images/train and …/val with one folder a class"
        roots = [base / "images" / split for split in ("train", "val")]
        folders = list_class_folders(roots, f"DATASET.ROOT (--root) must hold {layout}{self.download_hint}")
        writer = f"tools/fix_imagenet.py --root {base.parent} writes it for ImageNet's folders"
        names = match_classnames(base / CLASSNAMES_FILE, folders, writer)
        links = LinkPolicy(cfg, base)
        train, test = (list_images(root, names, links, allow_empty=root != roots[0]) for root in roots)
        super().__init__(cfg, train, test)


def list_class_folders(roots: Sequence[Path], hint: str) -> list[str]:
    """Return the sorted names of the class folders of the first of ``roots``; hidden and system's ones do not count.

    Raises:
        UserError: a root is missing (``hint`` ends the message) or has no class folder, or the first, that of the
            training images, lacks one that another has.
    """
    folders: dict[Path, list[str]] = {}
    for root in roots:
        if not root.is_dir():
            raise UserError(f"no folder {root}. {hint}")
        entries = [e for e in root.iterdir() if not is_system_name(e.name) and e.name != SPLIT_FOLDER]
        for entry in entries:
            check_link_target(entry)
        folders[root] = sorted(entry.name for entry in entries if entry.is_dir())
        if not folders[root]:
            raise UserError(f"{root} has no class folders")
    train = roots[0]
    for other in roots[1:]:
        if missing := sorted(set(folders[other]) - set(folders[train])):
            raise UserError(f"{train} lacks class folders that {other.name} has: {', '.join(missing)}")
    return folders[train]


def list_images(root: Path, names: dict[str, str], links: LinkPolicy, allow_empty: bool = False) -> list[Datum]:
    """Return the images in the class folders of ``root``, sorted by file name in each folder; pass over system's files.

    ``names`` has the class name of each folder; the folder's position in ``names``, from 0, is its label. With
    ``allow_empty``, a class folder may be empty or missing.

    Raises:
        UserError: a class folder is empty or holds something other than images, or ``links`` refuses a symbolic link.
    """
    items = []
    links.check((root / folder for folder in names if (root / folder).is_symlink()), root)
    for label, (folder, classname) in enumerate(names.items()):
        if allow_empty and not (root / folder).exists():
            continue
        entries = {name: is_link for name, is_link in scan_folder(root / folder).items() if not is_system_name(name)}
        links.check((root / folder / name for name, is_link in entries.items() if is_link), root)
        files = sorted(entries)
        if not files and not allow_empty:
            raise UserError(f"the class folder {root / folder} is empty")
        for file in files:
            path = root / folder / file
            if not is_image_name(file):
                raise _not_an_image_error(path)
            items.append(Datum(path, label, classname=classname))
    return items


def _not_an_image_error(path: Path) -> UserError:
    """Return the error for something else than an image in a class folder."""
    if path.is_dir():
        hint = f"If {path.parent.name} is no class, DATASET.FOLDER (--root) is one level too high"
        return UserError(f"{path} is a folder; images lie in the class folder itself, {path.parent}. {hint}")
    if extension := find_extension(path):
        return UserError(f"{path} is an image by its content, but not by its name: let it end in {extension}")
    kind = f"a {path.suffix.lower()} file" if path.suffix else "a file without extension"
    return UserError(f"{path} is not an image ({EXAMPLE_EXTENSIONS}), but {kind}; move it out of the class folders")


def match_classnames(path: Path, folders: Iterable[str], hint: str) -> dict[str, str]:
    """Return the class name of each of ``folders``, in their order, from the file ``path`` (``read_classnames``).

    Raises ``UserError`` if the file is missing (``hint`` ends the message) or lacks a folder.
    """
    names = read_classnames(path, hint)
    if missing := [folder for folder in folders if _normalize_unicode(folder) not in names]:
        form = "<folder> <class name>, with a tab between the two where the folder's name has spaces"
        raise UserError(f"{path} has no name for the folders {', '.join(missing)}; its lines are {form}")
    return {folder: names[_normalize_unicode(folder)] for folder in folders}


def _normalize_unicode(name: str) -> str:
    """Return ``name`` in the form NFC, with accents in their letters; macOS stores folder names in another form."""
    return unicodedata.normalize("NFC", name)


def read_classnames(path: Path, hint: str = "") -> dict[str, str]:
    """Return the class name of each folder, in the order of the lines of ``path``, such as ``n01440764 tench``.

    A tab separates a folder name with spaces from the class name. Folder names are returned in the Unicode form NFC.

    Raises:
        UserError: the file is missing (``hint`` ends the message), a line is wrong, or a folder has two names.
    """
    if not os.path.isfile(path):
        raise UserError(f"no {path}: it names the class folders, one a line (n01440764 tench). {hint}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # Notepad puts a mark before the first line
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read, or is not UTF-8 text: {error}") from error
    names: dict[str, str] = {}
    line_numbers: dict[str, int] = {}  # of the first line of each folder
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line:
            continue
        folder, _, name = line.partition("\t" if "\t" in line else " ")
        if not name.strip():
            raise UserError(f'{path}, line {number}: "{line}" is not "<folder> <class name>"')
        folder, name = _normalize_unicode(folder.strip()), name.strip()
        first = line_numbers.setdefault(folder, number)
        if names.setdefault(folder, name) != name:
            raise UserError(f'{path}: line {first} names {folder} "{names[folder]}", line {number} "{name}"')
    return names
