# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6"]
# ///
"""InfoGAN: a GAN that learns, without labels, to read back the codes it samples from.

Chen, Duan, Houthooft, Schulman, Sutskever and Abbeel 2016, arXiv 1606.03657.

G makes an image from noise z and codes c, categories c1.. and continuous c2, c3... The recognition
network Q(c|x) predicts the codes from the image: in the paper a second head on the discriminator D,
here by default a network of its own. Rewarding right predictions maximises a lower bound of the
mutual information I(c; G(z, c)), so each code comes to mean something visible: on MNIST the
category is the digit, the continuous codes are its style, such as slant.

    V(D, G) = E log D(x) + E log(1 - D(G(z, c)))                          (1)  the GAN
    L_I(G, Q) = E[log Q(c | G(z, c))] + H(c)  <=  I(c; G(z, c))           (5)  in nats
    min over G, Q  max over D   V(D, G) - lambda L_I(G, Q)                (6)

--recipe paper trains so. The default differs by these flags, measured in results/README.md:

    --invariance 10      Q puts two warps of a real image in one category, all equally frequent
    --warm-up 2          and learns that first, on pairs of nearest neighbours, for two epochs
    --trunk own          Q has its own layers; shared: D's, as in the paper; detached: D's, but L_I
                         trains Q's head and G alone, (6) to the letter
    --lr-discriminator   5e-4, for 2e-4
    --init torch         torch's initial weights, for N(0, 0.02)
    --average 0.998      moving averages of all weights sample and encode
    --width 32           half of the paper's channels, for a laptop

Both follow the authors' code where the paper is silent: G minimises -log D(G), z is uniform on
(-1, 1). Unlike it Q predicts a code's deviation too, H of a continuous code is its uniform prior's,
and lambda is 0.1 for continuous codes (the paper: "smaller"; the code: 1).

    python infogan.py      # MNIST: accuracy 0.9875 +- 0.0009 (n = 10) in 8 minutes on two cores

    from infogan import InfoGAN
    model = InfoGAN.load("runs/infogan-1")
    images = model.sample(8, categorical=3, continuous=[0.0, 1.5])     # (8, 1, 28, 28) in [0, 1]
    codes = model.encode(images)           # codes.categorical[0] (8, 10), .mean and .std (8, 2)
"""

import contextlib
import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

if __package__:       # in a package of yours: mypkg/infogan.py beside mypkg/common.py
    from . import common
else:                 # as a script, or from its own folder
    import common

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Codes", "Config", "InfoGAN", "Latent", "train", "training_step", "warm_up"]

Given = float | Sequence | Tensor | None      # codes to hold fixed: one number for all, or tensors

# ---------------------------------------------------------------- losses and the training step

def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-E log D(x) - E log(1 - D(G)), Equation 1 for D, from logits (N,) and (N,)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """-E log D(G), the non-saturating form of Equation 1 for G, from logits (N,)."""
    return F.softplus(-fake).mean()


def categorical_information(logits: Tensor, onehot: Tensor) -> Tensor:
    """L_I of a categorical code in nats, Equation 5: (N, K) twice to a scalar, at most ln K."""
    return math.log(onehot.shape[1]) - F.cross_entropy(logits, onehot)


def continuous_information(mean: Tensor, std: Tensor, values: Tensor, code_range=1.0) -> Tensor:
    """L_I of each continuous code in nats, Equation 5: (N, C) thrice to (C,); no ceiling."""
    nll = 0.5 * ((values - mean) / std) ** 2 + std.log() + 0.5 * math.log(2 * math.pi)
    return math.log(2 * code_range) - nll.mean(0)


def information_loss(codes: "Codes", latent: "Latent", *, code_range=1.0, lambda_categorical=1.0,
                     lambda_continuous=0.1) -> Tensor:
    """-lambda L_I, the second term of Equation 6, summed over the codes that `latent` has and
    `codes`, of logits, predict."""
    categorical = sum(map(categorical_information, codes.categorical, latent.categorical))
    continuous = continuous_information(codes.mean, codes.std, latent.continuous, code_range).sum()
    return -lambda_categorical * categorical - lambda_continuous * continuous


