# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4"]
# ///
"""O-GAN: a GAN whose discriminator is an encoder, made so by one correlation term (Su 2019, arXiv 1903.01931).

The critic of a GAN is one number for each image. Here the discriminator E gives a whole vector E(x), whose mean over its
coordinates is that number, and whose shape, once mean and deviation are taken out, is asked to be the latent the image came
from. avg, std and the standardised rest are independent of one another, so the two jobs do not get in each other's way.

    N(v) = (v - avg v) / std v,   rho(u, v) = avg(N(u) N(v))              over the coordinates of one sample (population std)
    E minimises   avg E(x) - avg E(G(z)) + R - lambda rho(z, E(G(z)))     real scores low, fake scores high
    G minimises   avg E(G(z)) - lambda rho(z, E(G(z)))
    R = [avg E(x) - avg E(G(z))]^2 / (4 |x - G(z)|^2), mean over pixels   GAN-QP; any other GAN of the table below will do
    encode: N(E(x)),   reconstruct: G(N(E(x)))

Why correlation and not squared error: |N(z) - N(E(G(z)))|^2 = 2 n (1 - rho), so rho IS the squared error with mean and std
left free. Plain squared error pins all n coordinates of E(G(z)), the mean too: a fake scores as z would, whatever G draws.

Where this differs from the paper (P) or the author's code (C):
- The networks are InfoGAN's for MNIST (two stride-2 convolutions, FC), since P and C are about 64x64 faces and larger.
- P writes R with a free coefficient; 1/4 over the mean squared pixel distance in [-1, 1] is C's.
- --critic network is P's general form with a small network T(E(x)) in place of avg E(x).
- --recipe best, the default, plays the same game on other settings, each with its flag; --recipe paper takes C's.
    --rho-weight 2   for 0.5, and --rho-generator 0.3, the share of it that G minimises, for all: E may learn to read as hard
                     as it likes, but G pays with its pictures.
    --truncation 0.9 scales N(E(x)) before G in reconstructions, as C does; P, and --recipe paper, do not.
    --latent 32      for 128, which is more than MNIST has ways to vary.
    --joint-batch    E sees real and fake images in one batch. Normalised each alone, as in C, E cannot see, nor G be told,
                     what all fakes have in common, such as being too bright.
    --init torch     for N(0, 0.02), and Adam at 5e-4 for E and 1e-3 for G in place of RMSprop at 1e-4; they still step at once.
    --average        moving averages of all weights draw and read.
    --width 32       half the channels, for a laptop.

    python ogan.py --epochs 5

    from ogan import OGAN
    model = OGAN.load("runs/ogan-1")
    latent = model.encode(images)                                         # images (N, 1, 28, 28) in [0, 1] -> (N, latent)
    again = model.reconstruct(images)                                     # (N, 1, 28, 28) in [0, 1]
    frames = model.interpolate(images[0], images[1], steps=10)            # (10, 1, 28, 28)
"""

from dataclasses import dataclass

import common   # before torch: it silences torch's warning that numpy is absent
import torch
import torch.nn.functional as F
from common import InputError, inference, option
from torch import nn

# Most GANs are one scheme: a critic loss and a generator loss of the scores of real and fake, each (N,), low meaning real.
# The critic may also look at the pairs' mean squared pixel distance, images in [-1, 1].
GAN_LOSSES = {
    "qp": (lambda real, fake, distance: (real - fake + (real - fake) ** 2 / (4 * distance)).mean(),       # Su 2018, GAN-QP
           lambda real, fake: fake.mean()),
    "wasserstein": (lambda real, fake, _: (real - fake).mean(),                                           # Arjovsky et al. 2017
                    lambda real, fake: fake.mean()),
    "nonsaturating": (lambda real, fake, _: (F.softplus(real) + F.softplus(-fake)).mean(),                # Goodfellow et al. 2014
                      lambda real, fake: F.softplus(fake).mean()),
    "hinge": (lambda real, fake, _: (F.relu(1 + real) + F.relu(1 - fake)).mean(),                         # Lim and Ye 2017
              lambda real, fake: fake.mean()),
    "leastsquares": (lambda real, fake, _: ((real + 1) ** 2 + (fake - 1) ** 2).mean(),                    # Mao et al. 2017
                     lambda real, fake: ((fake + 1) ** 2).mean()),
    "relativistic": (lambda real, fake, _: F.softplus(real - fake).mean(),                                # Jolicoeur-Martineau 2019
                     lambda real, fake: F.softplus(fake - real).mean()),
}


