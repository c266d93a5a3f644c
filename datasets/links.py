"""Links in a data set. Those of its layout (the data set's folder, ``images``, ``train``, …) are the user's own and are
followed; one further below that leads out of the data could pass any file of the machine for an image."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from yacs.config import CfgNode

from dassl.utils import UserError


def scan_folder(folder: str | os.PathLike) -> dict[str, bool]:
    """Return the names in a folder, and whether each is a link. The files themselves are not looked at."""
    with os.scandir(folder) as entries:
        return {entry.name: entry.is_symlink() for entry in entries}


def check_link_target(path: str | os.PathLike) -> None:
    """Raise :class:`UserError` if ``path`` is a link to what is not there."""
    if os.path.islink(path) and not os.path.exists(path):
        raise UserError(f"{path} is a link to {os.readlink(path)}, which is not there")


class LinkPolicy:
    """Decides on the links in a data set below ``folder``: whether they stay in it, or at least in DATASET.ROOT."""

    def __init__(self, cfg: CfgNode, folder: Path):
        self.follow_all = cfg.DATASET.FOLLOW_LINKS
        self.inside = {os.path.realpath(place) for place in (Path(cfg.DATASET.ROOT).expanduser(), folder)}

    def check(self, paths: Iterable[str | os.PathLike], split: str | os.PathLike) -> None:
        """Raise :class:`UserError` where one of ``paths`` leads out of the data and of the folder ``split``.

        An image that leads to nothing passes: who reads it says so, as of any image that cannot be read.
        """
        inside = {*self.inside, os.path.realpath(split)}
        for path in paths:
            target = os.path.realpath(path)
            allowed = self.follow_all or any(Path(target).is_relative_to(folder) for folder in inside)
            if not allowed and os.path.exists(target):
                where = f"{target}, outside {' and '.join(sorted(inside))}"
                raise UserError(f"{path} leads by a link to {where}. If that is meant, say DATASET.FOLLOW_LINKS True")