def look(model, fake, real=None, augment=False, detach_trunk=False):
    """What an update goes by: D's logits of real images, if any, and of fakes, and Q's Codes of the
    fakes. With `augment` D sees both as one batch under small warps (Zhao et al. 2020)."""
    if augment:
        logits = model.discriminate(warp(torch.cat([real, fake])))
        return *logits.chunk(2), model.posterior(fake, detach_trunk)
    real_logit = None if real is None else model.discriminate(real)
    return real_logit, *model.discriminate_and_encode(fake, detach_trunk)


def training_step(model: "InfoGAN", d_optimizer: Optimizer, g_optimizer: Optimizer, real: Tensor,
                  *, lambda_categorical=1.0, lambda_continuous=0.1, invariance=10.0, augment=False,
                  autocast=contextlib.nullcontext()) -> dict[str, Tensor]:
    """One update of D and Q, then one of G, on images (N, C, H, W), uint8 or in [0, 1].

    The options are Config's. `autocast` is entered for the forward passes of each update, never
    across one: it may keep copies of weights that change there. Returns detached scalars: loss_d,
    loss_g and, weighted, loss_information (of G's update) and loss_invariance, unless that is 0;
    mean D(x) and D(G) in D's update, d_real and d_fake.
    Errors: InputError for images of another shape or type.
    """
    weights = {"code_range": model.code_range, "lambda_categorical": lambda_categorical,
               "lambda_continuous": lambda_continuous}
    detach_trunk = model.trunk == "detached"
    real = model.training_batch(real)
    latent = model.sample_latent(len(real))
    target = model.split_latent(latent)

    # (1) D tells real from fake; Q predicts the codes of the fake
    with autocast:
        fake = model.generator(latent)
        real_logit, fake_logit, codes = look(model, fake.detach(), real, augment, detach_trunk)
    losses = {"loss_d": discriminator_loss(real_logit, fake_logit)}
    d_scores = {"d_real": real_logit.sigmoid().mean(), "d_fake": fake_logit.sigmoid().mean()}
    loss_q = information_loss(codes, target, **weights)
    if invariance > 0 and model.categorical:  # and puts two warps of a real image in one category
        warps = warp(torch.cat([real, real]))
        with autocast:
            pair = model.posterior(warps, detach_trunk).categorical[0].chunk(2)
        losses["loss_invariance"] = invariance * invariance_loss(*pair)
        loss_q = loss_q + losses["loss_invariance"]
    d_optimizer.zero_grad()
    (losses["loss_d"] + loss_q).backward()
    d_optimizer.step()

    # (2) G fools D and makes its codes predictable; the gradient passes through D and Q to G alone
    with autocast:
        _, fake_logit, codes = look(model, fake, real if augment else None, augment)
    losses["loss_g"] = generator_loss(fake_logit)
    losses["loss_information"] = information_loss(codes, target, **weights)
    g_optimizer.zero_grad()
    (losses["loss_g"] + losses["loss_information"]).backward(inputs=model.g_parameters())
    g_optimizer.step()
    return {name: value.detach() for name, value in (losses | d_scores).items()}


# ---------------------------------------------------------------- networks

class Latent(NamedTuple):
    """The parts of N latents: noise (N, noise), one-hot (N, K) a category, continuous codes."""
    noise: Tensor
    categorical: list[Tensor]
    continuous: Tensor


class Codes(NamedTuple):
    """What Q says of N images: for each categorical code a tensor (N, K), logits from the networks
    and probabilities from `encode`; mean and std of the continuous codes, (N, continuous)."""
    categorical: list[Tensor]
    mean: Tensor
    std: Tensor


