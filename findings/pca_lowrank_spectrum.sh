#!/bin/sh
# torch 2.13.0: torch.pca_lowrank, whose q is said to be a slightly overestimated rank, gives at its
# default of niter=2 singular values that are up to 13 % too small on data whose spectrum falls as
# slowly as that of noisy images; not only the last, the first is 4 % short. Whoever whitens by them
# scales too far; niter=10 still leaves 3 %.
#
# Output seen (the first and the 50th of 50 singular values, over the exact ones):
#   niter 2: 0.959 0.872
#   niter 4: 0.984 0.919
#   niter 10: 0.999 0.967
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/python" - <<'PYTHON'
import torch

torch.manual_seed(0)
axes = torch.linalg.qr(torch.randn(784, 784)).Q
data = torch.randn(4000, 784) @ axes * torch.linspace(1, 0.2, 784)
exact = torch.linalg.svdvals(data - data.mean(0))[:50]
for niter, most in ((2, 0.9), (4, 0.95), (10, 0.98)):
    torch.manual_seed(0)
    ratio = torch.pca_lowrank(data, 50, niter=niter)[1] / exact
    print(f"niter {niter}: {ratio[0]:.3f} {ratio[-1]:.3f}")
    assert ratio[-1] < most and ratio[0] < 1
PYTHON
