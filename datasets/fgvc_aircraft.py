"""FGVCAircraft: variants of aircraft (Maji et al. 2013), with the authors' splits."""

from __future__ import annotations

from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import UserError

from .links import LinkPolicy
from .protocol import FewShotDataset
from .split_file import SPLIT_FILE_KEYS, check_images_exist, check_relative_path


@DATASET_REGISTRY.register()
class FGVCAircraft(FewShotDataset):
    """The images ``images/<id>.jpg`` in ``<DATASET.ROOT>/fgvc_aircraft``, split and labelled by its files.

    ``variants.txt`` has a class name in each line, in label order; ``images_variant_{train,val,test}.txt`` have lines
    ``<id> <variant>``.

    Raises:
        UserError: a file or an image is missing, or a line has another form.
    """

    dataset_dir = "fgvc_aircraft"
    images = "images"

    def __init__(self, cfg: CfgNode):
        self.base = self.folder(cfg)
        if not (self.base / self.images).is_dir():
            prepare = f"python tools/prepare_dataset.py FGVCAircraft --root {self.base.parent}"
            raise UserError(f"no folder {self.base / self.images}. {prepare} downloads it")
        labels = {name: label for label, name in enumerate(self._read_lines("variants.txt"))}
        train, val, test = (self._read_split(f"images_variant_{split}.txt", labels) for split in SPLIT_FILE_KEYS)
        check_images_exist(self.base / self.images, [*train, *val, *test], LinkPolicy(cfg, self.base))
        super().__init__(cfg, train, test, val)

    def _read_split(self, file: str, labels: dict[str, int]) -> list[Datum]:
        """Return the images that ``file``, below the data set's folder, lists; ``labels`` has each variant's label."""
        items = []
        for line in self._read_lines(file):
            image, _, variant = line.partition(" ")
            if variant not in labels:
                raise UserError(f'{self.base / file}: "{line}" is not "<image> <variant>" with one of variants.txt')
            check_relative_path(image, str(self.base / file), self.base / self.images)
            items.append(Datum(self.base / self.images / f"{image}.jpg", labels[variant], classname=variant))
        return items

    def _read_lines(self, file: str) -> list[str]:
        """Return the stripped lines of ``file``, below the data set's folder, without empty ones."""
        try:
            lines = (self.base / file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {self.base / file}: {error}") from error
        return [line.strip() for line in lines if line.strip()]
