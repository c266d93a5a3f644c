"""Archives, links, split files and downloads that are not what they should be."""

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
from tools.prepare_imagenette import unpack_imagenette as unpack_imagenette

BOMB = bytes(8 << 20)
little = mock.patch("dassl.data.archives.SLACK", 1 << 20)  # so that a bomb may be small


def entry(name: str = "imagenette/train/n1/b.jpg", **values: object) -> tarfile.TarInfo:
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


def unpacked(bad: tarfile.TarInfo, folder: Path) -> None:
    """Of an archive with a picture and a bad entry, which has no data, whatever it claims."""
    with tarfile.open(folder / "archive.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for info in (entry("imagenette/train/n1/a.jpg"), bad):
            archive.addfile(info)
    unpack_imagenette(folder / "archive.tar", folder / "data/images")


@little
def unzipped(name: str, mode: int, content: str | bytes, folder: Path) -> None:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    unpack_archive(folder / "archive.zip", folder)


def linked(name: str, target: str, folder: Path) -> None:
    """Of a folder of class folders with a link in it."""
    write_images(folder, ["secret/s.jpg", *(f"data/photos/{pet}/{i}.jpg" for pet in ("cat", "dog") for i in range(3))])
    (folder / "data/photos" / name).symlink_to(target.format(folder))
    build_dataset(config(folder / "data", "ImageFolder", FOLDER="photos"))


def listed(name: str, link: str, folder: Path) -> None:
    """Of a data set with one more image in its split file, and a link in its folder to something below ``secret``."""
    path = write_split_file("dtd", folder / "data")
    write_images(folder, ["secret/s.jpg"])
    (folder / "data/dtd/images/link").symlink_to(folder / "secret" / link)
    content = json.loads(path.read_text())
    content["train"].append([name, 0, "ant"])
    path.write_text(json.dumps(content))
    build_dataset(config(folder / "data", "DescribableTextures"))


def living_config(folder: Path) -> None:
    (folder / "config.yaml").write_text(f"SEED: !!python/object/apply:os.system ['touch {folder / MARKER}']\n")
    merge_file(get_cfg_default(), folder / "config.yaml")


def endless_download(folder: Path) -> None:
    write_images(folder, ["source.jpg"])
    with mock.patch("dassl.data.downloads.MAX_BYTES", 10):
        try:
            download((folder / "source.jpg").as_uri(), folder / "target/weights.pt", "0" * 64)
        finally:
            assert not list((folder / "target").iterdir())


# What a file is -> a function that makes it in a folder and has it read.
CASES: dict[str, Callable[[Path], None]] = {
    **{f"tar: {name}": partial(unpacked, bad) for name, bad in ENTRIES.items()},
    "zip: ../": partial(unzipped, "../b.jpg", stat.S_IFREG, ""),
    "zip: a symbolic link": partial(unzipped, "b.jpg", stat.S_IFLNK, "/etc/passwd"),
    "zip: a bomb": partial(unzipped, "b.jpg", stat.S_IFREG, BOMB),
    "link: an image from elsewhere": partial(linked, "cat/9.jpg", "{}/secret/s.jpg"),
    "link: an image from above": partial(linked, "cat/9.jpg", "../../../secret/s.jpg"),
    "link: a class folder that is not there": partial(linked, "bird", "nowhere"),
    "link: a class folder in a circle": partial(linked, "circle", "circle"),
    "split file: a name with a NUL": partial(listed, "ant\0/a.jpg", ""),
    "split file: a name that is no Unicode": partial(listed, "\ud800/a.jpg", ""),
    "split file: a link to an image elsewhere": partial(listed, "link", "s.jpg"),
    "split file: a link to a folder elsewhere": partial(listed, "link/s.jpg", ""),
    "YAML: an object": living_config,
    "download: without an end": endless_download,
}
