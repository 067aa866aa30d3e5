# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6"]
# ///
"""O-GAN: a GAN whose discriminator is an encoder, made so by one correlation term.

Su 2019, arXiv 1903.01931.

The critic of a GAN gives one number for each image. Here the discriminator E gives a vector E(x):
its mean over the coordinates is that number, and its shape, once mean and deviation are taken out,
should be the latent that the image came from. avg, std and the standardised rest are functionally
independent of one another, so E has room for both; that they still compete in training, and at what
price, is measured in results/README.md.

    N(v) = (v - avg v) / std v,   rho(u, v) = avg(N(u) N(v))     over one sample's coordinates
    E minimises   avg E(x) - avg E(G(z)) + R - lambda rho(z, E(G(z)))
    G minimises   avg E(G(z)) - lambda rho(z, E(G(z)))
    R = [avg E(x) - avg E(G(z))]^2 / (4 |x - G(z)|^2), mean over pixels         GAN-QP
    encode: N(E(x)),   reconstruct: G(N(E(x)))

A low score means real, a high one fake: the opposite of most repositories. std is the population's.

Why correlation and not squared error: |N(z) - N(E(G(z)))|^2 = 2 n (1 - rho), so rho is the squared
error with mean and std left free. Plain squared error pins all n coordinates of E(G(z)), the mean
too: a fake scores as z would, whatever G makes of it.

Where this differs from the paper (P) or the author's code (C):
- The networks are InfoGAN's for MNIST (two stride-2 convolutions, FC; more for larger images); P
  and C are about faces of 64x64 and larger.
- P writes R with a free coefficient; 1/4 over the mean squared pixel distance in [-1, 1] is C's.
  Any of the GANs in `critic_loss` will do.
- --critic network is P's general form, a small network T(E(x)) in place of avg E(x).
- The default plays the same game on other settings, each with its flag. --recipe paper takes those
  of C, but for truncation, which P does not have.
    --rho-weight 2      For 0.5; and --rho-generator 0.2, the fraction of it that G minimises, for
                        all of it: E may learn the correlation as hard as it likes, but G pays for
                        it with sample quality.
    --truncation 0.9    N(E(x)) is scaled by it before G in reconstructions, as in C.
    --latent 32         For 128, which is more than MNIST has ways to vary.
    --codes 0.45        Nearly half of the latents are codes N(E(x)) of real images, for none: with
                        z from the prior alone nothing asks that G can draw what E makes of them.
    --decorrelation 0.4 The coordinates of these codes should be as z's are, uncorrelated and of
                        unit variance, which P leaves to chance. Or they fill a part of the prior,
                        and samples come from all of it.
    --batch-mix 0.25    E's batch of real images and its batch of fakes swap a quarter, for batch
                        normalisation. Each alone, as in C, E cannot see, nor tell G, what all fakes
                        have in common, as being too bright; as one batch E wins too easily.
    --init torch        For N(0, 0.02); and Adam at 5e-4 for E, 1e-3 for G, for RMSprop at 1e-4. E
                        and G still step at once, as in C.
    --average           Moving averages of all weights are what samples and encodes.
    --width 32          Half the channels, for a laptop.

    python ogan.py --epochs 10

    from ogan import OGAN
    model = OGAN.load("runs/ogan-1")
    latent = model.encode(images)                     # images (N, 1, 28, 28) in [0, 1] -> (N, 32)
    again = model.reconstruct(images)                 # (N, 1, 28, 28) in [0, 1]
    frames = model.interpolate(images[0], images[1], steps=10)                # (10, 1, 28, 28)
"""

import contextlib
from dataclasses import dataclass

if __package__:       # in a package of yours: mypkg/ogan.py beside mypkg/common.py
    from . import common
else:                 # as a script, or from its own folder
    import common

import torch
import torch.nn.functional as F
from torch import nn

# ---------------------------------------------------------------- losses and the training step


def standardise(v):
    """N(v) = (v - avg v) / std v over the last dimension, population std; 0 for a constant v."""
    v = v - v.mean(-1, keepdim=True)
    return v / v.square().mean(-1, keepdim=True).clamp(min=1e-12).sqrt()


