"""results/README.md's "Your own InfoGAN" as one plain PyTorch script, with data and a score.

    python results/own_infogan.py [--data mnist] [--seed 0] [--updates 1900] [--warm-up 1400]

prints the accuracy of the category as a clustering of test images and writes own-infogan.png, a row
a category. It is simpler than infogan.py: one head in the warm-up, equal classes, grey images, no
names for c2 and c3, float32.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import common

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", default="mnist")
parser.add_argument("--data-root", default="data")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--updates", type=int, default=1900)
parser.add_argument("--warm-up", type=int, default=1400)
options = parser.parse_args()
torch.manual_seed(options.seed)

# ---------------------------------------------------------------- the page's blocks

def trunk(width):                             # to 16 width features; 98 is 2 x 7 x 7
    return nn.Sequential(
        nn.Conv2d(1, width, 4, 2, 1), nn.LeakyReLU(0.1),
        nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width),
        nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(98 * width, 16 * width, bias=False),
        nn.BatchNorm1d(16 * width), nn.LeakyReLU(0.1))

d_trunk, d_head, code_head = trunk(32), nn.Linear(512, 1), nn.Linear(512, 4)      # D's optimiser
Q = nn.Sequential(trunk(16), nn.Linear(256, 10))                                  # G's optimiser

def code_loss(features, c):                   # -L_I of c2, c3 but for a constant
    mean, raw = code_head(features).chunk(2, 1)
    std = F.softplus(raw) + 0.01
    return (((c - mean) / std) ** 2 / 2 + std.log()).sum(1).mean()

def warped(x, by=0.25):                       # images (N, C, H, W), each under a small affine map
    theta = torch.eye(2, 3) + by * (2 * torch.rand(len(x), 2, 3) - 1) * torch.tensor([1, 1, 0.5])
    grid = F.affine_grid(theta.to(x), x.shape, align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)

def invariance_loss(p, q):                    # Q's categories of two warps, (N, K) each
    joint = (p.T @ q + q.T @ p).clamp(min=1e-8) / (2 * len(p))
    each = joint.sum(1)
    information = (joint * (joint / (each[:, None] * each)).log()).sum()
    return 2 * (each * (len(each) * each).log()).sum() - information

def g_loss(fake, real, c1, c2_c3):            # for G's and Q's weights
    features = d_trunk(fake)
    views = [Q(warped(real)).softmax(1) for _ in range(2)]
    return (F.softplus(-d_head(features)).mean() + F.cross_entropy(Q(fake), c1)
            + 0.1 * code_loss(features, c2_c3) + 10 * invariance_loss(*views))

def step(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

def warm_up(images, updates=1400):
    flat = images.flatten(1)
    some = torch.randperm(len(flat))[:6000]
    half_squares = flat[some].square().sum(1) / 2
    near = torch.cat([(part @ flat[some].T - half_squares).topk(5).indices
                      for part in flat.split(500)])
    optimizer = torch.optim.Adam(Q.parameters(), 1e-3, (0.5, 0.999))
    for _ in range(updates):
        chosen = torch.randint(len(images), (128,))
        other = some[near[chosen, torch.randint(5, (128,))]]
        pair = [Q(warped(images[i])).softmax(1) for i in (chosen, other)]
        step(optimizer, invariance_loss(*pair))

def codes(n, r=0.5):
    c1 = F.one_hot(torch.randint(10, (n,)), 10).float()
    return c1, r * (2 * torch.rand(n, 2) - 1)

G = nn.Sequential(
    nn.Linear(74, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(),
    nn.Linear(512, 3136, bias=False), nn.BatchNorm1d(3136), nn.ReLU(), nn.Unflatten(1, (64, 7, 7)),
    nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
    nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Sigmoid())
model = nn.ModuleDict({"D": nn.ModuleList([d_trunk, d_head, code_head]),
                       "G": nn.ModuleList([G, Q])})           # the two players
average = torch.optim.swa_utils.AveragedModel(
    model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99), use_buffers=True)

def train(images, updates=1900):
    d_optimizer = torch.optim.Adam(model["D"].parameters(), 5e-4, (0.5, 0.999))
    g_optimizer = torch.optim.Adam(model["G"].parameters(), 1e-3, (0.5, 0.999))
    for _ in range(updates):
        real = images[torch.randint(len(images), (128,))]
        c1, c2_c3 = codes(128)
        fake = G(torch.cat([2 * torch.rand(128, 62) - 1, c1, c2_c3], 1))
        features = d_trunk(fake.detach())
        step(d_optimizer, F.softplus(-d_head(d_trunk(real))).mean()
             + F.softplus(d_head(features)).mean() + 0.1 * code_loss(features, c2_c3))
        step(g_optimizer, g_loss(fake, real, c1, c2_c3))
        average.update_parameters(model)

# ---------------------------------------------------------------- data, training, score

try:
    data = common.load_data(options.data, options.data_root)
    if data.shape != (1, 28, 28) or data.test_labels is None:
        raise common.InputError(f"--data {options.data}: expected 28x28 grey images with labels")
except common.InputError as error:
    print(f"own_infogan.py: {error}", file=sys.stderr)
    raise SystemExit(2) from None
images = common.floats(data.images)
warm_up(images, options.warm_up)
train(images, options.updates)
G, Q = average.module.eval()["G"]
with torch.no_grad():
    test_images, test_labels = common.labelled(data.test_images, data.test_labels)
    clusters = common.in_batches(lambda part: Q(part).argmax(1), test_images)
    noise = (2 * torch.rand(10, 62) - 1).repeat(10, 1)
    rows = torch.eye(10).repeat_interleave(10, 0)
    common.save_grid(G(torch.cat([noise, rows, torch.zeros(100, 2)], 1)), "own-infogan.png")
found = common.clustering_scores(clusters, test_labels)
print(f"seed {options.seed}: accuracy {found['accuracy']:.4f}, NMI {found['nmi']:.4f}")
