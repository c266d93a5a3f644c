"""Safe unpacking of downloaded archives: entries that would write outside the folder or fill the disk are refused."""

from __future__ import annotations

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from dassl.utils import UserError

# An archive may unpack to SLACK bytes plus RATIO times its size: images hardly compress, zip bombs a thousandfold, and
# small archives of uniform images in between.
RATIO, SLACK = 64, 64 << 20
MAX_HEADER_BYTES = 1 << 24  # bytes of an entry's header; real headers have some hundreds
# The errors of tarfile and zipfile for archives that are damaged or in an unknown format.
ARCHIVE_ERRORS = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, RuntimeError)


class _SafeTarInfo(tarfile.TarInfo):
    """An entry of a tar archive whose header is read only up to ``MAX_HEADER_BYTES``; tarfile itself has no limit."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """Read the rest of an entry's header, such as a long name; ``tarfile.ReadError`` above MAX_HEADER_BYTES."""
        if not self.isreg() and not 0 <= self.size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims to have {self.size:,} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]  # a hook of tarfile that the stubs leave out


class SafeTarFile(tarfile.TarFile):
    """A tar archive, compressed or not, whose entries' headers cannot fill the memory."""

    tarinfo = _SafeTarInfo
    extraction_filter = staticmethod(getattr(tarfile, "data_filter", lambda member, _: member))  # from Python 3.11.4


def _check_entry(archive: Path, name: str, is_plain: bool, end: int) -> None:
    """Raise ``UserError`` unless an entry of ``archive`` may be unpacked.

    Args:
        name: the entry's path; refused if it is absolute or has a part "..", a backslash, a colon or a null character.
        is_plain: whether the entry is a regular file without holes, or a folder; any other is refused.
        end: bytes of the uncompressed archive up to the entry's end; SLACK plus RATIO times the archive's size at most.
    """
    path = PurePosixPath(name)
    if not is_plain or path.is_absolute() or ".." in path.parts or set(name) & {"\\", ":", "\0"}:  # "\\", ":": Windows
        raise UserError(f"{archive} has an entry that does not belong in an archive of images: {name}")
    if end > SLACK + RATIO * archive.stat().st_size:
        raise UserError(
            f"{archive} unpacks to {end:,} bytes up to {name} alone, more than {RATIO} times its size, like a zip bomb"
        )


def safe_members(archive: SafeTarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the entries of a tar archive; check each before its data are read.

    Raises:
        UserError: an entry is refused (``_check_entry``), such as a link, a path upwards, or one of a zip bomb.
        tarfile.ReadError: the archive is cut off or damaged.
    """
    for member in archive:
        is_plain = (member.isfile() or member.isdir()) and not member.issparse() and member.size >= 0
        _check_entry(Path(str(archive.name)), member.name, is_plain, member.offset_data + member.size)
        yield member
    archive.fileobj.seek(archive.offset)  # tarfile takes the end of a file that is cut off for the end of the archive
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise tarfile.ReadError("it is cut off or damaged")
    while archive.fileobj.read(1 << 20):  # up to the end, where gzip compares its checksum
        pass


def unpack_archive(path: Path, folder: Path) -> None:
    """Unpack a tar or zip archive to ``folder``, which must exist.

    Raises:
        UserError: an entry is refused, as in ``safe_members``; entries before it in a tar archive are unpacked.
        ARCHIVE_ERRORS (a tuple of classes): the archive is damaged, or has another format.
    """
    if not zipfile.is_zipfile(path):
        with SafeTarFile.open(path) as archive:
            archive.extractall(folder, safe_members(archive))
        return
    with zipfile.ZipFile(path) as archive:
        size = 0
        for entry in archive.infolist():
            size += entry.file_size
            kind = stat.S_IFMT(entry.external_attr >> 16)  # the file type of Unix, or 0
            _check_entry(path, entry.orig_filename, kind in (0, stat.S_IFREG, stat.S_IFDIR), size)
        archive.extractall(folder)
