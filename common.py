"""common.py: what infogan.py and ogan.py share.

Networks, the models' base, data, scores, pictures, options, files, the run, in this order. Images
are float tensors (N, C, H, W) in [0, 1] unless uint8 is said.
"""

import argparse
import atexit
import base64
import contextlib
import copy
import ctypes
import difflib
import gzip
import hashlib
import html
import inspect
import io
import itertools
import json
import math
import os
import platform
import re
import secrets
import socket
import struct
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

# torch warns at import that numpy is absent, which nothing here needs. The filter goes again right
# after, so that the warnings of the process are as torch leaves them.
warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
no_word_on_numpy = warnings.filters[0]

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

warnings.filters.remove(no_word_on_numpy)

__all__ = ["Data", "InputError", "Judge", "Model", "MovingAverage", "Run", "clustering_scores",
           "draw_digits", "frechet_distance", "load_data", "save_grid"]


class InputError(ValueError):
    """Something the user gave cannot work; the message is one line: what was wrong, what to do."""


# ---------------------------------------------------------------- network blocks

def stages(shape, width):
    """The convolutions of stride 2 that images of `shape` (C, H, W) need: channels, kernel and
    stride of each, and the height and width that are left after them.

    Up to 32 pixels it is two stages, the InfoGAN paper's for MNIST; beyond, as many as bring the
    longer side under 8: 3 for 40 to 56 pixels, 4 for 64 to 112, 5 for 128 to 224. The first has
    `width` channels, each next one twice as many, up to eight times `width`. A shorter side stays
    once it is odd. InputError unless it has a factor of 4 and the longer can be halved so often.
    """
    if len(shape) != 3 or min(*shape, width) < 1:
        raise InputError(f"shape is {tuple(shape)}, width {width}; expected (channels, height, "
                         "width) of images, and channels of the first convolution, 1 or more")
    h, w = shape[1:]
    side = max(h, w)
    count = 2
    while side > 32 and side >> count >= 8:
        count += 1
    if side % 2**count or min(h, w) % 4:
        raise InputError(f"images of {'x'.join(map(str, shape))} do not fit the networks; pad or "
                         f"crop them, the longer side to multiples of {2**count}, the other of 4")
    found = []
    for stage in range(count):
        down, right = 2 - h % 2, 2 - w % 2
        found.append((width * min(2**stage, 8), (down + 2, right + 2), (down, right)))
        h, w = h // down, w // right
    return found, (h, w)


class Float32(nn.Module):
    """Bring half precision to float32, so that what follows a network under autocast is exact."""

    def forward(self, x):
        return x.to(torch.promote_types(x.dtype, torch.float32))


def convolutional_trunk(shape, width, slope):
    """Images (N, C, H, W) to features (N, 16 width): the InfoGAN paper's D without its head.

    With `width` 64 and 28x28 pixels its layers have 64 and 128 channels and 1024 units; larger
    images have more `stages`. `slope` is the leaky ReLU's.
    """
    found, (h, w) = stages(shape, width)
    before = shape[0]
    layers = []
    for channels, kernel, stride in found:                          # (N, channels, h / 2, w / 2)
        norm = [nn.BatchNorm2d(channels)] if layers else []
        layers += [nn.Conv2d(before, channels, kernel, stride, 1, bias=not norm), *norm,
                   nn.LeakyReLU(slope)]
        before = channels
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * h * w, 16 * width, bias=False),
                         nn.BatchNorm1d(16 * width), nn.LeakyReLU(slope))       # (N, 16 width)


def convolutional_generator(inputs, shape, width, activation):
    """Latents (N, inputs) to images (N, C, H, W): the InfoGAN paper's G, the trunk in reverse.

    `activation`, a module such as nn.Sigmoid(), turns the last layer's output into pixels.
    """
    found, (h, w) = stages(shape, width)
    before = found[-1][0]
    layers = [nn.Linear(inputs, 16 * width, bias=False), nn.BatchNorm1d(16 * width), nn.ReLU(),
              nn.Linear(16 * width, before * h * w, bias=False), nn.BatchNorm1d(before * h * w),
              nn.ReLU(), nn.Unflatten(1, (before, h, w))]
    for i, (channels, kernel, stride) in reversed(list(enumerate(found))):
        after = found[i - 1][0] if i > 0 else shape[0]              # (N, after, 2 h, 2 w)
        norm = [nn.BatchNorm2d(after), nn.ReLU()] if i > 0 else []
        layers += [nn.ConvTranspose2d(channels, after, kernel, stride, 1, bias=not norm), *norm]
    return nn.Sequential(*layers, Float32(), activation)


def initialise(module):
    """Weights N(0, 0.02), biases 0, as both papers' code does: model.apply(initialise)."""
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def mixed(network, real, fake, share):
    """network(real) and network(fake) from a batch of real images and one of fakes, which swap a
    share: ours, for batch normalisation alone.

    0: each kind by itself, as in both papers' code: the network cannot see, nor tell G, what all
    fakes have in common, as being too bright. 0.5: as good as one batch, where it wins too easily.
    """
    n = round(share * len(real))
    one = network(torch.cat([fake[:n], real[n:]]))
    other = network(torch.cat([real[:n], fake[n:]]))
    return torch.cat([other[:n], one[n:]]), torch.cat([one[:n], other[n:]])


class MovingAverage(nn.Module):
    """A moving average of a model's weights and statistics: `average.model` samples and encodes.

    At update n it keeps min(decay, (1 + n) / (10 + n)) of itself, as TensorFlow's does, so it spans
    the last tenth of a young model's updates and 1 / (1 - decay) of an old one's. With decay 0 it
    is the model itself. torch.optim.swa_utils.AveragedModel asks on the CPU whether an update is
    the first; this one counts on the device, so that a CUDA graph can replay it.
    """

    def __init__(self, model, decay):
        super().__init__()
        self.decay = decay
        self.register_buffer("updates", torch.zeros((), device=model.device))
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


# ---------------------------------------------------------------- the models' base

def described(thing):
    """A tensor's type and shape, or what else it is, for a message."""
    return f"{thing.dtype} {tuple(thing.shape)}" if torch.is_tensor(thing) else type(thing).__name__


