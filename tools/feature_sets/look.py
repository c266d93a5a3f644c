"""What a feature set holds, and whether it is sound."""

from __future__ import annotations

from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from dassl.config.merge import leaves, shortened
from dassl.utils import cannot_write
from vlm.feature_set import Description
from vlm.feature_shard import HERE


def show(folder: Path) -> None:
    """Print what the set is of, and which shards are missing."""
    told = Description(folder)
    missing = told.missing()
    there = [number for number in range(1, told.shards + 1) if number not in {*missing}]
    rows = [[key, shortened(" ".join(str(value).split()))] for key, value in leaves(told.settings)]
    rows += [["images", f"{told.images:,}"], ["classes", f"{len(told.counts):,}"]]
    lacking = sum(int((told.form(number).maps(told.path(number))[1] != HERE).sum()) for number in there)
    rows += [["left out", f"{lacking:,} images, which could not be read"]] if lacking else []
    rows += [["size", f"{sum(told.form(number).size for number in there) / 1e9:,.3f} GB"]]
    print(tabulate(rows, tablefmt="plain", disable_numparse=True))
    if missing:
        print(f"{len(missing):,} of {told.shards:,} shards are missing. This extracts them:\n  {told.extract()}")
    else:
        print(f"complete: {told.shards:,} shards")


def verify(folder: Path) -> int:
    """Read everything, and remove the shards that are damaged; returns the exit code.

    Raises:
        UserError: the list of images is not as it was written.
    """
    told = Description(folder)
    for number in range(1, told.shards + 1):
        told.paths(number)
    numbers = [number for number in range(1, told.shards + 1) if told.path(number).exists()]
    bad = []
    for number in tqdm(numbers, disable=None, leave=False, unit="shard"):
        if not told.form(number).is_sound(path := told.path(number)):
            print(f"Note: {path} is damaged, and removed. This extracts it anew:\n  {told.extract(number)}")
            bad.append(number)
            try:
                path.unlink()
            except OSError as error:
                raise cannot_write(path, error) from error
    missing = told.shards - len(numbers)
    print(
        f"{len(numbers) - len(bad):,} shards are sound; {len(bad):,} were damaged and removed; {missing:,} are missing"
    )
    return 1 if bad or missing else 0
