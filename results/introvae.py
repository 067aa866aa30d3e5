"""IntroVAE, the baseline: a VAE whose encoder is the discriminator, by the size of its KL term.

Huang, Li, He, Sun and Tan 2018, arXiv 1807.06358; --form soft is Soft-IntroVAE, Daniel and Tamar
2021, arXiv 2012.13253; --form vae is the plain VAE, Kingma and Welling 2014, arXiv 1312.6114.

    KL(x) = KL(q(z|x) || N(0, I)) in nats, q(z|x) = N(mean, std^2) from E;  AE = 1/2 |x - x_r|^2
    x_r = G(z), z ~ q(z|x);  x_p = G(z_p), z_p ~ N(0, I)
    E minimises   KL(x) + alpha ([m - KL(x_r)]+ + [m - KL(x_p)]+) + beta AE
    G minimises   alpha (KL(x_r) + KL(x_p)) + beta AE                 (Algorithm 1; E first, then G)

Both forms begin with --vae-epochs of plain VAE, as the paper does "for numerical stability". The
networks, data, scores and run folders are those of ogan.py.

    python results/introvae.py --epochs 10
"""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common
import ogan
import torch
import torch.nn.functional as F
from torch import nn

FORMS = ["introvae", "soft", "vae"]


def divergence(mean, log_variance):
    """KL(N(mean, std^2) || N(0, I)) in nats: (N, n) and (N, n) to (N,)."""
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)


def squared_error(a, b):
    """1/2 |a - b|^2, summed over pixels: images (N, C, H, W) to (N,)."""
    return 0.5 * (a - b).square().flatten(1).sum(1)


def training_step(model, e_optimizer, g_optimizer, real, *, form="introvae", alpha=0.25,
                  margin=30.0, beta=5.0, beta_negative=30.0, autocast=contextlib.nullcontext()):
    """One update of E, then one of G, on images (N, C, H, W), uint8 or in [0, 1]; returns detached
    scalars: loss_e, loss_g and their parts kl_real, kl_fake (of samples) and loss_ae."""
    real = 2 * model.training_batch(real) - 1
    prior = model.sample_latent(len(real))
    scale = 1 / real[0].numel()                       # Soft-IntroVAE's s

    def encode(images):
        with autocast:
            return model.posterior(images)

    def decode(latent):
        with autocast:
            return model.generator(latent)

    # (1) E: small KL for real images, large for reconstructions and samples
    mean, log_variance = encode(real)
    kl_real = divergence(mean, log_variance)
    latent = model.draw(mean, log_variance)
    again = decode(latent)
    loss_ae = squared_error(real, again)
    loss_e = kl_real + beta * loss_ae
    if form != "vae":
        again, sample = decode(latent.detach()), decode(prior)
        fakes = [again.detach(), sample.detach()]
        if form == "introvae":
            loss_e = loss_e + alpha * sum(F.relu(margin - divergence(*encode(x))) for x in fakes)
        else:
            loss_e = scale * loss_e
            for x in fakes:
                moments = encode(x)
                error = squared_error(x, decode(model.draw(*moments)))
                bound = beta * error + beta_negative * divergence(*moments)
                loss_e = loss_e + 0.25 * (-2 * scale * bound).exp()
    if form == "vae":
        loss = loss_e.mean()
        e_optimizer.zero_grad()
        g_optimizer.zero_grad()
        loss.backward()
        e_optimizer.step()
        g_optimizer.step()
        parts = {"loss_e": loss, "loss_g": loss, "kl_real": kl_real, "loss_ae": loss_ae}
        return {name: part.mean().detach() for name, part in parts.items()}
    e_optimizer.zero_grad()
    loss_e.mean().backward(inputs=model.e_parameters())
    e_optimizer.step()

    # (2) G: small KL for them too
    loss_ae = squared_error(real, again)
    kl_again, kl_fake = divergence(*encode(again)), divergence(*encode(sample))
    if form == "introvae":
        loss_g = alpha * (kl_again + kl_fake) + beta * loss_ae
    else:
        loss_g = scale * (0.5 * (kl_again + kl_fake) + beta * loss_ae)
    g_optimizer.zero_grad()
    loss_g.mean().backward(inputs=model.g_parameters())
    g_optimizer.step()
    parts = {"loss_e": loss_e, "loss_g": loss_g, "kl_real": kl_real, "kl_fake": kl_fake,
             "loss_ae": loss_ae}
    return {name: part.mean().detach() for name, part in parts.items()}


