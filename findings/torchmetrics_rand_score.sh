#!/bin/sh
# torchmetrics 1.9.0 (torch 2.13.0): from some 100,000 labels on adjusted_rand_score is wrong
# without a word, as where products of counts of pairs overflow: -19.8, 0.88, 3.7 for clusterings
# that agree at 0.49, where the score is at most 1. scikit-learn 1.9.1 has it right.
#
# Output seen (labels: torchmetrics, scikit-learn):
#   50000: 0.490 0.490
#   100000: -19.828 0.493
#   200000: 0.878 0.491
#   1000000: 3.663 0.489
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 torchmetrics==1.9.0 scikit-learn==1.9.1
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import sklearn.metrics
import torch
from torchmetrics.functional.clustering import adjusted_rand_score

for n in (50_000, 100_000, 200_000, 1_000_000):
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (n,), generator=rng)
    changed = torch.rand(n, generator=rng) < 0.3
    found = torch.where(changed, torch.randint(10, (n,), generator=rng), labels)
    ours = float(adjusted_rand_score(labels, found))
    exact = sklearn.metrics.adjusted_rand_score(labels, found)
    print(f"{n}: {ours:.3f} {exact:.3f}")
    assert (abs(ours - exact) < 1e-3) == (n < 100_000)
PYTHON
