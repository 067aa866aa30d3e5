# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6"]
# ///
"""O-GAN: a GAN whose discriminator is an encoder, made so by one correlation term.

Su 2019, arXiv 1903.01931.

The critic of a GAN gives one number for each image. Here the discriminator E gives a vector E(x):
its mean over the coordinates is that number, and its shape, once mean and deviation are taken out,
should be the latent that the image came from. avg, std and the standardised rest are functionally
independent of one another, so E has room for both; what they cost each other in training is
measured in results/README.md.

    N(v) = (v - avg v) / std v,   rho(u, v) = avg(N(u) N(v))     over one sample's coordinates
    E minimises   avg E(x) - avg E(G(z)) + R - lambda rho(z, E(G(z)))
    G minimises   avg E(G(z)) - lambda rho(z, E(G(z)))
    R = [avg E(x) - avg E(G(z))]^2 / (4 |x - G(z)|^2), mean over pixels         GAN-QP
    encode: N(E(x)),   reconstruct: G(N(E(x)))

A low score means real, a high one fake: the opposite of most repositories. std is the population's.
Why correlation and not squared error: |N(z) - N(E(G(z)))|^2 = 2 n (1 - rho), so rho is the squared
error with mean and std left free. Plain squared error pins all n coordinates of E(G(z)), the mean
too: a fake scores as z would, whatever G makes of it.

--recipe paper trains so, with the settings of the author's code but for its truncation (N(E(x))
times 0.9 before G), on networks for MNIST. The default differs by these flags, measured in
results/README.md:

    --rho-weight 2       lambda, for 0.5
    --rho-generator 0    the fraction of lambda rho that G maximises, for 1: E alone learns it
    --latent 0           latent variables: 32 for grey images, 64 for others, for 128
    --codes 0.8          the share of z that are codes N(E(x)) of real images, for none
    --reconstruction 3   G minimises the squared error of these images' reconstructions, for none
    --batch-mix 0.25     the share that E's batches of real images and of fakes swap, for none
    --components 100     samples are drawn from so many Gaussians fitted to the codes, not N(0, I)
    --optimizer adam     at 5e-4 for E and 1e-3 for G, for RMSprop at 1e-4
    --init torch         torch's initial weights, for N(0, 0.02)
    --average 0.999      moving averages of all weights sample and encode
    --width 32           half the channels, for a laptop

    python ogan.py         # MNIST: 98.7 % of the reconstructions keep the digit (n = 5), 5 minutes

    from ogan import OGAN
    model = OGAN.load("runs/ogan-1")
    z = model.encode(images)                          # images (N, 1, 28, 28) in [0, 1] -> (N, 32)
    again = model.reconstruct(images)                 # (N, 1, 28, 28) in [0, 1]
    frames = model.interpolate(images[0], images[1], steps=10)                # (10, 1, 28, 28)
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

if __package__:       # in a package of yours: mypkg/ogan.py beside mypkg/common.py
    from . import common
else:                 # as a script, or from its own folder
    import common

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Config", "OGAN", "pearson_correlation", "standardise", "train", "training_step"]

# ---------------------------------------------------------------- losses and the training step

def standardise(v: Tensor) -> Tensor:
    """N(v) = (v - avg v) / std v over the last dimension, population std; 0 for a constant v."""
    v = v - v.mean(-1, keepdim=True)
    return v / v.square().mean(-1, keepdim=True).clamp(min=1e-12).sqrt()


def pearson_correlation(u: Tensor, v: Tensor) -> Tensor:
    """rho(u, v) = avg(N(u) N(v)), (N, n) and (N, n) to (N,) in [-1, 1]; 0 where one is constant."""
    return (standardise(u) * standardise(v)).mean(-1)


def gan_qp_loss(real: Tensor, fake: Tensor, distance: Tensor) -> Tensor:
    """avg E(x) - avg E(G(z)) + R, for E, from the scores of real and fake images and the mean
    squared pixel distance of each pair, in [-1, 1]; (N,) thrice. R's 1/4 is the author's code's;
    ours is the least distance, one of 255 levels a pixel."""
    return (real - fake + (real - fake) ** 2 / (4 * distance.clamp(min=6e-5))).mean()


def training_step(model: "OGAN", e_optimizer: Optimizer, g_optimizer: Optimizer, real: Tensor, *,
                  gan_loss="qp", latent_loss="pearson", rho_weight=2.0, rho_generator=0.0,
                  codes=0.8, reconstruction=3.0, batch_mix=0.25,
                  autocast=contextlib.nullcontext()) -> dict[str, Tensor]:
    """One joint update of E (the discriminator) and G on images (N, C, H, W), uint8 or in [0, 1].

    The options are Config's; `autocast` is entered for the forward pass. Returns detached scalars:
    loss_e, loss_g and, weighted, loss_latent, of which G minimises the fraction rho_generator, and
    where it is taken loss_reconstruction, G's; the mean scores e_real and e_fake.
    Errors: InputError for images of another shape or type, or an unknown loss.
    """
    e_loss, g_loss = chosen(GAN_LOSSES, gan_loss)
    tie = chosen(LATENT_LOSSES, latent_loss)
    real = 2 * model.training_batch(real) - 1                                           # in [-1, 1]
    z = model.sample_latent(len(real))
    given = round(codes * len(real))
    with autocast:
        if given > 1:                               # batch normalisation wants more than one
            z[:given] = standardise(model.encoder(real[:given]).detach())
        fake = model.generator(z)                                               # in [-1, 1]
        real_code, fake_code = common.mixed(model.encoder, real, fake, batch_mix)
    real_score = model.score(real_code)
    fake_score = model.score(fake_code)
    distance = (real - fake.detach()).square().flatten(1).mean(1)
    loss_latent = rho_weight * tie(z, fake_code)
    loss_e = e_loss(real_score, fake_score, distance)
    loss_g = g_loss(real_score.detach(), fake_score)
    losses = {"loss_e": loss_e, "loss_g": loss_g, "loss_latent": loss_latent,
              "e_real": real_score.mean(), "e_fake": fake_score.mean()}
    if reconstruction > 0 and given > 1:            # G(N(E(x))) is to be x
        squared = (fake[:given] - real[:given]).square().mean()
        losses["loss_reconstruction"] = reconstruction * squared
        loss_g = loss_g + losses["loss_reconstruction"]

    # Each player's gradient is taken for its own weights; then both step at once.
    e_optimizer.zero_grad()
    g_optimizer.zero_grad()
    (loss_e + loss_latent).backward(inputs=model.e_parameters(), retain_graph=True)
    (loss_g + rho_generator * loss_latent).backward(inputs=model.g_parameters())
    e_optimizer.step()
    g_optimizer.step()
    return {name: value.detach() for name, value in losses.items()}


# ---------------------------------------------------------------- networks

class OGAN(common.Model):
    """Generator and encoder, which is the discriminator, for images of `shape` (C, H, W).

    Images are (N, C, H, W) in [0, 1] in and out; `generator` and `encoder` themselves work in
    [-1, 1]. z is (N, latent), with 0 (N, 32) for images of one channel, else (N, 64). `width` is
    the channels of the first convolution, `critic` "avg" or "network" (T), `components` the size of
    the mixture that `sample` takes z from, 0 for N(0, I).
    Errors: InputError for sizes that do not fit.
    """
    METHOD = "ogan"

    def __init__(self, shape: Sequence[int] = (1, 28, 28), latent: int = 0, width: int = 32,
                 critic: str = "avg", components: int = 100):
        if latent == 0:
            latent = 32 if shape[0] == 1 else 64
        super().__init__(shape=tuple(shape), latent=latent, width=width, critic=critic,
                         components=components)
        if latent < 2 or components < 0 or critic not in ("avg", "network"):
            raise common.InputError(f"latent is {latent}, components {components}, critic "
                                    f"{critic!r}; expected 2 or more, to correlate, 0 or more, and "
                                    "avg or network")
        self.latent_size = latent
        self.generator = common.convolutional_generator(latent, shape, width, nn.Tanh())
        self.encoder = nn.Sequential(common.convolutional_trunk(shape, width, slope=0.2),
                                     nn.Linear(16 * width, latent), common.Float32())
        self.critic = None
        if critic == "network":
            self.critic = nn.Sequential(nn.Linear(latent, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
        # the mixture that `sample` draws from; until `fit_mixture` all components are N(0, I)
        self.register_buffer("weights", torch.full((components,), 1 / max(1, components)))
        self.register_buffer("means", torch.zeros(components, latent))
        self.register_buffer("roots", torch.eye(latent).repeat(components, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """E: images (N, C, H, W) in [0, 1] to codes (N, latent), not standardised."""
        return self.encoder(2 * self.floats(images) - 1)

    def score(self, code: Tensor) -> Tensor:
        """The critic: E(x) (N, latent) to (N,), low for real images."""
        return code.mean(1) if self.critic is None else self.critic(code).flatten()

    e_parameters = common.Model.other_parameters             # those of E (and T)

    def to_latent(self, code: Tensor) -> Tensor:
        """The z that E's codes (N, latent) stand for: N(E(x))."""
        return standardise(code)

    def sample_latent(self, n: int, rng: torch.Generator | None = None, fitted=False) -> Tensor:
        """n of z ~ N(0, I), (n, latent), on the model's device, or if `fitted` from the mixture;
        rng in place of torch's numbers."""
        z = torch.randn(n, self.latent, device=self.device, generator=rng)
        if fitted and self.components and n:
            of = torch.multinomial(self.weights.float(), n, replacement=True, generator=rng)
            for i in range(self.components):          # not all at once: roots are (latent, latent)
                z[of == i] = self.means[i].float() + z[of == i] @ self.roots[i].float().T
        return z.to(next(self.parameters()))

    def fit_mixture(self, images: Tensor, most: int = 20_000) -> None:
        """Fit the mixture to the codes of up to `most` of these images (N, C, H, W), evenly spaced:
        a Gaussian for every 200; of fewer it is N(0, I). A moving average forgets it as it goes on:
        fit it last. (Ex-post density estimation, Ghosh et al. 2020.)"""
        if self.components == 0:
            return
        z = self.encode(images[::max(1, -(-len(images) // most))])
        count = min(self.components, len(z) // 200)
        self.means.zero_()
        self.roots.copy_(torch.eye(self.latent))
        if count > 0:
            weights, means, roots = common.gaussian_mixture(z, count)
            self.weights.copy_(F.pad(weights, (0, self.components - count)))
            self.means[:count] = means.to(self.means)
            self.roots[:count] = roots.to(self.roots)

    def sample(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """n new images (n, C, H, W) in [0, 1], of z from the mixture."""
        return self.decode(self.sample_latent(n, rng, fitted=True))

    def decode(self, z: Tensor) -> Tensor:
        """G in eval mode: z (N, latent) to images (N, C, H, W) in [0, 1]."""
        return super().decode(z) / 2 + 0.5

    def encode(self, images: Tensor) -> Tensor:
        """N(E(x)) in eval mode: images (N, C, H, W), in [0, 1] or uint8, to z (N, latent)."""
        return self.to_latent(self.evaluate(self, images))

    def reconstruct(self, images: Tensor) -> Tensor:
        """G(N(E(x))), images (N, C, H, W) in [0, 1], of images in [0, 1] or uint8."""
        return self.decode(self.encode(images))

    def interpolate(self, a: Tensor, b: Tensor, steps: int = 10) -> Tensor:
        """Frames (steps, C, H, W) between the reconstructions of two images (C, H, W)."""
        start, end = self.encode(torch.stack([a, b]))
        t = torch.linspace(0, 1, steps, device=start.device)[:, None]
        return self.decode(self.to_latent(start + t * (end - start)))


# ---------------------------------------------------------------- beyond the paper

# Most GANs are one scheme: a loss of the scores of real and fake images for E, and one for G.
GAN_LOSSES = {
    "qp":                 # Su 2018
        (gan_qp_loss,
         lambda real, fake: fake.mean()),
    "wasserstein":        # Arjovsky et al. 2017, the bare loss
        (lambda real, fake, _: (real - fake).mean(),
         lambda real, fake: fake.mean()),
    "nonsaturating":      # Goodfellow et al. 2014
        (lambda real, fake, _: (F.softplus(real) + F.softplus(-fake)).mean(),
         lambda real, fake: F.softplus(fake).mean()),
    "hinge":              # Lim and Ye 2017
        (lambda real, fake, _: (F.relu(1 + real) + F.relu(1 - fake)).mean(),
         lambda real, fake: fake.mean()),
    "leastsquares":       # Mao et al. 2017
        (lambda real, fake, _: ((real + 1) ** 2 + (fake - 1) ** 2).mean(),
         lambda real, fake: ((fake + 1) ** 2).mean()),
    "relativistic":       # Jolicoeur-Martineau 2019
        (lambda real, fake, _: F.softplus(real - fake).mean(),
         lambda real, fake: F.softplus(fake - real).mean()),
}
# What ties E(G(z)) to z, both (N, n).
LATENT_LOSSES = {
    "pearson": lambda z, code: -pearson_correlation(z, code).mean(),
    "mse": lambda z, code: F.mse_loss(code, z),
    "none": lambda z, code: code.new_zeros(()),
}


def chosen(losses, name):
    """The loss of that name; InputError if there is none."""
    if name not in losses:
        raise common.InputError(f"{name!r} is unknown; choose from {', '.join(losses)}")
    return losses[name]


# ---------------------------------------------------------------- configuration

@dataclass
class Config(common.RunConfig):
    """The options of a run, for `train` and as flags; `Config.paper()` has them as published."""
    updates: int = common.option(4_690, "about so many training steps, where --epochs is not given",
                                 low=1)
    batch_size: int = common.option(64, "images in a training step", low=2)
    latent: int = common.option(0, "latent variables; 0: 32 for grey images, 64 for others")
    rho_weight: float = common.option(2.0, "lambda, the weight of the latent loss")
    rho_generator: float = common.option(0.0, "the fraction of the latent loss that G minimises")
    critic: str = common.option("avg", "an image's score: avg E(x), or a small network T(E(x))",
                                choices=["avg", "network"])
    latent_loss: str = common.option(
        "pearson", "what E(G(z)) should do: correlate with z, equal it, or neither",
        choices=list(LATENT_LOSSES))
    gan_loss: str = common.option("qp", "the GAN", choices=list(GAN_LOSSES))
    components: int = common.option(100, "Gaussians fitted to the codes of training images, from "
                                    "which samples are drawn; 0: N(0, I)", high=1000)
    codes: float = common.option(0.8, "share of z that are codes of real images", high=1)
    reconstruction: float = common.option(3.0, "weight, for G, of the squared error of the images "
                                          "that these codes are of")
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

    METHOD = "ogan"
    PAPER = {"epochs": 5, "width": 64, "latent": 128, "rho_weight": 0.5, "rho_generator": 1.0,
             "components": 0, "codes": 0.0, "reconstruction": 0.0, "batch_mix": 0.0,
             "init": "normal", "optimizer": "rmsprop", "lr_encoder": 1e-4, "lr_generator": 1e-4,
             "average": 0.0}

    def __post_init__(self):
        super().__post_init__()
        if self.latent == 1:
            raise common.InputError("--latent is 1; expected 2 or more, to correlate, or 0")


# ---------------------------------------------------------------- scores, pictures, training

def scores(model: OGAN, data: common.Data, samples=10_000, judge=None) -> dict:
    """Scores on the test images and on fresh samples, as many as `samples` and training images
    allow; results/README.md has the keys. Those that need `judge` are there with one only."""
    rng = torch.Generator(model.device).manual_seed(0)
    z = model.sample_latent(min(samples, len(data.images)), rng)
    size = common.batch_for(model.shape)
    read = common.in_batches(lambda part: model.evaluate(model, model.decode(part)), z, size)
    mean_image = common.in_batches(lambda part: part.sum(0, keepdim=True), data.images).sum(0)
    mean_image = mean_image / len(data.images)
    codes, errors, of_mean, same = [], [], [], []
    for part in data.test_images.split(size):
        images = common.floats(part)
        codes.append(model.evaluate(model, images))                # E(x)
        again = model.decode(model.to_latent(codes[-1]))
        errors.append((again - images).square().sum())
        of_mean.append((mean_image - images).square().sum())
        if judge is not None and judge.task == "classes":
            same.append(judge(again).argmax(1) == judge(images).argmax(1))
    codes = torch.cat(codes)
    result = {"rho": float(pearson_correlation(z, read).mean()),
              "reconstruction_error": float(sum(errors) / sum(of_mean)),
              "avg_real": float(codes.mean()), "std_real": float(codes.std(1, correction=0).mean())}
    if judge is not None:
        latent = model.sample_latent(len(z), rng, fitted=True)
        result |= judge.scores(data, model, latent)
    if same:
        result["agreement"] = float(torch.cat(same).float().mean())
        train = common.labelled(model.encode(data.images), data.labels)
        test = common.labelled(model.to_latent(codes), data.test_labels)
        result |= common.encoding_scores(*train, *test)
    return result


def figures(model: OGAN, data: common.Data) -> dict:
    """What a run shows, name -> common.Figure, of the same z and images each time: samples,
    reconstructions, interpolations; to move between two test images, and to move one's code along
    the directions in which codes of test images vary most."""
    samples = model.sample(100, torch.Generator(model.device).manual_seed(1))
    images = common.floats(data.test_images[:50])
    columns = min(10, len(images))
    images = images[:len(images) // columns * columns]              # whole rows
    rows = []
    for row in images.split(columns):
        rows += [row, model.reconstruct(row)]
    paths = [model.interpolate(images[i], images[(i + 1) % len(images)])
             for i in range(min(8, len(images)))]
    steps = torch.linspace(-1, 1, 9, device=model.device)[:, None]
    z = model.encode(data.test_images[:1000])
    spread, axes = torch.linalg.eigh(torch.cov(z.T, correction=0))  # the last varies most
    count = min(4, model.latent)
    ways = (2 * spread.clamp(min=0).sqrt() * axes).T[-count:].flip(0)
    moved = (z[:8, None, None] + steps * ways[:, None]).flatten(0, 2)
    sheet = model.decode(model.to_latent(moved))
    sliders = {"image": [str(i + 1) for i in range(len(z[:8]))],
               "direction": [str(i + 1) for i in range(count)],
               "by": [f"{2 * step:g}" for step in steps.flatten().tolist()]}
    between = {"images": [f"{i + 1} and {(i + 1) % len(images) + 1}" for i in range(len(paths))],
               "step": [str(step) for step in range(10)]}
    return {
        "between": common.Figure(common.sheet(torch.cat(paths), 10), "Move from the reconstruction "
                                 "of one test image to that of another.", sliders=between),
        "directions": common.Figure(
            common.sheet(sheet, 9), "Move a test image's code, by deviations, along the directions "
            "in which codes vary most.", sliders=sliders),
        "samples": common.Figure(common.grid(samples, 10), "Samples."),
        "reconstruction": common.Figure(
            common.grid(torch.cat(rows), columns),
            "Test images, and under each its reconstruction."),
        "interpolation": common.Figure(
            common.grid(torch.cat(paths), 10),
            "From the reconstruction of one test image to that of the next.")}


def train(config: Config) -> tuple[OGAN, common.Run]:
    """Train as `config` says, or go on as Config.resumed(..) does; returns the model that samples
    and encodes (the moving average), in eval mode, and the Run. Errors: InputError."""
    run = common.Run(config)
    config = run.config
    model = OGAN(run.data.shape, **config.arguments(OGAN))
    if config.init == "normal":
        model.apply(common.initialise)
    model.to(run.device).train()
    average = common.MovingAverage(model, config.average)
    e_optimizer = common.optimizer(model.e_parameters(), config.lr_encoder, config.optimizer)
    g_optimizer = common.optimizer(model.g_parameters(), config.lr_generator, config.optimizer)
    autocast = common.autocast(run.device, config.precision)
    run.restore(model=model, average=average, e=e_optimizer, g=g_optimizer)
    options = config.arguments(training_step)

    def step(real):
        losses = training_step(model, e_optimizer, g_optimizer, real, autocast=autocast, **options)
        average.update(model)
        return losses

    shown = figures(average.model, run.data)
    if run.is_new:
        run.report({}, shown)
    step = common.Captured(step)
    for _ in run.epochs():
        for real in run.batches():
            run.log(step(real))
        average.model.fit_mixture(run.data.images)
        shown = figures(average.model, run.data)
        run.report(scores(average.model, run.data, config.samples), shown,
                   best="reconstruction_error")
    judge = common.Judge.for_data(run.data)
    run.report(scores(average.model, run.data, config.samples, judge), shown)
    return average.model.eval().requires_grad_(), run


def main(argv=None):
    common.command_line(train, Config, __doc__, argv)


if __name__ == "__main__":
    main()
