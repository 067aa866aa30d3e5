#!/bin/sh
# torch 2.13.0: torch.compile cannot take the usual training step of a GAN whole. G's image is used
# twice, detached for D's loss and as it is for G's; eager that is two graphs, compiled the first
# backward() frees what the second one needs. backend="eager" runs, so the fault is AOTAutograd's.
#
# Output seen:
#   without torch.compile: 1.685 0.636
#   backend eager: runs
#   backend aot_eager: RuntimeError: Trying to backward through the graph a second time
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch.nn.functional import softplus

torch.manual_seed(0)
G, D = nn.Linear(4, 8), nn.Linear(8, 1)
g_optimizer = torch.optim.SGD(G.parameters(), 0.1)
d_optimizer = torch.optim.SGD(D.parameters(), 0.1)


def step(z, real):
    fake = G(z)
    loss_d = softplus(-D(real)).mean() + softplus(D(fake.detach())).mean()
    d_optimizer.zero_grad()
    loss_d.backward()
    d_optimizer.step()
    loss_g = softplus(-D(fake)).mean()
    g_optimizer.zero_grad()
    loss_g.backward(inputs=list(G.parameters()))
    g_optimizer.step()
    return loss_d.detach(), loss_g.detach()


z, real = torch.randn(16, 4), torch.randn(16, 8)
print("without torch.compile:", *(f"{float(loss):.3f}" for loss in step(z, real)))
torch.compile(step, backend="eager")(z, real)
print("backend eager: runs")
torch._dynamo.reset()
try:
    torch.compile(step, backend="aot_eager")(z, real)
except RuntimeError as error:
    print(f"backend aot_eager: RuntimeError: {str(error).partition(' (')[0]}")
    assert "backward through the graph a second time" in str(error)
else:
    raise SystemExit("it runs now")
PYTHON
