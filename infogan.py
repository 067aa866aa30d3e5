# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4"]
# ///
"""InfoGAN: a GAN that learns, unsupervised, to read back the codes it draws from (Chen et al. 2016, arXiv 1606.03657).

The generator G draws an image from noise z and codes c = (categories c1.., continuous c2, c3..). A second head Q on the
discriminator D reads the codes back from the image. Rewarding right readings is maximising a lower bound of I(c; G(z, c)),
so each code comes to mean something visible: on MNIST the category is the digit, the continuous codes its style, as slant.

    V(D, G) = E log D(x) + E log(1 - D(G(z, c)))                          (1)  the GAN game
    L_I(G, Q) = E[log Q(c | G(z, c))] + H(c)  <=  I(c; G(z, c))           (5)  in nats
    min over G, Q  max over D   V(D, G) - lambda L_I(G, Q)                (6)

Who learns L_I. Equation 6 gives it to G and Q, and says nothing of the layers Q shares with D. The authors' code puts L_I
into D's step, so that it trains Q's head AND the shared trunk, and once more into G's step. So does --recipe paper here;
--detach-trunk reads (6) to the letter, L_I trains Q's head and G alone, and --separate-q gives Q a trunk of its own.

Where this differs from the paper (P) or the authors' code (C):
- G minimises softplus(-logit), the non-saturating loss, as C does; (1) is the minimax form.
- --recipe best, the default, is the same game with six changes, each with its flag, made for the sake of reliability:
    --invariance   Q's categories of two small random warps of a real image should agree, and use all categories alike (IIC:
                   Ji et al. 2019). In the paper's game Q reads real images as it may; nothing keeps it from merging digits.
    --separate-q   Q has a trunk of its own, which only it trains: one that D and Q share costs the pictures.
    --lr-discriminator 5e-4, where P has 2e-4: Q need not creep.
    --init         weights start as torch starts them; from N(0, 0.02) the first hundreds of updates are lost.
    --average      moving averages of all weights draw and read.
    --width 32     half of P's channels, for a laptop.
  --recipe paper turns all six off.
- Q predicts mean and standard deviation (P; C fixes the deviation at 1), std = softplus(.) + 0.01.
- lambda is 1 for categories (P and C) and 0.1 for continuous codes (P: "smaller"; C: 1).
- H of a continuous code is that of its uniform prior, ln 2r nats (C takes a unit Gaussian's, and so overstates L_I).
- The noise z is uniform on (-1, 1) as in C; P does not say.

    python infogan.py --epochs 5

    from infogan import InfoGAN
    model = InfoGAN.load("runs/infogan-1")
    images = model.sample(8, categorical=3, continuous=[0.0, 1.5])        # (8, 1, 28, 28) in [0, 1]
    codes = model.encode(images)                                          # codes.categorical[0] (8, 10), .mean, .std (8, 2)
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import common   # before torch: it silences torch's warning that numpy is absent
import torch
import torch.nn.functional as F
from common import InputError, inference, option
from torch import nn


@dataclass
class Config(common.RunConfig):
    epochs: int = option(5, "total passes over the training images; 0 only evaluates and draws", low=0, paper=11)   # C: 5,000 updates
    noise: int = option(62, "noise variables z, which no one reads back")
    categorical: list[int] = option([10], "sizes of the categorical codes, e.g. 10 5 5; none for none", low=2)
    continuous: int = option(2, "number of continuous codes")
    code_range: float = option(1.0, "continuous codes are uniform on (-r, r)")
    lambda_categorical: float = option(1.0, "weight of L_I for the categorical codes")
    lambda_continuous: float = option(0.1, "weight of L_I for the continuous codes")
    separate_q: bool = option(True, "Q has a trunk of its own instead of D's", paper=False)
    detach_trunk: bool = option(False, "L_I trains Q's head and G, not the trunk shared with D (Equation 6 to the letter)")
    invariance: float = option(10.0, "weight of what Q's first categories of two warps of a real image tell of each other", paper=0.0)
    init: str = option("torch", "weights to start from: torch's defaults, or normal, N(0, 0.02)", choices=["torch", "normal"], paper="normal")
    lr_discriminator: float = option(5e-4, "Adam's rate for D and Q", paper=2e-4)
    lr_generator: float = option(1e-3, "Adam's rate for G")
    average: float = option(0.998, "decay of the moving average of all weights that draws and reads; 0 takes the last", high=0.99999, paper=0.0)

    def __post_init__(self):
        super().__post_init__()
        if not self.categorical and not self.continuous:
            raise InputError("--categorical and --continuous are both empty; InfoGAN needs at least one code")
        if not self.categorical:
            self.refuse_idle("without categorical codes", "lambda_categorical", "invariance")
        if not self.continuous:
            self.refuse_idle("with --continuous 0", "code_range", "lambda_continuous")
        if not self.code_range:
            raise InputError("--code-range is 0; expected a positive number, e.g. 1.0")
        if self.separate_q and self.detach_trunk:
            raise InputError("--detach-trunk is about the trunk that D and Q share; there is none with --separate-q, so add --no-separate-q")


# ---------------------------------------------------------------- networks

class Codes(NamedTuple):
    """What Q reads off N images: for each categorical code probabilities (N, K); mean and std (N, continuous)."""
    categorical: list[torch.Tensor]
    mean: torch.Tensor
    std: torch.Tensor


class InfoGAN(nn.Module):
    """Generator, discriminator and recogniser for images of `shape` (C, H, W), H and W multiples of 4, values in [0, 1].

    A latent is (N, noise + sum of category sizes + continuous): noise, a one-hot vector a category, continuous codes.
    """

    def __init__(self, config=None, shape=(1, 28, 28)):
        super().__init__()
        self.config, self.shape = config or Config(), tuple(shape)
        c = self.config
        self.generator = common.convolutional_generator(c.noise + sum(c.categorical) + c.continuous, shape, c.width)
        self.trunk = common.convolutional_trunk(shape, c.width, slope=0.1)
        self.d_head = nn.Linear(16 * c.width, 1)
        self.q_trunk = common.convolutional_trunk(shape, c.width, slope=0.1) if c.separate_q else None
        self.q_head = nn.Sequential(
            nn.Linear(16 * c.width, 2 * c.width, bias=False), nn.BatchNorm1d(2 * c.width), nn.LeakyReLU(0.1),
            nn.Linear(2 * c.width, sum(c.categorical) + 2 * c.continuous))
        if c.init == "normal":
            self.apply(common.initialise)
        self.average = common.frozen_copy(self) if c.average else None

    @classmethod
    def load(cls, path, device="cpu"):
        """The trained model in a checkpoint.pt or its run folder, in eval mode; InputError if there is none."""
        return common.load_model(cls, Config, "infogan", path, device)

    def draw(self, latent):
        """G: latents (N, noise + codes) to images (N, C, H, W) in [0, 1]."""
        with common.autocast(self):
            return self.generator(latent).float().sigmoid()

    def discriminate(self, images):
        """D and Q: images (N, C, H, W) to real-or-fake logits (N,) and what Q reads, as `recognise` gives it."""
        with common.autocast(self):
            features = self.trunk(images)                                            # (N, 16 width)
            return self.d_head(features).flatten().float(), self.recognise(images, features)

    def recognise(self, images, features=None):
        """Q: images (N, C, H, W) to what it reads, (N, sum of K + 2 continuous), for `split`; `features`, D's trunk's, save a pass."""
        with common.autocast(self):
            if self.q_trunk or features is None:
                features = (self.q_trunk or self.trunk)(images)
            if self.config.detach_trunk and not images.requires_grad:                # in G's step they do, and the gradient goes on to G
                features = features.detach()
            return self.q_head(features).float()

    def sample_latent(self, n, categorical=None, continuous=None, generator=None):
        """n latents from the prior, on the model's device, with the codes that are given held fixed; InputError if they do not fit.

        categorical: a category of the first code for all, or (n,) one for each image, or (n, m) for the first m codes.
        continuous: anything that broadcasts to (n, continuous); values beyond the prior's range extrapolate.
        """
        c, device = self.config, self.d_head.weight.device
        noise = torch.rand(n, c.noise, device=device, generator=generator) * 2 - 1
        picks = [torch.randint(k, (n,), device=device, generator=generator) for k in c.categorical]
        if categorical is not None:
            given = torch.as_tensor(categorical, device=device)
            given = given.expand(n)[:, None] if given.ndim == 0 or given.shape == (n,) else given
            if given.ndim != 2 or len(given) != n or given.shape[1] > len(picks) or given.is_floating_point():
                raise InputError(f"categorical is {tuple(given.shape)}; expected whole numbers, one, ({n},) or ({n}, {len(picks)})")
            for i, k in enumerate(c.categorical[:given.shape[1]]):
                if n and not 0 <= given[:, i].min() <= given[:, i].max() < k:
                    raise InputError(f"categorical code {i + 1} has categories 0 to {k - 1}; got {given[:, i].tolist()}")
                picks[i] = given[:, i].long()
        values = (torch.rand(n, c.continuous, device=device, generator=generator) * 2 - 1) * c.code_range
        if continuous is not None:
            given = torch.as_tensor(continuous, dtype=torch.float32, device=device)
            try:
                values = given.expand(n, c.continuous)
            except RuntimeError:
                raise InputError(f"continuous is {tuple(given.shape)}; expected what broadcasts to ({n}, {c.continuous})") from None
        return torch.cat([noise, *(F.one_hot(pick, k).float() for pick, k in zip(picks, c.categorical)), values], 1)

    @inference
    def generate(self, latent):
        """Images (N, C, H, W) in [0, 1] of latents (N, noise + codes), drawn in eval mode."""
        return common.in_batches((self.average or self).draw, latent)

    def sample(self, n, categorical=None, continuous=None):
        """n new images (n, C, H, W) in [0, 1]; codes as for `sample_latent`, at random where not given."""
        return self.generate(self.sample_latent(n, categorical, continuous))

    @inference
    def read(self, images):
        """Q's raw output for images (N, C, H, W) in [0, 1] or uint8, in eval mode."""
        images = common.expect_images(images, self.shape)
        return common.in_batches((self.average or self).recognise, images)

    def encode(self, images):
        """The Codes that Q reads off images (N, C, H, W), in [0, 1] or uint8: probabilities, means and standard deviations."""
        logits, mean, std = split(self.read(images), self.config)
        return Codes([part.softmax(1) for part in logits], mean, std)


