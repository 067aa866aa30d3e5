# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6"]
# ///
"""InfoGAN: a GAN that learns, without labels, to read back the codes it samples from.

Chen, Duan, Houthooft, Schulman, Sutskever and Abbeel 2016, arXiv 1606.03657.

G makes an image from noise z and codes c, categories c1.. and continuous c2, c3... The recognition
network Q(c|x), in the paper a second head of the discriminator D, predicts the codes from x.
Rewarding right predictions maximises a lower bound of the mutual information I(c; G(z, c)), so each
code comes to mean something visible: on MNIST c1 is the digit, c2 its slant and c3 its width.

    V(D, G) = E log D(x) + E log(1 - D(G(z, c)))                          (1)  the GAN
    L_I(G, Q) = E[log Q(c | G(z, c))] + H(c)  <=  I(c; G(z, c))           (5)  in nats
    min over G, Q  max over D   V(D, G) - lambda L_I(G, Q)                (6)

--recipe paper trains so. The default differs by these flags, measured in results/README.md:

    --trunk own          the categories have layers of their own; shared: D's, as in the paper
    --batch-mix -1       beyond 32 pixels D's batches of real images and fakes swap a quarter
    --invariance 10      Q puts two warps of a real image in one category
    --warm-up 1400       and learns that first, on pairs of nearest neighbours, in so many updates,
    --unequal            which find how often each category comes, too; else all equally often
    --naming 5           a real image, sheared and widened, is read as that much more of c2 and c3
    --colour-blind       Q's own layers see an image's contrast alone, whatever its colours
    --average 0.99       moving averages of all weights sample and encode
    --width 32           half of the paper's channels; and --init torch, --lr-discriminator 5e-4

Both follow the authors' code where the paper is silent: G minimises -log D(G), z is uniform on
(-1, 1). Unlike it Q predicts a code's deviation too, H of a continuous code is its uniform prior's,
and lambda is 0.1 for continuous codes (the paper: "smaller"; the code: 1).

    python infogan.py      # MNIST: accuracy 0.986 +- 0.001 (n = 10) in 5 minutes on two cores

    from infogan import InfoGAN
    model = InfoGAN.load("runs/infogan-1")
    images = model.sample(8, categorical=3, continuous=[0.0, 1.5])     # (8, 1, 28, 28) in [0, 1]
    codes = model.encode(images)           # codes.categorical[0] (8, 10), .mean and .std (8, 2)
"""

import contextlib
import itertools
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


def categorical_information(logits: Tensor, onehot: Tensor, shares=None) -> Tensor:
    """L_I of a categorical code in nats, Equation 5: (N, K) twice to a scalar, at most H(c): that
    of `shares` (K,), or ln K."""
    entropy = math.log(onehot.shape[1]) if shares is None else torch.special.entr(shares).sum()
    return entropy - F.cross_entropy(logits, onehot)


def continuous_information(mean: Tensor, std: Tensor, values: Tensor, code_range=1.0) -> Tensor:
    """L_I of each continuous code in nats, Equation 5: (N, C) thrice to (C,); no ceiling."""
    nll = 0.5 * ((values - mean) / std) ** 2 + std.log() + 0.5 * math.log(2 * math.pi)
    return math.log(2 * code_range) - nll.mean(0)


def information_loss(codes: "Codes", latent: "Latent", *, code_range=1.0, lambda_categorical=1.0,
                     lambda_continuous=0.1, shares=None) -> Tensor:
    """-lambda L_I, the second term of Equation 6, summed over the codes that `latent` has and
    `codes`, of logits, predict. `shares`, if not equal ones, are those of the first category."""
    first = [shares] + [None] * len(codes.categorical)
    categorical = sum(map(categorical_information, codes.categorical, latent.categorical, first))
    continuous = continuous_information(codes.mean, codes.std, latent.continuous, code_range).sum()
    return -lambda_categorical * categorical - lambda_continuous * continuous