def pearson_correlation(u, v):
    """rho(u, v) = avg(N(u) N(v)), (N, n) and (N, n) to (N,) in [-1, 1]; 0 where one is constant."""
    return (standardise(u) * standardise(v)).mean(-1)


def latent_loss(kind, latent, code):
    """What ties E(G(z)) to z, both (N, n): "pearson", -rho; "mse", the squared error averaged over
    coordinates; "none", 0. Mean over the batch."""
    if kind == "pearson":
        return -pearson_correlation(latent, code).mean()
    if kind == "mse":
        return F.mse_loss(code, latent)
    if kind == "none":
        return code.new_zeros(())
    raise common.InputError(f"{kind!r} is unknown; choose from {', '.join(LATENT_LOSSES)}")


LATENT_LOSSES = ["pearson", "mse", "none"]


# Most GANs are one scheme: a critic's and a generator's loss of the scores of real and fake images.

def critic_loss(kind, real, fake, distance):
    """What lowers the scores of real images and raises those of fakes, (N,) and (N,).

    `distance` (N,) is each pair's mean squared pixel distance, images in [-1, 1].
    """
    if kind == "qp":                # Su 2018, GAN-QP
        return (real - fake + (real - fake) ** 2 / (4 * distance)).mean()
    if kind == "wasserstein":       # Arjovsky et al. 2017, the bare loss
        return (real - fake).mean()
    if kind == "nonsaturating":     # Goodfellow et al. 2014
        return (F.softplus(real) + F.softplus(-fake)).mean()
    if kind == "hinge":             # Lim and Ye 2017
        return (F.relu(1 + real) + F.relu(1 - fake)).mean()
    if kind == "leastsquares":      # Mao et al. 2017
        return ((real + 1) ** 2 + (fake - 1) ** 2).mean()
    if kind == "relativistic":      # Jolicoeur-Martineau 2019
        return F.softplus(real - fake).mean()
    raise common.InputError(f"{kind!r} is unknown; choose from {', '.join(GAN_LOSSES)}")


def generator_loss(kind, real, fake):
    """What lowers the scores of fakes, for G; (N,) and (N,)."""
    if kind == "nonsaturating":
        return F.softplus(fake).mean()
    if kind == "leastsquares":
        return ((fake + 1) ** 2).mean()
    if kind == "relativistic":
        return F.softplus(fake - real).mean()
    if kind in ("qp", "wasserstein", "hinge"):
        return fake.mean()
    raise common.InputError(f"{kind!r} is unknown; choose from {', '.join(GAN_LOSSES)}")


GAN_LOSSES = ["qp", "wasserstein", "nonsaturating", "hinge", "leastsquares", "relativistic"]


def decorrelation_loss(code):
    """How far standardised codes (N, n) are from what z's coordinates are, uncorrelated and of unit
    variance: |C - I|^2 / n, where C = avg of N(E(x)) N(E(x))^T over the batch."""
    covariance = code.T @ code / len(code)                                      # (n, n)
    identity = torch.eye(len(covariance), device=code.device, dtype=code.dtype)
    return (covariance - identity).square().sum() / len(covariance)


def encode_mixed(encoder, real, fake, share):
    """E(x) and E(G(z)) from two batches, one of real images and one of fakes, which swap a share.

    It matters to batch normalisation alone. 0: each kind by itself; 0.5: as good as one batch.
    """
    swapped = round(share * len(real))
    kept = len(real) - swapped
    first = encoder(torch.cat([real[swapped:], fake[:swapped]]))
    second = encoder(torch.cat([fake[swapped:], real[:swapped]]))
    return torch.cat([second[kept:], first[:kept]]), torch.cat([first[kept:], second[:kept]])


