"""The base class of data sets: lists of labelled image paths, and the drawing of few shots."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import ClassVar

from dassl.utils import UserError, check_availability


class Datum:
    """An image of a data set: its path (opened as it is), label, domain (both from 0) and class name."""

    def __init__(self, impath: str = "", label: int = 0, domain: int = 0, classname: str = ""):
        # Pickled splits of third-party repositories hold these attribute names.
        self._impath = str(impath)
        self._label = int(label)
        self._domain = int(domain)
        self._classname = classname

    impath = property(lambda self: self._impath)
    label = property(lambda self: self._label)
    domain = property(lambda self: self._domain)
    classname = property(lambda self: self._classname)

    def __repr__(self) -> str:
        return f"Datum({self.impath!r}, label={self.label}, domain={self.domain}, classname={self.classname!r})"


class DatasetBase:
    """Four lists of ``Datum``: train_x (labelled), train_u (unlabelled), val and test.

    A subclass makes the lists in ``__init__(cfg)`` and passes them to ``super().__init__``.
    """

    dataset_dir = ""  # the folder below DATASET.ROOT
    domains: ClassVar[list[str]] = []  # names of all domains
    has_images = True  # False: impath names a stored feature, not a file
    orientation = "stored"  # INPUT.ORIENTATION where it is not set; "exif" for images of one's own

    def __init__(
        self,
        train_x: list[Datum] | None = None,
        train_u: list[Datum] | None = None,
        val: list[Datum] | None = None,
        test: list[Datum] | None = None,
    ):
        """Take the classes from ``train_x``; UserError if it is empty. Another split may be None or empty."""
        if not train_x:
            raise UserError(f"the data set {type(self).__name__} has no training images")
        self._train_x, self._train_u, self._val, self._test = train_x, train_u, val, test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)

    train_x = property(lambda self: self._train_x)
    train_u = property(lambda self: self._train_u)
    val = property(lambda self: self._val)
    test = property(lambda self: self._test)
    lab2cname = property(lambda self: self._lab2cname)
    classnames = property(lambda self: self._classnames)
    num_classes = property(lambda self: self._num_classes)

    @staticmethod
    def get_num_classes(data_source: list[Datum]) -> int:
        """Return the largest label plus one, even if smaller labels are missing."""
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source: list[Datum]) -> tuple[dict[int, str], list[str]]:
        """Return a dict from label to class name, and the class names in label order."""
        names = {item.label: item.classname for item in data_source}
        return names, [names[label] for label in sorted(names)]

    def check_input_domains(self, source_domains, target_domains) -> None:
        """Raise ``UserError`` unless every name in both lists is in ``self.domains``."""
        check_availability([*source_domains, *target_domains], self.domains)

    def generate_fewshot_dataset(self, *data_sources: list[Datum], num_shots: int = -1, repeat: bool = False):
        """Return ``num_shots`` random images of each class, or all images if ``num_shots`` is below 1.

        As in Dassl, each class is one ``random.sample`` from Python's global generator, in the order of the labels'
        first appearance. Of a class with fewer images, all are taken and its name is printed; with ``repeat``, images
        are drawn with replacement instead. The result is a list for each data source; for one source, the list itself.
        """
        output = list(data_sources)
        if num_shots >= 1:
            print(f"Creating a {num_shots}-shot dataset")
            output = [self._draw_shots(source, num_shots, repeat) for source in data_sources]
        return output[0] if len(output) == 1 else output

    def _draw_shots(self, source: list[Datum], num_shots: int, repeat: bool) -> list[Datum]:
        """Return ``num_shots`` random images of each class, as ``generate_fewshot_dataset`` describes."""
        dataset, small_classes = [], []
        for items in self.split_dataset_by_label(source).values():
            if len(items) >= num_shots:
                items = random.sample(items, num_shots)
            elif repeat:
                items = random.choices(items, k=num_shots)
            else:
                small_classes.append(f"{items[0].classname} ({len(items)})")
            dataset.extend(items)
        if small_classes:
            print(f"Note: fewer than {num_shots} images, so all there are, for {', '.join(small_classes)}")
        return dataset

    def split_dataset_by_label(self, data_source: list[Datum]) -> dict[int, list[Datum]]:
        """Return a dict from each label to its images, in the order of first appearance."""
        groups = defaultdict(list)
        for item in data_source:
            groups[item.label].append(item)
        return groups
