# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4"]
# ///
"""The tests of infogan.py, ogan.py and common.py: `python test_all.py [--long] [part of a name ...]`, with torch alone; pytest finds them too.

Each oracle is independent of what it checks: torch.distributions, torch.corrcoef, brute force, a closed form, a second formula.
"""

import ast
import concurrent.futures
import contextlib
import gzip
import hashlib
import http.server
import io
import itertools
import json
import math
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
import zlib
from dataclasses import asdict, fields
from pathlib import Path
from unittest import mock

import common
import infogan
import ogan
import torch
import torch.nn.functional as F
from common import InputError

HERE = Path(__file__).resolve().parent
METHODS = {"infogan": infogan, "ogan": ogan}
MODELS = {"infogan": infogan.InfoGAN, "ogan": ogan.OGAN}


# ---------------------------------------------------------------- helpers

@contextlib.contextmanager
def folder():
    """An empty working folder, a torch cache of its own, few samples to score; output is kept quiet and given as (out, err)."""
    with tempfile.TemporaryDirectory() as name:
        before, hub, samples = os.getcwd(), torch.hub.get_dir(), common.SAMPLES
        os.chdir(name)
        common.SAMPLES = 300
        torch.hub.set_dir(str(Path(name, "hub")))
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                yield Path(name), out, err
        finally:
            os.chdir(before)
            torch.hub.set_dir(hub)
            common.SAMPLES = samples


def small_data(n=160, shape=(1, 28, 28), path="small.pt", labels=True):
    """A FILE.pt of drawn digits, reshaped to other sizes and channels where asked; returns its path."""
    images, classes, _ = common.draw_digits(n + 40)
    images = F.interpolate(images.float(), size=shape[1:]).byte().repeat(1, shape[0], 1, 1)
    content = {"images": images[:n], "test_images": images[n:]}
    torch.save(content | ({"labels": classes[:n], "test_labels": classes[n:]} if labels else {}), path)
    return path


def checkpoint(folder):
    return torch.load(Path(folder, "checkpoint.pt"), weights_only=True)


def run(method, *flags):
    """main() with these flags at a tiny size; returns the run's checkpoint."""
    flags = [str(f) for f in flags]
    for name, value in (("--width", "2"), ("--batch-size", "32"), ("--device", "cpu"), ("--data", "small.pt"), ("--epochs", "1"), ("--out", "run")):
        flags += [name, value] if name not in flags and "--resume" not in flags else []
    METHODS[method].main(flags)
    return checkpoint(flags[flags.index("--out" if "--out" in flags else "--resume") + 1])


def refused(function, *words):
    """Whether the call ends with InputError, or status 2, and one line that holds every word; nothing is swallowed otherwise."""
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
    assert "\n" not in message and all(word in message for word in words), message
    return True


def equal(a, b):
    """Bit-for-bit equality of nested dicts, lists and tensors, times apart."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a if k not in ("seconds", "images_per_second", "resume", "out", "epochs"))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


def decode_png(content):
    """Pictures (H, W, C) and chunk names of a PNG or APNG, by zlib and the standard's layout; every CRC is checked."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    at, names, packed = 8, [], []
    while at < len(content):
        length, kind = struct.unpack(">I4s", content[at:at + 8])
        body = content[at + 8:at + 8 + length]
        assert struct.unpack(">I", content[at + 8 + length:at + 12 + length])[0] == zlib.crc32(kind + body)
        if kind == b"IHDR":
            w, h, depth, color = struct.unpack(">IIBB", body[:10])
            assert depth == 8
        packed += [body] if kind == b"IDAT" else [body[4:]] if kind == b"fdAT" else []
        names.append(kind.decode())
        at += 12 + length
    channels = {0: 1, 2: 3}[color]
    pictures = []
    for data in packed:
        rows = torch.tensor(list(zlib.decompress(data)), dtype=torch.uint8).view(h, 1 + w * channels)
        assert not rows[:, 0].any()                # filter type 0: the rest is the pixels
        pictures.append(rows[:, 1:].reshape(h, w, channels))
    return pictures, names


# ---------------------------------------------------------------- losses

def test_pearson_is_corrcoef():
    u, v = torch.randn(7, 33, dtype=torch.double), torch.randn(7, 33, dtype=torch.double) * 3 + 5
    oracle = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(u, v)])
    assert torch.allclose(ogan.pearson_correlation(u, v), oracle, atol=1e-12)


def test_pearson_of_itself_is_one_and_of_a_constant_is_zero():
    v = torch.randn(50, 64)
    assert (ogan.pearson_correlation(v, v) - 1).abs().max() < 1e-6 and (ogan.pearson_correlation(v, -2 * v + 1) + 1).abs().max() < 1e-6
    constant = torch.full((3, 64), 7.0, requires_grad=True)
    rho = ogan.pearson_correlation(constant, v[:3])
    rho.sum().backward()
    assert torch.equal(rho, torch.zeros(3)) and constant.grad.isfinite().all()


def test_rho_is_squared_error_without_mean_and_std():
    u, v = torch.randn(5, 16), torch.randn(5, 16)
    distance = ((u - u.mean(1, keepdim=True)) / u.std(1, correction=0, keepdim=True)
                - (v - v.mean(1, keepdim=True)) / v.std(1, correction=0, keepdim=True)).square().sum(1)
    assert torch.allclose(distance, 2 * 16 * (1 - ogan.pearson_correlation(u, v)), atol=1e-4)


def test_gaussian_nll_is_torch_distributions():
    c, mean, std = torch.randn(9, 2), torch.randn(9, 2), torch.rand(9, 2) + 0.1
    assert torch.allclose(infogan.gaussian_nll(c, mean, std), -torch.distributions.Normal(mean, std).log_prob(c), atol=1e-5)


def test_infogan_losses_are_binary_cross_entropy():
    real, fake = torch.randn(50) * 4, torch.randn(50) * 4
    bce = F.binary_cross_entropy_with_logits
    assert torch.allclose(infogan.discriminator_loss(real, fake), bce(real, torch.ones(50)) + bce(fake, torch.zeros(50)))
    assert torch.allclose(infogan.generator_loss(fake), bce(fake, torch.ones(50)))
    assert infogan.generator_loss(torch.tensor([-1000.0])).isfinite()


def test_information_reaches_its_ceiling_and_zero():
    c = infogan.Config(categorical=[10, 4], continuous=1, code_range=2.0, noise=3)
    model = infogan.InfoGAN(c)
    latent = model.sample_latent(4000)
    onehots, value = latent[:, 3:17], latent[:, 17:]
    raw_std = torch.full_like(value, 0.5)
    categorical, continuous = infogan.information(torch.cat([onehots * 100, value, raw_std], 1), latent, c)
    assert abs(categorical[0] - math.log(10)) < 1e-4 and abs(categorical[1] - math.log(4)) < 1e-4
    std = float(F.softplus(torch.tensor(0.5)) + 0.01)
    entropy = torch.distributions.Uniform(-2.0, 2.0).entropy()
    assert torch.allclose(continuous, entropy + torch.distributions.Normal(0.0, std).log_prob(torch.zeros(1)), atol=1e-5)
    blind, _ = infogan.information(torch.cat([onehots * 0, value, raw_std], 1), latent, c)
    assert abs(blind[0]) < 1e-5
    total = infogan.information_loss(torch.cat([onehots * 100, value, raw_std], 1), latent, c)
    assert torch.allclose(total, -(math.log(10) + math.log(4)) - 0.1 * continuous.sum(), atol=1e-4)


def test_gan_losses_by_hand():
    real, fake, distance = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]), torch.tensor([0.5, 2.0])
    log1pexp = lambda v: math.log(1 + math.exp(v))
    hand = {"qp": ((0.5 + 0.25 / 2 + -5 + 25 / 8) / 2, 1.75), "wasserstein": ((0.5 - 5) / 2, 1.75),
            "hinge": ((2 + 0.5 + 0 + 0) / 2, 1.75), "leastsquares": ((4 + 0.25 + 1 + 4) / 2, (2.25 + 16) / 2),
            "nonsaturating": ((log1pexp(1) + log1pexp(-0.5) + log1pexp(-2) + log1pexp(-3)) / 2, (log1pexp(0.5) + log1pexp(3)) / 2),
            "relativistic": ((log1pexp(0.5) + log1pexp(-5)) / 2, (log1pexp(-0.5) + log1pexp(5)) / 2)}
    assert hand.keys() == ogan.GAN_LOSSES.keys()
    for name, (critic, generator) in ogan.GAN_LOSSES.items():
        assert abs(float(critic(real, fake, distance)) - hand[name][0]) < 1e-5, name
        assert abs(float(generator(real, fake)) - hand[name][1]) < 1e-5, name


def test_every_gan_loss_scores_real_low():
    for name, (critic, generator) in ogan.GAN_LOSSES.items():
        real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
        critic(real, fake, torch.ones(4)).backward()
        assert (real.grad > 0).all() and (fake.grad < 0).all(), name         # the critic lowers real scores and raises fake ones
        fake = torch.zeros(4, requires_grad=True)
        generator(torch.zeros(4), fake).backward()
        assert (fake.grad > 0).all(), name                                   # the generator lowers fake scores


def test_invariance_loss_in_loops():
    torch.manual_seed(0)
    c = infogan.Config(categorical=[4, 3], continuous=1, invariance=0.5)
    read, warped = torch.randn(6, 9), torch.randn(6, 9)
    p, q = read[:, :4].softmax(1).double(), warped[:, :4].softmax(1).double()            # the first code alone
    joint = [[sum(float(a[i] * b[j] + a[j] * b[i]) for a, b in zip(p, q)) / 12 for j in range(4)] for i in range(4)]
    marginal = [sum(row) for row in joint]
    total = sum(joint[i][j] * math.log(joint[i][j] / (marginal[i] * marginal[j])) for i in range(4) for j in range(4))
    total += 2 * float(torch.distributions.Categorical(torch.tensor(marginal)).entropy())
    assert abs(float(infogan.invariance_loss(read, warped, c)) + 0.5 * total) < 1e-5
    sure = torch.eye(4).repeat(5, 1) * 100                              # sure, agreed and uniform: 3 ln K at most
    alone = infogan.Config(categorical=[4], continuous=0, invariance=1.0)
    assert abs(float(infogan.invariance_loss(sure, sure, alone)) + 3 * math.log(4)) < 1e-4