class InfoGAN(common.Model):
    """Generator, discriminator and recognition network for images of `shape` (C, H, W) in [0, 1].

    A latent is (N, noise + sum of category sizes + continuous): noise, a one-hot vector for each of
    the `categorical` sizes, and continuous codes, uniform on (-code_range, code_range). `width` is
    the channels of the first convolution (the paper's 64), `trunk` whose layers Q has below its
    head: its own, D's (shared), or D's that L_I does not train (detached). Errors: InputError.
    """
    METHOD = "infogan"
    TRUNKS = ["own", "shared", "detached"]

    def __init__(self, shape: Sequence[int] = (1, 28, 28), noise: int = 62,
                 categorical: Sequence[int] = (10,), continuous: int = 2, code_range: float = 1.0,
                 width: int = 32, trunk: str = "own"):
        super().__init__(shape=tuple(shape), noise=noise, categorical=list(categorical),
                         continuous=continuous, code_range=code_range, width=width, trunk=trunk)
        logits, moments = sum(categorical), 2 * continuous
        self.latent_size = noise + logits + continuous
        fits = logits + moments > 0 and all(k > 1 for k in categorical) and code_range > 0
        if not fits or trunk not in self.TRUNKS:
            raise common.InputError(
                f"categorical is {categorical}, continuous {continuous}, code_range {code_range}, "
                f"trunk {trunk!r}; expected one code or more, 2 categories or more, a positive "
                "range, and own, shared or detached")

        def head(size):
            return nn.Sequential(
                nn.Linear(16 * width, 2 * width, bias=False), nn.BatchNorm1d(2 * width),
                nn.LeakyReLU(0.1), nn.Linear(2 * width, size), common.Float32())

        self.generator = common.convolutional_generator(self.latent_size, shape, width,
                                                        nn.Sigmoid())
        self.d_trunk = common.convolutional_trunk(shape, width, slope=0.1)
        self.d_head = nn.Sequential(nn.Linear(16 * width, 1), common.Float32(), nn.Flatten(0))
        own = trunk == "own"
        self.q_trunk = common.convolutional_trunk(shape, width, slope=0.1) if own else None
        # On a trunk of its own, categories and continuous codes have a hidden layer each: one that
        # has learned to ignore how a digit leans cannot tell it.
        apart = own and logits > 0 and moments > 0
        self.q_head = head(logits if apart else logits + moments)
        self.q_moments = head(moments) if apart else None

    def forward(self, images: Tensor) -> tuple[Tensor, Codes]:
        """D and Q: images (N, C, H, W) in [0, 1] to real-or-fake logits (N,) and Codes."""
        return self.discriminate_and_encode(self.floats(images))

    # What follows takes images that `floats` or G made; detach_trunk keeps Q's gradient from D's.

    def discriminate_and_encode(self, images, detach_trunk=False):
        """D and Q: images (N, C, H, W) to logits (N,) and Codes."""
        features = self.d_trunk(images)                                         # (N, 16 width)
        return self.d_head(features), self.split_output(self.q(images, detach_trunk, features))

    def discriminate(self, images):
        """D: images (N, C, H, W) to logits (N,)."""
        if self.q_trunk is not None:
            return self.d_head(self.d_trunk(images))
        return self.discriminate_and_encode(images)[0]       # Q's batch normalisation meets them

    def posterior(self, images, detach_trunk=False):
        """Q(c|x): images (N, C, H, W) to Codes."""
        return self.split_output(self.q(images, detach_trunk))

    def q(self, images, detach_trunk=False, features=None):
        """Q's output, (N, sum of category sizes + 2 continuous); features are D's, if at hand."""
        if self.q_trunk is not None:
            features = self.q_trunk(images)
        elif features is None:
            features = self.d_trunk(images)
        if detach_trunk:
            features = features.detach()
        output = self.q_head(features)
        if self.q_moments is not None:
            output = torch.cat([output, self.q_moments(features)], 1)
        return output

    def split_output(self, output):
        """Q's output (N, sum of category sizes + 2 continuous) as Codes."""
        sizes = [*self.categorical, self.continuous, self.continuous]
        *logits, mean, raw_std = output.split(sizes, dim=1)
        return Codes(logits, mean, F.softplus(raw_std) + 0.01)

    d_parameters = common.Model.other_parameters             # those of D and Q

    def sample_latent(self, n: int, categorical: Given = None, continuous: Given = None,
                      rng: torch.Generator | None = None) -> Tensor:
        """n latents from the prior on the model's device, the codes that are given held fixed.

        categorical: a category of the first code for all, (n,) one for each, or (n, m) for the
        first m codes. continuous: what broadcasts to (n, continuous), None in a list for a code to
        draw; beyond the prior's range it extrapolates. rng: in place of torch's global numbers.
        Errors: InputError for other codes.
        """
        random = {"device": self.device, "generator": rng}
        noise = torch.rand(n, self.noise, **random) * 2 - 1
        columns = [torch.randint(k, (n,), **random) for k in self.categorical]
        values = (torch.rand(n, self.continuous, **random) * 2 - 1) * self.code_range
        if categorical is not None:
            given = self._given_categories(categorical, n)
            columns[:len(given)] = given
        if continuous is not None:
            drawn = [False]
            if isinstance(continuous, (list, tuple)) and None in continuous:
                drawn = [value is None for value in continuous]
                continuous = [value or 0.0 for value in continuous]
            given = torch.as_tensor(continuous, dtype=torch.float32, device=self.device)
            try:
                values = torch.where(torch.tensor(drawn, device=self.device), values, given)
                fits = values.shape == (n, self.continuous) and bool(values.isfinite().all())
            except RuntimeError:
                fits = False
            if not fits:
                raise common.InputError(f"continuous is {given.tolist()}; expected finite numbers "
                                        f"that broadcast to ({n}, {self.continuous})")
        onehots = [F.one_hot(column, k) for column, k in zip(columns, self.categorical)]
        return torch.cat([noise, *onehots, values], 1).to(next(self.parameters()))

    def _given_categories(self, categorical, n):
        """`sample_latent`'s categories as one column (n,) for each code they are for."""
        given = torch.as_tensor(categorical, device=self.device)
        if given.ndim == 0 or given.shape == (n,):
            given = given.expand(n)[:, None]
        sizes = torch.tensor(self.categorical, device=self.device)
        fits = given.ndim == 2 and len(given) == n and given.shape[1] <= len(sizes)
        if not fits or given.is_floating_point() or (given < 0).any() or (
                given >= sizes[:given.shape[1]]).any():
            raise common.InputError(
                f"categorical is {given.tolist()}; expected whole numbers from 0 to below "
                f"{self.categorical}: one, ({n},) or ({n}, {len(sizes)})")
        return given.long().unbind(1)

    def split_latent(self, latent: Tensor) -> Latent:
        """Latents (N, noise + codes) as a Latent."""
        sizes = [self.noise, *self.categorical, self.continuous]
        noise, *onehots, values = latent.split(sizes, dim=1)
        return Latent(noise, onehots, values)

    def sample(self, n: int, categorical: Given = None, continuous: Given = None,
               rng: torch.Generator | None = None) -> Tensor:
        """n new images (n, C, H, W) in [0, 1]; arguments as for `sample_latent`."""
        return self.decode(self.sample_latent(n, categorical, continuous, rng))

    def encode(self, images: Tensor) -> Codes:
        """Q in eval mode: images (N, C, H, W), in [0, 1] or uint8, to Codes of probabilities."""
        logits, mean, std = self.split_output(self.evaluate(self.q, images))
        return Codes([part.softmax(1) for part in logits], mean, std)