def training_step(model, e_optimizer, g_optimizer, real, gan="qp", latent="pearson", rho_weight=2.0,
                  rho_generator=0.2, codes=0.45, decorrelation=0.4, batch_mix=0.25,
                  autocast=contextlib.nullcontext()):
    """One joint update of E (the discriminator) and G on images (N, C, H, W) in [0, 1].

    Returns detached scalars: loss_e, loss_g and, weighted as they were minimised, loss_latent, of
    which G minimises the fraction rho_generator, and unless its weight is 0 loss_decorrelation,
    which E does. `autocast` is entered for the forward pass.
    """
    real = 2 * common.prepare(real, model) - 1                                  # in [-1, 1]
    z = model.sample_latent(len(real))
    given = round(codes * len(real))
    with autocast:
        if given > 1:                               # batch normalisation wants more than one
            z[:given] = standardise(model.encoder(real[:given]).detach())
        fake = model.generator(z)                                               # in [-1, 1]
        real_code, fake_code = encode_mixed(model.encoder, real, fake, batch_mix)
    real_score = model.score(real_code)
    fake_score = model.score(fake_code)
    distance = (real - fake.detach()).square().flatten(1).mean(1)
    loss_latent = rho_weight * latent_loss(latent, z, fake_code)
    loss_e = critic_loss(gan, real_score, fake_score, distance)
    loss_g = generator_loss(gan, real_score.detach(), fake_score)
    losses = {"loss_e": loss_e, "loss_g": loss_g, "loss_latent": loss_latent}
    if decorrelation:
        losses["loss_decorrelation"] = decorrelation * decorrelation_loss(standardise(real_code))
        loss_e = loss_e + losses["loss_decorrelation"]

    # One forward pass serves both players; each gradient is taken for its own player's weights, and
    # both step at once.
    e_optimizer.zero_grad()
    g_optimizer.zero_grad()
    (loss_e + loss_latent).backward(inputs=model.e_parameters(), retain_graph=True)
    (loss_g + rho_generator * loss_latent).backward(inputs=model.g_parameters())
    e_optimizer.step()
    g_optimizer.step()
    return {name: loss.detach() for name, loss in losses.items()}


# ---------------------------------------------------------------- networks


class OGAN(nn.Module):
    """Generator and encoder, which is the discriminator, for images of `shape` (C, H, W), H and W
    multiples of 4.

    Images are (N, C, H, W) in [0, 1] in and out; `generator` and `encoder` themselves work in
    [-1, 1]. Latents are (N, latent). `width` is the channels of the first convolution, `critic`
    "avg" or "network" (T), `truncation` what `reconstruct` and `interpolate` scale N(E(x)) by.
    Errors: InputError for sizes that do not fit.
    """

    def __init__(self, shape=(1, 28, 28), latent=32, width=32, critic="avg", truncation=0.9):
        super().__init__()
        if latent < 2 or critic not in ("avg", "network"):
            raise common.InputError(f"latent is {latent}, critic {critic!r}; expected 2 latent "
                                    "variables or more, to correlate, and avg or network")
        self.shape = tuple(shape)
        self.latent = latent
        self.truncation = truncation
        self.options = {"shape": self.shape, "latent": latent, "width": width, "critic": critic,
                        "truncation": truncation}                   # for `save`
        self.generator = common.convolutional_generator(latent, shape, width, nn.Tanh())
        self.encoder = nn.Sequential(common.convolutional_trunk(shape, width, slope=0.2),
                                     nn.Linear(16 * width, latent), common.Float32())
        self.critic = None
        if critic == "network":
            self.critic = nn.Sequential(nn.Linear(latent, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))

    def forward(self, images):
        """E: images (N, C, H, W) in [0, 1] to codes (N, latent), not standardised."""
        return self.encoder(2 * common.prepare(images, self) - 1)

    def score(self, code):
        """The critic: E(x) (N, latent) to (N,), low for real images."""
        if self.critic is not None:
            return self.critic(code).flatten()
        return code.mean(1)

    def g_parameters(self):
        """The weights of G, for its optimiser."""
        return list(self.generator.parameters())

    def e_parameters(self):
        """The weights of E (and T), for their optimiser."""
        named = self.named_parameters()
        return [weight for name, weight in named if not name.startswith("generator.")]

    def to_latent(self, code):
        """The latents that E's codes (N, latent) stand for: N(E(x))."""
        return standardise(code)

    def sample_latent(self, n, generator=None):
        """n latents from the prior N(0, I) on the model's device, by a torch.Generator if given."""
        like = next(self.parameters())
        return torch.randn(n, self.latent, device=like.device, generator=generator).to(like.dtype)

    def sample(self, n, generator=None):
        """n new images (n, C, H, W) in [0, 1]."""
        return self.decode(self.sample_latent(n, generator))

    def decode(self, latent):
        """G in eval mode: latents (N, latent) to images (N, C, H, W) in [0, 1]."""
        return common.generate(self, latent) / 2 + 0.5

    def encode(self, images):
        """N(E(x)) in eval mode: images (N, C, H, W), in [0, 1] or uint8, to latents (N, latent)."""
        return self.to_latent(common.evaluate(self, images, self))

    def reconstruct(self, images):
        """G(truncation N(E(x))), images (N, C, H, W) in [0, 1], of images in [0, 1] or uint8."""
        return self.decode(self.truncation * self.encode(images))

    def interpolate(self, a, b, steps=10):
        """Frames (steps, C, H, W) between the reconstructions of two images (C, H, W)."""
        start, end = self.encode(torch.stack([a, b]))
        t = torch.linspace(0, 1, steps, device=start.device)[:, None]
        return self.decode(self.truncation * self.to_latent(start + t * (end - start)))

    def save(self, path, **optimizers):
        """Write weights and options, and optimisers by name (e=..., g=...) if any, for `load`."""
        common.save_model(self, "ogan", path, **optimizers)

    @classmethod
    def load(cls, path, device="cpu"):
        """The model in a run folder or saved file, float32 in eval mode; InputError if none."""
        return common.load_model(cls, "ogan", path, device)