def test_warp_stays_within_its_bounds():
    torch.manual_seed(0)
    images = common.draw_digits(2000)[0].float() / 255
    assert torch.allclose(common.warp(images, 0, 0, 0, 0), images, atol=1e-5)
    grid = torch.arange(28.0)
    centre = lambda x: torch.stack([(x.sum(2) @ grid) / x.sum((2, 3)), (x.sum(3) @ grid) / x.sum((2, 3))], 2).flatten(1)
    moved = centre(common.warp(images, 0, 0, 0)) - centre(images)        # a shift alone, of up to 2 pixels in each direction
    assert 1.9 < moved.abs().max() < 2.1 and moved.mean().abs() < 0.1
    bar = torch.zeros(500, 1, 28, 28)
    bar[..., 4:24, 13:15] = 1
    slant = common.measure_strokes(common.warp(bar, rotation=0.25, scale=0, shear=0, shift=0))["slant"]
    assert 0.22 < slant.abs().max() < 0.28                               # tan 0.25 is 0.255
    assert not torch.allclose(common.warp(images), common.warp(images))


def test_latent_losses():
    z, e = torch.randn(6, 8), torch.randn(6, 8)
    assert torch.allclose(ogan.latent_loss("pearson", z, e), -torch.stack([torch.corrcoef(torch.stack(p))[0, 1] for p in zip(z, e)]).mean(), atol=1e-5)
    assert torch.allclose(ogan.latent_loss("mse", z, e), ((z - e) ** 2).sum() / 48) and ogan.latent_loss("none", z, e) == 0


# ---------------------------------------------------------------- who learns what

