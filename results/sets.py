"""Make other sets out of MNIST, as a FILE.pt for --data: what people bring, with known classes.

    python results/sets.py colour colour.pt     # 32x32, a digit of one random colour on another
    python results/sets.py few few.pt           # the first 3,000 images
    python results/sets.py unequal unequal.pt   # class sizes from 1 to 5

Training images come from the training images and test images from the test images, both drawn by
--seed. MNIST is looked for in, or downloaded to, --data-root.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common
import torch
import torch.nn.functional as F


def colour(images, labels, g):
    """Each digit in a random colour on another, at least half the cube's edge apart, 32x32."""
    ink, ground = torch.rand(2, len(images), 3, 1, 1, generator=g)
    alike = torch.ones(len(images), dtype=torch.bool)
    while alike.any():
        ground[alike] = torch.rand(int(alike.sum()), 3, 1, 1, generator=g)
        alike = (ink - ground).square().sum((1, 2, 3)) < 0.25
    amount = F.pad(images, (2, 2, 2, 2)).float() / 255
    return (255 * (ground + amount * (ink - ground))).round().byte(), labels


def unequal(images, labels, g):
    """As many of each class as a random one of the sizes 1, 1.44 .. 5 says, in file order."""
    sizes = torch.linspace(0.2, 1, 10)[torch.randperm(10, generator=g)]
    kept = torch.rand(len(images), generator=g) < sizes[labels]
    return images[kept], labels[kept]


MADE = {"colour": colour, "unequal": unequal}         # the few are MNIST's own


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=["few", *MADE])
    parser.add_argument("file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-root", default="data")
    options = parser.parse_args(argv)
    data = common.load_data("mnist", options.data_root)
    if options.name == "few":
        data.limit(3_000)
    packed = {}
    for which in ("", "test_"):
        images = getattr(data, f"{which}images")
        labels = getattr(data, f"{which}labels")
        if options.name in MADE:
            g = torch.Generator().manual_seed(options.seed)         # one order of class sizes
            images, labels = MADE[options.name](images, labels, g)
        packed[f"{which}images"] = images.clone()                   # a slice saves what it is of
        packed[f"{which}labels"] = labels.clone()
    common.write_file(options.file, packed)
    shares = packed["labels"].bincount() / len(packed["labels"])
    print(f"{options.file}: {len(packed['images'])} images, classes' shares "
          + " ".join(f"{share:.3f}" for share in shares.tolist()))


if __name__ == "__main__":
    try:
        main()
    except common.InputError as error:
        print(f"sets.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