# ---------------------------------------------------------------- losses and the training step

def discriminator_loss(real, fake):
    """-E log D(x) - E log(1 - D(G)), Equation 1 for D, from logits (N,) and (N,)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake):
    """-E log D(G), the non-saturating form of Equation 1 for G, from logits (N,)."""
    return F.softplus(-fake).mean()


def gaussian_nll(code, mean, std):
    """-log N(code; mean, std^2) in nats, elementwise."""
    return 0.5 * ((code - mean) / std) ** 2 + std.log() + 0.5 * math.log(2 * math.pi)


def split(read, config):
    """Q's raw output (N, sum of K + 2 continuous) as a list of logits (N, K), mean and std (N, continuous)."""
    *logits, mean, raw = read.split([*config.categorical, config.continuous, config.continuous], dim=1)
    return logits, mean, F.softplus(raw) + 0.01


def information(read, latent, config):
    """L_I in nats, Equation 5, from Q's raw output and the latents: a list, one a category (ln K at most), and (continuous,)."""
    _, *onehots, values = latent.split([config.noise, *config.categorical, config.continuous], dim=1)
    logits, mean, std = split(read, config)
    categorical = [math.log(k) - F.cross_entropy(l, onehot) for k, l, onehot in zip(config.categorical, logits, onehots)]
    return categorical, math.log(2 * config.code_range) - gaussian_nll(values, mean, std).mean(0)


