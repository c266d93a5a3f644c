"""What all methods over a frozen CLIP share: loading it, and saying which one it was."""

from __future__ import annotations

from dassl.engine import TrainerX
from dassl.utils import UserError, count_num_param
from vlm.fingerprint import fingerprint
from vlm.load import load
from vlm.openai import CLIP


class CLIPTrainer(TrainerX):
    """A trainer whose ``build_model`` starts from :meth:`load_clip`."""

    def load_clip(self, precision: str) -> CLIP:
        """The CLIP of MODEL.BACKBONE, frozen, on the trainer's device.

        Raises:
            UserError: as :func:`vlm.load.load`; or the INPUT keys do not give pictures of the size this CLIP takes.
        """
        backbone = self.cfg.MODEL.BACKBONE
        print(f"Loading CLIP (backbone: {backbone.NAME})")
        clip, state_dict = load(backbone.NAME, backbone.WEIGHTS, precision, self.device)
        if self.cfg.INPUT.NO_TRANSFORM:
            raise UserError("INPUT.NO_TRANSFORM is True, but CLIP takes pictures that have been transformed")
        resolution = clip.visual.input_resolution
        if tuple(self.cfg.INPUT.SIZE) != (resolution, resolution):
            raise UserError(
                f"INPUT.SIZE is {tuple(self.cfg.INPUT.SIZE)}, but {backbone.WEIGHTS or backbone.NAME} takes images of "
                f"({resolution}, {resolution})"
            )
        self._weights = {"backbone": backbone.NAME, "file": backbone.WEIGHTS, "sha256": fingerprint(state_dict)}
        self._clip_parameters = count_num_param(clip)
        return clip

    def report_parameters(self) -> None:
        """Say how many parameters are trained, and their share of the whole model."""
        trained = self.trainable_parameters()
        total = self._clip_parameters + trained
        print(f"Trainable parameters: {trained:,} of {total:,} ({100 * trained / total:.4f}%)")

    def describe(self) -> dict:
        return {"total_parameters": self._clip_parameters + self.trainable_parameters(), "weights": self._weights}
