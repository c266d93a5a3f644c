"""Download a data set to the folder of its config, or say which files to fetch by hand and their folder.

    python tools/prepare_dataset.py oxford_pets --root ./data        # downloads the data set if torchvision can
    python tools/prepare_dataset.py oxford_pets --own-split          # draws a random split if CoOp's is not at hand

The split file of CoOp's authors is on Google Drive; a browser must fetch it. Accuracies on another split do not compare
with published ones. docs/datasets.md lists the data sets.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import atomic_write, command_line
from tools.fix_imagenet import load_imagenet_names


def expand_path(path: str) -> Path:
    """Return ``path`` with ~ expanded: a shell does not expand it after "--root=", train.py does."""
    return Path(path).expanduser()


@command_line()
def main(argv: list[str] | None = None) -> None:
    """Download and unpack the data set that the command line names, or print where to get it; write its class names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of a data set in configs/datasets")
    parser.add_argument("--root", type=expand_path, default=Path("./data"), help="folder of the data sets (./data)")
    parser.add_argument("--own-split", action="store_true", help="draw a random split if there is no split file")
    args = parser.parse_args(argv)
    from datasets.sources import prepare_dataset

    cls = prepare_dataset(args.name, args.root, args.own_split)
    names = args.root / cls.dataset_dir / "classnames.txt"
    if hasattr(cls, "classnames_by_folder") and not names.exists():  # a variant of ImageNet
        with atomic_write(names) as file:
            file.writelines(f"{folder} {name}\n" for folder, name in load_imagenet_names().items())
        print(f"{names} written: ImageNet's 1,000 names")


if __name__ == "__main__":
    sys.exit(main())
