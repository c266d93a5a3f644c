"""Archives from elsewhere: an entry that could write outside its folder, or fill the disk, is refused by name."""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from dassl.utils import UserError

RATIO, SLACK = 64, 64 << 20  # bytes that an archive may unpack to for each of its own, and in any case
HEADER = 1 << 24  # bytes that an entry's header may have; real ones have some hundreds
# What tarfile and zipfile raise for archives that are damaged, or in no format of theirs.
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, RuntimeError)


class Tar(tarfile.TarFile):
    """A tar archive, compressed or not, whose headers cannot take up the memory."""

    extraction_filter = staticmethod(getattr(tarfile, "data_filter", lambda member, _: member))  # Python 3.11.4 on

    def __init__(self, name=None, mode="r", fileobj: IO[bytes] | None = None, **settings):
        parts = _InParts(fileobj or open(name, "rb"))  # noqa: SIM115  it is closed with the archive
        try:
            super().__init__(name, mode, parts, **settings)
        except BaseException:
            parts.close()
            raise
        self._extfileobj = False  # to be closed with the archive


class _InParts:
    """A file that is read in parts of up to ``HEADER`` bytes; tarfile reads a header at once, however long it claims
    to be."""

    def __init__(self, file: IO[bytes]):
        self.file, self.seek, self.tell, self.close = file, file.seek, file.tell, file.close

    def read(self, size: int) -> bytes:
        if not 0 <= size <= HEADER:
            raise tarfile.ReadError(f"a header claims to have {size:,} bytes")
        return self.file.read(size)


class _Checks:
    """What is refused in an archive that is unpacked to ``folder``."""

    def __init__(self, path: Path, folder: Path):
        self.path, self.folder = path, folder
        self.most, self.free = SLACK + RATIO * path.stat().st_size, shutil.disk_usage(folder).free
        self.names: set[str] = set()
        self.size = 0

    def __call__(self, name: str, size: int, is_plain: bool, end: int = 0) -> None:
        """Raise :class:`UserError` unless the entry may be unpacked after those before it.

        Args:
            is_plain: whether it is a file or a folder, and no link, device, or file with holes.
            end: where it ends in the archive, before compression.
        """
        path = PurePosixPath(name)
        outside = path.is_absolute() or ".." in path.parts or set(name) & {"\\", ":", "\0"}  # the first two: Windows'
        if outside or not is_plain or size < 0:
            raise UserError(f"{self.path} has an entry that does not belong in an archive of images: {name}")
        if not name.endswith("/"):
            if name in self.names:
                raise UserError(f"{self.path} has two entries of one name: {name}")
            self.names.add(name)
        self.size += size
        for bytes_, limit, why in (
            (max(end, self.size), self.most, f"more than {RATIO} times its own size, as bombs do"),
            (self.size, self.free, f"but {self.folder} has room for {self.free:,} bytes"),
        ):
            if bytes_ > limit:
                raise UserError(f"{self.path} unpacks to {bytes_:,} bytes up to {name} alone, {why}")


def members(archive: Tar, folder: Path) -> Iterator[tarfile.TarInfo]:
    """The entries of an archive, each checked before its data are read; ``folder`` is where they are to go.

    Raises:
        UserError: an entry is a link or a device, lies outside, is there twice, or the archive is a bomb.
        tarfile.ReadError: the archive is cut off or damaged.
    """
    check = _Checks(Path(archive.name), folder)
    for member in archive:
        is_plain = (member.isfile() or member.isdir()) and not member.issparse()
        name = f"{member.name}/" if member.isdir() else member.name
        check(name, member.size, is_plain, member.offset_data + member.size)
        yield member
    _check_end(archive, check.most)


def _check_end(archive: Tar, most: int) -> None:
    """Raise ``tarfile.ReadError`` unless the archive ends as tar archives do; tarfile takes any cut for the end."""
    archive.fileobj.seek(archive.offset)
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise tarfile.ReadError("it breaks off, or is damaged, in the middle")
    while archive.fileobj.read(1 << 20):  # to the end, where gzip compares its checksum
        if archive.fileobj.tell() > most:
            raise UserError(f"{archive.name} goes on after its end for more than {most:,} bytes, as bombs do")


def unpack(path: Path, folder: Path) -> None:
    """Unpack a tar or zip archive to ``folder``, which is there.

    Raises:
        UserError: as :func:`members` does. What came before the entry is in the folder then.
        DAMAGE: one of them, where the archive is damaged.
    """
    if not zipfile.is_zipfile(path):
        with Tar.open(path) as archive:
            archive.extractall(folder, members(archive, folder))
        return
    check = _Checks(path, folder)
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            kind = stat.S_IFMT(entry.external_attr >> 16)  # Unix's, or 0
            check(entry.orig_filename, entry.file_size, kind in (0, stat.S_IFREG, stat.S_IFDIR))
        archive.extractall(folder)