# ---------------------------------------------------------------- configuration


@dataclass
class Config(common.RunConfig):
    """The options of a run, for `train` and as flags; `Config.paper()` has them as published."""
    epochs: int = common.option(10, "epochs in all; 0 only evaluates")
    batch_size: int = common.option(64, "images in a training step", low=2)
    latent: int = common.option(32, "latent variables, z ~ N(0, I)", low=2)
    rho_weight: float = common.option(2.0, "lambda, the weight of the latent loss")
    rho_generator: float = common.option(0.2, "the fraction of the latent loss that G minimises")
    critic: str = common.option("avg", "an image's score: avg E(x), or a small network T(E(x))",
                                choices=["avg", "network"])
    latent_loss: str = common.option(
        "pearson", "what E(G(z)) should do: correlate with z, equal it, or neither",
        choices=LATENT_LOSSES)
    gan_loss: str = common.option("qp", "the GAN", choices=GAN_LOSSES)
    truncation: float = common.option(0.9, "scale of N(E(x)) in reconstruct and interpolate")
    codes: float = common.option(0.45, "share of the latents that are codes of real images", high=1)
    decorrelation: float = common.option(0.4, "weight of the decorrelation of real images' codes")
    batch_mix: float = common.option(0.25, "share that E's batches of real images and fakes swap",
                                     high=0.5)
    init: str = common.option("torch", "initial weights: torch's own, or normal, N(0, 0.02)",
                              choices=["torch", "normal"])
    optimizer: str = common.option("adam", "adam (betas 0.5 and 0.999) or rmsprop (alpha 0.99)",
                                   choices=["adam", "rmsprop"])
    lr_encoder: float = common.option(5e-4, "the optimiser's rate for E (and T)")
    lr_generator: float = common.option(1e-3, "the optimiser's rate for G")
    average: float = common.option(0.999, "decay of the moving average that samples and encodes",
                                   high=0.99999)

    PAPER = {"epochs": 5, "width": 64, "latent": 128, "rho_weight": 0.5, "rho_generator": 1.0,
             "truncation": 1.0, "codes": 0.0, "decorrelation": 0.0, "batch_mix": 0.0,
             "init": "normal", "optimizer": "rmsprop", "lr_encoder": 1e-4, "lr_generator": 1e-4,
             "average": 0.0}

    def __post_init__(self):
        super().__post_init__()
        if not self.truncation:
            raise common.InputError("--truncation is 0, which makes all reconstructions one image; "
                                    "expected a positive number, 1 for none")
        if self.latent_loss == "none":
            self.refuse_idle("with --latent-loss none", "rho_weight", "rho_generator")


