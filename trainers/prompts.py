"""The hand-written prompts of a trainer's classes: DATASET.TEMPLATE with their names, or DATASET.DESCRIPTIONS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dassl.engine import SimpleTrainer
from dassl.utils import UserError, file_digest
from vlm.images.feature_store import FeatureStore
from vlm.text.class_features import MIN_CACHED_PROMPTS
from vlm.text.classnames import print_prompts
from vlm.text.descriptions import read_descriptions
from vlm.text.encoder import TextEncoder, get_language
from vlm.text.language import print_language_notes
from vlm.text.templates import check_template, clean_classname, list_templates
from vlm.text.zero_shot import build_description_classifier, build_zero_shot_classifier

from .backbone import Backbone, FeatureBackbone


class HandwrittenPrompts:
    """The prompts of each class: its sentences in the file DATASET.DESCRIPTIONS if set, else templates with its name.

    ``provenance`` has the entry of the record on the file of descriptions, if there is one.
    """

    def __init__(self, trainer: SimpleTrainer, templates: Sequence[str] = ()):
        """Read the descriptions, and print the first prompts; ``templates`` replace DATASET.TEMPLATE.

        Raises ``UserError`` for a template without ``{}``, a missing file, and as
        ``vlm.text.descriptions.read_descriptions``.
        """
        node, self.classnames = trainer.cfg.DATASET, trainer.dm.dataset.classnames
        check_template(node.TEMPLATE, "DATASET.TEMPLATE")
        self.templates = [*templates] or list_templates(node.TEMPLATE)
        self.descriptions: list[list[str]] | None = None
        self.provenance: dict[str, dict[str, str]] = {}
        backbone: Backbone = trainer.backbone  # type: ignore[attr-defined]  # methods load it first
        if isinstance(backbone, FeatureBackbone):
            backbone.check_prompts(self.templates)
            return
        if node.DESCRIPTIONS:
            path = Path(node.DESCRIPTIONS).expanduser()
            if not path.is_file():
                raise UserError(f"no file {path} (DATASET.DESCRIPTIONS), seen from {Path.cwd()}")
            self.descriptions = read_descriptions(path, self.classnames)
            self.provenance = {"descriptions": {"file": str(path), "sha256": file_digest(path)}}
            print(f"Descriptions: {sum(map(len, self.descriptions)):,} sentences of {path}")
        else:
            if len(self.templates) > 1:
                print(f"Prompt ensembling (n={len(self.templates)})")
            print_language_notes(get_language(backbone.clip), self.classnames, self.templates)
        print_prompts(len(self.classnames), lambda label: self.of_class(label)[0])

    def of_class(self, label: int) -> list[str]:
        """Return the prompts of the class ``label``."""
        if self.descriptions is not None:
            return self.descriptions[label]
        return [template.replace("{}", clean_classname(self.classnames[label])) for template in self.templates]

    def build_classifier(self, encoder: TextEncoder, store: FeatureStore | None = None) -> torch.Tensor:
        """Return unit class features (classes, embed_dim): the normalised mean of unit features over their prompts.

        ``store`` is the feature store of ``encoder``, or None to cache nothing.
        """
        if self.descriptions is not None:
            return build_description_classifier(encoder, self.descriptions, store)
        return build_zero_shot_classifier(encoder, self.classnames, self.templates, store)

    def encode(self, backbone: Backbone) -> torch.Tensor:
        """Return the class features of ``build_classifier`` by the frozen CLIP; those of many are cached.

        On the data set Features, they are those of its file.
        """
        if isinstance(backbone, FeatureBackbone):
            return backbone.class_features(self.classnames)
        encoder = backbone.build_text_encoder()
        count = sum(len(self.of_class(label)) for label in range(len(self.classnames)))
        store = backbone.build_text_feature_store(encoder) if count > MIN_CACHED_PROMPTS else None
        return self.build_classifier(encoder, store)