def training_step(model: "InfoGAN", d_optimizer: Optimizer, g_optimizer: Optimizer, real: Tensor,
                  *, lambda_categorical=1.0, lambda_continuous=0.1, batch_mix=-1.0, invariance=10.0,
                  naming=5.0, autocast=contextlib.nullcontext()) -> dict[str, Tensor]:
    """One update of D, then one of G, on images (N, C, H, W), uint8 or in [0, 1]; Q learns with D
    what it reads off D's layers, and with G, as in Equation 6, on layers of its own.

    The options are Config's. `autocast` is entered for the forward passes of each update, never
    across one: it may keep copies of weights that change there. Returns detached scalars: loss_d,
    loss_g and, weighted, loss_information (of G's update) and where they are taken loss_invariance
    and loss_naming; mean D(x) and D(G) in D's update, d_real and d_fake.
    Errors: InputError for images of another shape or type."""
    weights = {"code_range": model.code_range, "shares": model.shares if model.unequal else None,
               "lambda_categorical": lambda_categorical, "lambda_continuous": lambda_continuous}
    real = model.training_batch(real)
    if batch_mix < 0:
        batch_mix = 0.25 if max(real.shape[2:]) > 32 else 0.0
    latent = model.sample_latent(len(real))
    target = model.split_latent(latent)

    # (1) D tells real from fake; the codes that are read off its layers are predicted
    with autocast:
        fake = model.generator(latent)
        of_real, of_fake = common.mixed(model.d_trunk, real, fake.detach(), batch_mix)
        real_logit, seen = model.heads(of_real)
        fake_logit, codes = model.heads(of_fake)
    d_losses = {"loss_d": discriminator_loss(real_logit, fake_logit)}
    d_scores = {"d_real": real_logit.sigmoid().mean(), "d_fake": fake_logit.sigmoid().mean()}
    information = information_loss(codes, target, **weights)
    if naming > 0 and model.continuous > 0 and len(real) > 2:       # batch normalisation wants two
        changed, change = restyled(real[::2])
        with autocast:
            _, again = model.heads(model.d_trunk(changed))
        difference = (again.mean - seen.mean[::2]) / model.code_range
        d_losses["loss_naming"] = naming * naming_loss(difference, change)
    d_optimizer.zero_grad()
    (sum(d_losses.values()) + information).backward()
    d_optimizer.step()

    # (2) G fools D and makes its codes predictable; Q's own layers learn to predict the categories
    with autocast:
        if batch_mix > 0:
            _, of_fake = common.mixed(model.d_trunk, real, fake, batch_mix)
        else:
            of_fake = model.d_trunk(fake)
        fake_logit, codes = model.heads(of_fake, fake)
    g_losses = {"loss_g": generator_loss(fake_logit),
                "loss_information": information_loss(codes, target, **weights)}
    if invariance > 0 and model.q_trunk is not None:
        warps = warp(torch.cat([real, real]))      # two of a real image are in one category
        with autocast:
            pair = model.categorise(warps)[:, :model.categorical[0]].chunk(2)
        g_losses["loss_invariance"] = invariance * invariance_loss(*pair, weights["shares"])
    g_optimizer.zero_grad()
    sum(g_losses.values()).backward(inputs=model.g_parameters())
    g_optimizer.step()
    return {name: value.detach() for name, value in (d_losses | g_losses | d_scores).items()}


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


def head(features, hidden, size):
    """(N, features) to (N, size), in float32, by way of a hidden layer, the paper's Q head."""
    return nn.Sequential(
        nn.Linear(features, hidden, bias=False), nn.BatchNorm1d(hidden), nn.LeakyReLU(0.1),
        nn.Linear(hidden, size), common.Float32())