# ---------------------------------------------------------------- beyond the paper

def invariance_loss(logits: Tensor, logits_again: Tensor, balance=2.0) -> Tensor:
    """-(I(c1; c1') + balance H(c1)) in nats, c1 and c1' the categories of two views of each image.

    Both (N, K). Their joint distribution over the batch is the mean outer product of Q's
    probabilities, made symmetric (IIC, Ji et al. 2019, Equation 3); H(c1) asks once more that all
    categories be equally frequent. The other codes stay free to tell what a warp changes.
    """
    p, q = logits.softmax(1), logits_again.softmax(1)
    joint = p.T @ q / len(p)                                                    # (K, K)
    joint = ((joint + joint.T) / 2).clamp(min=1e-8)
    joint_entropy = torch.special.entr(joint).sum()
    entropy = torch.special.entr(joint.sum(1)).sum()
    return joint_entropy - (2 + balance) * entropy               # I(c1; c1') = 2 H(c1) - H(c1, c1')


def warp(images: Tensor, rotation=0.3, scale=0.2, shear=0.3, shift=1 / 14) -> Tensor:
    """Each image (N, C, H, W) under its own small affine map, drawn uniformly from +- each bound.

    rotation is in radians; the scale of either axis, and the shear, are fractions; shift is a
    fraction of the image's size (1/14 is 2 of 28 pixels). Beyond the image its edge goes on.
    """
    def uniform(bound):
        return (torch.rand(len(images), device=images.device) * 2 - 1) * bound

    angle = uniform(rotation)
    wide = 1 + uniform(scale)
    high = 1 + uniform(scale)
    lean = uniform(shear)
    right = uniform(2 * shift)                                      # in units of half the image
    down = uniform(2 * shift)
    cos, sin = angle.cos(), angle.sin()
    h, w = images.shape[2:]                                         # angles are those of the pixels
    row_x = torch.stack([wide * cos, wide * (lean * cos - sin) * (h / w), right], 1)
    row_y = torch.stack([high * sin * (w / h), high * (lean * sin + cos), down], 1)
    theta = torch.stack([row_x, row_y], 1).to(images.dtype)         # (N, 2, 3)
    with torch.autocast(images.device.type, enabled=False):         # it would round the grid
        grid = F.affine_grid(theta, images.shape, align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def neighbours(images: Tensor, count=5, among=6000, components=50) -> Tensor:
    """For each image (N, C, H, W) the `count` nearest of up to `among` random ones: indices (N, .).

    Near by squared distance in the first principal components of the pixels; images of more than 28
    pixels are averaged down to that. An image that is among them is a neighbour of its own.
    """
    def pixels(part):
        h, w = part.shape[2:]
        return F.adaptive_avg_pool2d(part, (min(h, 28), min(w, 28))).flatten(1)

    chosen = torch.randperm(len(images), device=images.device)[:among]
    some = common.in_batches(pixels, images[chosen])
    mean = some.mean(0)
    axes = torch.pca_lowrank(some, min(components, *some.shape))[2]             # (pixels, .)
    some = (some - mean) @ axes
    places = common.in_batches(lambda part: (pixels(part) - mean) @ axes, images)
    half_squares = some.square().sum(1) / 2

    def nearest(part):
        likeness = part @ some.T - half_squares
        return chosen[likeness.topk(min(count, len(chosen)), sorted=False).indices]
    return common.in_batches(nearest, places, 500)


def warm_up(model: InfoGAN, images: Tensor, epochs: int = 2, heads: int = 8, rate: float = 1e-3,
            batch_size: int = 128, autocast=contextlib.nullcontext()) -> None:
    """Before the first step: train Q's first category by `invariance_loss` on real images (N, C, H,
    W) alone, uint8 or in [0, 1], each paired with one of its nearest neighbours, both warped.

    A warp never makes a plain seven of a barred one; their neighbours join them (as pairs: SCAN,
    Van Gansbeke et al. 2020). Which classes end in one category is settled early and by chance, so
    `heads` copies of Q's head, each with random weights of its own, learn on one trunk, and Q keeps
    the one with the lowest loss (sub-heads: IIC).
    Errors: InputError for images that do not fit, or a model without categories.
    """
    if not model.categorical:
        raise common.InputError("warm_up is about the first category; this model has none")
    model.check_range(images)
    model.train()
    images = images.to(model.device)
    candidates = nn.ModuleList([copy.deepcopy(model.q_head) for _ in range(heads)])
    for layer in candidates.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    trunk = model.d_trunk if model.q_trunk is None else model.q_trunk
    optimizer = common.optimizer([*trunk.parameters(), *candidates.parameters()], rate)
    mean_losses = torch.zeros(heads, device=model.device)
    near = neighbours(images)

    def update(chosen):                                             # the indices of N images
        column = torch.randint(near.shape[1], chosen.shape, device=chosen.device)
        pairs = torch.cat([chosen, near[chosen, column]])
        views = warp(model.floats(images[pairs]))
        with autocast:
            features = trunk(views)
            logits = [head(features)[:, :model.categorical[0]] for head in candidates]
        losses = torch.stack([invariance_loss(*part.chunk(2)) for part in logits])
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        mean_losses.lerp_(losses.detach(), 0.02)
        return {}

    update = common.Captured(update)
    for _ in range(epochs):
        order = torch.randperm(len(images), device=images.device)
        for chosen in order.split(batch_size)[:max(1, len(images) // batch_size)]:
            update(chosen)
    model.q_head.load_state_dict(candidates[int(mean_losses.argmin())].state_dict())


# ---------------------------------------------------------------- configuration

@dataclass
class Config(common.RunConfig):
    """The options of a run, for `train` and as flags; `Config.paper()` has them as published."""
    noise: int = common.option(62, "noise variables z, which nobody predicts")
    categorical: list[int] = common.option([10], "sizes of the categorical codes, or none", low=2)
    continuous: int = common.option(2, "number of continuous codes")
    code_range: float = common.option(1.0, "continuous codes are uniform on (-r, r)", low=1e-6)
    lambda_categorical: float = common.option(1.0, "weight of L_I for the categorical codes")
    lambda_continuous: float = common.option(0.1, "weight of L_I for the continuous codes")
    trunk: str = common.option(
        "own", "Q's layers below its head: its own, shared with D, or D's that L_I does not train",
        choices=InfoGAN.TRUNKS)
    invariance: float = common.option(10.0, "weight of the invariance loss, on warped real images")
    warm_up: int = common.option(2, "epochs of Q alone before the first, on pairs of neighbours")
    augment: bool = common.option(False, "D sees real and fake images as one batch, warped")
    init: str = common.option("torch", "initial weights: torch's own, or normal, N(0, 0.02)",
                              choices=["torch", "normal"])
    lr_discriminator: float = common.option(5e-4, "Adam's rate for D and Q")
    lr_generator: float = common.option(1e-3, "Adam's rate for G")
    average: float = common.option(0.998, "decay of the moving average that samples and encodes",
                                   high=0.99999)

    METHOD = "infogan"
    PAPER = {"epochs": 11, "width": 64, "trunk": "shared", "invariance": 0.0, "warm_up": 0,
             "init": "normal", "lr_discriminator": 2e-4, "average": 0.0}    # 5,000 updates

    def __post_init__(self):
        super().__post_init__()
        if not self.categorical and not self.continuous:
            raise common.InputError("--categorical and --continuous are both empty; expected at "
                                    "least one code")


# ---------------------------------------------------------------- scores, pictures, training

def scores(model: InfoGAN, data: common.Data, samples=10_000, judge=None) -> dict:
    """Scores on the test images and on fresh samples, as many as `samples` and training images
    allow; results/README.md has the keys. Those that need `judge` are there with one only."""
    rng = torch.Generator(model.device).manual_seed(0)
    latent = model.sample_latent(min(samples, len(data.images)), rng=rng)
    outputs = common.in_batches(lambda part: model.evaluate(model.q, model.decode(part)), latent,
                                common.batch_for(model.shape))
    codes = model.split_output(outputs)
    target = model.split_latent(latent)
    categorical = map(categorical_information, codes.categorical, target.categorical)
    continuous = continuous_information(codes.mean, codes.std, target.continuous, model.code_range)
    result = {"mi_categorical": [float(information) for information in categorical],
              "mi_categorical_ceiling": [math.log(k) for k in model.categorical],
              "mi_continuous": continuous.tolist()}
    result |= clustering(model, data)
    if judge is not None:
        result |= judge.scores(data, model, latent)
    return result


def clustering(model, data):
    """Scores of the first category as a clustering of the test images, if they have labels."""
    if data.test_labels is None or not model.categorical:
        return {}
    images, labels = common.labelled(data.test_images, data.test_labels)
    clusters = model.encode(images).categorical[0].argmax(1)
    return common.clustering_scores(clusters, labels)


def figures(model: InfoGAN) -> dict:
    """What a run shows, name -> (uint8 picture (H, W, 1 or 3), caption), from fixed latents:
    samples; traversal, a row for each category of c1 (traversal2 of c2, ..), noise and other codes
    alike down a column; c2, c3.., a continuous code over twice its range, a row a category."""
    rng = torch.Generator(model.device).manual_seed(1)
    shown = {"samples": (model.sample_latent(100, rng=rng), "Samples.")}
    columns = model.sample_latent(10, rng=rng)
    rows = model.sample_latent(10, rng=rng)
    start = model.noise                                           # where a code's columns begin
    for i, k in enumerate(model.categorical, 1):
        latent = columns.repeat(k, 1)
        latent[:, start:start + k] = torch.eye(k, device=model.device).repeat_interleave(10, 0)
        shown[f"traversal{i}" if i > 1 else "traversal"] = latent, f"A row is a category of c{i}."
        if i == 1:
            rows = latent[::10]
        start += k
    sweep = torch.linspace(-2, 2, 10, device=model.device) * model.code_range
    for j in range(model.continuous):
        name = f"c{len(model.categorical) + 1 + j}"
        latent = rows.repeat_interleave(10, 0)
        latent[:, start + j] = sweep.repeat(len(rows))
        shown[name] = latent, f"{name} from {sweep[0]:g} to {sweep[-1]:g}, twice its range."
    return {name: (common.grid(model.decode(latent), 10), caption)
            for name, (latent, caption) in shown.items()}


def train(config: Config) -> tuple[InfoGAN, common.Run]:
    """Train as `config` says, or go on as Config.resumed(..) does; returns the model that samples
    and encodes (the moving average), in eval mode, and the Run. Errors: InputError."""
    run = common.Run(config)
    config = run.config
    model = InfoGAN(run.data.shape, noise=config.noise, categorical=config.categorical,
                    continuous=config.continuous, code_range=config.code_range,
                    width=config.width, trunk=config.trunk)
    if config.init == "normal":
        model.apply(common.initialise)
    model.to(run.device).train()
    average = common.MovingAverage(model, config.average)
    d_optimizer = common.optimizer(model.d_parameters(), config.lr_discriminator)
    g_optimizer = common.optimizer(model.g_parameters(), config.lr_generator)
    autocast = common.autocast(run.device, config.precision)
    run.restore(model=model, average=average, d=d_optimizer, g=g_optimizer)

    def step(real):
        losses = training_step(
            model, d_optimizer, g_optimizer, real, lambda_categorical=config.lambda_categorical,
            lambda_continuous=config.lambda_continuous, invariance=config.invariance,
            augment=config.augment, autocast=autocast)
        average.update(model)
        return losses

    shown = figures(average.model)
    if run.is_new:
        run.report({}, shown)
        begins = config.epochs and not config.from_
        if begins and config.warm_up and config.invariance and config.categorical:
            print("warming up before epoch 1 ..", flush=True)
            began = time.perf_counter()
            warm_up(model, run.data.images, config.warm_up, batch_size=config.batch_size,
                    autocast=autocast)
            common.share(*model.state_dict().values())
            seconds = time.perf_counter() - began
            run.report({"seconds": seconds} | clustering(model, run.data), shown)
    step = common.Captured(step)
    for _ in run.epochs():
        for real in run.batches():
            run.log(step(real))
        shown = figures(average.model)
        run.report(scores(average.model, run.data, config.samples), shown)
    judge = common.Judge.for_data(run.data)
    run.report(scores(average.model, run.data, config.samples, judge), shown)
    return average.model.eval(), run


def main(argv=None):
    common.command_line(train, Config, __doc__, argv)


if __name__ == "__main__":
    main()
