# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6"]
# ///
"""The tests of infogan.py, ogan.py, common.py and what runs in results/, with torch alone.

    python test_all.py [--long] [a section, or part of a name ...]

pytest finds them too. Each oracle is independent of what it checks: torch.distributions,
torch.corrcoef, brute force, a closed form, a second formula. To write one: `folder()` gives an
empty working folder, `small_data()` a FILE.pt there, `run(method, flags..)` a run of some seconds
and its checkpoint, `refused(call, words..)` asserts one line of error that has these words. Bare
asserts do: when one fails, the local variables are shown with it.
"""

import ast
import base64
import concurrent.futures
import contextlib
import gzip
import hashlib
import http.server
import inspect
import io
import itertools
import json
import math
import multiprocessing
import os
import pickle
import random
import re
import runpy
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import unittest
import warnings
import zlib
from dataclasses import fields, replace
from pathlib import Path
from unittest import mock

import common   # before torch: it silences a warning that numpy is absent
import infogan
import ogan
import torch
import torch.nn.functional as F
from common import InputError

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE / "results"))

import export
import introvae
import sets
import shadow
import study

METHODS = {"infogan": infogan, "ogan": ogan}
MODELS = {"infogan": infogan.InfoGAN, "ogan": ogan.OGAN}
LONG = "--long" in sys.argv   # more kills, more damage, twenty epochs: minutes


# ---------------------------------------------------------------- helpers


@contextlib.contextmanager
def folder():
    """An empty working folder, and a torch cache of its own.

    What is printed is kept quiet and given: yields (folder, out, err).
    """
    with tempfile.TemporaryDirectory() as name:
        before, hub = os.getcwd(), torch.hub.get_dir()
        os.chdir(name)
        torch.hub.set_dir(str(Path(name, "hub")))
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                yield Path(name), out, err
        finally:
            os.chdir(before)
            torch.hub.set_dir(hub)


def small_data(n=160, shape=(1, 28, 28), path="small.pt", labels=True):
    """A FILE.pt of drawn digits, of other sizes and channels where asked; returns its path."""
    images, classes, _ = common.draw_digits(n + 80)
    images = F.interpolate(images.float(), size=shape[1:]).byte().repeat(1, shape[0], 1, 1)
    content = {"images": images[:n], "test_images": images[n:]}
    if labels:
        content |= {"labels": classes[:n], "test_labels": classes[n:]}
    torch.save(content, path)
    return path


def rare_digits(counts):
    """Images and classes 0, 1, .. of drawn digits, so many of each class."""
    images, labels, _ = common.draw_digits(12 * max(counts.values()))
    places = [(labels == digit).nonzero().flatten()[:n] for digit, n in counts.items()]
    classes = torch.arange(len(counts)).repeat_interleave(torch.tensor(list(map(len, places))))
    return images[torch.cat(places)], classes


def first_parameters(model):
    """The weights of the player that moves before G: D or E."""
    return model.e_parameters() if isinstance(model, ogan.OGAN) else model.d_parameters()


def checkpoint(folder):
    return torch.load(Path(folder, "checkpoint.pt"), weights_only=True)


def metrics(folder):
    """The lines of a run's metrics.jsonl; none of them may hold NaN or Infinity."""
    def refuse(constant):
        raise AssertionError(f"{constant} in metrics.jsonl")

    lines = Path(folder, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


TINY = {"--samples": 300, "--width": 2, "--batch-size": 32, "--device": "cpu",
        "--data": "small.pt", "--epochs": 1, "--out": "run"}


def run(method, *flags):
    """main() with these flags, and TINY where they do not say; returns the run's checkpoint. Every
    epoch is reported, as it is of many images."""
    flags = [str(flag) for flag in flags]
    if "--resume" in flags:
        place = flags[flags.index("--resume") + 1]
    else:
        for flag, value in (TINY | ({"--warm-up": 6} if method == "infogan" else {})).items():
            if flag not in flags:
                flags += [flag, str(value)]
        place = flags[flags.index("--out") + 1]
    with single_epochs():
        METHODS[method].main(flags)
    return checkpoint(place)


@contextlib.contextmanager
def single_epochs():
    """Runs report after each epoch, not after as many as make 100 updates."""
    batches = common.Run.batches

    def epoch(self):
        with mock.patch.object(self, "config", replace(self.config, epochs=self.epoch + 1)):
            yield from batches(self)

    with mock.patch.object(common.Run, "batches", epoch):
        yield


def script(method, flags, **options):
    """The method's script in a process of its own, with these flags (one string)."""
    options = {"capture_output": True, "text": True, "env": {**os.environ, "TORCH_HOME": "hub"},
               **options}
    return subprocess.run([sys.executable, HERE / f"{method}.py", *flags.split()], **options)


def refused(function, *words):
    """Assert that the call ends with InputError, or status 2, and one line with every word."""
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err):
            function()
    except InputError as error:
        message = str(error)
    except SystemExit as stop:
        assert stop.code == 2, stop.code
        message = err.getvalue().strip()
    else:
        raise AssertionError(f"accepted; expected an error with {words}")
    assert "\n" not in message, message
    for word in words:
        assert word in message, message


UNIMPORTANT = ("seconds", "images_per_second", "resume", "out", "epochs")


def equal(a, b):
    """Bit-for-bit equality of nested dicts, lists and tensors, times and folders apart."""
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return False
        return all(equal(a[key], b[key]) for key in a if key not in UNIMPORTANT)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


def close(a, b):
    """Whether two gradients agree to float32 rounding, as vectors."""
    return (a - b).norm() <= 1e-4 * b.norm()


def decode_png(content):
    """The picture (H, W, C) of a PNG by zlib and the standard's layout; every CRC is checked."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(content):
        length, kind = struct.unpack(">I4s", content[at:at + 8])
        body = content[at + 8:at + 8 + length]
        checksum = content[at + 8 + length:at + 12 + length]
        assert struct.unpack(">I", checksum)[0] == zlib.crc32(kind + body)
        assert kind not in chunks
        chunks[kind] = body
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    w, h, depth, color = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert depth == 8
    channels = {0: 1, 2: 3}[color]
    rows = torch.tensor(list(zlib.decompress(chunks[b"IDAT"])), dtype=torch.uint8)
    rows = rows.view(h, 1 + w * channels)
    assert not rows[:, 0].any()                    # filter type 0: the rest is the pixels
    return rows[:, 1:].reshape(h, w, channels)


# ---------------------------------------------------------------- losses


def correlations(u, v):
    """Pearson's correlation of each pair of rows, by torch.corrcoef."""
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(u, v)])


def test_pearson_is_corrcoef():
    u = torch.randn(7, 33, dtype=torch.double)
    v = torch.randn(7, 33, dtype=torch.double) * 3 + 5
    assert torch.allclose(ogan.pearson_correlation(u, v), correlations(u, v), atol=1e-12)


def test_pearson_of_itself_is_one_and_of_a_constant_is_zero():
    v = torch.randn(50, 64)
    assert (ogan.pearson_correlation(v, v) - 1).abs().max() < 1e-6
    assert (ogan.pearson_correlation(v, -2 * v + 1) + 1).abs().max() < 1e-6
    constant = torch.full((3, 64), 7.0, requires_grad=True)
    rho = ogan.pearson_correlation(constant, v[:3])
    rho.sum().backward()
    assert torch.equal(rho, torch.zeros(3))
    assert constant.grad.isfinite().all()


def test_rho_is_squared_error_without_mean_and_std():
    u, v = torch.randn(5, 16), torch.randn(5, 16)

    def standard(x):
        return (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)

    distance = (standard(u) - standard(v)).square().sum(1)
    assert torch.allclose(distance, 2 * 16 * (1 - ogan.pearson_correlation(u, v)), atol=1e-4)


def test_latent_losses():
    z, e = torch.randn(6, 8), torch.randn(6, 8)
    pearson, mse, none = (ogan.LATENT_LOSSES[kind](z, e) for kind in ("pearson", "mse", "none"))
    assert torch.allclose(pearson, -correlations(z, e).mean(), atol=1e-5)
    assert torch.allclose(mse, ((z - e) ** 2).sum() / 48)
    assert none == 0


def test_infogan_losses_are_binary_cross_entropy():
    real, fake = torch.randn(50) * 4, torch.randn(50) * 4
    ones, zeros = torch.ones(50), torch.zeros(50)
    bce = F.binary_cross_entropy_with_logits
    both = bce(real, ones) + bce(fake, zeros)
    assert torch.allclose(infogan.discriminator_loss(real, fake), both)
    assert torch.allclose(infogan.generator_loss(fake), bce(fake, ones))
    assert infogan.generator_loss(torch.tensor([-1000.0])).isfinite()


def test_information_is_that_of_torch_distributions():
    torch.manual_seed(0)
    logits, categories = torch.randn(9, 4), torch.randint(4, (9,))
    found = infogan.categorical_information(logits, F.one_hot(categories, 4).float())
    posterior = torch.distributions.Categorical(logits=logits)
    prior = torch.distributions.Categorical(logits=torch.zeros(4))
    assert torch.allclose(found, posterior.log_prob(categories).mean() + prior.entropy(), atol=1e-6)
    shares = torch.tensor([0.6, 0.1, 0.1, 0.2])
    found = infogan.categorical_information(logits, F.one_hot(categories, 4).float(), shares)
    prior = torch.distributions.Categorical(shares)
    assert torch.allclose(found, posterior.log_prob(categories).mean() + prior.entropy(), atol=1e-6)

    values, mean, std = torch.rand(9, 2) * 4 - 2, torch.randn(9, 2), torch.rand(9, 2) + 0.1
    found = infogan.continuous_information(mean, std, values, code_range=2.0)
    likelihood = torch.distributions.Normal(mean, std).log_prob(values).mean(0)
    assert torch.allclose(found, likelihood + torch.distributions.Uniform(-2.0, 2.0).entropy())


def test_information_reaches_its_ceiling_and_zero():
    model = infogan.InfoGAN(noise=3, categorical=(10, 4), continuous=1, code_range=2.0)
    latent = model.split_latent(model.sample_latent(4000))
    std = torch.full_like(latent.continuous, 0.5)
    sure = [onehot * 100 for onehot in latent.categorical]
    for logits, onehot, k in zip(sure, latent.categorical, (10, 4)):
        assert abs(infogan.categorical_information(logits, onehot) - math.log(k)) < 1e-4
        assert abs(infogan.categorical_information(logits * 0, onehot)) < 1e-5
    codes = infogan.Codes(sure, latent.continuous, std)
    total = infogan.information_loss(codes, latent, code_range=2.0, lambda_categorical=3.0)
    exact = math.log(4.0) - math.log(0.5 * math.sqrt(2 * math.pi))
    assert abs(float(total) + 3 * (math.log(10) + math.log(4)) + 0.1 * exact) < 1e-3
    shares = torch.tensor([0.91] + [0.01] * 9)     # of the first code; the other stays equal
    total = infogan.information_loss(codes, latent, code_range=2.0, shares=shares)
    ceiling = torch.distributions.Categorical(shares).entropy() + math.log(4)
    assert abs(float(total + ceiling) + 0.1 * exact) < 1e-3


def log1pexp(v):
    return math.log(1 + math.exp(v))


def test_gan_losses_by_hand():
    real, fake, distance = (torch.tensor(v) for v in ([1.0, -2.0], [0.5, 3.0], [0.5, 2.0]))
    critic = {
        "qp": (0.5 + 0.25 / 2 + -5 + 25 / 8) / 2,
        "wasserstein": (0.5 - 5) / 2,
        "hinge": (2 + 0.5 + 0 + 0) / 2,
        "leastsquares": (4 + 0.25 + 1 + 4) / 2,
        "nonsaturating": (log1pexp(1) + log1pexp(-0.5) + log1pexp(-2) + log1pexp(-3)) / 2,
        "relativistic": (log1pexp(0.5) + log1pexp(-5)) / 2}
    generator = {
        "qp": 1.75,
        "wasserstein": 1.75,
        "hinge": 1.75,
        "leastsquares": (2.25 + 16) / 2,
        "nonsaturating": (log1pexp(0.5) + log1pexp(3)) / 2,
        "relativistic": (log1pexp(-0.5) + log1pexp(5)) / 2}
    assert set(critic) == set(ogan.GAN_LOSSES)
    for kind, (e_loss, g_loss) in ogan.GAN_LOSSES.items():
        assert abs(float(e_loss(real, fake, distance)) - critic[kind]) < 1e-5
        assert abs(float(g_loss(real, fake)) - generator[kind]) < 1e-5
        assert float(e_loss(real, fake, 0 * distance)) < 1e6        # a fake that equals its image


def test_every_gan_loss_scores_real_low():
    for e_loss, g_loss in ogan.GAN_LOSSES.values():
        real = torch.zeros(4, requires_grad=True)
        fake = torch.zeros(4, requires_grad=True)
        e_loss(real, fake, torch.ones(4)).backward()
        assert (real.grad > 0).all()               # the critic lowers real scores
        assert (fake.grad < 0).all()               # and raises fake ones
        fake = torch.zeros(4, requires_grad=True)
        g_loss(torch.zeros(4), fake).backward()
        assert (fake.grad > 0).all()               # the generator lowers fake scores


def test_invariance_loss_in_loops():
    torch.manual_seed(0)
    logits, logits_again = torch.randn(6, 4), torch.randn(6, 4)
    p, q = logits.softmax(1).double(), logits_again.softmax(1).double()
    joint = torch.zeros(4, 4, dtype=torch.double)
    for i, j in itertools.product(range(4), range(4)):
        for a, b in zip(p, q):
            joint[i, j] += (a[i] * b[j] + a[j] * b[i]) / 12
    assert torch.allclose(infogan.joint_distribution(logits, logits_again).double(), joint)
    marginal = joint.sum(1)
    information = 0.0
    for i, j in itertools.product(range(4), range(4)):
        information += joint[i, j] * math.log(joint[i, j] / (marginal[i] * marginal[j]))
    for shares, balance in itertools.product((None, torch.tensor([0.4, 0.3, 0.2, 0.1])), (2.0, 0)):
        expected = torch.distributions.Categorical(torch.ones(4) if shares is None else shares)
        found = torch.distributions.Categorical(marginal.float())
        apart = torch.distributions.kl_divergence(found, expected)
        found = infogan.invariance_loss(logits, logits_again, shares, balance)
        assert abs(float(found - (balance * apart - information))) < 1e-5
    sure = torch.eye(4).repeat(5, 1) * 100         # sure, agreed and equally often: ln K at most
    assert abs(float(infogan.invariance_loss(sure, sure)) + math.log(4)) < 1e-4
    often = torch.eye(4)[[0, 0, 0, 0, 1, 1, 1, 2, 2, 3]] * 100     # or as often as they should be
    found = infogan.invariance_loss(often, often, torch.tensor([0.4, 0.3, 0.2, 0.1]))
    entropy = torch.distributions.Categorical(torch.tensor([0.4, 0.3, 0.2, 0.1])).entropy()
    assert abs(float(found + entropy)) < 1e-4


