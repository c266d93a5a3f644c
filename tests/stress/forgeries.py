"""Hostile archives, links, split files, configs and downloads."""

from __future__ import annotations

import json
import stat
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

from dassl.config import get_cfg_default, merge_file
from dassl.data.archives import unpack_archive
from dassl.data.datasets import build_dataset
from dassl.data.downloads import download
from tests.datasets.shapes import config, write_images, write_split_file
from tests.stress.attacks import MARKER
from tools.prepare_imagenette import unpack_imagenette

BOMB = bytes(8 << 20)  # eight times the patched limit; zeros compress a thousandfold
with_small_limit = mock.patch("dassl.data.archives.SLACK", 1 << 20)  # bytes; lets a small file be a bomb


def entry(name: str = "imagenette/train/n1/b.jpg", **values: object) -> tarfile.TarInfo:
    """Return an entry of a tar archive with these attributes."""
    info = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(info, key, value)
    return info


ENTRIES = {
    "an absolute name": entry("/tmp/b.jpg"),
    "a name of Windows": entry("imagenette\\..\\b.jpg"),
    "a hard link": entry(type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "a device": entry(type=tarfile.BLKTYPE),
    "a file with holes": entry(type=tarfile.GNUTYPE_SPARSE),
    "a file of 1 TB": entry(size=1 << 40),
    "a file of less than nothing": entry(size=-512),
    "a name of 1 TB": entry(type=tarfile.GNUTYPE_LONGNAME, size=1 << 40),
}


def unpack_tar(bad: tarfile.TarInfo, folder: Path) -> None:
    """Unpack an archive with an image and a bad entry, which has no data, whatever it claims."""
    with tarfile.open(folder / "archive.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for info in (entry("imagenette/train/n1/a.jpg"), bad):
            archive.addfile(info)
    unpack_imagenette(folder / "archive.tar", folder / "data/images")


@with_small_limit
def unpack_zip(name: str, mode: int, content: str | bytes, folder: Path) -> None:
    """Unpack a zip archive with one entry."""
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    unpack_archive(folder / "archive.zip", folder)


def build_with_link(name: str, target: str, folder: Path) -> None:
    """Build a data set from class folders with a link in them."""
    write_images(folder, ["secret/s.jpg", *(f"data/photos/{pet}/{i}.jpg" for pet in ("cat", "dog") for i in range(3))])
    (folder / "data/photos" / name).symlink_to(target.format(folder))
    build_dataset(config(folder / "data", "ImageFolder", FOLDER="photos"))


def build_with_split_entry(name: str, link: str, folder: Path) -> None:
    """Build a data set with one more image in its split file.

    A name that begins with "link" is that of a link in the data set's folder, to the path ``link`` below ``secret``.
    """
    path = write_split_file("dtd", folder / "data")
    write_images(folder, ["secret/s.jpg"])
    if name.startswith("link"):
        (folder / "data/dtd/images/link").symlink_to(folder / "secret" / link)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["train"].append([name, 0, "ant"])
    path.write_text(json.dumps(content), encoding="utf-8")
    build_dataset(config(folder / "data", "DescribableTextures"))


def merge_executable_config(folder: Path) -> None:
    """Merge a config file that runs a command when YAML builds its object."""
    (folder / "config.yaml").write_text(
        f"SEED: !!python/object/apply:os.system ['touch {folder / MARKER}']\n", encoding="utf-8"
    )
    merge_file(get_cfg_default(), folder / "config.yaml")


def download_endless_file(folder: Path) -> None:
    """Download a file that is larger than the limit."""
    write_images(folder, ["source.jpg"])
    with mock.patch("dassl.data.downloads.MAX_DOWNLOAD_BYTES", 10):
        try:
            download((folder / "source.jpg").as_uri(), folder / "target/weights.pt", "0" * 64)
        finally:
            assert not list((folder / "target").iterdir())


# By description of a hostile file: a function that writes it to a folder and reads it.
CASES: dict[str, Callable[[Path], None]] = {
    **{f"tar: {name}": partial(unpack_tar, bad) for name, bad in ENTRIES.items()},
    "zip: ../": partial(unpack_zip, "../b.jpg", stat.S_IFREG, ""),
    "zip: a symbolic link": partial(unpack_zip, "b.jpg", stat.S_IFLNK, "/etc/passwd"),
    "zip: a bomb": partial(unpack_zip, "b.jpg", stat.S_IFREG, BOMB),
    "link: an image from elsewhere": partial(build_with_link, "cat/9.jpg", "{}/secret/s.jpg"),
    "link: an image from above": partial(build_with_link, "cat/9.jpg", "../../../secret/s.jpg"),
    "link: a class folder that is not there": partial(build_with_link, "bird", "nowhere"),
    "link: a class folder in a circle": partial(build_with_link, "circle", "circle"),
    "split file: a name with a NUL": partial(build_with_split_entry, "ant\0/a.jpg", ""),
    "split file: a name that is no Unicode": partial(build_with_split_entry, "\ud800/a.jpg", ""),
    "split file: a link to an image elsewhere": partial(build_with_split_entry, "link", "s.jpg"),
    "split file: a link to a folder elsewhere": partial(build_with_split_entry, "link/s.jpg", ""),
    "YAML: an object": merge_executable_config,
    "download: without an end": download_endless_file,
}