@dataclass
class Config(common.RunConfig):
    batch_size: int = option(64, "images in a step", low=2)
    latent: int = option(32, "latent variables, z ~ N(0, I)", low=2, paper=128)
    rho_weight: float = option(2.0, "lambda, the weight of the latent loss", paper=0.5)
    rho_generator: float = option(0.3, "the share of the latent loss that G minimises too", paper=1.0)
    critic: str = option("avg", "an image's score: avg E(x), or a small network T(E(x))", choices=["avg", "network"])
    latent_loss: str = option("pearson", "what E(G(z)) is asked: correlate with z, equal z, or nothing",
                              choices=["pearson", "mse", "none"])
    gan_loss: str = option("qp", "the GAN", choices=list(GAN_LOSSES))
    truncation: float = option(0.9, "N(E(x)) is scaled by this before G in reconstruct and interpolate", paper=1.0)
    joint_batch: bool = option(True, "E's batch normalisation sees real and fake images as one batch, not each alone", paper=False)
    init: str = option("torch", "weights to start from: torch's defaults, or normal, N(0, 0.02)", choices=["torch", "normal"], paper="normal")
    optimizer: str = option("adam", "adam (betas 0.5 and 0.999) or rmsprop (alpha 0.99)", choices=["adam", "rmsprop"], paper="rmsprop")
    lr_encoder: float = option(5e-4, "the optimiser's rate for E (and T)", paper=1e-4)
    lr_generator: float = option(1e-3, "the optimiser's rate for G", paper=1e-4)
    average: float = option(0.998, "decay of the moving average of all weights that draws and reads; 0 takes the last", high=0.99999, paper=0.0)

    def __post_init__(self):
        super().__post_init__()
        if not self.truncation:
            raise InputError("--truncation is 0, which makes all reconstructions one image; expected a positive number, 1 for none")
        if self.latent_loss == "none":
            self.refuse_idle("with --latent-loss none", "rho_weight", "rho_generator")


# ---------------------------------------------------------------- networks

def standardise(v):
    """N(v) = (v - avg v) / std v over the last dimension, population std; zeros for a constant vector."""
    v = v - v.mean(-1, keepdim=True)
    return v / v.square().mean(-1, keepdim=True).clamp(min=1e-12).sqrt()


def pearson_correlation(u, v):
    """rho(u, v) = avg(N(u) N(v)), (N, n) and (N, n) to (N,) in [-1, 1]; rho(v, v) = 1, and 0 where one is constant."""
    return (standardise(u) * standardise(v)).mean(-1)


class OGAN(nn.Module):
    """Generator and encoder, which is the discriminator, for images of `shape` (C, H, W), H and W multiples of 4.

    Images are (N, C, H, W) in [0, 1] in and out; inside they are in [-1, 1]. Latents are (N, latent).
    """

    def __init__(self, config=None, shape=(1, 28, 28)):
        super().__init__()
        self.config, self.shape = config or Config(), tuple(shape)
        c = self.config
        self.generator = common.convolutional_generator(c.latent, shape, c.width)
        self.encoder = nn.Sequential(common.convolutional_trunk(shape, c.width, slope=0.2), nn.Linear(16 * c.width, c.latent))
        self.critic = nn.Sequential(nn.Linear(c.latent, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1)) if c.critic == "network" else None
        if c.init == "normal":
            self.apply(common.initialise)
        self.average = common.frozen_copy(self) if c.average else None

    @classmethod
    def load(cls, path, device="cpu"):
        """The trained model in a checkpoint.pt or its run folder, in eval mode; InputError if there is none."""
        return common.load_model(cls, Config, "ogan", path, device)

    def draw(self, latent):
        """G: latents (N, latent) to images (N, C, H, W) in [-1, 1], as E takes them."""
        with common.autocast(self):
            return self.generator(latent).float().tanh()

    def code(self, images):
        """E: images (N, C, H, W) in [-1, 1] to codes (N, latent), not standardised."""
        with common.autocast(self):
            return self.encoder(images).float()

    def score(self, code):
        """The critic: E(x) (N, latent) to (N,), low for real images."""
        return self.critic(code).flatten() if self.critic else code.mean(1)

    def sample_latent(self, n, generator=None):
        """n latents from the prior N(0, I), on the model's device."""
        return torch.randn(n, self.config.latent, device=self.encoder[-1].weight.device, generator=generator)

    @inference
    def generate(self, latent):
        """Images (N, C, H, W) in [0, 1] of latents (N, latent), drawn in eval mode."""
        return common.in_batches(lambda z: (self.average or self).draw(z) / 2 + 0.5, latent)

    def sample(self, n):
        """n new images (n, C, H, W) in [0, 1]."""
        return self.generate(self.sample_latent(n))

    @inference
    def read(self, images):
        """E(x), not standardised, of images (N, C, H, W) in [0, 1] or uint8, in eval mode: (N, latent)."""
        images = common.expect_images(images, self.shape)
        return common.in_batches(lambda x: (self.average or self).code(2 * x - 1), images)

    def encode(self, images):
        """N(E(x)) (N, latent), standardised, of images (N, C, H, W) in [0, 1] or uint8."""
        return standardise(self.read(images))

    def decode(self, code):
        """G(truncation N(code)), images (N, C, H, W) in [0, 1], of codes (N, latent), standardised or not."""
        return self.generate(self.config.truncation * standardise(code))

    def reconstruct(self, images):
        """G(truncation N(E(x))), images (N, C, H, W) in [0, 1], of images in [0, 1] or uint8."""
        return self.decode(self.read(images))

    def interpolate(self, a, b, steps=10):
        """Frames (steps, C, H, W) from the reconstruction of image a to that of b, each (C, H, W) in [0, 1] or uint8."""
        start, end = self.encode(torch.stack([a, b]))
        t = torch.linspace(0, 1, steps, device=start.device)[:, None]
        return self.decode(start + t * (end - start))


