"""Put a data set where its config looks for it, or say what to fetch and where it goes.

    python tools/prepare_dataset.py oxford_pets --root ./data        # downloads what torchvision can
    python tools/prepare_dataset.py oxford_pets --own-split          # draws a split, if CoOp's cannot be had

The split file that CoOp's authors made is on Google Drive, from where a browser fetches it. Accuracies on a split of
one's own do not compare with published ones. docs/datasets.md lists the data sets.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import atomic_write, command_line
from tools.fix_imagenet import load_imagenet_names


def expand_path(path: str) -> Path:
    return Path(path).expanduser()  # as train.py does; a shell does not after "--root="


@command_line()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a data set, as in configs/datasets")
    parser.add_argument("--root", type=expand_path, default=Path("./data"), help="folder of the data sets (./data)")
    parser.add_argument("--own-split", action="store_true", help="write a split file if there is none")
    args = parser.parse_args(argv)
    from datasets.sources import prepare_dataset

    cls = prepare_dataset(args.name, args.root, args.own_split)
    names = args.root / cls.dataset_dir / "classnames.txt"
    if hasattr(cls, "class_names") and not names.exists():  # a variant of ImageNet
        with atomic_write(names) as file:
            file.writelines(f"{folder} {name}\n" for folder, name in load_imagenet_names().items())
        print(f"{names} written: ImageNet's 1,000 names")


if __name__ == "__main__":
    sys.exit(main())
