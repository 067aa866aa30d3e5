#!/bin/sh
# torch 2.13.0: swa_utils.AveragedModel with get_ema_multi_avg_fn and use_buffers=True, the usual
# moving average of a network with batch normalisation, never counts: the average of an integer
# buffer is rounded down at each update, so num_batches_tracked stays 1, however long the model
# trains and however often the average is updated afterwards. Where momentum is None, so that
# statistics are plain means, whoever trains the average on gives its first batch a weight of 1/2:
# one odd batch moves statistics of 500 half of the way.
#
# Output seen:
#   batches counted: model 500, average 1, after 5000 more updates 1
#   running mean after one batch around 10: model 0.01, average 4.99
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/python" - <<'PYTHON'
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

torch.manual_seed(0)
model = torch.nn.BatchNorm1d(1, momentum=None)
average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=True)
for _ in range(500):
    model(torch.randn(64, 1))
    average.update_parameters(model)
counts = [int(model.num_batches_tracked), int(average.module.num_batches_tracked)]
for _ in range(5000):
    average.update_parameters(model)
counts.append(int(average.module.num_batches_tracked))
print("batches counted: model {}, average {}, after 5000 more updates {}".format(*counts))
assert counts == [500, 1, 1]
means = []
for network in (model, average.module.train()):
    network(torch.randn(64, 1) + 10)
    means.append(float(network.running_mean))
print("running mean after one batch around 10: model {:.2f}, average {:.2f}".format(*means))
assert means[0] < 0.1 and means[1] > 4
PYTHON
