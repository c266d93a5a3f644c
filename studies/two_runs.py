"""Two runs side by side: what they were made with and from, what they gave, the tensors that they learned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import hexdigits
from typing import Any

from dassl.config.merge import leaves
from dassl.utils import UserError

# What may explain other results, in the order of the table. All else in a record is a result, but for what says again
# what others say, and the time.
CAUSES = (
    "code",
    "versions",
    "machine",
    "config",
    "weights",
    "splits",
    "classnames",
    "started_from",
    "forced",
    "bad_images",
)
NO_RESULT = ("command", "seconds", "trainer", "dataset", "split", "seed", "few_shot_split")
OF_THE_FOLDER = ("OUTPUT_DIR", "RESUME", "FORCE_RESUME")  # settings: where a run writes, whether it was ever stopped
NAMES = ("file", "backbone", "commit", "modified")  # of no account where the checksum beside them is the same
ABSENT, SAME, DIFFERS = "not recorded", "same", "DIFFERS"
SHOWN = 12  # characters of checksums


@dataclass(frozen=True)
class Row:
    """One line of the comparison."""

    name: str
    then: Any
    now: Any
    verdict: str = ""

    @property
    def differs(self) -> bool:
        return self.verdict == DIFFERS

    @property
    def is_cause(self) -> bool:
        return self.name.partition(".")[0] in CAUSES

    def __str__(self) -> str:
        return f"{self.name} {_short(self.then)} -> {_short(self.now)}"

    def cells(self) -> list[str]:
        return [self.name, _short(self.then), _short(self.now), self.verdict]


def compare(then: dict, now: dict) -> list[Row]:
    """The rows of two records: those of ``CAUSES``, then the results."""
    then, now = _entries(then), _entries(now)
    names = {**then, **now}
    groups = {name: name.partition(".")[0] for name in names}
    order = [name for group in CAUSES for name in names if groups[name] == group]
    order += [name for name in names if groups[name] not in CAUSES]
    return [row for name in order for row in _rows(name, then.get(name), now.get(name))]


def _entries(record: dict) -> dict:
    """What of a record is compared, each split by itself, and settings by their keys."""
    entries = {name: value for name, value in record.items() if name not in (*NO_RESULT, "splits")}
    if isinstance(splits := record.get("splits"), dict):
        entries |= {f"splits.{name}": value for name, value in splits.items()}
    if "config" in record:
        settings = leaves(record["config"])
        entries["config"] = {key: value for key, value in settings if key not in OF_THE_FOLDER}
    return entries


def _rows(name: str, then: Any, now: Any) -> list[Row]:
    """One row for an entry that is the same, or was not recorded; else a row for each difference."""
    if then is None and now is not None:
        return [Row(name, ABSENT, _summary(now))]
    old, new = flat(then, name), flat(now, name)
    # What one of two versions of this software does not know is no difference; a list that grows is one.
    places = {**old, **new} if isinstance(then, list) else [place for place in old if place in new]
    rows = [Row(place, old.get(place, ABSENT), new.get(place, ABSENT), DIFFERS) for place in places]
    differing = [row for row in rows if row.then != row.now and not _is_mere_name(row.name, old, new)]
    alike = bool(rows) or old == new
    return differing or [Row(name, _summary(then), _summary(now), SAME if alike else DIFFERS)]


def _is_mere_name(place: str, old: dict, new: dict) -> bool:
    node, _, last = place.rpartition(".")
    checksum = f"{node}.sha256"
    return last in NAMES and checksum in old and old[checksum] == new.get(checksum)


def flat(value: Any, name: str) -> dict[str, Any]:
    """The values in a nest of dicts and lists, by their places, written with dots."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {name: value}
    return {place: inner for key, below in value.items() for place, inner in flat(below, f"{name}.{key}").items()}


def _summary(value: Any) -> str:
    """A few words for an entry of a record."""
    if isinstance(value, dict) and "sha256" in value:
        images = f"{value['images']} images, " if "images" in value else ""
        return f"{images}{_short(value['sha256'])}"
    if isinstance(value, dict) and "threads" in value:
        return f"{value.get('device')}, {value['threads']} threads"
    return f"{len(value)} entries" if isinstance(value, (dict, list)) else value


def _short(value: Any) -> str:
    checksum = isinstance(value, str) and len(value) in (40, 64) and set(value) <= set(hexdigits)
    return value[:SHOWN] if checksum else "-" if value is None else str(value)


def compare_tensors(then: Path, now: Path) -> list[Row]:
    """A row for the newest checkpoint of each model, and for its best one, that the folders of both runs have."""
    from dassl.utils.checkpoint import BEST, newest

    rows = []
    for folder in (pointer.parent for pointer in sorted(now.glob("*/checkpoint"))):
        for name in dict.fromkeys((newest(folder).name, BEST)):
            one, other = then / folder.name / name, folder / name
            if one.is_file() and other.is_file():
                rows.append(_tensor_row(f"{folder.name}/{name}", one, other))
    return rows


def _tensor_row(name: str, then: Path, now: Path) -> Row:
    import torch

    from dassl.utils import load_checkpoint

    try:
        old, new = (load_checkpoint(path)["state_dict"] for path in (then, now))
    except UserError as error:
        return Row(name, error, None, DIFFERS)
    shapes = [{key: (value.shape, value.dtype) for key, value in state.items()} for state in (old, new)]
    if shapes[0] != shapes[1]:
        return Row(name, f"{len(old)} tensors", f"{len(new)}, of other names or shapes", DIFFERS)
    if all(torch.equal(old[key], new[key]) for key in old):
        return Row(name, f"{len(old)} tensors", "the same bits", SAME)
    largest = max((old[key].double() - new[key].double()).abs().max().item() for key in old if old[key].numel())
    return Row(name, f"{len(old)} tensors", f"largest difference {largest:.3g}", DIFFERS)
