"""common.py: what infogan.py and ogan.py share, and nothing about either paper.

In this order: network blocks, data sets, drawn digits, scores, pictures and page, options and
device, the run. Images are float tensors (N, C, H, W) in [0, 1] unless uint8 is said.
"""

import argparse
import base64
import contextlib
import copy
import ctypes
import gzip
import hashlib
import html
import io
import itertools
import json
import math
import os
import platform
import re
import secrets
import signal
import socket
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

# torch warns at import that numpy is absent, which nothing here needs. The filter goes again right
# after, so that the warnings of the process are as torch leaves them.
warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
no_word_on_numpy = warnings.filters[0]

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

warnings.filters.remove(no_word_on_numpy)


class InputError(ValueError):
    """Something the user gave cannot work; the message is one line: what was wrong, what to do."""


# ---------------------------------------------------------------- network blocks

def stage_channels(shape, width):
    """The channels of the stride-2 stages that images of `shape` (C, H, W) need.

    Up to 32 pixels it is two stages, the InfoGAN paper's for MNIST; beyond, as many as bring the
    longer side under 8: 3 for 40 to 56 pixels, 4 for 64 to 112, 5 for 128 to 224. The first has
    `width` channels, each next one twice as many, up to eight times `width`. Errors: InputError
    unless both sides can be halved so often.
    """
    side = max(shape[1:])
    stages = 2
    while side > 32 and side >> stages >= 8:
        stages += 1
    multiple = 2**stages
    if min(shape) < 1 or shape[1] % multiple or shape[2] % multiple:
        raise InputError(f"images of {'x'.join(map(str, shape))} do not fit the networks; pad or "
                         f"crop height and width to multiples of {multiple}")
    return [width * min(2**stage, 8) for stage in range(stages)]


class Float32(nn.Module):
    """Bring half precision to float32, so that what follows a network under autocast is exact."""

    def forward(self, x):
        return x.to(torch.promote_types(x.dtype, torch.float32))


def convolutional_trunk(shape, width, slope):
    """Images (N, C, H, W) to features (N, 16 width): the InfoGAN paper's D without its head.

    With `width` 64 and 28x28 pixels its layers have 64 and 128 channels and 1024 units; larger
    images have more stages (`stage_channels`). `slope` is the leaky ReLU's.
    """
    before, h, w = shape
    layers = []
    for i, channels in enumerate(stage_channels(shape, width)):     # (N, channels, h / 2, w / 2)
        layers.append(nn.Conv2d(before, channels, 4, 2, 1, bias=i == 0))
        if i > 0:
            layers.append(nn.BatchNorm2d(channels))
        layers.append(nn.LeakyReLU(slope))
        before, h, w = channels, h // 2, w // 2
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(before * h * w, 16 * width, bias=False),
        nn.BatchNorm1d(16 * width), nn.LeakyReLU(slope))            # (N, 16 width)


def convolutional_generator(inputs, shape, width, activation):
    """Latents (N, inputs) to images (N, C, H, W): the InfoGAN paper's G, the trunk in reverse.

    `activation`, a module such as nn.Sigmoid(), turns the last layer's output into pixels.
    """
    c, h, w = shape
    channels = stage_channels(shape, width)
    h, w = h >> len(channels), w >> len(channels)
    units = channels[-1] * h * w
    layers = [
        nn.Linear(inputs, 16 * width, bias=False), nn.BatchNorm1d(16 * width), nn.ReLU(),
        nn.Linear(16 * width, units, bias=False), nn.BatchNorm1d(units), nn.ReLU(),
        nn.Unflatten(1, (channels[-1], h, w))]
    for i in range(len(channels) - 1, 0, -1):                       # (N, channels[i - 1], 2 h, 2 w)
        layers += [nn.ConvTranspose2d(channels[i], channels[i - 1], 4, 2, 1, bias=False),
                   nn.BatchNorm2d(channels[i - 1]), nn.ReLU()]
    layers.append(nn.ConvTranspose2d(channels[0], c, 4, 2, 1))      # (N, C, H, W)
    return nn.Sequential(*layers, Float32(), activation)


def initialise(module):
    """Weights N(0, 0.02), biases 0, as both papers' code does: model.apply(initialise)."""
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class MovingAverage:
    """A moving average of a model's weights and statistics: `average.model` samples and encodes.

    At update n it keeps min(decay, (1 + n) / (10 + n)) of itself, so it spans the last tenth of a
    young model's updates and 1 / (1 - decay) of an old one's. With decay 0 it is the model itself.
    torch.optim.swa_utils.AveragedModel asks on the CPU whether an update is the first; this one
    counts on the device, so that a CUDA graph can replay it.
    """

    def __init__(self, model, decay):
        self.decay = decay
        self.updates = torch.zeros((), device=next(model.parameters()).device)
        self.model = copy.deepcopy(model).requires_grad_(False).eval() if decay else model

    @torch.no_grad()
    def update(self, model):
        """Move the average towards the weights and statistics of `model`."""
        if self.model is model:
            return
        self.updates += 1
        rate = (9 / (10 + self.updates)).clamp(min=1 - self.decay)
        latest = model.state_dict()
        for name, mean in self.model.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(latest[name], rate)
            else:
                mean.copy_(latest[name])