def floats(images):
    """uint8 images as floats in [0, 1]; floats as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def refuse_outside(values):
    """InputError if floats lie outside [0, 1] by more than rounding, or are NaN."""
    low, high = values.aminmax()
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise InputError(f"images go from {low:g} to {high:g}; expected uint8, or floats in [0, 1] "
                         "as by x / 255 or (x + 1) / 2")


def load_state(part, state, device):
    """Load the state of a model or an optimiser, which may have trained on another device."""
    for group in state.get("param_groups", ()):
        group["capturable"] = device.type == "cuda"
    part.load_state_dict(state)


def batch_for(shape):
    """How many images of `shape` are evaluated at a time: 1000 of MNIST's, fewer of larger ones."""
    return max(1, min(1000, 3_000_000 // math.prod(shape)))


def in_batches(function, tensor, size=None):
    """function over slices of `size` rows, concatenated; uint8 arrives as float in [0, 1]."""
    parts = tensor.split(size or batch_for(tensor.shape[1:]))
    return torch.cat([function(floats(part)) for part in parts])


class Model(nn.Module):
    """The base of both methods' models: images are checked at the border, many are taken a few at a
    time, files are written and read. A subclass has a METHOD, a `generator` and a `latent_size`."""
    G_PARTS = ("generator.",)                         # names of the weights of G's player begin so

    def __init__(self, **options):
        super().__init__()
        self.options = options                        # the constructor's arguments, for `save`
        vars(self).update(options)
        self.extremes = []                            # of training batches on CUDA

    @property
    def device(self):
        return next(self.parameters()).device

    def g_parameters(self) -> list[nn.Parameter]:
        """The weights that are not frozen of G and what plays with it, for their optimiser."""
        return [weight for name, weight in self.named_parameters()
                if weight.requires_grad and name.startswith(self.G_PARTS)]

    def other_parameters(self) -> list[nn.Parameter]:
        """All others that are not frozen, for the other player's optimiser."""
        return [weight for name, weight in self.named_parameters()
                if weight.requires_grad and not name.startswith(self.G_PARTS)]

    def check(self, images):
        """InputError unless images are uint8 or floats, (N, *shape); networks may take others."""
        known = torch.is_tensor(images) and (
            images.dtype == torch.uint8 or images.is_floating_point())
        if not known or images.shape[1:] != self.shape:
            raise InputError(f"images are {described(images)}; expected a tensor, uint8 or float, "
                             f"of shape (N, {', '.join(map(str, self.shape))})")

    def floats(self, images):
        """Images that pass `check` as floats of the model's type, on its device."""
        self.check(images)
        return floats(images).to(next(self.parameters()))

    def check_range(self, images):
        """InputError for images that fail `check`, or are floats outside [0, 1]."""
        self.check(images)
        if images.is_floating_point() and images.numel():
            refuse_outside(images)

    def training_batch(self, images):
        """Images of a training step as `floats` makes them, and the model in train mode, which it
        is not after `load`. InputError as in `check_range`; of images on CUDA the least and the
        greatest value are kept there and looked at every 100th step, not to wait at each."""
        if not self.training:
            self.train()
        ready = self.floats(images)
        if len(images) < 2:
            raise InputError(f"a batch of {len(images)} images; batch normalisation wants two or "
                             "more: leave the last out, as by drop_last=True")
        if images.is_floating_point() and not images.is_cuda:
            refuse_outside(images)
        elif images.is_floating_point():
            self.extremes.append(torch.stack(images.aminmax()))
            if len(self.extremes) in (1, 101) and not torch.cuda.is_current_stream_capturing():
                refuse_outside(torch.stack(self.extremes))
                self.extremes = self.extremes[:1]     # so the next look is a hundred steps on
        return ready

    @torch.no_grad()
    def in_eval_mode(self, function, tensor):
        """function over images or latents, a few at a time, in eval mode and without gradients;
        afterwards each module is in the mode it was in."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            return in_batches(function, tensor, batch_for(self.shape))
        finally:
            for module, training in modes:
                module.training = training

    def evaluate(self, function, images):
        """function over images that pass `check_range`, `in_eval_mode`; what is a rounding error
        outside [0, 1] is clamped."""
        self.check_range(images)
        like = next(self.parameters())
        return self.in_eval_mode(lambda part: function(part.to(like).clamp(0, 1)), images)

    def decode(self, latent: Tensor) -> Tensor:
        """G in eval mode, latents (N, .) to images (N, C, H, W); InputError for another size."""
        size = self.latent_size
        if not torch.is_tensor(latent) or latent.ndim != 2 or latent.shape[1] != size:
            raise InputError(f"latents are {described(latent)}; expected a tensor (N, {size})")
        return self.in_eval_mode(self.generator, latent.to(next(self.parameters())))

    def save(self, path: str | Path, **optimizers: torch.optim.Optimizer) -> None:
        """Write weights, options and optimisers by name (d=.., g=..); InputError if it fails."""
        states = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
        write_file(Path(path).expanduser(), {"method": self.METHOD, "options": self.options,
                                             "model": self.state_dict(), "optimizers": states})

    def take(self, path: str | Path) -> list[str]:
        """Begin from the weights in a run folder or saved file, as far as names and shapes fit;
        prints and returns the names of what stays new. InputError if no layer of G fits."""
        state, own = read_checkpoint(path, self.METHOD), self.state_dict()
        fits = {name: state["model"][name] for name, value in own.items()
                if name in state["model"] and state["model"][name].shape == value.shape}
        if not any(name in fits and weight.ndim > 1 for name, weight in self.named_parameters()
                   if name.startswith("generator.")):
            raise InputError(f"{path} has weights for {state['options']}; none fits networks of "
                             f"{self.options}")
        self.load_state_dict(fits, strict=False)
        new = [name for name in own if name not in fits]
        print(f"{path}: {len(fits)} of {len(own)} weights taken; new: {', '.join(new) or 'none'}")
        return new

    def load_optimizers(self, path: str | Path, **optimizers: torch.optim.Optimizer) -> None:
        """Bring optimisers by name to where they were at `save`; InputError if it kept others."""
        state = read_checkpoint(path, self.METHOD)
        with blaming(path, f"the optimisers {', '.join(optimizers)} of this {self.METHOD}.py"):
            saved = state["parts"] if "parts" in state else state["optimizers"]
            for name, optimizer in optimizers.items():
                load_state(optimizer, saved[name], self.device)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu"):
        """The model in a saved file, or a run folder's moving average, as float32 in eval mode;
        InputError if the file is none of this method's, is damaged, or does not fit this code."""
        device = pick_device(device)
        state = read_checkpoint(path, cls.METHOD)
        with blaming(path, f"a model of this {cls.METHOD}.py"):
            with torch.device("meta"):                # no initial weights, so no random numbers
                model = cls(**state["options"])
            model.load_state_dict(state["model"], assign=True)
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
# The names that these files go by elsewhere: unpacked, with a dot, after that of a set (EMNIST's
# splits); QMNIST's labels are rows of eight int32, of which the first is the class.
IDX_NAMES = [f"(.*-)?{kind}(\\.gz)?" for kind in (
    "train-images[-.]idx3-ubyte", "train-labels[-.]idx(1-ubyte|2-int)",
    "(t10k|test)-images[-.]idx3-ubyte", "(t10k|test)-labels[-.]idx(1-ubyte|2-int)")]
MIRROR_TIMEOUT = 15   # seconds of silence before the next mirror is tried


@dataclass
class Data:
    """A data set: images uint8 (N, C, H, W), labels int64 (N,) or None; `test_factors` are what the
    test images were drawn with, name -> (N,), where that is known."""
    name: str
    images: Tensor
    labels: Tensor | None
    test_images: Tensor
    test_labels: Tensor | None
    test_factors: dict | None = None

    @property
    def shape(self):
        return tuple(self.images.shape[1:])

    def limit(self, n):
        """Keep the first n training images; with 0 all."""
        self.images = self.images[:n or None]
        self.labels = None if self.labels is None else self.labels[:n or None]

    def to(self, device):
        """Move all tensors to that device."""
        for name, value in vars(self).items():
            if torch.is_tensor(value):
                setattr(self, name, value.to(device))


def labelled(*columns):
    """The rows that have a label (not -1) of tensors, of which the last is the labels."""
    return [column[columns[-1] >= 0] for column in columns]


def load_data(name: str, root: str | Path = "data") -> Data:
    """Data named `mnist`, `fashion`, `digits`, a FILE.pt or a folder of IDX files; `auto` is
    mnist, else digits. InputError for an unknown name, wrong contents or a failed download."""
    if name == "auto":
        try:
            return load_data("mnist", root)
        except InputError as error:
            print(f"WARNING: no MNIST ({error}); going on with DRAWN DIGITS instead (--data "
                  "digits)", file=sys.stderr, flush=True)
            name = "digits"
    if name == "digits":
        images, labels, factors = draw_digits(70_000)
        n = 60_000
        test_factors = {key: values[n:] for key, values in factors.items()}
        return Data(name, images[:n], labels[:n], images[n:], labels[n:], test_factors)
    path = Path(name).expanduser()
    name = str(name)
    if name in SOURCES:
        return own_data(name, list(find_or_download(name, Path(root).expanduser())))
    if path.suffix == ".pt":
        return own_data(name, read_file(path))
    if path.suffix in (".npz", ".npy"):
        raise InputError(f"--data {name} is NumPy's; results/README.md, Own images, packs it")
    if os.path.isfile(path):
        raise InputError(f"--data {name} is a file, but no FILE.pt; if torch.save wrote it, rename "
                         "it; if it is a picture, take results/pack.py")
    if os.path.isdir(path) or ("/" in name and os.path.isdir(path.parent)):
        return own_data(name, read_folder(path))
    raise InputError(f"--data {name} is unknown, and no file or folder is there; take auto, mnist, "
                     "fashion, digits, FILE.pt or a folder of IDX files")


def named(pattern, *folders):
    """The files in these folders whose names match."""
    files = [file for place in folders if place.is_dir() for file in sorted(place.iterdir())]
    return [file for file in files if re.fullmatch(pattern, file.name)]


def find_or_download(name, root):
    """The four IDX files of `name` as tensors; what has no genuine copy in root goes to root/name.
    A file of the right name and other contents, as KMNIST's or EMNIST's, is named on stderr."""
    mirrors, folder, checksums = SOURCES[name]
    places = (root, root / name, root / folder, root / "raw", root / Path(folder).parent)
    for file, pattern, checksum in zip(IDX_FILES, IDX_NAMES, checksums):
        lying = named(pattern, *places)
        found = next((path for path in lying if genuine(path, checksum)), None)
        if found is None:
            for path in lying:
                print(f"{path}: not {name}'s {file}, whatever its name; fetching that (if it is "
                      "what you want: --data FOLDER)", file=sys.stderr, flush=True)
            found = download(file, mirrors, checksum, root / name)
        yield read_idx(found)


def read_folder(path):
    """What a folder in MNIST's layout holds, as tensors or None: images, labels, test images, test
    labels. `path` may go on, as FOLDER/emnist-letters, to choose one of several sets; EMNIST's
    images, which are stored transposed, are put upright."""
    folder, start = (path, "") if path.is_dir() else (path.parent, path.name)
    found = []
    for pattern in IDX_NAMES:
        names = {file.name.removesuffix(".gz"): file
                 for file in named(pattern, folder, folder / "raw") if file.name.startswith(start)}
        if len(names) > 1:
            one = min(names).partition("-train")[0]
            raise InputError(f"--data {path} holds {', '.join(sorted(names))}; choose one, as by "
                             f"--data {folder}/{one}")
        found += names.values() or [None]
    if found[0] is None:
        raise InputError(f"--data {path} holds no IDX files; to pack pictures into a FILE.pt: "
                         f"python results/pack.py {folder} mine.pt (README.md)")
    parts = [None if file is None else read_idx(file) for file in found]
    if found[0].name.startswith("emnist"):
        parts[::2] = [None if images is None else images.mT for images in parts[::2]]
    return parts


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
    Errors: InputError that names every URL tried."""
    part = folder / f"{file}.{secrets.token_hex(4)}.part"
    tried = []
    for mirror in mirrors:
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(MIRROR_TIMEOUT)      # torch alone waits for ever
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(mirror + file, str(part), progress=sys.stderr.isatty())
            if genuine(part, checksum):
                os.replace(part, folder / file)
                return folder / file
            tried.append(f"{mirror + file}: wrong checksum, {part.stat().st_size} bytes")
            part.unlink()
        except Exception as error:                    # refused, no such host, 404, silence, ..
            tried.append(f"{mirror + file}: {error}")
        finally:
            socket.setdefaulttimeout(before)
    raise InputError(f"could not get {file} (tried {'; '.join(tried)}); put the four .gz files "
                     f"into {folder} by hand, or take --data digits")


def read_idx(path):
    """An IDX file of bytes or int32, packed or not, as a tensor (yann.lecun.com/exdb/mnist); of
    QMNIST's rows of labels the first column."""
    with blaming(path, "an IDX file of unsigned bytes or int32, as MNIST's are"):
        content = unpacked(path)
        dimensions = content[3]
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
        values = bytearray(content[4 + 4 * dimensions:])
        if content[:3] == b"\0\0\x08":
            return torch.frombuffer(values, dtype=torch.uint8).view(shape)
        if content[:3] != b"\0\0\x0c" or dimensions != 2:
            raise ValueError("another kind of number")
        octets = torch.frombuffer(values, dtype=torch.uint8).view(*shape, 4)    # big-endian
        return (octets.long() << torch.tensor([24, 16, 8, 0])).sum(-1)[:, 0]


def read_file(path):
    """What a user's dict of tensors, saved by torch, holds: images, labels, test images, labels."""
    with blaming(f"--data {path}", "a dict of tensors, nothing else, saved by torch.save, with "
                 "`images` (N, C, H, W)"):
        content = safe_load(path)
        keys = ("images", "labels", "test_images", "test_labels")
        unknown = sorted(content.keys() - set(keys))
        if unknown:
            raise ValueError(f"{', '.join(map(str, unknown))}; known are {', '.join(keys)}")
        return [content["images"], *map(content.get, keys[1:])]


def own_data(path, parts):
    """The Data of a user's list of images, labels, test images and labels; all but the first may
    be None. A FILE.pt, or what has no test images, is shuffled: its order may be that of classes.
    Without test images the first tenth is held out; under twenty images serve both ends."""
    images = own_images(path, "images", parts.pop(0))  # what they were before is free now
    given, test, test_given = parts
    labels = own_labels(path, "images", given, len(images))
    if test is None and test_given is not None:
        raise InputError(f"--data {path} has `test_labels` but no `test_images`; give both or "
                         "neither")
    if test is not None:
        test = own_images(path, "test_images", test)
        test_labels = own_labels(path, "test_images", test_given, len(test))
        if test.shape[1:] != images.shape[1:]:
            raise InputError(f"--data {path}: `images` are {tuple(images.shape)}, `test_images` "
                             f"{tuple(test.shape)}; expected one size throughout")
        if (given is None) != (test_given is None):
            raise InputError(f"--data {path} has labels for one of `images` and `test_images`; "
                             "give `labels` and `test_labels`, or neither")
    if test is not None and Path(path).suffix == ".pt":
        test, test_labels = shuffled(test.clone(), test_labels)     # it may share images' memory
    if test is None or Path(path).suffix == ".pt":
        images, labels = shuffled(images.contiguous(), labels)
    if test is None and len(images) < 20:
        test, test_labels = images, labels
    elif test is None:
        tenth = len(images) // 10
        test, images = images[:tenth], images[tenth:]
        test_labels, labels = labels[:tenth], labels[tenth:]
    if max(labels.max(), test_labels.max()) >= len(labels):         # any numbers
        classes = torch.cat([labels, test_labels, torch.tensor([-1])]).unique()
        labels = torch.searchsorted(classes, labels) - 1
        test_labels = torch.searchsorted(classes, test_labels) - 1
    if test_labels.max() < 0:
        labels = test_labels = None
        print(f"{path} has no labels of test images: the scores that need them are left out")
    else:
        if len(labelled(test_labels)[0].unique()) == 1:
            print(f"{path}: all test images are of one class, so accuracy, NMI and ARI say nothing")
        counts = labelled(torch.cat([labels, test_labels]))[0].bincount()
        share = float(counts.max() / counts.sum())
        if share * (counts > 0).sum() > 1.5:
            print(f"{path}: the largest class has {share:.0%} of the images; an accuracy means "
                  "something above that")
    return Data(Path(path).name, images, labels, test, test_labels)


def shuffled(images, labels):
    """Both in a random order, the same each time; images in place: a copy may find no room."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    places = order.tolist()
    for i, place in enumerate(places):
        while place < i:                              # an earlier swap has moved it on
            place = places[place]
        kept = images[i].clone()
        images[i] = images[place]
        images[place] = kept
    return images, labels[order]


def own_images(path, key, images):
    """`images` as uint8 (N, C, H, W), where it is certain what is meant: whole numbers from 0 to
    255, floats from 0 to 1, booleans; one channel left out, or one to three channels last."""
    with blaming(f"--data {path}: `{key}`", "two images or more, (N, C, H, W), uint8 or floats "
                 "from 0 to 1: take x / 255 of floats to 255, (x + 1) / 2 of -1 to 1, 255 * x of "
                 "whole 0 and 1, x.permute(0, 3, 1, 2) of channels last"):
        what = described(images)
        if images.ndim == 3:
            images = images[:, None]
        dense = images.layout == torch.strided and not images.is_complex()
        if images.ndim != 4 or len(images) < 2 or not dense or not images.numel():
            raise ValueError(what)
        if images.shape[1] > 4 and images.shape[3] < 4:             # no image is so narrow
            images = images.permute(0, 3, 1, 2)
        if images.dtype == torch.bool:
            images = images.byte() * 255
        elif not images.is_floating_point() and images.dtype != torch.uint8:
            images = images.long()                    # torch takes no minimum of uint16
        low, high = images.min().item(), images.max().item()
        if images.is_floating_point():
            fits = low >= -1e-3 and high <= 1 + 1e-3
            exact, images = images, torch.empty(images.shape, dtype=torch.uint8)
            for part, whole in zip(exact.split(100), images.split(100)):
                whole.copy_((255 * part.clamp(0, 1)).round())       # not all at once
        else:
            fits = low >= 0 and high <= 255 and high != 1           # 0 and 1 would be all but black
        _, c, h, w = images.shape
        if not fits or (c > 4 and (w == 4 or c == h != w)):         # channels last, it seems
            raise ValueError(f"{what} from {low:g} to {high:g}")
        images = images.byte()
        brightest = int(images.max())
        if brightest <= 16:
            print(f"--data {path}: `{key}` are all but black, at most {brightest} of 255; "
                  "if that is white, take x * (255 / white)")
        return images


def own_labels(path, key, labels, count):
    """Labels as int64 (count,); taken are lists and tensors of whole numbers, -1 for no label, as a
    column too, one-hot rows, and None for no labels at all."""
    if labels is None:
        return torch.full((count,), -1)
    with blaming(f"--data {path}: the labels of `{key}`",
                 f"a whole number from 0 on, or -1 for none, for each of {count} images"):
        found = torch.as_tensor(labels)
        if len(found) != count or found.ndim > 2 or found.is_complex():
            raise ValueError(described(found))
        whole = found.long()
        if found.ndim == 2 and found.shape[1] > 1:    # one-hot rows, or nothing
            whole = whole.argmax(1)
            found = torch.where(F.one_hot(whole, found.shape[1]).eq(found).all(1), whole, math.nan)
        whole, found = whole.flatten(), found.flatten().double()
        wrong = ((whole != found) | (whole < -1)).nonzero()
        if len(wrong):
            raise ValueError(f"{found[wrong[0, 0]]:g} at {int(wrong[0, 0])}")
        return whole


# ---------------------------------------------------------------- drawn digits

# A line is a digit, "/" parts the ways to write it, "|" the strokes: points xy on a 10 x 10 grid.
STROKES = """\
40 21 13 16 28 49 68 76 73 61 40
50 59 / 22 50|50 59 / 21 50|50 59|29 79
12 40 71 63 36 19|19 79 / 12 40 71 64 37 19 28 48 79
11 40 72 54 44|44 65 77 59 28 17 / 11 71|71 44|44 66 77 59 18
50 16|16 86|60 69 / 20 15|15 75|72 69
71 20|20 14|14 44 75 67 49 18 / 71 20|20 24 54 76 58 29 18
60 23 16 28 49 77 65 45 17 / 50 14 17 49 77 55 16
11 71|71 39 / 11 71|71 39|35 75 / 22 11|11 71|71 54 49
71 40 12 34 65 77 49 17 25 53 71 / 50 22 44 66 49 27 44 62 50
71 40 12 34 63 71|71 69 / 71 40 13 34 62 71|71 66 49 28"""


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
    for digit, line in enumerate(STROKES.splitlines()):
        for way in line.split("/"):
            strokes = [torch.tensor([[float(x), float(y)] for x, y in part.split()])
                       for part in way.split("|")]
            length = [spline(stroke, 2)[1] for stroke in strokes]
            ends = [round(points * sum(length[:i]) / sum(length)) for i in range(len(length) + 1)]
            path = torch.cat([spline(stroke, end - begin)[0]        # points in proportion to length
                              for stroke, begin, end in zip(strokes, ends, ends[1:])])
            paths.append((path - (path.amin(0) + path.amax(0)) / 2) / 9)
            classes.append(digit)
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
    """The column for each row of counts (R, K), one-to-one, that maximises the sum; int64 (R,), -1
    where R > K leaves a row without one. Exact: row by row along the shortest augmenting
    path (the Hungarian method, Kuhn 1955), which is found by Bellman's and Ford's relaxation."""
    rows, real = profit.shape
    columns = max(rows, real)                          # the ones beside the real are worth nothing
    cost = -F.pad(profit.double(), (0, columns - real))
    match = torch.full((rows,), -1)
    for start in range(rows):
        taken = match[:start]                          # the columns of the rows before
        distance = cost[start].clone()                 # from this row to each column
        parent = torch.full((columns,), start)         # the row before a column on the way
        for _ in range(start):                         # by a taken column, its row, and on from it
            detour = (distance - cost[:start])[torch.arange(start), taken]
            step, row = (detour[:, None] + cost[:start]).min(0)
            nearer = step < distance
            distance[nearer] = step[nearer]
            parent[nearer] = row[nearer]
        distance[taken] = math.inf
        column = int(distance.argmin())                # the nearest that is free
        while column >= 0:                             # shift the matching along the path
            row = parent[column].item()
            before = match[row].item()
            match[row] = column
            column = before
    return torch.where(match < real, match, -1)


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
    """Accuracy under the best one-to-one matching, the share of the largest class, as one cluster
    for all has, NMI (arithmetic mean), ARI (Hubert and Arabie 1985) and the confusion table
    [cluster][class] of two int64 vectors (N,)."""
    table = contingency(clusters, labels).cpu()
    n, counts = len(labels), table.double()
    match = assignment(table)
    accuracy = float(counts[match >= 0, match[match >= 0]].sum()) / n
    entropies = sum(torch.special.entr(counts.sum(axis) / n).sum() for axis in (1, 0))
    nmi = float(2 * discrete_information(counts) / entropies) if entropies > 0 else 1.0

    def pairs(c):
        return (c * (c - 1) / 2).sum()
    together, in_clusters, in_classes = pairs(counts), pairs(counts.sum(1)), pairs(counts.sum(0))
    expected, most = in_clusters * in_classes / (n * (n - 1) / 2), (in_clusters + in_classes) / 2
    ari = float((together - expected) / (most - expected)) if most != expected else 1.0
    return {"accuracy": accuracy, "largest_class": float(counts.sum(0).max()) / n, "nmi": nmi,
            "ari": ari, "confusion": table.tolist()}


def frechet_distance(a, b):
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of Gaussians fitted to features (N, D) and
    (M, D) (Heusel et al. 2017); NaN where they are no more than D. On the CPU: MPS has no
    float64."""
    if min(len(a), len(b)) <= a.shape[1]:
        return math.nan                                # a covariance of so few is singular
    a, b = a.cpu().double(), b.cpu().double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    means = (a.mean(0) - b.mean(0)).square().sum()
    return float(means + cov_a.trace() + cov_b.trace() - 2 * cross)


@torch.no_grad()
def encoding_scores(z, labels, test_z, test_labels):
    """How well z (N, n) of training images tell the class of test images, by their labels, which no
    GAN has seen: `knn_accuracy`, a vote of the 5 nearest in Euclidean distance (a tie goes to the
    smaller class), and `probe_accuracy`, logistic regression with weight decay 1e-4, by L-BFGS."""
    classes = int(torch.cat([labels, test_labels]).max()) + 1
    square = z.square().sum(1)
    votes = []
    for part in test_z.split(250):
        nearest = (2 * part @ z.T - square).topk(min(5, len(z))).indices        # by -distance^2
        votes.append(F.one_hot(labels[nearest], classes).sum(1).argmax(1))
    knn = (torch.cat(votes) == test_labels).float().mean()
    weight = torch.zeros(z.shape[1], classes, device=z.device, requires_grad=True)
    bias = torch.zeros(classes, device=z.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    @torch.enable_grad()
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(z @ weight + bias, labels) + 1e-4 * weight.square().sum()
        loss.backward()
        return loss
    optimizer.step(closure)
    probe = ((test_z @ weight + bias).argmax(1) == test_labels).float().mean()
    return {"knn_accuracy": float(knn), "probe_accuracy": float(probe)}


def gaussian_mixture(points, count):
    """A mixture of `count` Gaussians fitted to points (N, D) by k-means and then expectation
    maximisation: weights (count,), means (count, D) and the Cholesky factors of their covariances
    (count, D, D). The same each time; torch's random state stays as it was."""
    points = points.float() if points.is_cuda else points.float().cpu()         # MPS may lack these
    means = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:count]]
    for _ in range(10):
        members = F.one_hot(torch.cdist(points, means).argmin(1), count).float()        # (N, count)
        means = members.T @ points / members.sum(0).clamp(min=1)[:, None]
    for _ in range(12):
        sizes = members.sum(0).clamp(min=1e-6)
        means = members.T @ points / sizes[:, None]
        squares = torch.stack([(points * part[:, None]).T @ points for part in members.T])
        covariances = squares / sizes[:, None, None] - means[:, :, None] * means[:, None]
        ridge = 1e-3 * torch.eye(points.shape[1], device=points.device)
        roots = torch.linalg.cholesky(covariances + ridge)
        whiten = torch.linalg.inv(roots)
        constant = sizes.log() - roots.diagonal(dim1=1, dim2=2).log().sum(1)
        likely = []
        for part in points.split(1000):
            white = whiten @ part.T - whiten @ means[:, :, None]    # (count, D, .)
            likely.append(constant - white.square().sum(1).T / 2)
        members = torch.cat(likely).softmax(1)
    return sizes / sizes.sum(), means, roots


class Judge(nn.Module):
    """A small classifier that scores generated images; it never trains a GAN.

    Images (N, C, H, W) in [0, 1] to logits; `features` gives the (N, 64) that the Frechet distance
    is taken in. `task` is what it learns: "classes", the labels, or where there are none
    "orientation", by which of four flips an image was turned (none, left-right, upside down, both).
    """
    FLIPS = ((), (3,), (2,), (2, 3))

    def __init__(self, shape, classes, task="classes"):
        super().__init__()
        c, h, w = shape
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
        """The judge of this data set, on its device in eval mode: three epochs of Adam over the
        training images, on the CPU, from seed 0. torch's random state stays as it was."""
        if task is None:
            known = 0 if data.labels is None else int((data.labels >= 0).sum())
            task = "orientation" if known < 2 else "classes"
        images, labels, classes = data.images.cpu(), None, len(cls.FLIPS)
        if task == "classes":
            images, labels = labelled(images, data.labels.cpu())
            classes = int(torch.cat([data.labels, data.test_labels]).max()) + 1
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            judge = cls(data.shape, classes, task)
            judge.fit(images, labels)
        return judge.to(data.images.device).eval().requires_grad_(False)

    def turned(self, images, generator=None):
        """Images each under one of FLIPS, and which, (N,)."""
        labels = torch.randint(len(self.FLIPS), (len(images),), generator=generator)
        labels = labels.to(images.device)
        images = images.clone()
        for label, axes in enumerate(self.FLIPS):
            images[labels == label] = images[labels == label].flip(axes)
        return images, labels

    def fit(self, images, labels, epochs=3):
        """Train on uint8 images (N, C, H, W) to tell labels (N,), or without them the flips."""
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
                F.cross_entropy(self(floats(real)), answer).backward()
                optimizer.step()
                schedule.step()

    def scores(self, data, model, latent):
        """`frechet`, of the samples that the model decodes from latents (N, .) to the test images;
        `frechet_floor`, of training images to them; as many of each as there are of all three, and
        both NaN where the judge all but guesses; `judge_task`; `judge_accuracy`, on test images."""
        n = min(len(latent), len(data.images), len(data.test_images))
        samples = in_batches(lambda part: self.features(model.decode(part)), latent[:n],
                             batch_for(model.shape))
        test = in_batches(self.features, data.test_images[:n])
        floor = in_batches(self.features, data.images[:n])
        if self.task == "orientation":
            images, labels = self.turned(data.test_images, torch.Generator().manual_seed(0))
        else:
            images, labels = labelled(data.test_images, data.test_labels)
        right = float((in_batches(self, images).argmax(1) == labels).float().mean())
        distances = [frechet_distance(part, test) for part in (samples, floor)]
        if right < 1.2 * float(labels.bincount().max()) / len(labels):
            distances = [math.nan, math.nan]           # the features of one that guesses
        return {"frechet": distances[0], "frechet_floor": distances[1], "judge_task": self.task,
                "judge_accuracy": right}


# ---------------------------------------------------------------- pictures and page

def grid(images, columns, scale=None, border=1):
    """Images (N, C, H, W) in [0, 1] as one uint8 picture (height, width, 1 or 3), row by row; a
    pixel is `scale` pixels wide, by default 2 for images of up to 32 pixels and 1 beyond. Of 2
    channels the first is shown, of 4 or more the first three."""
    scale = scale or (2 if max(images.shape[2:]) <= 32 else 1)
    images = images[:, :3] if images.shape[1] >= 3 else images[:, :1]
    pixels = (images.cpu().clamp(0, 1) * 255).round().byte()
    missing = -len(images) % columns
    pixels = F.pad(F.pad(pixels, [border] * 4, value=64), (0, 0, 0, 0, 0, 0, 0, missing), value=64)
    _, c, h, w = pixels.shape
    picture = pixels.view(-1, columns, c, h, w).permute(0, 3, 1, 4, 2).reshape(-1, columns * w, c)
    return picture.repeat_interleave(scale, 0).repeat_interleave(scale, 1)


def sheet(images, columns):
    """Images (N, C, H, W) in [0, 1] as the picture of a Figure with sliders: without borders, and
    averaged down where they have more than two million numbers."""
    factor = math.ceil((images.numel() / 2e6) ** 0.5)
    return grid(F.avg_pool2d(images, factor), columns, scale=1, border=0)


def save_grid(images: Tensor | list[Tensor], path: str | Path, columns: int = 10) -> None:
    """Write images, uint8 or in [0, 1]: (N, C, H, W) to one PNG, `columns` to a row; (C, H, W) to
    one as it is; (N, C, H, W) to one each where `path` is no picture's but a folder. InputError."""
    if isinstance(images, (list, tuple)) and all(map(torch.is_tensor, images)):
        alike = len({image.shape for image in images}) == 1
        images = torch.stack(images) if alike else images
    known = torch.is_tensor(images) and images.ndim in (3, 4) and images.numel() > 0
    if not known or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise InputError(f"images are {described(images)}; expected (N, C, H, W) or (C, H, W), all "
                         "of one size, uint8 or float")
    if images.is_floating_point():
        refuse_outside(images)
    images, path = floats(images), Path(path)
    others = (".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff")
    if columns < 1 or path.suffix.lower() in others:
        raise InputError(f"{path} in {columns} columns; expected a .png or a folder, and 1 or more")
    if images.ndim == 3:
        write_file(path, png(grid(images[None], 1, scale=1, border=0)))
    elif path.suffix.lower() == ".png" or path.is_file():
        write_file(path, png(grid(images, columns)))
    else:
        path.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(images):
            save_grid(image, path / f"{i:05}.png")


def raw_bytes(tensor):
    """The memory of a tensor as bytes (what numpy's tobytes would give)."""
    tensor = tensor.cpu().contiguous()
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def png(picture):
    """A uint8 picture (H, W, 1 or 3) as the bytes of a PNG (W3C PNG, 3rd edition)."""
    def chunk(kind, body):
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    h, w, c = picture.shape
    header = struct.pack(">IIBBBBB", w, h, 8, 2 if c == 3 else 0, 0, 0, 0)
    rows = zlib.compress(raw_bytes(F.pad(picture.flatten(1), (1, 0))))          # filter 0, pixels
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows)
            + chunk(b"IEND", b""))