class InfoGAN(common.Model):
    """Generator, discriminator and recognition network for images of `shape` (C, H, W) in [0, 1].

    The options are Config's. A latent is (N, noise + sum of category sizes + continuous): noise, a
    one-hot vector for each of the `categorical` sizes, continuous codes within +-`code_range`. If
    `unequal` the values of the first category come as often as `shares`, a buffer (K,), says, which
    `warm_up` finds. Errors: InputError."""
    METHOD = "infogan"
    TRUNKS = ["own", "shared", "detached"]
    G_PARTS = ("generator.", "q_")                           # Q's own layers play with G
    d_parameters = common.Model.other_parameters             # D's, and Q's on D's trunk

    def __init__(self, shape: Sequence[int] = (1, 28, 28), noise: int = 62,
                 categorical: Sequence[int] = (10,), continuous: int = 2, code_range: float = 1.0,
                 width: int = 32, trunk: str = "own", colour_blind: bool = True,
                 unequal: bool = True):
        super().__init__(shape=tuple(shape), noise=noise, categorical=list(categorical),
                         continuous=continuous, code_range=code_range, width=width, trunk=trunk,
                         colour_blind=colour_blind, unequal=unequal)
        logits, moments = sum(categorical), 2 * continuous
        fits = all(k > 1 for k in categorical) and min(noise, continuous) >= 0 and code_range > 0
        if not fits or logits + moments == 0 or trunk not in self.TRUNKS:
            raise common.InputError(
                f"categorical is {categorical}, continuous {continuous}, noise {noise}, code_range "
                f"{code_range}, trunk {trunk!r}; expected one code or more, 2 categories or more, "
                "a positive range, and own, shared or detached")
        own = trunk == "own" and logits > 0
        read_off_d = moments if own else logits + moments
        self.latent_size = noise + logits + continuous
        self.generator = common.convolutional_generator(self.latent_size, shape, width,
                                                        nn.Sigmoid())
        self.d_trunk = common.convolutional_trunk(shape, width, slope=0.1)
        self.d_head = nn.Sequential(nn.Linear(16 * width, 1), common.Float32(), nn.Flatten(0))
        self.code_head = self.q_trunk = self.q_head = None
        if read_off_d:                                              # on D's trunk
            self.code_head = head(16 * width, 2 * width, read_off_d)
        if own:                                    # half as wide: a digit is told more easily
            seen = (1, *shape[1:]) if colour_blind else shape
            self.q_width = max(1, width // 2)
            self.q_trunk = common.convolutional_trunk(seen, self.q_width, slope=0.1)
            self.q_head = head(16 * self.q_width, 2 * width, logits)
        shares = torch.full((categorical[0],), 1 / categorical[0]) if categorical else None
        self.register_buffer("shares", shares)

    def forward(self, images: Tensor) -> tuple[Tensor, Codes]:
        """D and Q: images (N, C, H, W) in [0, 1] to real-or-fake logits (N,) and Codes."""
        images = self.floats(images)
        return self.heads(self.d_trunk(images), images)

    # What follows takes images that `floats` or G made.

    def heads(self, features, images=None):
        """D and Q from the features (N, 16 width) of D's trunk: logits (N,) and Codes. Categories
        with a trunk of their own are those of `images`. Without these, in D's update, they are
        left out, and to a `detached` trunk no gradient of Q goes."""
        logit = self.d_head(features)
        if images is None and self.trunk == "detached":
            features = features.detach()
        return logit, self.split_output(self.read(features, images))

    def read(self, features, images=None):
        """Q's output (N, .): logits of all categories, means and raw deviations, as `heads`."""
        parts = [features[:, :0]]
        if self.q_trunk is not None and images is not None:
            parts.append(self.categorise(images))
        if self.code_head is not None:
            parts.append(self.code_head(features))
        return torch.cat(parts, 1)

    def q(self, images):
        """Q's whole output (N, .) for images (N, C, H, W)."""
        return self.read(self.d_trunk(images), images)

    def categorise(self, images):
        """Q's own trunk: images (N, C, H, W) to logits (N, sum of category sizes)."""
        return self.q_head(self.q_trunk(self.view(images)))

    def view(self, images):
        """What Q's own trunk sees of images (N, C, H, W)."""
        return contrast(images) if self.colour_blind else images

    def split_output(self, output):
        """Q's output as Codes, the whole or what is read off D's trunk."""
        sizes = [self.continuous, self.continuous]
        if output.shape[1] > sum(sizes):
            sizes = [*self.categorical, *sizes]
        *logits, mean, raw_std = output.split(sizes, dim=1)
        return Codes(logits, mean, F.softplus(raw_std) + 0.01)

    def sample_latent(self, n: int, categorical: Given = None, continuous: Given = None,
                      rng: torch.Generator | None = None) -> Tensor:
        """n latents from the prior on the model's device, the codes that are given held fixed.

        categorical: a category of the first code for all, (n,) one for each, or (n, m) for the
        first m codes. continuous: what broadcasts to (n, continuous); beyond the prior's range it
        extrapolates. Either may be a list with None in it, for codes to draw, and a number or (n,)
        for each other. rng: in place of torch's global numbers. InputError for other codes."""
        random = {"device": self.device, "generator": rng}
        noise = torch.rand(n, self.noise, **random) * 2 - 1
        columns = torch.zeros(n, len(self.categorical), dtype=torch.long, device=self.device)
        for i, k in enumerate(self.categorical):
            columns[:, i] = torch.randint(k, (n,), **random)
        if self.unequal and self.categorical:
            chance = torch.rand(n, **random)
            columns[:, 0] = torch.bucketize(chance, self.shares.float().cumsum(0)[:-1], right=True)
        values = (torch.rand(n, self.continuous, **random) * 2 - 1) * self.code_range
        if categorical is not None:
            columns = self._given(categorical, columns, "categorical", "whole numbers from 0 to "
                                  f"below {self.categorical}: one, ({n},) or")
        if continuous is not None:
            values = self._given(continuous, values, "continuous", "finite numbers, broadcast to")
        onehots = [F.one_hot(column, k) for column, k in zip(columns.T, self.categorical)]
        return torch.cat([noise, *onehots, values], 1).to(next(self.parameters()))

    def _given(self, codes, drawn, name, expected):
        """`drawn` codes (n, C), categories or continuous ones, with those that a user gave in their
        place; InputError that says what is expected."""
        try:
            if isinstance(codes, (list, tuple)) and any(value is None for value in codes):
                held = []
                for value, one in itertools.zip_longest(codes, drawn.T):
                    value = one if value is None else torch.as_tensor(value, device=self.device)
                    held.append(value.expand_as(one))
                codes = torch.stack(held, 1)
            given = torch.as_tensor(codes, device=self.device)
            if drawn.is_floating_point():
                given = given.expand_as(drawn)
                fits = given.isfinite()
            else:
                if given.ndim == 0 or given.shape == drawn.shape[:1]:
                    given = given.expand(len(drawn))[:, None]
                given = torch.cat([given, drawn[:, given.shape[1]:]], 1)            # the first ones
                fits = (given >= 0) & (given < torch.tensor(self.categorical, device=self.device))
            castable = torch.can_cast(given.dtype, drawn.dtype)
            if castable and given.shape == drawn.shape and fits.all():
                return given.to(drawn)
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError):
            pass
        asked = " ".join(str(codes).split())
        raise common.InputError(f"{name} is {asked}; expected {expected} {tuple(drawn.shape)}")

    def split_latent(self, latent: Tensor) -> Latent:
        """Latents (N, noise + codes) as a Latent."""
        noise, *onehots, values = latent.split([self.noise, *self.categorical, self.continuous], 1)
        return Latent(noise, onehots, values)

    def sample(self, n: int, categorical: Given = None, continuous: Given = None,
               rng: torch.Generator | None = None) -> Tensor:
        """n new images (n, C, H, W) in [0, 1]; arguments as for `sample_latent`."""
        return self.decode(self.sample_latent(n, categorical, continuous, rng))

    def encode(self, images: Tensor) -> Codes:
        """Q in eval mode: images (N, C, H, W), in [0, 1] or uint8, to Codes of probabilities."""
        logits, mean, std = self.split_output(self.evaluate(self.q, images))
        return Codes([part.softmax(1) for part in logits], mean, std)

    def category_of(self, images: Tensor) -> int:
        """The value of the first code that Q gives to most of these images, as those of one class
        that one would like to sample: model.sample(8, model.category_of(sevens)). InputError."""
        if not self.categorical or not len(images):
            raise common.InputError("expected images, and a model with categories")
        return int(self.encode(images).categorical[0].argmax(1).mode().values)


