"""Export what a model's `encode` and `decode` do, for use without this package.

    python results/export.py runs/ogan-1 FOLDER [--onnx]

writes FOLDER/encode.pt2 and decode.pt2 by torch.export, or with --onnx encode.onnx and decode.onnx
by torch.onnx.export, which needs onnx and onnxscript. Any batch size; images are floats in [0, 1],
which the exported networks do not check.

    encode, O-GAN     images (N, C, H, W) to N(E(x)), (N, latent)
    encode, InfoGAN   images to the probabilities of each category (N, K).., mean and std (N, codes)
    decode            latents to images (N, C, H, W)
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common
import infogan
import ogan
import torch
from torch import nn


class Encode(nn.Module):
    """What `encode` gives, as a tensor (O-GAN) or a tuple of tensors (InfoGAN)."""

    def __init__(self, model):
        super().__init__()
        self.model = model.eval()

    def forward(self, images):
        if isinstance(self.model, ogan.OGAN):
            return self.model.to_latent(self.model.encoder(2 * images - 1))
        logits, mean, std = self.model.split_output(self.model.q(images))
        return (*(part.softmax(1) for part in logits), mean, std)


class Decode(nn.Module):
    """What `decode` gives."""

    def __init__(self, model):
        super().__init__()
        self.model = model.eval()

    def forward(self, latent):
        images = self.model.generator(latent)
        return images / 2 + 0.5 if isinstance(self.model, ogan.OGAN) else images


def modules(model):
    """name -> (module, example input) of what is exported."""
    like = {"device": model.device}
    return {"encode": (Encode(model), torch.rand(2, *model.shape, **like)),
            "decode": (Decode(model), torch.rand(2, model.latent_size, **like))}


def exported(model):
    """name -> ExportedProgram, whose first dimension may be of any size."""
    batch = torch.export.Dim("batch", min=1)
    return {name: torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
            for name, (module, example) in modules(model).items()}


def load(path):
    """The model in a run folder or saved file, of whichever method; InputError if of neither."""
    methods = {cls.METHOD: cls for cls in (infogan.InfoGAN, ogan.OGAN)}
    return methods[common.read_checkpoint(path, *methods)["method"]].load(path)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run folder or saved model")
    parser.add_argument("folder", help="where the files go")
    parser.add_argument("--onnx", action="store_true", help="ONNX instead of torch's own format")
    given = parser.parse_args(argv)
    try:
        model = load(given.run)
        folder = Path(given.folder)
        folder.mkdir(parents=True, exist_ok=True)
    except (common.InputError, OSError) as error:
        print(f"export.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if given.onnx:
        for name, (module, example) in modules(model).items():
            torch.onnx.export(module, (example,), str(folder / f"{name}.onnx"), dynamo=True,
                              external_data=False, dynamic_shapes=({0: torch.export.Dim("batch")},))
    else:
        for name, program in exported(model).items():
            torch.export.save(program, str(folder / f"{name}.pt2"))
    print("wrote " + ", ".join(sorted(str(path) for path in folder.iterdir())))


if __name__ == "__main__":
    main()