def information_loss(read, latent, config):
    """-lambda L_I, the second term of Equation 6, summed over the codes."""
    categorical, continuous = information(read, latent, config)
    return -config.lambda_categorical * sum(categorical) - config.lambda_continuous * continuous.sum()


def invariance_loss(read, read_again, config):
    """-weight (I(c1; c1') + 2 H(c1)) in nats over the batch, c1 and c1' the categories Q draws for two random warps of a real image.

    Their joint distribution is the mean outer product of Q's probabilities, made symmetric (Ji et al. 2019, IIC, Equation 3). The
    further H(c1) asks that each category be as likely among real images as it is in the prior. Only the first categorical code
    is meant: the others stay free to tell what a warp changes.
    """
    a, b = (split(r, config)[0][0].softmax(1) for r in (read, read_again))           # (N, K)
    joint = a.T @ b / len(a)                                                         # (K, K)
    joint = ((joint + joint.T) / 2).clamp(min=1e-8)
    entropy, joint_entropy = torch.special.entr(joint.sum(1)).sum(), torch.special.entr(joint).sum()
    return -config.invariance * (4 * entropy - joint_entropy)                        # I(c1; c1') is 2 H(c1) - H(c1, c1')


def training_step(model, d_optimizer, g_optimizer, real):
    """One update of D and Q, then one of G, on images (N, C, H, W) in [0, 1]; returns the losses as 0-d tensors."""
    latent = model.sample_latent(len(real))
    fake = model.draw(latent)

    # (1) D tells real from fake; Q, and the trunk it shares with D, read the codes of the fake
    real_logit, _ = model.discriminate(real)
    fake_logit, read = model.discriminate(fake.detach())
    loss_d = discriminator_loss(real_logit, fake_logit)
    loss_q = information_loss(read, latent, model.config)
    if model.config.invariance and model.config.categorical:
        read_warped = model.recognise(common.warp(torch.cat([real, real])))
        loss_q = loss_q + invariance_loss(*read_warped.chunk(2), model.config)
    d_optimizer.zero_grad()
    (loss_d + loss_q).backward()
    d_optimizer.step()

    # (2) G fools D and makes its codes readable; the gradient passes through D and Q and stops at G's weights
    fake_logit, read = model.discriminate(fake)
    loss_g, loss_i = generator_loss(fake_logit), information_loss(read, latent, model.config)
    g_optimizer.zero_grad()
    (loss_g + loss_i).backward(inputs=list(model.generator.parameters()))
    g_optimizer.step()
    common.update_average(model)
    return {"loss_d": loss_d, "loss_g": loss_g, "loss_information": loss_i}


