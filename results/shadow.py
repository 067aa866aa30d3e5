"""A control for O-GAN: a latent read off a GAN that does not know of it.

    python results/shadow.py --seed 0

G and the critic play O-GAN's game without its correlation term, on O-GAN's networks. Beside them a
head learns to give each sample's z back, by the correlation with z, from the features of the
critic's last layer but one; no gradient goes from it into the critic. What it reads costs the GAN
nothing.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common
import introvae
import ogan
from torch import nn


class Shadow(ogan.OGAN):
    """OGAN's networks; E(x) is what `head` reads off the features of the critic's trunk, which are
    not trained for it."""
    METHOD = "shadow"

    def __init__(self, shape=(1, 28, 28), latent=32, width=32):
        super().__init__(shape, latent, width, components=0)
        self.options = {"shape": self.shape, "latent": latent, "width": width}
        critic = nn.Linear(16 * width, 1)
        self.encoder = nn.Sequential(self.encoder[0], critic, common.Float32())
        self.head = nn.Sequential(nn.Linear(16 * width, latent), common.Float32())

    def forward(self, images):
        """Images (N, C, H, W) in [0, 1] to codes (N, latent)."""
        return self.head(self.encoder[0](2 * self.floats(images) - 1))


@dataclass
class Config(common.RunConfig):
    """The options of a run; the rates and weights are those of O-GAN without encoding."""
    updates: int = common.option(4_690, "about so many training steps", low=1)
    batch_size: int = common.option(64, "images in a training step", low=2)
    latent: int = common.option(32, "latent variables, z ~ N(0, I)", low=2)
    lr_encoder: float = common.option(2e-4, "Adam's rate for the critic")
    lr_head: float = common.option(1e-3, "Adam's rate for the head")
    lr_generator: float = common.option(1e-3, "Adam's rate for G")
    average: float = common.option(0.999, "decay of the moving average that samples and encodes",
                                   high=0.99999)

    METHOD = "shadow"


def train(config):
    """Train as `config` says; returns the model and the Run."""
    run = common.Run(config)
    config = run.config
    model = Shadow(run.data.shape, config.latent, config.width).to(run.device).train()
    average = common.MovingAverage(model, config.average)
    e_optimizer = common.optimizer(list(model.encoder.parameters()), config.lr_encoder)
    h_optimizer = common.optimizer(list(model.head.parameters()), config.lr_head)
    g_optimizer = common.optimizer(model.g_parameters(), config.lr_generator)
    autocast = common.autocast(run.device, config.precision)
    run.restore(model=model, average=average, e=e_optimizer, h=h_optimizer, g=g_optimizer)

    def step(real):
        real = 2 * model.training_batch(real) - 1
        z = model.sample_latent(len(real))
        with autocast:
            fake = model.generator(z)
            features = model.encoder[0](fake)
            real_score = model.encoder(real).flatten()
            fake_score = model.encoder[1:](features).flatten()
            code = model.head(features.detach())
        distance = (real - fake.detach()).square().flatten(1).mean(1)
        loss_e = ogan.gan_qp_loss(real_score, fake_score, distance)
        loss_g = fake_score.mean()
        loss_latent = -ogan.pearson_correlation(z, code).mean()
        for optimizer in (e_optimizer, h_optimizer, g_optimizer):
            optimizer.zero_grad()
        loss_e.backward(inputs=list(model.encoder.parameters()), retain_graph=True)
        loss_latent.backward(inputs=list(model.head.parameters()))
        loss_g.backward(inputs=model.g_parameters())
        for optimizer in (e_optimizer, h_optimizer, g_optimizer):
            optimizer.step()
        average.update(model)
        return {"loss_e": loss_e.detach(), "loss_g": loss_g.detach(),
                "loss_latent": loss_latent.detach()}

    step = common.Captured(step)
    return introvae.rounds(run, average, lambda epoch: step)


if __name__ == "__main__":
    common.command_line(train, Config, __doc__)
