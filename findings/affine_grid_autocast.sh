#!/bin/sh
# torch 2.13.0: under autocast F.affine_grid gives coordinates in half precision, for the bmm inside
# it is on autocast's list. F.grid_sample takes them without a word: a warp that augments a GAN's
# images misses by 0.07 pixels at 28x28 and by 0.6 at 256x256.
#
# Output seen:
#   28x28 bfloat16: grid in torch.bfloat16, off by 0.07 pixels
#   256x256 bfloat16: grid in torch.bfloat16, off by 0.61 pixels
#   256x256 float16: grid in torch.float16, off by 0.07 pixels
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/python" - <<'PYTHON'
import torch
import torch.nn.functional as F

theta = torch.tensor([[[0.96, -0.29, 0.07], [0.29, 0.96, -0.03]]])
for side, kind, least in ((28, torch.bfloat16, 0.05), (256, torch.bfloat16, 0.5),
                          (256, torch.float16, 0.05)):
    size = (1, 1, side, side)
    exact = F.affine_grid(theta, size, align_corners=False)
    with torch.autocast("cpu", kind):
        grid = F.affine_grid(theta, size, align_corners=False)
    off = (grid.float() - exact).abs().max() * side / 2
    print(f"{side}x{side} {str(kind)[6:]}: grid in {grid.dtype}, off by {off:.2f} pixels")
    assert exact.dtype == torch.float32 and grid.dtype == kind and off > least
PYTHON
