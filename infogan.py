# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6"]
# ///
"""InfoGAN: a GAN that learns, without labels, to read back the codes it samples from.

Chen, Duan, Houthooft, Schulman, Sutskever and Abbeel 2016, arXiv 1606.03657.

The generator G makes an image from noise z and codes c = (categories c1.., continuous c2, c3..).
The recognition network Q(c|x) predicts the codes from the image; in the paper it is a second head
on the discriminator D, here by default a network of its own. Rewarding right predictions maximises
a lower bound of the mutual information I(c; G(z, c)), so each code comes to mean something visible:
on MNIST the category is the digit, the continuous codes are its style, such as slant.

    V(D, G) = E log D(x) + E log(1 - D(G(z, c)))                          (1)  the GAN game
    L_I(G, Q) = E[log Q(c | G(z, c))] + H(c)  <=  I(c; G(z, c))           (5)  in nats
    min over G, Q  max over D   V(D, G) - lambda L_I(G, Q)                (6)

Who learns L_I: Equation 6 gives it to G and Q, and says nothing of layers that Q shares with D. The
authors' code trains them with it too, in D's step, and so does --recipe paper. --detach-trunk reads
(6) to the letter: L_I trains Q's head and G alone.

Where this differs from the paper (P) or the authors' code (C):
- G minimises softplus(-logit), the non-saturating loss, as C does; (1) is the minimax form.
- --augment, off by default, shows D warped images: for few images, or in colour.
- The default is the same game with seven changes, each with its flag; --recipe paper has none:
    --invariance   Q's first category of two small random warps of a real image should be the same,
                   and all categories equally frequent (IIC, Ji et al. 2019). In the paper's game Q
                   may predict anything for real images; nothing keeps it from merging two digits.
    --warm-up      Before the game Q learns its first category so, from warps of an image and of one
                   of its nearest neighbours, all images twice. From its start with warps alone Q
                   takes a seven with a bar for another digit, and the game does not cure that.
    --separate-q   Q has a trunk of its own, which only it trains: sharing D's costs sample quality.
                   Categories and continuous codes then have a hidden layer each.
    --lr-discriminator 5e-4, where P has 2e-4: Q need not learn so slowly.
    --init torch   Torch's initial weights; from N(0, 0.02) the first hundreds of updates are lost.
    --average      Moving averages of all weights are what samples and encodes.
    --width 32     Half of P's channels, for a laptop.
- Q predicts mean and standard deviation (P; C fixes the deviation at 1), std = softplus(.) + 0.01.
- lambda is 1 for categories (P and C) and 0.1 for continuous codes (P: "smaller"; C: 1).
- H of a continuous code is that of its uniform prior, ln 2r nats (C takes a unit Gaussian's, and so
  overstates L_I).
- The noise z is uniform on (-1, 1) as in C; P does not say.

    python infogan.py --epochs 5

    from infogan import InfoGAN
    model = InfoGAN.load("runs/infogan-1")
    images = model.sample(8, categorical=3, continuous=[0.0, 1.5])     # (8, 1, 28, 28) in [0, 1]
    codes = model.encode(images)           # codes.categorical[0] (8, 10), .mean and .std (8, 2)
"""

import contextlib
import copy
import math
from dataclasses import dataclass
from typing import NamedTuple

if __package__:       # in a package of yours: mypkg/infogan.py beside mypkg/common.py
    from . import common
else:                 # as a script, or from its own folder
    import common

import torch
import torch.nn.functional as F
from torch import nn

# ---------------------------------------------------------------- losses and the training step