class IntroVAE(ogan.OGAN):
    """OGAN's networks and mixture; E gives mean and log variance, and the mean is the code."""
    METHOD = "introvae"

    def __init__(self, shape=(1, 28, 28), latent=32, width=32):
        super().__init__(shape, latent, width)
        self.options = {"shape": self.shape, "latent": latent, "width": width}
        self.encoder[1] = nn.Linear(16 * width, 2 * latent)

    def posterior(self, images):
        """Mean and log variance, (N, latent) and (N, latent), of images in [-1, 1]."""
        return self.encoder(images).chunk(2, dim=1)

    def draw(self, mean, log_variance):
        """A latent from each N(mean, std^2)."""
        return mean + (log_variance / 2).exp() * torch.randn_like(mean)

    def forward(self, images):
        """The posterior's mean: images (N, C, H, W) in [0, 1] to (N, latent)."""
        return self.posterior(2 * self.floats(images) - 1)[0]

    def to_latent(self, code):
        return code


@dataclass
class Config(common.RunConfig):
    """The options of a run."""
    batch_size: int = common.option(64, "images in a training step", low=2)
    latent: int = common.option(32, "latent variables, z ~ N(0, I)", low=2)
    form: str = common.option("introvae", "the losses", choices=FORMS)
    vae_epochs: int = common.option(1, "epochs of plain VAE first, 100 updates or more")
    alpha: float = common.option(0.25, "weight of the adversarial terms")
    margin: float = common.option(30.0, "m, above which KL of fakes is large enough, in nats")
    beta: float = common.option(5.0, "weight of the reconstruction error against KL")
    beta_negative: float = common.option(30.0, "weight of the KL of fakes, with --form soft")
    lr_encoder: float = common.option(5e-4, "Adam's rate for E")
    lr_generator: float = common.option(1e-3, "Adam's rate for G")
    average: float = common.option(0.998, "decay of the moving average that samples and encodes",
                                   high=0.99999)

    METHOD = "introvae"


def scores(model, data, samples=10_000, judge=None):
    """`ogan.scores`, without what says something of a critic alone."""
    result = ogan.scores(model, data, samples, judge)
    del result["avg_real"], result["std_real"]
    return result


def rounds(run, average, step_of):
    """The run around `step_of(epoch)`, a captured training step; returns the model and the Run."""
    shown = ogan.figures(average.model, run.data)
    if run.is_new:
        run.report({}, shown)
    for epoch in run.epochs():
        step = step_of(epoch)
        for real in run.batches():
            run.log(step(real))
        average.model.fit_mixture(run.data.images)
        shown = ogan.figures(average.model, run.data)
        run.report(scores(average.model, run.data, run.config.samples), shown)
    judge = common.Judge.for_data(run.data)
    run.report(scores(average.model, run.data, run.config.samples, judge), shown)
    return average.model.eval(), run


def train(config):
    """Train as `config` says; returns the model and the Run."""
    run = common.Run(config)
    config = run.config
    model = IntroVAE(run.data.shape, config.latent, config.width).to(run.device).train()
    average = common.MovingAverage(model, config.average)
    e_optimizer = common.optimizer(model.e_parameters(), config.lr_encoder)
    g_optimizer = common.optimizer(model.g_parameters(), config.lr_generator)
    autocast = common.autocast(run.device, config.precision)
    run.restore(model=model, average=average, e=e_optimizer, g=g_optimizer)

    def step_of(form):
        given = config.arguments(training_step) | {"form": form, "autocast": autocast}

        def step(real):
            losses = training_step(model, e_optimizer, g_optimizer, real, **given)
            average.update(model)
            return losses
        return common.Captured(step)

    vae, game = step_of("vae"), step_of(config.form)
    return rounds(run, average, lambda epoch: vae if epoch <= config.vae_epochs else game)


if __name__ == "__main__":
    common.command_line(train, Config, __doc__)