def warp(images, rotation=0.3, scale=0.2, shear=0.3, shift=1 / 14):
    """Each image (N, C, H, W) under its own small affine map, drawn uniformly from +- each bound.

    rotation is in radians; the scale of either axis, and the shear, are fractions; shift is a
    fraction of the image's size (1/14 is 2 of 28 pixels). Beyond the image its edge goes on.
    """
    def uniform(bound):
        return (torch.rand(len(images), device=images.device) * 2 - 1) * bound

    angle = uniform(rotation)
    wide = 1 + uniform(scale)
    high = 1 + uniform(scale)
    lean = uniform(shear)
    right = uniform(2 * shift)                                      # in units of half the image
    down = uniform(2 * shift)
    cos, sin = angle.cos(), angle.sin()
    row_x = torch.stack([wide * cos, wide * (lean * cos - sin), right], 1)
    row_y = torch.stack([high * sin, high * (lean * sin + cos), down], 1)
    theta = torch.stack([row_x, row_y], 1).to(images.dtype)         # (N, 2, 3)
    grid = F.affine_grid(theta, images.shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def neighbours(images, count=5, among=6000, components=50):
    """For each image (N, C, H, W) the `count` nearest of up to `among` random ones: indices (N, .).

    Near by squared distance in the first principal components of the pixels; images of more than 28
    pixels are averaged down to that. An image that is among them is a neighbour of its own.
    """
    def pixels(part):
        h, w = part.shape[2:]
        return F.adaptive_avg_pool2d(part, (min(h, 28), min(w, 28))).flatten(1)

    chosen = torch.randperm(len(images), device=images.device)[:among]
    some = in_batches(pixels, images[chosen])
    mean = some.mean(0)
    axes = torch.pca_lowrank(some, min(components, *some.shape))[2]             # (pixels, .)
    some = (some - mean) @ axes
    places = in_batches(lambda part: (pixels(part) - mean) @ axes, images)      # (N, components)
    half_squares = some.square().sum(1) / 2
    count = min(count, len(chosen))
    found = torch.empty(len(images), count, dtype=torch.int64, device=images.device)
    for part, place in zip(found.split(500), places.split(500)):
        likeness = place @ some.T - half_squares
        part.copy_(chosen[likeness.topk(count, sorted=False).indices])
    return found


def check_images(images, model):
    """InputError unless images are uint8 or floats and (N, *model.shape): strided convolutions may
    well take other sizes."""
    what = type(images).__name__
    if torch.is_tensor(images):
        what = f"{images.dtype} {tuple(images.shape)}"
        known_type = images.dtype == torch.uint8 or images.is_floating_point()
        if known_type and images.shape[1:] == model.shape:
            return
    raise InputError(f"images are {what}; expected a tensor, uint8 or float, of shape (N, "
                     f"{', '.join(map(str, model.shape))})")


def prepare(images, model):
    """Images that pass `check_images`, uint8 or in [0, 1], as floats of the model's type and
    device."""
    check_images(images, model)
    floats = images.to(next(model.parameters()))
    return floats / 255 if images.dtype == torch.uint8 else floats


@contextlib.contextmanager
def evaluating(model):
    """Eval mode without gradients inside; afterwards each module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def batch_for(shape):
    """How many images of `shape` are evaluated at a time: 1000 of MNIST's, fewer of larger ones."""
    return max(1, min(1000, 3_000_000 // math.prod(shape)))


def in_batches(function, tensor, size=None):
    """function over slices of `size` rows, concatenated; uint8 arrives as float in [0, 1]."""
    outputs = []
    for part in tensor.split(size or batch_for(tensor.shape[1:])):
        outputs.append(function(part.float() / 255 if part.dtype == torch.uint8 else part))
    return torch.cat(outputs)


def generate(model, latent):
    """model.generator(latent), (N, latent variables) to (N, C, H, W), in batches and eval mode.

    Errors: InputError for latents of another size.
    """
    size = model.generator[0].in_features
    if not torch.is_tensor(latent) or latent.ndim != 2 or latent.shape[1] != size:
        what = tuple(latent.shape) if torch.is_tensor(latent) else type(latent).__name__
        raise InputError(f"latents are {what}; expected a tensor of shape (N, {size})")
    with evaluating(model):
        latent = latent.to(next(model.parameters()))
        return in_batches(model.generator, latent, batch_for(model.shape))


def evaluate(function, images, model):
    """function over images (N, C, H, W), uint8 or in [0, 1], in batches and the model's eval mode.

    Floats a rounding error outside [0, 1], as resizing gives, are clamped. Errors: InputError for
    floats further out, and as `check_images`.
    """
    def in_range(part):
        part = prepare(part, model)
        if part.numel() and not (part.min() >= -1e-3 and part.max() <= 1 + 1e-3):
            raise InputError(f"images go from {part.min():g} to {part.max():g}; expected floats in "
                             "[0, 1], or uint8")
        return function(part.clamp(0, 1))

    check_images(images, model)
    with evaluating(model):
        return in_batches(in_range, images)


def evaluate_samples(function, latent, model, judge=None):
    """function, and `judge.features` if there is a judge (else None), over the images that the
    model decodes from latents (N, .); a few at a time, none is kept."""
    outputs, features = [], []
    for part in latent.split(batch_for(model.shape)):
        images = model.decode(part)
        outputs.append(evaluate(function, images, model))
        if judge is not None:
            features.append(judge.features(images))
    return torch.cat(outputs), torch.cat(features) if features else None


def save_model(model, method, path, **optimizers):
    """Write a model, and optimisers by name, for `load_model`; InputError if it cannot be
    written."""
    states = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
    write_file(path, saved_bytes({"method": method, "options": model.options,
                                  "model": model.state_dict(), "optimizers": states}))


def load_model(cls, method, path, device="cpu"):
    """The model in a file of `save_model`, or a run folder's average, as float32 in eval mode.

    torch's random state stays as it was. Errors: InputError if the file is none of this method's,
    is damaged, or does not fit this code.
    """
    device = pick_device(device)
    state = read_checkpoint(path, method)
    with fitting(path, method):
        with torch.device("meta"):                    # no initial weights, so no random numbers
            model = cls(**state["options"])
        model.load_state_dict(state.get("average") or state["model"], assign=True)
    return model.to(device, torch.float32).eval()


# ---------------------------------------------------------------- data sets

# Mirrors in the order tried, the folder that torchvision uses, and of each file's bytes, packed or
# unpacked, the SHA-256 or MD5: training images and labels, test images and labels.
SOURCES = {
    "mnist": (["https://ossci-datasets.s3.amazonaws.com/mnist/",
               "https://storage.googleapis.com/cvdf-datasets/mnist/"], "MNIST/raw",
              ["ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
               "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
               "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
               "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"]),
    "fashion": (["http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"], "FashionMNIST/raw",
                ["8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe",
                 "bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310"]),
}
IDX_FILES = ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
             "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
# The names that these files go by elsewhere: unpacked, with a dot, after the name of a set.
IDX_NAMES = [r"(.*-)?train-images[-.]idx3-ubyte(\.gz)?", r"(.*-)?train-labels[-.]idx1-ubyte(\.gz)?",
             r"(.*-)?(t10k|test)-images[-.]idx3-ubyte(\.gz)?",
             r"(.*-)?(t10k|test)-labels[-.]idx1-ubyte(\.gz)?"]
MIRROR_TIMEOUT = 15   # seconds of silence before the next mirror is tried


@dataclass
class Data:
    """A data set: images uint8 (N, C, H, W), labels int64 (N,) or None; `test_factors` are what the
    test images were drawn with, name -> (N,), where that is known."""
    name: str
    images: torch.Tensor
    labels: torch.Tensor | None
    test_images: torch.Tensor
    test_labels: torch.Tensor | None
    test_factors: dict | None = None

    @property
    def shape(self):
        return tuple(self.images.shape[1:])


def load_data(name, root="data"):
    """Data named `mnist`, `fashion`, `digits`, a FILE.pt or a folder of four IDX files; `auto` is
    mnist, else digits.

    Errors: InputError for an unknown name, a file that does not hold what it should, or a download
    that failed.
    """
    if name == "auto":
        try:
            return load_data("mnist", root)
        except InputError as error:
            print(f"WARNING: no MNIST ({error}); going on with DRAWN DIGITS instead (--data "
                  "digits)", file=sys.stderr, flush=True)
            name = "digits"
    if name in SOURCES:
        paths = find_or_download(name, Path(root).expanduser())
        train, train_labels, test, test_labels = map(read_idx, paths)
        return Data(name, train[:, None], train_labels.long(), test[:, None], test_labels.long())
    if name == "digits":
        images, labels, factors = draw_digits(70_000)
        n = 60_000
        test_factors = {key: values[n:] for key, values in factors.items()}
        return Data(name, images[:n], labels[:n], images[n:], labels[n:], test_factors)
    path = Path(name).expanduser()
    if path.is_dir():
        return load_folder(path)
    if name.endswith(".pt"):
        return load_file(path)
    raise InputError(f"--data {name!r} is unknown; expected auto, mnist, fashion, digits, FILE.pt "
                     "or a folder of four IDX files")


def find_or_download(name, root):
    """The four IDX files of `name` as paths; what has no genuine copy in root goes to root/name.

    A file that has the right name and other contents, as KMNIST's or EMNIST's, is named on stderr.
    """
    mirrors, folder, checksums = SOURCES[name]
    lying = []
    for place in (root, root / name, root / folder, root / "raw", root / Path(folder).parent):
        if place.is_dir():
            lying += sorted(place.iterdir())
    paths = []
    for file, pattern, checksum in zip(IDX_FILES, IDX_NAMES, checksums):
        named = [path for path in lying if re.fullmatch(pattern, path.name)]
        found = next((path for path in named if genuine(path, checksum)), None)
        if found is None:
            for path in named:
                print(f"{path}: not {name}'s {file}, whatever its name; fetching that (if it is "
                      "what you want: --data FOLDER)", file=sys.stderr, flush=True)
            found = download(file, mirrors, checksum, root / name)
        paths.append(found)
    return paths


def genuine(path, checksum):
    """Whether a file, as it is or unpacked, has that SHA-256 (64 digits) or MD5 (32)."""
    algorithm = "sha256" if len(checksum) == 64 else "md5"
    try:
        contents = [unpacked(path), path.read_bytes()]
    except (OSError, EOFError, zlib.error):
        return False
    return any(hashlib.new(algorithm, content).hexdigest() == checksum for content in contents)


def unpacked(path):
    """A file's bytes, without gzip's packing where they have it."""
    content = path.read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def download(file, mirrors, checksum, folder):
    """Fetch `file` from the first mirror that gives the right bytes; returns its path in `folder`.

    Errors: InputError that names every URL tried.
    """
    tried = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as temporary:
            path = Path(temporary, file)
            for mirror in mirrors:
                try:
                    fetch(mirror + file, path)
                except Exception as error:            # refused, no such host, 404, silence, ..
                    tried.append(f"{mirror + file}: {error}")
                    continue
                if genuine(path, checksum):
                    os.replace(path, folder / file)
                    return folder / file
                tried.append(f"{mirror + file}: wrong checksum, {path.stat().st_size} bytes")
    except OSError as error:
        tried.append(f"{folder}: {error}")
    raise InputError(f"could not get {file} (tried {'; '.join(tried)}); put the four .gz files "
                     f"into {folder} by hand, or take --data digits")


def fetch(url, path):
    """torch.hub's download of url to path; alone it would wait for a silent server for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(MIRROR_TIMEOUT)
    try:
        torch.hub.download_url_to_file(url, str(path), progress=sys.stderr.isatty())
    finally:
        socket.setdefaulttimeout(before)


def read_idx(path):
    """An IDX file of bytes, packed or not, as a uint8 tensor (yann.lecun.com/exdb/mnist)."""
    try:
        content = unpacked(path)
        dimensions = content[3]
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
        pixels = bytearray(content[4 + 4 * dimensions:])
        if content[:3] != b"\0\0\x08" or len(pixels) != math.prod(shape):
            raise ValueError
        return torch.frombuffer(pixels, dtype=torch.uint8).view(shape)
    except (OSError, EOFError, ValueError, IndexError, struct.error, zlib.error):
        raise InputError(f"{path} is no IDX file of unsigned bytes, as MNIST's are") from None


def load_folder(path):
    """A data set in MNIST's layout that is not MNIST: a folder with four IDX files."""
    found = []
    for pattern in IDX_NAMES:
        matches = [file for file in sorted(path.iterdir()) if re.fullmatch(pattern, file.name)]
        if not found and not matches:
            raise InputError(f"--data {path} is a folder; pack its pictures into a FILE.pt by the "
                             "few lines in README.md, Your own images (torch reads no pictures)")
        if len(matches) != 1:
            names = ", ".join(file.name for file in matches) or "none"
            raise InputError(f"--data {path}: of the four IDX files one each is expected; for "
                             f"{pattern} there is {names}")
        found.append(read_idx(matches[0]))
    train, train_labels, test, test_labels = found
    return own_data(path, train, train_labels, test, test_labels)


def load_file(path):
    """A user's own images: a dict saved by torch with `images` and optionally `labels`,
    `test_images`, `test_labels`; see `own_images` and `own_labels` for what they may be.

    Errors: InputError that says what was found and what was expected.
    """
    try:
        content = safe_load(path)
    except FileNotFoundError:
        raise InputError(f"--data {path}: no such file") from None
    except Exception:
        raise InputError(f"--data {path} cannot be read: cut short, damaged or no dict of tensors, "
                         "nothing else, saved by torch.save") from None
    if not isinstance(content, dict) or "images" not in content:
        raise InputError(f"--data {path} holds no `images`; expected a dict with `images`, (N, C, "
                         "H, W)")
    keys = ("images", "labels", "test_images", "test_labels")
    return own_data(path, *(content.get(key) for key in keys))


def own_data(path, images, labels, test, test_labels):
    """The Data of a user's images. Without test images a random tenth is held out, the same each
    time; under twenty images serve both ends."""
    images = own_images(path, "images", images)
    labels = own_labels(path, "images", labels, len(images))
    if test is not None:
        test = own_images(path, "test_images", test)
        test_labels = own_labels(path, "test_images", test_labels, len(test))
        if test.shape[1:] != images.shape[1:]:
            raise InputError(f"--data {path}: `images` are {tuple(images.shape)}, `test_images` "
                             f"{tuple(test.shape)}; expected one size throughout")
        if (labels is None) != (test_labels is None):
            raise InputError(f"--data {path} has labels for one of `images` and `test_images`; "
                             "give `labels` and `test_labels`, or neither")
    elif len(images) < 20:
        test, test_labels = images, labels
    else:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        held_out, rest = order[:len(images) // 10], order[len(images) // 10:]
        test, images = images[held_out], images[rest]
        if labels is not None:
            test_labels, labels = labels[held_out], labels[rest]
    if labels is not None and len(test_labels.unique()) == 1:
        print(f"{path}: all test images are of one class, so accuracy, NMI and ARI say nothing")
    return Data(path.name, images, labels, test, test_labels)


def own_images(path, key, images):
    """`images` as uint8 (N, C, H, W), where it is certain what is meant: whole numbers from 0 to
    255, floats from 0 to 1, booleans; one channel left out, or one to three channels last."""
    def refuse(what, advice):
        raise InputError(f"--data {path}: `{key}` {what}; {advice}")

    if not torch.is_tensor(images):
        refuse(f"is {type(images).__name__}", "expected a tensor (N, C, H, W)")
    kind = f"{images.dtype} {tuple(images.shape)}"
    if images.layout != torch.strided or images.is_complex() or not images.numel():
        refuse(f"is {kind}", "expected uint8 or floats from 0 to 1, (N, C, H, W)")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim != 4:
        refuse(f"is {kind}", "expected (N, C, H, W)")
    elif images.shape[1] > 4 and images.shape[3] <= 4:              # nothing is so narrow
        if images.shape[3] == 4:
            refuse(f"is {kind}", "channels last? images.permute(0, 3, 1, 2)")
        images = images.permute(0, 3, 1, 2)
    if len(images) < 2:
        refuse("holds one image", "expected 2 or more, for batch normalisation to train on and for "
               "scores to compare")
    if images.dtype == torch.bool:
        return images.byte() * 255
    found = f"in {images.dtype}"
    if not images.is_floating_point() and images.dtype != torch.uint8:
        images = images.long()                         # torch takes no minimum of uint16
    low, high = images.min().item(), images.max().item()
    found = f"goes from {low:g} to {high:g} {found}"
    if images.is_floating_point():
        if low < -1e-3 and low >= -1.001 and high <= 1.001:
            refuse(found, "expected 0 to 1: take (x + 1) / 2")
        if low >= 0 and 1.001 < high <= 255:
            refuse(found, "expected 0 to 1: take x / 255, or x.byte()")
        if not (low >= -1e-3 and high <= 1.001):
            refuse(found, "expected uint8, or floats from 0 to 1")
        return (255 * images.clamp(0, 1)).round().byte()
    if low < 0 or high > 255:
        refuse(found, "expected whole numbers from 0 to 255, or floats from 0 to 1")
    if high == 1:
        refuse(found, "which is all but black: take 255 * x")
    return images.byte()


def own_labels(path, key, labels, count):
    """Labels as int64 (count,), or None; taken are lists and tensors of whole numbers from 0 to
    999, as a column too, and one-hot rows."""
    if labels is None:
        return None
    try:
        found = torch.as_tensor(labels)
        what = f"{found.dtype} {tuple(found.shape)}"
        if found.layout != torch.strided or found.is_complex():
            raise ValueError
        whole = found.long()
        if found.is_floating_point() and (whole != found).any():
            raise ValueError
        if whole.ndim == 2 and whole.shape[1] > 1 and bool(((whole == 0) | (whole == 1)).all()):
            if bool((whole.sum(1) == 1).all()):
                whole = whole.argmax(1)
        whole = whole.flatten() if whole.shape == (count, 1) else whole
        if whole.shape != (count,) or whole.min() < 0 or whole.max() > 999:
            raise ValueError
        return whole
    except (ValueError, TypeError, RuntimeError):
        what = what if torch.is_tensor(labels) else type(labels).__name__
        raise InputError(f"--data {path}: the labels of `{key}` are {what}; expected a whole "
                         f"number from 0 to 999 for each of {count} images") from None


# ---------------------------------------------------------------- drawn digits

# A line is one way to write a digit: its class, then strokes of points xy on a 10 x 10 grid.
STROKES = """0 40 21 13 16 28 49 68 76 73 61 40
1 50 59
1 22 50|50 59
1 21 50|50 59|29 79
2 12 40 71 63 36 19|19 79
2 12 40 71 64 37 19 28 48 79
3 11 40 72 54 44|44 65 77 59 28 17
3 11 71|71 44|44 66 77 59 18
4 50 16|16 86|60 69
4 20 15|15 75|72 69
5 71 20|20 14|14 44 75 67 49 18
5 71 20|20 24 54 76 58 29 18
6 60 23 16 28 49 77 65 45 17
6 50 14 17 49 77 55 16
7 11 71|71 39
7 11 71|71 39|35 75
7 22 11|11 71|71 54 49
8 71 40 12 34 65 77 49 17 25 53 71
8 50 22 44 66 49 27 44 62 50
9 71 40 12 34 63 71|71 69
9 71 40 13 34 62 71|71 66 49 28"""


def spline(points, count):
    """(count, 2) points, evenly spaced along the Catmull-Rom curve through `points`; its length."""
    p = torch.cat([points[:1], points, points[-1:]])
    t = torch.linspace(0, 1, 33)[:, None]
    a, b, c, d = p[:-3, None], p[1:-2, None], p[2:-1, None], p[3:, None]
    cubic = 2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)
    curve = (b + t / 2 * (c - a + t * cubic)).flatten(0, 1)
    walked = (curve[1:] - curve[:-1]).norm(dim=1).cumsum(0)
    where = torch.searchsorted(walked, torch.linspace(0, 0.9999, count) * walked[-1])
    return curve[1:][where], float(walked[-1])


def digit_shapes(points):
    """The shapes of STROKES: class (S,), path (S, points, 2) of height 1 around 0, length (S,)."""
    classes, paths, lengths = [], [], []
    for line in STROKES.splitlines():
        strokes = []
        for part in line[2:].split("|"):
            strokes.append(torch.tensor([[float(xy[0]), float(xy[1])] for xy in part.split()]))
        length = [spline(stroke, 2)[1] for stroke in strokes]
        parts = []
        for i, stroke in enumerate(strokes):                        # points in proportion to length
            begin = round(points * sum(length[:i]) / sum(length))
            end = round(points * sum(length[:i + 1]) / sum(length))
            parts.append(spline(stroke, end - begin)[0])
        path = torch.cat(parts)
        paths.append((path - (path.amin(0) + path.amax(0)) / 2) / 9)
        classes.append(int(line[0]))
        lengths.append(sum(length) / 9)
    return torch.tensor(classes), torch.stack(paths), torch.tensor(lengths)


def draw_digits(n, seed=0, points=64, blur=0.8):
    """Handwritten-looking digits whose factors are known: a data set that needs no network.

    Returns uint8 images (n, 1, 28, 28), classes int64 (n,) and a dict of factors (n,): `slant`
    (horizontal shift for each unit of height, right is positive), `thickness` (stroke width in
    pixels), `size` (height in pixels), `aspect` (width scale).
    """
    g = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(n, *shape, generator=g)

    classes, paths, lengths = digit_shapes(points)
    labels = torch.randint(10, (n,), generator=g)
    shape = torch.multinomial((classes == labels[:, None]).float(), 1, generator=g).flatten()
    slant = 0.1 + 0.25 * torch.randn(n, generator=g).clamp(-2, 2)
    thickness = uniform(1.6, 3.8)
    size = uniform(16, 20)
    aspect = uniform(0.75, 1.15)
    path = paths[shape]                                             # (n, points, 2)
    wave = 4 * torch.randn(n, 2, 3, generator=g)                    # an unsteady hand: three waves
    phase = uniform(0, 2 * math.pi, 1, 3)
    path = path + torch.sin(path @ wave + phase) @ (0.035 * torch.randn(n, 3, 2, generator=g))
    y = path[..., 1] * size[:, None]
    x = path[..., 0] * (aspect * size)[:, None] - slant[:, None] * y
    x = x - x.mean(1, keepdim=True) + 14 + uniform(-1, 1, 1)
    y = y - (y.amin(1, keepdim=True) + y.amax(1, keepdim=True)) / 2 + 14 + uniform(-1, 1, 1)

    # A pixel's distance to the stroke follows from a sum of Gaussians along it, each the product of
    # one in x and one in y: a small matrix product an image.
    def bump(v):
        return torch.exp(-(torch.arange(28) + 0.5 - v[..., None]) ** 2 / (2 * blur**2))

    on_stroke = points / (lengths[shape] * size) * blur * math.sqrt(2 * math.pi)
    images = torch.empty(n, 1, 28, 28, dtype=torch.uint8)
    for i in torch.arange(n).split(2000):
        density = bump(y[i]).transpose(1, 2) @ bump(x[i]) / on_stroke[i, None, None]
        distance = (-2 * blur**2 * density.log()).clamp(min=0).sqrt()           # (n, 28, 28)
        ink = (thickness[i, None, None] / 2 + 0.5 - distance).clamp(0, 1)
        images[i, 0] = (255 * ink).round().byte()
    return images, labels, {"slant": slant, "thickness": thickness, "size": size, "aspect": aspect}


# ---------------------------------------------------------------- scores

def assignment(profit):
    """The column for each row of `profit` (R, K), one-to-one, that maximises the sum; int64 (R,).

    Exact: the Hungarian method (Kuhn 1955) by shortest augmenting paths. -1 where R > K leaves a
    row without a column.
    """
    rows, columns = profit.shape
    if rows > columns:
        chosen = torch.full((rows,), -1)
        chosen[assignment(profit.T)] = torch.arange(columns)
        return chosen
    cost = (-profit.double()).tolist()
    row_price = [0.0] * rows
    column_price = [0.0] * columns
    row_of = [None] * columns
    for start in range(rows):
        distance = [math.inf] * columns
        parent = [None] * columns
        settled = []
        row = start
        base = 0.0
        while row is not None:                         # Dijkstra over reduced costs, from `start`
            unsettled = set(range(columns)) - set(settled)
            for j in unsettled:
                step = base + cost[row][j] - row_price[row] - column_price[j]
                if step < distance[j]:
                    distance[j] = step
                    parent[j] = row
            column = min(unsettled, key=distance.__getitem__)
            base = distance[column]
            settled.append(column)
            row = row_of[column]                       # None: the column is free, the path ends
        for j in settled[:-1]:                         # reduced costs stay >= 0, and 0 on the path
            row_price[row_of[j]] += base - distance[j]
            column_price[j] -= base - distance[j]
        row_price[start] += base
        while parent[column] != start:                 # shift the matching along the path
            previous = row_of.index(parent[column])
            row_of[column] = parent[column]
            column = previous
        row_of[column] = start
    return torch.tensor([row_of.index(row) for row in range(rows)])


def contingency(a, b):
    """Counts (max(a)+1, max(b)+1) of the pairs of two int64 label vectors (N,)."""
    rows, columns = int(a.max()) + 1, int(b.max()) + 1
    return torch.bincount(a * columns + b, minlength=rows * columns).view(rows, columns)


def discrete_information(counts):
    """Mutual information in nats of a table of counts: sum p(a,b) ln [p(a,b) / p(a)p(b)]."""
    p = counts.double() / counts.sum()
    joint, rows, columns = (torch.special.xlogy(q, q).sum() for q in (p, p.sum(1), p.sum(0)))
    return joint - rows - columns


def clustering_scores(clusters, labels):
    """Accuracy under the best one-to-one matching, NMI (arithmetic mean), ARI (Hubert and Arabie
    1985) and the confusion table [cluster][class] of two int64 vectors (N,)."""
    table = contingency(clusters, labels).cpu()
    n, counts = len(labels), table.double()
    match = assignment(table)
    accuracy = float(counts[match >= 0, match[match >= 0]].sum()) / n
    entropies = 0.0
    for p in (counts.sum(1) / n, counts.sum(0) / n):
        entropies -= torch.special.xlogy(p, p).sum()
    nmi = float(2 * discrete_information(counts) / entropies) if entropies > 0 else 1.0

    def pairs(c):
        return (c * (c - 1) / 2).sum()
    together, in_clusters, in_classes = pairs(counts), pairs(counts.sum(1)), pairs(counts.sum(0))
    expected, most = in_clusters * in_classes / (n * (n - 1) / 2), (in_clusters + in_classes) / 2
    ari = float((together - expected) / (most - expected)) if most != expected else 1.0
    return {"accuracy": accuracy, "nmi": nmi, "ari": ari, "confusion": table.tolist()}


def frechet_distance(a, b):
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of Gaussians fitted to features (N, D) and
    (M, D) (Heusel et al. 2017). On the CPU: MPS has no float64."""
    a, b = a.cpu().double(), b.cpu().double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    means = (a.mean(0) - b.mean(0)).square().sum()
    return float(means + cov_a.trace() + cov_b.trace() - 2 * cross)


@torch.no_grad()
def encoding_scores(codes, labels, test_codes, test_labels):
    """How well codes (N, D) of training images tell the class of test images, by their labels,
    which no GAN has seen: `knn_accuracy`, a vote of the 5 nearest in Euclidean distance (a tie goes
    to the smaller class), and `probe_accuracy`, logistic regression with weight decay 1e-4, by
    L-BFGS."""
    classes = int(torch.cat([labels, test_labels]).max()) + 1
    square = codes.square().sum(1)
    votes = []
    for part in test_codes.split(250):
        nearest = (2 * part @ codes.T - square).topk(min(5, len(codes))).indices    # by -distance^2
        votes.append(F.one_hot(labels[nearest], classes).sum(1).argmax(1))
    knn = (torch.cat(votes) == test_labels).float().mean()
    weight = torch.zeros(codes.shape[1], classes, device=codes.device, requires_grad=True)
    bias = torch.zeros(classes, device=codes.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    @torch.enable_grad()
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(codes @ weight + bias, labels) + 1e-4 * weight.square().sum()
        loss.backward()
        return loss
    optimizer.step(closure)
    probe = ((test_codes @ weight + bias).argmax(1) == test_labels).float().mean()
    return {"knn_accuracy": float(knn), "probe_accuracy": float(probe)}


class Judge(nn.Module):
    """A small classifier that scores generated images; it never trains a GAN.

    Images (N, C, H, W) in [0, 1] to logits; `features` gives the (N, 64) that the Frechet distance
    is taken in. `task` is what it learns: "classes", the labels, or where there are none
    "orientation", by which of four flips an image was turned (none, left-right, upside down, both).
    Three epochs of Adam over the training images on the CPU from seed 0; kept in
    torch.hub.get_dir() by data set and recipe.
    """
    RECIPE = "conv5s2x16-conv3s2x32-fc64-bn adam 3e-3 onecycle batch 128 epochs 3 seed 0"
    FLIPS = ((), (3,), (2,), (2, 3))

    def __init__(self, shape, classes, task="classes"):
        c, h, w = shape
        super().__init__()
        self.task = task
        self.features = nn.Sequential(
            # to (N, 16, H/2, W/2), (N, 32, H/4, W/4), (N, 64)
            nn.Conv2d(c, 16, 5, 2, 2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
            nn.Linear(32 * (h // 4) * (w // 4), 64), nn.BatchNorm1d(64), nn.ReLU())
        self.head = nn.Linear(64, classes)

    def forward(self, images):
        return self.head(self.features(images))

    @classmethod
    def for_data(cls, data, task=None):
        """The judge of this data set, in eval mode on its device, from the cache or trained."""
        if task is None:
            task = "orientation" if data.labels is None else "classes"
        recipe = (cls.RECIPE + torch.__version__).encode()
        classes, labels = len(cls.FLIPS), None
        if task == "classes":
            labels = data.labels.cpu()
            classes = int(torch.cat([data.labels, data.test_labels]).max()) + 1
            recipe_data = raw_bytes(data.images) + raw_bytes(data.labels)
        else:
            recipe_data = raw_bytes(data.images) + task.encode()
        name = f"judge-{hashlib.sha256(recipe + recipe_data).hexdigest()[:16]}.pt"
        path = Path(torch.hub.get_dir(), "infogan-ogan", name)
        with torch.random.fork_rng(devices=[]):       # cached or fresh: the same random state after
            torch.default_generator.manual_seed(0)
            judge = cls(data.shape, classes, task)
            try:
                judge.load_state_dict(safe_load(path))
            except Exception:                         # absent, damaged or unreadable: train it anew
                judge.fit(data.images.cpu(), labels)
                with contextlib.suppress(OSError, InputError):    # a cache that cannot be written
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_file(path, saved_bytes(judge.state_dict()))
        return judge.to(data.images.device).eval().requires_grad_(False)

    def turned(self, images, seed=None):
        """Images each under one of FLIPS, and which; torch's random state, or a seed's, chooses."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        labels = torch.randint(len(self.FLIPS), (len(images),), generator=generator)
        labels = labels.to(images.device)
        images = images.clone()
        for label, axes in enumerate(self.FLIPS):
            images[labels == label] = images[labels == label].flip(axes)
        return images, labels

    def fit(self, images, labels, epochs=3):
        batch = min(128, len(images))
        steps = len(images) // batch
        optimizer = torch.optim.Adam(self.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, epochs * steps + 1)
        for _ in range(epochs):
            for i in torch.randperm(len(images)).split(batch)[:steps]:
                if labels is None:
                    real, answer = self.turned(images[i])
                else:
                    real, answer = images[i], labels[i]
                optimizer.zero_grad()
                F.cross_entropy(self(real.float() / 255), answer).backward()
                optimizer.step()
                schedule.step()

    def scores(self, data, features):
        """`frechet`, of samples by their features (N, 64) to the test images; `frechet_floor`, of
        as many training images; `judge_task`; `judge_accuracy` in it, on the test images."""
        images, labels = data.test_images, data.test_labels
        test = in_batches(self.features, images)
        floor = in_batches(self.features, data.images[:len(images)])
        if self.task == "orientation":
            images, labels = self.turned(images, seed=0)
        guess = in_batches(self, images).argmax(1)
        return {"frechet": frechet_distance(features, test),
                "frechet_floor": frechet_distance(floor, test), "judge_task": self.task,
                "judge_accuracy": float((guess == labels).float().mean())}


# ---------------------------------------------------------------- pictures and page

def grid(images, columns, scale=None):
    """Images (N, C, H, W) in [0, 1] as one uint8 picture (height, width, 1 or 3), row by row.

    Each pixel is `scale` pixels wide, by default 2 for images of up to 32 pixels and 1 beyond. Of 2
    channels the first is shown, of 4 or more the first three.
    """
    if scale is None:
        scale = 2 if max(images.shape[2:]) <= 32 else 1
    images = images[:, :3] if images.shape[1] >= 3 else images[:, :1]
    pixels = (images.cpu().clamp(0, 1) * 255).round().byte()
    missing = -len(images) % columns
    pixels = F.pad(F.pad(pixels, (1, 1, 1, 1), value=64), (0, 0, 0, 0, 0, 0, 0, missing), value=64)
    _, c, h, w = pixels.shape
    picture = pixels.view(-1, columns, c, h, w).permute(0, 3, 1, 4, 2).reshape(-1, columns * w, c)
    return picture.repeat_interleave(scale, 0).repeat_interleave(scale, 1)


def save_grid(images, path, columns=10):
    """Write images (N, C, H, W) in [0, 1] to `path` as one PNG, `columns` to a row."""
    picture = grid(images, columns)
    write_file(path, png(picture.shape, deflate(picture)))


def raw_bytes(tensor):
    """The memory of a tensor as bytes (what numpy's tobytes would give)."""
    tensor = tensor.cpu().contiguous()
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def deflate(picture):
    """A uint8 picture (H, W, C) as PNG image data: rows behind their filter byte, compressed."""
    return zlib.compress(raw_bytes(F.pad(picture.flatten(1), (1, 0))))


def png(shape, *frames, delay=0.5):
    """Bytes of a PNG of shape (H, W, 1 or 3) from one picture's `deflate`d data, or from several an
    animation, `delay` seconds each and four times that for the last (W3C PNG, 3rd edition)."""
    def chunk(kind, body):
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    h, w, c = shape
    header = struct.pack(">IIBBBBB", w, h, 8, 2 if c == 3 else 0, 0, 0, 0)
    out = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header)]
    if len(frames) == 1:
        return b"".join([*out, chunk(b"IDAT", frames[0]), chunk(b"IEND", b"")])
    out.append(chunk(b"acTL", struct.pack(">II", len(frames), 0)))
    numbers = itertools.count()
    for i, data in enumerate(frames):
        wait = round(1000 * delay * (4 if i == len(frames) - 1 else 1))
        control = struct.pack(">IIIIIHHBB", next(numbers), w, h, 0, 0, wait, 1000, 0, 0)
        out.append(chunk(b"fcTL", control))
        if i == 0:
            out.append(chunk(b"IDAT", data))
        else:
            out.append(chunk(b"fdAT", struct.pack(">I", next(numbers)) + data))
    return b"".join([*out, chunk(b"IEND", b"")])


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto }
section { display: flex; flex-wrap: wrap; gap: 1.2em; align-items: start }
figure { margin: 0; max-width: min(100%, 530px) }
img { max-width: 100%; image-rendering: pixelated }
svg { width: 240px; border: 1px solid #ddd }
polyline { fill: none; stroke: #0a62c9; stroke-width: 2 }
text { font: 12px system-ui }
th { text-align: left; font-weight: normal; color: #555; padding-right: 1em }
td { text-align: right }
"""


def curve(name, points):
    """An inline SVG line of (epoch, value) points with its range and last value."""
    xs, ys = zip(*points)
    low, high = min(ys), max(ys)
    dots = []
    for x, y in points:
        right = 8 + 224 * (x - xs[0]) / max(xs[-1] - xs[0], 1)
        dots.append(f"{right:.1f},{88 - 64 * (y - low) / ((high - low) or 1):.1f}")
    span = f"{low:.3g} to {high:.3g}, epoch {xs[0]} to {xs[-1]}"
    return (f'<svg viewBox="0 0 240 110" role="img" aria-label="{name}">'
            f'<text x="8" y="14">{name}: {ys[-1]:.4g}</text><polyline points="{" ".join(dots)}"/>'
            f'<text x="8" y="105">{span}</text></svg>')


def report(title, config, history, scores, pictures):
    """The run as one self-contained HTML page. pictures: name -> (PNG bytes, caption)."""
    def table(items):
        rows = ""
        for key, value in items.items():
            shown = f"{value:.4g}" if isinstance(value, float) else html.escape(json.dumps(value))
            rows += f"<tr><th>{html.escape(key)}<td>{shown}"
        return f"<table>{rows}</table>"

    figures, curves, confusion = "", "", ""
    for name, (image, caption) in pictures.items():
        source = "data:image/png;base64," + base64.b64encode(image).decode()
        figures += (f'<figure><img alt="{name}" src="{source}">'
                    f"<figcaption><b>{name}.png</b> {caption}</figcaption></figure>")
    for name in dict.fromkeys(itertools.chain(*history)):
        lines = [line for line in history if isinstance(line.get(name), float)]
        if lines:
            points = [(line["epoch"], line[name]) for line in lines]
            curves += curve(html.escape(name), points)
    scores = dict(scores)
    if "confusion" in scores:
        rows = ["<tr><td>" + "<td>".join(map(str, row)) for row in scores.pop("confusion")]
        confusion = ("<div>Test images: a row a category, a column a class"
                     f"<table>{''.join(rows)}</table></div>")
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title><style>{STYLE}</style>
<h1>{html.escape(title)}</h1>
<h2>Pictures</h2><section>{figures}</section>
<h2>Scores</h2><section>{table(scores)}{confusion}</section>
<h2>Over training</h2><section>{curves}</section>
<h2>Configuration</h2>{table(config)}
</html>
"""


# ---------------------------------------------------------------- options and device

def option(default, help, low=0, high=10**6, choices=None):
    """A dataclass field that is a default, a flag with its help, and the limits of its value."""
    metadata = {"default": default, "help": help, "low": low, "high": high, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class RunConfig:
    """The options of every method; a subclass adds its own, and in PAPER what the paper changes.

    Errors: InputError if a value has the wrong type or range.
    """
    epochs: int = option(5, "epochs in all; 0 only evaluates")
    batch_size: int = option(128, "images in a training step", low=2)
    seed: int = option(0, "seed of everything random", high=2**63 - 1)
    width: int = option(32, "channels of the first convolution; the others scale with it", low=1)
    device: str = option("auto", "auto (CUDA, else CPU), cpu, cuda, cuda:1, mps")
    precision: str = option(
        "auto", "of the forward passes in training: fp32, bf16, or auto: bf16 where the processor "
        "has instructions for it", choices=["auto", "fp32", "bf16"])
    data: str = option("auto", "auto (mnist, else digits), mnist, fashion, digits (drawn), FILE.pt "
                       "or a folder of four IDX files")
    data_root: str = option("data", "folder where data files are looked for and downloaded to")
    out: str = option("", "run folder; empty: runs/<method>-<next free number>")
    samples: int = option(10_000, "fresh samples to score; never more than training images", low=2)
    resume: str = option("", "run folder to go on with, under its own options, up to --epochs")

    PAPER = {}

    @classmethod
    def paper(cls, **changes):
        """The options as published (--recipe paper), with `changes`."""
        return cls(**(cls.PAPER | changes))

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            low, high, choices = (f.metadata[key] for key in ("low", "high", "choices"))
            kind = type(f.metadata["default"])
            if type(value) is not kind and (kind, type(value)) != (float, int):
                raise InputError(f"{flag_of(f)} is {value!r}; expected {kind.__name__}")
            if choices and value not in choices:
                raise InputError(f"{flag_of(f)} is {value}; choose from {', '.join(choices)}")
            for number in value if kind is list else [value]:
                if kind is not str and not low <= number <= high:
                    raise InputError(f"{flag_of(f)} is {number}; expected a number of at least "
                                     f"{low} and at most {high}")
            if kind is str and value.startswith("~"):
                setattr(self, f.name, os.path.expanduser(value))

    def refuse_idle(self, why, *names):
        """InputError for the first of these options that was changed although it does nothing."""
        for f in fields(self):
            value, default = getattr(self, f.name), f.metadata["default"]
            if f.name in names and value not in (default, self.PAPER.get(f.name, default)):
                raise InputError(f"{flag_of(f)} {value} does nothing {why}; leave it out")


def flag_of(f):
    return "--" + f.name.replace("_", "-")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(f"{message} (see {self.prog} --help)")


def parse(Config, method, description, argv=None):
    """The command line as a Config; with --resume that of the run, and little may change."""
    parser = Parser(description=description.strip().splitlines()[0], allow_abbrev=False,
                    argument_default=argparse.SUPPRESS)
    parser.add_argument("--recipe", choices=["best", "paper"],
                        help="where the defaults of the others come from: best (reliable) or paper "
                        "(as published) (default: best)")
    for f in fields(Config):
        default, choices = f.metadata["default"], f.metadata["choices"]
        text = f"{f.metadata['help']} (default: {default!r}"
        text += f"; paper: {Config.PAPER[f.name]!r})" if f.name in Config.PAPER else ")"
        if isinstance(default, bool):
            parser.add_argument(flag_of(f), action=argparse.BooleanOptionalAction, help=text)
        elif isinstance(default, list):
            parser.add_argument(flag_of(f), nargs="*", type=int, metavar="K", help=text)
        else:
            parser.add_argument(flag_of(f), type=type(default), choices=choices, help=text,
                                metavar=None if choices else type(default).__name__.upper())
    given = vars(parser.parse_args(argv))
    if given.get("resume"):
        return resumed(Config, method, given)
    if given.pop("recipe", "best") == "paper":
        return Config.paper(**given)
    return Config(**given)


def resumed(Config, method, given):
    """The Config of the run folder given["resume"] (or its checkpoint.pt), with what may change."""
    for name in sorted(given):
        if name not in ("resume", "epochs", "device", "data", "data_root", "samples"):
            raise InputError(f"--{name.replace('_', '-')} cannot change in a resumed run; leave "
                             "out one of the two")
    path = Path(given["resume"])
    with fitting(path, method):
        saved = read_checkpoint(path, method)["config"]
        given["resume"] = str(path.parent if path.is_file() else path)
        config = Config(**(saved | given))
        config.is_resumed = True
    for f in fields(Config):
        if f.name not in saved:
            print(f"{given['resume']} is from before {flag_of(f)}; it goes on with "
                  f"{getattr(config, f.name)}", file=sys.stderr)
    return config


def command_line(train, Config, method, description, argv=None):
    """Parse and train. Bad input ends as one line on stderr and status 2, an interrupted run as one
    line and status 130."""
    for stream in (sys.stdout, sys.stderr):            # a path may hold letters that it cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        train(parse(Config, method, description, argv))
        return
    except InputError as error:
        why, status = str(error), 2
    except (RuntimeError, MemoryError, ValueError) as error:
        if out_of_memory(error):
            why = "out of memory; lower --batch-size or --width, or take smaller images"
        elif isinstance(error, (ValueError, NotImplementedError)):
            why = f"{' '.join(str(error).split())[:300]} ({type(error).__name__})"
        else:
            raise
        status = 2
    except OSError as error:
        if error.filename is not None:   # standard output has no name; files have their own line
            raise
        sys.stdout = None
        why, status = f"cannot print: {error.strerror}; --resume goes on with what the run saved", 2
    except KeyboardInterrupt as stop:
        why, status = str(stop) or "stopped at once; --resume goes on from the last save", 130
    finally:
        if processes()[1] > 1:
            dist.destroy_process_group()
    print(f"{method}.py: {why}", file=sys.stderr)
    raise SystemExit(status)


def out_of_memory(error):
    said = re.search("out of memory|(allocate|enough) memory", str(error))
    return isinstance(error, MemoryError) or said is not None


def pick_device(name):
    """torch.device for `auto`, `cpu`, `cuda`, `cuda:1` or `mps`; InputError if it is not there.

    `auto` never is MPS, on which nothing here has been run.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        if device.type in ("cpu", "cuda", "mps"):
            return device
    except (RuntimeError, AssertionError, NotImplementedError):
        pass
    raise InputError(f"--device {name} cannot be used here; expected auto, cpu, cuda, cuda:1, mps")


def pick_precision(name, device):
    """`fp32` or `bf16`; `auto` is bf16 where the processor has instructions for it. Of a CPU only
    newer versions of torch tell that; with others `auto` is fp32 there."""
    if name != "auto":
        return name
    able = False
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        able = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bf16" if able else "fp32"


def autocast(device, precision):
    """The context for the forward passes of a training step. Without autocast's cache, which a CUDA
    graph cannot have; the gradients of several passes through one weight then add up in float32."""
    return torch.autocast(device.type, torch.bfloat16, precision == "bf16", cache_enabled=False)


def optimizer(parameters, rate, kind="adam"):
    """torch.optim's Adam (betas 0.5 and 0.999) or RMSprop (`rmsprop`, alpha 0.99) over a list of
    parameters, fit for a CUDA graph."""
    on_cuda = parameters[0].is_cuda
    if kind == "rmsprop":
        return torch.optim.RMSprop(parameters, rate, alpha=0.99, capturable=on_cuda)
    return torch.optim.Adam(parameters, rate, betas=(0.5, 0.999), fused=True, capturable=on_cuda)


class Captured:
    """A training step, batch -> losses, that on CUDA becomes one graph: networks this small wait
    for kernel launches otherwise.

    The first steps run as they are, on a stream of their own, as capture wants; then one is
    recorded, and replayed from there on. Whatever is a Python number in the step, such as a
    learning rate, is frozen into the recording; random numbers are new in each replay.
    """
    WARM_UP = 3

    def __init__(self, step):
        self.step = step
        self.calls = 0
        self.graph = None

    def __call__(self, real):
        if not real.is_cuda or processes()[1] > 1:
            return self.step(real)
        if self.calls < self.WARM_UP:
            self.calls += 1
            stream = torch.cuda.Stream(real.device)
            stream.wait_stream(torch.cuda.current_stream(real.device))
            with torch.cuda.stream(stream):
                losses = self.step(real)
            torch.cuda.current_stream(real.device).wait_stream(stream)
            return losses
        if self.graph is None:
            self.real = real.clone()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.losses = self.step(self.real)
        self.real.copy_(real)
        self.graph.replay()
        return self.losses


def processes():
    """(rank, number) of the processes that torchrun started; (0, 1) without it."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def average_gradients(optimizer, *_):
    """Replace each gradient by its mean over the processes, in one message."""
    weights = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    flat = torch.cat([p.grad.flatten() for p in weights]) / dist.get_world_size()
    dist.all_reduce(flat)
    for p, mean in zip(weights, flat.split([p.numel() for p in weights])):
        p.grad.copy_(mean.view_as(p))


def start(config, method):
    """What every training begins with: the configuration with the data set and precision really
    used, the device, and the data on it. Seeds torch."""
    if config.resume and not hasattr(config, "is_resumed"):         # from Python
        changed = {}
        for f in fields(config):
            if getattr(config, f.name) != f.metadata["default"]:
                changed[f.name] = getattr(config, f.name)
        config = resumed(type(config), method, changed)
    device = pick_device(config.device)
    launched = dist.is_available() and dist.is_torchelastic_launched()          # by torchrun
    if launched and device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)                 # where a CUDA graph will be captured
    if launched and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, number = processes()
    if config.batch_size % number:
        raise InputError(f"--batch-size {config.batch_size} cannot be split over {number} "
                         f"processes; expected a multiple of {number}")
    if rank:
        sys.stdout = io.StringIO()                                  # the first process alone prints
    data = load_data(config.data, config.data_root)
    if min(config.batch_size, len(data.images)) < 2 * number:
        raise InputError(f"{len(data.images)} images in batches of {config.batch_size} leave less "
                         f"than 2 for each of {number} processes; start fewer")
    name = data.name
    if config.data not in (*SOURCES, "auto", "digits"):
        name = str(Path(config.data).resolve())
    config = replace(config, data=name, precision=pick_precision(config.precision, device))
    for key in ("images", "labels", "test_images", "test_labels"):
        if getattr(data, key) is not None:
            setattr(data, key, getattr(data, key).to(device))
    if data.labels is None:
        print(f"{data.name} has no labels: the scores that need them are left out")
    torch.manual_seed(config.seed)
    return config, device, data


# ---------------------------------------------------------------- the run

def write_file(path, content):
    """Write bytes or text so that the final name only ever holds a whole file: beside it, under a
    name that no other writer has, to the disk, then renamed. InputError if that fails; what the
    name held before is kept."""
    part = Path(f"{path}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise InputError(f"{path} cannot be written: {error.strerror}; what it held before is "
                         "kept; see to folder and disk, then go on (a run with --resume)") from None


def saved_bytes(state):
    """What torch.save would write, as bytes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def safe_load(path):
    """torch.load on the CPU of tensors and plain values only: no code in the file runs. Its
    checksums are compared, which torch.load leaves out. Errors: whatever zipfile and torch
    raise."""
    with zipfile.ZipFile(path) as archive:
        if archive.testzip():
            raise zipfile.BadZipFile
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected pickle protocol")   # refused anyway
        return torch.load(path, map_location="cpu", weights_only=True)


def read_checkpoint(path, method):
    """The dict in a saved model or checkpoint.pt (or in the run folder `path`) of that method, on
    the CPU; InputError if it is not one."""
    path = Path(path).expanduser()
    path = path / "checkpoint.pt" if path.is_dir() else path
    try:
        state = safe_load(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint; give a run folder or saved model") from None
    except Exception:
        raise InputError(f"{path} cannot be read as a checkpoint: cut short, damaged or of another "
                         "kind") from None
    if not isinstance(state, dict) or state.get("method") != method:
        raise InputError(f"{path} is no checkpoint of {method}.py; give one that it wrote")
    return state


@contextlib.contextmanager
def fitting(path, method):
    """A context in which a checkpoint's contents are used: what they lack, or have too much for
    this code, becomes an InputError."""
    try:
        yield
    except InputError:
        raise
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if out_of_memory(error):
            raise
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{path} does not fit this {method}.py ({type(error).__name__}: {why}); "
                         "take the version that wrote it") from None


def new_folder(method, out):
    """Make and return the run folder; InputError if `out` holds something already."""
    for number in itertools.count(1):
        folder = Path(out or f"runs/{method}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if out and folder.is_dir() and not any(folder.iterdir()):
                return folder
            if out:
                raise InputError(f"--out {out} exists already; choose another folder, or go on "
                                 f"with it: --resume {out}") from None
        except OSError as error:
            raise InputError(f"--out {folder} cannot be made: {error.strerror}; choose another "
                             "folder") from None


class Run:
    """A run folder and the loop around the training step: order of the images, progress,
    checkpoints, pictures, report.

        for epoch in run.epochs():
            for real in run.batches():                      # (N, C, H, W) in [0, 1]
                run.log(training_step(...))                 # dict of 0-d tensors
            run.end_epoch(score)                            # () -> dict for JSON
        run.end(score)

    `figures()` gives the pictures, name -> (uint8 picture, caption); its `samples` are also a frame
    of the animation. Under torchrun each process takes its slice of every batch and has latents of
    its own, gradients are averaged before each optimiser's step, and the first process alone
    writes.
    """
    # What a checkpoint keeps besides models, optimisers and random states: epochs done; of the next
    # one the steps done, order of the images, losses' names and sums, seconds; metrics.
    STATE = ("epoch", "step", "order", "names", "sums", "seconds", "history")
    FRAMES, FRAME_BYTES = 30, 10**7                   # of the animation, at the most
    QUIET = 60                                        # seconds without a line where no one watches

    def __init__(self, method, config, data, model, average, optimizers, figures):
        self.method, self.config, self.data, self.figures = method, config, data, figures
        self.model, self.average, self.optimizers = model, average, optimizers
        self.device = data.images.device
        self.epoch = 0
        self._begin_epoch()
        self.history, self.frames = [], {}             # epoch -> samples, as `deflate` leaves them
        self.fingerprint = fingerprint(data)
        self.stopping = False
        self.rank, self.processes = processes()
        if config.resume:
            self.folder = Path(config.resume)
            if not self.rank:
                for part in self.folder.glob("*.????????.part"):   # left by a run that was killed
                    part.unlink(missing_ok=True)
            with fitting(self.folder, method):
                self._restore(read_checkpoint(self.folder, method))
        else:
            self.folder = Path(config.out) if self.rank else new_folder(method, config.out)
            if not self.rank:
                self._add_frame(deflate(figures()["samples"][0]))
        weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.about = {"method": method, **asdict(config), "device": str(self.device),
                      "threads": torch.get_num_threads(), "processes": self.processes,
                      "torch": str(torch.__version__), "python": platform.python_version(),
                      "image_shape": list(data.shape), "parameters": weights}
        if self.rank == 0:
            write_file(self.folder / "config.json", json.dumps(self.about, indent=2) + "\n")
            self.save()
        else:
            torch.manual_seed(config.seed + self.rank + 1000 * self.epoch)      # latents of its own
        for optimizer in optimizers.values() if self.processes > 1 else ():
            optimizer.register_step_pre_hook(average_gradients)
        print(f"{method}: {len(data.images)} images of {data.name} {data.shape}, on {self.device} "
              f"in {config.precision}, into {self.folder}", flush=True)

    def _begin_epoch(self):
        self.step = 0
        self.order = None
        self.names = []
        self.sums = None
        self.seconds = 0.0

    def save(self):
        """Write checkpoint.pt, from which the run goes on and `load_model` takes the model."""
        if self.rank:
            return
        averaged = self.average.model is not self.model
        on_cuda = self.device.type == "cuda"
        write_file(self.folder / "checkpoint.pt", saved_bytes({
            "method": self.method, "options": self.model.options, "config": asdict(self.config),
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict() if averaged else None,
            "average_updates": self.average.updates, "fingerprint": self.fingerprint,
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if on_cuda else None,
            **{name: getattr(self, name) for name in self.STATE}}))

    def _restore(self, state):
        shape = tuple(state["options"]["shape"])
        if shape != self.data.shape:
            raise InputError(f"{self.folder} was trained on images of {shape}; these are "
                             f"{self.data.shape}")
        if self.fingerprint != state["fingerprint"]:
            raise InputError(f"{self.folder} was trained on other images than {self.config.data} "
                             "holds now; give the old ones by --data, or begin a new run")
        if self.config.epochs < state["epoch"]:
            raise InputError(f"--epochs {self.config.epochs} is less than the {state['epoch']} "
                             f"that {self.folder} has done")
        self.model.load_state_dict(state["model"])
        if state["average"]:
            self.average.model.load_state_dict(state["average"])
        self.average.updates.copy_(state["average_updates"])
        for name, optimizer in self.optimizers.items():
            for group in state["optimizers"][name]["param_groups"]:
                group["capturable"] = self.device.type == "cuda"    # it may have trained elsewhere
            optimizer.load_state_dict(state["optimizers"][name])
        for name in self.STATE:
            value = state[name]
            setattr(self, name, value.to(self.device) if torch.is_tensor(value) else value)
        with contextlib.suppress(Exception):          # without it the animation begins here
            self.frames = {epoch: raw_bytes(frame) for epoch, frame
                           in safe_load(self.folder / "frames.pt").items() if epoch <= self.epoch}
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], self.device)

    def epochs(self):
        """Yield 1-based epoch numbers up to --epochs. A first Ctrl-C or SIGTERM saves after its
        step and stops, a second stops at once."""
        before = {}

        def put_back():
            for signum, handler in before.items():
                signal.signal(signum, handler)

        def stop(signum, frame):
            self.stopping = True
            put_back()

        if self.processes == 1:                        # torchrun stops all of its processes itself
            with contextlib.suppress(ValueError):      # only the main thread can handle signals
                for signum in (signal.SIGINT, signal.SIGTERM):
                    before[signum] = signal.signal(signum, stop)
        try:
            while self.epoch < self.config.epochs:
                yield self.epoch + 1
            if self.stopping:
                raise KeyboardInterrupt("stopped and saved before the final scores; "
                                        f"{self._go_on()}")
        finally:
            put_back()

    @property
    def is_new(self):
        """Whether nothing was trained yet, neither here nor in the run that is resumed."""
        return self.epoch == 0 and self.order is None and not self.history

    @contextlib.contextmanager
    def warm_up(self, score):
        """Around what trains the model before the first epoch; a line of the metrics, epoch 0, has
        its seconds and what score() gives. Under torchrun the first process' model is then that of
        all. Interrupted, it begins anew."""
        print("warming up before epoch 1 ..", flush=True)
        began = time.perf_counter()
        yield
        if self.processes > 1:
            for tensor in self.model.state_dict().values():
                dist.broadcast(tensor, 0)
        line = {"epoch": 0, "data": self.data.name, "seconds": time.perf_counter() - began}
        line |= defined({} if self.rank else score())
        self.history.append(line)
        self.save()
        print(f"epoch 0/{self.config.epochs}  {brief(line)}", flush=True)

    def stop_if_asked(self):
        """KeyboardInterrupt if Ctrl-C or SIGTERM came before the first step."""
        if self.stopping:
            raise KeyboardInterrupt(f"stopped before the first step; {self._go_on()}")

    def batches(self):
        """Yield one epoch of training batches (N, C, H, W) in [0, 1], shuffled; the last, partial
        batch is left out."""
        images = self.data.images
        size = min(self.config.batch_size, len(images))
        steps = len(images) // size
        part = size // self.processes
        if self.order is None:
            self.order = torch.randperm(len(images), device=self.device)
            if self.processes > 1:
                dist.broadcast(self.order, 0)
        began = time.perf_counter() - self.seconds
        shown = time.perf_counter()
        interval = 0.5 if sys.stdout.isatty() else self.QUIET
        while self.step < steps and not self.stopping:
            first = self.step * size + self.rank * part
            yield images[self.order[first:first + part]].float() / 255
            self.step += 1
            last = self.step == steps and sys.stdout.isatty()
            if last or time.perf_counter() - shown > interval:
                shown = time.perf_counter()
                self._show_progress(shown - began, steps, size)
        self.means = self._mean_losses()               # waits for the device: the clock is honest
        self.seconds = time.perf_counter() - began
        for name, value in self.model.state_dict().items():
            if not value.isfinite().all():
                raise InputError(f"{name} is no longer finite in epoch {self.epoch + 1}, after "
                                 f"step {self.step}; {self._advice()}")
        self.save()                                    # before the scores, which may fail
        if self.step < steps:
            raise KeyboardInterrupt(f"stopped and saved at step {self.step} of {steps} in epoch "
                                    f"{self.epoch + 1}; {self._go_on()}")
        self.means |= {"seconds": self.seconds, "images_per_second": steps * size / self.seconds}

    def log(self, losses):
        """Add one step's losses, a dict of 0-d tensors; they stay on the device until a report."""
        self.names = list(losses)
        values = torch.stack(list(losses.values()))
        self.sums = values if self.sums is None else self.sums + values

    def _mean_losses(self):
        """name -> mean over the epoch's steps so far; InputError if one is not finite."""
        if not self.names:
            return {}
        means = dict(zip(self.names, (self.sums / self.step).tolist()))
        for name, loss in means.items():
            if not math.isfinite(loss):
                raise InputError(f"{name} became {loss} in epoch {self.epoch + 1}, by step "
                                 f"{self.step}; {self._advice()}")
        return means

    def _show_progress(self, seconds, steps, size):
        losses = "  ".join(f"{name} {mean:.3f}" for name, mean in self._mean_losses().items())
        done = self.step / steps
        left = seconds / done * (self.config.epochs - self.epoch - done)
        line = (f"epoch {self.epoch + 1}/{self.config.epochs} {done:4.0%}  {losses}  "
                f"{self.step * size / seconds:.0f} images/s  {left // 60:.0f}:{left % 60:02.0f} "
                "left")
        if sys.stdout.isatty():
            print(f"\r\033[K{line}", end=", scoring" if self.step == steps else "", flush=True)
        else:
            print(line, flush=True)

    def _advice(self):
        return (f"{self.folder}/checkpoint.pt is from before that; begin anew with lower learning "
                "rates, or --precision fp32")

    def _go_on(self):
        return f"go on with: python {self.method}.py --resume {self.folder}"

    def end_epoch(self, score):
        """Add the epoch's line to the metrics, with what score() gives, and write everything."""
        scores = {} if self.rank else score()
        self.epoch += 1
        line = {"epoch": self.epoch, "data": self.data.name, **self.means, **defined(scores)}
        self.history.append(line)
        self._begin_epoch()
        self._write(line)
        clear = "\r\033[K" if sys.stdout.isatty() else ""
        print(f"{clear}epoch {self.epoch}/{self.config.epochs}  {brief(line)}", flush=True)

    def end(self, score):
        """Add what score() gives to the last epoch's line (epoch 0 if none was trained) and write
        everything once more."""
        scores = {} if self.rank else score()
        if not self.history:
            self.history.append({"epoch": 0, "data": self.data.name})
        line = self.history[-1]
        line |= defined(scores)
        for key in ("seed", "device", "precision", "threads", "torch", "parameters"):
            line[key] = self.about[key]
        self._write(line)
        for key, value in line.items():
            if value is None:
                print(f"{key} is not defined here: the images are too few, or all alike")
        print(f"done   {brief(scores)}\nlook at {self.folder / 'index.html'}", flush=True)

    def _write(self, scores):
        if self.rank:
            return
        pictures = self.figures()
        data = {name: deflate(picture) for name, (picture, _) in pictures.items()}
        self._add_frame(data["samples"])
        self.save()
        lines = [json.dumps(line) + "\n" for line in self.history]
        write_file(self.folder / "metrics.jsonl", "".join(lines))
        images = {}
        for name, (picture, caption) in pictures.items():
            images[name] = png(picture.shape, data[name]), caption
        animation = png(pictures["samples"][0].shape, *self.frames.values())
        images["training"] = animation, "The same samples over training, from before it on."
        for name, (image, _) in images.items():
            write_file(self.folder / f"{name}.png", image)
        title = f"{self.method} on {self.data.name}, epoch {self.epoch}"
        shown = self.about | {"data": self.data.name}
        for private in ("data_root", "out", "resume"):
            del shown[private]
        page = report(title, shown, self.history, scores, images)
        write_file(self.folder / "index.html", page)

    def _add_frame(self, data):
        """Keep the samples of the epoch, and of the others as many as fit, evenly spaced."""
        self.frames[self.epoch] = data
        most = max(4, min(self.FRAMES, self.FRAME_BYTES // len(data)))
        every = 1
        while self.epoch / every > most - 2:
            every *= 2
        for epoch in list(self.frames):
            if epoch % every and epoch != self.epoch:
                del self.frames[epoch]
        frames = {}                                    # as tensors: loaded safely by any torch
        for epoch, frame in self.frames.items():
            frames[epoch] = torch.frombuffer(bytearray(frame), dtype=torch.uint8)
        write_file(self.folder / "frames.pt", saved_bytes(frames))


def fingerprint(data):
    """What tells a data set from another: its counts, its shape, and a checksum over some of it."""
    some = data.images[::1 + data.images.numel() // 10**8]
    checksum = hashlib.sha256(raw_bytes(some)).hexdigest()[:16]
    return [len(data.images), len(data.test_images), *data.shape, checksum]


def defined(scores):
    """Nested scores with None for what came out NaN or infinite, as an error over that of data that
    never vary: JSON has no NaN."""
    if isinstance(scores, dict):
        return {key: defined(value) for key, value in scores.items()}
    if isinstance(scores, list):
        return [defined(value) for value in scores]
    return None if isinstance(scores, float) and not math.isfinite(scores) else scores


def brief(scores):
    numbers = {key: value for key, value in scores.items() if isinstance(value, float)}
    return "  ".join(f"{key} {value:.4g}" for key, value in numbers.items())