def discriminator_loss(real, fake):
    """-E log D(x) - E log(1 - D(G)), Equation 1 for D, from logits (N,) and (N,)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake):
    """-E log D(G), the non-saturating form of Equation 1 for G, from logits (N,)."""
    return F.softplus(-fake).mean()


def categorical_information(logits, onehot):
    """L_I of a categorical code in nats, Equation 5: (N, K) twice to a scalar, at most ln K."""
    return math.log(onehot.shape[1]) - F.cross_entropy(logits, onehot)


def continuous_information(mean, std, values, code_range=1.0):
    """L_I of each continuous code in nats, Equation 5: (N, C) thrice to (C,); no ceiling."""
    nll = 0.5 * ((values - mean) / std) ** 2 + std.log() + 0.5 * math.log(2 * math.pi)
    return math.log(2 * code_range) - nll.mean(0)


def invariance_loss(logits, logits_again, balance=2.0):
    """-(I(c1; c1') + balance H(c1)) in nats, c1 and c1' the categories of two warps of each image.

    Both (N, K). Their joint distribution over the batch is the mean outer product of Q's
    probabilities, made symmetric (Ji et al. 2019, Equation 3). H(c1) asks once more for what the
    prior says, that all categories are equally frequent. Only the first categorical code is meant:
    the others stay free to tell what a warp changes.
    """
    p, q = logits.softmax(1), logits_again.softmax(1)
    joint = p.T @ q / len(p)                                                    # (K, K)
    joint = ((joint + joint.T) / 2).clamp(min=1e-8)
    joint_entropy = torch.special.entr(joint).sum()
    entropy = torch.special.entr(joint.sum(1)).sum()
    return joint_entropy - (2 + balance) * entropy               # I(c1; c1') = 2 H(c1) - H(c1, c1')


def information_loss(codes, latent, code_range=1.0, lambda_categorical=1.0, lambda_continuous=0.1):
    """-lambda L_I, the second term of Equation 6, summed over the codes that `latent` (a Latent)
    has and `codes` (Codes, of logits) predict."""
    categorical = sum(map(categorical_information, codes.categorical, latent.categorical))
    continuous = continuous_information(codes.mean, codes.std, latent.continuous, code_range).sum()
    return -lambda_categorical * categorical - lambda_continuous * continuous


def tell_apart(model, real, fake):
    """D's logits of real images and fakes as one batch under small warps (Zhao et al. 2020)."""
    return model.discriminate(common.warp(torch.cat([real, fake]))).chunk(2)


def training_step(model, d_optimizer, g_optimizer, real, lambda_categorical=1.0,
                  lambda_continuous=0.1, invariance=10.0, detach_trunk=False, augment=False,
                  autocast=contextlib.nullcontext()):
    """One update of D and Q, then one of G, on images (N, C, H, W) in [0, 1]; returns the losses.

    They are detached scalars, weighted as they were minimised: loss_d, loss_g, loss_information (of
    G's update) and, unless its weight is 0, loss_invariance. `autocast` is entered for the forward
    passes of each update, never across one: it may keep copies of weights that change there.
    """
    weights = {"code_range": model.code_range, "lambda_categorical": lambda_categorical,
               "lambda_continuous": lambda_continuous}
    real = common.prepare(real, model)
    latent = model.sample_latent(len(real))
    target = model.split_latent(latent)

    # (1) D tells real from fake; Q predicts the codes of the fake
    with autocast:
        fake = model.generator(latent)
        if augment:
            real_logit, fake_logit = tell_apart(model, real, fake.detach())
            codes = model.posterior(fake.detach(), detach_trunk)
        else:
            real_logit = model.discriminate(real)
            fake_logit, codes = model(fake.detach(), detach_trunk)
    loss_d = discriminator_loss(real_logit, fake_logit)
    loss_q = information_loss(codes, target, **weights)
    with_invariance = invariance > 0 and len(model.categorical) > 0
    if with_invariance:                       # and puts two warps of a real image in one category
        warps = common.warp(torch.cat([real, real]))
        with autocast:
            logits, logits_again = model.posterior(warps, detach_trunk).categorical[0].chunk(2)
        loss_invariance = invariance * invariance_loss(logits, logits_again)
        loss_q = loss_q + loss_invariance
    d_optimizer.zero_grad()
    (loss_d + loss_q).backward()
    d_optimizer.step()

    # (2) G fools D and makes its codes predictable; the gradient passes through D and Q to G alone
    with autocast:
        if augment:
            _, fake_logit = tell_apart(model, real, fake)
            codes = model.posterior(fake)
        else:
            fake_logit, codes = model(fake)
    loss_g = generator_loss(fake_logit)
    loss_information = information_loss(codes, target, **weights)
    g_optimizer.zero_grad()
    (loss_g + loss_information).backward(inputs=model.g_parameters())
    g_optimizer.step()

    losses = {"loss_d": loss_d, "loss_g": loss_g, "loss_information": loss_information}
    if with_invariance:
        losses["loss_invariance"] = loss_invariance
    return {name: loss.detach() for name, loss in losses.items()}


def warm_up(model, images, passes=2, heads=8, rate=1e-3, batch_size=128,
            autocast=contextlib.nullcontext(), each_update=lambda: None):
    """Before the game: train Q's first category by `invariance_loss` on real images (N, C, H, W)
    alone, uint8 or in [0, 1], each paired with one of its nearest neighbours, both warped.

    A warp never makes a barred seven of a plain one; their neighbours join them. Which classes end
    in one category is settled early and by chance, so `heads` copies of Q's head, each with its own
    random weights, learn on one trunk, and Q keeps the one with the lowest loss. `each_update()` is
    called after each update.
    """
    heads = nn.ModuleList([copy.deepcopy(model.q_heads[0]) for _ in range(heads)])
    for layer in heads.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    trunk = model.trunk if model.q_trunk is None else model.q_trunk
    optimizer = common.optimizer([*trunk.parameters(), *heads.parameters()], rate)
    mean_losses = torch.zeros(len(heads), device=images.device)
    neighbours = common.neighbours(images)

    def update(chosen):                                             # the indices of N images
        column = torch.randint(neighbours.shape[1], chosen.shape, device=images.device)
        pairs = torch.cat([chosen, neighbours[chosen, column]])
        views = common.warp(common.prepare(images[pairs], model))
        with autocast:
            features = trunk(views)
            logits = [head(features)[:, :model.categorical[0]] for head in heads]
        losses = torch.stack([invariance_loss(*part.chunk(2)) for part in logits])
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        mean_losses.lerp_(losses.detach(), 0.02)
        return {}

    update = common.Captured(update)
    for _ in range(passes):
        order = torch.randperm(len(images), device=images.device)
        for chosen in order.split(batch_size)[:max(1, len(images) // batch_size)]:
            update(chosen)
            each_update()
    model.q_heads[0].load_state_dict(heads[int(mean_losses.argmin())].state_dict())


# ---------------------------------------------------------------- networks


class Latent(NamedTuple):
    """The parts of N latents: noise (N, noise), one-hot (N, K) a category, continuous codes."""
    noise: torch.Tensor
    categorical: list[torch.Tensor]
    continuous: torch.Tensor


class Codes(NamedTuple):
    """What Q says of N images: for each categorical code a tensor (N, K), logits from the networks
    and probabilities from `encode`; mean and std of the continuous codes, (N, continuous)."""
    categorical: list[torch.Tensor]
    mean: torch.Tensor
    std: torch.Tensor


class InfoGAN(nn.Module):
    """Generator, discriminator and recognition network for images of `shape` (C, H, W) in [0, 1], H
    and W multiples of 4.

    A latent is (N, noise + sum of category sizes + continuous): noise, a one-hot vector for each of
    the `categorical` sizes, and continuous codes, uniform on (-code_range, code_range). `width` is
    the channels of the first convolution (the paper's 64), `separate_q` gives Q a trunk of its own.
    Errors: InputError for sizes that do not fit.
    """

    def __init__(self, shape=(1, 28, 28), noise=62, categorical=(10,), continuous=2, code_range=1.0,
                 width=32, separate_q=True):
        super().__init__()
        if not categorical and not continuous:
            raise common.InputError("no categorical and no continuous codes; InfoGAN needs one")
        if any(k < 2 for k in categorical) or code_range <= 0:
            raise common.InputError(f"categorical is {categorical}, code_range {code_range}; "
                                    "expected 2 categories or more and a positive range")
        self.shape = tuple(shape)
        self.noise = noise
        self.categorical = list(categorical)
        self.continuous = continuous
        self.code_range = code_range
        self.options = {"shape": self.shape, "noise": noise, "categorical": self.categorical,
                        "continuous": continuous, "code_range": code_range, "width": width,
                        "separate_q": separate_q}                   # for `save`
        latent = noise + sum(categorical) + continuous
        self.generator = common.convolutional_generator(latent, shape, width, nn.Sigmoid())
        self.trunk = common.convolutional_trunk(shape, width, slope=0.1)
        self.d_head = nn.Sequential(nn.Linear(16 * width, 1), common.Float32(), nn.Flatten(0))
        self.q_trunk = common.convolutional_trunk(shape, width, slope=0.1) if separate_q else None
        # On a trunk of its own, categories and continuous codes have a hidden layer each: one that
        # has learned to ignore how a digit leans cannot tell it.
        logits, moments = sum(categorical), 2 * continuous
        outputs = [logits, moments] if separate_q else [logits + moments]
        self.q_heads = nn.ModuleList()
        for size in filter(None, outputs):
            self.q_heads.append(nn.Sequential(
                nn.Linear(16 * width, 2 * width, bias=False), nn.BatchNorm1d(2 * width),
                nn.LeakyReLU(0.1), nn.Linear(2 * width, size), common.Float32()))

    def forward(self, images, detach_trunk=False):
        """D and Q: images (N, C, H, W) to real-or-fake logits (N,) and Codes.

        `detach_trunk` keeps Q's gradient from a trunk that it shares with D.
        """
        images = common.prepare(images, self)
        features = self.trunk(images)                                           # (N, 16 width)
        logit = self.d_head(features)                                           # (N,)
        return logit, self._codes(self._q(images, detach_trunk, features))

    def discriminate(self, images):
        """D: images (N, C, H, W) to real-or-fake logits (N,).

        Q comes along where it shares D's trunk: its batch normalisation then meets real images.
        """
        if self.q_trunk is None:
            return self(images)[0]
        return self.d_head(self.trunk(common.prepare(images, self)))

    def posterior(self, images, detach_trunk=False):
        """Q(c|x) alone: images (N, C, H, W) to Codes."""
        return self._codes(self._q(common.prepare(images, self), detach_trunk))

    def _q(self, images, detach_trunk=False, features=None):
        """Q's output (N, sum of category sizes + 2 continuous) for images that `prepare` made;
        features are D's of them, if at hand."""
        if self.q_trunk is not None:
            features = self.q_trunk(images)
        else:
            if features is None:
                features = self.trunk(images)
            if detach_trunk:
                features = features.detach()
        return torch.cat([head(features) for head in self.q_heads], 1)

    def _codes(self, output):
        """Q's output (N, sum of category sizes + 2 continuous) as Codes."""
        sizes = [*self.categorical, self.continuous, self.continuous]
        *logits, mean, raw_std = output.split(sizes, dim=1)
        return Codes(logits, mean, F.softplus(raw_std) + 0.01)

    def g_parameters(self):
        """The weights of G, for its optimiser."""
        return list(self.generator.parameters())

    def d_parameters(self):
        """The weights of D and Q, for their optimiser."""
        named = self.named_parameters()
        return [weight for name, weight in named if not name.startswith("generator.")]

    def sample_latent(self, n, categorical=None, continuous=None, generator=None):
        """n latents from the prior on the model's device, the codes that are given held fixed.

        categorical: a category of the first code for all, (n,) one for each, or (n, m) for the
        first m codes. continuous: what broadcasts to (n, continuous); values beyond the prior's
        range extrapolate. generator: a torch.Generator in place of torch's global one.
        Errors: InputError if the codes do not fit.
        """
        like = next(self.parameters())
        random = {"device": like.device, "generator": generator}
        noise = torch.rand(n, self.noise, **random) * 2 - 1
        columns = [torch.randint(k, (n,), **random) for k in self.categorical]
        values = (torch.rand(n, self.continuous, **random) * 2 - 1) * self.code_range
        if categorical is not None:
            for i, column in enumerate(self._given_categories(categorical, n)):
                columns[i] = column
        if continuous is not None:
            given = torch.as_tensor(continuous, dtype=torch.float32, device=like.device)
            try:
                values = given.expand(n, self.continuous)
            except RuntimeError:
                raise common.InputError(f"continuous is {tuple(given.shape)}; expected what "
                                        f"broadcasts to ({n}, {self.continuous})") from None
        onehots = [F.one_hot(column, k) for column, k in zip(columns, self.categorical)]
        return torch.cat([noise, *onehots, values], 1).to(like.dtype)

    def _given_categories(self, categorical, n):
        """`sample_latent`'s categories as one column (n,) for each code they are for."""
        given = torch.as_tensor(categorical, device=next(self.parameters()).device)
        if given.ndim == 0 or given.shape == (n,):
            given = given.expand(n)[:, None]
        fits = given.ndim == 2 and len(given) == n and given.shape[1] <= len(self.categorical)
        if not fits or given.is_floating_point():
            raise common.InputError(f"categorical is {tuple(given.shape)}; expected whole numbers, "
                                    f"one, ({n},) or ({n}, {len(self.categorical)})")
        columns = given.long().unbind(1)
        for i, (column, k) in enumerate(zip(columns, self.categorical), 1):
            if ((column < 0) | (column >= k)).any():
                raise common.InputError(f"categorical code {i} has categories 0 to {k - 1}; got "
                                        f"{column.tolist()}")
        return columns

    def split_latent(self, latent):
        """Latents (N, noise + codes) as a Latent."""
        sizes = [self.noise, *self.categorical, self.continuous]
        noise, *onehots, values = latent.split(sizes, dim=1)
        return Latent(noise, onehots, values)

    def sample(self, n, categorical=None, continuous=None, generator=None):
        """n new images (n, C, H, W) in [0, 1]; arguments as for `sample_latent`."""
        return self.decode(self.sample_latent(n, categorical, continuous, generator))

    def decode(self, latent):
        """G in eval mode: latents (N, noise + codes) to images (N, C, H, W) in [0, 1]."""
        return common.generate(self, latent)

    def encode(self, images):
        """Q in eval mode: images (N, C, H, W), in [0, 1] or uint8, to Codes of probabilities."""
        logits, mean, std = self._codes(common.evaluate(self._q, images, self))
        return Codes([part.softmax(1) for part in logits], mean, std)

    def save(self, path, **optimizers):
        """Write weights and options, and optimisers by name (d=..., g=...) if any, for `load`."""
        common.save_model(self, "infogan", path, **optimizers)

    @classmethod
    def load(cls, path, device="cpu"):
        """The model in a run folder or saved file, float32 in eval mode; InputError if none."""
        return common.load_model(cls, "infogan", path, device)


# ---------------------------------------------------------------- configuration


@dataclass
class Config(common.RunConfig):
    """The options of a run, for `train` and as flags; `Config.paper()` has them as published."""
    noise: int = common.option(62, "noise variables z, which nobody predicts")
    categorical: list[int] = common.option([10], "sizes of the categorical codes, or none", low=2)
    continuous: int = common.option(2, "number of continuous codes")
    code_range: float = common.option(1.0, "continuous codes are uniform on (-r, r)")
    lambda_categorical: float = common.option(1.0, "weight of L_I for the categorical codes")
    lambda_continuous: float = common.option(0.1, "weight of L_I for the continuous codes")
    separate_q: bool = common.option(True, "Q has a trunk of its own instead of D's")
    detach_trunk: bool = common.option(False, "L_I does not train the trunk shared with D")
    invariance: float = common.option(10.0, "weight of the invariance loss, on warped real images")
    warm_up: int = common.option(2, "passes before the game in which Q learns c1 from neighbours")
    augment: bool = common.option(False, "D sees real and fake images as one batch, warped")
    init: str = common.option("torch", "initial weights: torch's own, or normal, N(0, 0.02)",
                              choices=["torch", "normal"])
    lr_discriminator: float = common.option(5e-4, "Adam's rate for D and Q")
    lr_generator: float = common.option(1e-3, "Adam's rate for G")
    average: float = common.option(0.998, "decay of the moving average that samples and encodes",
                                   high=0.99999)

    PAPER = {"epochs": 11, "width": 64, "separate_q": False, "invariance": 0.0, "warm_up": 0,
             "init": "normal", "lr_discriminator": 2e-4, "average": 0.0}    # 5,000 updates as in C

    def __post_init__(self):
        super().__post_init__()
        if not self.categorical and not self.continuous:
            raise common.InputError("--categorical and --continuous are both empty; InfoGAN needs "
                                    "at least one code")
        if not self.categorical:
            self.refuse_idle("without categorical codes", "lambda_categorical", "invariance",
                             "warm_up")
        if not self.invariance:
            self.refuse_idle("with --invariance 0", "warm_up")
        if not self.continuous:
            self.refuse_idle("with --continuous 0", "code_range", "lambda_continuous")
        if not self.code_range:
            raise common.InputError("--code-range is 0; expected a positive number, e.g. 1.0")
        if self.separate_q and self.detach_trunk:
            raise common.InputError("--detach-trunk is about the trunk that D and Q share; there "
                                    "is none with --separate-q, so add --no-separate-q")


# ---------------------------------------------------------------- scores, pictures, training


def scores(model, data, samples=10_000, judge=None):
    """Scores on the test images and on fresh samples, as many as `samples` and training images
    allow; results/README.md has the keys. Those that need `judge` are there with one only."""
    seeded = torch.Generator(data.images.device).manual_seed(0)
    latent = model.sample_latent(min(samples, len(data.images)), generator=seeded)
    outputs, features = common.evaluate_samples(model._q, latent, model, judge)
    codes = model._codes(outputs)
    target = model.split_latent(latent)
    categorical = map(categorical_information, codes.categorical, target.categorical)
    continuous = continuous_information(codes.mean, codes.std, target.continuous, model.code_range)
    result = {"mi_categorical": [float(information) for information in categorical],
              "mi_categorical_ceiling": [math.log(k) for k in model.categorical],
              "mi_continuous": continuous.tolist()}
    result |= clustering(model, data)
    if judge is not None:
        result |= judge.scores(data, features)
    return result


def clustering(model, data):
    """Scores of the first category as a clustering of the test images, if they have labels."""
    if data.test_labels is None or not model.categorical:
        return {}
    clusters = model.encode(data.test_images).categorical[0].argmax(1)
    return common.clustering_scores(clusters, data.test_labels)


def figures(model):
    """What a run shows, name -> (picture, caption), from latents that are the same on every call.

    samples; traversal: a row for each category of c1 (traversal2 of c2, ..), noise and other codes
    alike down a column; c2, c3..: a continuous code over twice its range, a row for each category.
    """
    device = next(model.parameters()).device
    seeded = torch.Generator(device).manual_seed(1)
    shown = {}

    def show(name, latent, caption):
        shown[name] = common.grid(model.decode(latent), 10), caption

    show("samples", model.sample_latent(100, generator=seeded), "Samples.")
    columns = model.sample_latent(10, generator=seeded)
    rows = model.sample_latent(10, generator=seeded)
    start = model.noise                                           # where a code's columns begin
    for i, k in enumerate(model.categorical):
        latent = columns.repeat(k, 1)
        latent[:, start:start + k] = torch.eye(k, device=device).repeat_interleave(10, 0)
        name = f"traversal{i + 1}" if i else "traversal"
        show(name, latent, f"A row is a category of c{i + 1}.")
        if i == 0:
            rows = columns[:1].repeat(k, 1)
            rows[:, start:start + k] = torch.eye(k, device=device)
        start += k
    sweep = torch.linspace(-2, 2, 10, device=device) * model.code_range
    for j in range(model.continuous):
        name = f"c{len(model.categorical) + 1 + j}"
        latent = rows.repeat_interleave(10, 0)
        latent[:, start + j] = sweep.repeat(len(rows))
        show(name, latent, f"{name} from {sweep[0]:g} to {sweep[-1]:g}, twice its range.")
    return shown


def train(config):
    """Train as `config` says, or go on with config.resume; returns the model that samples and
    encodes (the moving average, where there is one), in eval mode, and the Run."""
    config, device, data = common.start(config, "infogan")
    model = InfoGAN(data.shape, config.noise, config.categorical, config.continuous,
                    config.code_range, config.width, config.separate_q)
    if config.init == "normal":
        model.apply(common.initialise)
    model.to(device).train()
    average = common.MovingAverage(model, config.average)
    d_optimizer = common.optimizer(model.d_parameters(), config.lr_discriminator)
    g_optimizer = common.optimizer(model.g_parameters(), config.lr_generator)
    autocast = common.autocast(device, config.precision)

    def step(real):
        losses = training_step(
            model, d_optimizer, g_optimizer, real, config.lambda_categorical,
            config.lambda_continuous, config.invariance, config.detach_trunk, config.augment,
            autocast)
        average.update(model)
        return losses

    run = common.Run("infogan", config, data, model, average, {"d": d_optimizer, "g": g_optimizer},
                     lambda: figures(average.model))
    captured_step = common.Captured(step)
    for _ in run.epochs():
        if run.is_new and config.warm_up and config.invariance and config.categorical:
            with run.warm_up(lambda: clustering(model, data)):
                warm_up(model, data.images, config.warm_up, batch_size=config.batch_size,
                        autocast=autocast, each_update=run.stop_if_asked)
        for real in run.batches():
            run.log(captured_step(real))
        run.end_epoch(lambda: scores(average.model, data, config.samples))
    run.end(lambda: scores(average.model, data, config.samples, common.Judge.for_data(data)))
    return average.model.eval(), run


def main(argv=None):
    common.command_line(train, Config, "infogan", __doc__, argv)


if __name__ == "__main__":
    main()
