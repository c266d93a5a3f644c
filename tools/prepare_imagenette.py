"""Prepare ImageNette: ``<root>/imagenet/images/{train,val}/<wnid>/…`` and ``classnames.txt``.

    python tools/prepare_imagenette.py --root ./data                      # downloads fast.ai's archive (160 px, 99 MB)
    python tools/prepare_imagenette.py --root ./data --size 320           # or 320 (341 MB), or full (1.6 GB)
    python tools/prepare_imagenette.py --root ./data --archive FILE       # unpacks a local archive

A second call continues an interrupted download.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.data import archives
from dassl.data.downloads import download
from dassl.utils import UserError, command_line, error_reason, file_digest, mkdir_if_missing
from dassl.utils.files import replace_file
from tools.fix_imagenet import fix_imagenet

BASE_URL = "https://s3.amazonaws.com/fast-ai-imageclas/"
# --size -> (file name, MD5), from torchvision.datasets.Imagenette; fast.ai publishes no SHA-256. MD5 detects damage and
# wrong files. Only fast.ai could forge an archive with the same MD5, and each entry is checked anyway.
ARCHIVES = {
    "160": ("imagenette2-160.tgz", "e793b78cc4c9e9a4ccc0c1155377a412"),
    "320": ("imagenette2-320.tgz", "3df6f0d01a2c9592104656642f5e78a3"),
    "full": ("imagenette2.tgz", "fe2fc210e6bb7c5664d602c3cd71e612"),
}


def fetch_archive(root: Path, size: str) -> Path:
    """Return the path of the archive of ``size`` (160, 320, full) in ``root``; download it if absent or damaged."""
    name, md5 = ARCHIVES[size]
    path = root / name
    if path.is_file() and file_digest(path, "md5") == md5:
        return path
    return download(BASE_URL + name, path, md5, "md5")


def unpack_imagenette(archive: Path, images: Path) -> None:
    """Unpack ``<folder>/{train,val}/<wnid>/<image>`` of ``archive`` to ``images/{train,val}/…``, fully or not at all.

    Raises:
        UserError: the archive is damaged, is not ImageNette, or cannot be unpacked.
    """
    mkdir_if_missing(images.parent)
    print(f"Unpacking {archive}", flush=True)
    try:
        with tempfile.TemporaryDirectory(dir=images.parent, prefix=".images.") as temporary:
            archives.unpack_archive(archive, Path(temporary))
            folders = [path.parent for path in Path(temporary).glob("*/train") if (path.parent / "val").is_dir()]
            if len(folders) != 1:
                raise UserError(f"{archive} holds no <folder>/{{train,val}}/<wnid>/<image>: is it ImageNette?")
            for path in set(folders[0].iterdir()) - {folders[0] / "train", folders[0] / "val"}:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            replace_file(folders[0], images)
    except archives.ARCHIVE_ERRORS as error:
        raise UserError(f"{archive} is not a complete tar archive: {error_reason(error)}") from error
    except OSError as error:
        raise UserError(f"cannot unpack {archive} to {images}: {error.strerror or error}") from error
    print(f"{images} written: {sum(1 for _ in images.glob('*/*/*')):,} images")


@command_line()
def main(argv: list[str] | None = None) -> None:
    """Download or unpack ImageNette, unless it is there, and write its ``classnames.txt``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("./data"), help="folder of the data sets (./data)")
    parser.add_argument("--archive", type=Path, help="a local archive instead of a download")
    parser.add_argument("--size", choices=ARCHIVES, default="160", help="pixels of the shorter side (160)")
    args = parser.parse_args(argv)
    images = args.root / "imagenet" / "images"
    if images.exists():
        print(f"{images} is there already; remove it to unpack anew")
    else:
        if args.archive and not args.archive.is_file():
            raise UserError(f"no archive {args.archive}")
        unpack_imagenette(args.archive or fetch_archive(args.root, args.size), images)
    fix_imagenet(args.root)


if __name__ == "__main__":
    sys.exit(main())
