"""The whole CLIP that a run of CLIPFineTune learned, as one file that takes the place of the one it began with.

    python tools/export_clip.py output/pairs/lora                   # writes output/pairs/lora/clip.safetensors

    python train.py … MODEL.BACKBONE.WEIGHTS output/pairs/lora/clip.safetensors
    python predict.py IMAGE… --classes cup cat --weights output/pairs/lora/clip.safetensors

The file has OpenAI's names, in fp32; low-rank updates (LoRA) are part of the weights. Whoever loads it here gets most
of them rounded to half precision, as OpenAI's constructor does. Before the file gets its name, it is loaded, and its
features of random images and some texts are compared with those of the run: with the weights as they are in the file,
which must give the same, and rounded. The fingerprint is the one that the runs with the file have in result.json.

CLIPs of OpenAI's architectures, and tiny, alone: open_clip and transformers have files of their own.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import UserError, atomic_write, command_line, mkdir_if_missing
from inference.runs import classnames_of, config_of, trainer_of

if TYPE_CHECKING:
    import torch
    from torch import nn

METHOD, FILE, SUFFIX = "CLIPFineTune", "clip.safetensors", ".safetensors"
PLACEHOLDERS = ("image", "picture")  # a run on captions has no classes; nothing here depends on them
TEXTS = ("a photo of a cat.", "3", "an old map of the world", "two dogs that play on a beach in the evening")
IMAGES = 4  # random ones
# Shares of a feature's length. Fp32 rounds sums to some 1e-6. Weights in half precision change features by 2e-4
# (measured: a fine-tuned tiny) to 7e-4 (random ViT-B/32, RN50); one that is too large for it becomes infinite.
EXACT, ROUNDED = 1e-4, 1e-2


def fine_tuned(run: Path, epoch: int | None) -> nn.Module:
    """The CLIP of the run, on the CPU.

    Raises:
        UserError: as :func:`inference.runs.trainer_of`; the run is of another method, or its CLIP not of OpenAI's kind.
    """
    from vlm.openai import CLIP

    cfg = config_of(run)
    name, backbone = cfg.TRAINER.NAME, cfg.MODEL.BACKBONE
    if name != METHOD:
        raise UserError(f"{run}: {name} did not change CLIP: its backbone is what MODEL.BACKBONE names")
    clip = trainer_of(run, classnames_of(run) or PLACEHOLDERS, epoch, cuda=False).model.clip
    if type(clip) is not CLIP:
        raise UserError(f"{backbone.NAME} is not of OpenAI's architectures; only theirs, and tiny, can be exported")
    return clip


def merge_updates(clip: nn.Module) -> None:
    """Make weights with updates (LoRA) plain ones."""
    from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

    for module in [module for module in clip.modules() if is_parametrized(module)]:
        for name in list(module.parametrizations):
            remove_parametrizations(module, name, leave_parametrized=True)


def features(clip: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (n, embed_dim) of the random images, and of the texts."""
    import torch

    from vlm.text.encoder import text_encoder

    size, encoder = clip.visual.input_resolution, text_encoder(clip)
    images = torch.randn(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return clip.visual(images), encoder.encode(encoder.tokenize(list(TEXTS)))


def compare(found: tuple, expected: tuple, tolerance: float, what: str) -> str:
    """The largest differences, in words.

    Raises:
        UserError: one is more than ``tolerance`` of the feature's length.
    """
    pairs = zip(found, expected, strict=True)
    shares = [((one - other).norm(dim=1) / other.norm(dim=1)).max().item() for one, other in pairs]
    told = f"{what}, features differ by up to {shares[0]:.1e} (images) and {shares[1]:.1e} (texts) of their length"
    if not all(share <= tolerance for share in shares):  # nor if not a number
        raise UserError(f"{told}: not written, as more than {tolerance:g} is not rounding")
    return told


def check_file(path: Path, expected: tuple) -> tuple[str, str]:
    """Load the file as runs do; returns its fingerprint, and the result of the comparisons.

    Raises:
        UserError: it is not a CLIP's, or another's than the features ``expected`` are of.
    """
    from vlm.clip.fingerprint import fingerprint
    from vlm.clip.load import load

    clip, weights = load("", str(path))
    rounded = features(clip)
    clip.load_state_dict(weights)
    exact = compare(features(clip), expected, EXACT, "As in the file")
    return fingerprint(weights), f"{exact}\n{compare(rounded, expected, ROUNDED, 'As loaded, in half precision')}"


def export(run: Path, out: Path, epoch: int | None) -> None:
    """Write the file; if anything is wrong, what was there stays.

    Raises:
        UserError: as :func:`fine_tuned` and :func:`check_file`; or the file cannot be written.
    """
    from safetensors.torch import save

    if out.suffix != SUFFIX:
        raise UserError(f"--out {out}: the name must end in {SUFFIX}, by which the file is known when it is loaded")
    clip = fine_tuned(run, epoch)
    expected = features(clip)
    merge_updates(clip)
    content = save({name: value.contiguous() for name, value in clip.state_dict().items()})
    mkdir_if_missing(out.parent)
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            path = Path(temporary, FILE)
            with atomic_write(path, "wb") as file:
                file.write(content)
            sha256, told = check_file(path, expected)
            os.replace(path, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    print(f"{out} written: {len(content):,} bytes, fingerprint of its weights {sha256}\n{told}")


@command_line()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", type=Path, metavar="MODEL_DIR", help="folder of a run of train.py")
    add("--out", type=Path, metavar="FILE", help=f"where to write it (MODEL_DIR/{FILE})")
    add("--load-epoch", type=int, metavar="N", help="of the run; without it the best, else the newest")
    args = parser.parse_args(argv)
    export(args.run, args.out or args.run / FILE, args.load_epoch)


if __name__ == "__main__":
    sys.exit(main())