# ---------------------------------------------------------------- scores, pictures, training

def scores(model, data, judge=None, full=False):
    """Scores on the test images and common.SAMPLES fresh samples, keys as in the README; only the cheap ones unless `full`."""
    c = model.config
    latent = model.sample_latent(common.SAMPLES, generator=torch.Generator(data.images.device).manual_seed(0))
    samples = model.generate(latent)
    categorical, continuous = information(model.read(samples), latent, c)
    result = {"mi_categorical": [float(v) for v in categorical], "mi_categorical_ceiling": [math.log(k) for k in c.categorical],
              "mi_continuous": continuous.tolist()}
    codes = model.encode(data.test_images)
    if data.test_labels is not None and c.categorical:
        result |= common.clustering_scores(codes.categorical[0].argmax(1), data.test_labels)
    if full and judge:
        shown = {"frechet": samples}
        if c.continuous:
            shown["frechet_doubled"] = model.generate(torch.cat([latent[:, :-c.continuous], 2 * latent[:, -c.continuous:]], 1))
        result |= judge.frechet_scores(data, **shown)
    if full and data.shape[0] == 1:
        result["effect"] = {f"c{len(c.categorical) + 1 + j}": effect(model, latent[:500], j, data) for j in range(c.continuous)}
        result["carried"] = carried(latent, samples, c)
    if full and data.test_factors:
        named = [p.argmax(1) for p in codes.categorical] + list(codes.mean.T)
        result |= common.mutual_information_gap(named, {"class": data.test_labels, **data.test_factors})
    return result