def infogan_with_gradients(which, **options):
    """A model after one backward pass of one term; the names of parameters that were given a gradient, by their first part."""
    torch.manual_seed(0)
    model = infogan.InfoGAN(infogan.Config(width=2, **options))
    latent = model.sample_latent(16)
    logit, read = model.discriminate(model.draw(latent))
    (infogan.information_loss(read, latent, model.config) if which == "information" else infogan.generator_loss(logit)).backward()
    return {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def test_information_reaches_who_the_docstring_says():
    assert infogan_with_gradients("information") == {"generator", "q_trunk", "q_head"}
    assert infogan_with_gradients("information", separate_q=False) == {"generator", "trunk", "q_head"}
    assert infogan_with_gradients("information", separate_q=False, detach_trunk=True) == {"generator", "trunk", "q_head"}    # through G's images
    assert infogan_with_gradients("game") == {"generator", "trunk", "d_head"}


def close(a, b):
    """Whether two gradients agree to float32 rounding, as vectors."""
    return (a - b).norm() <= 1e-4 * b.norm()


class Recorder(torch.optim.SGD):
    """An optimiser that moves nothing and keeps what each step would have used."""
    def step(self):
        self.seen = [None if p.grad is None else p.grad.clone() for group in self.param_groups for p in group["params"]]


def infogan_step_gradients(**options):
    torch.manual_seed(0)
    model = infogan.InfoGAN(infogan.Config(width=2, **options)).train()
    named = [(n, p) for n, p in model.named_parameters() if not n.startswith("generator")]
    d, g = Recorder([p for _, p in named], 1.0), Recorder(model.generator.parameters(), 1.0)
    real = common.draw_digits(16)[0].float() / 255
    torch.manual_seed(1)
    infogan.training_step(model, d, g, real)
    torch.manual_seed(1)
    return model, real, dict(zip([n for n, _ in named], d.seen)), g.seen


def test_infogan_step_gives_each_player_its_own_gradient():
    for shared, detached in ((False, False), (True, False), (True, True)):
        model, real, d_seen, g_seen = infogan_step_gradients(invariance=0.0, separate_q=not shared, detach_trunk=detached)
        latent = model.sample_latent(16)
        fake = model.draw(latent)
        loss_d = F.binary_cross_entropy_with_logits(model.discriminate(real)[0], torch.ones(16)) \
            + F.binary_cross_entropy_with_logits(model.discriminate(fake.detach())[0], torch.zeros(16))
        from_d = torch.autograd.grad(loss_d, list(model.trunk.parameters()), retain_graph=True)
        information = infogan.information_loss(model.discriminate(fake.detach())[1], latent, model.config)
        from_q = torch.autograd.grad(information, list(model.trunk.parameters()), allow_unused=True)
        for (name, _), a, b in zip(model.trunk.named_parameters(), from_d, from_q):
            assert (b is None) == (not shared or detached)        # L_I reaches D's trunk only where it is shared and not detached
            assert close(d_seen["trunk." + name], a if b is None else a + b), name
        logit, read = model.discriminate(fake)
        loss_g = F.softplus(-logit).mean() + infogan.information_loss(read, latent, model.config)
        for a, b, game in zip(g_seen, *(torch.autograd.grad(loss, list(model.generator.parameters()), retain_graph=True)
                                        for loss in (loss_g, F.softplus(-logit).mean()))):
            assert close(a, b) and not close(a, game)  # L_I reaches G always
        assert all(g is not None for name, g in d_seen.items() if not name.startswith("average"))


def test_invariance_is_part_of_the_step_of_d_and_q_alone():
    for separate in (True, False):
        model, real, d_seen, g_seen = infogan_step_gradients(separate_q=separate)
        latent = model.sample_latent(16)
        fake = model.draw(latent)
        (real_logit, _), (fake_logit, read) = model.discriminate(real), model.discriminate(fake.detach())
        both = model.discriminate(common.warp(torch.cat([real, real])))[1]
        loss = infogan.discriminator_loss(real_logit, fake_logit) + infogan.information_loss(read, latent, model.config) \
            + infogan.invariance_loss(both[:16], both[16:], model.config)
        layers = [(n, p) for n, p in model.named_parameters() if n.split(".")[0] in ("trunk", "d_head", "q_trunk", "q_head")]
        for (name, _), grad in zip(layers, torch.autograd.grad(loss, [p for _, p in layers])):
            assert close(d_seen[name], grad), name
        loss_g = F.softplus(-model.discriminate(fake)[0]).mean() + infogan.information_loss(model.discriminate(fake)[1], latent, model.config)
        for a, b in zip(g_seen, torch.autograd.grad(loss_g, list(model.generator.parameters()))):
            assert close(a, b)


def test_ogan_step_gives_each_player_its_own_gradient():
    for options in ({}, {"critic": "network"}, {"gan_loss": "relativistic", "latent_loss": "mse"}, {"joint_batch": False}):
        torch.manual_seed(0)
        model = ogan.OGAN(ogan.Config(width=2, latent=8, **options)).train()
        c, real = model.config, common.draw_digits(16)[0].float() / 255
        e_params = [p for n, p in model.named_parameters() if n.split(".")[0] in ("encoder", "critic")]
        e, g = Recorder(e_params, 1.0), Recorder(model.generator.parameters(), 1.0)
        torch.manual_seed(1)
        ogan.training_step(model, e, g, real)
        torch.manual_seed(1)
        latent = model.sample_latent(16)
        fake = model.generator(latent).tanh()

        def losses(fake):
            both = torch.cat([2 * real - 1, fake])
            real_code, code = model.encoder(both).chunk(2) if c.joint_batch else map(model.encoder, both.chunk(2))
            tie = c.rho_weight * ogan.latent_loss(c.latent_loss, latent, code)
            return model.score(real_code), model.score(code), tie

        a, b, tie = losses(fake.detach())
        critic, generator = ogan.GAN_LOSSES[c.gan_loss]
        distance = ((2 * real - 1 - fake.detach()) ** 2).mean((1, 2, 3))
        for seen, grad in zip(e.seen, torch.autograd.grad(critic(a, b, distance) + tie, e_params)):
            assert close(seen, grad)
        a, b, tie = losses(fake)
        for seen, grad in zip(g.seen, torch.autograd.grad(generator(a.detach(), b) + c.rho_generator * tie, list(model.generator.parameters()))):
            assert close(seen, grad)


def test_average_follows_the_weights_and_draws_and_reads():
    for cls, config, key in ((ogan.OGAN, ogan.Config(width=2, latent=4, average=0.2), "generator.0.weight"),
                             (infogan.InfoGAN, infogan.Config(width=2, average=0.2), "trunk.0.weight")):
        model = cls(config)
        start = model.average.state_dict()[key].clone()
        latent, images = model.sample_latent(3), torch.rand(3, 1, 28, 28)
        drawn, read = model.generate(latent), model.read(images)
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(1.0) if p.requires_grad else None
        assert torch.equal(drawn, model.generate(latent)) and torch.equal(read, model.read(images))
        for _ in range(3):
            common.update_average(model)
        kept = math.prod(min(0.2, (1 + n) / (10 + n)) for n in range(1, 4))
        assert torch.allclose(model.average.state_dict()[key], start * kept + (1 - kept), atol=1e-6)
        assert not torch.equal(drawn, model.generate(latent)) and not torch.equal(read, model.read(images))


# ---------------------------------------------------------------- scores

def test_assignment_is_brute_force():
    torch.manual_seed(0)
    for rows, columns in itertools.product(range(1, 6), range(1, 6)):
        profit = torch.randint(0, 9, (rows, columns))
        match = common.assignment(profit)
        ours = sum(int(profit[r, c]) for r, c in enumerate(match.tolist()) if c >= 0)
        used = [c for c in match.tolist() if c >= 0]
        assert len(set(used)) == len(used) == min(rows, columns)
        wide = profit if rows <= columns else profit.T
        best = max(sum(int(wide[i, p]) for i, p in enumerate(perm)) for perm in itertools.permutations(range(wide.shape[1]), len(wide)))
        assert ours == best


def test_clustering_scores():
    torch.manual_seed(0)
    labels = torch.randint(5, (300,))
    perfect = common.clustering_scores((labels + 2) % 5, labels)
    assert perfect["accuracy"] == 1 and abs(perfect["nmi"] - 1) < 1e-9 and abs(perfect["ari"] - 1) < 1e-9
    noisy = torch.where(torch.rand(300) < 0.4, torch.randint(7, (300,)), labels)
    found = common.clustering_scores(noisy, labels)
    pairs = list(itertools.combinations(range(300), 2))
    a, b = noisy.tolist(), labels.tolist()
    same_a, same_b = sum(a[i] == a[j] for i, j in pairs), sum(b[i] == b[j] for i, j in pairs)
    both = sum(a[i] == a[j] and b[i] == b[j] for i, j in pairs)
    expected = same_a * same_b / len(pairs)
    assert abs(found["ari"] - (both - expected) / ((same_a + same_b) / 2 - expected)) < 1e-9
    entropy = lambda *v: torch.distributions.Categorical(torch.tensor([float(sum(x == y for x in zip(*v))) for y in set(zip(*v))])).entropy()
    information = entropy(a) + entropy(b) - entropy(a, b)
    assert abs(found["nmi"] - float(information / ((entropy(a) + entropy(b)) / 2))) < 1e-5
    table = found["confusion"]
    assert table[2][2] == sum(x == 2 and y == 2 for x, y in zip(a, b))
    one = common.clustering_scores(torch.zeros(300, dtype=torch.long), labels)
    assert one["nmi"] < 1e-9 and one["accuracy"] == max(b.count(k) for k in range(5)) / 300


def test_frechet_distance_in_closed_form():
    torch.manual_seed(0)
    a = torch.randn(500, 6) @ torch.randn(6, 6)
    shift = torch.arange(6.0)
    closed = float(shift.square().sum() + (1 - 3) ** 2 * torch.cov(a.double().T).trace())
    assert abs(common.frechet_distance(a, 3 * a + shift) - closed) < 0.02 * closed       # float32 inputs carry the mean of 3a
    a = a.double()
    closed = float((2 * a.mean(0) + shift).square().sum() + (1 - 3) ** 2 * torch.cov(a.T).trace())
    assert abs(common.frechet_distance(a, 3 * a + shift) - closed) < 1e-6 * closed
    assert abs(common.frechet_distance(a, a)) < 1e-6


def test_correlation_ratio_and_what_codes_carry():
    values, groups = torch.tensor([1.0, 3.0, 4.0, 8.0]), torch.tensor([0, 0, 2, 2])
    assert abs(common.correlation_ratio(groups, values) - (26 - 2 - 8) / 26) < 1e-6       # variance within the groups by hand: 2 and 8
    assert common.correlation_ratio(groups, torch.ones(4)) == 0
    c = infogan.Config(noise=2, categorical=[3], continuous=2, code_range=2.0)
    bars = torch.zeros(600, 1, 28, 28)                                    # upright bars whose width is the category's alone
    latent = infogan.InfoGAN(c).sample_latent(600)
    for image, category in zip(bars, latent[:, 2:5].argmax(1)):
        image[:, 4:24, 10:12 + 2 * int(category)] = 1
    found = infogan.carried(latent, bars, c)
    assert set(found) == {"c1", "c2", "c3"} and found["c1"]["width"] > 0.999 and found["c2"]["width"] < 0.05 > found["c3"]["width"]


def test_effect_within_and_beyond_the_range():
    class Bars:                                                           # c2 is the width of an upright bar; c1 does nothing
        config, most = infogan.Config(noise=0, categorical=[2], continuous=2, code_range=2.0), 4.0

        def generate(self, latent):
            images = torch.zeros(len(latent), 1, 28, 28)
            for image, code in zip(images, latent[:, 2].clamp(-self.most, self.most)):
                image[:, 4:24, 10:18 + int(code)] = 1
            return images
    data = common.Data("x", None, None, common.draw_digits(200)[0], None)
    model, latent = Bars(), torch.rand(3, 4)
    usual = common.measure_strokes(data.test_images.float() / 255)["width"].std()
    width = lambda w: 20 * w / (20 + w)                                   # 2 area / perimeter
    for most in (4, 2):                                                   # a code that goes on beyond its range, and one that does not
        model.most = most
        correlation, change, within = infogan.effect(model, latent, 0, data)["width"]
        assert abs(change * usual - (width(8 + most) - width(8 - most))) < 0.1 and abs(within * usual - (width(10) - width(6))) < 0.1
        assert abs(correlation - (1 if most == 4 else 0.96)) < 0.03
        assert infogan.effect(model, latent, 1, data)["width"][1:] == [0, 0]


def test_rank_correlation():
    a = torch.randn(4, 9).double()
    b = torch.randn(4, 9).double()
    ranks = lambda v: v.argsort(-1).argsort(-1).double()
    textbook = 1 - 6 * (ranks(a) - ranks(b)).square().sum(-1) / (9 * (81 - 1))
    assert torch.allclose(common.rank_correlation(a, b), textbook.float(), atol=1e-5)
    assert abs(float(common.rank_correlation(torch.tensor([1.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0]))) - math.sqrt(3) / 2) < 1e-5
    assert float(common.rank_correlation(torch.ones(9), torch.arange(9.0))) == 0


def test_mutual_information_gap():
    torch.manual_seed(0)
    a, b = torch.randint(4, (4000,)), torch.randn(4000)
    alone = common.mutual_information_gap([a, b], {"a": a, "b": b})
    assert alone["mig"] > 0.95 and alone["mig_factors"]["a"] > 0.95
    assert abs(common.mutual_information_gap([a, a, b], {"a": a})["mig"]) < 1e-9          # two codes that tell the same: no gap


def test_encoding_scores():
    torch.manual_seed(0)
    centres = torch.randn(4, 8) * 5
    labels, test_labels = torch.randint(4, (400,)), torch.randint(4, (100,))
    codes, test = centres[labels] + torch.randn(400, 8) * 3, centres[test_labels] + torch.randn(100, 8) * 3
    found = common.encoding_scores(codes, labels, test, test_labels)
    votes = labels[torch.cdist(test, codes).argsort(1)[:, :5]]
    right = sum(int(torch.bincount(v, minlength=4).argmax()) == int(y) for v, y in zip(votes, test_labels)) / 100
    assert abs(found["knn_accuracy"] - right) < 1e-6 and found["probe_accuracy"] > 0.9
    shuffled = common.encoding_scores(codes, labels[torch.randperm(400)], test, test_labels)
    assert shuffled["probe_accuracy"] < 0.5


def test_measured_strokes_follow_the_drawn_factors():
    images, labels, factors = common.draw_digits(3000)
    found = common.measure_strokes(images.float() / 255)
    for name, factor in (("slant", "slant"), ("width", "thickness")):
        for digit in (0, 1, 8):
            some = (labels == digit).nonzero().flatten()[:200]
            assert common.rank_correlation(found[name][some], factors[factor][some]) > 0.9, (name, digit)
    bar = torch.zeros(1, 1, 28, 28)
    bar[..., 4:24, 10:14] = 1
    assert abs(float(common.measure_strokes(bar)["width"]) - 2 * 80 / 48) < 0.1 and abs(float(common.measure_strokes(bar)["slant"])) < 1e-6


def test_judge_is_cached_and_leaves_the_random_state_alone():
    with folder():
        data = common.load_data(small_data())
        torch.manual_seed(5)
        before = torch.get_rng_state()
        fresh = common.Judge.for_data(data)
        assert len(list(Path("hub").rglob("judge-*.pt"))) == 1 and torch.equal(before, torch.get_rng_state())
        cached = common.Judge.for_data(data)
        assert equal(fresh.state_dict(), cached.state_dict()) and torch.equal(before, torch.get_rng_state())
        next(Path("hub").rglob("judge-*.pt")).write_bytes(b"damaged")
        assert equal(fresh.state_dict(), common.Judge.for_data(data).state_dict())
        torch.hub.set_dir("small.pt/under-a-file")        # a cache that cannot be written is no error
        assert equal(fresh.state_dict(), common.Judge.for_data(data).state_dict())
        assert common.Judge.for_data(common.load_data(small_data(labels=False, path="bare.pt"))) is None


# ---------------------------------------------------------------- pictures

def test_png_is_read_back():
    for channels in (1, 3):
        picture = torch.randint(0, 256, (9, 14, channels), dtype=torch.uint8)
        (back,), names = decode_png(common.png(picture.shape, common.deflate(picture)))
        assert torch.equal(back, picture) and names == ["IHDR", "IDAT", "IEND"]
    frames = [torch.randint(0, 256, (5, 6, 1), dtype=torch.uint8) for _ in range(3)]
    back, names = decode_png(common.png((5, 6, 1), *map(common.deflate, frames)))
    assert equal(back, frames) and names == ["IHDR", "acTL", "fcTL", "IDAT", "fcTL", "fdAT", "fcTL", "fdAT", "IEND"]


def test_grid_places_images_row_by_row():
    images = torch.arange(5).view(5, 1, 1, 1).expand(5, 1, 4, 8) / 5
    picture = common.grid(images, 3, scale=2)
    assert picture.shape == (2 * 2 * 6, 3 * 2 * 10, 1)
    assert [int(picture[2 + 12 * (i // 3), 2 + 20 * (i % 3), 0]) for i in range(5)] == [round(255 * i / 5) for i in range(5)]
    assert [common.grid(torch.zeros(2, c, 4, 4), 2).shape[2] for c in (1, 2, 3, 4)] == [1, 1, 3, 3]


# ---------------------------------------------------------------- data

def idx_content(tensor):
    return gzip.compress(bytes([0, 0, 8, tensor.ndim]) + struct.pack(f">{tensor.ndim}I", *tensor.shape) + bytes(tensor.flatten().tolist()))


@contextlib.contextmanager
def mirrors(**behaviour):
    """Local servers, one a keyword: `good`, `slow` but whole, `wrong` bytes of the right length, `cut` short, `missing` (404),
    `login` (a redirect to a page), `silent`, `trickle` (a byte now and then), `refused`, `unknown` (a host that has no address).

    Yields the four files' contents by name; common.SOURCES["mnist"] points at the servers, in the order given.
    """
    images, labels, _ = common.draw_digits(30)
    parts = [images[:20, 0], labels[:20].byte(), images[20:, 0], labels[20:].byte()]
    files = {name: idx_content(part) for name, part in zip(common.IDX_FILES, parts)}
    servers, urls, requests, holding = [], [], [], threading.Event()

    def handler(kind):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                requests.append((kind, self.path))
                content = files.get(self.path.rsplit("/", 1)[-1], b"<html>Please log in</html>")
                if kind == "silent":
                    holding.wait(20)
                    return
                redirected = kind == "login" and not self.path.endswith("login")
                self.send_response(404 if kind == "missing" else 302 if redirected else 200)
                if redirected:
                    self.send_header("Location", "/login")
                self.send_header("Content-Length", str(0 if redirected else len(content)))
                self.end_headers()
                content = {"wrong": bytes(len(content)), "cut": content[:len(content) // 2], "login": b"" if redirected else content}.get(kind, content)
                pieces = {"slow": 5, "trickle": len(content)}.get(kind, 1)
                with contextlib.suppress(OSError):                # the other side has gone
                    for part in range(pieces):
                        self.wfile.write(content[len(content) * part // pieces:len(content) * (part + 1) // pieces])
                        if pieces > 1:
                            holding.wait(0.1)

            def log_message(self, *_):
                pass
        return Handler

    for kind in behaviour:
        if kind == "refused":
            with socket.socket() as s:
                s.bind(("127.0.0.1", 0))
                urls.append(f"http://127.0.0.1:{s.getsockname()[1]}/")
            continue
        if kind == "unknown":
            urls.append("http://no-such-host.invalid/")
            continue
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(kind))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        urls.append(f"http://127.0.0.1:{server.server_port}/")
    old, timeout = common.SOURCES["mnist"], common.MIRROR_TIMEOUT
    common.SOURCES["mnist"] = (urls, old[1], [hashlib.sha256(files[n]).hexdigest() for n in common.IDX_FILES])
    common.MIRROR_TIMEOUT = 1.0
    try:
        yield files, urls, requests
    finally:
        common.SOURCES["mnist"], common.MIRROR_TIMEOUT = old, timeout
        holding.set()
        for server in servers:
            server.shutdown()
            server.server_close()


def test_download_goes_past_every_fault():
    with folder(), mirrors(refused=1, unknown=1, missing=1, login=1, wrong=1, cut=1, silent=1, slow=1) as (files, _, requests):
        began = time.monotonic()
        data = common.load_data("mnist", "here")
        assert time.monotonic() - began < 20 and data.name == "mnist"
        assert {kind for kind, _ in requests} == {"missing", "login", "wrong", "cut", "silent", "slow"}
        assert {p.name: p.read_bytes() for p in Path("here/mnist").iterdir()} == files        # whole files, nothing else left
        images, labels, _ = common.draw_digits(30)
        assert torch.equal(data.images, images[:20]) and torch.equal(data.test_labels, labels[20:])
        count = len(requests)
        common.load_data("mnist", "here")
        assert len(requests) == count                                                          # the second time nothing is fetched
        Path("here/mnist", common.IDX_FILES[0]).write_bytes(b"damaged")
        assert torch.equal(common.load_data("mnist", "here").images, images[:20]) and len(requests) > count


def test_download_that_fails_names_every_url_and_the_remedy():
    with folder(), mirrors(refused=1, wrong=1) as (files, urls, _):
        assert refused(lambda: common.load_data("mnist", "here"), *urls, "by hand", "here/mnist", "--data digits")
        assert not list(Path("here/mnist").iterdir())


def test_a_trickle_is_given_up():
    with folder(), mirrors(trickle=1, good=1) as (files, urls, _):
        name, began = common.IDX_FILES[0], time.monotonic()
        path = common.download(name, urls, common.SOURCES["mnist"][2][0], Path("here"))
        assert path.read_bytes() == files[name] and common.MIRROR_TIMEOUT <= time.monotonic() - began < 10
        assert [p.name for p in Path("here").iterdir()] == [name]


def test_two_downloads_into_one_folder():
    with folder(), mirrors(slow=1) as (files, _, requests):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda _: common.load_data("mnist", "here"), range(2)))
        assert len(requests) > 4 and torch.equal(both[0].images, both[1].images)                  # they did overlap
        assert {p.name: p.read_bytes() for p in Path("here/mnist").iterdir()} == files


def test_proxies_are_honoured():
    with folder(), mirrors(good=1) as (files, urls, requests):
        name, code = common.IDX_FILES[3], "import common, sys; common.fetch('http://no-such-host.invalid/data/' + sys.argv[1], common.Path('got'))"
        environment = {k: v for k, v in os.environ.items() if k.lower() != "no_proxy"} | {"http_proxy": urls[0], "PYTHONPATH": str(HERE)}
        done = subprocess.run([sys.executable, "-c", code, name], env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and Path("got").read_bytes() == files[name], done.stderr
        assert requests == [("good", f"http://no-such-host.invalid/data/{name}")]


def test_auto_falls_back_loudly_and_mnist_never():
    with folder() as (_, _, err), mirrors(refused=1):
        data = common.load_data("auto", "here")
        assert data.name == "digits" and "DRAWN DIGITS" in err.getvalue() and len(data.images) == 60_000
        assert refused(lambda: infogan.main(["--data", "mnist", "--data-root", "here", "--epochs", "0", "--out", "run"]), "could not get")
        assert not Path("run").exists()
    with folder(), mirrors(good=1):
        assert common.load_data("auto", "here").name == "mnist"


def test_files_are_found_where_they_lie():
    for place in (".", "mnist", "MNIST/raw"):
        with folder(), mirrors(refused=1) as (files, _, _):
            Path("root", place).mkdir(parents=True)
            for name, content in files.items():
                Path("root", place, name).write_bytes(content)
            assert len(common.load_data("mnist", "root").images) == 20


def test_sources_are_the_published_ones():
    for name, (urls, _, checksums) in common.SOURCES.items():
        assert len(checksums) == 4 and all(re.fullmatch("[0-9a-f]{32}|[0-9a-f]{64}", c) for c in checksums)
        assert all(u.startswith("http") and u.endswith("/") for u in urls)
    if not list((HERE / "data").rglob(common.IDX_FILES[0])):
        raise unittest.SkipTest("the genuine MNIST files are not in data/")
    data = common.load_data("mnist", HERE / "data")
    assert data.images.shape == (60_000, 1, 28, 28) and data.test_images.shape == (10_000, 1, 28, 28)
    assert data.labels[:5].tolist() == [5, 0, 4, 1, 9] and int(data.images.long().sum()) == 1_567_298_545


def test_digits_are_reproducible_and_readable():
    images, labels, factors = common.draw_digits(3000)
    again = common.draw_digits(3000)
    assert torch.equal(images, again[0]) and images.dtype == torch.uint8 and images.shape == (3000, 1, 28, 28)
    assert torch.bincount(labels).min() > 200 and all(v.shape == (3000,) and v.std() > 0 for v in factors.values())
    flat = images.flatten(1).float() / 255
    partial = ((flat > 0) & (flat < 1)).float().mean()
    assert 0.02 < partial < 0.3 and 0.05 < flat.mean() < 0.3                                 # edges are anti-aliased, ink is sparse
    assert images[:, :, 0].float().mean() < 12 and images[:, :, :, 0].float().mean() < 12    # and stays inside the frame
    found = common.encoding_scores(flat[:2500], labels[:2500], flat[2500:], labels[2500:])
    assert found["knn_accuracy"] > 0.9, found
    assert not torch.equal(common.draw_digits(100, seed=1)[0], images[:100])


def test_own_images():
    with folder():
        data = common.load_data(small_data(100, (3, 20, 32)))
        assert data.shape == (3, 20, 32) and len(data.images) == 100 and len(data.test_images) == 40
        torch.save({"images": torch.zeros(50, 1, 8, 8, dtype=torch.uint8), "labels": torch.arange(50)}, "plain.pt")
        data = common.load_data("plain.pt")
        assert len(data.images) == 45 and data.test_labels.tolist() == [9, 19, 29, 39, 49]   # every tenth is held out
        image = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
        for content, words in (({"images": image.float()}, ["uint8"]), ({"images": image[:, 0]}, ["(N, C, H, W)"]), ([1], ["expected a dict"]),
                               ({"images": torch.zeros(4, 1, 8, 9, dtype=torch.uint8)}, ["8x9", "multiples of 4"]),
                               ({"images": image, "labels": torch.arange(3)}, ["labels", "4 images"]),
                               ({"images": image, "test_images": image[..., :4]}, ["test_images"]), ({"images": image[:0]}, ["images"]),
                               ({"images": image[:1]}, ["one image in `images`"]), ({"images": image, "test_images": image[:1]}, ["one image in `test_images`"]),
                               ({"images": image / 0}, ["float32", "round().byte()"]), ({"images": image, "labels": torch.arange(4) - 1}, ["0 to 999"]),
                               ({"images": image, "labels": torch.arange(4) / 2}, ["whole numbers"]), ({"images": image, "labels": torch.arange(4) * 999}, ["0 to 999"]),
                               ({"images": image, "labels": torch.arange(4), "test_images": image}, ["or neither"]),
                               ({"images": image, "code": print}, ["nothing else"])):
            torch.save(content, "bad.pt")
            assert refused(lambda: common.load_data("bad.pt"), "bad.pt", *words)
        Path("bad.pt").write_text("not torch")
        assert refused(lambda: common.load_data("bad.pt"), "bad.pt", "cannot be read")
        Path("folder.pt").mkdir()
        assert refused(lambda: common.load_data("folder.pt"), "cannot be read")
        assert refused(lambda: common.load_data("none.pt"), "no such file") and refused(lambda: common.load_data("cifar"), "unknown")


def test_strange_data_train_and_leave_no_nan():
    noise = lambda n, *shape: torch.randint(0, 256, (n, *shape), dtype=torch.uint8)
    cases = {"all alike": (torch.full((60, 1, 8, 8), 7, dtype=torch.uint8), torch.arange(60) % 3), "two images": (noise(2, 1, 8, 8), None),
             "fewer than a batch": (noise(11, 1, 8, 8), torch.arange(11)), "one class": (noise(60, 1, 8, 8), torch.zeros(60, dtype=torch.long)),
             "large and coloured": (noise(40, 3, 64, 64), torch.arange(40) % 2), "many classes": (noise(60, 1, 4, 4), torch.arange(60) * 16),
             "labels of bytes, strided images": (noise(60, 8, 4, 1).permute(0, 3, 1, 2), (torch.arange(60) % 5).byte())}
    for (images, labels), method in itertools.product(cases.values(), METHODS):
        with folder():
            torch.save({"images": images} | ({} if labels is None else {"labels": labels}), "small.pt")
            run(method)
            assert json.loads(Path("run/metrics.jsonl").read_text(), parse_constant=lambda name: 1 / 0)["epoch"] == 1      # no NaN, no Infinity
            assert all(value.isfinite().all() for value in MODELS[method].load("run").sample(3))


# ---------------------------------------------------------------- models

def test_infogan_shapes():
    for shape, (n, categorical, continuous) in itertools.product([(1, 28, 28), (3, 32, 20)], [(1, [10], 2), (7, [10, 5, 5], 0), (7, [], 3)]):
        c = infogan.Config(width=4, categorical=categorical, continuous=continuous)
        model = infogan.InfoGAN(c, shape).eval()
        images = model.sample(n)
        assert images.shape == (n, *shape) and 0 <= images.min() <= images.max() <= 1
        codes = model.encode(images)
        assert [p.shape for p in codes.categorical] == [(n, k) for k in categorical] and codes.mean.shape == codes.std.shape == (n, continuous)
        assert all(torch.allclose(p.sum(1), torch.ones(n)) for p in codes.categorical) and (codes.std > 0).all()
        assert torch.equal(model.encode((images * 255).round().byte()).mean, model.encode((images * 255).round() / 255).mean)


def test_infogan_latents_hold_what_is_asked():
    model = infogan.InfoGAN(infogan.Config(width=2, noise=5, categorical=[10, 4], continuous=2, code_range=0.5))
    noise, first, second, values = model.sample_latent(2000).split([5, 10, 4, 2], 1)
    assert noise.min() < -0.95 and noise.max() > 0.95 and 0.49 < values.abs().max() <= 0.5
    assert first.sum(1).eq(1).all() and first.mean(0).min() > 0.07 and second.mean(0).min() > 0.2
    latent = model.sample_latent(3, categorical=7, continuous=[1.5, -1.0])
    assert latent[:, 5:15].argmax(1).tolist() == [7, 7, 7] and torch.equal(latent[:, 19:], torch.tensor([[1.5, -1.0]] * 3))
    assert model.sample_latent(3, categorical=[1, 2, 3])[:, 5:15].argmax(1).tolist() == [1, 2, 3]
    assert model.sample_latent(2, categorical=[[1, 0], [2, 3]])[:, 15:19].argmax(1).tolist() == [0, 3]
    for bad in (10, -1, [1, 2], 1.5, [[1, 4]] * 3, [[1, 2, 3]] * 3):
        assert refused(lambda: model.sample_latent(3, categorical=bad), "categor")
    assert refused(lambda: model.sample_latent(3, continuous=[1, 2, 3]), "continuous")
    one, two = (model.sample_latent(4, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)


def test_ogan_shapes_and_interpolation():
    for n, shape in itertools.product((1, 7), ((1, 28, 28), (3, 32, 20))):
        model = ogan.OGAN(ogan.Config(width=4, latent=12, average=0.0), shape)
        model.encoder[1].weight.data.mul_(1e4)         # an untrained encoder's codes are all but constant
        images = model.sample(n)
        assert model.training and images.shape == (n, *shape) and 0 <= images.min() <= images.max() <= 1
        code = model.encode(images)
        assert code.shape == (n, 12) and code.mean(1).abs().max() < 1e-5 and (code.std(1, correction=0) - 1).abs().max() < 1e-4
        assert model.reconstruct(images).shape == images.shape
    a, b = torch.rand(3, 32, 20), torch.rand(3, 32, 20)
    frames = model.interpolate(a, b, 5)
    assert frames.shape == (5, 3, 32, 20)
    assert torch.allclose(frames[[0, -1]], model.reconstruct(torch.stack([a, b])), atol=1e-5)


def test_images_to_read_are_checked():
    for model in (infogan.InfoGAN(infogan.Config(width=2), [1, 8, 12]), ogan.OGAN(ogan.Config(width=2, latent=8), [1, 8, 12])):
        for good in (torch.zeros(2, 1, 8, 12), torch.ones(1, 1, 8, 12), torch.full((3, 1, 8, 12), 255).byte()):
            assert len(model.read(good)) == len(good)
        for bad, why in ((torch.zeros(8, 12), "(8, 12)"), (torch.zeros(2, 1, 12, 8), "(2, 1, 12, 8)"), (torch.zeros(2, 3, 8, 12), "(2, 3, 8, 12)"),
                         (torch.zeros(2, 1, 8, 12).long(), "int64"), ([[0.0]], "list")):
            assert refused(lambda: model.encode(bad), why, "(N, 1, 8, 12)")
        for bad, why in ((torch.full((1, 1, 8, 12), 255.0), "255"), (-torch.ones(1, 1, 8, 12), "-1")):
            assert refused(lambda: model.encode(bad), why, "[0, 1]")


def test_evaluation_leaves_training_mode_and_weights_alone():
    for cls, config in ((infogan.InfoGAN, infogan.Config(width=2)), (ogan.OGAN, ogan.Config(width=2, latent=8))):
        model = cls(config).train()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        images = model.sample(5)
        one = model.encode(images)
        assert equal(list(one), list(model.encode(images))) and not images.requires_grad
        assert equal(before, model.state_dict()) and all(m.training for m in model.modules())


def test_truncation_scales_what_is_reconstructed():
    model, images = ogan.OGAN(ogan.Config(width=2, latent=8, truncation=0.5)).eval(), torch.rand(4, 1, 28, 28)
    half = model.generate(model.encode(images) / 2)
    assert torch.equal(model.reconstruct(images), half) and not torch.equal(half, model.generate(model.encode(images)))
    assert close(model.interpolate(images[0], images[1], 3)[[0, 2]], half[:2])


# ---------------------------------------------------------------- runs

def test_a_run_leaves_everything():
    wanted = {"infogan": ({"samples", "traversal", "c2", "c3", "training"}, {"accuracy", "nmi", "ari", "mi_categorical", "mi_continuous", "frechet",
                                                                             "frechet_floor", "confusion", "effect", "carried"}),
              "ogan": ({"samples", "reconstruction", "interpolation", "training"}, {"rho", "knn_accuracy", "probe_accuracy", "agreement",
                                                                                    "reconstruction_error", "frechet", "frechet_floor"})}
    for method, (names, keys) in wanted.items():
        with folder() as (_, out, _):
            small_data()
            run(method, "--epochs", 2)
            assert {p.name for p in Path("run").iterdir()} == {f"{n}.png" for n in names} | {"config.json", "metrics.jsonl", "checkpoint.pt", "index.html"}
            lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
            assert [line["epoch"] for line in lines] == [1, 2] and all(line["data"] == "small.pt" for line in lines)
            assert {"epoch", "seconds", "images_per_second", "data"} | keys <= lines[-1].keys()
            assert all(math.isfinite(v) for v in lines[-1].values() if isinstance(v, float))
            config = json.loads(Path("run/config.json").read_text())
            assert config["torch"] == torch.__version__ and config["device"] == "cpu" and config["data"] == str(Path("small.pt").resolve()) and config["width"] == 2
            for name in names:
                pictures, chunks = decode_png(Path(f"run/{name}.png").read_bytes())
                assert len(pictures) == (3 if name == "training" else 1) and pictures[0].float().std() > 0
            page = Path("run/index.html").read_text()
            assert page.count("data:image/png;base64,") == len(names) and page.count("<svg") >= 3 and "<script" not in page
            assert not re.search(r"""(src|href)\s*=\s*(?!["']?data:)|@import|url\(|https?:""", page)
            assert out.getvalue().count("epoch 1/2") == out.getvalue().count("epoch 2/2") == 1 and "\r" not in out.getvalue()
            model = MODELS[method].load("run/checkpoint.pt")
            assert not model.training and equal(model.state_dict(), checkpoint("run")["model"])


def test_resume_equals_the_uninterrupted_run():
    for method in METHODS:
        with folder():
            small_data()
            whole = run(method, "--epochs", 3, "--out", "whole")
            run(method, "--epochs", 1, "--out", "parts")
            parts = run(method, "--epochs", 3, "--resume", "parts")
            # the end of the first part added its final scores to epoch 1; everything else is the same to the bit
            parts["history"][0] = {k: v for k, v in parts["history"][0].items() if k in whole["history"][0]}
            assert equal(whole, parts)
            lines = Path("parts/metrics.jsonl").read_text().splitlines()
            assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_a_terminal_gets_a_live_line():
    with folder():
        small_data(640)
        ours, theirs = os.openpty()
        done = subprocess.Popen([sys.executable, HERE / "ogan.py", *"--epochs 1 --width 2 --batch-size 32 --data small.pt --out run".split()],
                                stdout=theirs, stderr=subprocess.PIPE, env={**os.environ, "TORCH_HOME": "hub"})
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):         # a closed terminal reads as an error
            while part := os.read(ours, 4096):
                shown += part
        os.close(ours)
        assert done.wait() == 0 and done.stderr.read() == b""
        line = shown.decode().split("\r\033[K")[-2]
        assert line.startswith("epoch 1/1 100%") and all(word in line for word in ("loss_e", "loss_g", "loss_latent", "images/s", "0:00 left")), line


def test_same_seed_same_run_other_seed_other_run():
    for method in METHODS:
        with folder():
            small_data()
            a, b, c = (run(method, "--seed", seed, "--out", name) for seed, name in ((1, "a"), (1, "b"), (2, "c")))
            assert equal(a["model"], b["model"]) and not equal(a["model"], c["model"])


def test_epochs_zero_evaluates_and_draws():
    with folder():
        small_data()
        state = run("ogan", "--epochs", 0)
        assert state["epoch"] == 0 and json.loads(Path("run/metrics.jsonl").read_text())["rho"] is not None and Path("run/samples.png").exists()


def test_without_labels_what_needs_them_is_left_out():
    for method, gone in (("infogan", "accuracy"), ("ogan", "knn_accuracy")):
        with folder() as (_, out, _):
            small_data(labels=False)
            run(method)
            last = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
            assert gone not in last and "frechet" not in last and "no labels" in out.getvalue()


def test_other_sizes_and_channels_train():
    for method, shape in itertools.product(METHODS, [(3, 16, 24), (2, 8, 8), (4, 12, 12)]):
        with folder():
            small_data(60, shape)
            run(method)
            assert decode_png(Path("run/samples.png").read_bytes())[0][0].shape[2] == (3 if shape[0] > 2 else 1)


def test_run_folders_are_numbered_and_never_overwritten():
    with folder():
        small_data(40)
        flags = ["--width", "2", "--epochs", "0", "--data", "small.pt"]
        infogan.main(flags), infogan.main(flags), ogan.main(flags)
        assert sorted(p.name for p in Path("runs").iterdir()) == ["infogan-1", "infogan-2", "ogan-1"]
        before = Path("runs/infogan-1/checkpoint.pt").read_bytes()
        assert refused(lambda: infogan.main(flags + ["--out", "runs/infogan-1"]), "exists already", "--resume")
        assert Path("runs/infogan-1/checkpoint.pt").read_bytes() == before
        assert refused(lambda: infogan.main(flags + ["--out", "small.pt"]), "exists already") and refused(lambda: infogan.main(flags + ["--out", "small.pt/x"]), "cannot be made")


# ---------------------------------------------------------------- faults

LONG = "--long" in sys.argv   # more kills, more damage, twenty epochs: minutes


def whole(folder):
    """Assert that every file in a run folder under its final name is whole; returns the epochs that its checkpoint has done, or None."""
    epochs = None
    for path in Path(folder).iterdir():
        content = path.read_bytes()
        if path.suffix == ".png":
            decode_png(content)
        elif path.name == "checkpoint.pt":
            epochs = torch.load(io.BytesIO(content), weights_only=True)["epoch"]
        elif path.name == "metrics.jsonl":
            assert [json.loads(line)["epoch"] for line in content.decode().splitlines()] == list(range(1, content.count(b"\n") + 1))
        elif path.name == "config.json":
            assert json.loads(content)["method"]
        else:
            assert path.suffix == ".part" or path.name == "index.html" and content.endswith(b"</html>\n"), path
    return epochs


def same_run(a, b):
    """Whether two finished runs left the same: checkpoint, metrics and pictures to the bit, times and names apart."""
    states = [checkpoint(f) for f in (a, b)]
    lines = [[json.loads(line) for line in Path(f, "metrics.jsonl").read_text().splitlines()] for f in (a, b)]
    images = [{p.name: p.read_bytes() for p in Path(f).glob("*.png")} for f in (a, b)]
    return equal(*states) and equal(*lines) and images[0] == images[1]


def killed_and_resumed(method, random_kills, every):
    """Kill runs at random moments and, one run each, at every `every`-th point of its saving; all must end as the run that was left alone.

    To be called where no backward pass was made: it forks. Returns the number of kills at random and in saving.
    """
    def child(*flags, point=None):
        pid = os.fork()
        if pid:
            return pid
        with contextlib.suppress(BaseException), open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
            if point is not None:
                die_at(point)
            run(method, *flags, *(() if "--resume" in flags else ("--epochs", 2)))
            os._exit(0)
        os._exit(1)

    def die_at(point):
        points = itertools.count()

        def passing():
            if next(points) == point:
                os.kill(os.getpid(), signal.SIGKILL)

        class File(io.FileIO):
            def write(self, content):
                super().write(content[:len(content) // 2])
                passing()                                   # half of it is written
                super().write(content[len(content) // 2:])
        replace = os.replace
        common.open = lambda path, mode: File(path, mode)
        common.os.replace = lambda a, b: (passing(), replace(a, b), passing())   # before its name is given, and after

    def finished(pid):
        status = os.waitpid(pid, 0)[1]
        assert status in (0, signal.SIGKILL), status
        return status == 0

    def go_on(name):
        """The flags to go on with a run; one killed before its first save had nothing to lose and begins anew."""
        if Path(name).exists() and whole(name) is None:
            Path(name).rename(f"{name}-never-began-{random.random()}")
        return ("--resume", name) if Path(name).exists() else ("--out", name)

    torch.set_num_threads(1)
    small_data()
    assert finished(child("--out", "whole"))                # trains the judge, too
    began = time.monotonic()
    assert finished(child("--out", "again")) and same_run("whole", "again")
    length, killed, runs = time.monotonic() - began, 0, 0
    while killed < random_kills:
        runs += 1
        while True:
            pid = child(*go_on(f"run{runs}"))
            time.sleep(random.uniform(0, 1.2 * length))
            os.kill(pid, signal.SIGKILL)
            if finished(pid):
                break
            killed += 1
        assert same_run("whole", f"run{runs}")
    for point in itertools.count(0, every):
        if finished(child("--out", f"point{point}", point=point)):
            break
        while not finished(child(*go_on(f"point{point}"))):
            pass
        assert same_run("whole", f"point{point}"), point
    return killed, point // every


def test_sigkill_loses_nothing():
    if not hasattr(os, "fork"):
        raise unittest.SkipTest("no fork on this system")
    kills, every, methods = (30, 2, METHODS) if LONG else (2, 24, ["ogan"])
    for method in methods:
        with folder() as (here, _, _):
            code = f"import common, test_all, torch; torch.hub.set_dir('hub'); common.SAMPLES = 300; print(*test_all.killed_and_resumed('{method}', {kills}, {every}))"
            done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(HERE)}, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            at_random, saving = map(int, done.stdout.split())
            assert at_random >= kills and saving >= 60 // every
            print(f"        {method}: {at_random} kills at random, {saving} while saving, 0 epochs lost", file=sys.__stdout__)


def test_signals_save_stop_and_go_on():
    """Ctrl-C in training, in an epoch's scores, in the last one's; twice; SIGTERM."""
    def interrupted(function, call, signals):
        count = itertools.count()

        def patched(*args, **kwargs):
            if next(count) == call:
                for s in signals:
                    signal.raise_signal(s)
            return function(*args, **kwargs)
        return patched

    ctrl_c, term = signal.SIGINT, signal.SIGTERM
    for method, module in METHODS.items():
        with folder() as (_, _, err), contextlib.ExitStack() as after:
            after.callback(signal.signal, ctrl_c, signal.signal(ctrl_c, signal.default_int_handler))   # a job in the background is born ignoring it
            small_data()
            run(method, "--epochs", 2, "--out", "whole")
            handlers = [signal.getsignal(s) for s in (ctrl_c, term)]
            for i, (name, call, signals, word) in enumerate([
                    ("training_step", 7, [ctrl_c], "step 3 of 5 in epoch 2"), ("training_step", 4, [term], "step 0 of 5 in epoch 2"),
                    ("scores", 0, [ctrl_c], "step 0 of 5 in epoch 2"), ("scores", 1, [term], "before the final scores"),
                    ("training_step", 7, [ctrl_c, ctrl_c], "at once"), ("scores", 2, [ctrl_c], "at once"), ("pictures", 0, [ctrl_c], "at once")]):
                try:
                    with mock.patch.object(module, name, interrupted(getattr(module, name), call, signals)):
                        run(method, "--epochs", 2, "--out", f"run{i}")
                    raise AssertionError("not interrupted")
                except SystemExit as stop:
                    said = err.getvalue().splitlines()[-1]
                    assert stop.code == 130 and word in said and ("at once" in said or f"--resume run{i}" in said), said
                assert [signal.getsignal(s) for s in (ctrl_c, term)] == handlers
                if whole(f"run{i}") is not None:
                    run(method, "--resume", f"run{i}")
                    assert same_run("whole", f"run{i}"), i


def test_a_full_disk_keeps_what_was_there():
    if not Path("/dev/full").exists():
        raise unittest.SkipTest("no /dev/full on this system")
    for method in METHODS:
        with folder():
            small_data()
            run(method, "--epochs", 2, "--out", "whole")
            run(method, "--epochs", 1)
            names = sorted(p.name for p in Path("run").iterdir())
            assert len(names) >= 8
            for name in names:                             # the kernel refuses every byte of this one file: no space left on device
                before = Path("run", name).read_bytes()
                Path("run", f"{name}.part").symlink_to("/dev/full")
                assert refused(lambda: run(method, "--resume", "run", "--epochs", 2), f"{method}.py: run/{name} cannot be written: No space left")
                assert Path("run", name).read_bytes() == before and whole("run") in (1, 2) and not list(Path("run").glob("*.part"))
            run(method, "--resume", "run", "--epochs", 2)
            assert not list(Path("run").glob("*.part"))
            assert equal(checkpoint("run")["model"], checkpoint("whole")["model"]) and whole("run") == 2


def test_output_that_cannot_be_printed():
    """A log on a full disk, and a pipe whose reader is gone: one line, and the run goes on from what it saved."""
    with folder(), contextlib.ExitStack() as closing:
        small_data()
        reader, gone = os.pipe()
        os.close(reader)
        closing.callback(os.close, gone)
        outputs = [(gone, "Broken pipe")]
        if Path("/dev/full").exists():
            outputs.append((closing.enter_context(open("/dev/full", "w")), "No space left"))
        for out, why in outputs:
            command = [sys.executable, HERE / "ogan.py", *"--epochs 1 --width 2 --data small.pt --out".split(), f"run-{why[0]}"]
            done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, env={**os.environ, "TORCH_HOME": "hub"})
            assert done.returncode == 2 and done.stderr.count("\n") == 1 and f"ogan.py: cannot print: {why}" in done.stderr, done.stderr
            assert run("ogan", "--resume", f"run-{why[0]}", "--epochs", 1)["epoch"] == 1


def test_small_and_read_only_file_systems():
    """A tmpfs too small for a run, and one that is read-only, in a mount name space of their own."""
    script = """set -e; mkdir small; mount -t tmpfs -o size=300k tmpfs small; cp small.pt small/; cd small
        say() { "$PYTHON" "$HERE/ogan.py" "$@" 2>&1 >/dev/null || echo "status $?"; }
        say --data small.pt --epochs 1 --width 2 --out run; ls run; rm -r run
        mount -o remount,ro,size=300k tmpfs .
        say --data small.pt --epochs 1 --width 2 --out run; say --data mnist --data-root here --epochs 1 --out ../run"""
    with folder() as (here, _, _), mirrors(refused=1):
        small_data()
        if subprocess.run(["unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /tmp"], capture_output=True).returncode:
            raise unittest.SkipTest("no file system can be mounted here")
        done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True,
                              env=os.environ | {"PYTHON": sys.executable, "HERE": str(HERE), "TORCH_HOME": str(here / "hub"), "http_proxy": "http://127.0.0.1:9",
                                                "https_proxy": "http://127.0.0.1:9"})
        assert done.returncode == 0, done.stderr
        small, status, *left, read_only, status2, no_data, status3 = done.stdout.splitlines()
        assert "No space left" in small and small.startswith("ogan.py: run/") and not any(name.endswith(".part") for name in left), done.stdout
        assert "--out run cannot be made: Read-only file system" in read_only and "could not get" in no_data and "Read-only file system" in no_data, done.stdout
        assert status == status2 == status3 == "status 2"


def test_a_run_folder_deleted_under_way():
    with folder():
        small_data()
        step, count = ogan.training_step, itertools.count()
        with mock.patch.object(ogan, "training_step", lambda *args: (shutil.rmtree("run") if next(count) == 7 else None, step(*args))[1]):
            assert refused(lambda: run("ogan", "--epochs", 3), "run/checkpoint.pt cannot be written: No such file or directory")


def test_wrong_checkpoints_are_refused():
    with folder() as (_, _, err):
        small_data(40)
        run("infogan", "--epochs", 0)
        assert refused(lambda: ogan.main(["--resume", "run"]), "no checkpoint of ogan.py") and refused(lambda: ogan.OGAN.load("run"), "ogan")
        assert refused(lambda: ogan.main(["--resume", "nowhere"]), "nowhere") and refused(lambda: infogan.InfoGAN.load("small.pt"), "no checkpoint")
        assert refused(lambda: infogan.main(["--resume", "run", "--width", "4"]), "--width cannot change")
        infogan.main(["--epochs", "2", "--resume", "run/checkpoint.pt"])
        assert refused(lambda: infogan.main(["--resume", "run", "--epochs", "1"]), "less than the 2")
        good = checkpoint("run")
        last = next(reversed(good["model"]))
        for change, *words in (({"config": good["config"] | {"width": 3}}, "does not fit", "size mismatch"),          # another architecture
                               ({"model": {k: v for k, v in good["model"].items() if k != last}}, "does not fit", last),
                               ({"config": good["config"] | {"glow": 1}}, "does not fit", "glow"), ({"config": None}, "does not fit"),
                               ({"config": good["config"] | {"width": "wide"}}, "--width is 'wide'")):
            torch.save(good | change, "run/checkpoint.pt")
            assert refused(lambda: infogan.main(["--resume", "run"]), *words) and refused(lambda: infogan.InfoGAN.load("run"), *words)
        for key in ("optimizers", "random", "epoch", "history"):
            torch.save({k: v for k, v in good.items() if k != key}, "run/checkpoint.pt")
            assert refused(lambda: infogan.main(["--resume", "run"]), "does not fit", key)
        old = {k: v for k, v in good["config"].items() if k != "invariance"}
        torch.save(good | {"config": old}, "run/checkpoint.pt")                                                       # from before a flag
        infogan.main(["--resume", "run"])
        assert "run is from before --invariance; it goes on with 10.0" in err.getvalue()


def test_damaged_checkpoints_are_noticed():
    with folder():
        small_data(40)
        good = run("ogan", "--epochs", 1)
        path, content, draw = Path("run/checkpoint.pt"), Path("run/checkpoint.pt").read_bytes(), random.Random(0)
        for at in [0, 1, len(content) - 1] + [draw.randrange(len(content)) for _ in range(300 if LONG else 60)]:
            path.write_bytes(content[:at])
            assert refused(lambda: common.read_checkpoint("run", "ogan"), "cut short")
            path.write_bytes(content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1:])
            try:
                assert equal(common.read_checkpoint("run", "ogan"), good)       # a bit that says nothing, as in the padding
            except InputError as error:
                assert "damaged" in str(error)


class Bomb:
    def __reduce__(self):
        return open, ("exploded", "w")


def test_pickled_code_is_refused_and_does_not_run():
    with folder():
        for save in (lambda: torch.save({"method": "ogan", "images": Bomb()}, "bomb.pt"),
                     lambda: torch.save({"method": "ogan", "images": Bomb()}, "bomb.pt", _use_new_zipfile_serialization=False),
                     lambda: Path("bomb.pt").write_bytes(pickle.dumps(Bomb()))):
            save()
            assert refused(lambda: ogan.main(["--resume", "bomb.pt"]), "cannot be read") and refused(lambda: ogan.OGAN.load("bomb.pt"), "cannot be read")
            assert refused(lambda: ogan.main(["--data", "bomb.pt", "--out", "run"]), "cannot be read")
            assert not Path("exploded").exists() and not Path("run").exists()


def test_a_run_goes_on_on_another_device():
    """A checkpoint as CUDA leaves it goes on here; with a CUDA device, also there and back."""
    for method, flags in (("infogan", []), ("ogan", []), ("ogan", ["--optimizer", "rmsprop"])):
        with folder():
            small_data()
            run(method, "--epochs", 2, "--out", "whole", *flags)
            state = run(method, *flags)
            for optimizer in state["optimizers"].values():
                for group in optimizer["param_groups"]:
                    group["capturable"] = True
            torch.save(state | {"random_cuda": torch.zeros(16, dtype=torch.uint8)}, "run/checkpoint.pt")
            here = run(method, "--epochs", 2, "--resume", "run")
            assert equal(here["model"], checkpoint("whole")["model"])
            if torch.cuda.is_available():
                for device, epochs in (("cuda", 4), ("cpu", 6)):
                    METHODS[method].main(["--resume", "run", "--epochs", str(epochs), "--device", device])


def test_a_loss_or_weight_that_is_not_finite_stops_the_run():
    for method, module, part in (("infogan", infogan, "loss_information"), ("ogan", ogan, "loss_latent")):
        with folder():
            small_data()
            good, step = run(method)["model"], module.training_step
            for value, at in ((math.nan, 3), (math.inf, 1), (-math.inf, 5)):
                count = itertools.count(1)
                one_bad = lambda *args: step(*args) | ({part: torch.tensor(value)} if next(count) == at else {})
                with mock.patch.object(module, "training_step", one_bad):
                    assert refused(lambda: run(method, "--resume", "run", "--epochs", 9), f"{part} became {value} at step {at} of epoch 2", "run/checkpoint.pt is from before")
                assert next(count) == 6 and whole("run") == 1                              # within the epoch of 5 steps
                assert equal(good, checkpoint("run")["model"])
            name, count = next(iter(good)), itertools.count(1)        # after the epoch's last step no loss tells
            last_bad = lambda model, *rest: (step(model, *rest), next(count) < 5 or model.state_dict()[name].fill_(math.inf))[0]
            with mock.patch.object(module, "training_step", last_bad):
                assert refused(lambda: run(method, "--out", "other"), f"{name} is no longer finite after 1 epochs") and whole("other") == 0


def test_out_of_memory_says_what_to_lower():
    try:
        import resource
    except ImportError:
        raise unittest.SkipTest("no memory limits on this system") from None
    with folder():
        small_data()
        done = subprocess.run([sys.executable, HERE / "ogan.py", "--data", "small.pt", "--device", "cpu", "--width", "4000"], capture_output=True, text=True,
                              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)))
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "out of memory; lower --batch-size or --width" in done.stderr, done.stderr
        assert not Path("runs").exists()


def test_twenty_epochs_hold_in_both_precisions():
    if not LONG:
        raise unittest.SkipTest("takes minutes: python test_all.py --long")
    for method in METHODS:
        with folder():
            small_data(1000)
            for precision, seed in itertools.product(("fp32", "bf16"), range(5)):
                run(method, "--epochs", 20, "--width", 4, "--average", 0, "--precision", precision, "--seed", seed, "--out", f"{precision}-{seed}")
                lines = [json.loads(line) for line in Path(f"{precision}-{seed}/metrics.jsonl").read_text().splitlines()]
                assert len(lines) == 20 and all(math.isfinite(v) for line in lines for v in line.values() if isinstance(v, float))
                first, last = (lines[i]["loss_latent" if method == "ogan" else "loss_information"] for i in (0, -1))
                assert last < first - 0.2, (method, precision, seed, first, last)                       # and learns to read


# ---------------------------------------------------------------- flags

FLAGS = {   # every flag of both methods at a value of its own
    "infogan": ["--noise 7", "--categorical 10 5 5", "--categorical", "--continuous 0", "--continuous 3 --code-range 2", "--code-range 0.5",
                "--lambda-categorical 0.5", "--lambda-continuous 1", "--no-separate-q", "--no-separate-q --detach-trunk", "--lr-discriminator 0.001", "--lr-generator 0.002",
                "--invariance 0", "--init normal", "--average 0", "--average 0.2",
                "--categorical 6 --continuous 1 --code-range 3", "--categorical 4 4 --continuous 0 --no-separate-q --detach-trunk"],
    "ogan": ["--latent 5", "--rho-weight 0.3", "--rho-generator 1", "--critic network", "--latent-loss mse", "--latent-loss none", "--truncation 0.8", "--lr-encoder 0.001",
             "--lr-generator 0.002", "--average 0", "--average 0.2", "--no-joint-batch", "--init normal", "--optimizer rmsprop"]
            + [f"--gan-loss {name} --critic {critic} --latent-loss {loss}" for name, critic, loss
               in itertools.product(ogan.GAN_LOSSES, ("avg", "network"), ("pearson", "mse"))
               if (name, critic, loss) != ("qp", "avg", "pearson")],
}


def test_every_flag_does_what_it_says():
    for method, module in METHODS.items():
        with folder():
            small_data(64)
            plain = run(method, "--batch-size", 16, "--out", "plain")
            seen = set()
            for number, line in enumerate(FLAGS[method]):
                words = line.split()
                state = run(method, "--batch-size", 16, "--out", number, *words)
                names = [w[2:].removeprefix("no-").replace("-", "_") for w in words if w.startswith("--")]
                seen |= set(names)
                assert any(state["config"][n] != plain["config"][n] for n in names), line
                if line != "--truncation 0.8":
                    assert not equal(state["model"], plain["model"]), f"{line} changed nothing"
            own = {f.name for f in fields(module.Config)} - {f.name for f in fields(common.RunConfig)}
            assert seen == own, own ^ seen


def test_flags_shape_the_networks():
    count = lambda module: sum(p.numel() for p in module.parameters() if p.requires_grad)
    model = infogan.InfoGAN(infogan.Config(width=64))
    assert model.generator[0].weight.shape == (1024, 74) and model.trunk[0].weight.shape == (64, 1, 4, 4) and model.trunk[6].weight.shape == (1024, 6272)
    assert model.q_head[0].weight.shape == (128, 1024) and model.q_head[3].weight.shape == (14, 128)
    assert infogan.InfoGAN(infogan.Config(categorical=[10, 5, 5], continuous=1)).generator[0].weight.shape[1] == 62 + 20 + 1
    shared, separate = infogan.InfoGAN(infogan.Config(separate_q=False)), infogan.InfoGAN(infogan.Config())
    assert count(separate) - count(shared) == count(shared.trunk)
    assert count(ogan.OGAN(ogan.Config(average=0.0, critic="network"))) - count(ogan.OGAN(ogan.Config(average=0.0))) == 32 * 64 + 64 + 65


def test_common_flags():
    with folder() as (_, out, _):
        small_data(100)
        state = run("ogan", "--batch-size", 25, "--seed", 9, "--width", 3, "--epochs", 2)
        assert state["epoch"] == 2 and state["config"]["seed"] == 9 and state["model"]["encoder.0.0.weight"].shape[0] == 3
        assert state["optimizers"]["e"]["state"][0]["step"] == 2 * 100 // 25 and "cpu" in out.getvalue()
        state = run("ogan", "--batch-size", 5000, "--out", "one")          # more than there are: the whole set is a batch
        assert state["optimizers"]["e"]["state"][0]["step"] == 1
        plain = run("infogan", "--precision", "fp32", "--out", "fp32")
        low = run("infogan", "--precision", "bf16", "--out", "bf16")
        auto = run("infogan", "--out", "auto")
        assert auto["config"]["precision"] == common.pick_precision("auto", torch.device("cpu")) and low["config"]["precision"] == "bf16"
        assert equal(auto["model"], {"fp32": plain, "bf16": low}[auto["config"]["precision"]]["model"]) and not equal(low["model"], plain["model"])
    assert str(common.pick_device("auto")).split(":")[0] == ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


def test_recipe_paper_is_the_paper():
    c = infogan.Config(recipe="paper")
    assert (c.width, c.batch_size, c.noise, c.categorical, c.continuous, c.code_range) == (64, 128, 62, [10], 2, 1.0)
    assert (c.lr_discriminator, c.lr_generator, c.lambda_categorical, c.invariance, c.average, c.init) == (2e-4, 1e-3, 1.0, 0.0, 0.0, "normal")
    c = ogan.Config(recipe="paper")
    assert (c.width, c.latent, c.rho_weight, c.rho_generator, c.truncation) == (64, 128, 0.5, 1.0, 1.0)
    assert (c.gan_loss, c.critic, c.latent_loss) == ("qp", "avg", "pearson")
    assert (c.optimizer, c.lr_encoder, c.lr_generator, c.average, c.joint_batch, c.init) == ("rmsprop", 1e-4, 1e-4, 0.0, False, "normal")
    assert infogan.Config(recipe="paper", width=8, invariance=1.0).invariance == 1.0      # what is given stands over the recipe
    with folder():
        small_data(64)
        state = run("infogan", "--recipe", "paper", "--epochs", 0)
        assert state["config"]["lr_discriminator"] == 2e-4 and state["config"]["width"] == 2


def test_two_processes_train_as_one():
    with folder():
        small_data(128)
        flags = "--epochs 2 --width 2 --batch-size 32 --data small.pt --device cpu --precision fp32 --out run".split()
        done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--rdzv-backend=c10d",
                               "--rdzv-endpoint=127.0.0.1:0", HERE / "infogan.py", *flags],
                              capture_output=True, text=True, env={**os.environ, "TORCH_HOME": "hub", "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0 and done.stdout.count("epoch 2/2") == 1, done.stderr
        assert json.loads(Path("run/config.json").read_text())["processes"] == 2
        lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
        state = checkpoint("run")
        assert [line["epoch"] for line in lines] == [1, 2] and state["optimizers"]["d"]["state"][0]["step"] == 2 * 128 // 32
        done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0",
                               HERE / "infogan.py", *flags[:-1], "odd", "--batch-size", "33"], capture_output=True, text=True)
        assert done.returncode and "cannot be split over 2" in done.stderr


def test_averaged_gradients_are_those_of_the_whole_batch():
    code = """if True:
        import sys, torch, torch.distributed as dist
        sys.path.insert(0, sys.argv[1])
        import common
        dist.init_process_group("gloo")
        torch.manual_seed(0)
        net, images, target = torch.nn.Linear(5, 3), torch.randn(8, 5), torch.randn(8, 3)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        whole = torch.autograd.grad((net(images) - target).square().mean(), list(net.parameters()))
        mine = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)
        (net(images[mine]) - target[mine]).square().mean().backward()
        common.average_gradients(optimizer)
        assert all(torch.allclose(p.grad, g, atol=1e-6) for p, g in zip(net.parameters(), whole))
        dist.barrier()                    # gloo aborts now and then where a process leaves while the other is still in its only collective
        dist.destroy_process_group()"""
    with folder() as (here, _, _):
        Path("check.py").write_text(code)
        done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0",
                               "check.py", HERE], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_study_fills_in_its_file_and_goes_on():
    with folder() as (here, out, _):
        path = small_data(64)
        small = f"--epochs 2 --width 2 --batch-size 32 --device cpu --data {here / path}"
        Path("s.json").write_text(json.dumps({"arms": {"a": f"ogan.py {small}", "b": f"ogan.py {small} --latent 1"}, "seeds": {"a": [3, 4], "b": [3]},
                                              "jobs": 2, "reach": {"rho": -1, "knn_accuracy": 2}, "history": ["rho"],
                                              "pictures": ["samples", "traversal"]}))
        common.study("s.json")
        record = json.loads(Path("s.json").read_text())
        one, two = record["runs"]["a"]["3"], record["runs"]["a"]["4"]
        assert one["seed"] == 3 and 0 < one["seconds_to_rho_-1"] < one["seconds"] and one["seconds_to_knn_accuracy_2"] is None
        n, mean, deviation, least, most = record["summary"]["a"]["rho"]
        assert len(one["history"]["rho"]) == 2 and one["history"]["rho"][-1] == one["rho"] and Path("s-a-samples.png").exists()
        assert n == 2 and abs(mean - (one["rho"] + two["rho"]) / 2) < 1e-9 and {least, most} == {one["rho"], two["rho"]}
        assert abs(deviation - abs(one["rho"] - two["rho"]) / math.sqrt(2)) < 1e-9
        assert "--latent" in record["runs"]["b"]["3"]["failed"] and record["summary"]["b"] == {}     # a failure is kept and counts for nothing
        assert list(record["runs"]["b"]) == ["3"]
        del record["runs"]["a"]["3"]
        record["runs"]["a"]["4"]["kept"], record["seeds"] = True, [3, 4]
        Path("s.json").write_text(json.dumps(record))
        common.study("s.json")
        again = json.loads(Path("s.json").read_text())
        assert equal(again["runs"]["a"]["3"]["rho"], one["rho"]) and again["runs"]["a"]["4"]["kept"] and list(again["runs"]["b"]) == ["3", "4"]
        assert refused(lambda: common.study("none.json"), "none.json", "arms")


def test_permutation_test_by_hand():
    assert common.permutation_test([1.0, 2.0, 3.0], [11.0, 12.0, 13.0]) == 2 / 20
    assert common.permutation_test([1.0, 4.0], [2.0, 3.0]) == 1.0
    assert common.permutation_test([1.0, 2.0], [2.5, 4.0, 9.0]) == 2 / 10      # gaps of 3.67 (1, 2) and of 4.67 (4, 9) against 1, 2, 2.5


def test_captured_steps_equal_eager_ones():
    if not torch.cuda.is_available():
        raise unittest.SkipTest("no CUDA device")
    with folder():
        small_data(640)
        for method in METHODS:
            captured = run(method, "--device", "cuda", "--precision", "fp32", "--out", f"{method}-graph")
            with mock.patch.object(common.Captured, "WARM_UP", 10**9):
                eager = run(method, "--device", "cuda", "--precision", "fp32", "--out", f"{method}-eager")
            for name, value in eager["history"][-1].items():
                if name.startswith("loss"):
                    assert abs(captured["history"][-1][name] - value) < 0.05, name


def test_bad_flags_get_one_line():
    cases = [("--epochs -1", "--epochs"), ("--epochs x", "--epochs"), ("--batch-size 1", "--batch-size"), ("--width 0", "--width"), ("--device gpu", "--device"),
             ("--data cifar", "--data"), ("--nonsense", "--nonsense"), ("--seed -1", "--seed"), ("--lr-generator nan", "--lr-generator"), ("--recipe cake", "paper"), ("--precision fp16", "bf16"),
             ("--seed 9223372036854775808", "at most"), ("--width 99999999999999999999", "at most 1000000"), ("--device meta", "--device meta"),
             ("--device cpu cpu", "cpu"), ("--epochs", "--epochs"), ("--data none.pt", "no such file"), ("--resume .", "no such checkpoint"), ("--resume nowhere", "no such checkpoint"), ("--resume . --out x", "cannot change")]
    own = {"infogan": [("--categorical 1", "--categorical"), ("--categorical --continuous 0", "at least one code"), ("--code-range 0", "--code-range"),
                       ("--noise -1", "--noise"), ("--continuous 0 --code-range 2", "does nothing"), ("--categorical --lambda-categorical 2", "does nothing"),
                       ("--detach-trunk", "--no-separate-q"), ("--categorical --invariance 1", "does nothing"), ("--init zeros", "normal"), ("--lambda-continuous -1", "--lambda-continuous")],
           "ogan": [("--latent 1", "--latent"), ("--critic mean", "avg"), ("--gan-loss wgan", "nonsaturating"), ("--latent-loss l1", "pearson"),
                    ("--truncation 0", "--truncation"), ("--latent-loss none --rho-weight 3", "does nothing"),
                    ("--average 1", "--average"), ("--rho-weight -1", "--rho-weight")]}
    if not torch.cuda.is_available():
        cases.append(("--device cuda", "--device cuda"))
    for method, module in METHODS.items():
        with folder():
            for line, word in cases + own[method]:
                assert refused(lambda: module.main(line.split()), method, word), line
            assert not list(Path().iterdir())


# ---------------------------------------------------------------- the sources

def test_only_torch_the_standard_library_and_our_modules_are_imported():
    allowed = sys.stdlib_module_names | {"torch", "common", "infogan", "ogan"}
    for name in ("common", "infogan", "ogan", "test_all"):
        for node in ast.walk(ast.parse((HERE / f"{name}.py").read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
            assert all(m.split(".")[0] in allowed for m in modules), (name, modules)
    assert not {"infogan", "ogan"} & {w for w in re.findall(r"import (\w+)|from (\w+) import", (HERE / "common.py").read_text()) for w in w}


def test_import_does_nothing():
    with tempfile.TemporaryDirectory() as name:
        for module in ("common", "infogan", "ogan"):
            code = f"import sys; sys.argv = ['x', '--epochs', 'many']; import {module}"
            done = subprocess.run([sys.executable, "-c", code], cwd=name, capture_output=True, text=True,
                                  env={**os.environ, "PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1"})
            assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done
            state, dtype = torch.get_rng_state(), torch.get_default_dtype()
            runpy.run_path(str(HERE / f"{module}.py"), run_name="a copy")
            assert torch.equal(state, torch.get_rng_state()) and dtype == torch.get_default_dtype()
        assert not list(Path(name).iterdir())


def test_readme_names_every_flag_and_key():
    readme = (HERE / "README.md").read_text()
    for module in METHODS.values():
        for f in fields(module.Config):
            assert f"`--{f.name.replace('_', '-')}" in readme, f.name
    with folder():
        images, labels, factors = common.draw_digits(100)
        for method in METHODS:
            small_data(64)
            run(method, "--out", method)
            for key in json.loads(Path(method, "metrics.jsonl").read_text().splitlines()[-1]):
                assert f"`{key}`" in readme, key


def test_scripts_declare_torch_alone():
    for name in ("infogan", "ogan", "test_all"):
        head = (HERE / f"{name}.py").read_text().split("# ///\n")[0]
        assert head.startswith("# /// script\n") and re.findall(r'"(\w+)[^"]*"', head.split("dependencies")[1]) == ["torch"]


def main(names):
    tests = {k: v for k, v in globals().items() if k.startswith("test_") and (not names or any(n in k for n in names))}
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    torch.set_num_threads(1)   # for tensors this small more threads only wait for one another
    for name, test in tests.items():
        began = time.perf_counter()
        try:
            test()
            outcome, why = "passed", ""
        except unittest.SkipTest as skip:
            outcome, why = "skipped", f": {skip}"
        except BaseException:
            outcome, why = "failed", "\n" + traceback.format_exc()
        counts[outcome] += 1
        print(f"{outcome:8}{time.perf_counter() - began:6.1f} s  {name}{why}", flush=True)
    print(f"{counts['passed']} passed, {counts['failed']} failed" + (f", {counts['skipped']} skipped" if counts["skipped"] else ""))
    return 1 if counts["failed"] or not counts["passed"] else 0


if __name__ == "__main__":
    sys.exit(main([name for name in sys.argv[1:] if name != "--long"]))
