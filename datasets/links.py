"""Symbolic links in data sets. Links to the main folders (``images``, ``train``, …) are the user's and are followed.

A link further below may come with the data. If it leads out of the data, it can make any file of the machine an image.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from yacs.config import CfgNode

from dassl.utils import UserError


def scan_folder(folder: str | os.PathLike) -> dict[str, bool]:
    """Return the names in a folder, and whether each is a symbolic link."""
    with os.scandir(folder) as entries:
        return {entry.name: entry.is_symlink() for entry in entries}


def check_link_target(path: str | os.PathLike) -> None:
    """Raise ``UserError`` if ``path`` is a broken symbolic link."""
    if os.path.islink(path) and not os.path.exists(path):
        raise UserError(f"{path} is a link to {os.readlink(path)}, which is not there")


class LinkPolicy:
    """Accepts links to files below ``folder`` (the data set's) or DATASET.ROOT, or all with DATASET.FOLLOW_LINKS."""

    def __init__(self, cfg: CfgNode, folder: Path):
        self.follow_all = cfg.DATASET.FOLLOW_LINKS
        self.allowed_folders = {os.path.realpath(path) for path in (Path(cfg.DATASET.ROOT).expanduser(), folder)}

    def check(self, paths: Iterable[str | os.PathLike], split_folder: str | os.PathLike) -> None:
        """Raise ``UserError`` if one of ``paths`` leads out of the allowed folders; ``split_folder`` is one more.

        A broken link passes, and is reported as an unreadable image when it is read.
        """
        folders = {*self.allowed_folders, os.path.realpath(split_folder)}
        for path in paths:
            target = os.path.realpath(path)
            is_allowed = self.follow_all or any(Path(target).is_relative_to(folder) for folder in folders)
            if not is_allowed and os.path.exists(target):
                where = f"{target}, outside {' and '.join(sorted(folders))}"
                raise UserError(f"{path} leads by a link to {where}. To accept it, set DATASET.FOLLOW_LINKS True")