def effect(model, latent, j, data):
    """What continuous code j does to slant and stroke width: latents (N, .) are redrawn with it at 9 values over twice its range.

    For each measure, [rank correlation of code and measure over one latent's 9 images, mean over latents; its mean change from one
    end to the other, in standard deviations of the measure over the test images; the same over the range itself].
    """
    sweep = torch.linspace(-2, 2, 9, device=latent.device) * model.config.code_range
    latent = latent.repeat_interleave(9, 0)
    latent[:, j - model.config.continuous] = sweep.repeat(len(latent) // 9)
    usual = common.measure_strokes(data.test_images.float() / 255)
    result = {}
    for name, value in common.measure_strokes(model.generate(latent)).items():
        value = value.view(-1, 9)
        result[name] = [float(common.rank_correlation(value, sweep.expand_as(value)).mean()),
                        *(float((value[:, -1 - i] - value[:, i]).mean() / usual[name].std()) for i in (0, 2))]
    return result


def carried(latent, samples, config):
    """The share of the variance of slant and of stroke width over `samples` that each code of their latents accounts for, in [0, 1].

    It is the correlation ratio eta^2; a continuous code counts as ten categories, tenths of its range.
    """
    _, *onehots, values = latent.split([config.noise, *config.categorical, config.continuous], dim=1)
    tenths = ((values / config.code_range + 1) * 5).long().clamp(0, 9)
    codes, strokes = [part.argmax(1) for part in onehots] + list(tenths.T), common.measure_strokes(samples)
    return {f"c{i + 1}": {name: common.correlation_ratio(code, value) for name, value in strokes.items()} for i, code in enumerate(codes)}


def pictures(model):
    """What the run folder shows, name -> (picture, caption), from latents that are the same on every call."""
    c, device = model.config, model.d_head.weight.device
    generator = torch.Generator(device).manual_seed(1)
    shown = {"samples": (common.grid(model.generate(model.sample_latent(100, generator=generator)), 10), "Samples.")}
    columns, rows, start = model.sample_latent(10, generator=generator), model.sample_latent(10, generator=generator), c.noise
    for i, k in enumerate(c.categorical):
        onehots, latent = torch.eye(k, device=device), columns.repeat(k, 1)
        latent[:, start:start + k] = onehots.repeat_interleave(10, 0)
        shown[f"traversal{i + 1 if i else ''}"] = common.grid(model.generate(latent), 10), f"A row a category of c{i + 1}."
        if i == 0:
            rows = columns[:1].repeat(k, 1)
            rows[:, start:start + k] = onehots
        start += k
    sweep = torch.linspace(-2, 2, 10, device=device) * c.code_range
    for j in range(c.continuous):
        name, latent = f"c{len(c.categorical) + 1 + j}", rows.repeat_interleave(10, 0)
        latent[:, start + j] = sweep.repeat(len(rows))
        shown[name] = common.grid(model.generate(latent), 10), f"{name} from {sweep[0]:g} to {sweep[-1]:g}, twice its range."
    return shown


def train(config):
    """Train as `config` says, or go on with config.resume; returns the model in eval mode and its Run."""
    device, data = common.start(config)
    model = InfoGAN(config, data.shape).to(device)
    q_layers = [m for m in (model.trunk, model.d_head, model.q_trunk, model.q_head) if m]
    d_optimizer = common.optimizer([p for m in q_layers for p in m.parameters()], config.lr_discriminator)
    g_optimizer = common.optimizer(list(model.generator.parameters()), config.lr_generator)
    run = common.Run("infogan", config, data, model, {"d": d_optimizer, "g": g_optimizer}, lambda: pictures(model))
    step = common.Captured(lambda real: training_step(model, d_optimizer, g_optimizer, real))
    for _ in run.epochs():
        model.train()
        for real in run.batches():
            run.log(step(real))
        run.end_epoch(scores(model, data))
    run.end(scores(model, data, common.Judge.for_data(data), full=True))
    return model.eval(), run


def main(argv=None):
    common.command_line(train, Config, "infogan", __doc__, argv)


if __name__ == "__main__":
    main()