def test_warp_stays_within_its_bounds():
    torch.manual_seed(0)
    images = common.draw_digits(2000)[0].float() / 255
    assert torch.allclose(infogan.warp(images, 0, 0, 0, 0), images, atol=1e-5)
    grid = torch.arange(28.0)

    def centre(x):
        ink = x.sum((2, 3))
        return torch.cat([(x.sum(2) @ grid) / ink, (x.sum(3) @ grid) / ink], 1)

    moved = centre(infogan.warp(images, 0, 0, 0)) - centre(images)   # up to 2 pixels each way
    assert 1.9 < moved.abs().max() < 2.1
    assert moved.mean().abs() < 0.1
    bar = torch.zeros(500, 1, 28, 28)
    bar[..., 4:24, 13:15] = 1
    turned = infogan.warp(bar, rotation=0.25, scale=0, shear=0, shift=0)
    assert 0.22 < study.measure_strokes(turned)["slant"].abs().max() < 0.28     # tan 0.25 is 0.255
    assert not torch.allclose(infogan.warp(images), infogan.warp(images))
    for h, w in ((32, 64), (32, 128), (64, 32)):   # the same angle, whatever the shape
        bar = torch.zeros(500, 1, h, w)
        bar[..., 6:h - 6, w // 2 - 2:w // 2 + 2] = 1
        leans = study.measure_strokes(infogan.warp(bar, 0.25, 0, 0, 0))["slant"].abs().max()
        assert 0.2 < leans < 0.3
        leans = study.measure_strokes(infogan.warp(bar, 0, 0, 0.25, 0))["slant"].abs().max()
        assert 0.2 < leans < 0.3
    torch.manual_seed(3)
    plain = infogan.warp(images[:50])
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        assert infogan.warp(images[:50]).equal(plain)               # not rounded under autocast
    grey = torch.full((50, 3, 16, 24), 0.4)
    assert torch.allclose(infogan.warp(grey), grey)                  # no foreign colour comes in


def test_restyled_changes_what_it_says():
    """Slant and stroke width of bars, before and after, as `measure_strokes` has them."""
    torch.manual_seed(0)
    for h, w, reach in ((28, 28, 1), (32, 64, 2), (64, 28, 2)):
        bar = torch.zeros(400, 2, h, w)
        bar[..., 6:h - 6, w // 2 - 4:w // 2 + 4] = 1
        changed, change = infogan.restyled(bar)
        assert changed.shape == bar.shape and changed.min() >= 0 and changed.max() <= 1
        assert change.shape == (400, 2) and change.amax(0).gt(torch.tensor([0.58, 0.97])).all()
        assert change.amin(0).lt(torch.tensor([-0.58, -0.97])).all() and change.abs().max() <= 1
        assert abs(float(torch.corrcoef(change.T)[0, 1])) < 0.15
        strokes = study.measure_strokes(changed)
        assert (strokes["slant"] - change[:, 0] / 2).abs().max() < 0.06         # twice the slant
        upright = change[:, 0].abs() < 0.05        # its middle row, by the area of a pixel's change
        middle = changed[:, 0, h // 2].sum(1)
        assert torch.allclose(middle[upright], (8 + 2 * reach * change[:, 1])[upright], atol=0.1)
    still, change = infogan.restyled(bar, lean=0.0)
    assert change[:, 0].eq(0).all()
    assert not torch.equal(still, infogan.restyled(bar, lean=0.0)[0])
    grey = torch.full((50, 3, 16, 24), 0.4)
    assert torch.allclose(infogan.restyled(grey)[0], grey)
    with torch.autocast("cpu", torch.bfloat16):    # neither rounded under autocast nor in double
        assert infogan.restyled(bar[:3])[0].dtype == torch.float32
    assert infogan.restyled(bar[:3].double())[0].dtype == torch.float64


def contrast_oracle(images):
    """By torch.linalg.eigh, image by image, in float64."""
    views = []
    for image in images.double():
        pixels = image.flatten(1)
        line = torch.linalg.eigh(torch.cov(pixels))[1][:, -1] if len(pixels) > 1 else torch.ones(1)
        view = line.double() @ pixels
        view = (view - view.mean()) / view.std(correction=0)
        views.append(view * (view**3).mean().sign())
    return torch.stack(views).view(len(images), 1, *images.shape[2:])


def test_contrast_is_the_first_principal_component():
    torch.manual_seed(0)
    for channels in (1, 2, 3, 4):                  # of skewed colours, mixed
        pixels = torch.rand(20, channels, 12 * 8).pow(4)
        pixels = pixels * 0.4 ** torch.arange(channels)[:, None]
        mixing = torch.linalg.qr(torch.randn(20, channels, channels))[0]
        images = (mixing @ pixels).view(20, channels, 12, 8)
        found = infogan.contrast(images)
        assert (found - contrast_oracle(images)).abs().max() < 1e-3, channels
        assert torch.allclose(found.mean((1, 2, 3)), torch.zeros(20), atol=1e-5)
        assert torch.allclose(found.square().mean((1, 2, 3)), torch.ones(20), atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            assert infogan.contrast(images).equal(found)            # not rounded under autocast
    grey = torch.rand(5, 1, 8, 8).pow(4).requires_grad_()
    weights = torch.randn(5, 1, 8, 8)
    std, mean = torch.std_mean(grey, (1, 2, 3), correction=0, keepdim=True)
    expected = torch.autograd.grad(((grey - mean) / std * weights).sum(), grey)[0]
    found = torch.autograd.grad((infogan.contrast(grey) * weights).sum(), grey)[0]
    assert close(found, expected)


def test_contrast_does_not_tell_colours():
    torch.manual_seed(0)
    ink = common.draw_digits(200)[0].float() / 255
    grey = infogan.contrast(ink)
    black, white = torch.zeros(3), torch.ones(3)
    red, green = torch.eye(3)[:2]
    pairs = [(black, white), (white, black), (green, red), (red, green), (white, red),
             (torch.rand(200, 3), torch.rand(200, 3)), (torch.rand(200, 4), torch.rand(200, 4)),
             (torch.tensor([0.2]), torch.tensor([0.1]))]
    for ground, stroke in pairs:
        ground, stroke = (colour.expand(200, -1)[:, :, None, None] for colour in (ground, stroke))
        images = ground + (stroke - ground) * ink
        apart = (stroke - ground).flatten(1).norm(dim=1)
        assert (infogan.contrast(images) - grey)[apart > 0.05].abs().max() < 1e-3
        rounded = (images * 255).round() / 255                      # as in a file
        error = (infogan.contrast(rounded) - grey).abs().amax((1, 2, 3))
        assert (error * apart < 0.05).all()
    model = infogan.InfoGAN((3, 28, 28), width=2).train()
    model(images.expand(-1, 3, -1, -1))                             # for batch normalisation
    colours = [torch.rand(200, 3, 1, 1) for _ in range(2)]
    plain = [(1 - ink) * colour for colour in colours]              # black on some colour
    one, two = (model.encode(images) for images in plain)
    assert torch.allclose(one.categorical[0], two.categorical[0], atol=1e-3)
    assert not torch.allclose(one.mean, two.mean, atol=1e-3)        # the codes may
    sees = infogan.InfoGAN((3, 28, 28), width=2, colour_blind=False).train()
    sees(plain[0])
    one, two = (sees.encode(images).categorical[0] for images in plain)
    assert not torch.allclose(one, two, atol=1e-3)


def test_contrast_of_a_constant_image_is_nothing():
    for level in (0.0, 0.3, 1.0):
        images = torch.full((2, 3, 28, 28), level)
        images[1] = torch.rand(3, 28, 28)
        images.requires_grad_()
        found = infogan.contrast(images)
        found.square().sum().backward()
        assert found[0].abs().max() < 1e-3 and images.grad.isfinite().all()


def test_neighbours_are_the_nearest_images():
    torch.manual_seed(0)
    images = torch.randint(256, (300, 1, 6, 4), dtype=torch.uint8)
    found = infogan.neighbours(images, count=5, among=300)
    pixels = images.flatten(1).float()
    expected = torch.cdist(pixels, pixels).topk(5, largest=False).indices
    assert found.sort(1).values.equal(expected.sort(1).values)
    found = infogan.neighbours(images, count=5, among=40)
    chosen = found.unique()                                         # some of the 40
    assert 5 <= len(chosen) <= 40
    digits, labels, _ = common.draw_digits(3000)
    found = infogan.neighbours(digits)
    assert (labels[found] == labels[:, None]).float().mean() > 0.8  # 0.1 by chance
    coloured = (digits.float() / 255) * torch.rand(3000, 3, 1, 1)
    found = infogan.neighbours(coloured, infogan.contrast)          # of a kind, not of a colour
    assert (labels[found] == labels[:, None]).float().mean() > 0.8
    for shape in ((2, 3, 64, 48), (1, 1, 4, 4)):                    # fewer images than neighbours
        images = torch.rand(shape)
        found = infogan.neighbours(images)
        assert found.shape == (len(images), len(images))
        assert found.sort(1).values.equal(torch.arange(len(images)).expand_as(found))


def test_merged_recovers_groups():
    """Six categories in three groups of unlike size and number, whatever their order."""
    torch.manual_seed(0)
    groups, shares = [[0], [1, 2], [3, 4, 5]], [0.25, 0.15, 0.6]
    joint = torch.full((6, 6), 0.001)
    for members, share in zip(groups, shares):
        weights = torch.rand(len(members)) + 0.5
        joint[members[0]:members[-1] + 1, members[0]:members[-1] + 1] += (
            share * weights[:, None] * weights / weights.sum() ** 2)
    joint = joint / joint.sum()
    for _ in range(5):
        order = torch.randperm(6)
        found, found_shares, sure = infogan.merged(joint[order][:, order], 3)
        assert found.shape == (6, 3) and set(found.flatten().tolist()) == {0, 1}
        assert found.sum(1).eq(1).all()
        where = found.argmax(1)
        parts = sorted(sorted(order[where == group].tolist()) for group in range(3))
        assert parts == groups
        table = torch.zeros(3, 3)
        for i, j in itertools.product(range(6), range(6)):
            table[where[i], where[j]] += joint[order[i], order[j]]
        marginal = table.sum(1)
        assert torch.allclose(found_shares, marginal)
        information, entropy = 0.0, 0.0
        for i in range(3):
            entropy -= marginal[i] * marginal[i].log()
            for j in range(3):
                information += table[i, j] * (table[i, j] / (marginal[i] * marginal[j])).log()
        assert abs(sure - float(information / entropy)) < 1e-5
    satellite = torch.tensor([[0.46, 0.0, 0.0, 0.04],               # goes with what it is part of
                              [0.0, 0.17, 0.05, 0.0],
                              [0.0, 0.05, 0.17, 0.0],
                              [0.04, 0.0, 0.0, 0.02]])
    found, found_shares, _ = infogan.merged(satellite, 3)
    assert found.argmax(1).tolist() == [0, 1, 2, 0]
    assert torch.allclose(found_shares, torch.tensor([0.56, 0.22, 0.22]))
    same, found_shares, _ = infogan.merged(joint, 6)                # nothing to do
    assert same.equal(torch.eye(6)) and torch.allclose(found_shares, joint.sum(1))


def test_warm_up_trains_q_alone_and_keeps_the_surest_head():
    images = common.draw_digits(640)[0]
    for options in ({}, {"unequal": False}, {"categorical": (10, 3)}):
        torch.manual_seed(0)
        model = infogan.InfoGAN(width=4, **options)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        heads, merges, outputs, targets = [], [], {}, []

        def watched(net, outputs=outputs):
            net.register_forward_hook(lambda net, given, out: outputs.update({net: out.detach()}))
            return net

        def head(*sizes, heads=heads, watched=watched, real=infogan.head):
            heads.append(watched(real(*sizes)))
            return heads[-1]

        def merged(joint, k, merges=merges, heads=heads, real=infogan.merged):
            """The first, second, .. head's; the second of them is made the surest."""
            groups, shares, _ = real(joint, k)
            states = [net[0].weight.detach().clone() for net in heads]
            merges.append((joint, groups, shares, states))
            return groups, shares, [0.2, 0.9, 0.8][len(merges) - 1]

        def cross_entropy(logits, target, targets=targets, outputs=outputs, net=model.q_head,
                          real=F.cross_entropy):
            targets.append(target)
            assert logits.shape == target.shape == (256, 10)
            assert logits.equal(outputs[net][:, :10])
            return real(logits, target)

        watched(model.q_head)
        with mock.patch.object(infogan, "head", head), \
                mock.patch.object(infogan, "merged", merged), \
                mock.patch.object(F, "cross_entropy", cross_entropy), \
                mock.patch.object(infogan, "neighbours", wraps=infogan.neighbours) as near, \
                mock.patch.object(infogan, "warp", wraps=infogan.warp) as warp:
            infogan.warm_up(model, images, updates=13, heads=3)
        assert model.view in (*near.call_args.args, *near.call_args.kwargs.values())
        sizes = [10, 10, 10] if model.unequal is False else [10, 20, 10]
        assert [net[3].out_features for net in heads] == sizes
        assert [len(joint) for joint, *_ in merges] == sizes
        for joint, *_ in merges:
            assert torch.allclose(joint, joint.T, atol=1e-6) and abs(float(joint.sum()) - 1) < 1e-5
        assert (warp.call_count, len(targets)) == (13, 2)           # a sixth is Q's head's
        assert all(len(call.args[0]) == 256 for call in warp.call_args_list)
        _, groups, shares, states = merges[1]
        learns = [not net[0].weight.equal(state) for net, state in zip(heads, states)]
        assert learns == [False, True, False]      # in the end the surest head alone
        one, other = (outputs[heads[1]].softmax(1) @ groups).chunk(2)   # of a view and of the other
        assert torch.allclose(targets[-1], torch.cat([other, one]))
        assert torch.allclose(model.shares, shares if model.unequal else torch.full((10,), 0.1))
        for name, value in model.state_dict().items():
            trained = name.startswith(("q_trunk.", "q_head.")) or (
                name == "shares" and model.unequal)
            assert value.equal(before[name]) != trained, name
    refused(lambda: infogan.warm_up(infogan.InfoGAN(categorical=(), width=2), images), "has none")
    shared = infogan.InfoGAN(trunk="shared", width=2)
    refused(lambda: infogan.warm_up(shared, images), "has none")
    refused(lambda: infogan.warm_up(model, images[:, :, :14]), "(640, 1, 14, 28)")
    exact = infogan.InfoGAN(width=2).double()                       # of other precisions, too
    infogan.warm_up(exact, images[:40], updates=2, heads=2, batch_size=20)
    infogan.warm_up(model, images[:40].bfloat16() / 255, updates=2, heads=2, batch_size=20)
    assert exact.q_head[0].weight.dtype == torch.float64


def test_the_model_says_on_which_device_a_step_is_made():
    """Images and data may lie elsewhere: here on the CPU, and the model on the meta device, which
    has no numbers, so that only the choice among the heads in the end fails; and the reverse."""
    images = common.draw_digits(40)[0]
    model = infogan.InfoGAN(width=2, colour_blind=False).to("meta")
    try:
        with mock.patch.object(common, "optimizer", torch.optim.SGD), \
                mock.patch.object(infogan, "warp", lambda views: views):
            infogan.warm_up(model, images, updates=2, batch_size=20)
        raise AssertionError("a choice on the meta device")
    except RuntimeError as error:
        assert "meta tensor" in str(error)
    model = infogan.InfoGAN(width=2)
    data = common.Data("x", images.to("meta"), None, images, None)
    assert len(infogan.scores(model, data, samples=20)["mi_continuous"]) == 2
    assert infogan.figures(model)["samples"].picture.float().std() > 0


def test_warm_up_finds_classes_and_how_often_they_come():
    """Drawn digits without a label, one of three classes four times as frequent."""
    images, classes = rare_digits({6: 1000, 0: 250, 1: 250})
    torch.manual_seed(0)
    model = infogan.InfoGAN(width=8, categorical=(3,))
    infogan.warm_up(model, images, updates=200, batch_size=64)
    assert abs(float(model.shares.sum()) - 1) < 1e-5
    true = classes.bincount() / len(classes)
    assert (model.shares.sort().values - true.sort().values).abs().max() < 0.1, model.shares
    clusters = model.encode(images).categorical[0].argmax(1)
    found = common.clustering_scores(clusters, classes)
    assert found["accuracy"] > 0.9, found
    assert int(model.shares.argmax()) == int(clusters.bincount().argmax())


# ---------------------------------------------------------------- who learns what


class Recorder(torch.optim.SGD):
    """An optimiser that moves nothing and keeps what each step would have used."""

    def step(self):
        self.seen = []
        for group in self.param_groups:
            self.seen += [p.grad.clone() for p in group["params"]]


def recorded_step(module, model, d_parameters, real, **options):
    """The gradients that D's and G's optimisers see in one training step, and what it returns;
    torch's random numbers are then as before the step."""
    d, g = Recorder(d_parameters, 1.0), Recorder(model.g_parameters(), 1.0)
    torch.manual_seed(1)
    losses = module.training_step(model, d, g, real, **options)
    torch.manual_seed(1)
    return d.seen, g.seen, losses


def test_infogan_step_gives_each_player_its_own_gradient():
    """By autograd through (6), written out once more."""
    pairs = common.draw_digits(32)[0].view(16, 2, 28, 28).double() / 255
    ones, zeros = torch.ones(16).double(), torch.zeros(16).double()
    bce = F.binary_cross_entropy_with_logits
    cases = [
        # options of the model, those of the step
        ({}, {}),
        ({"colour_blind": False}, {"invariance": 3.0, "batch_mix": 0.25}),
        ({"unequal": False, "categorical": (4, 3), "shape": (2, 40, 12)},
         {"lambda_categorical": 0.5}),
        ({"categorical": (4, 3)}, {"invariance": 0.0}),
        ({"categorical": ()}, {"lambda_continuous": 1.0}),
        ({"continuous": 0}, {"batch_mix": 0.5}),
        ({"continuous": 1, "code_range": 2.0}, {"naming": 0.7}),
        ({"continuous": 3}, {"naming": 0.0}),
        ({"trunk": "shared"}, {}),
        ({"trunk": "shared", "categorical": (4, 3)}, {"invariance": 0.0, "batch_mix": 0.25}),
        ({"trunk": "detached"}, {"invariance": 3.0}),
        ({"trunk": "detached", "unequal": False}, {"invariance": 0.0, "lambda_continuous": 0.7}),
    ]
    for options, given in cases:
        options = {"shape": (2, 28, 20), "categorical": (4,), "width": 2} | options
        real = F.interpolate(pairs, options["shape"][1:])
        torch.manual_seed(0)
        model = infogan.InfoGAN(**options).double().train()
        sizes, trunk, own = model.categorical, model.trunk, model.q_trunk is not None
        shares = [torch.full((k,), 1 / k).double() for k in sizes]
        if model.unequal and sizes:
            shares[0] = torch.tensor([0.4, 0.3, 0.2, 0.1]).double()
            model.shares.copy_(shares[0])
        seen, g_seen, losses = recorded_step(infogan, model, model.d_parameters(), real, **given)
        for p, grad in zip(model.d_parameters(), seen):
            assert p.grad.equal(grad)              # G's update adds nothing to D's
        given = {"lambda_categorical": 1.0, "lambda_continuous": 0.1, "invariance": 10.0,
                 "naming": 5.0, "batch_mix": 0.25 if real.shape[2] == 40 else 0.0} | given

        latent = model.sample_latent(16)
        target = model.split_latent(latent)
        fake = model.generator(latent)
        n = round(16 * given["batch_mix"])

        def features(fake, model=model, n=n, real=real):
            """D's trunk's of real images and of fakes, which swap n of their batches."""
            one = model.d_trunk(torch.cat([fake[:n], real[n:]]))
            other = model.d_trunk(torch.cat([real[:n], fake[n:]]))
            return torch.cat([other[:n], one[n:]]), torch.cat([one[:n], other[n:]])

        def information(logits, moments, target=target, given=given, shares=shares, model=model):
            """Equation 5, weighted, of what is predicted of logits and of moments, if any are."""
            total = torch.zeros((), dtype=torch.float64)
            for part, onehot, share in zip(logits, target.categorical, shares):
                likelihood = torch.distributions.Categorical(logits=part).log_prob(onehot.argmax(1))
                prior = torch.distributions.Categorical(share)
                total += given["lambda_categorical"] * (likelihood.mean() + prior.entropy())
            if moments is not None:
                mean, std = moments.chunk(2, 1)
                code = torch.distributions.Normal(mean, F.softplus(std) + 0.01)
                gained = code.log_prob(target.continuous).mean(0) + math.log(2 * model.code_range)
                total += given["lambda_continuous"] * gained.sum()
            return total

        def read_off(features, model=model, own=own, sizes=sizes):
            """What the head on D's trunk says: logits, moments."""
            if model.code_head is None:
                return [], None
            output = model.code_head(features)
            if own or not sizes:
                return [], output
            *logits, moments = output.split([*sizes, 2 * model.continuous], 1)
            return logits, moments

        def categories(images, model=model, sizes=sizes):
            """What Q's own layers say: logits."""
            seen = infogan.contrast(images) if model.colour_blind else images
            return model.q_head(model.q_trunk(seen)).split(sizes, 1)

        def gradients(loss, parameters):
            found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found)]

        named = dict(model.named_parameters())     # (1) D, and of Q what is on D's layers
        of_real, of_fake = features(fake.detach())
        real_logit, fake_logit = model.d_head(of_real), model.d_head(of_fake)
        game = bce(real_logit, ones) + bce(fake_logit, zeros)
        told = information(*read_off(of_fake.detach() if trunk == "detached" else of_fake))
        naming = 0                                 # of every other real image
        assert ("loss_naming" in losses) == (given["naming"] > 0 and model.continuous > 0)
        if "loss_naming" in losses:
            changed, change = infogan.restyled(real[::2])
            two = of_real, model.d_trunk(changed)
            if trunk == "detached":
                two = [part.detach() for part in two]
            before, after = [read_off(part)[1][:, :model.continuous] for part in two]
            before = before[::2]
            codes = range(min(2, model.continuous))
            for i, j in itertools.product(range(8), codes):
                miss = (after - before)[i, j] / model.code_range - change[i, j]
                huber = miss**2 / 2 if miss.abs() < 1 else miss.abs() - 0.5
                naming += given["naming"] * huber / 8 / len(codes)
            assert torch.allclose(losses["loss_naming"], naming, atol=1e-5)
        ours = [p for name, p in named.items() if name.startswith(("d_", "code_"))]
        assert len(ours) == len(seen)
        for grad, a in zip(seen, gradients(game - told + naming, ours)):
            assert close(grad, a)
        assert torch.allclose(losses["loss_d"], game)
        assert torch.allclose(losses["d_real"], (1 / (1 + (-real_logit).exp())).mean())
        assert torch.allclose(losses["d_fake"], (1 / (1 + (-fake_logit).exp())).mean())

        of_fake = features(fake)[1] if n else model.d_trunk(fake)   # (2) G, and Q's own layers
        logits, moments = read_off(of_fake)
        game = bce(model.d_head(of_fake), ones)
        if own:
            logits = categories(fake)
        told = information(logits, moments)
        assert ("loss_invariance" in losses) == (own and given["invariance"] > 0)
        invariance = 0
        if "loss_invariance" in losses:
            one, other = categories(infogan.warp(torch.cat([real, real])))[0].chunk(2)
            invariance = given["invariance"] * infogan.invariance_loss(one, other, shares[0])
            assert torch.allclose(losses["loss_invariance"], invariance, atol=1e-5)
        assert torch.allclose(losses["loss_g"], game)
        assert torch.allclose(losses["loss_information"], -told, atol=1e-5)
        ours = [p for name, p in named.items() if name.startswith(("generator.", "q_"))]
        assert len(ours) == len(g_seen)
        from_all, from_game = gradients(game - told + invariance, ours), gradients(game, ours)
        for grad, a, b in zip(g_seen, from_all, from_game):
            assert close(grad, a)
            assert not close(grad, b)              # L_I reaches G always
        assert not any(loss.requires_grad for loss in losses.values())


def test_ogan_step_gives_each_player_its_own_gradient():
    real = common.draw_digits(16)[0].float() / 255
    paper = {"codes": 0, "reconstruction": 0, "batch_mix": 0}
    other = {"gan_loss": "relativistic", "latent_loss": "mse", "rho_weight": 0.5}
    for critic, options in (("avg", {}), ("network", {}), ("avg", paper), ("avg", other)):
        torch.manual_seed(2)
        model = ogan.OGAN(latent=8, width=2, critic=critic).train()
        options = {"rho_generator": 0.3, "codes": 0.45, "reconstruction": 1.7,
                   "batch_mix": 0.25} | options
        e_seen, g_seen, losses = recorded_step(ogan, model, model.e_parameters(), real, **options)
        e_loss, g_loss = ogan.GAN_LOSSES[options.get("gan_loss", "qp")]
        tie_loss = ogan.LATENT_LOSSES[options.get("latent_loss", "pearson")]
        weight = options.get("rho_weight", 2.0)
        z = model.sample_latent(16)
        if options["codes"]:                       # 7 of 16 latents are codes of real images
            z = torch.cat([F.layer_norm(model(real[:7]), [8], eps=0).detach(), z[7:]])
        fake = model.generator(z)
        distance = ((2 * real - 1 - fake.detach()) ** 2).mean((1, 2, 3))

        def passes(fake, z=z, model=model, options=options, weight=weight, tie_loss=tie_loss):
            """Scores of real and fake, and the weighted latent loss."""
            images = torch.cat([2 * real - 1, fake])
            with_real = torch.arange(32) < 16      # which of them share a batch
            if options["batch_mix"]:
                with_real = with_real.roll(4)
            codes = torch.empty(32, 8)
            codes[with_real] = model.encoder(images[with_real])
            codes[~with_real] = model.encoder(images[~with_real])
            real_code, fake_code = codes[:16], codes[16:]
            tie = weight * tie_loss(z, fake_code)
            return model.score(real_code), model.score(fake_code), tie

        a, b, tie = passes(fake.detach())
        critic = e_loss(a, b, distance)
        assert torch.allclose(losses["e_real"], a.mean())
        assert torch.allclose(losses["e_fake"], b.mean())
        expected = torch.autograd.grad(critic + tie, model.e_parameters())
        assert all(map(close, e_seen, expected))
        assert torch.allclose(losses["loss_latent"], tie)
        a, b, tie = passes(fake)
        squared = torch.zeros(())
        if options["reconstruction"]:              # G should give back what the codes are of
            squared = 1.7 * F.mse_loss(fake[:7], 2 * real[:7] - 1)
        game = g_loss(a.detach(), b) + 0.3 * tie + squared
        expected = torch.autograd.grad(game, model.g_parameters())
        assert all(map(close, g_seen, expected))
        assert torch.allclose(losses.get("loss_reconstruction", torch.zeros(())), squared)
        assert not any(loss.requires_grad for loss in losses.values())


def test_swapped_weights_change_the_losses():
    """Each pair of a step's numbers, at values of its own: none is taken for another."""
    numbers = {
        infogan: {"lambda_categorical": 0.7, "lambda_continuous": 0.2, "batch_mix": 0.5,
                  "invariance": 3.0, "naming": 6.0},
        ogan: {"rho_weight": 1.5, "rho_generator": 0.25, "codes": 0.75, "reconstruction": 1.2,
               "batch_mix": 0.5},
    }
    real = common.draw_digits(16)[0]
    for module, weights in numbers.items():
        def gradients(module=module, **weights):
            torch.manual_seed(0)
            model = module.InfoGAN(width=2) if module is infogan else module.OGAN(latent=8, width=2)
            d_seen, g_seen, _ = recorded_step(module, model.train(), first_parameters(model), real,
                                              **weights)
            return torch.cat([gradient.flatten() for gradient in d_seen + g_seen])

        plain = gradients(**weights)
        assert gradients(**weights).equal(plain)
        for a, b in itertools.combinations(weights, 2):
            swapped = weights | {a: min(weights[b], 1.0), b: weights[a]}
            assert not close(gradients(**swapped), plain), (a, b)
        positional = list(weights.values())
        model = module.InfoGAN(width=2) if module is infogan else module.OGAN(latent=8, width=2)
        optimizers = [Recorder(model.parameters(), 1.0)] * 2
        try:                                       # nor can it be, by its place in a call
            module.training_step(model, *optimizers, real, *positional)
            raise AssertionError("taken by position")
        except TypeError:
            pass


class Blanker(torch.optim.SGD):
    """An optimiser whose step makes every weight 0."""

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            p.zero_()


def test_a_step_under_autocast_uses_the_weights_that_it_has():
    """In bfloat16 G learns from D as its update left it: nothing, where that made D's weights 0."""
    real = common.draw_digits(16)[0].float() / 255
    for trunk, cache in itertools.product(("own", "shared"), (True, False)):
        model = infogan.InfoGAN(width=4, trunk=trunk).train()
        weights = {"lambda_categorical": 0.0, "invariance": 0.0} if trunk == "own" else {}
        g = Recorder(model.g_parameters(), 1.0)
        autocast = torch.autocast("cpu", torch.bfloat16, cache_enabled=cache)
        for blank in (False, True):
            optimizer = Blanker if blank else Recorder
            d = optimizer(model.d_parameters(), 1.0)
            saved = {name: value.clone() for name, value in model.state_dict().items()}
            losses = infogan.training_step(model, d, g, real, autocast=autocast, **weights)
            model.load_state_dict(saved)
            assert all(loss.dtype == torch.float32 for loss in losses.values())
            assert blank != any(gradient.any() for gradient in g.seen)


def test_average_follows_the_weights():
    for model in (ogan.OGAN(latent=4, width=2), infogan.InfoGAN(width=2)):
        average = common.MovingAverage(model, 0.2)
        first = next(average.model.parameters())
        start = first.clone()
        sampled = average.model.decode(model.sample_latent(3, rng=torch.Generator()))
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(1.0)
        assert torch.equal(first, start)           # a copy, not the model's own weights
        for _ in range(3):
            average.update(model)
        kept = math.prod(min(0.2, (1 + n) / (10 + n)) for n in range(1, 4))
        assert torch.allclose(first, start * kept + (1 - kept), atol=1e-6)
        assert not any(weight.requires_grad for weight in average.model.parameters())
        latent = model.sample_latent(3, rng=torch.Generator())
        assert not torch.equal(average.model.decode(latent), sampled)
        assert common.MovingAverage(model, 0.0).model is model


# ---------------------------------------------------------------- scores


def test_the_floor_is_what_a_perfect_generator_scores():
    """Fresh images of the same kind, whatever the number of samples and of test images."""
    images, labels, _ = common.draw_digits(3000)
    model = ogan.OGAN(width=2)
    fresh = common.draw_digits(1000, seed=1)[0].float() / 255
    for held_out, samples in ((200, 1000), (700, 400), (300, 300)):
        data = common.Data("x", images[:-held_out], labels[:-held_out], images[-held_out:],
                           labels[-held_out:])
        judge = common.Judge.for_data(data)
        with mock.patch.object(model, "decode", lambda part: fresh[part]):
            found = judge.scores(data, model, torch.arange(samples))
        assert 0.6 < found["frechet"] / found["frechet_floor"] < 1.7, found
    few = common.Data("x", images[:900], labels[:900], images[900:960], labels[900:960])
    judge = common.Judge.for_data(few)             # no more test images than features
    found = judge.scores(few, model, model.sample_latent(500))
    assert math.isnan(found["frechet"]) and math.isnan(found["frechet_floor"])


def test_assignment_is_brute_force():
    torch.manual_seed(0)
    for rows, columns in itertools.product(range(1, 6), range(1, 6)):
        profit = torch.randint(0, 9, (rows, columns))
        match = common.assignment(profit).tolist()
        used = [column for column in match if column >= 0]
        assert len(set(used)) == len(used) == min(rows, columns)
        ours = sum(int(profit[row, column]) for row, column in enumerate(match) if column >= 0)
        wide = profit if rows <= columns else profit.T
        sums = []
        for permutation in itertools.permutations(range(wide.shape[1]), len(wide)):
            sums.append(sum(int(wide[i, j]) for i, j in enumerate(permutation)))
        assert ours == max(sums)


def test_clustering_scores():
    torch.manual_seed(0)
    labels = torch.randint(5, (300,))
    perfect = common.clustering_scores((labels + 2) % 5, labels)
    assert perfect["accuracy"] == 1
    assert abs(perfect["nmi"] - 1) < 1e-9
    assert abs(perfect["ari"] - 1) < 1e-9

    noisy = torch.where(torch.rand(300) < 0.4, torch.randint(7, (300,)), labels)
    found = common.clustering_scores(noisy, labels)
    a, b = noisy.tolist(), labels.tolist()
    pairs = list(itertools.combinations(range(300), 2))
    same_a = [a[i] == a[j] for i, j in pairs]
    same_b = [b[i] == b[j] for i, j in pairs]
    both = sum(x and y for x, y in zip(same_a, same_b))
    expected = sum(same_a) * sum(same_b) / len(pairs)
    ari = (both - expected) / ((sum(same_a) + sum(same_b)) / 2 - expected)
    assert abs(found["ari"] - ari) < 1e-9

    def entropy(values):
        counts = torch.tensor([float(values.count(value)) for value in set(values)])
        return torch.distributions.Categorical(counts).entropy()

    together = list(zip(a, b))
    information = entropy(a) + entropy(b) - entropy(together)
    assert abs(found["nmi"] - float(information / ((entropy(a) + entropy(b)) / 2))) < 1e-5
    assert found["confusion"][2][2] == together.count((2, 2))
    one = common.clustering_scores(torch.zeros(300, dtype=torch.long), labels)
    assert one["nmi"] < 1e-9
    assert one["accuracy"] == one["largest_class"] == max(b.count(k) for k in range(5)) / 300


def test_scores_of_categories_that_come_unequally_often():
    torch.manual_seed(0)
    shares = torch.tensor([0.6, 0.3, 0.1])
    data = common.Data("x", common.draw_digits(500)[0], None, common.draw_digits(50)[0], None)
    model = infogan.InfoGAN(categorical=(3, 4), width=2)
    model.shares.copy_(shares)
    model(data.images)                             # for batch normalisation
    found = infogan.scores(model, data, samples=400)
    assert torch.allclose(torch.tensor(found["shares"]), shares)
    ceilings = [float(torch.distributions.Categorical(shares).entropy()), math.log(4)]
    latent = model.sample_latent(400, rng=torch.Generator().manual_seed(0))
    codes, target = model.encode(model.decode(latent)), model.split_latent(latent)
    for i, ceiling in enumerate(ceilings):
        assert abs(found["mi_categorical_ceiling"][i] - ceiling) < 1e-5
        right = torch.distributions.Categorical(probs=codes.categorical[i])
        expected = right.log_prob(target.categorical[i].argmax(1)).mean() + ceiling
        assert abs(found["mi_categorical"][i] - float(expected)) < 1e-4
    assert infogan.scores(infogan.InfoGAN(categorical=(), width=2), data, 20)["shares"] == []


def test_frechet_distance_in_closed_form():
    """Between a and 3 a + shift: |2 mean + shift|^2 + (1 - 3)^2 tr(S_a)."""
    torch.manual_seed(0)
    a = torch.randn(500, 6) @ torch.randn(6, 6)
    shift = torch.arange(6.0)
    exact = a.double()
    closed = float((2 * exact.mean(0) + shift).square().sum() + 4 * torch.cov(exact.T).trace())
    assert abs(common.frechet_distance(exact, 3 * exact + shift) - closed) < 1e-6 * closed
    assert abs(common.frechet_distance(a, 3 * a + shift) - closed) < 1e-4 * closed
    assert abs(common.frechet_distance(a, a)) < 1e-6


def test_encoding_scores():
    torch.manual_seed(0)
    centres = torch.randn(4, 8) * 5
    labels, test_labels = torch.randint(4, (400,)), torch.randint(4, (100,))
    codes = centres[labels] + torch.randn(400, 8) * 3
    test = centres[test_labels] + torch.randn(100, 8) * 3
    found = common.encoding_scores(codes, labels, test, test_labels)
    votes = labels[torch.cdist(test, codes).argsort(1)[:, :5]]
    right = 0
    for vote, label in zip(votes, test_labels):
        right += int(torch.bincount(vote, minlength=4).argmax()) == int(label)
    assert abs(found["knn_accuracy"] - right / 100) < 1e-6
    assert found["probe_accuracy"] > 0.9
    shuffled = common.encoding_scores(codes, labels[torch.randperm(400)], test, test_labels)
    assert shuffled["probe_accuracy"] < 0.5


def test_a_judge_without_labels_learns_which_way_up_images_are():
    torch.manual_seed(0)
    images, _, _ = common.draw_digits(1500)
    with folder():
        data = common.Data("x", images[:1200], None, images[1200:], None)
        judge = common.Judge.for_data(data)
        turned, labels = judge.turned(images[:8])
        for before, after, label in zip(images, turned, labels.tolist()):
            left_right = before.flip(2) if label in (1, 3) else before
            assert torch.equal(after, left_right.flip(1) if label in (2, 3) else left_right)
        model = ogan.OGAN(width=2)                 # what it decodes are these images, and noisy
        clear = images[:300].float() / 255
        noisy = (clear + 60 / 255 * torch.randn(300, 1, 28, 28)).clamp(0, 1)
        with mock.patch.object(model, "decode", lambda part: clear[part]):
            found = judge.scores(data, model, torch.arange(300))
        with mock.patch.object(model, "decode", lambda part: noisy[part]):
            worse = judge.scores(data, model, torch.arange(300))
        assert found["judge_task"] == "orientation"
        assert found["judge_accuracy"] > 0.5       # by chance 0.25
        assert worse["frechet"] > found["frechet"]
        noise = torch.randint(256, (1500, 1, 8, 8), dtype=torch.uint8)
        for labels in (None, (torch.arange(1500) % 10 > 8).long()):             # nine in ten alike
            parts = (None, None) if labels is None else (labels[:1200], labels[1200:])
            data = common.Data("x", noise[:1200], parts[0], noise[1200:], parts[1])
            judge = common.Judge.for_data(data)
            with mock.patch.object(model, "decode", lambda part: noise[part].float() / 255):
                found = judge.scores(data, model, torch.arange(300))
            assert found["judge_accuracy"] < (0.3 if labels is None else 0.95)  # it guesses
            assert math.isnan(found["frechet"]) and math.isnan(found["frechet_floor"])


def test_a_judge_is_the_same_each_time_and_leaves_the_random_state_alone():
    with folder():
        data = common.load_data(small_data())
        before = torch.get_rng_state()
        one, two = common.Judge.for_data(data), common.Judge.for_data(data)
        assert torch.equal(before, torch.get_rng_state())
        assert equal(one.state_dict(), two.state_dict())
        bare = common.Judge.for_data(common.load_data(small_data(labels=False)))
        assert (one.task, bare.task) == ("classes", "orientation")
        assert not one.training and not any(p.requires_grad for p in one.parameters())
        assert {path.name for path in Path().iterdir()} == {"small.pt"}       # it writes nothing


# ---------------------------------------------------------------- what the laboratory measures


def test_correlation_ratio_and_what_codes_carry():
    values, groups = torch.tensor([1.0, 3.0, 4.0, 8.0]), torch.tensor([0, 0, 2, 2])
    by_hand = (26 - 2 - 8) / 26                    # the variance within the groups is 2 and 8
    assert abs(study.correlation_ratio(groups, values) - by_hand) < 1e-6
    assert study.correlation_ratio(groups, torch.ones(4)) == 0
    model = infogan.InfoGAN(noise=2, categorical=(3,), continuous=2, code_range=2.0, width=2)
    latent = model.sample_latent(600)
    bars = torch.zeros(600, 1, 28, 28)             # upright bars, as wide as the category says
    for image, category in zip(bars, latent[:, 2:5].argmax(1)):
        image[:, 4:24, 10:12 + 2 * int(category)] = 1
    found = study.carried(model, latent, bars)
    assert set(found) == {"c1", "c2", "c3"}
    assert found["c1"]["width"] > 0.999
    assert max(found["c2"]["width"], found["c3"]["width"]) < 0.05


class Bars:
    """A model whose c2 is the width of an upright bar, between -most and most; c3 does nothing."""
    noise, categorical, continuous, code_range = 0, [2], 2, 2.0

    def __init__(self, most):
        self.most = most

    def decode(self, latent):
        images = torch.zeros(len(latent), 1, 28, 28)
        for image, code in zip(images, latent[:, 2].clamp(-self.most, self.most)):
            image[:, 4:24, 10:18 + int(code)] = 1
        return images


def test_effect_within_and_beyond_the_range():
    images = common.draw_digits(200)[0]
    usual = study.measure_strokes(images.float() / 255)["width"].std()

    def width(pixels):                             # 2 area / perimeter of a bar 20 pixels high
        return 20 * pixels / (20 + pixels)

    for most in (4, 2):                            # a code that goes on beyond its range, or not
        found = study.effect(Bars(most), torch.rand(3, 4), 0, images)["width"]
        correlation, change, within = found
        assert abs(change * usual - (width(8 + most) - width(8 - most))) < 0.1
        assert abs(within * usual - (width(10) - width(6))) < 0.1
        assert abs(correlation - (1 if most == 4 else 0.96)) < 0.03
    assert study.effect(Bars(4), torch.rand(3, 4), 1, images)["width"][1:] == [0, 0]


def test_rank_correlation():
    a, b = torch.randn(4, 9).double(), torch.randn(4, 9).double()
    gaps = a.argsort(-1).argsort(-1) - b.argsort(-1).argsort(-1)
    textbook = 1 - 6 * gaps.double().square().sum(-1) / (9 * (81 - 1))
    assert torch.allclose(study.rank_correlation(a, b), textbook.float(), atol=1e-5)
    tied = study.rank_correlation(torch.tensor([1.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0]))
    assert abs(float(tied) - math.sqrt(3) / 2) < 1e-5
    assert float(study.rank_correlation(torch.ones(9), torch.arange(9.0))) == 0


def test_mutual_information_gap():
    torch.manual_seed(0)
    a, b = torch.randint(4, (4000,)), torch.randn(4000)
    alone = study.mutual_information_gap([a, b], {"a": a, "b": b})
    assert alone["mig"] > 0.95
    assert alone["mig_factors"]["a"] > 0.95
    twice = study.mutual_information_gap([a, a, b], {"a": a})     # two codes tell the same: no gap
    assert abs(twice["mig"]) < 1e-9


def test_measured_strokes_follow_the_drawn_factors():
    images, labels, factors = common.draw_digits(3000)
    found = study.measure_strokes(images.float() / 255)
    for name, factor in (("slant", "slant"), ("width", "thickness")):
        for digit in (0, 1, 8):
            some = (labels == digit).nonzero().flatten()[:200]
            correlation = study.rank_correlation(found[name][some], factors[factor][some])
            assert correlation > 0.9, (name, digit)
    for digit in (0, 2, 9):                            # loops and bends; a one has no breadth
        some = (labels == digit).nonzero().flatten()[:200]
        breadth = found["breadth"][some]
        drawn = factors["aspect"][some] * factors["size"][some]
        assert study.rank_correlation(breadth, drawn) > 0.8, digit
        assert study.rank_correlation(breadth, factors["slant"][some]).abs() < 0.25, digit
    bar = torch.zeros(1, 1, 28, 28)
    bar[..., 4:24, 10:14] = 1
    found = study.measure_strokes(bar)
    assert abs(float(found["width"]) - 2 * 80 / 48) < 0.1
    assert abs(float(found["slant"])) < 1e-6
    assert abs(float(found["breadth"]) - math.sqrt(15 / 12)) < 1e-5     # of 4 pixels side by side
    lean = torch.stack([bar[:, :, row].roll(-row // 4, -1) for row in range(28)], 2)
    assert abs(float(study.measure_strokes(lean)["breadth"] - found["breadth"])) < 0.05


def test_measures_of_a_run_folder():
    with folder() as (_, out, _):
        small_data()
        run("infogan", "--continuous", 1)
        found = study.measures("run")
        assert set(found) == {"frechet_doubled", "effect", "carried"}
        assert set(found["effect"]) == {"c2"} and set(found["carried"]) == {"c1", "c2"}
        run("ogan", "--out", "other")
        assert set(study.measures("other")) == {"frechet_prior"}
        study.main(["other"])                      # with the scores in its metrics
        assert '"reconstruction_error"' in out.getvalue()
        found = study.judges(["run", "other"])
        assert len(found["classes"]) == len(found["orientation"]) == 2
        assert min(found["classes"] + found["orientation"]) > 0
        assert abs(abs(found["rank_correlation"]) - 1) < 1e-6
        refused(lambda: study.main(["run", "typo"]), "run typo: expected folders of runs")
        with mock.patch.object(common, "frechet_distance", lambda *_: math.nan):
            found = study.judges(["run", "other"])
        assert found["rank_correlation"] is None and found["classes"] == [None, None]


# ---------------------------------------------------------------- pictures


def test_png_is_read_back():
    for channels in (1, 3):
        picture = torch.randint(0, 256, (9, 14, channels), dtype=torch.uint8)
        assert torch.equal(decode_png(common.png(picture)), picture)


def test_save_grid_takes_what_encode_takes():
    whole = noise(3, 3, 8, 12)
    with folder():
        common.save_grid(whole, "whole.png", 3)
        common.save_grid(whole.float() / 255, "floats.png", 3)
        assert Path("whole.png").read_bytes() == Path("floats.png").read_bytes()
        common.save_grid(whole[0], "one.png")                       # its own size, no border
        assert decode_png(Path("one.png").read_bytes()).equal(whole[0].permute(1, 2, 0))
        common.save_grid(whole, "frames")                           # a folder of such
        assert sorted(contents("frames")) == ["00000.png", "00001.png", "00002.png"]
        assert decode_png(contents("frames")["00002.png"]).equal(whole[2].permute(1, 2, 0))
        common.save_grid(list(whole), "list", 3)
        assert contents("list") == contents("frames")
        for bad, word in ((whole.float(), "x / 255"), (whole.float() / 127 - 1, "(x + 1) / 2"),
                          (whole[0, 0], "(8, 12)"), ([[0]], "list"), (whole / 0.0, "nan"),
                          (whole.long(), "int64"), ([whole[0], whole[0, :, 1:]], "one size")):
            refused(lambda bad=bad: common.save_grid(bad, "bad.png"), word)
        refused(lambda: common.save_grid(whole, "bad.jpg"), "bad.jpg", ".png or a folder")
        refused(lambda: common.save_grid(whole, "bad.png", 0), "0 columns")
        assert not Path("bad.png").exists() and not Path("bad.jpg").exists()


def test_grid_places_images_row_by_row():
    images = torch.arange(5).view(5, 1, 1, 1).expand(5, 1, 4, 8) / 5
    picture = common.grid(images, 3, scale=2)
    assert picture.shape == (2 * 2 * 6, 3 * 2 * 10, 1)
    for i in range(5):
        inside = picture[2 + 12 * (i // 3), 2 + 20 * (i % 3), 0]
        assert int(inside) == round(255 * i / 5)
    shown = [common.grid(torch.zeros(2, channels, 4, 4), 2).shape[2] for channels in (1, 2, 3, 4)]
    assert shown == [1, 1, 3, 3]
    with folder():
        common.save_grid(images, "grid.png", 3)
        assert torch.equal(decode_png(Path("grid.png").read_bytes()), picture)


# ---------------------------------------------------------------- data


def idx_content(tensor):
    header = bytes([0, 0, 8, tensor.ndim]) + struct.pack(f">{tensor.ndim}I", *tensor.shape)
    return gzip.compress(header + bytes(tensor.flatten().tolist()))


class Mirror(http.server.BaseHTTPRequestHandler):
    """One faulty server, see `mirrors`; a subclass sets kind, files, requests and holding."""

    def do_GET(self):
        self.requests.append((self.kind, self.path))
        if self.kind == "silent":
            self.holding.wait(20)
            return
        content = self.files.get(self.path.rsplit("/", 1)[-1], b"<html>Please log in</html>")
        if self.kind == "login" and not self.path.endswith("login"):
            self.send_response(302)
            self.send_header("Location", "/login")
            content = b""
        else:
            self.send_response(404 if self.kind == "missing" else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.kind == "wrong":
            content = bytes(len(content))
        elif self.kind == "cut":
            content = content[:len(content) // 2]
        pieces = 5 if self.kind == "slow" else 1
        with contextlib.suppress(OSError):         # the other side has gone
            for i in range(pieces):
                begin, end = len(content) * i // pieces, len(content) * (i + 1) // pieces
                self.wfile.write(content[begin:end])
                if pieces > 1:
                    self.holding.wait(0.1)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def mirrors(*kinds):
    """Servers on 127.0.0.1, one of each kind: `good`, `slow` but whole, `wrong` bytes of the right
    length, `cut` short, `missing` (404), `login` (a redirect to a page), `silent`, `refused`,
    `unknown` (a host that has no address).

    Yields the four files' contents by name, the URLs, and the list of requests that came;
    common.SOURCES["mnist"] points at the servers, in the order given.
    """
    images, labels, _ = common.draw_digits(30)
    parts = [images[:20, 0], labels[:20].byte(), images[20:, 0], labels[20:].byte()]
    files = {name: idx_content(part) for name, part in zip(common.IDX_FILES, parts)}
    servers, urls, requests, holding = [], [], [], threading.Event()
    for kind in kinds:
        if kind == "unknown":
            urls.append("http://no-such-host.invalid/")
            continue
        if kind == "refused":                      # a port that was free a moment ago
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                urls.append(f"http://127.0.0.1:{free.getsockname()[1]}/")
            continue
        shared = {"kind": kind, "files": files, "requests": requests, "holding": holding}
        handler = type(kind, (Mirror,), shared)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        urls.append(f"http://127.0.0.1:{server.server_port}/")
    checksums = []
    for name in common.IDX_FILES:
        checksums.append(hashlib.sha256(gzip.decompress(files[name])).hexdigest())
    source = (urls, common.SOURCES["mnist"][1], checksums)
    try:
        with mock.patch.dict(common.SOURCES, mnist=source), \
                mock.patch.object(common, "MIRROR_TIMEOUT", 1.0):
            yield files, urls, requests
    finally:
        holding.set()
        for server in servers:
            server.shutdown()
            server.server_close()


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_download_goes_past_every_fault():
    faults = ("missing", "login", "wrong", "cut", "silent")
    with folder(), mirrors("refused", "unknown", *faults, "slow") as (files, _, requests):
        began = time.monotonic()
        data = common.load_data("mnist", "here")
        assert time.monotonic() - began < 20
        assert data.name == "mnist"
        assert {kind for kind, _ in requests} == {*faults, "slow"}
        assert contents("here/mnist") == files     # whole files, nothing else left
        images, labels, _ = common.draw_digits(30)
        assert torch.equal(data.images, images[:20])
        assert torch.equal(data.test_labels, labels[20:])
        assert socket.getdefaulttimeout() is None

        count = len(requests)
        common.load_data("mnist", "here")
        assert len(requests) == count              # the second time nothing is fetched
        Path("here/mnist", common.IDX_FILES[0]).write_bytes(b"damaged")
        assert torch.equal(common.load_data("mnist", "here").images, images[:20])
        assert len(requests) > count


def test_download_that_fails_names_every_url_and_the_remedy():
    with folder(), mirrors("refused", "wrong") as (_, urls, _):
        refused(lambda: common.load_data("mnist", "here"), *urls, "by hand", "here/mnist",
                "--data digits")
        assert not list(Path("here/mnist").iterdir())


def test_two_downloads_into_one_folder():
    with folder(), mirrors("slow") as (files, _, requests):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            one, two = pool.map(common.load_data, ["mnist", "mnist"], ["here", "here"])
        assert len(requests) > 4                   # they did overlap
        assert torch.equal(one.images, two.images)
        assert contents("here/mnist") == files


def test_proxies_are_honoured():
    code = ("import common, sys\n"
            "common.download(sys.argv[1], ['http://no-such-host.invalid/data/'], sys.argv[2],"
            " common.Path('got'))")
    with folder(), mirrors("good") as (files, urls, requests):
        name = common.IDX_FILES[3]
        environment = {k: v for k, v in os.environ.items() if k.lower() != "no_proxy"}
        environment |= {"http_proxy": urls[0], "PYTHONPATH": str(HERE)}
        done = subprocess.run([sys.executable, "-c", code, name, common.SOURCES["mnist"][2][3]],
                              env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert contents("got") == {name: files[name]}
        assert requests == [("good", f"http://no-such-host.invalid/data/{name}")]


def test_auto_falls_back_loudly_and_mnist_never():
    few = common.draw_digits(70)
    with folder() as (_, _, err), mirrors("refused"), \
            mock.patch.object(common, "draw_digits", lambda n: few):
        data = common.load_data("auto", "here")
        assert data.name == "digits"
        assert "DRAWN DIGITS" in err.getvalue()
        flags = ["--data", "mnist", "--data-root", "here", "--epochs", "0", "--out", "run"]
        refused(lambda: infogan.main(flags), "could not get")
        assert not Path("run").exists()
    with folder(), mirrors("good"):
        assert common.load_data("auto", "here").name == "mnist"


def test_files_are_found_where_they_lie():
    """Packed, unpacked, packed anew, with a dot in the name; in each of the usual folders."""
    for place in (".", "mnist", "MNIST/raw", "raw", "MNIST"):
        for kind in range(3):
            with folder(), mirrors("refused") as (files, _, _):
                Path("root", place).mkdir(parents=True)
                for name, content in files.items():
                    if kind == 1:
                        name, content = name.removesuffix(".gz"), gzip.decompress(content)
                    elif kind == 2:
                        name = name.replace("-idx", ".idx")
                        content = gzip.compress(gzip.decompress(content), 1, mtime=7)
                    Path("root", place, name).write_bytes(content)
                assert len(common.load_data("mnist", "root").images) == 20


def test_a_file_of_another_set_is_named():
    with folder() as (_, _, err), mirrors("good") as (files, _, requests):
        Path("root").mkdir()
        for name in files:
            Path("root", name).write_bytes(idx_content(noise(5, 28, 28)))
        assert len(common.load_data("mnist", "root").images) == 20
        assert len(requests) == 4
        for name in files:
            assert f"root/{name}: not mnist's {name}" in err.getvalue()
        assert "--data FOLDER" in err.getvalue()


def test_sources_are_the_published_ones():
    for urls, _, checksums in common.SOURCES.values():
        assert len(checksums) == 4
        for checksum in checksums:
            assert re.fullmatch("[0-9a-f]{32}|[0-9a-f]{64}", checksum)
        for url in urls:
            assert url.startswith("http") and url.endswith("/")
    if not list((HERE / "data").rglob(common.IDX_FILES[0])):
        raise unittest.SkipTest("the genuine MNIST files are not in data/")
    data = common.load_data("mnist", HERE / "data")
    assert data.images.shape == (60_000, 1, 28, 28)
    assert data.test_images.shape == (10_000, 1, 28, 28)
    assert data.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert int(data.images.long().sum()) == 1_567_298_545


def test_digits_are_reproducible_and_readable():
    images, labels, factors = common.draw_digits(3000)
    assert torch.equal(images, common.draw_digits(3000)[0])
    assert not torch.equal(images[:100], common.draw_digits(100, seed=1)[0])
    assert images.dtype == torch.uint8
    assert images.shape == (3000, 1, 28, 28)
    assert torch.bincount(labels).min() > 200
    assert all(v.shape == (3000,) and v.std() > 0 for v in factors.values())
    flat = images.flatten(1).float() / 255
    partial = ((flat > 0) & (flat < 1)).float().mean()
    assert 0.02 < partial < 0.3                    # edges are anti-aliased
    assert 0.05 < flat.mean() < 0.3                # ink is sparse
    for border in (images[:, :, 0], images[:, :, :, 0]):
        assert border.float().mean() < 12          # and stays inside the frame
    found = common.encoding_scores(flat[:2500], labels[:2500], flat[2500:], labels[2500:])
    assert found["knn_accuracy"] > 0.9, found


def own(content, name="own.pt"):
    """What load_data makes of a FILE.pt with this content."""
    torch.save(content, name)
    return common.load_data(name)


def test_own_images_are_taken_where_it_is_certain_what_is_meant():
    image = noise(24, 3, 8, 12)
    grey = noise(24, 1, 8, 12)
    with folder() as (_, out, _):
        data = common.load_data(small_data(100, (3, 20, 32)))
        assert (data.shape, len(data.images), len(data.test_images)) == ((3, 20, 32), 100, 80)
        plain = own({"images": image})
        exact = image.float() / 255
        for given in (image.permute(0, 2, 3, 1), image.long(), image.to(torch.int16),
                      image.to(torch.uint16), exact, exact.double(), exact * (1 + 2e-6) - 1e-6):
            assert torch.equal(own({"images": given}).images, plain.images), given.dtype
        for given in (grey[:, 0], grey.permute(0, 2, 3, 1)):
            assert torch.equal(own({"images": given}).images, own({"images": grey}).images)
        black_and_white = grey > 127
        assert set(own({"images": black_and_white}).images.unique().tolist()) == {0, 255}

        classes = torch.arange(24) % 3
        wanted = own({"images": image, "labels": classes})
        for labels in (classes.tolist(), classes[:, None], classes.double(), classes.byte(),
                       F.one_hot(classes), F.one_hot(classes).float(), classes.to(torch.uint16)):
            found = own({"images": image, "labels": labels})
            assert torch.equal(found.labels, wanted.labels)
            assert found.labels.dtype == torch.int64


def test_own_images_that_cannot_be_meant_are_refused():
    image = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    whole = torch.arange(4)
    bad = [
        ([1], "expected a dict"),
        ({"pictures": image}, "pictures; known are images", "expected a dict"),
        ({"images": image, "targets": whole}, "targets; known are images", "expected a dict"),
        ({"images": [[0]]}, "list", "two images or more"),
        ({"images": image[0, 0]}, "uint8 (8, 8)", "(N, C, H, W)"),
        ({"images": image[:0]}, "uint8 (0, 1, 8, 8)"),
        ({"images": torch.zeros(4, 32, 32, 4).byte()}, "x.permute(0, 3, 1, 2) of channels last"),
        ({"images": torch.zeros(4, 32, 32, 12).byte()}, "x.permute(0, 3, 1, 2) of channels last"),
        ({"images": image.to(torch.complex64)}, "complex64"),
        ({"images": image.to_sparse()}, "uint8 (4, 1, 8, 8)"),
        ({"images": image[:1]}, "`images`", "uint8 (1, 1, 8, 8)", "two images or more"),
        ({"images": image, "test_images": image[:1]}, "`test_images`", "two images or more"),
        ({"images": image, "test_images": image[..., :4]}, "one size throughout"),
        ({"images": image + 1}, "from 1 to 1", "255 * x of whole 0 and 1"),
        ({"images": image.float() - 1}, "from -1 to -1", "(x + 1) / 2"),
        ({"images": image.float() + 255}, "from 255 to 255", "x / 255 of floats to 255"),
        ({"images": image.float() + 999}, "999"),
        ({"images": image / 0}, "nan"),
        ({"images": image.int() + 256}, "256"),
        ({"images": image, "labels": torch.arange(3)}, "int64 (3,)", "4 images"),
        ({"images": image, "labels": whole - 2}, "-2 at 0", "from 0 on"),
        ({"images": image, "labels": whole / 2}, "0.5 at 1", "whole number"),
        ({"images": image, "labels": whole.to(torch.complex64)}, "complex64"),
        ({"images": image, "labels": whole.to_sparse()}, "whole number"),
        ({"images": image, "labels": "cats"}, "str"),
        ({"images": image, "labels": whole, "test_images": image}, "or neither"),
        ({"images": image, "labels": whole, "test_labels": whole}, "give both or neither"),
        ({"images": image, "code": print}, "nothing else", "it holds a "),
        (torch.utils.data.TensorDataset(image), "it holds a torch.utils.data.dataset.Ten"),
    ]
    with folder():
        for content, *words in bad:
            refused(lambda content=content: own(content, "bad.pt"), "bad.pt", *words)
        content = Path("bad.pt").read_bytes()
        torch.save({"images": noise(30, 1, 8, 8)}, "bad.pt")
        content = bytearray(Path("bad.pt").read_bytes())
        content[len(content) // 2] ^= 1            # one bit of a pixel
        Path("bad.pt").write_bytes(content)
        Path("text.pt").write_text("not torch")
        shutil.copy("text.pt", "text.dat")
        torch.save({"images": torch.zeros(9, 1, 8, 9, dtype=torch.uint8)}, "odd.pt")
        refused(lambda: ogan.main(["--data", "odd.pt"]), "1x8x9", "multiples of 4")
        assert not Path("runs").exists()
        for name, word in (("bad.pt", "damaged"), ("text.pt", "damaged"),
                           ("none.pt", "no such file"), ("cifar", "unknown"),
                           ("text.dat", "rename it"), (Path("none"), "unknown")):
            refused(lambda name=name: common.load_data(name), str(name), word)


def test_held_out_images_are_a_random_tenth():
    with folder() as (_, out, _):
        content = {"images": noise(1000, 1, 8, 8), "labels": torch.arange(1000) % 10}
        one, two = own(content), own(content)
        assert (len(one.images), len(one.test_images)) == (900, 100)
        assert torch.equal(one.test_images, two.test_images)                  # the same each time
        assert len(one.test_labels.unique()) == 10                            # of every class
        assert len(one.labels.unique()) == 10
        every = torch.cat([one.images, one.test_images]).flatten(1).double().sum(1).sort().values
        assert torch.equal(every, content["images"].flatten(1).double().sum(1).sort().values)
        place = {bytes(image.flatten().tolist()): i for i, image in enumerate(content["images"])}
        kept = [place[bytes(image.flatten().tolist())] for image in one.images]
        assert kept != sorted(kept) and one.labels.tolist() == [i % 10 for i in kept]
        held = [place[bytes(image.flatten().tolist())] for image in one.test_images]
        assert held != sorted(held) and one.test_labels.tolist() == [i % 10 for i in held]
        assert "one class" not in out.getvalue()
        own(content | {"labels": torch.zeros(1000)})
        assert "all test images are of one class" in out.getvalue()
        assert "largest class" not in out.getvalue()
        own(content | {"labels": (torch.arange(1000) > 800).long()})
        assert "the largest class has 80% of the images" in out.getvalue()
        assert "black" not in out.getvalue()
        own({"images": content["images"] // 16})             # scikit-learn's digits end at 16
        assert "`images` are all but black, at most 15 of 255" in out.getvalue()


def test_images_of_a_file_come_in_a_random_order():
    """Both splits, each with its labels, the same each time, also where they share memory; those of
    a folder stay as they are."""
    images = torch.arange(200).byte().view(200, 1, 1, 1).repeat(1, 1, 8, 8)
    labels = torch.arange(200) // 20
    with folder():
        content = {"images": images, "labels": labels, "test_images": images, "test_labels": labels}
        found, again = own(content), own(content)
        for split in ("", "test_"):
            ours, kinds = (getattr(found, f"{split}{name}") for name in ("images", "labels"))
            assert ours.equal(getattr(again, f"{split}images"))
            order = ours[:, 0, 0, 0].long()
            assert kinds.equal(order // 20) and len(kinds[:40].unique()) > 5
            assert order.sort().values.equal(torch.arange(200))
        parts = [images, labels, images[:100], labels[:100]]
        assert common.own_data("folder", parts).images.equal(images)


def test_labels_of_any_size_are_renumbered():
    with folder():
        content = {"images": noise(40, 1, 8, 8), "test_images": noise(10, 1, 8, 8),
                   "labels": torch.arange(40) % 2, "test_labels": torch.arange(10) % 2 * 10**9}
        assert sorted(own(content).test_labels.unique().tolist()) == [0, 2]
        assert sorted(own(content).labels.unique().tolist()) == [0, 1]


def test_with_one_label_the_judge_learns_orientation():
    data = common.Data("few", noise(40, 1, 8, 8), torch.full((40,), -1), noise(10, 1, 8, 8),
                       torch.arange(10) % 2)
    for known in (0, 1):
        data.labels[:known] = 1
        assert common.Judge.for_data(data).task == "orientation"
    data.labels[:2] = 1
    assert common.Judge.for_data(data).task == "classes"


def test_images_that_share_memory_are_held_out_as_others():
    """Of one channel shown as three, and of windows into a film, each frame in three of them."""
    film = noise(202, 8, 8)
    with folder():
        for images in (film[:, None].expand(-1, 3, -1, -1),
                       film.unfold(0, 3, 1).permute(0, 3, 1, 2)):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = own({"images": images}, "shared.pt")
            plain = own({"images": images.clone(memory_format=torch.contiguous_format)})
            assert found.images.equal(plain.images) and found.test_images.equal(plain.test_images)


def test_loading_takes_little_more_memory_than_the_file():
    if not Path("/proc/self/status").exists():
        raise unittest.SkipTest("no /proc on this system")
    code = """if True:
        import common, torch
        from pathlib import Path

        def kilobytes(key):
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith(key))

        torch.randperm(10).sort()
        before = kilobytes("VmRSS")
        data = common.load_data("large.pt")
        print((kilobytes("VmHWM") - before) * 1024)"""
    with folder():
        torch.save({"images": noise(16_000, 3, 64, 64)}, "large.pt")
        size = os.path.getsize("large.pt")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              env=os.environ | {"PYTHONPATH": str(HERE)})
        assert done.returncode == 0, done.stderr
        most = int(done.stdout.split()[-1])
        assert size < most < 1.3 * size, most / size


def test_a_folder_is_a_data_set_or_told_how_to_become_one():
    images, labels, _ = common.draw_digits(30)
    parts = [images[:20, 0], labels[:20].byte(), images[20:, 0], labels[20:].byte()]
    with folder():
        Path("photos").mkdir()
        Path("photos/cat.jpg").touch()
        refused(lambda: common.load_data("photos"), "python results/pack.py photos", "README.md")
        for names in (("kmnist-train-images-idx3-ubyte.gz", "kmnist-train-labels-idx1-ubyte.gz",
                       "kmnist-test-images-idx3-ubyte.gz", "kmnist-test-labels-idx1-ubyte.gz"),
                      ("train-images.idx3-ubyte", "train-labels.idx1-ubyte",
                       "t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte")):
            place = Path(names[0])
            place.mkdir()
            for name, part in zip(names, parts):
                content = idx_content(part)
                packed = name.endswith(".gz")
                Path(place, name).write_bytes(content if packed else gzip.decompress(content))
            data = common.load_data(str(place))
            assert data.name == place.name
            assert torch.equal(data.images, images[:20])
            assert torch.equal(data.test_labels, labels[20:])
        Path(place, names[3]).write_bytes(b"damaged")
        refused(lambda: common.load_data(str(place)), names[3], "expected an IDX file")
        Path(place, names[3]).unlink()
        refused(lambda: common.load_data(str(place)), "labels for one of")


def test_sets_in_mnists_layout_are_taken_as_they_lie():
    images, labels, _ = common.draw_digits(60)
    parts = [images[:40, 0], labels[:40].byte(), images[40:, 0], labels[40:].byte()]
    emnist = [part.mT if part.ndim == 3 else part for part in parts]

    def write(folder, names, parts, packed):
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, part in zip(names, parts):
            content = idx_content(part)
            Path(folder, f"{name}.gz").write_bytes(content)
            if packed == "both":
                Path(folder, name).write_bytes(gzip.decompress(content))

    names = [name.removesuffix(".gz") for name in common.IDX_FILES]
    with folder():
        write("KMNIST/raw", names, parts, "both")          # as torchvision leaves it
        for place in ("KMNIST", "KMNIST/raw"):
            assert common.load_data(place).images.equal(images[:40])
        for split, drawn in (("letters", emnist), ("digits", emnist)):
            test_names = [name.replace("t10k", "test") for name in names]
            write("EMNIST/raw", [f"emnist-{split}-{name}" for name in test_names], drawn, "gz")
        for place in ("EMNIST/emnist-letters", "EMNIST/raw/emnist-digits"):
            data = common.load_data(place)
            assert data.images.equal(images[:40]) and data.test_images.equal(images[40:])
        refused(lambda: common.load_data("EMNIST"), "choose one", "--data EMNIST/emnist-digits")
        rows = torch.cat([labels[:, None], torch.full((60, 7), 70_000)], 1)
        content = b"\0\0\x0c\x02" + struct.pack(">2I", 40, 8)
        content += struct.pack(">320i", *rows[:40].flatten().tolist())
        write("QMNIST", ["qmnist-train-images-idx3-ubyte"], parts, "gz")
        Path("QMNIST/qmnist-train-labels-idx2-int.gz").write_bytes(gzip.compress(content))
        data = common.load_data("QMNIST")                  # and without test files
        assert (len(data.images), len(data.test_images)) == (36, 4)
        every = torch.cat([data.labels, data.test_labels])
        assert every.bincount(minlength=10).equal(labels[:40].bincount(minlength=10))
        write("bare", names[:1], parts, "gz")              # images alone
        assert common.load_data("bare").labels is None
        for name, word in (("KMNIST/nothing", "no IDX files"), ("x.npz", "NumPy's"),
                           ("no/such/folder", "no file or folder is there")):
            refused(lambda name=name: common.load_data(name), name, word)


def test_labels_of_strange_kinds():
    images = noise(60, 1, 8, 8)
    some = torch.arange(60) % 3
    with folder() as (_, out, _):
        half = torch.where(torch.arange(60) % 2 == 0, some, -1)
        torch.save({"images": images, "labels": half, "test_images": images, "test_labels": half},
                   "small.pt")
        for method in METHODS:
            run(method, "--out", method)
        assert metrics("infogan")[-1]["largest_class"] == 1 / 3
        assert torch.tensor(metrics("infogan")[-1]["confusion"]).sum() == 30
        assert metrics("ogan")[-1]["knn_accuracy"] >= 0
        found = own({"images": images, "labels": some * 10_177})       # counted, not limited
        assert sorted(found.labels.unique().tolist()) == [0, 1, 2]
        none = torch.full((60,), -1)
        assert own({"images": images, "labels": none}).labels is None
        own({"images": images, "labels": none, "test_images": images, "test_labels": some},
            "scored.pt")                              # the test images' are all that InfoGAN needs
        for method in METHODS:
            run(method, "--out", f"{method}-scored", "--data", "scored.pt")
        assert metrics("infogan-scored")[-1]["largest_class"] == 1 / 3
        assert metrics("ogan-scored")[-1]["judge_task"] == "orientation"
        for labels, words in ((torch.where(some == 2, math.nan, some.float()), ("nan at 2",)),
                              (torch.where(torch.arange(60) == 7, -2, some), ("-2 at 7",)),
                              (some / 2, ("0.5 at 1",)), (some[:59], ("int64 (59,)", "60 images"))):
            refused(lambda labels=labels: own({"images": images, "labels": labels}), *words)


def noise(n, *shape):
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8)


def test_strange_data_train_and_leave_no_nan():
    cases = {
        "all alike": (torch.full((60, 1, 8, 8), 7, dtype=torch.uint8), torch.arange(60) % 3),
        "two images": (noise(2, 1, 8, 8), None),
        "fewer than a batch": (noise(11, 1, 8, 8), torch.arange(11)),
        "one class": (noise(60, 1, 8, 8), torch.zeros(60, dtype=torch.long)),
        "large and coloured": (noise(40, 3, 64, 64), torch.arange(40) % 2),
        "many classes": (noise(60, 1, 4, 4), torch.arange(60) * 16),
        "labels of bytes, strided images": (noise(60, 8, 4, 1).permute(0, 3, 1, 2),
                                            (torch.arange(60) % 5).byte()),
    }
    for (images, labels), method in itertools.product(cases.values(), METHODS):
        with folder() as (_, out, _):
            content = {"images": images}
            if labels is not None:
                content["labels"] = labels
            torch.save(content, "small.pt")
            run(method)
            last = metrics("run")[-1]
            assert last["epoch"] == 1
            if method == "ogan":
                alike = bool((images == images[0]).all())
                assert (last["reconstruction_error"] is None) == alike
            for key, value in last.items():
                assert (f"{key} is not defined" in out.getvalue()) == (value is None)
            assert MODELS[method].load("run").sample(3).isfinite().all()


# ---------------------------------------------------------------- models


def test_infogan_shapes():
    for shape in ((1, 28, 28), (3, 32, 20)):
        for n, categorical, continuous in ((1, [10], 2), (7, [10, 5, 5], 0), (7, [], 3)):
            model = infogan.InfoGAN(shape, 62, categorical, continuous, width=4).eval()
            images = model.sample(n)
            assert images.shape == (n, *shape)
            assert 0 <= images.min() <= images.max() <= 1
            codes = model.encode(images)
            assert [part.shape for part in codes.categorical] == [(n, k) for k in categorical]
            assert codes.mean.shape == codes.std.shape == (n, continuous)
            assert (codes.std > 0).all()
            for probabilities in codes.categorical:
                assert torch.allclose(probabilities.sum(1), torch.ones(n))
            levels = (images * 255).round()
            assert torch.equal(model.encode(levels.byte()).mean, model.encode(levels / 255).mean)


def test_infogan_latents_hold_what_is_asked():
    model = infogan.InfoGAN(noise=5, categorical=(10, 4), continuous=2, code_range=0.5, width=2)
    latent = model.split_latent(model.sample_latent(2000))
    first, second = latent.categorical
    assert latent.noise.min() < -0.95 and latent.noise.max() > 0.95
    assert 0.49 < latent.continuous.abs().max() <= 0.5
    assert first.sum(1).eq(1).all()
    assert first.mean(0).min() > 0.07
    assert second.mean(0).min() > 0.2

    def categories(n, given):
        latent = model.split_latent(model.sample_latent(n, categorical=given))
        return [onehot.argmax(1).tolist() for onehot in latent.categorical]

    assert categories(3, 7)[0] == [7, 7, 7]
    assert categories(3, [1, 2, 3])[0] == [1, 2, 3]
    assert categories(2, [[1, 0], [2, 3]]) == [[1, 2], [0, 3]]
    for given, where in (([None, 2], 1), ([3, None], 0), ((None, torch.tensor(2)), 1)):
        drawn = categories(300, given)
        assert set(drawn[where]) == {int(given[where])}             # the other is drawn
        assert set(drawn[1 - where]) == set(range(model.categorical[1 - where]))
    assert set(categories(300, [None])[0]) == set(range(10))
    fixed = model.split_latent(model.sample_latent(3, continuous=[1.5, -1.0]))
    assert torch.equal(fixed.continuous, torch.tensor([[1.5, -1.0]] * 3))
    for bad in (10, -1, [1, 2], 1.5, [[1, 4]] * 3, [[1, 2, 3]] * 3, [None, 4], [None, -1],
                [None, 1.5], [None, 2, 1], [None, None, None], [None, [1, 2]], 1j):
        refused(lambda bad=bad: model.sample_latent(3, categorical=bad), "categor")
    held = model.split_latent(model.sample_latent(500, continuous=[None, -0.25])).continuous
    assert held[:, 1].eq(-0.25).all() and held[:, 0].std() > 0.2    # None is drawn
    each = torch.linspace(-1, 1, 3)[:, None]
    assert model.split_latent(model.sample_latent(3, continuous=each)).continuous.equal(
        each.expand(3, 2))
    for bad in ([1, 2, 3], math.nan, [0.0, math.inf], [], [None, math.nan], [None, 0.0, 0.0]):
        refused(lambda bad=bad: model.sample_latent(3, continuous=bad), "continuous is", "finite")
    one = model.sample_latent(4, rng=torch.Generator().manual_seed(3))
    two = model.sample_latent(4, rng=torch.Generator().manual_seed(3))
    assert torch.equal(one, two)


def test_categories_come_as_often_as_their_shares():
    n, shares = 20_000, torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])
    for rng in (None, torch.Generator().manual_seed(0)):
        torch.manual_seed(0)
        model = infogan.InfoGAN(noise=2, categorical=(5, 3), width=2)
        even = infogan.InfoGAN(noise=2, categorical=(5, 3), width=2, unequal=False)
        for one in (model, even):
            one.shares.copy_(shares)
        first, second = model.split_latent(model.sample_latent(n, rng=rng)).categorical
        for onehot, expected in ((first, shares), (second, torch.full((3,), 1 / 3))):
            counts, likely = onehot.sum(0), expected > 0
            assert counts[~likely].eq(0).all()
            difference = (counts - n * expected)[likely].square() / (n * expected[likely])
            assert difference.sum() < 18           # chi-square's, of up to 3 degrees: p = 0.0004
        both = torch.einsum("na,nb->ab", first, second) / n
        assert (both - shares[:, None] / 3).abs().max() < 0.01      # independent
    torch.manual_seed(7)
    found = even.split_latent(even.sample_latent(n))
    torch.manual_seed(7)
    noise = torch.rand(n, 2) * 2 - 1
    assert found.noise.equal(noise)
    for onehot, k in zip(found.categorical, (5, 3)):
        assert onehot.argmax(1).equal(torch.randint(k, (n,)))
    one = infogan.InfoGAN(noise=2, categorical=(2,), width=2).double()
    one.shares.copy_(torch.tensor([0.9, 0.1]))
    assert one.sample_latent(1000)[:, 2].mean() > 0.85


def test_the_category_of_most_images():
    torch.manual_seed(0)
    model = infogan.InfoGAN(categorical=(4, 3), width=2).train()
    images = common.draw_digits(300)[0]
    model(images)                                  # for batch normalisation
    votes = model.encode(images).categorical[0].argmax(1).tolist()
    kinds = [[i for i, vote in enumerate(votes) if vote == kind][:3] for kind in range(4)]
    first, *_, last = [kind for kind in kinds if len(kind) == 3]
    for some in (first + last[:2], first[:2] + last, list(range(300)), [7]):
        found = model.category_of(images[some])
        counts = [[votes[i] for i in some].count(kind) for kind in range(4)]
        assert type(found) is int and counts[found] == max(counts)
    assert model.sample(3, found).shape == (3, 1, 28, 28)
    assert model.sample(3, [found, None]).shape == (3, 1, 28, 28)


def test_ogan_shapes_and_interpolation():
    for n, shape in itertools.product((1, 7), ((1, 28, 28), (3, 32, 20))):
        model = ogan.OGAN(shape, latent=12, width=4)
        model.encoder[1].weight.data.mul_(1e4)     # untrained, its codes are all but constant
        images = model.sample(n)
        assert images.shape == (n, *shape)
        assert 0 <= images.min() <= images.max() <= 1
        code = model.encode(images)
        assert code.shape == (n, 12)
        assert code.mean(1).abs().max() < 1e-5
        assert (code.std(1, correction=0) - 1).abs().max() < 1e-4
        assert model.reconstruct(images).shape == images.shape
    a, b = torch.rand(3, 32, 20), torch.rand(3, 32, 20)
    frames = model.interpolate(a, b, 5)
    assert frames.shape == (5, 3, 32, 20)
    ends = model.reconstruct(torch.stack([a, b]))
    assert torch.allclose(frames[[0, -1]], ends, atol=1e-5)


def test_samples_are_drawn_from_the_mixture_fitted_to_codes():
    """Three clusters of codes, known apart, and what is drawn once they are found."""
    rng = torch.Generator().manual_seed(0)
    centres = torch.tensor([[8.0, 0, 0], [0, 8, 0], [0, 0, 8]])
    shapes = torch.tensor([[[1.0, 0, 0], [0.9, 0.2, 0], [0, 0, 0.5]],
                           [[0.3, 0, 0], [0, 0.3, 0], [0, 0, 2.0]],
                           [[0.5, 0, 0], [0, 1.5, 0], [0.2, 0, 0.4]]])
    of = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), 6000, True, generator=rng)
    z = centres[of] + (shapes[of] @ torch.randn(6000, 3, 1, generator=rng))[:, :, 0]
    model = ogan.OGAN(latent=3, width=2, components=30)
    same = ogan.OGAN(latent=3, width=2, components=0)
    before = model.sample_latent(4, torch.Generator().manual_seed(1), fitted=True)
    plain = model.sample_latent(4, torch.Generator().manual_seed(1))
    assert torch.allclose(before, plain)           # N(0, I) until it is fitted
    state = torch.get_rng_state()
    with mock.patch.object(ogan.OGAN, "encode", lambda self, part: z[part.long()]):
        model.fit_mixture(torch.arange(199))       # too few
        assert torch.equal(model.means, torch.zeros(30, 3))
        for at_most, components in ((900, 4), (6000, 30)):
            model.fit_mixture(torch.arange(6000), most=at_most)
            assert int((model.weights > 0).sum()) == components
            assert abs(float(model.weights.sum()) - 1) < 1e-5
        same.fit_mixture(torch.arange(6000))
    assert torch.equal(torch.get_rng_state(), state)
    drawn = model.sample_latent(20_000, torch.Generator().manual_seed(2), fitted=True)
    nearest = torch.cdist(drawn, centres).argmin(1)
    for i in range(3):                             # each cluster as it was: share, mean, covariance
        ours, theirs = drawn[nearest == i], z[of == i]
        assert abs(len(ours) / 20_000 - len(theirs) / 6000) < 0.02
        assert (ours.mean(0) - theirs.mean(0)).abs().max() < 0.1
        assert (torch.cov(ours.T) - torch.cov(theirs.T)).abs().max() < 0.15
    assert same.sample_latent(4, torch.Generator().manual_seed(1), fitted=True).equal(plain)
    shown = []
    with mock.patch.object(ogan.OGAN, "decode", lambda self, part: shown.append(part)):
        model.sample(5, torch.Generator().manual_seed(3))
    assert shown[0].equal(model.sample_latent(5, torch.Generator().manual_seed(3), fitted=True))
    by_kind = torch.arange(6000)[of.argsort()]         # as a folder's pictures come
    seen = []
    with mock.patch.object(ogan.OGAN, "encode", lambda self, part: seen.append(part) or z[part]):
        model.fit_mixture(by_kind, most=900)
        kinds = of[seen[-1]].bincount() / len(seen[-1])
        assert (kinds - of.bincount() / 6000).abs().max() < 0.01
        model.fit_mixture(by_kind[:100])           # too few: no longer what it was
    assert model.sample_latent(4, torch.Generator().manual_seed(1), fitted=True).equal(plain)
    assert model.sample_latent(0, fitted=True).shape == (0, 3)
    assert model.half().sample_latent(3, fitted=True).dtype == torch.float16


def small_models(shape=(1, 28, 28)):
    return [infogan.InfoGAN(shape, width=2), infogan.InfoGAN(shape, width=2, trunk="shared"),
            ogan.OGAN(shape, latent=8, width=2, critic="network")]


def test_sizes_are_checked():
    for cls in MODELS.values():
        for shape in ((1, 30, 30), (1, 28, 30)):
            refused(lambda cls=cls, shape=shape: cls(shape), "multiples of 4")
        for wrong in ({"shape": (28, 28)}, {"shape": (0, 28, 28)}, {"shape": (1, 0, 28)},
                      {"width": 0}):
            refused(lambda cls=cls, wrong=wrong: cls(**wrong), "shape is", "width")
    refused(lambda: infogan.InfoGAN(categorical=(), continuous=0), "one code or more")
    refused(lambda: infogan.InfoGAN(categorical=(10, 1)), "2 categories or more")
    for code_range in (0.0, math.nan):
        refused(lambda code_range=code_range: infogan.InfoGAN(code_range=code_range),
                "positive range")
    refused(lambda: infogan.InfoGAN(trunk="half"), "own, shared or detached")
    refused(lambda: infogan.InfoGAN(noise=-1), "noise -1")
    refused(lambda: infogan.InfoGAN(continuous=-1), "continuous -1")
    refused(lambda: ogan.OGAN(components=-1), "components -1")
    refused(lambda: ogan.OGAN(latent=1), "latent is 1", "2 or more")
    assert [ogan.OGAN((c, 8, 8), width=2).latent for c in (1, 2, 3)] == [32, 64, 64]
    refused(lambda: ogan.OGAN(critic="mean"), "avg or network")
    for model in small_models():
        # a convolution would take 30x30, and D would see it beside the generator's 28x28
        refused(lambda model=model: model(torch.rand(2, 1, 30, 30)), "(2, 1, 30, 30)")
        optimizers = [torch.optim.SGD(model.parameters(), 1.0)] * 2
        step = sys.modules[type(model).__module__].training_step
        refused(lambda model=model, step=step, optimizers=optimizers:
                step(model, *optimizers, torch.rand(2, 1, 30, 30)), "(2, 1, 30, 30)")
        refused(lambda model=model, step=step, optimizers=optimizers:
                step(model, *optimizers, torch.rand(1, 1, 28, 28)), "batch of 1", "drop_last")


def test_losses_of_an_unknown_kind_are_refused():
    model, real = ogan.OGAN(latent=4, width=2), torch.rand(4, 1, 28, 28)
    optimizers = [torch.optim.SGD(p, 1.0) for p in (model.e_parameters(), model.g_parameters())]
    for options in ({"gan_loss": "wgan"}, {"latent_loss": "cosine"}):
        refused(lambda o=options: ogan.training_step(model, *optimizers, real, **o), "is unknown")


def test_latents_to_decode_are_checked():
    for model in small_models():
        for bad in (torch.zeros(3, 7), torch.zeros(8), [0.0]):
            refused(lambda bad=bad, model=model: model.decode(bad), "latents are", "(N, ")
        assert model.decode(model.sample_latent(0)).shape == (0, 1, 28, 28)


def test_images_to_encode_are_checked():
    for model in small_models((1, 8, 12)):
        good = [torch.zeros(2, 1, 8, 12), torch.ones(1, 1, 8, 12), torch.zeros(0, 1, 8, 12),
                torch.full((3, 1, 8, 12), 255).byte()]
        for images in good:
            encoded = model.encode(images)
            codes = encoded.mean if isinstance(model, infogan.InfoGAN) else encoded
            assert len(codes) == len(images)
        zeros = torch.zeros(2, 1, 8, 12)
        for bad, why in ((zeros[0, 0], "(8, 12)"), (zeros.mT, "(2, 1, 12, 8)"), (None, "NoneType"),
                         (zeros.repeat(1, 3, 1, 1), "(2, 3, 8, 12)"), (zeros.long(), "int64"),
                         ([[0.0]], "list")):
            refused(lambda bad=bad, model=model: model.encode(bad), why, "(N, 1, 8, 12)")
        for bad, why in ((zeros + 255, "255"), (zeros - 1, "-1"), (zeros / 0, "nan")):
            refused(lambda bad=bad, model=model: model.encode(bad), why, "[0, 1]")


def codes_of(model, images):
    """All that `encode` says of the images, as one tensor."""
    encoded = model.encode(images)
    if isinstance(model, infogan.InfoGAN):
        return torch.cat([*encoded.categorical, encoded.mean, encoded.std], 1)
    return encoded


def test_images_a_rounding_error_outside_the_range_are_clamped():
    large = common.draw_digits(20)[0].float() / 255
    resized = F.interpolate(large, size=(20, 20), mode="bilinear", antialias=True)
    edges = torch.rand(2, 1, 20, 20)
    edges[0, 0, 0, 0], edges[0, 0, 0, 1] = -1e-6, 1 + 1e-6
    for model in small_models((1, 20, 20)):
        for images in (resized, edges):
            assert torch.equal(codes_of(model, images), codes_of(model, images.clamp(0, 1)))


def test_types_and_devices_of_what_comes_in_are_the_models():
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    images = torch.rand(3, 1, 28, 28)
    for cls in MODELS.values():
        plain = cls(width=2).eval()
        latent = plain.sample_latent(3)
        kinds = itertools.product((torch.float32, torch.float64, torch.float16, torch.bfloat16),
                                  devices)
        for kind, device in kinds:
            model = cls(width=2).eval()
            model.load_state_dict(plain.state_dict())
            model.to(device=device, dtype=kind)
            assert model.sample(2).shape == (2, 1, 28, 28)
            for given in (torch.float64, torch.float32, torch.float16):
                decoded = model.decode(latent.to(given)).cpu().float()
                assert torch.allclose(decoded, plain.decode(latent), atol=0.02), (kind, given)
                codes = codes_of(model, images.to(given)).cpu().float()
                assert torch.allclose(codes, codes_of(plain, images), atol=0.2), (kind, given)
                model(images.to(given))
            half = (torch.float16, torch.bfloat16)
            wanted = torch.float32 if kind in half else kind
            assert model.decode(latent).dtype == wanted
        model = cls(width=2).double()
        step = sys.modules[cls.__module__].training_step
        d, g = (torch.optim.Adam(p) for p in (first_parameters(model), model.g_parameters()))
        losses = step(model, d, g, images)         # a float32 batch for a model in float64
        assert all(loss.dtype == torch.float64 for loss in losses.values())


def test_images_to_train_on_are_checked():
    """As `encode` checks them, before the first update, and in a later batch, too."""
    good = common.draw_digits(32)[0]
    floats = good.float() / 255
    bad = [(2 * floats - 1, "(x + 1) / 2"), ((floats - 0.1307) / 0.3081, "-0.4242"),
           (good.float(), "x / 255"), (floats / 0, "nan")]
    for model in small_models():
        step = sys.modules[type(model).__module__].training_step
        optimizers = [torch.optim.Adam(first_parameters(model)),
                      torch.optim.Adam(model.g_parameters())]
        for later in (False, True):
            before = {name: value.clone() for name, value in model.state_dict().items()}
            for images, word in bad:
                refused(lambda images=images, model=model, step=step, optimizers=optimizers:
                        step(model, *optimizers, images), word)
                if getattr(model, "q_trunk", None) is not None:
                    refused(lambda images=images, model=model: infogan.warm_up(model, images), word)
            assert equal(before, model.state_dict()), later
            step(model, *optimizers, good)
            step(model, *optimizers, floats + 1e-4 * torch.randn_like(floats))


def test_a_saved_model_goes_on_training():
    """save, load and on, with the optimisers, is as an uninterrupted loop, to the bit."""
    images = common.draw_digits(64)[0]
    for cls in MODELS.values():
        step = sys.modules[cls.__module__].training_step
        torch.manual_seed(0)
        model = cls(width=2)

        def optimizers(model):
            return {"a": torch.optim.Adam(first_parameters(model), 1e-3),
                    "g": torch.optim.Adam(model.g_parameters(), 1e-3)}

        with folder():
            found = optimizers(model)
            for _ in range(3):
                step(model, found["a"], found["g"], images)
            model.save("model.pt", **found)
            again = cls.load("model.pt")
            others = optimizers(again)
            again.load_optimizers("model.pt", **others)
            results = []
            for one, pair in ((model, found), (again, others)):
                torch.manual_seed(1)
                for _ in range(3):
                    losses = step(one, pair["a"], pair["g"], images)
                results.append((one.state_dict(), losses))
            assert again.training and equal(*results)
            small_data()
            run(cls.METHOD)
            name = "d" if cls is infogan.InfoGAN else "e"
            trained = cls.load("run")
            trained.load_optimizers("run", **{name: optimizers(trained)["a"]})
            refused(lambda again=again, other=others["a"]:
                    again.load_optimizers("model.pt", b=other), "model.pt", "'b'")


def test_layers_may_be_frozen_and_networks_ones_own():
    images = common.draw_digits(32)[0]

    class Own(ogan.OGAN):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.generator = torch.nn.Sequential(torch.nn.Unflatten(1, (32, 1, 1)),
                                                 torch.nn.ConvTranspose2d(32, 1, 28),
                                                 torch.nn.Tanh())

    for model in (*small_models(), Own(width=2)):
        step = sys.modules[type(model).__module__].training_step if type(model) is not Own \
            else ogan.training_step
        networks = [model.generator, getattr(model, "q_trunk", None)]
        frozen = [next(part.parameters()) for part in networks if part is not None]
        frozen.append(first_parameters(model)[0])
        for weight in frozen:
            weight.requires_grad_(False)
        before = [weight.clone() for weight in frozen]
        d, g = torch.optim.Adam(first_parameters(model)), torch.optim.Adam(model.g_parameters())
        count = len(first_parameters(model)) + len(model.g_parameters())
        assert count == len(list(model.parameters())) - len(frozen)
        step(model, d, g, images)
        assert all(map(torch.equal, frozen, before))
    with folder():
        model.save("own.pt")
        z = torch.ones(2, 32)
        assert torch.equal(Own.load("own.pt").decode(z), model.decode(z))
        assert model.sample(3).shape == (3, 1, 28, 28)
        refused(lambda: ogan.OGAN.load("own.pt"), "own.pt", "ogan.py")


def test_parameters_are_split_between_the_players():
    parts = [({"generator", "q_trunk", "q_head"}, {"d_trunk", "d_head", "code_head"}),
             ({"generator"}, {"d_trunk", "d_head", "code_head"}),
             ({"generator"}, {"encoder", "critic"})]
    for model, (of_g, of_first) in zip(small_models(), parts):
        names = {id(p): name.split(".")[0] for name, p in model.named_parameters()}
        assert {names[id(p)] for p in model.g_parameters()} == of_g
        assert {names[id(p)] for p in first_parameters(model)} == of_first
        count = len(first_parameters(model)) + len(model.g_parameters())
        assert count == len(list(model.parameters()))


def test_a_model_is_a_module_like_any_other():
    """forward under hooks, torch.compile and torch.export."""
    images = torch.rand(3, 1, 28, 28)

    def outputs(model):
        found = model(images)
        if isinstance(found, tuple):
            logit, codes = found
            assert logit.shape == (3,)
            return [logit, *codes.categorical, codes.mean, codes.std]
        assert found.shape == (3, 8)
        return [found]

    for model in small_models():
        model.eval()
        plain = outputs(model)
        seen = []
        hook = model.register_forward_hook(lambda *call, seen=seen: seen.append(call))
        outputs(model)
        hook.remove()
        assert len(seen) == 1
        for other in (torch.compile(model, backend="eager"),
                      torch.export.export(model, (images,)).module()):
            for a, b in zip(outputs(other), plain):
                assert torch.allclose(a, b, atol=1e-5)
    assert torch.allclose(plain[0], model.encoder(2 * images - 1), atol=1e-6)


def test_exported_models_give_what_encode_and_decode_give():
    for model in small_models():
        programs = export.exported(model)
        for n in (1, 2, 7):
            latent = model.sample_latent(n)
            images = model.decode(latent)
            assert (programs["decode"].module()(latent) - images).abs().max() < 1e-6
            found = programs["encode"].module()(images)
            found = torch.cat(found, 1) if isinstance(found, tuple) else found
            assert (found - codes_of(model, images)).abs().max() < 1e-6
    with folder():
        model.save("model.pt")
        export.main(["model.pt", "out"])
        assert set(contents("out")) == {"encode.pt2", "decode.pt2"}
        again = torch.export.load("out/decode.pt2").module()(latent)
        assert (again - images).abs().max() < 1e-6
        refused(lambda: export.main(["nothing.pt", "out"]), "nothing.pt")


def test_evaluation_leaves_modes_weights_and_gradients_alone():
    for model in small_models():
        model.train()
        model.generator[1].eval()                  # one layer is frozen on purpose
        modes = [module.training for module in model.modules()]
        before = {name: value.clone() for name, value in model.state_dict().items()}
        images = model.sample(5)
        assert torch.equal(codes_of(model, images), codes_of(model, images))
        assert not images.requires_grad
        assert equal(before, model.state_dict())
        assert modes == [module.training for module in model.modules()]
        refused(lambda model=model, bad=images + 7: model.encode(bad), "[0, 1]")
        assert modes == [module.training for module in model.modules()]


def test_a_given_generator_leaves_the_random_state_alone():
    for model in small_models():
        before = torch.get_rng_state()
        one = model.sample(3, rng=torch.Generator().manual_seed(4))
        two = model.sample(3, rng=torch.Generator().manual_seed(4))
        assert torch.equal(one, two)
        assert torch.equal(before, torch.get_rng_state())


def test_saved_models_load():
    images = torch.rand(3, 1, 28, 28)
    with folder():
        for model in small_models():
            model.eval()
            model.save("plain.pt")
            first = first_parameters(model)
            optimizer = torch.optim.Adam(first)
            sum(p.sum() for p in first).backward()
            optimizer.step()
            model.save("with.pt", d=optimizer)
            before = torch.get_rng_state()
            loaded = type(model).load("with.pt")
            assert torch.equal(before, torch.get_rng_state())
            assert equal(loaded.state_dict(), model.state_dict())
            assert torch.equal(codes_of(loaded, images), codes_of(model, images))
            assert all(p.requires_grad for p in loaded.parameters())
            assert not loaded.training
            again = torch.optim.Adam(first)
            again.load_state_dict(torch.load("with.pt", weights_only=True)["optimizers"]["d"])
            assert equal(again.state_dict()["state"], optimizer.state_dict()["state"])
            assert not equal(type(model).load("plain.pt").state_dict(), model.state_dict())
            expected = codes_of(model, images)
            model.half().save("half.pt")
            half = type(model).load("half.pt")
            assert all(p.dtype == torch.float32 for p in half.parameters())
            assert torch.allclose(codes_of(half, images), expected, atol=0.02)
            assert os.path.getsize("half.pt") < os.path.getsize("plain.pt") * 0.7
        refused(lambda: infogan.InfoGAN.load("plain.pt"), "ogan.py's", "model of infogan.py")
        refused(lambda: model.save("no/such/folder.pt"), "no/such/folder.pt cannot be written")


def test_networks_follow_the_image():
    """Two stages up to 32 pixels; beyond, as many as bring the longer side under 8."""
    expected = {(1, 28, 28): 2, (3, 32, 32): 2, (3, 40, 40): 3, (3, 48, 56): 3, (3, 64, 64): 4,
                (3, 64, 32): 4, (1, 96, 96): 4, (3, 128, 128): 5, (3, 128, 64): 5, (3, 256, 256): 6}
    for shape, count in expected.items():
        channels = [stage[0] for stage in common.stages(shape, 4)[0]]
        assert channels == [4, 8, 16, 32, 32, 32][:count], shape
        for cls in MODELS.values():
            model = cls(shape, width=2).eval()
            images = model.sample(1)
            assert images.shape == (1, *shape)
            codes_of(model, images)
    for shape in ((1, 80, 256), (3, 16, 128), (1, 120, 128), (2, 12, 64), (1, 64, 20)):
        for cls in MODELS.values():                # a shorter side stays once it is odd
            model = cls(shape, width=1).eval()
            images = model.sample(2)
            assert images.shape == (2, *shape)
            assert len(codes_of(model, images)) == 2
            assert common.Judge(shape, 4).eval()(images).shape == (2, 4)
    for shape, words in (((3, 36, 36), "multiples of 8"), ((3, 60, 60), "multiples of 8"),
                         ((3, 100, 100), "multiples of 16"), ((3, 144, 144), "multiples of 32"),
                         ((1, 30, 32), "the other of 4"), ((3, 288, 288), "multiples of 64")):
        refused(lambda shape=shape: infogan.InfoGAN(shape), words)
    for shape in ((3, 64, 64), (3, 128, 128)):
        for cls in MODELS.values():
            with torch.device("meta"):
                weights = sum(p.numel() for p in cls(shape).parameters())
            assert weights < 15e6
            assert 16 * weights < 250e6            # with average and Adam's two moments, in a file


def test_networks_have_the_papers_sizes():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    model = infogan.InfoGAN(width=64)
    assert model.generator[0].weight.shape == (1024, 74)
    assert model.d_trunk[0].weight.shape == (64, 1, 4, 4)
    assert model.d_trunk[6].weight.shape == (1024, 6272)
    for options, on_d, on_q in (({"trunk": "shared"}, 14, None), ({}, 4, 10),
                                ({"continuous": 0}, None, 10), ({"categorical": ()}, 4, None)):
        model = infogan.InfoGAN(width=64, **options)
        for found, size in ((model.code_head, on_d), (model.q_head, on_q)):
            assert (found is None) == (size is None)
            assert size is None or found[3].weight.shape == (size, 128)
        assert model.code_head is None or model.code_head[0].weight.shape == (128, 1024)
        assert (model.q_trunk is None) == (on_q is None)
    for colour_blind, channels in ((True, 1), (False, 3)):
        model = infogan.InfoGAN((3, 32, 32), colour_blind=colour_blind)
        assert model.q_trunk[0].weight.shape[1] == channels
    model = infogan.InfoGAN(categorical=(10, 5, 5), continuous=1)
    assert model.generator[0].weight.shape[1] == 62 + 20 + 1
    t = count(ogan.OGAN(critic="network")) - count(ogan.OGAN())
    assert t == 32 * 64 + 64 + 64 + 1


# ---------------------------------------------------------------- runs

KEYS = {
    "infogan": {"accuracy", "nmi", "ari", "confusion", "mi_categorical", "mi_categorical_ceiling",
                "mi_continuous", "shares", "loss_invariance", "loss_naming", "d_real", "d_fake"},
    "ogan": {"rho", "knn_accuracy", "probe_accuracy", "agreement", "reconstruction_error", "e_real",
             "e_fake"},
}
PICTURES = {
    "infogan": {"samples", "traversal", "c2", "c3"},
    "ogan": {"samples", "reconstruction", "interpolation"},
}


def test_a_run_leaves_everything():
    for method, names in PICTURES.items():
        with folder() as (_, out, _):
            small_data()
            run(method, "--epochs", 3)
            names = names | {"samples-0", "samples-1", "samples-2"}     # not 3; 4, 8 .. would be
            files = {"config.json", "metrics.jsonl", "checkpoint.pt", "index.html"}
            files |= {"best.pt"} if method == "ogan" else set()
            assert set(contents("run")) == files | {f"{name}.png" for name in names}
            lines = metrics("run")
            epochs = [0, 1, 2, 3] if method == "infogan" else [1, 2, 3]     # 0: InfoGAN's warm-up
            assert [line["epoch"] for line in lines] == epochs
            if method == "infogan":
                assert {"seconds", "accuracy", "nmi", "ari"} <= lines[0].keys()
                assert all(0 < line[key] < 1 for key in ("d_real", "d_fake") for line in lines[1:])
            assert all(line["data"] == "small.pt" for line in lines)
            keys = {"seconds", "images_per_second", "frechet", "frechet_floor", "torch", "seed"}
            assert keys | KEYS[method] <= lines[-1].keys()
            config = json.loads(Path("run/config.json").read_text())
            expected = {"torch": torch.__version__, "device": "cpu", "width": 2,
                        "data": str(Path("small.pt").resolve())}
            assert expected.items() <= config.items()
            page = Path("run/index.html").read_text()
            for name in names:
                picture = Path(f"run/{name}.png").read_bytes()
                assert decode_png(picture).float().std() > 0
                assert base64.b64encode(picture).decode() in page
            sheets = 1 if method == "infogan" else 2
            assert page.count("data:image/png;base64,") == len(names) + sheets
            assert page.index("<h2>Scores") < page.index("<h2>Pictures")
            assert page.count('title="frechet"') == 1
            if method == "infogan":                # each category, and the class of most in it
                for k, line in enumerate(lines[-1]["confusion"]):
                    of = f" ({line.index(max(line))})" if any(line) else ""
                    label = f"<span>{k}{of}</span>"
                    assert page.count(label) == 3, label            # traversal, c2, c3
            for key in ("d_real", "d_fake") if method == "infogan" else ("e_real", "e_fake"):
                assert f'aria-label="{key}"' in page
            assert page.count("<script") == 1      # that of the sliders
            outside = r"""(src|href)\s*=\s*(?!["']?data:)|@import|url\(|https?:"""
            assert not re.search(outside, page)
            for line in ("epoch 1/3", "epoch 2/3", "epoch 3/3"):
                assert out.getvalue().count(line) == 1
            assert "\r" not in out.getvalue()
            model = MODELS[method].load("run/checkpoint.pt")
            assert not model.training
            average = checkpoint("run")["parts"]["average"]
            for name, value in model.state_dict().items():
                assert value.equal(average[f"model.{name}"])


def cells(figure, zoom=1):
    """The cells of a Figure with sliders, and their choices of values, in order."""
    sizes = [len(values) for values in figure.sliders.values()]
    columns, rows = sizes[-1], math.prod(sizes[:-1])
    h, w, c = figure.picture.shape
    sheet = figure.picture.view(rows, h // rows, columns, w // columns, c).transpose(1, 2)
    return sheet.flatten(0, 1), list(itertools.product(*figure.sliders.values()))


def test_sheets_show_what_their_sliders_say():
    torch.manual_seed(0)
    for options in ({}, {"categorical": (4, 3)}, {"categorical": ()}, {"continuous": 1},
                    {"shape": (3, 64, 32), "code_range": 0.5}):
        model = infogan.InfoGAN(**options, width=2).eval()
        drawn = infogan.figures(model)
        images, choices = cells(drawn["codes"])
        assert len(images) == len(choices) > 25
        first = model.categorical[0] if model.categorical else 10
        ends = 2 * model.code_range
        for i in (0, 7, len(choices) - 1):
            values = [float(value) for value in choices[i]]
            assert values[0] == i * first // len(choices)
            assert len(values) == 1 + model.continuous
            assert max(map(abs, values[1:])) <= ends
        where = dict(zip(choices, images))
        low, high = (list(drawn["codes"].sliders["c2" if len(model.categorical) == 1 else
                          f"c{len(model.categorical) + 1}"])[i] for i in (0, -1))
        assert (float(low), float(high)) == (-ends, ends)
        if not options:                            # cell by cell, as the model draws it
            rng = torch.Generator().manual_seed(1)
            model.sample_latent(100, rng=rng)
            noise = model.sample_latent(10, rng=rng)[0, :62]
            latent = torch.cat([noise, F.one_hot(torch.tensor(3), 10), torch.tensor([2.0, -1.0])])
            image = (model.decode(latent[None]) * 255).round().byte()[0, 0]
            assert (where["3", "2", "-1"][..., 0].int() - image.int()).abs().max() <= 1
    assert "codes" not in infogan.figures(infogan.InfoGAN(continuous=0, width=2))
    model = ogan.OGAN(latent=6, width=2).eval()
    data = common.Data("x", common.draw_digits(40)[0], None, common.draw_digits(30)[0], None)
    images, choices = cells(ogan.figures(model, data)["directions"])
    assert len(images) == len(choices) == 8 * 4 * 9
    large = torch.rand(4, 3, 1000, 500)            # averaged down to two million numbers
    assert common.sheet(large, 2).shape == (2 * 500, 2 * 250, 3)
    still = dict(zip(choices, images))["3", "1", "0"][..., 0]       # not moved: the reconstruction
    again = (model.reconstruct(data.test_images[2:3]) * 255).round().byte()[0, 0]
    assert (still.int() - again.int()).abs().max() <= 1
    frames, choices = cells(ogan.figures(model, data)["between"])
    assert choices[-1] == ("8 and 9", "9")
    end = (model.reconstruct(data.test_images[8:9]) * 255).round().byte()[0, 0]
    assert (frames[-1, ..., 0].int() - end.int()).abs().max() <= 1
    some = ogan.figures(model, common.Data("x", data.images, None, data.images[:15], None))
    assert some["reconstruction"].picture.equal(
        ogan.figures(model, common.Data("x", data.images, None, data.images[:10], None))
        ["reconstruction"].picture)                # whole rows, each with its reconstructions below
    one = ogan.figures(model, common.Data("x", data.images, None, data.images[:1], None))
    assert one["directions"].picture.float().isfinite().all()


def test_the_samples_of_early_epochs_stay():
    with folder():
        small_data(32)
        run("ogan", "--epochs", 5, "--out", "whole")
        run("ogan", "--epochs", 2)
        names = ("samples-0.png", "samples-1.png")
        early = {name: Path("run", name).read_bytes() for name in names}
        run("ogan", "--epochs", 5, "--resume", "run")
        for name, picture in early.items():
            assert Path("run", name).read_bytes() == picture
        kept = sorted(path.name for path in Path("run").glob("samples-*.png"))
        assert kept == [f"samples-{epoch}.png" for epoch in (0, 1, 2, 4)]
        assert early["samples-0.png"] != early["samples-1.png"]
        assert contents("run")["samples-4.png"] == contents("whole")["samples-4.png"]
        assert Path("run/index.html").read_text().count("data:image/png") == 3 + 4 + 2


def test_training_from_python_gives_the_model_and_keeps_the_config():
    for method, module in METHODS.items():
        with folder():
            small_data()
            warm_up = {"warm_up": 6} if method == "infogan" else {}
            config = module.Config(width=2, epochs=1, batch_size=32, data="small.pt", average=0.0,
                                   limit=100, **warm_up)
            before = dict(vars(config))
            model, finished = module.train(config)
            assert vars(config) == before
            assert isinstance(model, MODELS[method]) and not model.training
            loaded = MODELS[method].load(finished.folder)
            assert equal(model.cpu().state_dict(), loaded.state_dict())
            assert len(finished.data.images) == 100 and len(finished.data.test_images) == 80
            average, _ = module.train(replace(config, average=0.9))
            assert all(weight.requires_grad for weight in average.parameters())  # to go on with


def test_resume_equals_the_uninterrupted_run():
    for method in METHODS:
        with folder():
            small_data()
            whole = run(method, "--epochs", 3, "--out", "whole")
            run(method, "--epochs", 1, "--out", "parts")
            parts = run(method, "--epochs", 3, "--resume", "parts")
            # the first part ended with its final scores in epoch 1; the rest is the same to the bit
            first = 1 if method == "infogan" else 0                 # behind the warm-up's line
            kept = whole["history"][first].keys()
            parts["history"][first] = {key: parts["history"][first][key] for key in kept}
            assert equal(whole, parts)
            assert [line["epoch"] for line in metrics("parts")] == [0, 1, 2, 3][1 - first:]


def test_few_images_are_trained_on_for_as_many_updates():
    """Without --epochs as many as make --updates; reports are at least 100 updates apart, but for
    the last; a run that was stopped, at one or between two, goes on as if it had not been."""
    with folder() as (_, out, _):
        small_data(24, (1, 8, 8))

        def train(name, *flags):
            if "--resume" not in flags:
                flags = ["--data", "small.pt", "--width", "2", "--batch-size", "8", "--samples",
                         "20", "--trunk", "shared", "--device", "cpu", "--out", name, *flags]
            infogan.main(flags)
            return checkpoint(name)

        with mock.patch.object(common.Run, "QUIET", 0):
            whole = train("whole", "--updates", "121")              # 3 in an epoch
        assert whole["epoch"] == whole["config"]["epochs"] == 40
        assert json.loads(Path("whole/config.json").read_text())["epochs"] == 40
        assert [line["epoch"] for line in metrics("whole")] == [34, 40]
        assert whole["parts"]["d"]["state"][0]["step"] == 3 * 40
        names = {path.name for path in Path("whole").glob("samples-*.png")}
        assert names == {"samples-0.png", "samples-34.png"}         # the first since 32
        for line in ("epoch 1/40  33%", "epoch 2/40 100%", "epoch 35/40  33%"):
            assert out.getvalue().count(line) == 1, line

        train("two", "--updates", "121", "--epochs", "34")
        two = train("two", "--resume", "two", "--epochs", "-1")
        kept = whole["history"][0].keys()          # the first part ended with its final scores
        two["history"][0] = {key: two["history"][0][key] for key in kept}
        assert equal(whole, two)
        train("odd", "--updates", "121", "--epochs", "10")
        odd = train("odd", "--resume", "odd", "--epochs", "40")
        assert equal(whole["parts"], odd["parts"]) and equal(whole["random"], odd["random"])
        assert [line["epoch"] for line in metrics("odd")] == [10, 40]
        names = {path.name for path in Path("odd").glob("samples-*.png")}
        assert names == {f"samples-{epoch}.png" for epoch in (0, 10, 40)}
        assert train("one", "--updates", "1")["epoch"] == 1


def test_a_terminal_gets_a_live_line():
    if not hasattr(os, "openpty"):
        raise unittest.SkipTest("no pseudoterminals on this system")
    with folder():
        small_data(640)
        ours, theirs = os.openpty()
        command = [sys.executable, HERE / "ogan.py", "--epochs", "1", "--width", "2",
                   "--batch-size", "32", "--data", "small.pt", "--out", "run"]
        done = subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE,
                                env={**os.environ, "TORCH_HOME": "hub"})
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):         # a closed terminal reads as an error
            while part := os.read(ours, 4096):
                shown += part
        os.close(ours)
        assert done.wait() == 0
        assert done.stderr.read() == b""
        line = shown.decode().split("\r\033[K")[-2]
        assert line.startswith("epoch 1/1 100%"), line
        for word in ("loss_e", "loss_g", "loss_latent", "images/s", "0:00 left"):
            assert word in line, line


def test_same_seed_same_run_other_seed_other_run():
    for method in METHODS:
        with folder():
            small_data()
            a = run(method, "--seed", 1, "--out", "a")
            b = run(method, "--seed", 1, "--out", "b")
            c = run(method, "--seed", 2, "--out", "c")
            assert equal(a["model"], b["model"])
            assert not equal(a["model"], c["model"])


def test_epochs_zero_evaluates():
    with folder():
        small_data()
        for method, score in (("ogan", "rho"), ("infogan", "accuracy")):
            state = run(method, "--epochs", 0, "--out", method)
            assert state["epoch"] == 0
            (line,) = metrics(method)
            assert line["epoch"] == 0 and line[score] is not None
            assert Path(method, "samples.png").exists()
        run("infogan", "--resume", "infogan", "--epochs", 1)
        assert "seconds" in metrics("infogan")[0]  # the warm-up comes with the first epoch


def test_a_limit_takes_the_first_images():
    with folder():
        small_data(300)
        state = run("ogan", "--limit", 64, "--out", "a")
        whole = run("ogan", "--limit", 999, "--out", "b")
        assert (state["fingerprint"][0], whole["fingerprint"][0]) == (64, 300)
        assert state["parts"]["e"]["state"][0]["step"] == 64 // 32
        data = common.load_data("small.pt")
        first = data.images[:64]
        data.limit(64)
        assert data.images.equal(first) and len(data.labels) == 64
        assert state["fingerprint"] == common.fingerprint(data)


def test_without_labels_what_needs_them_is_left_out():
    for method, gone in (("infogan", "accuracy"), ("ogan", "knn_accuracy")):
        with folder() as (_, out, _):
            small_data(labels=False)
            run(method)
            last = metrics("run")[-1]
            assert gone not in last
            assert last["judge_task"] == "orientation"
            assert last["frechet"] is None or last["frechet"] > 0   # None: the judge guesses
            assert "no labels" in out.getvalue()


def test_the_best_epoch_is_kept():
    errors = iter([0.5, 0.3, 0.4, 0.4, 0.5, 0.3, 0.3])              # a last one with the judge
    real = ogan.scores

    def scores(*args):
        return real(*args) | {"reconstruction_error": next(errors)}

    with folder(), mock.patch.object(ogan, "scores", scores):
        small_data(64)
        run("ogan", "--epochs", 3)
        assert [line["best_epoch"] for line in metrics("run")] == [1, 2, 2]
        two = run("ogan", "--epochs", 2, "--out", "two")
        assert equal(ogan.OGAN.load("run/best.pt").state_dict(), two["model"])
        assert not equal(two["model"], checkpoint("run")["model"])


def test_a_run_begins_from_a_trained_model():
    with folder() as (_, out, err):
        small_data()
        first = run("infogan", "--noise", 7, "--width", 3)
        small_data(100, path="other.pt")
        flags = ["--from", "run", "--data", "other.pt"]
        infogan.main([*flags, "--epochs", "0", "--out", "scored"])  # its options, its weights
        assert equal(checkpoint("scored")["model"], first["model"])
        assert checkpoint("scored")["config"]["noise"] == 7
        state = checkpoint("scored")
        assert state["fingerprint"] != first["fingerprint"]
        infogan.InfoGAN.load("run").half().save("half.pt")
        infogan.main(["--from", "half.pt", "--data", "other.pt", "--epochs", "1", "--batch-size",
                      "32", "--lr-generator", "1e-4", "--out", "again"])
        assert [line["epoch"] for line in metrics("again")] == [1]  # no warm-up: Q has learned
        infogan.main(["--from", "half.pt", "--data", "other.pt", "--epochs", "1", "--batch-size",
                      "32", "--categorical", "6", "--warm-up", "3", "--out", "six"])
        assert [line["epoch"] for line in metrics("six")] == [0, 1]  # not these categories
        infogan.main(["--from", "half.pt", "--data", "other.pt", "--epochs", "0", "--batch-size",
                      "32", "--categorical", "5", "5", "--warm-up", "3", "--out", "pair"])
        infogan.main(["--resume", "pair", "--epochs", "1"])         # still to be warmed up
        assert [line["epoch"] for line in metrics("pair")] == [0, 1]
        assert checkpoint("six")["options"]["categorical"] == [6]
        assert "new: shares, generator.0.weight, q_head.3.weight, q_head.3.bias" in out.getvalue()
        infogan.main(["--resume", "six", "--epochs", "2"])
        assert checkpoint("six")["epoch"] == 2
        refused(lambda: infogan.main(["--resume", "half.pt"]), "half.pt is a model", "--from half")
        refused(lambda: ogan.main([*flags, "--out", "x"]), "model of ogan.py")
        refused(lambda: infogan.main([*flags, "--width", "6", "--noise", "9", "--out", "x"]),
                "none fits", "'width': 3")         # shared statistics and shares would
        run("ogan", "--critic", "network", "--out", "critic")
        wider = ["--from", "critic", "--data", "other.pt", "--width", "6", "--out", "x"]
        refused(lambda: ogan.main(wider), "none fits")              # nor is T enough
        assert not Path("x").exists()


def test_unequal_shares_are_taken_over_where_they_count():
    """By --from; a run that has equal ones by --no-unequal leaves them."""
    with folder():
        small_data()
        run("infogan")
        first = checkpoint("run")["model"]["shares"]
        assert first.std() > 0.01
        for flags, shares in (([], first), (["--no-unequal"], torch.full((10,), 0.1))):
            name = f"run{len(flags)}"
            run("infogan", "--from", "run", "--epochs", 0, *flags, "--out", name)
            found = metrics(name)[-1]
            ceiling = torch.distributions.Categorical(shares).entropy()
            assert abs(found["mi_categorical_ceiling"][0] - float(ceiling)) < 1e-5
            assert torch.allclose(torch.tensor(found["shares"]), shares)


def test_other_sizes_and_channels_train():
    for method, shape in itertools.product(METHODS, [(3, 16, 24), (2, 8, 8), (4, 12, 12)]):
        with folder():
            small_data(60, shape)
            run(method)
            picture = decode_png(Path("run/samples.png").read_bytes())
            assert picture.shape[2] == (3 if shape[0] > 2 else 1)


def test_run_folders_are_numbered_and_never_overwritten():
    with folder():
        small_data(40)
        flags = ["--width", "2", "--epochs", "0", "--data", "small.pt"]
        infogan.main(flags)
        infogan.main(flags)
        ogan.main(flags)
        assert {p.name for p in Path("runs").iterdir()} == {"infogan-1", "infogan-2", "ogan-1"}
        before = Path("runs/infogan-1/checkpoint.pt").read_bytes()
        for out, *words in (("runs/infogan-1", "exists already", "--resume"),
                            ("small.pt", "exists already"), ("small.pt/x", "cannot be made")):
            refused(lambda out=out: infogan.main([*flags, "--out", out]), *words)
        assert Path("runs/infogan-1/checkpoint.pt").read_bytes() == before
        with mock.patch.object(common, "load_data", side_effect=AssertionError("data were loaded")):
            refused(lambda: infogan.main([*flags, "--out", "runs/infogan-1"]), "exists already")


def test_no_epoch_is_saved_without_its_scores():
    """Scores that fail cost the epoch: a resumed run makes it anew, as an uninterrupted one."""
    for method, module in METHODS.items():
        step = module.training_step
        steps = []

        def counted(*args, step=step, steps=steps, **options):
            steps.append(1)
            return step(*args, **options)

        with folder():
            small_data()
            whole = run(method, "--epochs", 2, "--out", "whole")
            run(method, "--epochs", 1)
            failure = RuntimeError("out of memory")
            with mock.patch.object(module, "scores", side_effect=failure):
                refused(lambda method=method: run(method, "--epochs", 2, "--resume", "run"),
                        "out of memory")
            assert checkpoint("run")["epoch"] == 1
            with mock.patch.object(module, "training_step", counted):
                state = run(method, "--resume", "run", "--epochs", 2)
            assert len(steps) == 5                 # the whole second epoch
            assert equal(state["parts"], whole["parts"])
            assert metrics("run")[-1].keys() == metrics("whole")[-1].keys()


def test_as_many_samples_are_scored_as_are_asked_for_and_trained_on():
    for method in METHODS:
        for flags, number in ((["--samples", 50], 50), (["--samples", 9999], 160)):
            with folder():
                small_data()
                model = MODELS[method]
                sample_latent = model.sample_latent
                seen = []

                def counted(self, n, *args, seen=seen, sample_latent=sample_latent, **options):
                    seen.append(n)
                    return sample_latent(self, n, *args, **options)

                with mock.patch.object(model, "sample_latent", counted):
                    run(method, *flags, "--batch-size", 33)
                assert max(seen) == max(number, 100)       # 100 are shown


def test_memory_does_not_grow_with_what_is_scored():
    """Large images are made, judged and encoded a few at a time."""
    most = common.batch_for((3, 128, 128))
    assert most * 3 * 128 * 128 * 4 < 13e6                                    # bytes
    assert common.batch_for((1, 28, 28)) == 1000
    images = noise(150, 3, 128, 128)
    data = common.Data("x", images[:100], None, images[100:], None)
    judge = common.Judge(data.shape, 4, "orientation").eval().requires_grad_(False)
    for method, module in METHODS.items():
        model = MODELS[method]((3, 128, 128), width=1)
        seen = []
        for part in (model.generator, judge.features, *model.children()):
            part.register_forward_hook(lambda part, given, out, s=seen: s.append(len(out)))
        module.scores(model, data, judge=judge)
        assert sum(seen) > 300 and max(seen) <= most


def test_data_that_moved_or_changed():
    for method, module in METHODS.items():
        with folder() as (_, out, _):
            small_data()
            run(method)
            Path("small.pt").rename("moved.pt")
            refused(lambda method=method: run(method, "--resume", "run", "--epochs", 2),
                    "small.pt: no such file")
            state = run(method, "--resume", "run", "--epochs", 2, "--data", "moved.pt")
            assert state["epoch"] == 2
            assert state["config"]["data"] == str(Path("moved.pt").resolve())
            content = torch.load("moved.pt", weights_only=True)
            content["images"][7, 0, 14, 14] += 1
            torch.save(content, "moved.pt")
            refused(lambda method=method: run(method, "--resume", "run", "--epochs", 3),
                    "trained on other images", "moved.pt")

            small_data()                           # from Python, as from the command line
            run(method, "--out", "other")
            with contextlib.redirect_stdout(out):
                _, finished = module.train(module.Config.resumed("other", epochs=3))
            assert (finished.epoch, finished.config.width) == (3, 2)
            refused(lambda module=module: module.Config.resumed("other", width=4),
                    "--width cannot change")
            config = module.Config(resume="other", epochs=9, data="small.pt", width=4)
            refused(lambda config=config, module=module: module.train(config),
                    "in other; to go on", "Config.resumed('other')")


def test_a_tilde_is_the_home_folder():
    with folder() as (here, _, _), mock.patch.dict(os.environ, HOME=str(here / "home")):
        Path("home").mkdir()
        small_data(path="home/small.pt")
        flags = ["--data", "~/small.pt", "--out", "~/run", "--data-root", "~/data", "--width", "2"]
        ogan.main([*flags, "--epochs", "1"])
        assert Path("home/run/index.html").exists() and not Path("~").exists()
        assert ogan.OGAN.load("~/run").sample(1).shape == (1, 1, 28, 28)
        ogan.main(["--resume", "~/run", "--epochs", "2"])
        assert str(here) not in Path("home/run/index.html").read_text()
        assert common.load_data("~/small.pt").name == "small.pt"


def test_pages_and_lines_of_long_and_late_runs():
    with folder() as (_, out, _):
        small_data()
        run("ogan", "--epochs", 0)
        run("ogan", "--resume", "run", "--epochs", 1)
        assert "<svg" not in Path("run/index.html").read_text()     # one epoch is no curve
        run("ogan", "--resume", "run", "--epochs", 2)
        assert 'aria-label="loss_e"' in Path("run/index.html").read_text()
        with mock.patch.object(common.Run, "QUIET", 0):
            run("ogan", "--out", "long")
        assert out.getvalue().count("epoch 1/1  20%") == 1
        assert "left" in out.getvalue()
        clock = [0.0]

        def log(self, values, clock=clock, real=common.Run.log):    # a slow step, four fast ones
            real(self, values)
            clock[0] += 30.0 if clock[0] else 100.0

        with mock.patch.object(common.Run, "QUIET", 0), mock.patch.object(common.Run, "log", log), \
                mock.patch.object(common.time, "perf_counter", lambda: clock[0]):
            run("ogan", "--out", "slow")
        line = next(line for line in out.getvalue().splitlines()[::-1] if " 80%" in line)
        assert line.endswith(" 1 images/s  0:30 left"), line        # as in the last minute
        with mock.patch.object(common.Run, "QUIET", 0):
            infogan.main(["--data", "small.pt", "--width", "2", "--batch-size", "32", "--epochs",
                          "1", "--warm-up", "12", "--out", "warm"])
        assert re.search(r"^warming up  50%  \d+:\d\d left$", out.getvalue(), re.M)
        assert "1 epochs of 5 updates, 5 in all; the default is about 1900" in out.getvalue()


# ---------------------------------------------------------------- faults


def whole(folder):
    """Assert that every file in a run folder is whole under its final name; returns the epochs that
    its checkpoint has done, or None."""
    epochs = None
    for path in Path(folder).iterdir():
        content = path.read_bytes()
        if path.suffix == ".png":
            decode_png(content)
        elif path.name == "checkpoint.pt":
            state = torch.load(io.BytesIO(content), weights_only=True)
            epochs = state["epoch"]
            assert all("frechet" in line or "rho" in line or "accuracy" in line
                       for line in state["history"])                # no epoch without its scores
        elif path.name == "metrics.jsonl":
            lines = metrics(folder)
            first = lines[0]["epoch"] if lines else 0
            assert first in (0, 1)
            assert [line["epoch"] for line in lines] == list(range(first, first + len(lines)))
            assert content.endswith(b"\n") or not lines
        elif path.name == "best.pt":
            assert torch.load(io.BytesIO(content), weights_only=True)["model"]
        elif path.name == "config.json":
            assert json.loads(content)["method"]
        elif path.name == "index.html":
            assert content.endswith(b"</html>\n")
        else:
            assert path.suffix == ".part", path
    return epochs


def same_run(a, b):
    """Whether two finished runs left the same: checkpoint, metrics and pictures to the bit, times
    and names apart."""
    images = [{p.name: p.read_bytes() for p in Path(f).glob("*.png")} for f in (a, b)]
    return (equal(checkpoint(a), checkpoint(b)) and equal(metrics(a), metrics(b))
            and images[0] == images[1])


def child(method, *flags, before=None):
    """`run` in a fork, quietly, after calling `before`; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    with contextlib.suppress(BaseException), open(os.devnull, "w") as null, \
            contextlib.redirect_stdout(null):
        if before is not None:
            before()
        run(method, *flags)
        os._exit(0)
    os._exit(1)


def finished(pid):
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status == 0


def die_at(point):
    """Kill this process at the point-th point of what it will write from now on: when half of a
    file is written, before it gets its final name, and after."""
    points = itertools.count()

    def passing():
        if next(points) == point:
            os.kill(os.getpid(), signal.SIGKILL)

    class File(io.FileIO):
        def write(self, content):
            super().write(content[:len(content) // 2])
            passing()
            super().write(content[len(content) // 2:])

    replace = os.replace

    def replace_slowly(a, b):
        passing()
        replace(a, b)
        passing()

    common.open = lambda path, mode: File(path, mode)
    common.os.replace = replace_slowly


def go_on(name):
    """Flags to go on with a run; one killed before its first save has nothing to lose."""
    if Path(name).exists() and whole(name) is None:
        Path(name).rename(f"{name}-never-began-{random.random()}")
    return ("--resume", name) if Path(name).exists() else ("--out", name, "--epochs", 2)


def killed_and_resumed(method, random_kills, every):
    """Kill runs at random moments and, one run each, at every `every`-th point of its writing; all
    must end as the run that was left alone.

    To be called where no backward pass was made: it forks. Returns the number of kills at random
    and in writing.
    """
    torch.set_num_threads(1)
    small_data(shape=(1, 8, 8))
    assert finished(child(method, "--out", "whole", "--epochs", 2))
    began = time.monotonic()
    assert finished(child(method, "--out", "again", "--epochs", 2))
    length = time.monotonic() - began
    assert same_run("whole", "again")
    killed, runs = 0, 0
    while killed < random_kills:
        runs += 1
        done = False
        while not done:
            pid = child(method, *go_on(f"run{runs}"))
            time.sleep(random.uniform(0, 1.2 * length))
            os.kill(pid, signal.SIGKILL)
            done = finished(pid)
            killed += not done
        assert same_run("whole", f"run{runs}")
    for point in itertools.count(0, every):
        name = f"point{point}"
        if finished(child(method, *go_on(name), before=lambda point=point: die_at(point))):
            return killed, point // every
        while not finished(child(method, *go_on(name))):
            pass
        assert same_run("whole", name), point


def test_sigkill_loses_nothing():
    if not hasattr(os, "fork"):
        raise unittest.SkipTest("no fork on this system")
    kills, every, methods = (30, 2, METHODS) if LONG else (1, 72, ["ogan"])
    for method in methods:
        code = ("import test_all, torch; torch.hub.set_dir('hub'); "
                f"print(*test_all.killed_and_resumed('{method}', {kills}, {every}))")
        with folder():
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                                  env=os.environ | {"PYTHONPATH": str(HERE)})
            assert done.returncode == 0, done.stderr
            at_random, writing = map(int, done.stdout.split())
            assert at_random >= kills
            assert writing >= 60 // every
            print(f"        {method}: {at_random} kills at random, {writing} while writing, "
                  "0 epochs lost", file=sys.__stdout__)


def test_ctrl_c_stops_and_the_run_goes_on_from_its_last_epoch():
    """In the warm-up, a step, an epoch's scores, the last ones, a picture, while a file is
    written."""
    cases = [                                      # a function, which call of it, epochs
        ("invariance_loss", 20, 0),                # in InfoGAN's warm-up
        ("training_step", 3, 0), ("training_step", 7, 1), ("scores", 0, 0), ("scores", 1, 1),
        ("scores", 2, 2), ("figures", 0, None), ("figures", 2, None), ("os.replace", 18, None),
    ]
    for method, module in METHODS.items():
        with folder() as (_, _, err):
            small_data(shape=(1, 8, 8))
            run(method, "--epochs", 2, "--out", "whole")
            handlers = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
            for i, (name, call, epochs) in enumerate(cases):
                place, name = (common.os, "replace") if name == "os.replace" else (module, name)
                if not hasattr(place, name) or (i > 5 and method == "infogan" and not LONG):
                    continue
                count, real = itertools.count(), getattr(place, name)

                def patched(*args, real=real, call=call, count=count, **options):
                    if next(count) == call:
                        raise KeyboardInterrupt
                    return real(*args, **options)

                try:
                    with mock.patch.object(place, name, patched):
                        run(method, "--epochs", 2, "--out", f"run{i}")
                    raise AssertionError("not interrupted")
                except SystemExit as stop:
                    assert stop.code == 130
                said = err.getvalue().splitlines()
                assert len(said) == 1 and "stopped; --resume" in said[0]
                err.truncate(err.seek(0))
                parts = list(Path(f"run{i}").glob("*.part"))
                assert not parts or name == "replace"               # as after a kill
                done = whole(f"run{i}")
                assert epochs in (None, done)
                if done is not None:
                    run(method, "--resume", f"run{i}")
                    assert same_run("whole", f"run{i}")
            after = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
            assert after == handlers


def test_a_run_folder_that_lost_or_gained_files():
    with folder():
        small_data()
        run("ogan", "--epochs", 2, "--out", "whole")
        run("ogan")
        shutil.copytree("run", "copy")
        for path in Path("copy").glob("*.png"):
            path.unlink()
        run("ogan", "--resume", "copy", "--epochs", 2)              # only the checkpoint was needed
        assert equal(checkpoint("copy")["parts"], checkpoint("whole")["parts"])
        shutil.copy("run/checkpoint.pt", "run/kept.pt")
        run("ogan", "--resume", "run", "--epochs", 2)
        ogan.main(["--resume", "run/kept.pt", "--epochs", "1"])     # goes on from that very file
        assert checkpoint("run")["epoch"] == 1
        Path("else").mkdir()
        shutil.copy("run/kept.pt", "else")
        refused(lambda: ogan.main(["--resume", "else/kept.pt", "--epochs", "2"]), "run folder")
        assert [path.name for path in Path("else").iterdir()] == ["kept.pt"]
        ogan.main(["--resume", "run/checkpoint.pt", "--epochs", "2"])
        assert equal(checkpoint("run")["parts"], checkpoint("whole")["parts"])
        Path("begun").mkdir()
        Path("begun/config.json").write_text("{}")                  # stopped before its checkpoint
        refused(lambda: run("ogan", "--out", "begun"), "exists already; choose another")
        Path("gone").symlink_to("nowhere/at-all")
        refused(lambda: run("ogan", "--out", "gone"), "--out gone cannot be made")
        for flags in (["--out", "x" * 300], ["--data", "x" * 300, "--out", "other"]):
            refused(lambda flags=flags: run("ogan", *flags), "x" * 20)


def test_a_full_disk_keeps_what_was_there():
    if not Path("/dev/full").exists():
        raise unittest.SkipTest("no /dev/full on this system")
    for method in METHODS if LONG else ["ogan"]:
        with folder():
            small_data()
            run(method, "--epochs", 2, "--out", "whole")
            run(method, "--epochs", 1)
            early = {"best.pt", "samples-0.png", "samples-1.png"}   # not written each time
            names = sorted(set(contents("run")) - early)
            assert len(names) >= 7
            for name in names:                     # the kernel refuses every byte of this one file
                before = Path("run", name).read_bytes()
                Path("run", f"{name}.x.part").symlink_to("/dev/full")
                with mock.patch.object(common.secrets, "token_hex", lambda n: "x"):
                    refused(lambda method=method: run(method, "--resume", "run", "--epochs", 2),
                            f"{method}.py: run/{name} cannot be written: No space left")
                assert Path("run", name).read_bytes() == before
                assert whole("run") in (1, 2)
                assert not list(Path("run").glob("*.part"))
            run(method, "--resume", "run", "--epochs", 2)
            assert not list(Path("run").glob("*.part"))
            assert equal(checkpoint("run")["model"], checkpoint("whole")["model"])
            assert whole("run") == 2


def test_output_that_cannot_be_printed():
    """A log on a full disk, and a pipe whose reader is gone: one line, and nothing is lost."""
    with folder(), contextlib.ExitStack() as closing:
        small_data()
        reader, gone = os.pipe()
        os.close(reader)
        closing.callback(os.close, gone)
        outputs = [(gone, "Broken pipe")]
        if LONG and Path("/dev/full").exists():
            outputs.append((closing.enter_context(open("/dev/full", "w")), "No space left"))
        for out, why in outputs:
            name = f"run-{why[0]}"
            done = script("ogan", f"--epochs 1 --width 2 --data small.pt --out {name}",
                          capture_output=False, stdout=out, stderr=subprocess.PIPE)
            assert done.returncode == 2
            assert done.stderr.count("\n") == 1
            assert f"ogan.py: cannot print: {why}" in done.stderr, done.stderr
            assert not any(Path(name).iterdir())                    # it had not begun
        run("ogan")
        real = print

        def full(*words, **options):
            if "epoch 2/3" in words[0]:
                raise OSError(28, "No space left on device")
            real(*words, **options)

        with mock.patch("builtins.print", full):
            refused(lambda: run("ogan", "--resume", "run", "--epochs", 3), "ogan.py: cannot print")
        assert checkpoint("run")["epoch"] == 2


def test_small_and_read_only_file_systems():
    """A file system too small for a run, and one that is read-only."""
    commands = """set -e
        mkdir small; mount -t tmpfs -o size=300k tmpfs small; cp small.pt small/; cd small
        say() { "$PYTHON" "$HERE/ogan.py" "$@" 2>&1 >/dev/null || echo "status $?"; }
        say --data small.pt --epochs 1 --width 2 --out run
        ls run; rm -r run
        mount -o remount,ro,size=300k tmpfs .
        say --data small.pt --epochs 1 --width 2 --out run
        say --data mnist --data-root here --epochs 1 --out ../run"""
    with folder() as (here, _, _):
        small_data()
        probe = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /tmp"]
        if not shutil.which("unshare") or subprocess.run(probe, capture_output=True).returncode:
            raise unittest.SkipTest("no file system can be mounted here")
        nowhere = "http://127.0.0.1:9"
        environment = {"PYTHON": sys.executable, "HERE": str(HERE), "TORCH_HOME": str(here / "hub"),
                       "http_proxy": nowhere, "https_proxy": nowhere}
        done = subprocess.run(["unshare", "-rm", "sh", "-c", commands], capture_output=True,
                              text=True, env=os.environ | environment)
        assert done.returncode == 0, done.stderr
        small, status, *left, read_only, status2, no_data, status3 = done.stdout.splitlines()
        assert small.startswith("ogan.py: run/") and "No space left" in small, done.stdout
        assert not any(name.endswith(".part") for name in left), done.stdout
        assert "--out run cannot be made: Read-only file system" in read_only, done.stdout
        assert "could not get" in no_data and "Read-only file system" in no_data, done.stdout
        assert status == status2 == status3 == "status 2"


def test_writers_of_one_file_do_not_meet():
    with folder():
        contents = [bytes([number]) * 200_000 for number in range(8)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(common.write_file, ["one"] * 80, contents * 10))
        assert Path("one").read_bytes() in contents
        assert [path.name for path in Path().iterdir()] == ["one"]


def test_surroundings_that_are_not_as_expected():
    """A path with letters that the output's encoding lacks; LOCAL_RANK without torchrun; memory
    that is full while a run is taken up."""
    with folder():
        small_data(path="small-\u4f60.pt")
        environment = {**os.environ, "TORCH_HOME": "hub", "PYTHONIOENCODING": "ascii",
                       "LOCAL_RANK": "0"}
        done = script("ogan", "--data small-\u4f60.pt --epochs 1 --width 2 --out run-\u4f60",
                      env=environment)
        assert done.returncode == 0, done.stderr
        assert "run-\\u4f60" in done.stdout
        small_data()
        with mock.patch.object(torch.nn.Module, "load_state_dict",
                               side_effect=RuntimeError("CUDA out of memory.")):
            refused(lambda: run("ogan", "--resume", "run-\u4f60", "--epochs", 2), "out of memory; ")


def test_a_run_folder_deleted_under_way():
    step, count = ogan.training_step, itertools.count()

    def delete_and_step(*args, **options):
        if next(count) == 7:
            shutil.rmtree("run")
        return step(*args, **options)

    with folder(), mock.patch.object(ogan, "training_step", delete_and_step):
        small_data()
        refused(lambda: run("ogan", "--epochs", 3),
                "run/best.pt cannot be written: No such file or directory")


def test_wrong_checkpoints_are_refused():
    with folder() as (_, _, err):
        small_data(40)
        run("infogan", "--epochs", 0)

        def resume(*flags):
            return infogan.main(["--resume", "run", *flags])

        refused(lambda: ogan.main(["--resume", "run"]), "infogan.py's", "saved model of ogan.py")
        refused(lambda: ogan.OGAN.load("run"), "saved model of ogan.py")
        refused(lambda: ogan.main(["--resume", "nowhere"]), "nowhere: no such file")
        refused(lambda: infogan.InfoGAN.load("small.pt"), "small.pt", "model of infogan.py")
        refused(lambda: resume("--width", "4"), "--width cannot change")
        refused(lambda: resume("--recipe", "paper"), "--recipe cannot change")
        infogan.main(["--epochs", "2", "--resume", "run/checkpoint.pt"])
        refused(lambda: resume("--epochs", "1"), "less than the 2")

        good = checkpoint("run")
        last = next(reversed(good["model"]))
        shorter = {name: value for name, value in good["model"].items() if name != last}
        for change, *words in (({"options": good["options"] | {"width": 3}}, "size mismatch"),
                               ({"options": good["options"] | {"glow": 1}}, "glow"),
                               ({"options": None},),
                               ({"model": shorter}, last)):
            torch.save(good | change, "run/checkpoint.pt")
            refused(lambda: infogan.InfoGAN.load("run"), "version", *words)
        fewer = good["parts"] | {"model": shorter}
        for change, *words in (({"config": good["config"] | {"width": 3}}, "version", "size"),
                               ({"config": good["config"] | {"glow": 1}}, "version", "glow"),
                               ({"config": None}, "version"),
                               ({"parts": fewer}, "version", last),
                               ({"config": good["config"] | {"width": "wide"}},
                                "--width is 'wide'")):
            torch.save(good | change, "run/checkpoint.pt")
            refused(resume, *words)
        for key in ("parts", "random", "epoch", "history"):
            torch.save({k: v for k, v in good.items() if k != key}, "run/checkpoint.pt")
            refused(resume, "version", key)
        before_the_flag = {k: v for k, v in good["config"].items() if k != "invariance"}
        torch.save(good | {"config": before_the_flag}, "run/checkpoint.pt")
        resume()
        assert "run is from before --invariance; it goes on with 10.0" in err.getvalue()


def test_damaged_checkpoints_are_noticed():
    with folder():
        small_data(40)
        good = run("ogan", "--epochs", 1)
        path = Path("run/checkpoint.pt")
        content = path.read_bytes()
        numbers = random.Random(0)
        places = [0, 1, len(content) - 1]
        places += [numbers.randrange(len(content)) for _ in range(300 if LONG else 60)]
        for at in places:
            path.write_bytes(content[:at])
            refused(lambda: common.read_checkpoint("run", "ogan"), "it is damaged")
            flipped = bytearray(content)
            flipped[at] ^= 1 << numbers.randrange(8)
            path.write_bytes(flipped)
            try:                                   # a bit that says nothing, as in the padding
                assert equal(common.read_checkpoint("run", "ogan"), good)
            except InputError as error:
                assert "damaged" in str(error)
        for name in ("options", "model"):          # whole, but not one of ours
            torch.save({key: value for key, value in good.items() if key != name}, path)
            refused(lambda: ogan.OGAN.load("run"), "no model in it")
            refused(lambda: ogan.main(["--from", "run"]), "no model in it")


class Bomb:
    def __reduce__(self):
        return open, ("exploded", "w")


def test_pickled_code_is_refused_and_does_not_run():
    content = {"method": "ogan", "images": Bomb()}
    with folder():
        for kind in range(3):
            if kind == 0:
                torch.save(content, "bomb.pt")
            elif kind == 1:
                torch.save(content, "bomb.pt", _use_new_zipfile_serialization=False)
            else:
                Path("bomb.pt").write_bytes(pickle.dumps(Bomb()))
            for attempt in (lambda: ogan.main(["--resume", "bomb.pt"]),
                            lambda: ogan.OGAN.load("bomb.pt"),
                            lambda: ogan.main(["--data", "bomb.pt", "--out", "run"])):
                refused(attempt, "bomb.pt: expected", "something else")
            assert not Path("exploded").exists()
            assert not Path("run").exists()


def test_a_run_goes_on_on_another_device():
    """A checkpoint as CUDA leaves it goes on here; with a CUDA device, also there and back."""
    for method, flags in (("infogan", []), ("ogan", []), ("ogan", ["--optimizer", "rmsprop"])):
        with folder():
            small_data()
            run(method, "--epochs", 2, "--out", "whole", *flags)
            state = run(method, *flags)
            for part in state["parts"].values():
                for group in part.get("param_groups", ()):
                    group["capturable"] = True
            state["random_cuda"] = torch.zeros(16, dtype=torch.uint8)
            torch.save(state, "run/checkpoint.pt")
            model = MODELS[method].load("run")
            mine = common.optimizer(model.g_parameters(), 1e-3, flags[-1] if flags else "adam")
            model.load_optimizers("run", g=mine)   # in a loop of one's own, too
            model.generator(model.sample_latent(4)).sum().backward()
            mine.step()
            here = run(method, "--epochs", 2, "--resume", "run")
            assert equal(here["model"], checkpoint("whole")["model"])
            if torch.cuda.is_available():
                for device, epochs in (("cuda", 4), ("cpu", 6)):
                    METHODS[method].main(["--resume", "run", "--epochs", str(epochs),
                                          "--device", device])


def test_a_loss_or_weight_that_is_not_finite_stops_the_run():
    for method, term in (("infogan", "loss_information"), ("ogan", "loss_latent")):
        module = METHODS[method]
        step = module.training_step

        def bad_loss(value, at, step=step, term=term):
            count = itertools.count(1)

            def patched(*args, **options):
                losses = step(*args, **options)
                if next(count) == at:
                    losses[term] = torch.tensor(value)
                return losses
            return patched

        def bad_weight(model, *args, step=step, **options):
            losses = step(model, *args, **options)
            next(iter(model.state_dict().values())).fill_(math.inf)
            return losses

        with folder():
            small_data()
            good = run(method)["model"]
            for value, at in ((math.nan, 3), (math.inf, 1), (-math.inf, 5)):
                with mock.patch.object(module, "training_step", bad_loss(value, at)):
                    refused(lambda method=method: run(method, "--resume", "run", "--epochs", 9),
                            f"{term} is no longer finite in epoch 2, by step 5",
                            "run/checkpoint.pt is from before")
                assert whole("run") == 1
                assert equal(good, checkpoint("run")["model"])
            with mock.patch.object(module, "training_step", bad_weight):
                # one step an epoch: no loss tells
                refused(lambda method=method: run(method, "--batch-size", 200, "--out", "other"),
                        f"{next(iter(good))} is no longer finite in epoch 1, by step 1")
                assert whole("other") == 0


def test_out_of_memory_says_what_to_lower():
    try:
        import resource
    except ImportError:
        raise unittest.SkipTest("no memory limits on this system") from None

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))

    with folder():
        small_data()
        done = script("ogan", "--data small.pt --device cpu --width 4000", preexec_fn=limit)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr
        assert "out of memory; lower --batch-size or --width" in done.stderr
        assert not Path("runs").exists()


def test_twenty_epochs_hold_in_both_precisions():
    if not LONG:
        raise unittest.SkipTest("takes minutes: python test_all.py --long")
    for method, term in (("infogan", "loss_information"), ("ogan", "loss_latent")):
        with folder():
            small_data(1000)
            for precision, seed in itertools.product(("fp32", "bf16"), range(5)):
                name = f"{precision}-{seed}"
                run(method, "--epochs", 20, "--width", 4, "--average", 0, "--precision", precision,
                    "--seed", seed, "--out", name)
                lines = metrics(name)[-20:]
                assert [line["epoch"] for line in lines] == list(range(1, 21))
                learned = lines[0][term] - lines[-1][term]
                assert learned > 0.2, (method, name, learned)             # it learns to encode


# ---------------------------------------------------------------- flags

GANS = [f"--gan-loss {gan}" for gan in ogan.GAN_LOSSES if gan != "qp"]
GANS += ["--gan-loss hinge --critic network --latent-loss mse"]
FLAGS = {   # every flag of both methods at a value of its own
    "infogan": [
        "--noise 7", "--categorical 10 5 5", "--categorical", "--continuous 0",
        "--continuous 3 --code-range 2", "--code-range 0.5", "--lambda-categorical 0.5",
        "--lambda-continuous 1", "--trunk shared", "--trunk detached",
        "--lr-discriminator 0.001", "--lr-generator 0.002", "--invariance 0", "--init normal",
        "--average 0", "--average 0.2", "--categorical 6 --continuous 1 --code-range 3",
        "--warm-up 0", "--no-colour-blind", "--no-unequal", "--naming 0",
        "--batch-mix 0.3", "--categorical 4 4 --continuous 0 --trunk detached"],
    "ogan": [
        "--latent 5", "--rho-weight 0.3", "--rho-generator 1", "--critic network",
        "--latent-loss mse", "--latent-loss none", "--lr-encoder 0.001", "--lr-generator 0.002",
        "--average 0", "--average 0.2", "--codes 0", "--components 3", "--reconstruction 0",
        "--batch-mix 0", "--init normal", "--optimizer rmsprop", *GANS],
}


def test_every_flag_does_what_it_says():
    for method, module in METHODS.items():
        with folder():
            small_data(64, (1, 8, 8))
            plain = run(method, "--batch-size", 16, "--out", "plain")
            seen = set()
            for number, line in enumerate(FLAGS[method]):
                words = line.split()
                state = run(method, "--batch-size", 16, "--out", number, *words)
                flags = [word[2:].removeprefix("no-") for word in words if word.startswith("--")]
                names = [flag.replace("-", "_") for flag in flags]
                seen.update(names)
                assert any(state["config"][name] != plain["config"][name] for name in names), line
                changed = not equal(state["model"], plain["model"])
                assert changed, f"{line} changed nothing"
            shared = {f.name for f in fields(common.RunConfig)}
            assert seen == {f.name for f in fields(module.Config)} - shared


def test_common_flags():
    with folder() as (_, out, _):
        small_data(100)
        state = run("ogan", "--batch-size", 25, "--seed", 9, "--width", 3, "--epochs", 2)
        assert state["epoch"] == 2
        assert state["config"]["seed"] == 9
        assert state["model"]["encoder.0.0.weight"].shape[0] == 3
        assert state["parts"]["e"]["state"][0]["step"] == 2 * 100 // 25
        assert "cpu" in out.getvalue()
        with mock.patch.object(torch, "set_num_threads") as threads:
            run("ogan", "--epochs", 0, "--threads", 3, "--out", "threads")
        threads.assert_called_once_with(3)
        out.truncate(out.seek(0))
        for load, said in ((0.3, False), (1.9, True)):              # of two cores
            with mock.patch.object(os, "getloadavg", lambda x=load: (x, x, x), create=True), \
                    mock.patch.object(os, "cpu_count", lambda: 2), \
                    mock.patch.object(torch, "get_num_threads", lambda: 2):
                run("ogan", "--epochs", 0, "--out", f"load-{load}")
            assert ("busy: --threads 1" in out.getvalue()) == said
        state = run("ogan", "--batch-size", 5000, "--out", "one")       # the whole set is a batch
        assert state["parts"]["e"]["state"][0]["step"] == 1
        plain = run("infogan", "--precision", "fp32", "--out", "fp32")
        low = run("infogan", "--precision", "bf16", "--out", "bf16")
        auto = run("infogan", "--out", "auto")
        assert not equal(low["model"], plain["model"])
        picked = common.pick_precision("auto", torch.device("cpu"))
        assert auto["config"]["precision"] == picked
        assert equal(auto["model"], {"fp32": plain, "bf16": low}[picked]["model"])
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    assert common.pick_device("auto").type == kind


def test_precision_is_what_the_processor_can_do():
    cpu = torch.device("cpu")
    assert common.pick_precision("bf16", cpu) == "bf16"
    assert common.pick_precision("fp32", cpu) == "fp32"
    for capabilities, precision in (({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"),
                                    ({"avx2": True, "avx512_bf16": False}, "fp32")):
        with mock.patch.object(torch.cpu, "get_capabilities", create=True) as ask:
            ask.return_value = capabilities
            assert common.pick_precision("auto", cpu) == precision


def test_recipe_paper_is_the_paper():
    expected = {
        infogan: {"width": 64, "batch_size": 128, "noise": 62, "categorical": [10],
                  "continuous": 2, "code_range": 1.0, "lr_discriminator": 2e-4,
                  "lr_generator": 1e-3, "lambda_categorical": 1.0, "invariance": 0.0,
                  "average": 0.0, "init": "normal", "trunk": "shared", "epochs": 11,
                  "batch_mix": 0.0, "warm_up": 0, "naming": 0.0, "unequal": False},
        ogan: {"width": 64, "latent": 128, "rho_weight": 0.5, "rho_generator": 1.0,
               "gan_loss": "qp", "critic": "avg", "latent_loss": "pearson",
               "optimizer": "rmsprop", "lr_encoder": 1e-4, "lr_generator": 1e-4, "average": 0.0,
               "codes": 0.0, "reconstruction": 0.0, "batch_mix": 0.0, "init": "normal",
               "components": 0},
    }
    for module, values in expected.items():
        assert values.items() <= vars(module.Config.paper()).items()
    given = infogan.Config.paper(width=8, invariance=1.0)         # what is given comes first
    assert (given.width, given.invariance, given.epochs) == (8, 1.0, 11)
    assert infogan.Config.paper(updates=9).epochs == -1           # as many as make these
    assert infogan.Config.paper(updates=9, epochs=2).epochs == 2
    assert common.parse(ogan.Config, "x", ["--recipe", "paper", "--updates", "9"]).epochs == -1
    with folder():
        small_data(64)
        state = run("infogan", "--recipe", "paper", "--epochs", 0)
        assert state["config"]["lr_discriminator"] == 2e-4
        assert state["config"]["width"] == 2


def torchrun(*command):
    torch_run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
                 "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    environment = {**os.environ, "TORCH_HOME": "hub", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*torch_run, *command], capture_output=True, text=True, env=environment)


def test_two_processes_train_as_one():
    with folder():
        small_data(128)
        flags = ["--epochs", "2", "--width", "2", "--data", "small.pt", "--device", "cpu",
                 "--warm-up", "6"]
        done = torchrun(HERE / "infogan.py", *flags, "--batch-size", "32", "--out", "run")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch 2/2") == 1
        assert json.loads(Path("run/config.json").read_text())["processes"] == 2
        assert [line["epoch"] for line in metrics("run")] == [0, 2]     # fewer than 100 updates
        assert checkpoint("run")["parts"]["d"]["state"][0]["step"] == 2 * 128 // 32
        with mock.patch.object(common, "processes", lambda: (0, 2)):
            for size in (33, 2):
                config = infogan.Config(batch_size=size, data="small.pt")
                refused(lambda config=config: common.Run(config), f"--batch-size {size}",
                        "each of 2 processes")


def test_the_first_process_alone_writes():
    with folder(), mock.patch.object(common, "processes", lambda: (1, 2)), \
            mock.patch.object(common, "share", lambda *tensors: None):
        data = common.load_data(small_data())
        model = ogan.OGAN(width=2)
        other = common.Run(ogan.Config(data="small.pt", out="run", width=2, epochs=1))
        other.restore(model=model, average=common.MovingAverage(model, 0.5))
        for real in other.batches():
            assert real.shape == (32, 1, 28, 28)                    # half of 64
            other.log({"loss": real.float().mean()})
        other.report(ogan.scores(model, data), ogan.figures(model, data))
        assert other.epoch == 1
        assert not Path("run").exists()


def test_averaged_gradients_are_those_of_the_whole_batch():
    code = """if True:
        import sys, time, torch, torch.distributed as dist
        sys.path.insert(0, sys.argv[1])
        import common
        dist.init_process_group("gloo")
        torch.manual_seed(0)
        net, images, target = torch.nn.Linear(5, 3), torch.randn(8, 5), torch.randn(8, 3)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        loss = (net(images) - target).square().mean()
        whole = torch.autograd.grad(loss, list(net.parameters()))
        mine = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)
        (net(images[mine]) - target[mine]).square().mean().backward()
        common.average_gradients(optimizer)
        for p, gradient in zip(net.parameters(), whole):
            assert torch.allclose(p.grad, gradient, atol=1e-6)
        dist.barrier()       # gloo may abort where one leaves while the other is still at work
        time.sleep(0.5)
        dist.destroy_process_group()"""
    with folder():
        Path("check.py").write_text(code)
        done = torchrun("check.py", HERE)
        assert done.returncode == 0, done.stderr


def test_replays_of_a_captured_step_have_latents_of_their_own():
    if not torch.cuda.is_available():
        raise unittest.SkipTest("no CUDA device")
    latents = torch.zeros(4, device="cuda")

    def step(real):
        latents.copy_(torch.randn(4, device="cuda"))
        return {"loss": latents.sum()}

    captured = common.Captured(step)
    seen = set()
    for _ in range(8):
        captured(torch.zeros(1, device="cuda"))
        seen.add(tuple(latents.tolist()))
    assert captured.graph is not None and len(seen) == 8


def test_captured_steps_equal_eager_ones():
    if not torch.cuda.is_available():
        raise unittest.SkipTest("no CUDA device")
    with folder():
        small_data(640)
        for method in METHODS:
            flags = ["--device", "cuda", "--precision", "fp32"]
            captured = run(method, *flags, "--out", f"{method}-graph")["history"][-1]
            with mock.patch.object(common.Captured, "WARM_UP", 10**9):
                eager = run(method, *flags, "--out", f"{method}-eager")["history"][-1]
            for name, value in eager.items():
                if name.startswith("loss"):
                    assert abs(captured[name] - value) < 0.05, name


BAD_FLAGS = [
    ("--epochs -2", "--epochs"), ("--epochs x", "--epochs"), ("--epochs", "--epochs"),
    ("--batch-size 1", "--batch-size"), ("--width 0", "--width"), ("--device gpu", "--device"),
    ("--device meta", "--device meta"), ("--device cpu cpu", "cpu"), ("--data cifar", "--data"),
    ("--data none.pt", "no such file"), ("--nonsense", "--nonsense"), ("--seed -1", "--seed"),
    ("--seed 9223372036854775808", "0 to 9223372036854775807"),
    ("--lr-generator nan", "--lr-generator"),
    ("--width 99999999999999999999", "1 to 1000000"), ("--recipe cake", "paper"),
    ("--precision fp16", "bf16"), ("--resume .", "no such file"),
    ("--resume nowhere", "no such file"), ("--resume . --out x", "cannot change"),
    ("--epoch 5", "did you mean --epochs?"),
    ("--recip paper", "did you mean --recipe"), ("--lr 1e-3", "did you mean --lr-"),
    ("--bacth-size 5", "did you mean --batch-size"), ("--limit -1", "--limit"),
    ("--updates 0", "--updates"),
]
OWN_BAD_FLAGS = {
    "infogan": [
        ("--categorical 1", "--categorical"), ("--categorical --continuous 0", "at least one code"),
        ("--code-range 0", "--code-range"), ("--noise -1", "--noise"), ("--trunk half", "detached"),
        ("--separate-q", "unrecognized arguments: --separate-q"), ("--init zeros", "normal"),
        ("--lr 1", "--lr-discriminator or --lr-generator"),
        ("--lambda-continuous -1", "--lambda-continuous")],
    "ogan": [
        ("--latent 1", "--latent"), ("--critic mean", "avg"), ("--gan-loss wgan", "nonsaturating"),
        ("--latent-loss l1", "pearson"), ("--codes 2", "--codes"),
        ("--lr 1", "--lr-encoder or --lr-generator"), ("--average 1", "--average"),
        ("--rho-weight -1", "--rho-weight")],
}


def test_bad_flags_get_one_line():
    cases = list(BAD_FLAGS)
    if not torch.cuda.is_available():
        cases.append(("--device cuda", "--device cuda"))
    for method, module in METHODS.items():
        with folder():
            for line, word in cases + OWN_BAD_FLAGS[method]:
                refused(lambda module=module, line=line: module.main(line.split()), method, word)
            assert not list(Path().iterdir())


def test_help_tells_both_recipes():
    for method in METHODS:
        with folder() as (_, out, _):
            try:
                METHODS[method].main(["--help"])
            except SystemExit as stop:
                assert not stop.code
            text = " ".join(out.getvalue().split())
            assert "(default: 32; paper: 64)" in text and "(default: 'auto')" in text
            assert "--recipe" in text


# ---------------------------------------------------------------- studies


def test_a_study_fills_in_its_file_and_goes_on():
    def fill():
        """The exit status."""
        try:
            study.study("s.json")
        except SystemExit as stop:
            return stop.code
        return 0

    with folder() as (here, _, _):
        small = (f"--epochs 51 --width 2 --batch-size 32 --device cpu "     # reports at 50 and 51
                 f"--data {here / small_data(64)}")
        asked = {"arms": {"a": f"ogan.py {small}", "b": f"ogan.py {small} --latent 1",
                          "c": f"infogan.py {small} --warm-up 6"},
                 "seeds": {"a": [3, 4], "b": [3], "c": [5]}, "jobs": 2, "history": ["loss_g"],
                 "reach": {"rho": -1, "knn_accuracy": 2}, "pictures": ["samples", "traversal"]}
        Path("s.json").write_text(json.dumps(asked))
        assert fill() == 1                         # one failed
        record = json.loads(Path("s.json").read_text())
        one, two = record["runs"]["a"]["3"], record["runs"]["a"]["4"]
        assert one["seed"] == 3
        assert 0 < one["seconds_to_rho_-1"] < one["seconds"]
        assert one["seconds_to_knn_accuracy_2"] is None
        assert len(one["history"]["loss_g"]) == 2
        assert one["history"]["loss_g"][-1] == one["loss_g"]
        assert Path("s-a-samples.png").exists() and Path("s-c-traversal.png").exists()
        n, mean, deviation, least, most = record["summary"]["a"]["rho"]
        assert (n, {least, most}) == (2, {one["rho"], two["rho"]})
        assert abs(mean - (one["rho"] + two["rho"]) / 2) < 1e-9
        assert abs(deviation - abs(one["rho"] - two["rho"]) / math.sqrt(2)) < 1e-9
        assert "effect.c2.slant.0" in record["summary"]["c"]
        assert "--latent" in record["runs"]["b"]["3"]["failed"]   # a failure is kept
        assert record["summary"]["b"] == {}                       # and counts for nothing

        del record["runs"]["a"]["3"]
        record["runs"]["a"]["4"]["kept"] = True
        record["seeds"] = {"a": [3, 4], "b": [3, 4], "c": [5]}
        Path("s.json").write_text(json.dumps(record))
        assert fill() == 1
        again = json.loads(Path("s.json").read_text())
        assert again["runs"]["a"]["3"]["rho"] == one["rho"]
        assert again["runs"]["a"]["4"]["kept"]
        assert list(again["runs"]["b"]) == ["3", "4"]


def test_a_study_is_plotted():
    with folder():
        runs = {"0": {"history": {"rho": [0.0, 1.0, 0.5]}}, "1": {"history": {"rho": [0.0, 0.5]}}}
        record = {"arms": {"a": "ogan.py", "b": "ogan.py"}, "seeds": {"a": [0, 1], "b": []},
                  "runs": {"a": runs}}
        Path("s.json").write_text(json.dumps(record))
        study.main(["plot", "s.json", "rho"])
        lines = re.findall(r'points="([^"]*)"', Path("s-rho-training.svg").read_text())
        corners = ["70.0,240.0 260.0,40.0 450.0,140.0", "165.0,240.0 450.0,140.0",
                   "117.5,240.0 355.0,90.0"]                      # two runs, and their mean
        assert lines == corners
        runs["0"]["history"]["seconds"] = [2.0, 1.0, 1.0]
        Path("s.json").write_text(json.dumps(record))
        study.main(["plot", "s.json", "rho", "seconds"])
        lines = re.findall(r'points="([^"]*)"', Path("s-rho-seconds.svg").read_text())
        assert lines == ["70.0,240.0 260.0,40.0 450.0,140.0"] * 2
        record["runs"] = {"a": {"0": {"x": 0.0, "y": [2.0]}, "1": {"x": 1.0, "y": [4.0]}},
                          "b": {"0": {"x": 0.25, "y": [3.0]}, "1": {"y": [9.0]}}}
        record["others"] = {"b": {"x": [0.5]}, "else": {"x": [0.5], "y.0": [2.0]}}
        Path("s.json").write_text(json.dumps(record))
        study.main(["dots", "s.json", "x"])
        study.main(["dots", "s.json", "x", "y.0"])
        places = [re.findall(r'cx="([^"]*)" cy="([^"]*)"', Path(f"s-{name}.svg").read_text())
                  for name in ("x", "x-y.0")]
        assert places == [[("70.0", "38.0"), ("450.0", "38.0"), ("165.0", "62.0"),
                           ("260.0", "62.0")],
                          [("70.0", "240.0"), ("450.0", "40.0"), ("165.0", "140.0"),
                           ("260.0", "240.0")]]
        study.main(["dots", "s.json", "x", "--arms", "b"])
        assert Path("s-x.svg").read_text().count("<circle") == 2
        for words in (["plot", "s.json", "loss"], ["plot", "s.json"], ["plot", "t.json", "rho"],
                      ["dots", "s.json", "z"], ["dots", "s.json"], ["dots", "s.json", "x", "z"],
                      ["dots", "s.json", "x", "--arms", "c"]):
            refused(lambda words=words: study.main(words))


def test_runs_are_compared_on_one_page():
    with folder() as (_, out, _):
        lines = {"a<b": [{"epoch": 1, "rho": 0.5}, {"epoch": 2, "rho": 0.25, "frechet": None}],
                 "c": [{"epoch": 1, "rho": 0.1, "frechet": 3.0},
                       {"epoch": 3, "rho": 0.2, "frechet": 1.25, "data": "<mnist>"}]}
        for name, history in lines.items():
            Path(name).mkdir()
            common.save_grid(torch.rand(4, 1, 8, 8), f"{name}/samples.png")
            Path(name, "metrics.jsonl").write_text("\n".join(map(json.dumps, history)))
        study.main(["compare", "a<b", "c"])
        page = Path("compare.html").read_text()
        for name in lines:
            assert base64.b64encode(Path(name, "samples.png").read_bytes()).decode() in page
        for words in ("<th>Fréchet distance<td><td>1.25<", "<th>rho<td>0.25<td>0.2<", "a&lt;b",
                      "<th>data<td><td>&lt;mnist&gt;<"):
            assert words in page, words
        assert "a<b" not in page
        charts = re.findall("<svg.*?</svg>", page)
        assert [chart.count("polyline") for chart in charts] == [2, 1]          # rho, frechet
        assert 'points="50.0,20.0 180.0,113.8"' in charts[0]        # from 0.1 to 0.5, epochs 1 to 3
        refused(lambda: study.main(["compare", "c", "none"]), "none is no run with scores")
        refused(lambda: study.main(["compare"]), "compare RUN RUN")
        Path("empty").mkdir()
        for words in (["empty"], ["empty", "c"]):
            refused(lambda words=words: study.main(words), "expected")
        study.main(["--help"])
        assert "python results/study.py compare" in out.getvalue()


def test_introvae_divergence_is_that_of_torch_distributions():
    mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, (log_variance / 2).exp()),
                                                 normal(0.0, 1.0))
    assert torch.allclose(introvae.divergence(mean, log_variance), expected.sum(1), atol=1e-5)


def test_introvae_step_gives_each_player_its_own_gradient():
    """By autograd through the losses of Algorithm 1, written out once more."""
    real = common.draw_digits(16)[0].float() / 255
    torch.manual_seed(0)
    model = introvae.IntroVAE(latent=8, width=2).train()
    weights = {"alpha": 0.5, "margin": 9.0, "beta": 0.3}
    e_seen, g_seen, losses = recorded_step(introvae, model, model.e_parameters(), real, **weights)
    prior = torch.randn(16, 8)
    mean, log_variance = model.encoder(2 * real - 1).split(8, 1)
    latent = mean + log_variance.exp().sqrt() * torch.randn(16, 8)

    def flat(gradients):
        return torch.cat([gradient.flatten() for gradient in gradients])

    def divergence(images):
        mean, log_variance = model.encoder(images).split(8, 1)
        return -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1)

    def error(latent):
        return 0.5 * (model.generator(latent) - (2 * real - 1)).square().sum((1, 2, 3))

    fakes = [model.generator(latent).detach(), model.generator(prior).detach()]
    hinges = sum((9 - divergence(x)).clamp(min=0) for x in fakes)
    loss_e = (divergence(2 * real - 1) + 0.5 * hinges + 0.3 * error(latent)).mean()
    expected = torch.autograd.grad(loss_e, model.e_parameters())
    assert close(flat(e_seen), flat(expected)) and close(losses["loss_e"], loss_e.detach())
    latent = latent.detach()
    kl = sum(divergence(model.generator(z)) for z in (latent, prior))
    loss_g = (0.5 * kl + 0.3 * error(latent)).mean()
    assert close(flat(g_seen), flat(torch.autograd.grad(loss_g, model.g_parameters())))


def test_introvae_trains_in_every_form():
    for form in introvae.FORMS:
        with folder():
            small_data()
            config = introvae.Config(form=form, epochs=2, width=2, batch_size=32, data="small.pt")
            with single_epochs():
                model, finished = introvae.train(config)
            asked = {"agreement", "reconstruction_error", "knn_accuracy", "frechet"}
            assert asked <= finished.history[-1].keys()
            assert model.interpolate(*model.sample(2)).shape == (10, 1, 28, 28)


def test_the_shadow_leaves_the_gan_alone():
    """The GAN of O-GAN's control is the same to the bit, whatever the head learns."""
    gans, heads = [], []
    for rate in (0.0, 0.1):
        with folder():
            small_data()
            config = shadow.Config(epochs=2, width=2, batch_size=32, lr_head=rate, data="small.pt")
            with single_epochs():
                model, finished = shadow.train(config)
            assert {"agreement", "rho", "frechet"} <= finished.history[-1].keys()
            gans.append([weight for name, weight in model.state_dict().items()
                         if not name.startswith("head")])
            heads.append(next(model.head.parameters()))
    assert all(map(torch.equal, *gans)) and not heads[0].equal(heads[1])


def test_sets_made_of_mnist():
    images, labels, _ = common.draw_digits(4000)
    data = common.Data("mnist", images[:3500], labels[:3500], images[3500:], labels[3500:])
    with folder(), mock.patch.object(common, "load_data", lambda *_: replace(data)):
        made = {}
        for name in ("few", "unequal", "colour"):
            sets.main([name, f"{name}.pt"])
            made[name] = torch.load(f"{name}.pt", weights_only=True)
        few, unequal, colour = made.values()
        assert few["images"].equal(images[:3000]) and few["test_labels"].equal(labels[3500:])
        for which, given in (("", labels[:3500]), ("test_", labels[3500:])):
            kept = unequal[f"{which}labels"].bincount(minlength=10) / given.bincount(minlength=10)
            assert kept.max() > 0.9 and 2.5 < kept.max() / kept.min() < 12
        place = {bytes(image.flatten().tolist()): i for i, image in enumerate(images)}
        kept = [place[bytes(image.flatten().tolist())] for image in unequal["images"][:300]]
        assert kept == sorted(kept) and labels[kept].equal(unequal["labels"][:300])
        assert colour["labels"].equal(labels[:3500])
        padded = F.pad(images[3500:], (2, 2, 2, 2)).float() / 255
        found = infogan.contrast(colour["test_images"].float() / 255)
        assert (found - infogan.contrast(padded)).abs().max() < 0.1
        corners = colour["images"][:, :, 0, 0].float() / 255
        assert corners.min() < 0.1 and corners.max() > 0.9 and corners.std(0).min() > 0.2


def test_a_study_runs_the_projects_methods_only():
    with folder():
        for content in ({"arms": {"a": "evil.py --rm"}, "seeds": [0]},
                        {"arms": {"a": "ogan.py", "b": "sh -c ls"}, "seeds": [0]},
                        {"arms": {"a": ""}, "seeds": [0]}, {"arms": {}, "seeds": [0]},
                        {"arms": {"a": "ogan.py"}}, {"arms": ["ogan.py"], "seeds": [0]}, [1]):
            Path("s.json").write_text(json.dumps(content))
            refused(lambda: study.main(["s.json"]), "s.json")
        refused(lambda: study.main(["none.json"]), "none.json", "arms")
        refused(lambda: study.main([]), "results/infogan.json")


def test_stored_studies_are_whole():
    """Every study in results/ has the runs that it asks for, and a summary that follows."""
    for path in (HERE / "results").glob("*.json"):
        record, seeds = study.read_study(path)
        for arm in record["arms"]:
            assert set(record["runs"][arm]) == set(seeds[arm]), (path.name, arm)
        again = json.loads(path.read_text())
        study.summarise(again)
        for key in ("summary", "compared"):
            found, stored = dict(study.flatten(again[key])), dict(study.flatten(record[key]))
            assert found.keys() == stored.keys(), path.name
            for name, value in found.items():      # Python 3.10 rounds deviations another way
                assert math.isclose(value, stored[name], rel_tol=1e-9), (path.name, name)


def test_permutation_test_by_hand():
    assert study.permutation_test([1.0, 2.0, 3.0], [11.0, 12.0, 13.0]) == 2 / 20
    assert study.permutation_test([1.0, 4.0], [2.0, 3.0]) == 1.0
    # gaps as large as that of (1, 2) against the rest: itself, and (4, 9) against the rest
    assert study.permutation_test([1.0, 2.0], [2.5, 4.0, 9.0]) == 2 / 10


# ---------------------------------------------------------------- in a project of yours


def python_blocks(path):
    return re.findall(r"^```python\n(.*?)^```$", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_python_in_the_readme_runs():
    """Every Python block of README.md as it stands, one after another and then once more, on small
    images: the loop goes on from what it saved."""
    blocks = python_blocks(HERE / "README.md") * 2
    assert len(blocks) >= 4
    with folder():
        small_data(labels=False, path="mine.pt")
        Path("results").mkdir()
        for method in METHODS:
            shutil.copy(HERE / "results" / f"{method}.pt", "results")
        for number, block in enumerate(blocks):
            code = compile(block, f"README.md, Python block {number + 1}", "exec")
            exec(code, {"__name__": "__main__"})
        state = torch.load("ogan.pt", weights_only=True)["optimizers"]["e"]["state"][0]
        assert state["step"] == 2 * 10 * (160 // 64)


def test_python_in_the_notebooks_runs():
    """A reader's own InfoGAN: the blocks of either page, but for their comments, are those of
    results/own_infogan.py; they train, and their losses are the package's."""
    script = (HERE / "results" / "own_infogan.py").read_text("utf-8")
    pages = [python_blocks(HERE / "results" / page) for page in ("README.md", "README.zh.md")]
    for ours, other in zip(*pages):
        assert ours.split("from torch import nn\n\n")[-1] in script
        uncommented = [re.sub(" +#.*", "", block) for block in (ours, other)]
        assert uncommented[0] == uncommented[1]
    assert len(pages[0]) == len(pages[1]) == 5
    with folder():
        command = [sys.executable, HERE / "results" / "own_infogan.py", "--data"]
        few = ["--updates", "2", "--warm-up", "2"]
        done = subprocess.run([*command, small_data(), *few], capture_output=True, text=True)
        assert re.fullmatch(r"seed 0: accuracy 0\.\d+, NMI 0\.\d+\n", done.stdout), done
        assert decode_png(Path("own-infogan.png").read_bytes()).shape == (600, 600, 1)
        for bad in (small_data(labels=False), small_data(shape=(1, 8, 8), path="other.pt")):
            done = subprocess.run([*command, bad], capture_output=True, text=True)
            assert done.returncode == 2 and "28x28 grey images with labels" in done.stderr
    names = {}
    torch.manual_seed(0)
    for block in pages[0]:
        exec(compile(block, "results/README.md", "exec"), names)
    real = torch.rand(64, 1, 28, 28)
    before = [weight.clone() for weight in names["model"]["G"].parameters()]
    names["warm_up"](real, 2)
    names["train"](real, 2)
    for one, other in zip(before, names["model"]["G"].parameters()):
        assert other.isfinite().all() and not torch.equal(one, other)
    assert names["average"].module["G"][0].eval()(torch.rand(2, 74)).shape == (2, 1, 28, 28)
    logits = [names["Q"](names["warped"](real)) for _ in "ab"]
    found = names["invariance_loss"](*(part.softmax(1) for part in logits))
    assert torch.allclose(found, infogan.invariance_loss(*logits), atol=1e-5)
    features = torch.randn(64, 512)
    c1, c2_c3 = names["codes"](64, r=1)
    mean, raw = names["code_head"](features).chunk(2, 1)
    told = infogan.continuous_information(mean, F.softplus(raw) + 0.01, c2_c3).sum()
    lost = names["code_loss"](features, c2_c3)                      # but for a constant
    assert torch.allclose(told, 2 * (math.log(2) - math.log(2 * math.pi) / 2) - lost, atol=1e-4)


def test_trained_models_read_what_they_generate():
    """The ones in results/: a category, slant and width, and an image's latent come back; and O-GAN
    rebuilds digits of InfoGAN's, of the same kind as far as InfoGAN's Q can tell."""
    info = infogan.InfoGAN.load(HERE / "results" / "infogan.pt")
    o = ogan.OGAN.load(HERE / "results" / "ogan.pt")
    rng = torch.Generator().manual_seed(0)
    latent = info.sample_latent(500, rng=rng)
    images = info.decode(latent)
    codes = info.encode(images)
    target = info.split_latent(latent)
    kinds = codes.categorical[0].argmax(1)
    assert (kinds == target.categorical[0].argmax(1)).float().mean() > 0.98
    for j in range(2):
        pair = torch.stack([codes.mean[:, j], target.continuous[:, j]])
        assert torch.corrcoef(pair)[0, 1] > 0.9
    again = info.encode(o.reconstruct(images)).categorical[0].argmax(1)
    assert (kinds == again).float().mean() > 0.9
    z = torch.randn(500, o.latent, generator=rng)
    pairs = torch.stack([z, o.encode(o.decode(z))], 1)                         # (500, 2, latent)
    rho = [float(torch.corrcoef(pair)[0, 1]) for pair in pairs]
    assert sum(rho) / len(rho) > 0.75


def test_a_failing_test_says_what_was_wrong():
    for method in METHODS:
        counts = [3, 4, len(method)]
        try:
            assert sum(counts) == 8
        except AssertionError as error:
            said = explain(error)
        assert f"method = '{method}'" in said and f"counts = {counts}" in said
    found = sections()
    assert found["test_pearson_is_corrcoef"] == "losses"
    assert set(found) == {name for name in globals() if name.startswith("test_")}


def test_both_methods_work_inside_a_package():
    code = ("import warnings, torch\n"
            "from mypkg.infogan import InfoGAN\n"
            "from mypkg.ogan import OGAN\n"
            "import mypkg.common\n"
            "assert InfoGAN(width=2).sample(2).shape == OGAN(width=2).sample(2).shape\n"
            "try:\n"
            "    OGAN((1, 30, 30))\n"
            "except mypkg.common.InputError:\n"
            "    print('fine')\n")
    with folder():
        Path("mypkg").mkdir()
        Path("mypkg/__init__.py").touch()
        for name in ("common", "infogan", "ogan"):
            shutil.copy(HERE / f"{name}.py", "mypkg")
        environment = {**os.environ, "TORCH_HOME": "hub"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              env=environment)
        assert done.stdout == "fine\n", done.stderr
        small_data(40)
        command = [sys.executable, "-m", "mypkg.ogan", "--epochs", "0", "--width", "2",
                   "--data", "small.pt"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert Path("runs/ogan-1/index.html").exists()


def test_import_changes_nothing():
    """No output, no file, no argument read; random state, types, warning filters, signals, threads
    and the socket timeout are as torch alone leaves them."""
    state = ("import signal, socket, warnings\n"
             "print(torch.get_default_dtype(), torch.get_num_threads(), socket.getdefaulttimeout(),"
             " signal.getsignal(signal.SIGINT), [str(f) for f in warnings.filters])\n")
    code = "import sys; sys.argv = ['x', '--epochs', 'many']; import {}; import torch\n" + state
    environment = {**os.environ, "PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryDirectory() as name:
        printed = {}
        for module in ("torch", "common", "infogan", "ogan"):
            done = subprocess.run([sys.executable, "-c", code.format(module)], cwd=name,
                                  capture_output=True, text=True, env=environment)
            assert done.returncode == 0, done.stderr
            assert module == "torch" or done.stderr == "", done.stderr
            printed[module] = done.stdout
        assert len(set(printed.values())) == 1, printed
        assert not list(Path(name).iterdir())
    for module in METHODS:
        before = torch.get_rng_state()
        runpy.run_path(str(HERE / f"{module}.py"), run_name="a copy")
        assert torch.equal(before, torch.get_rng_state())


# ---------------------------------------------------------------- the sources

# By name: what else lies in the folder, as a packing script of the user's, is none of ours.
SOURCES = [HERE / name for name in ("common.py", "infogan.py", "ogan.py", "test_all.py",
                                    "results/export.py", "results/introvae.py", "results/sets.py",
                                    "results/shadow.py", "results/study.py")]


def test_only_torch_the_standard_library_and_our_modules_are_imported():
    ours = {"common", "export", "infogan", "introvae", "ogan", "sets", "shadow", "study"}
    imported = {}
    for path in SOURCES:
        modules = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(node.module.split(".")[0])
        imported[path.stem] = modules
        assert modules <= sys.stdlib_module_names | {"torch"} | ours, path
    assert not imported["common"] & ours
    assert imported["infogan"] & ours == imported["ogan"] & ours == {"common"}


def test_the_readmes_name_every_flag_and_key():
    front, notebook = HERE / "README.md", HERE / "results" / "README.md"
    notes = notebook.read_text("utf-8")
    flags = {"--recipe", "--help", "--long", "--nproc-per-node", "--onnx"}
    for module in METHODS.values():
        for f in fields(module.Config):
            flags |= {common.flag_of(f.name), "--no-" + common.flag_of(f.name)[2:]}
            assert f"`{common.flag_of(f.name)}" in notes, f.name
    flags |= {common.flag_of(f.name) for f in (*fields(introvae.Config), *fields(shadow.Config))}
    for path in (front, notebook, HERE / "results" / "README.zh.md"):
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", path.read_text("utf-8")):
            assert flag in flags, (path.name, flag)
    with folder():
        small_data(64)
        for method in METHODS:
            run(method, "--out", method)
            for key in [*metrics(method)[-1], *study.measures(method)]:
                assert f"`{key}`" in notes, key


def test_links_in_the_readmes_lead_somewhere():
    for path in (HERE / "README.md", HERE / "results" / "README.md",
                 HERE / "results" / "README.zh.md", HERE / "findings" / "README.md"):
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text("utf-8")):
            if not link.startswith("http"):
                assert (path.parent / link).exists(), (path.name, link)


def test_scripts_declare_torch_alone():
    for name in ("infogan", "ogan", "test_all"):
        head = (HERE / f"{name}.py").read_text("utf-8").split("# ///\n")[0]
        assert head.startswith("# /// script\n")
        assert re.findall(r'"(\w+)[^"]*"', head.split("dependencies")[1]) == ["torch"]


def test_public_names_exist_and_have_types_and_docstrings():
    for module in (common, infogan, ogan):
        for name in module.__all__:
            thing = getattr(module, name)
            assert thing.__doc__, name
            methods = []
            if inspect.isclass(thing):
                methods = [value for key, value in vars(thing).items()
                           if inspect.isfunction(value) and not key.startswith("_")]
            for function in (*methods, *([thing] if inspect.isfunction(thing) else ())):
                assert function.__doc__ or function.__name__ == "forward", function
    typed = {
        common: ["load_data", "save_grid"],
        infogan: ["discriminator_loss", "generator_loss", "categorical_information",
                  "continuous_information", "information_loss", "invariance_loss", "warp",
                  "restyled", "naming_loss",
                  "contrast", "neighbours", "merged", "warm_up", "training_step", "scores",
                  "figures", "train"],
        ogan: ["standardise", "pearson_correlation", "gan_qp_loss",
               "training_step", "scores", "figures", "train"],
        common.Model: ["save"],
        infogan.InfoGAN: ["__init__", "forward", "sample", "sample_latent", "encode", "decode"],
        ogan.OGAN: ["__init__", "forward", "sample", "sample_latent", "encode", "decode",
                    "reconstruct", "interpolate", "score"],
    }
    for place, names in typed.items():
        for name in names:
            parameters = inspect.signature(getattr(place, name)).parameters.values()
            for p in parameters:
                known = p.annotation is not p.empty or p.default is not p.empty
                assert known or p.name == "self" or p.kind == p.VAR_KEYWORD, (name, p.name)


def test_the_papers_equations_come_first():
    """Whoever reads from the top meets the paper's losses and the step, before anything else."""
    for name, words, most in (
            ("infogan", ["(1)", "(5)", "(6)", "def discriminator_loss", "def generator_loss",
                         "def categorical_information", "def continuous_information",
                         "def information_loss", "def training_step", "g_optimizer.step()"], 170),
            ("ogan", ["N(v)", "E minimises", "def standardise", "def pearson_correlation",
                      "def gan_qp_loss", "def training_step", "g_optimizer.step()"], 130)):
        lines = (HERE / f"{name}.py").read_text("utf-8").splitlines()
        places = [next(i for i, line in enumerate(lines, 1) if word in line) for word in words]
        assert places == sorted(places) and places[-1] <= most, dict(zip(words, places))


# ---------------------------------------------------------------- the runner


def sections():
    """The section that each test stands in, by its name."""
    found, section = {}, ""
    for line in Path(__file__).read_text("utf-8").splitlines():
        if line.startswith("# -----"):
            section = line.strip("# -")
        elif line.startswith("def test_"):
            found[line[4:line.index("(")]] = section
    return found


def explain(error):
    """The traceback of a failed test with the local variables of what stands in this file."""
    trace = traceback.TracebackException.from_exception(error, capture_locals=True)
    for frame in trace.stack:
        kept = {}
        if frame.filename == __file__:
            for name, shown in (frame.locals or {}).items():
                kept[name] = " ".join(shown.split())[:200]
        frame.locals = kept
    return "".join(trace.format())


def run_test(name):
    """passed, skipped or failed; the seconds it took; and why, where it did not pass."""
    torch.set_num_threads(1)   # for tensors this small more threads only wait for one another
    began = time.perf_counter()
    outcome, why = "passed", ""
    try:
        globals()[name]()
    except unittest.SkipTest as skip:
        outcome, why = "skipped", f": {skip}"
    except BaseException as error:
        outcome, why = "failed", "\n" + explain(error)
    return outcome, time.perf_counter() - began, why


def main(parts):
    """Run the tests that have one of `parts` in their name or their section's, two at a time; 1 if
    one failed or none ran."""
    chosen = sections()
    if parts:
        chosen = {name: section for name, section in chosen.items()
                  if any(part in name or part in section for part in parts)}
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    taken = {}                                                    # section -> seconds of its tests
    spawn = multiprocessing.get_context("spawn")                  # each with a torch of its own
    with concurrent.futures.ProcessPoolExecutor(2, spawn) as pool:
        results = zip(chosen.items(), pool.map(run_test, chosen))
        for section, tests in itertools.groupby(results, key=lambda result: result[0][1]):
            for (name, _), (outcome, seconds, why) in tests:
                counts[outcome] += 1
                taken.setdefault(section, []).append(seconds)
                print(f"{outcome:8}{seconds:6.1f} s  {name}{why}", flush=True)
            print(f"-- {section}: {len(taken[section])} tests, {sum(taken[section]):.1f} s\n")
    if not counts["skipped"]:
        del counts["skipped"]
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    return 1 if counts["failed"] or not counts["passed"] else 0


if __name__ == "__main__":
    sys.exit(main([name for name in sys.argv[1:] if name != "--long"]))
