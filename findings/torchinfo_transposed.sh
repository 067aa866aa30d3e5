#!/bin/sh
# torchinfo 1.8.0 (torch 2.13.0): total_mult_adds takes every weight of a transposed convolution
# once for each output pixel. It is used once for each input pixel, so a generator's layers of
# stride 2 count four times what they do, beside a discriminator's that count right.
#
# Output seen (multiplications and additions: torchinfo, torch.utils.flop_counter):
#   Conv2d of stride 2: 401408 401408
#   ConvTranspose2d of stride 2: 1605632 401408
#   ConvTranspose2d of stride 1: 225792 225792
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 torchinfo==1.8.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchinfo import summary

cases = [
    ("Conv2d of stride 2", nn.Conv2d(8, 16, 4, 2, 1, bias=False), (1, 8, 28, 28), 1),
    ("ConvTranspose2d of stride 2", nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False),
     (1, 16, 14, 14), 4),
    ("ConvTranspose2d of stride 1", nn.ConvTranspose2d(16, 8, 3, 1, 1, bias=False),
     (1, 16, 14, 14), 1),
]
for name, layer, size, factor in cases:
    found = summary(layer, input_size=size, verbose=0, device="cpu").total_mult_adds
    with FlopCounterMode(display=False) as counter:
        layer(torch.zeros(size))
    exact = counter.get_total_flops() // 2
    print(f"{name}: {found} {exact}")
    assert found == factor * exact
PYTHON