# ---------------------------------------------------------------- losses and the training step

def latent_loss(kind, latent, code):
    """What ties E(G(z)) to z, both (N, n): -rho, or the squared error averaged over coordinates, or 0; mean over the batch."""
    if kind == "pearson":
        return -pearson_correlation(latent, code).mean()
    return F.mse_loss(code, latent) if kind == "mse" else code.new_zeros(())


def training_step(model, e_optimizer, g_optimizer, real):
    """One joint update of E (the discriminator) and G on images (N, C, H, W) in [0, 1]; returns the losses as 0-d tensors."""
    c = model.config
    critic_loss, generator_loss = GAN_LOSSES[c.gan_loss]
    real, latent = 2 * real - 1, model.sample_latent(len(real))
    fake = model.draw(latent)
    real_code, code = model.code(torch.cat([real, fake])).chunk(2) if c.joint_batch else map(model.code, (real, fake))
    real_score, fake_score = model.score(real_code), model.score(code)
    distance = (real - fake.detach()).square().flatten(1).mean(1)
    loss_latent = c.rho_weight * latent_loss(c.latent_loss, latent, code)
    loss_e = critic_loss(real_score, fake_score, distance)
    loss_g = generator_loss(real_score.detach(), fake_score)

    # One forward pass serves both: each gradient is taken for its own player's weights only, and both then step at once.
    e_optimizer.zero_grad()
    g_optimizer.zero_grad()
    (loss_e + loss_latent).backward(inputs=[p for group in e_optimizer.param_groups for p in group["params"]], retain_graph=True)
    (loss_g + c.rho_generator * loss_latent).backward(inputs=list(model.generator.parameters()))
    e_optimizer.step()
    g_optimizer.step()
    common.update_average(model)
    return {"loss_e": loss_e, "loss_g": loss_g, "loss_latent": loss_latent}


# ---------------------------------------------------------------- scores, pictures, training

def scores(model, data, judge=None, full=False):
    """Scores on the test images and common.SAMPLES fresh latents, keys as in the README; only the cheap ones unless `full`."""
    latent = model.sample_latent(common.SAMPLES, torch.Generator(data.images.device).manual_seed(0))
    samples, test = model.generate(latent), data.test_images.float() / 255
    raw = model.read(data.test_images)
    again = model.decode(raw)
    mean_image = common.in_batches(lambda x: x.sum(0, keepdim=True), data.images).sum(0) / len(data.images)
    result = {"rho": float(pearson_correlation(latent, model.read(samples)).mean()),
              "reconstruction_error": float((again - test).square().mean() / (mean_image - test).square().mean()),
              "avg_real": float(raw.mean()), "std_real": float(raw.std(1, correction=0).mean())}
    if full and judge:
        result |= judge.frechet_scores(data, frechet=samples)
        seen, seen_again = (common.in_batches(judge, x).argmax(1) for x in (test, again))
        result["agreement"] = float((seen == seen_again).float().mean())
        result |= common.encoding_scores(model.encode(data.images), data.labels, standardise(raw), data.test_labels)
    return result


def pictures(model, data):
    """What the run folder shows, name -> (picture, caption), from the same latents and test images on every call."""
    latent = model.sample_latent(100, torch.Generator(data.images.device).manual_seed(1))
    some = data.test_images[:50].float() / 255
    pairs = torch.cat([part for row in some.split(10) for part in (row, model.reconstruct(row))])
    rows = torch.cat([model.interpolate(some[i], some[(i + 1) % len(some)]) for i in range(min(8, len(some)))])
    return {"samples": (common.grid(model.generate(latent), 10), "Samples."),
            "reconstruction": (common.grid(pairs, min(10, len(some))), "Test images, and under each its reconstruction."),
            "interpolation": (common.grid(rows, 10), "From the reconstruction of one test image to that of the next.")}


def train(config):
    """Train as `config` says, or go on with config.resume; returns the model in eval mode and its Run."""
    device, data = common.start(config)
    model = OGAN(config, data.shape).to(device)
    e_parameters = [p for m in (model.encoder, model.critic) if m for p in m.parameters()]
    e_optimizer = common.optimizer(e_parameters, config.lr_encoder, config.optimizer)
    g_optimizer = common.optimizer(list(model.generator.parameters()), config.lr_generator, config.optimizer)
    run = common.Run("ogan", config, data, model, {"e": e_optimizer, "g": g_optimizer}, lambda: pictures(model, data))
    step = common.Captured(lambda real: training_step(model, e_optimizer, g_optimizer, real))
    for _ in run.epochs():
        model.train()
        for real in run.batches():
            run.log(step(real))
        run.end_epoch(scores(model, data))
    run.end(scores(model, data, common.Judge.for_data(data), full=True))
    return model.eval(), run


def main(argv=None):
    common.command_line(train, Config, "ogan", __doc__, argv)


if __name__ == "__main__":
    main()
