"""Archives from elsewhere: an entry that could write outside its folder, or fill the disk, is refused by name."""

from __future__ import annotations

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from dassl.utils import UserError

RATIO, SLACK = 64, 64 << 20  # bytes that an archive may unpack to for each of its own, and in any case
MAX_HEADER_BYTES = 1 << 24  # bytes that an entry's header may have; real ones have some hundreds
# What tarfile and zipfile raise for archives that are damaged, or in no format of theirs.
ARCHIVE_ERRORS = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, RuntimeError)


class _SafeTarInfo(tarfile.TarInfo):
    """An entry with a header that cannot take up the memory; tarfile reads it at once, whatever size it claims."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:  # for subclasses to override, says tarfile
        if not self.isreg() and not 0 <= self.size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims to have {self.size:,} bytes")
        return super()._proc_member(archive)


class SafeTarFile(tarfile.TarFile):
    """A tar archive, compressed or not, whose headers cannot take up the memory."""

    tarinfo = _SafeTarInfo
    extraction_filter = staticmethod(getattr(tarfile, "data_filter", lambda member, _: member))  # Python 3.11.4 on


def _check_entry(archive: Path, name: str, is_plain: bool, end: int) -> None:
    """Raise :class:`UserError` unless an entry may be unpacked.

    Args:
        is_plain: whether it is a file or a folder, and no link, device, or file with holes.
        end: where it ends in the archive, before compression.
    """
    path = PurePosixPath(name)
    if not is_plain or path.is_absolute() or ".." in path.parts or set(name) & {"\\", ":", "\0"}:  # "\\", ":": Windows
        raise UserError(f"{archive} has an entry that does not belong in an archive of images: {name}")
    if end > SLACK + RATIO * archive.stat().st_size:
        raise UserError(
            f"{archive} unpacks to {end:,} bytes up to {name} alone, more than {RATIO} times its own size, as bombs do"
        )


def safe_members(archive: SafeTarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the entries of an archive, each checked before its data are read.

    Raises:
        UserError: an entry is a link or a device, or lies outside, or the archive is a bomb.
        tarfile.ReadError: the archive is cut off or damaged.
    """
    for member in archive:
        is_plain = (member.isfile() or member.isdir()) and not member.issparse() and member.size >= 0
        _check_entry(Path(archive.name), member.name, is_plain, member.offset_data + member.size)
        yield member
    archive.fileobj.seek(archive.offset)  # tarfile takes any cut for the end
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise tarfile.ReadError("it breaks off, or is damaged, in the middle")
    while archive.fileobj.read(1 << 20):  # to the end, where gzip compares its checksum
        pass


def unpack_archive(path: Path, folder: Path) -> None:
    """Unpack a tar or zip archive to ``folder``, which is there.

    Raises:
        UserError: as :func:`safe_members` does. What came before the entry is in the folder then.
        DAMAGE: one of them, where the archive is damaged.
    """
    if not zipfile.is_zipfile(path):
        with SafeTarFile.open(path) as archive:
            archive.extractall(folder, safe_members(archive))
        return
    with zipfile.ZipFile(path) as archive:
        size = 0
        for entry in archive.infolist():
            size += entry.file_size
            kind = stat.S_IFMT(entry.external_attr >> 16)  # Unix's, or 0
            _check_entry(path, entry.orig_filename, kind in (0, stat.S_IFREG, stat.S_IFDIR), size)
        archive.extractall(folder)