# ---------------------------------------------------------------- beyond the paper

def joint_distribution(logits, logits_again):
    """How often, over a batch, two views of an image are in categories k and l: (N, K) twice to
    (K, K), made symmetric (IIC, Ji et al. 2019, Equation 3)."""
    joint = logits.softmax(1).T @ logits_again.softmax(1) / len(logits)
    return ((joint + joint.T) / 2).clamp(min=1e-8)


def invariance_loss(logits: Tensor, logits_again: Tensor, shares=None, balance=2.0) -> Tensor:
    """-I(c1; c1') + balance KL(c1 | shares) in nats, c1 and c1' the categories of two views of each
    image, (N, K) twice; the shares (K,) are those the categories should have, None: equal ones.
    The mutual information is IIC's, the second term keeps categories from falling empty. The other
    codes stay free to tell what a warp changes."""
    joint = joint_distribution(logits, logits_again)
    marginal = joint.sum(1)
    expected = torch.full_like(marginal, 1 / len(marginal)) if shares is None else shares
    information = 2 * torch.special.entr(marginal).sum() - torch.special.entr(joint).sum()
    return balance * (marginal * (marginal / expected).log()).sum() - information


def affine(images, theta):
    """Images (N, C, H, W) as seen at theta (N, 2, 3), affine_grid's; beyond it the edge goes on."""
    theta = theta.to(images.dtype)
    with torch.autocast(images.device.type, enabled=False):         # it would round the grid
        grid = F.affine_grid(theta, images.shape, align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def warp(images: Tensor, rotation=0.3, scale=0.2, shear=0.3, shift=1 / 14) -> Tensor:
    """Each image (N, C, H, W) under its own small `affine` map, drawn uniformly from +- each bound:
    rotation in radians; the scale of either axis, and the shear, fractions; shift a fraction of the
    image's size (1/14 is 2 of 28 pixels)."""
    h, w = images.shape[2:]                                         # angles are those of the pixels
    chance = torch.rand(6, len(images), device=images.device) * 2 - 1
    bounds = [rotation, scale, scale, shear, 2 * shift, 2 * shift]  # shifts in half the image
    angle, wide, high, lean, right, down = (u * bound for u, bound in zip(chance, bounds))
    cos, sin = angle.cos(), angle.sin()
    row_x = [(1 + wide) * cos, (1 + wide) * (lean * cos - sin) * (h / w), right]
    row_y = [(1 + high) * sin * (w / h), (1 + high) * (lean * sin + cos), down]
    return affine(images, torch.stack(row_x + row_y, 1).view(-1, 2, 3))


def restyled(images: Tensor, lean=0.3, reach=1 / 28) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W), each sheared and widened by chance, and the change (N, 2) of c2 and c3
    that stands for it, in units of the codes' range: sheared to the right by up to +-`lean` of the
    height, for twice that of c2; and moved by up to +-1, which is c3's, towards the maximum, or
    below 0 the minimum, over the pixels at most `reach` of the image's size away: bright strokes
    become wider, or narrower."""
    shear, spread = (torch.rand(2, len(images), device=images.device) * 2 - 1).to(images.dtype)
    h, w = images.shape[2:]
    theta = torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)
    theta[:, 0, 1] = lean * shear * (h / w)
    images = affine(images, theta)
    pixels = max(1, round(reach * max(h, w)))
    wide = F.max_pool2d(images, 2 * pixels + 1, 1, pixels)
    thin = -F.max_pool2d(-images, 2 * pixels + 1, 1, pixels)
    part = spread[:, None, None, None]
    images = torch.where(part > 0, images.lerp(wide, part), images.lerp(thin, -part))
    return images, torch.stack([2 * lean * shear, spread], 1)


def naming_loss(difference: Tensor, change: Tensor) -> Tensor:
    """How far the `difference` (N, C) of continuous codes, of two views of an image, is from the
    known `change` (N, 2) between them; a third code on is free, a single one is the first."""
    n = min(difference.shape[1], change.shape[1])
    return F.smooth_l1_loss(difference[:, :n], change[:, :n])


def contrast(images: Tensor) -> Tensor:
    """Images (N, C, H, W) as (N, 1, H, W) that do not tell their colours: of each its pixels along
    the line in colour space on which they vary most (the first principal component, by powers of
    the covariance), of mean 0 and deviation 1, the rarer side up (the third moment positive)."""
    with torch.autocast(images.device.type, enabled=False):
        pixels = images.flatten(2).float()
        pixels = pixels - pixels.mean(2, keepdim=True)
        power = (pixels @ pixels.mT).detach()                       # the covariance, (N, C, C)
        for _ in range(5):                                          # to its 32nd power
            power = F.normalize(power @ power, dim=(1, 2))
        widest = power.diagonal(dim1=1, dim2=2).argmax(1)[:, None, None].expand_as(power[:, :1])
        line = F.normalize(power.gather(1, widest)[:, 0], dim=1)                # (N, C)
        pixels = (line[:, :, None] * pixels).sum(1)                             # (N, H W)
        pixels = pixels / pixels.square().mean(1, keepdim=True).clamp(min=1e-6).sqrt()
        side = torch.where(pixels.pow(3).mean(1, keepdim=True) < 0, -1.0, 1.0)
        return (side * pixels).view(images.shape[0], 1, *images.shape[2:]).to(images.dtype)


def neighbours(images: Tensor, view=lambda part: part, count=5, among=6000, components=50):
    """For each image (N, C, H, W) the `count` nearest of up to `among` random ones, itself too if
    it is one of them: indices (N, .). Near by squared distance in the first principal components of
    what `view` makes of the pixels, averaged down to 28 a side."""
    def pixels(part):
        h, w = part.shape[2:]
        return F.adaptive_avg_pool2d(view(part.float()), (min(h, 28), min(w, 28))).flatten(1)

    chosen = torch.randperm(len(images), device=images.device)[:among]
    some = common.in_batches(pixels, images[chosen])
    mean = some.mean(0)
    axes = torch.pca_lowrank(some, min(components, *some.shape))[2]             # (pixels, .)
    some = (some - mean) @ axes
    places = common.in_batches(lambda part: (pixels(part) - mean) @ axes, images)
    half_squares = some.square().sum(1) / 2
    near = chosen.new_empty(len(images), min(count, len(chosen)))   # else memory is left in pieces
    for place, indices in zip(places.split(500), near.split(500)):
        likeness = place @ some.T - half_squares
        indices.copy_(chosen[likeness.topk(near.shape[1], sorted=False).indices])
    return near


def merged(joint: Tensor, k: int) -> tuple[Tensor, Tensor, float]:
    """n categories in k groups, as a matrix of 0 and 1 (n, k), by their `joint_distribution`; the
    groups' shares (k,); and I(c; c') / H(c), how surely a view's group tells that of another.

    Again and again the two are joined between which the largest part of the smaller one's pairs
    crosses (agglomerative, as the information bottleneck of Slonim and Tishby 1999)."""
    joint = joint.cpu()
    groups = torch.eye(len(joint), dtype=joint.dtype)
    while True:
        table = groups.T @ joint @ groups
        shares = table.sum(1)
        if len(shares) == k:
            entropy = torch.special.entr(shares).sum()
            return groups, shares, float(common.discrete_information(table) / entropy)
        crossing = (table / torch.minimum(shares[:, None], shares)).fill_diagonal_(0)
        one, other = divmod(int(crossing.argmax()), len(shares))
        groups[:, one] += groups[:, other]
        groups = groups[:, torch.arange(len(shares)) != other]


def warm_up(model: InfoGAN, images: Tensor, updates: int = 1400, heads: int = 8, rate: float = 1e-3,
            batch_size: int = 128, autocast=contextlib.nullcontext(),
            progress=lambda done, updates: None) -> None:
    """Before the first step: teach Q its first category, and find `model.shares`, on real images
    (N, C, H, W) alone, uint8 or in [0, 1], each paired with one of its nearest neighbours, both
    warped (as pairs: SCAN, Van Gansbeke et al. 2020).

    Which classes end in one category is settled early and by chance. So several heads learn on one
    trunk by `invariance_loss`, with equal shares, and the surest is taken. Of a model that is
    `unequal` half of them have twice the categories, which are then `merged`: large classes take up
    several, small ones one (over-clustering: IIC). Q's head learns from it in the last sixth.
    `progress` is called with the number of updates done and of all, 2 at least.
    Errors: InputError for images that do not fit, or a model without such a trunk."""
    if model.q_trunk is None:
        raise common.InputError("warm_up is about categories with a trunk of their own; this model "
                                "has none")
    model.check_range(images)
    model.train()
    images = images.to(model.device)
    k = model.categorical[0]
    sizes = [2 * k if model.unequal and i % 2 else k for i in range(heads)]
    like = next(model.parameters())
    candidates = nn.ModuleList(head(16 * model.q_width, 2 * model.width, n) for n in sizes).to(like)
    joints = [like.new_zeros(size, size) for size in sizes]
    players = nn.ModuleList([model.q_trunk, model.q_head, candidates])
    optimizer = common.optimizer(list(players.parameters()), rate)
    near = neighbours(images, model.view)

    def outputs(chosen, networks):                                  # the indices of N images
        column = torch.randint(near.shape[1], chosen.shape, device=chosen.device)
        pairs = torch.cat([chosen, near[chosen, column]])
        views = model.view(warp(model.floats(images[pairs])))
        with autocast:
            features = model.q_trunk(views)
            return [network(features) for network in networks]

    def descend(loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def learn(chosen):
        pairs = [output.chunk(2) for output in outputs(chosen, candidates)]
        for joint, pair in zip(joints, pairs):
            joint.lerp_(joint_distribution(*pair).detach(), 0.02)
        descend(sum(invariance_loss(*pair) for pair in pairs))

    def teach(chosen):
        answer, right = outputs(chosen, [model.q_head, candidates[best]])
        one, other = (right.detach().softmax(1) @ groups).chunk(2)
        descend(invariance_loss(*right.chunk(2))
                + F.cross_entropy(answer[:, :k], torch.cat([other, one])))

    def repeat(step, first, last):
        step = common.Captured(step)
        while first < last:
            parts = torch.randperm(len(images), device=images.device).split(batch_size)
            for chosen in parts[:min(last - first, max(1, len(images) // batch_size))]:
                step(chosen)
                first += 1
                progress(first, updates)

    updates = max(2, updates)
    learned = updates - max(1, updates // 6)
    repeat(learn, 0, learned)
    choices = [merged(joint / joint.sum(), k) for joint in joints]
    best = max(range(heads), key=lambda i: choices[i][2])
    groups, shares = choices[best][0].to(model.device), choices[best][1]
    if model.unequal:
        model.shares.copy_(shares)
    repeat(teach, learned, updates)


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
        "own", "the categories' layers below their head: Q's own, shared with D, or D's that L_I "
        "does not train; continuous codes have D's", choices=InfoGAN.TRUNKS)
    colour_blind: bool = common.option(True, "Q's own layers see an image's contrast, no colours")
    batch_mix: float = common.option(
        -1.0, "share that D's batches of real images and fakes swap; -1: 0.25 beyond 32 pixels, "
        "where D else misses what all fakes have in common, and none up to that", -1, 0.5)
    invariance: float = common.option(10.0, "weight of the invariance loss, on warped real images")
    warm_up: int = common.option(1400, "updates of Q alone before the first epoch, on neighbours; "
                                 "none with --invariance 0")
    naming: float = common.option(
        5.0, "weight of the naming loss: c2 tells a real image's known shear, c3 its widening")
    unequal: bool = common.option(True, "the first category's values come as often as the warm-up "
                                  "finds; else equally often")
    init: str = common.option("torch", "initial weights: torch's own, or normal, N(0, 0.02)",
                              choices=["torch", "normal"])
    lr_discriminator: float = common.option(5e-4, "Adam's rate for D, and Q on its layers")
    lr_generator: float = common.option(1e-3, "Adam's rate for G, and Q's own layers")
    average: float = common.option(0.99, "decay of the moving average that samples and encodes",
                                   high=0.99999)

    METHOD = "infogan"
    PAPER = {"epochs": 11, "width": 64, "trunk": "shared", "batch_mix": 0.0, "invariance": 0.0,
             "warm_up": 0, "naming": 0.0, "unequal": False, "init": "normal",
             "lr_discriminator": 2e-4, "average": 0.0}                          # 5,000 updates

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
    priors = [torch.full((k,), 1 / k, device=model.device) for k in model.categorical]
    if model.unequal and priors:
        priors[0] = model.shares
    categorical = map(categorical_information, codes.categorical, target.categorical, priors)
    continuous = continuous_information(codes.mean, codes.std, target.continuous, model.code_range)
    result = {"mi_categorical": [float(information) for information in categorical],
              "mi_categorical_ceiling": [float(torch.special.entr(p).sum()) for p in priors],
              "shares": priors[0].tolist() if priors else [],
              "mi_continuous": continuous.tolist()} | clustering(model, data)
    if judge is not None:
        result |= judge.scores(data, model, latent)
    return result


def clustering(model, data):
    """Scores of the first category as a clustering of the test images, if they have labels."""
    if data.test_labels is None or not model.categorical:
        return {}
    images, labels = common.labelled(data.test_images, data.test_labels)
    return common.clustering_scores(model.encode(images).categorical[0].argmax(1), labels)


def figures(model: InfoGAN, confusion=()) -> dict:
    """What a run shows, name -> common.Figure, from fixed latents: codes, to move c1, c2 and c3;
    samples; traversal, a row for each category of c1 (traversal2 of c2, ..), noise and other codes
    alike down a column; c2, c3.., a continuous code over twice its range, a row a category.
    Categories of c1 are labelled with the class that most of their images in `confusion` have."""
    rng = torch.Generator(model.device).manual_seed(1)
    samples, columns, rows = [model.sample_latent(n, rng=rng) for n in (100, 10, 10)]
    names = [str(row) for row in range(10)]

    def varied(latents, start, values):            # (N, .) and (V, k) to (N, V, .)
        latents = latents[:, None].repeat(1, len(values), 1)
        latents[:, :, start:start + values.shape[1]] = values
        return latents

    def steps(count):
        return torch.linspace(-2, 2, count, device=model.device)[:, None] * model.code_range

    def texts(values, digits):
        return [f"{value:{digits}}" for value in values.flatten().tolist()]

    def picture(latents, caption, rows=(), columns=()):
        images = model.decode(latents.reshape(-1, model.latent_size))
        return common.Figure(common.grid(images, 10), caption, rows, columns)

    shown = {"samples": picture(samples, "Samples.")}
    start = model.noise                                           # where a code's columns begin
    for i, k in enumerate(model.categorical, 1):
        latents = varied(columns, start, torch.eye(k, device=model.device)).transpose(0, 1)
        labels = [str(value) for value in range(k)]
        if i == 1:
            rows, names = latents[:, 0], labels
            for value, counts in enumerate(confusion):
                if any(counts):
                    labels[value] += f" ({counts.index(max(counts))})"
        shown[f"traversal{i}" if i > 1 else "traversal"] = picture(
            latents, f"A row is a category of c{i}.", labels)
        start += k
    codes = [f"c{len(model.categorical) + 1 + j}" for j in range(model.continuous)]
    for j, name in enumerate(codes):
        shown[name] = picture(varied(rows, start + j, steps(10)), f"{name} over twice its range.",
                              names, texts(steps(10), ".1f"))
    if not codes:
        return shown

    # every choice of c1, c2 and c3, in as many steps as make about a megabyte
    count = max(3, min(9, int((1e6 / len(rows) / math.prod(model.shape)) ** 0.5)))
    rows[:, start:] = 0
    for j in range(min(2, len(codes))):
        rows = varied(rows, start + j, steps(count)).flatten(0, 1)
    sliders = {"c1" if model.categorical else "noise": names}
    sliders |= dict.fromkeys(codes[:2], texts(steps(count), ".2g"))
    sheet = common.sheet(model.decode(rows), count)
    return {"codes": common.Figure(sheet, "Move the codes.", sliders=sliders)} | shown


def train(config: Config) -> tuple[InfoGAN, common.Run]:
    """Train as `config` says, or go on as Config.resumed(..) does; returns the model that samples
    and encodes (the moving average), in eval mode, and the Run. Errors: InputError."""
    run = common.Run(config)
    config = run.config
    model = InfoGAN(run.data.shape, **config.arguments(InfoGAN))
    if config.init == "normal":
        model.apply(common.initialise)
    model.to(run.device).train()
    average = common.MovingAverage(model, config.average)
    d_optimizer = common.optimizer(model.d_parameters(), config.lr_discriminator)
    g_optimizer = common.optimizer(model.g_parameters(), config.lr_generator)
    autocast = common.autocast(run.device, config.precision)
    run.restore(model=model, average=average, d=d_optimizer, g=g_optimizer)
    options = config.arguments(training_step)

    def step(real):
        losses = training_step(model, d_optimizer, g_optimizer, real, autocast=autocast, **options)
        average.update(model)
        return losses

    if run.is_new:
        shown = figures(average.model)
        run.report({}, shown)
        q_is_new = any(name.startswith(("q_", "shares")) for name in run.new_weights)
        wanted = config.epochs and config.warm_up and config.invariance and q_is_new
        if wanted and model.q_trunk is not None:
            began = time.perf_counter()
            warm_up(model, run.data.images, config.warm_up, batch_size=config.batch_size,
                    autocast=autocast, progress=run.progress("warming up"))
            common.share(*model.state_dict().values())
            average.model.load_state_dict(model.state_dict())
            seconds = time.perf_counter() - began
            run.report({"seconds": seconds} | clustering(model, run.data), shown)
    step = common.Captured(step)
    for _ in run.epochs():
        for real in run.batches():
            run.log(step(real))
        found = scores(average.model, run.data, config.samples)
        run.report(found, figures(average.model, found.get("confusion", ())))
    found = scores(average.model, run.data, config.samples, common.Judge.for_data(run.data))
    run.report(found, figures(average.model, found.get("confusion", ())))
    return average.model.eval().requires_grad_(), run


def main(argv=None):
    common.command_line(train, Config, __doc__, argv)


if __name__ == "__main__":
    main()