class Figure(NamedTuple):
    """A picture of a run's page: uint8 (H, W, 1 or 3), its caption, labels of its rows and columns.
    With `sliders`, name -> values, it is a sheet of cells of which the page shows one: a cell for
    each choice of values, the last slider's side by side."""
    picture: Tensor
    caption: str
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    sliders: dict | None = None


# What a page says of a score, the first first: its name, and what it means and what is good.
MEANINGS = {
    "accuracy": ("Classes found", "share of real test images that Q puts into the category of "
                 "their class, one category a class; it says nothing of samples. MNIST: 0.99"),
    "frechet": ("Fréchet distance", "of samples to test images, less is better; that of training "
                "images is the floor below. MNIST, by default: InfoGAN 0.37, O-GAN 0.24"),
    "frechet_floor": ("its floor", "of as many training images to the test images"),
    "agreement": ("Class kept", "share of test images whose reconstruction the judge takes for the "
                  "same class. MNIST: 0.99; chance 0.1"),
    "reconstruction_error": ("Reconstruction error", "over that of the mean image; 0 is perfect, 1 "
                             "no better than one image for all. MNIST: 0.11"),
    "knn_accuracy": ("Class by neighbours", "accuracy of the 5 nearest codes. MNIST: 0.976"),
    "rho": ("rho", "correlation of z and E(G(z)), at most 1. MNIST: 0.87"),
    "mi_categorical": ("L_I of categories", "nats of each that can be read from a sample; at most "
                       "its entropy, ln 10 = 2.30 for ten"),
    "mi_continuous": ("L_I of continuous codes", "nats, no ceiling; 0: no better than a guess. "
                      "MNIST: 1.4"),
    "nmi": ("NMI", "of categories and classes, 0 to 1"), "ari": ("ARI", "the same, by pairs"),
    "probe_accuracy": ("Class by a linear probe", "of the codes. MNIST: 0.87"),
}

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font: 15px/1.4 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 1em }}
section {{ display: flex; flex-wrap: wrap; gap: 1.2em; align-items: start }}
figure {{ margin: 0; max-width: min(100%, 570px) }} td {{ text-align: right }}
img {{ max-width: 100%; image-rendering: pixelated }} td {{ overflow-wrap: anywhere }}
svg {{ width: min(480px, 100%); font-size: 12px }}
th {{ text-align: left; font-weight: normal; color: #555; padding-right: 1em }}
.what td {{ overflow-wrap: normal }}
.what td + td {{ text-align: left; color: #555; padding-left: 1em }}
.grid {{ display: grid; grid-template-columns: auto auto; font-size: 11px }}
.rows, .columns {{ display: flex; justify-content: space-around }}
.rows {{ flex-direction: column; text-align: right; padding-right: 4px }}
.columns {{ grid-column: 2 }} .cell {{ overflow: hidden }} .cell img {{ max-width: none }}
label {{ display: block }}
</style><h1>{title}</h1>
<h2>Scores</h2>{scores}
<h2>Pictures</h2><section>{figures}</section>
<h2>Over training</h2><section>{curves}</section>
<h2>All numbers</h2>{numbers}
<h2>Configuration</h2>{configuration}
{script}</html>
"""

SCRIPT = """<script>
for (const sheet of document.querySelectorAll(".sheet")) {
  const sliders = [...sheet.querySelectorAll("input")], image = sheet.querySelector("img");
  const show = () => {
    let cell = 0;
    for (const slider of sliders) {
      cell = cell * (Number(slider.max) + 1) + Number(slider.value);
      slider.nextElementSibling.textContent = JSON.parse(slider.dataset.values)[slider.value];
    }
    const columns = Number(sliders.at(-1).max) + 1, {width, height} = sheet.dataset;
    image.style.marginLeft = -width * (cell % columns) + "px";
    image.style.marginTop = -height * Math.floor(cell / columns) + "px";
  };
  sliders.forEach(slider => slider.addEventListener("input", show));
  show();
}
</script>
"""
COLOURS = ["#1f5fbf", "#d9480f", "#2b8a3e", "#862e9c", "#5c3d00", "#087f8c", "#c2255c", "#495057"]


def chart(lines):
    """An inline SVG of lines, name -> [(epoch, value), ..], with axes, ticks and a legend."""
    xs, ys = zip(*(point for points in lines.values() for point in points))
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)

    def place(x, y):
        return (f"{50 + 260 * (x - left) / ((right - left) or 1):.1f},"
                f"{170 - 150 * (y - low) / ((high - low) or 1):.1f}")

    parts = ['<path d="M46 16V174H314" fill="none" stroke="#888"/>']
    for value in (low, (low + high) / 2, high):
        x, y = place(left, value).split(",")
        parts.append(f'<text x="42" y="{float(y) + 4:.0f}" text-anchor="end">{value:.3g}</text>'
                     f'<path d="M46 {y}H310" stroke="#eee"/>')
    for value, anchor in ((left, "start"), (right, "end")):
        parts.append(f'<text x="{place(value, low).split(",")[0]}" y="190" text-anchor="{anchor}">'
                     f"epoch {value:g}</text>")
    for i, (name, points) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        dots = " ".join(place(x, y) for x, y in points)
        parts.append(f'<polyline points="{dots}" fill="none" stroke="{colour}" stroke-width="2" '
                     f'aria-label="{html.escape(name)}"/><text x="322" y="{24 + 17 * i}" '
                     f'fill="{colour}">{html.escape(name)} {points[-1][1]:.4g}</text>')
    return f'<svg viewBox="0 0 480 200" role="img">{"".join(parts)}</svg>'


def course(history, name):
    """A score over a run's lines, [(epoch, value), ..]; empty where fewer than two have it."""
    points = [(line["epoch"], line[name]) for line in history if isinstance(line.get(name), float)]
    return points if len(points) > 1 else []


def charts(history):
    """The curves of a run's lines: scores before losses, alike ones in one chart."""
    losses = [name for name in dict.fromkeys(itertools.chain(*history)) if name.startswith("loss_")]
    groups = [["accuracy", "nmi", "ari"], ["rho", "reconstruction_error"], losses,
              ["d_real", "d_fake"], ["e_real", "e_fake"], ["avg_real", "std_real"]]
    drawn = ""
    for group in groups:
        courses = {name: course(history, name) for name in group}
        lines = {name: points for name, points in courses.items() if points}
        drawn += chart(lines) if lines else ""
    return drawn


def table(items):
    """An HTML table of a dict; a list of lists, as the confusion is, becomes one in its turn."""
    rows = ""
    for key, value in items.items():
        shown = f"{value:.4g}" if isinstance(value, float) else html.escape(json.dumps(value))
        if isinstance(value, list) and value and isinstance(value[0], list):
            lines = ["<tr><td>" + "<td>".join(map(str, line)) for line in value]
            shown = f"<table>{''.join(lines)}</table>"
        rows += f"<tr><th>{html.escape(key)}<td>{shown}"
    return f"<table>{rows}</table>"


def explained(scores):
    """The scores that have one of MEANINGS as an HTML table: name, value, what is good."""
    rows = ""
    for key, (name, meaning) in MEANINGS.items():
        values = scores.get(key)
        values = values if isinstance(values, list) else [values]
        if key in scores and values:
            shown = ", ".join("-" if value is None else f"{value:.4g}" for value in values)
            rows += f'<tr title="{key}"><th>{name}<td>{shown}<td>{html.escape(meaning)}'
    return f'<table class="what">{rows}</table>'


def shown(name, image, figure):
    """A Figure, of which `image` is the PNG, as HTML."""
    source = "data:image/png;base64," + base64.b64encode(image).decode()
    if figure.sliders is None:
        rows, columns = ("".join(f"<span>{html.escape(text)}</span>" for text in labels)
                         for labels in (figure.rows, figure.columns))
        return (f'<figure><div class="grid"><div class="rows">{rows}</div><img alt="{name}" '
                f'src="{source}"><div class="columns">{columns}</div></div>'
                f"<figcaption><b>{name}.png</b> {figure.caption}</figcaption></figure>")
    sizes = [len(values) for values in figure.sliders.values()]
    height = figure.picture.shape[0] * sizes[-1] // math.prod(sizes)
    width = figure.picture.shape[1] // sizes[-1]
    zoom = max(1, 224 // max(height, width))
    inputs = ""
    for label, values in figure.sliders.items():
        last = len(values) - 1
        inputs += (f'<label>{html.escape(label)} <input type="range" max="{last}" '
                   f'value="{last // 2}" data-values="{html.escape(json.dumps(values))}"> '
                   "<output></output></label>")
    width, height = width * zoom, height * zoom
    return (f'<figure class="sheet" data-width="{width}" data-height="{height}"><div class="cell" '
            f'style="width:{width}px;height:{height}px"><img alt="{name}" src="{source}" '
            f'style="width:{width * sizes[-1]}px"></div>{inputs}'
            f"<figcaption>{figure.caption}</figcaption></figure>")


def page(title, figures, history, configuration):
    """A run as one self-contained HTML page; figures are name -> (PNG bytes, Figure), history the
    lines of metrics.jsonl."""
    drawn = [shown(name, image, figure) for name, (image, figure) in figures.items()]
    scores = history[-1] if history else {}
    sheets = any(figure.sliders for _, figure in figures.values())
    return PAGE.format(title=html.escape(title), scores=explained(scores), figures="".join(drawn),
                       curves=charts(history), numbers=table(scores),
                       configuration=table(configuration), script=SCRIPT if sheets else "")


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
    epochs: int = option(-1, "epochs in all; -1: as many as make --updates; 0 only evaluates",
                         low=-1)
    updates: int = option(1_900, "about so many training steps, where --epochs is not given", low=1)
    batch_size: int = option(128, "images in a training step", low=2)
    seed: int = option(0, "seed of everything random", high=2**63 - 1)
    width: int = option(32, "channels of the first convolution; the others scale with it", low=1)
    device: str = option("auto", "auto (CUDA, else CPU), cpu, cuda, cuda:1, mps")
    threads: int = option(0, "processor threads; 0: as many as torch takes by itself")
    precision: str = option(
        "auto", "of the forward passes in training: fp32, bf16, or auto: bf16 where the processor "
        "has instructions for it", choices=["auto", "fp32", "bf16"])
    data: str = option("auto", "auto (mnist, else digits), mnist, fashion, digits (drawn), FILE.pt "
                       "or a folder of IDX files")
    data_root: str = option("data", "folder where data files are looked for and downloaded to")
    limit: int = option(0, "train on the first so many images only, for a quick look; 0: on all")
    out: str = option("", "run folder; empty: runs/<method>-<next free number>")
    samples: int = option(10_000, "fresh samples to score; never more than training images", low=2)
    from_: str = option("", "run folder or saved model to begin from: its weights, as far as they "
                        "fit, and on the command line its options where no flag says otherwise")
    resume: str = option("", "run folder to go on with, under its own options, up to --epochs")

    METHOD, PAPER = "", {}
    MAY_CHANGE = ("resume", "epochs", "device", "threads", "data", "data_root",
                  "samples")                           # by --resume

    @classmethod
    def paper(cls, **changes):
        """The options as published (--recipe paper), with `changes`."""
        epochs = {"epochs": -1} if "updates" in changes else {}
        return cls(**(cls.PAPER | epochs | changes))

    @classmethod
    def resumed(cls, resume, **changes):
        """The options of a run folder (or its checkpoint.pt), to go on with it, with `changes`: the
        epochs in all, the device, data or samples."""
        for name in changes:
            if name not in cls.MAY_CHANGE:
                raise InputError(f"{flag_of(name)} cannot change in a resumed run")
        with blaming(resume, f"a run of this {cls.METHOD}.py"):
            state = read_checkpoint(resume, cls.METHOD)
            if "config" not in state:
                raise InputError(f"{resume} is a model, not a run; to begin one: --from {resume}")
            saved = state["config"]
            config = cls(**(saved | changes | {"resume": str(resume)}))
        for f in fields(cls):
            if f.name not in saved:
                print(f"{resume} is from before {flag_of(f.name)}; it goes on with "
                      f"{getattr(config, f.name)!r}", file=sys.stderr)
        return config

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            low, high, choices = (f.metadata[key] for key in ("low", "high", "choices"))
            kind = type(f.metadata["default"])
            if type(value) is not kind and (kind, type(value)) != (float, int):
                raise InputError(f"{flag_of(f.name)} is {value!r}; expected {kind.__name__}")
            if choices and value not in choices:
                raise InputError(f"{flag_of(f.name)} is {value}; choose from {', '.join(choices)}")
            for number in value if kind is list else [value]:
                if kind is list and type(number) is not int:
                    raise InputError(f"{flag_of(f.name)} holds {number!r}; expected whole numbers")
                if kind is not str and not low <= number <= high:
                    raise InputError(f"{flag_of(f.name)} is {number}; expected {low} to {high}")
            if kind is str and value.startswith("~"):
                setattr(self, f.name, os.path.expanduser(value))

    def arguments(self, function):
        """The options that a function or class takes, name -> value."""
        names = inspect.signature(function).parameters
        return {name: value for name, value in vars(self).items() if name in names}


def flag_of(name):
    return "--" + name.strip("_").replace("_", "-")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(f"{message} (see {self.prog} --help)")


def parse(Config, description, argv=None):
    """The command line as a Config."""
    parser = Parser(description=description.strip().splitlines()[0], allow_abbrev=False,
                    argument_default=argparse.SUPPRESS)
    parser.add_argument("--recipe", choices=["best", "paper"],
                        help="where the defaults of the others come from: best (reliable) or paper "
                        "(as published) (default: best)")
    for f in fields(Config):
        default, choices = f.metadata["default"], f.metadata["choices"]
        text = f"{f.metadata['help']} (default: {default!r}"
        text += f"; paper: {Config.PAPER[f.name]!r})" if f.name in Config.PAPER else ")"
        kind = {"type": type(default), "choices": choices}
        if isinstance(default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        elif isinstance(default, list):
            kind = {"nargs": "*", "type": int, "metavar": "K"}
        elif not choices:
            kind["metavar"] = type(default).__name__.upper()
        parser.add_argument(flag_of(f.name), dest=f.name, help=text, **kind)
    found, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = ["--recipe", *(flag_of(f.name) for f in fields(Config))]
        meant = [flag for flag in flags if flag.startswith(unknown[0]) and len(unknown[0]) > 2]
        meant = meant or difflib.get_close_matches(unknown[0], flags)
        hint = f"; did you mean {' or '.join(meant)}?" if meant else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    given = vars(found)
    if given.get("resume"):
        return Config.resumed(**given)
    make = Config.paper if given.pop("recipe", "best") == "paper" else Config
    if given.get("from_"):
        options = read_checkpoint(given["from_"], Config.METHOD)["options"]
        given = {f.name: options[f.name] for f in fields(Config) if f.name in options} | given
    return make(**given)


def command_line(train, Config, description, argv=None):
    """Parse and train. Bad input ends as one line on stderr and status 2, an interrupted run as one
    line and status 130."""
    for stream in (sys.stdout, sys.stderr):            # a path may hold letters that it cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        train(parse(Config, description, argv))
        return
    except InputError as error:
        why, status = str(error), 2
    except KeyboardInterrupt:
        why, status = "stopped; --resume RUN goes on from its last finished epoch, if any", 130
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        why, status = "out of memory; lower --batch-size or --width, or take smaller images", 2
    except OSError as error:
        if error.filename is not None:                 # not that of standard output
            raise
        sys.stdout = None
        why, status = f"cannot print: {error.strerror}; --resume RUN goes on", 2
    if sys.stdout is not None and sys.stdout.isatty():
        print("\r\033[K", end="", flush=True)           # in place of the line of progress
    print(f"{Config.METHOD}.py: {why}", file=sys.stderr)
    raise SystemExit(status)


def out_of_memory(error):
    said = re.search("out of memory|(allocate|enough) memory", str(error))
    return isinstance(error, MemoryError) or said is not None


def pick_device(name):
    """torch.device for `auto` (CUDA or CPU: on MPS nothing here has been run), `cpu`, `cuda`,
    `cuda:1` or `mps`; InputError if it is not there."""
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
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") else "fp32"


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
    for kernel launches otherwise. The first steps run as they are, on a stream of their own, as
    capture wants; then one is recorded, and replayed from there on. Python numbers in the step,
    such as a learning rate, are frozen into it; random numbers are new in each replay.
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


# ---------------------------------------------------------------- files

def write_file(path, content):
    """Write bytes, text or what torch.save takes so that the name only ever holds a whole file:
    beside it, under a name of its own, to the disk, then renamed. InputError if that fails."""
    part = Path(f"{path}.{secrets.token_hex(4)}.part")
    if isinstance(content, str):
        content = content.encode()
    elif not isinstance(content, bytes):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        content = buffer.getvalue()
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise InputError(f"{path} cannot be written: {error.strerror}; what it held before is "
                         "kept; see to folder and disk, then go on (a run with --resume)") from None


def safe_load(path):
    """torch.load on the CPU of tensors and plain values only: no code in the file runs. Its
    checksums are compared, which torch.load leaves out."""
    with zipfile.ZipFile(path) as archive:
        if archive.testzip():
            raise zipfile.BadZipFile
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected pickle protocol")   # refused anyway
        return torch.load(path, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def blaming(path, what):
    """A context that reads a file and uses its contents: whatever is wrong with them becomes an
    InputError that says what was expected."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected {what}") from None
    except Exception as error:
        if isinstance(error, InputError) or out_of_memory(error):
            raise
        why = " ".join(f"{type(error).__name__}: {error}".split())
        code = re.search(r"GLOBAL (\S+)", why)         # torch's advice is to let it run
        why = f"it holds a {code[1]}" if code else why[:200]
        if isinstance(error, zipfile.BadZipFile):
            why = "not the whole zip file that torch writes since 1.6"
        raise InputError(f"{path}: expected {what}; it is damaged, of another version or something "
                         f"else ({why})") from None


def read_checkpoint(path, *methods):
    """The dict in a saved model, checkpoint.pt or run folder of one of these methods, or
    InputError."""
    path = Path(path).expanduser()
    path = path / "checkpoint.pt" if path.is_dir() else path
    scripts = " or ".join(f"{method}.py" for method in methods)
    with blaming(path, f"a run folder or saved model of {scripts}"):
        state = safe_load(path)
        if state["method"] not in methods:
            raise ValueError(f"{state['method']}.py's")
        if not {"options", "model"} <= state.keys():
            raise ValueError("no model in it")
        return state


def refuse_taken(out):
    """InputError if something is there already that a new run must not touch."""
    if os.path.isfile(out) or os.path.isdir(out) and os.listdir(out):
        go_on = f", or go on: --resume {out}" if os.path.isfile(f"{out}/checkpoint.pt") else ""
        raise InputError(f"--out {out} exists already; choose another{go_on}")


def new_folder(method, out):
    """Make and return the run folder: `out`, or the next free number in runs/."""
    refuse_taken(out)
    for number in itertools.count(1):
        folder = Path(out or f"runs/{method}-{number}")
        try:
            folder.mkdir(parents=True, exist_ok=bool(out))
            return folder
        except OSError as error:
            if out or not os.path.lexists(folder):
                raise InputError(f"--out {folder} cannot be made: {error.strerror}") from None


# ---------------------------------------------------------------- several processes (torchrun)

def processes():
    """(rank, number) of the processes that torchrun started; (0, 1) without it."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def join(device):
    """This process' device among those that torchrun started, of which the first alone prints;
    without torchrun the device as it is."""
    if not dist.is_available() or not dist.is_torchelastic_launched():
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    if dist.get_rank():
        sys.stdout = io.StringIO()
    return device


def share(*tensors):
    """Give all processes the first one's tensors, in place."""
    if processes()[1] > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def average_gradients(optimizer, *_):
    """Replace each gradient by its mean over the processes, in one message; a step's hook."""
    weights = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    flat = torch.cat([p.grad.flatten() for p in weights]) / dist.get_world_size()
    dist.all_reduce(flat)
    for p, mean in zip(weights, flat.split([p.numel() for p in weights])):
        p.grad.copy_(mean.view_as(p))


# ---------------------------------------------------------------- the run

class Pace:
    """The line of a loop: when it is due, twice a second on a terminal and else after `quiet`
    seconds, and the loop's rate over the last minute."""

    def __init__(self, quiet):
        self.live = sys.stdout.isatty()
        self.interval = 0.5 if self.live else quiet
        self.marks = [(time.perf_counter(), 0)]        # when which step was shown

    def due(self, step, steps):
        """Whether to show that so many steps of all are done; on a terminal always the last."""
        now = time.perf_counter()
        if now - self.marks[-1][0] <= self.interval and not (self.live and step == steps):
            return False
        self.marks.append((now, step))
        while len(self.marks) > 2 and self.marks[1][0] < now - 60:
            self.marks.pop(0)
        before, first = self.marks[0]
        self.rate = (step - first) / (now - before)    # steps a second
        return True

    def left(self, steps):
        """The time that is left until so many are done, as a text."""
        seconds = (steps - self.marks[-1][1]) / self.rate
        return f"{seconds // 60:.0f}:{seconds % 60:02.0f} left"

    def show(self, line, end=""):
        """Print the line; on a terminal in place of the one before, and `end` behind it."""
        print(f"\r\033[K{line}" if self.live else line, end=end if self.live else "\n", flush=True)


class Run:
    """A run: its device, data and folder, and the loop around the training step.

        run = Run(config)                                   # run.config, run.device, run.data
        run.restore(model=model, average=average, d=d_optimizer, g=g_optimizer)
        for epoch in run.epochs():
            for real in run.batches():                      # (N, C, H, W) uint8
                run.log(training_step(..))                  # dict of 0-d tensors
            run.report(scores, figures)                     # values; everything is written here

    A checkpoint is a dict of parts, whatever has a state_dict, and is written with all other files
    by `report`, once the scores are there: a run that was stopped goes on from its last finished
    epoch, to the bit. Under torchrun each process takes its slice of every batch and has latents of
    its own, gradients are averaged before each optimiser's step; all score, the first alone writes.
    """
    QUIET = 60                                         # seconds without a line where no one watches

    def __init__(self, config):
        """Errors: InputError if device, data or folder cannot be had; nothing is written yet."""
        if not config.resume:
            refuse_taken(config.out)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.device = join(pick_device(config.device))
        if self.device.index is not None and self.device.type == "cuda":
            torch.cuda.set_device(self.device)         # where a CUDA graph will be captured
        self.rank, self.processes = processes()
        self.data = load_data(config.data, config.data_root)
        self.data.limit(config.limit)
        count = len(self.data.images)
        self.size = min(config.batch_size, count)
        if config.batch_size % self.processes or self.size < 2 * self.processes:
            raise InputError(f"{count} images, --batch-size {config.batch_size}: each of "
                             f"{self.processes} processes needs a like share, 2 or more")
        self.steps = count // self.size                # in an epoch
        epochs = config.epochs if config.epochs >= 0 else max(1, round(config.updates / self.steps))
        self.fingerprint = fingerprint(self.data)
        self.data.to(self.device)
        name = self.data.name
        if config.data not in (*SOURCES, "auto", "digits"):
            name = str(Path(config.data).resolve())
        precision = pick_precision(config.precision, self.device)
        self.config = replace(config, data=name, precision=precision, epochs=epochs)
        self.epoch = self.ended = 0                    # epochs reported, and ended by now
        self.history = []                              # the lines of metrics.jsonl
        self.means = None                              # of the epoch that is to be reported
        torch.manual_seed(config.seed)

    def restore(self, **parts):
        """Name the parts that a checkpoint keeps, `model` and `average` among them, and take up
        where the run in config.resume stood; or make a new folder. `new_weights` names those of the
        model that were not taken from config.from_."""
        self.parts = parts
        self.new_weights = [] if self.config.from_ else list(parts["model"].state_dict())
        method = self.config.METHOD
        self.folder = Path(self.config.out)
        if self.config.resume:
            path = Path(self.config.resume)
            self.folder = path.parent if path.is_file() else path
            if not (self.folder / "checkpoint.pt").exists() and path.is_file():
                raise InputError(f"--resume {path} does not lie in a run folder, where the run "
                                 "would go on; put it into a folder of its own as checkpoint.pt")
            with blaming(path, f"a run of this {method}.py"):
                self._take_up(read_checkpoint(path, method))
        elif self.config.from_:
            self.new_weights = parts["model"].take(self.config.from_)
            parts["average"].model.load_state_dict(parts["model"].state_dict())
        for part in parts.values() if self.processes > 1 else ():
            if isinstance(part, torch.optim.Optimizer):
                part.register_step_pre_hook(average_gradients)
        if self.rank:
            torch.manual_seed(self.config.seed + self.rank + 1000 * self.epoch)
            return
        if not self.config.resume:
            self.folder = new_folder(method, self.config.out)
        for part in self.folder.glob("*.????????.part"):           # left by a run that was killed
            part.unlink(missing_ok=True)
        weights = sum(p.numel() for p in parts["model"].parameters() if p.requires_grad)
        self.about = {"method": method, **asdict(self.config), "device": str(self.device),
                      "threads": torch.get_num_threads(), "processes": self.processes,
                      "torch": str(torch.__version__), "python": platform.python_version(),
                      "image_shape": list(self.data.shape), "parameters": weights}
        print(f"{method}: {len(self.data.images)} images of {self.data.name} {self.data.shape}, on "
              f"{self.device} in {self.config.precision}, into {self.folder}\n"
              f"{self.config.epochs} epochs of {self.steps} updates, "
              f"{self.config.epochs * self.steps} in all; the default is about "
              f"{type(self.config).updates}", flush=True)
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0
        threads, cores = self.about["threads"], os.cpu_count() or 1
        if threads > 1 and load + threads > cores + 0.5 and self.device.type == "cpu":
            print(f"other processes keep {load:.1f} of {cores} cores busy: --threads 1 may be "
                  "several times faster", flush=True)
        write_file(self.folder / "config.json", json.dumps(self.about, indent=2) + "\n")

    def _take_up(self, state):
        """Go on from a checkpoint; InputError if this run is another one."""
        for name, value in asdict(self.config).items():
            saved = state["config"].get(name, value)
            if value != saved and name not in (*self.config.MAY_CHANGE, "out"):
                raise InputError(f"{name} is {value}, but {saved} in {self.folder}; to go on with "
                                 f"it take Config.resumed({str(self.folder)!r})")
        if self.fingerprint != state["fingerprint"]:
            raise InputError(f"{self.folder} was trained on other images than {self.config.data} "
                             "holds now, or in another order, as by an older version; give the "
                             "old ones by --data, or begin a new run")
        if self.config.epochs < state["epoch"]:
            raise InputError(f"--epochs {self.config.epochs} is less than the {state['epoch']} "
                             f"that {self.folder} has done")
        for name, part in self.parts.items():
            load_state(part, state["parts"][name], self.device)
        self.epoch = self.ended = state["epoch"]
        self.history = state["history"]
        self.new_weights = state.get("new_weights", self.new_weights)
        if self.is_new:
            self.history = []                          # it was only scored
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], self.device)

    @property
    def is_new(self):
        """Whether nothing was trained yet, neither here nor in the run that is resumed."""
        return not any("seconds" in line for line in self.history)

    def epochs(self):
        """Yield 1-based epoch numbers up to --epochs, those that `batches` begins with."""
        while self.epoch < self.config.epochs:
            yield self.epoch + 1

    def batches(self):
        """Yield training batches (N, C, H, W) in uint8, shuffled: an epoch, or of few images as
        many epochs as make 100 updates; a last, partial batch is left out.
        Errors: InputError if a loss or a weight is no longer finite."""
        images = self.data.images
        part = self.size // self.processes
        epochs = min(math.ceil(100 / self.steps), self.config.epochs - self.epoch)
        steps = epochs * self.steps
        self.names, self.sums = [], 0
        began = time.perf_counter()
        pace = Pace(self.QUIET)
        for step in range(steps):
            if step % self.steps == 0:
                order = torch.randperm(len(images), device=self.device)
                share(order)
            first = step % self.steps * self.size + self.rank * part
            yield images[order[first:first + part]]
            if pace.due(step + 1, steps):
                self._show_progress(step + 1, steps, pace)
        means = self._means(steps)                     # waits for the device: the clock is honest
        seconds = time.perf_counter() - began
        self.means = means | {"seconds": seconds, "images_per_second": steps * self.size / seconds}
        self.ended = self.epoch + epochs

    def progress(self, what):
        """A function of (done, steps) that shows now and then how far a loop beside epochs is."""
        pace = Pace(self.QUIET)

        def show(done, steps):
            if pace.due(done, steps):
                end = "\n" if done == steps else ""
                pace.show(f"{what} {done / steps:4.0%}  {pace.left(steps)}", end)
        return show

    def log(self, values):
        """Add what a step returned, a dict of 0-d tensors; on their device until a report."""
        self.names = list(values)
        self.sums = torch.stack(list(values.values())) + self.sums

    def _means(self, steps):
        """name -> mean over so many logged steps; InputError if one, or a weight, is not finite."""
        means = dict(zip(self.names, (self.sums / steps).tolist())) if self.names else {}
        for name, value in (means | self.parts["model"].state_dict()).items():
            if not torch.as_tensor(value).isfinite().all():
                raise InputError(
                    f"{name} is no longer finite in epoch {self.epoch + 1}, by step {steps}; "
                    f"{self.folder}/checkpoint.pt is from before that; begin anew with lower "
                    "learning rates, or --precision fp32")
        return means

    def _show_progress(self, step, steps, pace):
        means = "  ".join(f"{name} {mean:.3f}" for name, mean in self._means(step).items())
        left = pace.left((self.config.epochs - self.epoch) * self.steps)
        epoch, done = divmod(step - 1, self.steps)
        pace.show(f"epoch {self.epoch + epoch + 1}/{self.config.epochs} "
                  f"{(done + 1) / self.steps:4.0%}  {means}  "
                  f"{pace.rate * self.size:.0f} images/s  {left}",
                  end=", scoring" if step == steps else "")

    def report(self, scores, figures, best=None):
        """Write all files of the run folder, and as best.pt, for `load`, the epoch in which the
        score named `best` was least; the metrics have its number, best_epoch.

        scores, a dict for JSON, join the line of the epoch that has ended; where none has, of the
        one before. figures are Figures by name, `samples` among them; those without sliders become
        files, and the samples of epochs 0, 1, 2, 4, 8 .. stay as files of their own.
        """
        scores = defined(scores)
        ended = self.means is not None
        first = self.epoch.bit_length() < self.ended.bit_length() or not self.history
        if ended:
            self.epoch = self.ended
            self.history.append({"epoch": self.epoch, "data": self.data.name, **self.means})
            self.means = None
        elif scores and not self.history:
            self.history.append({"epoch": 0, "data": self.data.name})
        if self.rank:
            return
        if scores:
            self.history[-1] |= scores
            for key in ("seed", "device", "precision", "threads", "torch", "parameters"):
                self.history[-1][key] = self.about[key]
        samples = {"method": self.config.METHOD, "options": self.parts["model"].options,
                   "model": self.parts["average"].model.state_dict()}
        scored = [line for line in self.history if line.get(best) is not None]
        if scored:
            least = min(scored, key=lambda line: line[best])
            if ended and least is self.history[-1]:
                write_file(self.folder / "best.pt", samples)
            self.history[-1]["best_epoch"] = least["epoch"]
        pictures = {name: (png(figure.picture), figure) for name, figure in figures.items()}
        for name, (image, figure) in pictures.items():
            if figure.sliders is None:
                write_file(self.folder / f"{name}.png", image)
        if first:                                                   # 0, 1, 2, 4, 8 .. or the next
            write_file(self.folder / f"samples-{self.epoch}.png", pictures["samples"][0])
        lines = [json.dumps(line) + "\n" for line in self.history]
        write_file(self.folder / "metrics.jsonl", "".join(lines))
        write_file(self.folder / "index.html", self._page(pictures))
        on_cuda = self.device.type == "cuda"
        write_file(self.folder / "checkpoint.pt", samples | {
            "config": asdict(self.config), "epoch": self.epoch, "history": self.history,
            "fingerprint": self.fingerprint, "new_weights": self.new_weights,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if on_cuda else None})
        if scores:
            clear = "\r\033[K" if ended and sys.stdout.isatty() else ""
            when = f"epoch {self.epoch}/{self.config.epochs}" if ended else "scores"
            print(f"{clear}{when}  {brief(self.history[-1] if ended else scores)}", flush=True)
        for key, value in scores.items():
            if value is None:
                print(f"{key} is not defined here: images too few, all alike, or a judge that "
                      "cannot tell them")

    def _page(self, pictures):
        early = [path for path in self.folder.glob("samples-*.png") if path.stem[8:].isdigit()]
        for path in sorted(early, key=lambda path: int(path.stem[8:])):
            figure = Figure(None, f"Samples, epoch {path.stem[8:]}.")
            pictures[path.stem] = path.read_bytes(), figure
        shown = self.about | {"data": self.data.name}
        for private in ("data_root", "out", "from_", "resume"):
            del shown[private]
        title = f"{self.config.METHOD} on {self.data.name}, epoch {self.epoch}"
        return page(title, pictures, self.history, shown)


def fingerprint(data):
    """What tells a data set from another: its counts, its shape, and a checksum over some of it."""
    some = data.images[::1 + data.images.numel() // 10**8]
    checksum = hashlib.sha256(raw_bytes(some)).hexdigest()[:16]
    return [len(data.images), len(data.test_images), *data.shape, checksum]


def defined(scores):
    """Nested scores with None for what came out NaN or infinite, as an error over that of data that
    never vary: JSON has no NaN."""
    return json.loads(json.dumps(scores), parse_constant=lambda constant: None)


def brief(scores):
    """The numbers among scores, for the terminal."""
    numbers = {key: value for key, value in scores.items() if isinstance(value, float)}
    return "  ".join(f"{key} {value:.4g}" for key, value in numbers.items())