# ---------------------------------------------------------------- scores, pictures, training


def scores(model, data, samples=10_000, judge=None):
    """Scores on the test images and on fresh samples, as many as `samples` and training images
    allow; results/README.md has the keys. Those that need `judge` are there with one only."""
    seeded = torch.Generator(data.images.device).manual_seed(0)
    latent = model.sample_latent(min(samples, len(data.images)), seeded)
    codes, features = common.evaluate_samples(model, latent, model, judge)
    rho = pearson_correlation(latent, codes).mean()

    mean_image = common.in_batches(lambda part: part.sum(0, keepdim=True), data.images).sum(0)
    mean_image = mean_image / len(data.images)
    codes, errors, of_mean, same = [], [], [], []
    for part in data.test_images.split(common.batch_for(model.shape)):
        images = part.float() / 255
        codes.append(common.evaluate(model, images, model))        # E(x)
        again = model.decode(model.truncation * model.to_latent(codes[-1]))
        errors.append((again - images).square().sum())
        of_mean.append((mean_image - images).square().sum())
        if judge is not None and judge.task == "classes":
            same.append(judge(again).argmax(1) == judge(images).argmax(1))
    codes = torch.cat(codes)
    result = {"rho": float(rho), "reconstruction_error": float(sum(errors) / sum(of_mean)),
              "avg_real": float(codes.mean()), "std_real": float(codes.std(1, correction=0).mean())}
    if judge is not None:
        result |= judge.scores(data, features)
    if same:
        result["agreement"] = float(torch.cat(same).float().mean())
        result |= common.encoding_scores(model.encode(data.images), data.labels,
                                         model.to_latent(codes), data.test_labels)
    return result


def figures(model, data):
    """What a run shows, name -> (picture, caption), of the same latents and images each time."""
    seeded = torch.Generator(data.images.device).manual_seed(1)
    samples = model.decode(model.sample_latent(100, seeded))
    images = data.test_images[:50].float() / 255
    rows = []
    for row in images.split(10):
        rows += [row, model.reconstruct(row)]
    paths = []
    for i in range(min(8, len(images))):
        paths.append(model.interpolate(images[i], images[(i + 1) % len(images)]))
    columns = min(10, len(images))
    return {"samples": (common.grid(samples, 10), "Samples."),
            "reconstruction": (common.grid(torch.cat(rows), columns),
                               "Test images, and under each its reconstruction."),
            "interpolation": (common.grid(torch.cat(paths), 10),
                              "From the reconstruction of one test image to that of the next.")}


def train(config):
    """Train as `config` says, or go on with config.resume; returns the model that samples and
    encodes (the moving average, where there is one), in eval mode, and the Run."""
    config, device, data = common.start(config, "ogan")
    model = OGAN(data.shape, config.latent, config.width, config.critic, config.truncation)
    if config.init == "normal":
        model.apply(common.initialise)
    model.to(device).train()
    average = common.MovingAverage(model, config.average)
    e_optimizer = common.optimizer(model.e_parameters(), config.lr_encoder, config.optimizer)
    g_optimizer = common.optimizer(model.g_parameters(), config.lr_generator, config.optimizer)
    autocast = common.autocast(device, config.precision)

    def step(real):
        losses = training_step(
            model, e_optimizer, g_optimizer, real, config.gan_loss, config.latent_loss,
            config.rho_weight, config.rho_generator, config.codes, config.decorrelation,
            config.batch_mix, autocast)
        average.update(model)
        return losses

    run = common.Run("ogan", config, data, model, average, {"e": e_optimizer, "g": g_optimizer},
                     lambda: figures(average.model, data))
    captured_step = common.Captured(step)
    for _ in run.epochs():
        for real in run.batches():
            run.log(captured_step(real))
        run.end_epoch(lambda: scores(average.model, data, config.samples))
    run.end(lambda: scores(average.model, data, config.samples, common.Judge.for_data(data)))
    return average.model.eval(), run


def main(argv=None):
    common.command_line(train, Config, "ogan", __doc__, argv)


if __name__ == "__main__":
    main()
