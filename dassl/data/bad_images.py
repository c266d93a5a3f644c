"""Pictures that cannot be read: each is left out of its batch, and the run accounts for all of them at its end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch.utils.data import default_collate
from yacs.config import CfgNode

from dassl.utils import BadImage, UserError, atomic_write, gather

SHOWN = 20  # pictures that a message names
ENTRY = "bad_images"  # in checkpoints and in the run's record
LIST = "bad_images.txt"  # in the output directory: all of them, where there are more


T = TypeVar("T")


class Unreadable(Mapping):
    """Stands in a batch for a picture that cannot be read: whoever looks into it gets the error."""

    def __init__(self, error: BadImage):
        self.error = error

    def _refuse(self, *_):
        raise self.error

    __getitem__ = __iter__ = __len__ = _refuse


def collate_readable(items: list, collate: Callable = default_collate) -> tuple[dict | None, list[BadImage]]:
    """The batch of those items that could be read, None if none could, and the errors of the others."""
    errors = [item.error for item in items if isinstance(item, Unreadable)]
    readable = [item for item in items if not isinstance(item, Unreadable)] if errors else items
    return collate(readable) if readable else None, errors


def none_readable(error: BadImage) -> UserError:
    """The error for a pass over a split that gave nothing but errors, such as this one."""
    return UserError(f"not one image of a split can be read; for one, {error}")


def knowing_the_last(batches: Iterable[tuple]) -> Iterator[tuple[tuple, bool]]:
    """Each batch, and whether it is the last one: where some are left out, their number is not known before."""
    batches = iter(batches)
    batch = next(batches, None)
    while batch is not None:
        following = next(batches, None)
        yield batch, following is None
        batch = following


class BadImages:
    """The pictures that a run has left out, as they could not be read, with the reasons, by split (train_x, …)."""

    def __init__(self, cfg: CfgNode):
        self.accepted, self.folder = cfg.DATASET.SKIP_BAD_IMAGES, cfg.OUTPUT_DIR
        self._sizes: dict[str, int] = {}  # split -> how many images it has
        self._reasons: dict[str, dict[str, str]] = {}  # split -> path -> why
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._reasons)

    def __contains__(self, split: str) -> bool:
        return split in self._reasons

    def expect(self, loaders: Mapping[str, Any]) -> None:
        """Take note of a run's loaders. Those for training leave pictures out from here on; the others do once somebody
        evaluates on them, and accounts for it."""
        for split, loader in loaders.items():
            if hasattr(loader, "on_bad_image"):
                self._sizes[split] = len(loader.dataset)
                if split.startswith("train"):
                    self.left_out_of(split, loader)

    def left_out_of(self, split: str, loader: T) -> T:
        """The loader, which from here on leaves out what cannot be read, if it is one of ours."""
        if hasattr(loader, "on_bad_image"):
            loader.on_bad_image = partial(self.add, split)
        return loader

    def add(self, split: str, error: BadImage) -> None:
        """Remember a picture of ``split``. The first time that a file is met, the log says so at once."""
        with self._lock:  # threads read images
            if not any(error.path in reasons for reasons in self._reasons.values()):
                print(f"Note: {error}; it is left out")
            self._reasons.setdefault(split, {}).setdefault(error.path, error.reason)

    def gather(self) -> None:
        """Take in what the other processes of the run have left out; all have the same then."""
        together: dict[str, dict[str, str]] = {}
        for own in gather(self._reasons):
            for split, reasons in own.items():
                together.setdefault(split, {}).update(reasons)
                for path, reason in reasons.items():
                    self.add(split, BadImage.of(path, reason))
        self._reasons = together  # in the same order for all

    def entry(self) -> dict[str, dict[str, list[str]]]:
        """``{"bad_images": {split: paths}}`` for the run's record, if there are any."""
        return {ENTRY: {split: sorted(reasons) for split, reasons in self._reasons.items()}} if self else {}

    def state(self) -> dict[str, dict[str, dict[str, str]]]:
        """The same with the reasons, for a checkpoint; without test images, for those play no part in what is
        learned."""
        kept = {split: dict(reasons) for split, reasons in self._reasons.items() if split != "test"}
        return {ENTRY: kept} if kept else {}

    def resume(self, checkpoint: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        for split, reasons in dict(checkpoint.get(ENTRY, {})).items():
            self._reasons.setdefault(split, {}).update(reasons)

    def refuse(self, unseen: Mapping[str, Any]) -> None:
        """Raise the :class:`UserError` that names them all and says how to go on, if there are any that nobody accepts.

        Args:
            unseen: loaders by split; their images are looked at before, so that one message names all.
        """
        if self.accepted or not self:
            return
        for split, loader in unseen.items():
            print(f"Some images could not be read; looking at those of the *{split}* set")
            for _ in self.left_out_of(split, loader):
                pass
        mend = "Replace or remove the files, or accept the loss: DATASET.SKIP_BAD_IMAGES True. The same command goes on"
        if any(split.startswith("train") for split in self._reasons):
            mend = (
                "What was learned was learned without them, so replace or remove the files and begin anew in another "
                "--output-dir; or accept the loss: with DATASET.SKIP_BAD_IMAGES True, the same command goes on"
            )
        raise UserError(
            f"{self._counts()} could not be read, and there is no result over fewer images than a split has. "
            f"{mend}:{self._named()}"
        )

    def tell(self) -> None:
        """Print what a result goes without, if there is anything."""
        if self:
            print(f"Left out (DATASET.SKIP_BAD_IMAGES): {self._counts()} could not be read:{self._named()}")

    def _counts(self) -> str:
        """Such as "1 of 160 train_x images and 2 of 896 test images"."""
        of = {split: f" of {size:,}" for split, size in self._sizes.items()}
        return " and ".join(
            f"{len(reasons):,}{of.get(split, '')} {split} images" for split, reasons in self._reasons.items()
        )

    def _named(self) -> str:
        """One on the same line, several on lines of their own; very many in a file, which is named."""
        lines = [
            f"{split}: {BadImage.of(path, reason)}"
            for split, reasons in self._reasons.items()
            for path, reason in sorted(reasons.items())
        ]
        if len(lines) == 1:
            return f" {lines[0]}"
        shown = lines[:SHOWN]
        if len(lines) > SHOWN:
            path = Path(self.folder, LIST)
            with atomic_write(path) as file:
                file.writelines(f"{line}\n" for line in lines)
            shown.append(f"and {len(lines) - SHOWN:,} more; {path} names them all")
        return "".join(f"\n  {line}" for line in shown)
