"""Pack a folder of pictures into a FILE.pt for --data. Needs Pillow beside torch.

    python results/pack.py photos mine.pt [--size 64]

Takes png, jpg, jpeg and webp, in the folder and below it: upright as the camera meant, transparency
over white, 16 bits scaled to 8, grey where all are grey. Pictures that are alike in size and small
enough keep it; others are cropped in the middle to a square and resized. Where all lie in
subfolders, these are the classes, in the order of their names. A file that cannot be read is named
and left out.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common
import torch
from PIL import Image, ImageChops, ImageOps

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def seen(path):
    """A picture as one sees it: upright, over white where it is transparent; mode I (16 bits), L
    where red, green and blue are alike, or RGB."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I"):
        return image.convert("I")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image).convert("RGB")
    red, green, blue = image.split()
    alike = not ImageChops.difference(red, green).getbbox()
    if alike and not ImageChops.difference(green, blue).getbbox():
        return red
    return image


def pixels(image, mode, most, size):
    """A picture that `seen` gave as uint8 (C, H, W); `most` is the greatest value of 16 bits."""
    if image.mode == "I":
        image = image.point(lambda value: value * (255 / most)).convert("L")
    image = ImageOps.fit(image.convert(mode), size)
    width, height = size
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(height, width, -1).permute(2, 0, 1)


def look_through(folder):
    """The readable pictures under a folder as path -> (mode, size, greatest value)."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        try:
            image = seen(path)
            found[path] = image.mode, image.size, image.getextrema()[1]
        except Exception as error:                    # Pillow's decoders raise many kinds
            why = " ".join(str(error).split())
            print(f"left out: {path} ({type(error).__name__}: {why})", file=sys.stderr)
    return found


def kept_size(sizes):
    """(width, height) if all pictures have it, it is small and the networks take it; else None."""
    width, height = next(iter(sizes))
    if len(sizes) > 1 or max(width, height) > 128:
        return None
    try:
        common.stages((1, height, width), 1)
    except common.InputError:
        return None
    return width, height


def pack(folder, target, size=0):
    """Write the pictures under `folder` to `target`; a `size` makes all of them squares of it.

    Errors: InputError if the folder is missing or holds fewer than two pictures, or the networks
    take no images of that size.
    """
    folder = Path(folder).expanduser()
    if size:
        common.stages((1, size, size), 1)
    if not folder.is_dir():
        raise common.InputError(f"{folder}: no such folder")
    found = look_through(folder)
    if len(found) < 2:
        raise common.InputError(f"{folder} holds {len(found)} pictures; expected two or more of "
                                f"{', '.join(sorted(SUFFIXES))}")
    modes, sizes, values = zip(*found.values())
    mode = "RGB" if "RGB" in modes else "L"
    wide = [value for value, kind in zip(values, modes) if kind == "I"]
    most = 2 ** max(8, max(wide, default=0).bit_length()) - 1         # 255, 4095 (12 bits), 65535
    side = size or 64
    size = (None if size else kept_size(set(sizes))) or (side, side)
    content = {"images": torch.stack([pixels(seen(path), mode, most, size) for path in found])}
    parents = [path.relative_to(folder).parts[:-1] for path in found]
    classes = sorted({parts[0] for parts in parents if parts})
    if all(parents) and len(classes) > 1:
        content["labels"] = torch.tensor([classes.index(parts[0]) for parts in parents])
        print("classes: " + ", ".join(f"{i} {name}" for i, name in enumerate(classes)))
    common.write_file(target, content)
    print(f"{target}: {len(found)} pictures as uint8 {tuple(content['images'].shape)}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("target", metavar="FILE.pt")
    parser.add_argument("--size", type=int, default=0, help="side of the squares (default: 64)")
    given = parser.parse_args(argv)
    try:
        pack(given.folder, given.target, given.size)
    except common.InputError as error:
        print(f"pack.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
