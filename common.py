"""common.py: what infogan.py and ogan.py share, and nothing about either paper.

In this order: errors and options, data sets, network blocks, scores, pictures, the run (loop, checkpoint, report).
Needs torch and the standard library. Images are float tensors (N, C, H, W) in [0, 1] unless uint8 is said.
"""

import argparse
import base64
import concurrent.futures
import contextlib
import copy
import ctypes
import functools
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
import shlex
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import timeit
import warnings
import zipfile
import zlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")   # torch says so at import; we need none
warnings.filterwarnings("ignore", message="Detected pickle protocol")      # nor its word on a file that is refused in one line

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn


# ---------------------------------------------------------------- errors and options

class InputError(ValueError):
    """Something the user gave cannot work; the message is one line: what was wrong, what was expected, what to do."""


def option(default, help, low=None, high=None, choices=None, paper=None):
    """A dataclass field that is at once a default, with the paper's where that is another, a flag with its help, and a range check."""
    return field(default=None, metadata={"best": default, "paper": default if paper is None else paper,
                                         "help": help, "low": low, "high": high, "choices": choices})


@dataclass
class RunConfig:
    """The options every method has; one left out, or None, is as its recipe says. A subclass adds its own.

    Errors: InputError if a value has the wrong type or range.
    """
    recipe: str = option("best", "best (reliable) or paper (as published): the defaults of all other options", choices=["best", "paper"])
    epochs: int = option(5, "total passes over the training images; 0 only evaluates and draws", low=0)
    batch_size: int = option(128, "images in a step", low=2)
    seed: int = option(0, "seed of everything drawn at random", low=0, high=2**63 - 1)
    width: int = option(32, "channels of the first convolution; all others scale with it", low=1, paper=64)
    device: str = option("auto", "auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps")
    precision: str = option("auto", "of training's forward and backward passes: auto (bf16 where it is faster), fp32, bf16",
                            choices=["auto", "fp32", "bf16"])
    data: str = option("auto", "auto (mnist, else digits), mnist, fashion, digits (drawn, no network), or FILE.pt")
    data_root: str = option("data", "folder where data files are looked for and downloaded to")
    out: str = option("", "run folder; empty: runs/<method>-<next free number>")
    resume: str = option("", "run folder to go on with, under its own configuration, up to --epochs")

    def __post_init__(self):
        for f in fields(self):
            value, kind, rule = getattr(self, f.name), type(f.metadata["best"]), f.metadata
            if value is None:
                setattr(self, f.name, value := self.default(f))
            elif kind is float and type(value) is int:
                setattr(self, f.name, value := float(value))
            low, high = rule["low"] or 0, rule["high"] or (math.inf if kind is float else 10**6)
            for item in value if kind is list and type(value) is list else [value]:
                if type(value) is not kind or kind is list and type(item) is not int:
                    raise InputError(f"{flag_of(f)} is {value!r}; expected {kind.__name__}")
                if rule["choices"] and item not in rule["choices"]:
                    raise InputError(f"{flag_of(f)} is {item!r}; choose from {', '.join(rule['choices'])}")
                if kind in (int, float, list) and not (low <= item <= high and math.isfinite(item)):
                    limit = f"at least {low}" + (f" and at most {high}" if high < math.inf else "")
                    raise InputError(f"{flag_of(f)} is {item}; expected a number of {limit}")

    def default(self, f):
        """The value of the dataclass field f under this recipe."""
        return copy.copy(f.metadata["paper" if self.recipe == "paper" else "best"])

    def refuse_idle(self, why, *names):
        """InputError for the first of these options that is not at its default, because it would do nothing."""
        for f in fields(self):
            if f.name in names and getattr(self, f.name) != self.default(f):
                raise InputError(f"{flag_of(f)} {getattr(self, f.name)} does nothing {why}; leave it out")


def flag_of(f):
    return "--" + f.name.replace("_", "-")


def parse(Config, method, description, argv=None):
    """The command line as a Config. With --resume it is the checkpoint's, and only where to run may change."""
    class Parser(argparse.ArgumentParser):
        def error(self, message):
            raise InputError(f"{message} (see {self.prog} --help)")

    parser = Parser(description=description.strip().splitlines()[0], argument_default=argparse.SUPPRESS, allow_abbrev=False)
    for f in fields(Config):
        default, paper, names = f.metadata["best"], f.metadata["paper"], f.metadata["choices"]
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        shown = f" (default: {shown}" + (f"; paper: {paper})" if paper != default else ")")
        rest = {"help": f.metadata["help"] + ("" if default == "" else shown)}
        if isinstance(default, bool):
            rest["action"] = argparse.BooleanOptionalAction
        elif isinstance(default, list):
            rest |= {"nargs": "*", "type": type(default[0]), "metavar": "K"}
        else:
            rest |= {"type": type(default), "metavar": "|".join(names) if names else type(default).__name__.upper()}
        parser.add_argument(flag_of(f), **rest)
    given = vars(parser.parse_args(argv))
    if not given.get("resume"):
        return Config(**given)
    fixed = sorted(set(given) - {"resume", "epochs", "device", "data_root"})
    if fixed:
        raise InputError(f"--{fixed[0].replace('_', '-')} cannot change in a resumed run; leave out one of the two")
    with fitting(given["resume"], method):
        saved = read_checkpoint(given["resume"], method)["config"]
        if Path(given["resume"]).is_file():            # its checkpoint.pt was named
            given["resume"] = str(Path(given["resume"]).parent)
        config = Config(**saved | given)
        for f in fields(Config):
            if f.name not in saved | given:
                print(f"{given['resume']} is from before {flag_of(f)}; it goes on with {getattr(config, f.name)}", file=sys.stderr)
        return config


def command_line(train, Config, method, description, argv=None):
    """Parse, train; bad input ends as one line on stderr and status 2, an interrupted run as one line and 130."""
    def refuse(why):
        print(f"{method}.py: {why}", file=sys.stderr)
        raise SystemExit(2) from None

    try:
        train(parse(Config, method, description, argv))
    except InputError as error:
        refuse(error)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not re.search("out of memory|(allocate|enough) memory", str(error)):
            raise
        refuse("out of memory; lower --batch-size or --width, or whatever else was made large, or take smaller images")
    except OSError as error:             # of standard output, which has no name; all else that is read or written has its own line
        if error.filename is not None:
            raise
        sys.stdout = None
        refuse(f"cannot print: {error.strerror}; what was trained is in the run folder, --resume goes on with it")
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or 'stopped at once; --resume goes on from the last save'}", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        if processes()[1] > 1:
            dist.destroy_process_group()


def pick_device(name):
    """torch.device for `auto`, `cpu`, `cuda`, `cuda:1` or `mps`; InputError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        if device.type in ("cpu", "cuda", "mps"):
            return device
    except (RuntimeError, AssertionError, NotImplementedError):
        pass
    raise InputError(f"--device {name} cannot be used here; expected auto, cpu, cuda, cuda:1 or mps")


def pick_precision(name, device):
    """`fp32` or `bf16`; for `auto`, the one in which this processor multiplies matrices faster (on CUDA, bf16 where it has it)."""
    if name != "auto" or device.type == "mps":
        return name.replace("auto", "fp32")
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    seconds = {}
    for kind in (torch.float32, torch.bfloat16):
        a = torch.ones(512, 512, dtype=kind)
        seconds[kind] = min(timeit.repeat(lambda: a @ a, number=1, repeat=10))
    return "bf16" if seconds[torch.bfloat16] < 0.8 * seconds[torch.float32] else "fp32"


def autocast(model):
    """The context of a network's forward pass: bfloat16 while it trains with --precision bf16, float32 when it is scored or used."""
    device = next(model.parameters()).device.type
    return torch.autocast(device, torch.bfloat16, enabled=model.training and model.config.precision == "bf16")


def inference(method):
    """Decorate a method of a module: run it in eval mode without gradients, then put the mode back."""
    @functools.wraps(method)
    def wrapped(self, *args, **kwargs):
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                return method(self, *args, **kwargs)
        finally:
            self.train(training)
    return wrapped


# ---------------------------------------------------------------- data

IDX_FILES = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
SOURCES = {   # mirrors in the order tried; the folder torchvision uses; SHA-256 or MD5 of IDX_FILES in order
    "mnist": (["https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"],
              "MNIST/raw",
              ["440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
               "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
               "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
               "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"]),
    "fashion": (["http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"], "FashionMNIST/raw",
                ["8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe",
                 "bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310"]),
}
MIRROR_TIMEOUT = 15   # seconds without another block of 128 KiB before the next mirror is tried


@dataclass
class Data:
    """A data set on one device: images uint8 (N, C, H, W), labels int64 (N,) or None, known factors or None."""
    name: str
    images: torch.Tensor
    labels: torch.Tensor | None
    test_images: torch.Tensor
    test_labels: torch.Tensor | None
    test_factors: dict | None = None

    @property
    def shape(self):
        return tuple(self.images.shape[1:])

    def to(self, device):
        on = lambda v: v.to(device) if torch.is_tensor(v) else {k: on(t) for k, t in v.items()} if isinstance(v, dict) else v
        return Data(*map(on, vars(self).values()))


def load_data(name, root="data"):
    """Data named `mnist`, `fashion`, `digits` or a FILE.pt; `auto` is mnist, else digits with a warning on stderr.

    Errors: InputError for an unknown name, a file that does not hold what it should, or a download that failed.
    """
    if name == "auto":
        try:
            return load_data("mnist", root)
        except InputError as error:
            print(f"WARNING: no MNIST ({error}); going on with DRAWN DIGITS instead (--data digits)", file=sys.stderr, flush=True)
            name = "digits"
    if name in SOURCES:
        train, train_labels, test, test_labels = (read_idx(path) for path in find_or_download(name, root))
        return Data(name, train[:, None], train_labels.long(), test[:, None], test_labels.long())
    if name == "digits":
        images, labels, factors = draw_digits(70_000)
        n, test_factors = 60_000, {k: v[60_000:] for k, v in factors.items()}
        return Data(name, images[:n], labels[:n], images[n:], labels[n:], test_factors)
    if name.endswith(".pt"):
        return load_file(name)
    raise InputError(f"--data {name!r} is unknown; expected auto, mnist, fashion, digits or a FILE.pt")


def find_or_download(name, root):
    """The four IDX files of `name` as paths, downloaded to root/name where no genuine copy lies in root already."""
    mirrors, torchvision, checksums = SOURCES[name]
    root, paths = Path(root), []
    for file, checksum in zip(IDX_FILES, checksums):
        places = [folder / file for folder in (root, root / name, root / torchvision)]
        found = next((path for path in places if genuine(path, checksum)), None)
        paths.append(found or download(file, mirrors, checksum, root / name))
    return paths


def genuine(path, checksum):
    """Whether the file is there with that SHA-256 (64 hex digits) or MD5 (32)."""
    try:
        return hashlib.new("sha256" if len(checksum) == 64 else "md5", Path(path).read_bytes()).hexdigest() == checksum
    except OSError:
        return False


def download(file, mirrors, checksum, folder):
    """Fetch `file` from the first mirror that gives the right bytes; InputError naming every URL tried otherwise."""
    tried = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as temporary:
            for i, mirror in enumerate(mirrors):
                try:
                    path = Path(temporary, str(i), file)
                    path.parent.mkdir()
                    fetch(mirror + file, path)
                    if genuine(path, checksum):
                        os.replace(path, folder / file)
                        return folder / file
                    tried.append(f"{mirror + file}: wrong checksum, {path.stat().st_size} bytes")
                except Exception as error:   # refused, no such host, 404, silence, cut short: all mean the next mirror
                    tried.append(f"{mirror + file}: {error}")
    except OSError as error:
        tried.append(f"{folder}: {error}")
    raise InputError(f"could not get {file} (tried {'; '.join(tried)}); put the four .gz files into {folder} by hand, "
                     "or take --data digits")


def fetch(url, path):
    """torch.hub's download of url to path; OSError if nothing or a mere trickle comes, which it would wait for without end."""
    def work():
        try:
            torch.hub.download_url_to_file(url, str(path), progress=sys.stderr.isatty())
        except Exception as error:
            failed.append(error)

    failed, size, thread = [], 0, threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(MIRROR_TIMEOUT)
    while thread.is_alive():
        with contextlib.suppress(FileNotFoundError):     # a whole file has just changed its name
            before, size = size, sum(part.stat().st_size for part in path.parent.iterdir())
            if size == before:
                raise OSError(f"no answer, or less than 128 KiB, in {MIRROR_TIMEOUT} seconds")
        thread.join(MIRROR_TIMEOUT)
    if failed:
        raise failed[0]


def read_idx(path):
    """An IDX file of unsigned bytes as a uint8 tensor (format: yann.lecun.com/exdb/mnist)."""
    content = gzip.decompress(Path(path).read_bytes())
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    return torch.frombuffer(bytearray(content[4 + 4 * content[3]:]), dtype=torch.uint8).view(shape)


def load_file(path):
    """A user's own images: a dict saved by torch with `images` uint8 (N, C, H, W), H and W multiples of 4, and optionally
    `labels` (N,), `test_images`, `test_labels`. Without test images every tenth image is held out for scoring."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"--data {path}: no such file") from None
    except Exception:
        raise InputError(f"--data {path} cannot be read; expected a dict of tensors, nothing else, saved by torch.save") from None
    if not isinstance(content, dict) or "images" not in content:
        raise InputError(f"--data {path} holds no `images`; expected a dict with `images` uint8 (N, C, H, W)")
    images, labels, test, test_labels = (content.get(k) for k in ("images", "labels", "test_images", "test_labels"))
    for key, x, y in (("images", images, labels), ("test_images", images if test is None else test, test_labels)):
        if not torch.is_tensor(x) or x.dtype != torch.uint8 or x.ndim != 4 or not x.numel() or x.shape[1:] != images.shape[1:]:
            got = f"{x.dtype} {tuple(x.shape)}" if torch.is_tensor(x) else type(x).__name__
            raise InputError(f"--data {path}: `{key}` is {got}; expected torch.uint8 (N, C, H, W), one size throughout; "
                             "of floats x from 0 to 1 make (255 * x).round().byte()")
        if x.shape[2] % 4 or x.shape[3] % 4:
            raise InputError(f"--data {path}: images are {x.shape[2]}x{x.shape[3]}; pad or crop height and width to multiples of 4")
        if y is not None and (not torch.is_tensor(y) or y.is_floating_point() or y.shape != x.shape[:1] or not 0 <= y.min() <= y.max() < 1000):
            raise InputError(f"--data {path}: the labels of `{key}` must be whole numbers from 0 to 999, one for each of {len(x)} images")
    if test is not None and (labels is None) != (test_labels is None):
        raise InputError(f"--data {path} has labels for one of `images` and `test_images` only; give `labels` and `test_labels`, or neither")
    if len(images) < 2 or test is not None and len(test) < 2:
        raise InputError(f"--data {path} holds one image in `{'images' if len(images) < 2 else 'test_images'}`; expected 2 or more, "
                         "for batch normalisation to train on and for scores to compare")
    if test is None:
        tenth = torch.arange(len(images)) % 10 == 9
        rest, tenth = (~tenth, tenth) if tenth.sum() > 1 else (slice(None), slice(None))   # under twenty images serve both ends
        images, test = images[rest], images[tenth]
        labels, test_labels = (labels[rest], labels[tenth]) if labels is not None else (None, None)
    labels, test_labels = (labels.long(), test_labels.long()) if labels is not None else (None, None)
    return Data(Path(path).name, images, labels, test, test_labels)


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
9 71 40 13 34 62 71|71 66 49 28"""   # a line is one way to write a digit: its class, then strokes of points xy on a 10 x 10 grid


def spline(points, count):
    """(count, 2) samples, evenly spaced along the Catmull-Rom curve through `points` (n, 2), and the curve's length."""
    p, t = torch.cat([points[:1], points, points[-1:]]), torch.linspace(0, 1, 33)[:, None]
    a, b, c, d = p[:-3, None], p[1:-2, None], p[2:-1, None], p[3:, None]
    curve = (b + t / 2 * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))).flatten(0, 1)
    walked = (curve[1:] - curve[:-1]).norm(dim=1).cumsum(0)
    return curve[1:][torch.searchsorted(walked, torch.linspace(0, 0.9999, count) * walked[-1])], float(walked[-1])


def draw_digits(n, seed=0, points=64, blur=0.8):
    """Draw handwritten-looking digits whose factors are known: a data set that needs no network.

    Returns uint8 images (n, 1, 28, 28), classes int64 (n,) and a dict of factors (n,): `slant` (horizontal shift for each unit
    of height, right is positive), `thickness` (stroke width in pixels), `size` (height in pixels), `aspect` (width scale).
    """
    g = torch.Generator().manual_seed(seed)
    uniform = lambda low, high, *shape: low + (high - low) * torch.rand(n, *shape, generator=g)
    shapes, kinds, lengths = [], [], []
    for line in STROKES.splitlines():
        strokes = [torch.tensor([[float(xy[0]), float(xy[1])] for xy in part.split()]) for part in line[2:].split("|")]
        length = [spline(s, 2)[1] for s in strokes]
        cuts = [round(points * sum(length[:i]) / sum(length)) for i in range(len(strokes) + 1)]
        path = torch.cat([spline(s, cuts[i + 1] - cuts[i])[0] for i, s in enumerate(strokes)])
        shapes.append((path - (path.amin(0) + path.amax(0)) / 2) / 9)           # (points, 2), height 1 around 0
        kinds.append(int(line[0]))
        lengths.append(sum(length) / 9)
    labels = torch.randint(10, (n,), generator=g)
    kind = torch.multinomial((torch.tensor(kinds) == labels[:, None]).float(), 1, generator=g).flatten()
    factors = {"slant": 0.1 + 0.25 * torch.randn(n, generator=g).clamp(-2, 2), "thickness": uniform(1.6, 3.8),
               "size": uniform(16, 20), "aspect": uniform(0.75, 1.15)}
    path = torch.stack(shapes)[kind]                                             # (n, points, 2)
    wave, phase = 4 * torch.randn(n, 2, 3, generator=g), uniform(0, 2 * math.pi, 1, 3)
    path = path + torch.sin(path @ wave + phase) @ (0.035 * torch.randn(n, 3, 2, generator=g))   # an unsteady hand
    y = path[..., 1] * factors["size"][:, None]
    x = path[..., 0] * (factors["aspect"] * factors["size"])[:, None] - factors["slant"][:, None] * y
    x = x - x.mean(1, keepdim=True) + 14 + uniform(-1, 1, 1)
    y = y - (y.amin(1, keepdim=True) + y.amax(1, keepdim=True)) / 2 + 14 + uniform(-1, 1, 1)
    # A pixel's distance to the stroke is read off a sum of Gaussians along it, which factors over x and y: one small product.
    bump = lambda v: torch.exp(-(torch.arange(28) + 0.5 - v[..., None]) ** 2 / (2 * blur**2))    # (n, points, 28)
    on_stroke = points / (torch.tensor(lengths)[kind] * factors["size"]) * blur * math.sqrt(2 * math.pi)
    images = torch.empty(n, 1, 28, 28, dtype=torch.uint8)
    for i in torch.arange(n).split(2000):
        density = bump(y[i]).transpose(1, 2) @ bump(x[i]) / on_stroke[i, None, None]             # (n, 28, 28)
        distance = (-2 * blur**2 * density.log()).clamp(min=0).sqrt()
        images[i, 0] = (255 * (factors["thickness"][i, None, None] / 2 + 0.5 - distance).clamp(0, 1)).round().byte()
    return images, labels, factors


# ---------------------------------------------------------------- network blocks

def convolutional_trunk(shape, width, slope):
    """Images (N, C, H, W) to features (N, 16 width): the InfoGAN paper's D without its head (width 64: 64, 128, FC 1024)."""
    c, h, w = shape
    return nn.Sequential(
        nn.Conv2d(c, width, 4, 2, 1), nn.LeakyReLU(slope),                                              # (N, width, H/2, W/2)
        nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(slope),
        nn.Flatten(), nn.Linear(2 * width * (h // 4) * (w // 4), 16 * width, bias=False),               # from (N, 2 width, H/4, W/4)
        nn.BatchNorm1d(16 * width), nn.LeakyReLU(slope))                                                # (N, 16 width)


def convolutional_generator(inputs, shape, width):
    """Latents (N, inputs) to image logits (N, C, H, W): the InfoGAN paper's G before its output nonlinearity."""
    c, h, w = shape
    return nn.Sequential(
        nn.Linear(inputs, 16 * width, bias=False), nn.BatchNorm1d(16 * width), nn.ReLU(),               # (N, 16 width)
        nn.Linear(16 * width, 2 * width * (h // 4) * (w // 4), bias=False),
        nn.BatchNorm1d(2 * width * (h // 4) * (w // 4)), nn.ReLU(),
        nn.Unflatten(1, (2 * width, h // 4, w // 4)),                                                   # (N, 2 width, H/4, W/4)
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),    # (N, width, H/2, W/2)
        nn.ConvTranspose2d(width, c, 4, 2, 1))                                                          # (N, C, H, W)


def initialise(module):
    """Weights N(0, 0.02), biases 0, as both papers' code does; for nn.Module.apply."""
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def frozen_copy(module):
    """A copy that no gradient reaches, for a moving average of the module's weights; it counts its updates."""
    module = copy.deepcopy(module).requires_grad_(False)
    module.register_buffer("updates", torch.zeros(()))
    return module


@torch.no_grad()
def update_average(model):
    """Move model.average, if it has one, towards the model's weights and statistics, keeping min(d, (1 + n) / (10 + n)) of itself
    at update n, d = model.config.average: so it spans the last tenth of a young model's updates, and 1 / (1 - d) of an old one's."""
    if model.average is None:
        return
    model.average.updates += 1
    share, now = (9 / (10 + model.average.updates)).clamp(min=1 - model.config.average), model.state_dict()
    for name, mean in model.average.state_dict().items():
        if name != "updates":
            mean.lerp_(now[name], share) if mean.is_floating_point() else mean.copy_(now[name])


def warp(images, rotation=0.3, scale=0.2, shear=0.3, shift=1 / 14):
    """Each image (N, C, H, W) under its own small affine map, drawn uniformly: rotation in radians, either axis' scale and the
    shear as shares, the shift as a share of the image's size (2 of 28 pixels)."""
    draw = lambda most: (torch.rand(len(images), device=images.device) * 2 - 1) * most
    angle, wide, high, lean, right, down = draw(rotation), 1 + draw(scale), 1 + draw(scale), draw(shear), draw(2 * shift), draw(2 * shift)
    c, s = angle.cos(), angle.sin()
    theta = torch.stack([wide * c, wide * (lean * c - s), right, high * s, high * (lean * s + c), down], 1).view(-1, 2, 3)
    return F.grid_sample(images, F.affine_grid(theta, images.shape, align_corners=False), align_corners=False)


def expect_images(images, shape):
    """images, if they are uint8, or float in [0, 1], (N, *shape); InputError otherwise."""
    if not torch.is_tensor(images) or images.shape[1:] != shape or images.dtype != torch.uint8 and not images.is_floating_point():
        got = f"{images.dtype} {tuple(images.shape)}" if torch.is_tensor(images) else type(images).__name__
        raise InputError(f"images are {got}; expected a tensor, uint8 or float, of shape (N, {', '.join(map(str, shape))})")
    if images.is_floating_point() and len(images) and (images.min() < 0 or images.max() > 1):
        raise InputError(f"images go from {images.min():g} to {images.max():g}; expected floats in [0, 1], or uint8")
    return images


def in_batches(function, *tensors, size=1000):
    """function over slices of `size` rows, outputs concatenated; uint8 slices arrive as float in [0, 1]."""
    parts = zip(*(t.split(size) for t in tensors))
    return torch.cat([function(*(p.float() / 255 if p.dtype == torch.uint8 else p for p in part)) for part in parts])


# ---------------------------------------------------------------- scores

SAMPLES = 10_000   # fresh samples that scores are taken from


def assignment(profit):
    """The column for each row of `profit` (R, K), one-to-one, that maximises the sum: exact (Hungarian method, Kuhn 1955,
    by shortest augmenting paths). Returns int64 (R,); -1 where R > K leaves a row without a column."""
    rows, columns = profit.shape
    if rows > columns:
        chosen = torch.full((rows,), -1)
        chosen[assignment(profit.T)] = torch.arange(columns)
        return chosen
    cost = (-profit.double()).tolist()
    row_price, column_price, row_of = [0.0] * rows, [0.0] * columns, [None] * columns
    for start in range(rows):
        distance, parent, settled = [math.inf] * columns, [None] * columns, []
        row, base = start, 0.0
        while row is not None:                         # Dijkstra over reduced costs, from `start` to a free column
            for j in set(range(columns)) - set(settled):
                step = base + cost[row][j] - row_price[row] - column_price[j]
                if step < distance[j]:
                    distance[j], parent[j] = step, row
            column = min(set(range(columns)) - set(settled), key=distance.__getitem__)
            base = distance[column]
            settled.append(column)
            row = row_of[column]
        for j in settled[:-1]:                         # keep reduced costs non-negative, and 0 along the path
            row_price[row_of[j]] += base - distance[j]
            column_price[j] -= base - distance[j]
        row_price[start] += base
        while parent[column] != start:                 # shift the matching along the path
            previous = row_of.index(parent[column])
            row_of[column], column = parent[column], previous
        row_of[column] = start
    return torch.tensor([row_of.index(row) for row in range(rows)])


def contingency(a, b):
    """Counts (max(a)+1, max(b)+1) of the pairs of two int64 label vectors (N,)."""
    rows, columns = int(a.max()) + 1, int(b.max()) + 1
    return torch.bincount(a * columns + b, minlength=rows * columns).view(rows, columns)


def clustering_scores(clusters, labels):
    """Accuracy under the best one-to-one matching, NMI (arithmetic mean), ARI and the confusion table [cluster][class]."""
    table = contingency(clusters, labels).cpu()
    t, n = table.double(), len(labels)
    match = assignment(t)
    matched = sum(int(table[k, c]) for k, c in enumerate(match.tolist()) if c >= 0)
    entropy = [-torch.special.xlogy(p, p).sum() for p in (t.sum(1) / n, t.sum(0) / n)]
    pairs, a, b = ((c * (c - 1) / 2).sum() for c in (t, t.sum(1), t.sum(0)))
    expected, most = a * b / (n * (n - 1) / 2), (a + b) / 2
    return {"accuracy": matched / n,
            "nmi": float(2 * discrete_information(t) / sum(entropy)) if sum(entropy) > 0 else 1.0,
            "ari": float((pairs - expected) / (most - expected)) if most != expected else 1.0,
            "confusion": table.tolist()}


def discrete_information(counts):
    """Mutual information in nats of a table of counts: sum p(a,b) ln [p(a,b) / p(a)p(b)]."""
    p = counts.double() / counts.sum()
    joint, rows, columns = (torch.special.xlogy(q, q).sum() for q in (p, p.sum(1), p.sum(0)))
    return joint - rows - columns


def mutual_information_gap(codes, factors, bins=20):
    """MIG (Chen et al. 2018, Eq. 6): for each factor the lead, in information, of the code that tells most of it over the next
    one, as a share of the factor's entropy; the mean over factors, and each. Codes: a list, factors: a dict of (N,) tensors; floats
    are put into `bins` bins by rank."""
    binned = lambda v: v.argsort().argsort() * bins // len(v) if v.is_floating_point() else v
    gaps = {}
    for name, factor in factors.items():
        factor = binned(factor)
        best = sorted((float(discrete_information(contingency(binned(code), factor))) for code in codes), reverse=True) + [0.0]
        gaps[name] = (best[0] - best[1]) / float(discrete_information(contingency(factor, factor)))
    return {"mig": sum(gaps.values()) / len(gaps), "mig_factors": gaps}


def rank_correlation(a, b):
    """Spearman's rank correlation along the last dimension, ties sharing their mean rank; 0 where one side is constant."""
    def ranks(v):
        r = (v[..., :, None] > v[..., None, :]).float().sum(-1) + (v[..., :, None] == v[..., None, :]).float().sum(-1) / 2
        return r - r.mean(-1, keepdim=True)
    a, b = ranks(a), ranks(b)
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp(min=1e-9)


def correlation_ratio(groups, values):
    """eta^2 (Pearson 1905) in [0, 1]: the share of the variance of values (N,) that lies between groups (N,), whole numbers."""
    off, members = values.double() - values.double().mean(), groups.bincount().clamp(min=1)
    between = (off.new_zeros(len(members)).index_add_(0, groups, off) ** 2 / members).sum()
    return float(between / (off ** 2).sum().clamp(min=1e-12))


def measure_strokes(images):
    """Slant and stroke width of bright strokes on black, each (N,), from images (N, C, H, W) in [0, 1].

    Slant is minus the covariance of x and y over the variance of y, as a mass distribution (y points down, so a lean to the
    right is positive); width, in pixels, is twice the area over the perimeter, the perimeter being the total variation.
    """
    ink = images.mean(1)
    mass = ink.sum((1, 2)).clamp(min=1e-6)
    y, x = (torch.arange(s, dtype=ink.dtype, device=ink.device) for s in ink.shape[1:])
    mean_x, mean_y = (ink.sum(1) @ x) / mass, (ink.sum(2) @ y) / mass
    dx, dy = x - mean_x[:, None], y - mean_y[:, None]                                                  # (N, W), (N, H)
    cov = torch.einsum("nhw,nh,nw->n", ink, dy, dx)
    var = torch.einsum("nhw,nh->n", ink, dy**2).clamp(min=1e-6)
    padded = F.pad(ink, (1, 1, 1, 1))
    edge = ((padded[:, 1:, 1:] - padded[:, 1:, :-1]) ** 2 + (padded[:, 1:, 1:] - padded[:, :-1, 1:]) ** 2).sqrt().sum((1, 2))
    return {"slant": -cov / var, "width": 2 * mass / edge.clamp(min=1e-6)}


def frechet_distance(a, b):
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), Gaussians fitted to features (N, D) and (M, D) (Heusel et al. 2017)."""
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


@torch.no_grad()
def encoding_scores(codes, labels, test_codes, test_labels):
    """How well codes (N, D) of training images tell the class of test images, by their `labels`, which no GAN has seen:
    `knn_accuracy`, a vote of the 5 nearest in Euclidean distance (a tie goes to the smaller class), and `probe_accuracy`,
    logistic regression with weight decay 1e-4, fitted by L-BFGS."""
    k, classes, square = min(5, len(codes)), int(torch.cat([labels, test_labels]).max()) + 1, codes.square().sum(1)
    votes = torch.cat([labels[(2 * part @ codes.T - square).topk(k).indices] for part in test_codes.split(250)])     # (M, 5)
    result = {"knn_accuracy": float((F.one_hot(votes, classes).sum(1).argmax(1) == test_labels).float().mean())}
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
    return result | {"probe_accuracy": float(((test_codes @ weight + bias).argmax(1) == test_labels).float().mean())}


def raw_bytes(tensor):
    """The memory of a tensor as bytes (what numpy's tobytes would give)."""
    tensor = tensor.cpu().contiguous()
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())


class Judge(nn.Module):
    """A small classifier that scores generated images; it never trains a GAN. (N, C, H, W) in [0, 1] to logits; `features` (N, 64).

    Three passes of Adam over the training images on the CPU from seed 0; kept in torch.hub.get_dir() by data set and recipe.
    """
    RECIPE = "conv5s2x16-conv3s2x32-fc64-bn adam 3e-3 onecycle batch 128 epochs 3 seed 0"

    def __init__(self, shape, classes):
        c, h, w = shape
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(c, 16, 5, 2, 2), nn.BatchNorm2d(16), nn.ReLU(),                                  # (N, 16, H/2, W/2)
            nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),                   # (N, 32 H/4 W/4)
            nn.Linear(32 * (h // 4) * (w // 4), 64), nn.BatchNorm1d(64), nn.ReLU())                    # (N, 64)
        self.head = nn.Linear(64, classes)

    def forward(self, images):
        return self.head(self.features(images))

    @classmethod
    def for_data(cls, data):
        """The judge of this data set, in eval mode on its device; None without labels."""
        if data.labels is None or len(data.images) < 2:
            return None
        key = (cls.RECIPE + torch.__version__).encode() + raw_bytes(data.images) + raw_bytes(data.labels)
        path = Path(torch.hub.get_dir(), "infogan-ogan", f"judge-{hashlib.sha256(key).hexdigest()[:16]}.pt")
        with torch.random.fork_rng(devices=[]):       # a cached judge and a fresh one leave the same random state behind
            torch.default_generator.manual_seed(0)
            judge = cls(data.shape, int(torch.cat([data.labels, data.test_labels]).max()) + 1)
            try:
                judge.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
            except Exception:                         # absent, damaged or unreadable: train it anew
                judge.fit(data.images.cpu(), data.labels.cpu())
                with contextlib.suppress(OSError, InputError):    # a cache that cannot be written is no error
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_file(path, saved_bytes(judge.state_dict()))
        return judge.to(data.images.device).eval().requires_grad_(False)

    def fit(self, images, labels, epochs=3):
        batch = min(128, len(images))
        optimizer = torch.optim.Adam(self.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * (len(images) // batch) + 1)
        for _ in range(epochs):
            for i in torch.randperm(len(images)).split(batch)[:len(images) // batch]:
                optimizer.zero_grad()
                F.cross_entropy(self(images[i].float() / 255), labels[i]).backward()
                optimizer.step()
                schedule.step()

    @torch.no_grad()
    def frechet_scores(self, data, **samples):
        """The distance of each of `samples`, name=(N, C, H, W), to the test images; `frechet_floor`, that of as many training images."""
        test = in_batches(self.features, data.test_images)
        samples["frechet_floor"] = data.images[:len(test)]
        return {**{name: frechet_distance(in_batches(self.features, images), test) for name, images in samples.items()},
                "judge_accuracy": float((in_batches(self, data.test_images).argmax(1) == data.test_labels).float().mean())}


# ---------------------------------------------------------------- pictures

def grid(images, columns, scale=2):
    """Images (N, C, H, W) in [0, 1] as one uint8 picture (height, width, 1 or 3), row by row, each pixel `scale` pixels wide."""
    n, c, h, w = images.shape
    c = 3 if c >= 3 else 1
    pixels = (images[:, :c].cpu().clamp(0, 1) * 255).round().byte()
    pixels = F.pad(F.pad(pixels, (1, 1, 1, 1), value=64), (0, 0, 0, 0, 0, 0, 0, -n % columns), value=64)
    picture = pixels.view(-1, columns, c, h + 2, w + 2).permute(0, 3, 1, 4, 2).reshape(-1, columns * (w + 2), c)
    return picture.repeat_interleave(scale, 0).repeat_interleave(scale, 1)


def deflate(picture):
    """A uint8 picture (H, W, C) as PNG image data: each row behind its filter byte, 0, compressed."""
    return zlib.compress(raw_bytes(F.pad(picture.flatten(1), (1, 0))))


def png(shape, *frames, delay=0.5):
    """Bytes of a PNG of shape (H, W, 1 or 3) from `deflate`d image data; of several, an animation, `delay` seconds each (W3C PNG, 3rd)."""
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    h, w, c = shape
    out, number = [chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2 if c == 3 else 0, 0, 0, 0))], itertools.count()
    if len(frames) > 1:
        out.append(chunk(b"acTL", struct.pack(">II", len(frames), 0)))
    for i, data in enumerate(frames):
        if len(frames) > 1:
            wait = round(1000 * delay * (4 if i == len(frames) - 1 else 1))
            out.append(chunk(b"fcTL", struct.pack(">IIIIIHHBB", next(number), w, h, 0, 0, wait, 1000, 0, 0)))
        out.append(chunk(b"IDAT", data) if i == 0 else chunk(b"fdAT", struct.pack(">I", next(number)) + data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(out) + chunk(b"IEND", b"")


def curve(name, points):
    """An inline SVG line of (epoch, value) points with its range and last value."""
    xs, ys = zip(*points)
    low, high = min(ys), max(ys)
    x = lambda v: 8 + 224 * (v - xs[0]) / max(xs[-1] - xs[0], 1)
    y = lambda v: 88 - 64 * (v - low) / ((high - low) or 1)
    line = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
    return (f'<svg viewBox="0 0 240 110" role="img" aria-label="{name}"><text x="8" y="14">{name}: {ys[-1]:.4g}</text>'
            f'<polyline points="{line}"/><circle cx="{x(xs[-1]):.1f}" cy="{y(ys[-1]):.1f}" r="3"/>'
            f'<text class="dim" x="8" y="105">{low:.3g} to {high:.3g}, epoch {xs[0]} to {xs[-1]}</text></svg>')


STYLE = """body { font: 15px/1.45 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
section { display: flex; flex-wrap: wrap; gap: 1.2em; align-items: start } figure { margin: 0; max-width: min(100%, 530px) }
img { max-width: 100%; image-rendering: pixelated } figcaption { max-width: 40em; color: #555 }
svg { width: 240px; border: 1px solid #ddd } text { font: 12px system-ui } .dim { fill: #777 }
polyline { fill: none; stroke: #0a62c9; stroke-width: 2 } circle { fill: #0a62c9 }
th { text-align: left; font-weight: normal; color: #555; padding-right: 1em } td { text-align: right }"""


def report(title, config, history, scores, pictures):
    """The run as one self-contained HTML page. pictures: name -> (PNG bytes, caption)."""
    number = lambda v: f"{v:.4g}" if isinstance(v, float) else html.escape(json.dumps(v))
    table = lambda items: "<table>" + "".join(f"<tr><th>{html.escape(k)}<td>{number(v)}" for k, v in items) + "</table>"
    figures = "".join(f'<figure><img alt="{name}" src="data:image/png;base64,{base64.b64encode(image).decode()}">'
                      f"<figcaption><b>{name}.png</b> {caption}</figcaption></figure>"
                      for name, (image, caption) in pictures.items())
    names = [k for k, v in history[0].items() if isinstance(v, float)] if history else []
    curves = "".join(curve(html.escape(k), [(h["epoch"], h[k]) for h in history if isinstance(h.get(k), float)]) for k in names)
    confusion = "".join("<tr>" + "".join(f"<td>{n}" for n in row) for row in scores.get("confusion", []))
    if confusion:
        confusion = f"<div><p>Test images: a row a category, a column a class</p><table>{confusion}</table></div>"
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title><style>{STYLE}</style>
<h1>{html.escape(title)}</h1>
<h2>Pictures</h2><section>{figures}</section>
<h2>Scores</h2><section>{table((k, v) for k, v in scores.items() if k != "confusion")}{confusion}</section>
<h2>Over training</h2><section>{curves}</section>
<h2>Configuration</h2>{table(config.items())}
</html>
"""


# ---------------------------------------------------------------- the run: loop, checkpoint, report

def write_file(path, content):
    """Write bytes or text so that the final name only ever holds a whole file: beside it, to the disk, then renamed.

    Errors: InputError if the disk is full or the folder read-only or gone; what the name held before is kept.
    """
    part = Path(f"{path}.part")
    try:
        with open(part, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise InputError(f"{path} cannot be written: {error.strerror}; what it held before is kept; see to the folder and its disk, "
                         "then go on (a run with --resume)") from None


def saved_bytes(state):
    """What torch.save would write, as bytes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def read_checkpoint(path, method):
    """The dict in a checkpoint.pt (or in the run folder `path`) of that method, on the CPU; InputError if it is not one."""
    path = Path(path)
    path = path / "checkpoint.pt" if path.is_dir() else path
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():                      # torch.load does not compare the checksums
                raise zipfile.BadZipFile
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint; give a run folder or its checkpoint.pt") from None
    except Exception:
        raise InputError(f"{path} cannot be read as a checkpoint: cut short, damaged or of another kind") from None
    if not isinstance(state, dict) or state.get("method") != method:
        raise InputError(f"{path} is no checkpoint of {method}.py; give one that it wrote")
    return state


@contextlib.contextmanager
def fitting(path, method):
    """A context in which a checkpoint's contents are used: what they lack or have too much for this code becomes an InputError."""
    try:
        yield
    except InputError:
        raise
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not fit this {method}.py ({type(error).__name__}: {' '.join(str(error).split())[:200]}); "
                         "take the version that wrote it") from None


def load_model(cls, Config, method, path, device="cpu"):
    """cls(config, shape) with the weights of a checkpoint.pt or run folder, in eval mode; InputError if it is none."""
    state = read_checkpoint(path, method)
    with fitting(path, method):
        model = cls(Config(**state["config"]), tuple(state["shape"]))
        model.load_state_dict(state["model"])
    return model.to(device).eval()


class Run:
    """A run folder and the loop around the training step: order of the images, progress, checkpoints, pictures, report.

        for epoch in run.epochs():
            for real in run.batches():                      # (N, C, H, W) in [0, 1]
                run.log(training_step(...))                 # dict of 0-d tensors
            run.end_epoch(scores)                           # dict for JSON
        run.end(scores)

    `draw` gives the pictures, name -> (uint8 picture, caption); `samples` is also a frame of the animation.

    Under torchrun each process takes its slice of every batch, gradients are averaged before each optimizer's step, and the first
    process alone writes. Batch normalisation, and what else looks at a whole batch, sees the slice; each process draws its own
    latents. So K processes train as one does, but not on the same numbers.
    """
    STATE = ("epoch", "step", "order", "sums", "finite", "seconds", "history", "frames")   # epochs done, steps done in the next one, ...

    def __init__(self, method, config, data, model, optimizers, draw):
        self.method, self.config, self.data, self.model, self.optimizers, self.draw = method, config, data, model, optimizers, draw
        self.device = data.images.device
        self.epoch, self.step, self.order, self.sums, self.finite, self.seconds = 0, 0, None, None, None, 0.0
        self.history, self.frames, self.stopping = [], [], False
        self.rank, self.processes = processes()
        self.folder = Path(config.resume or config.out) if config.resume or self.rank else new_folder(method, config.out)
        if config.resume:
            with fitting(self.folder, method):
                self._restore(read_checkpoint(self.folder, method))
        else:
            self._add_frame(deflate(draw()["samples"][0]))
        self.about = {"method": method, **asdict(config), "device": str(self.device), "threads": torch.get_num_threads(),
                      "processes": self.processes,
                      "torch": str(torch.__version__), "python": platform.python_version(), "image_shape": list(data.shape),
                      "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}
        if self.rank == 0:
            write_file(self.folder / "config.json", json.dumps(self.about, indent=2) + "\n")
            self.save()
        if self.rank:
            torch.manual_seed(config.seed + self.rank + 1000 * self.epoch)   # latents of its own
        for optimizer in optimizers.values() if self.processes > 1 else ():
            optimizer.register_step_pre_hook(average_gradients)
        print(f"{method}: {len(data.images)} images of {data.name} {data.shape}, on {self.device} in {self.config.precision}, into {self.folder}", flush=True)

    def save(self):
        for name, value in self.model.state_dict().items():
            if not value.isfinite().all():
                raise InputError(f"{name} is no longer finite after {self.epoch} epochs and {self.step} steps; {self._advice()}")
        write_file(self.folder / "checkpoint.pt", saved_bytes({
            "method": self.method, "config": asdict(self.config), "shape": list(self.data.shape),
            "model": self.model.state_dict(), "optimizers": {k: o.state_dict() for k, o in self.optimizers.items()},
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            **{name: getattr(self, name) for name in self.STATE}}))

    def _restore(self, state):
        if tuple(state["shape"]) != self.data.shape:
            raise InputError(f"{self.folder} was trained on images of {tuple(state['shape'])}; these are {self.data.shape}")
        if self.config.epochs < state["epoch"]:
            raise InputError(f"--epochs {self.config.epochs} is less than the {state['epoch']} that {self.folder} has done")
        self.model.load_state_dict(state["model"])
        for name, optimizer in self.optimizers.items():
            for group in state["optimizers"][name]["param_groups"]:
                group["capturable"] = self.device.type == "cuda"            # it may have been trained elsewhere
            optimizer.load_state_dict(state["optimizers"][name])
        for name in self.STATE:
            setattr(self, name, state[name].to(self.device) if torch.is_tensor(state[name]) else state[name])
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], self.device)

    def epochs(self):
        """Yield 1-based epoch numbers up to --epochs. A first Ctrl-C or SIGTERM saves after its step and stops, a second stops."""
        def stop(signum, frame):
            self.stopping = True
            for s in old:
                signal.signal(s, old[s])
        old = {}
        with contextlib.suppress(ValueError):          # signals can be handled in the main thread only
            for s in (signal.SIGINT, signal.SIGTERM) if self.processes == 1 else ():   # torchrun stops all of its processes itself
                old[s] = signal.signal(s, stop)
        try:
            while self.epoch < self.config.epochs:
                yield self.epoch + 1
            if self.stopping:
                raise KeyboardInterrupt(f"stopped and saved before the final scores; {self._resume_by()}")
        finally:
            for s in old:
                signal.signal(s, old[s])

    def batches(self):
        """Yield one epoch of training batches (N, C, H, W) in [0, 1], shuffled; the last, partial batch is left out."""
        images, size = self.data.images, min(self.config.batch_size, len(self.data.images))
        steps, part = len(images) // size, size // self.processes
        if self.order is None:
            self.order = torch.randperm(len(images), device=self.device)
            if self.processes > 1:
                dist.broadcast(self.order, 0)
        self.names, began, told = (), time.perf_counter() - self.seconds, time.perf_counter()
        while self.step < steps:
            if self.stopping:
                self.seconds = time.perf_counter() - began
                self._mean_losses()
                self.save()
                raise KeyboardInterrupt(f"stopped and saved at step {self.step} of {steps} in epoch {self.epoch + 1}; {self._resume_by()}")
            first = self.step * size + self.rank * part
            yield images[self.order[first:first + part]].float() / 255
            self.step += 1
            if sys.stdout.isatty() and (time.perf_counter() - told > 0.5 or self.step == steps):
                told, done = time.perf_counter(), self.step / steps
                left = (told - began) * (1 / done - 1 + (self.config.epochs - self.epoch - 1) / done)
                print(f"\r\033[Kepoch {self.epoch + 1}/{self.config.epochs} {done:4.0%}  "
                      f"{'  '.join(f'{k} {v:.3f}' for k, v in self._mean_losses().items())}  "
                      f"{self.step * size / (told - began):.0f} images/s  {left // 60:.0f}:{left % 60:02.0f} left", end="", flush=True)
        self.losses = self._mean_losses()   # waits for the device, so the clock below is honest
        self.seconds, self.images_seen = time.perf_counter() - began, steps * size

    def log(self, losses):
        """Add one step's losses, a dict of 0-d tensors, on the device; they are read once a report."""
        self.names, values = tuple(losses), torch.stack([v.detach() for v in losses.values()])
        self.sums = values if self.sums is None else self.sums + values
        self.finite = self.sums.isfinite().int() + (0 if self.finite is None else self.finite)   # steps before the first NaN

    def _mean_losses(self):
        """name -> mean over the epoch's steps so far; InputError that names the term and the step if one is not finite."""
        if not self.names:
            return {}
        means = dict(zip(self.names, (self.sums / self.step).tolist()))
        for (name, loss), steps in zip(means.items(), self.finite.tolist()):
            if not math.isfinite(loss):
                raise InputError(f"{name} became {loss} at step {steps + 1} of epoch {self.epoch + 1}; {self._advice()}")
        return means

    def _advice(self):
        return f"{self.folder}/checkpoint.pt is from before that; begin anew with lower learning rates, or --precision fp32"

    def _resume_by(self):
        return f"go on with: python {self.method}.py --resume {self.folder}"

    def end_epoch(self, scores):
        """Add the epoch's line to the metrics, with these cheap scores, and write everything."""
        self.epoch += 1
        line = {"epoch": self.epoch, "data": self.data.name, **self.losses, "seconds": self.seconds,
                "images_per_second": self.images_seen / self.seconds, **defined(scores)}
        self.history.append(line)
        self.step, self.order, self.sums, self.finite, self.seconds = 0, None, None, None, 0.0
        self._write(line, new_frame=True)
        print(("\r\033[K" if sys.stdout.isatty() else "") + f"epoch {self.epoch}/{self.config.epochs}  " + brief(line), flush=True)

    def end(self, scores):
        """Add the final scores to the last epoch's line (epoch 0 if none was trained) and write everything once more."""
        if not self.history:
            self.history.append({"epoch": 0, "data": self.data.name})
        self.history[-1] |= defined(scores) | {"seed": self.config.seed, **{k: self.about[k] for k in ("device", "precision", "threads", "torch", "parameters")}}
        self._write(self.history[-1])
        print(f"done   {brief(scores)}\nlook at {self.folder / 'index.html'}", flush=True)

    def _add_frame(self, packed):
        self.frames.append(torch.frombuffer(bytearray(packed), dtype=torch.uint8))   # torch 2.4 loads tensors safely, but no bytes

    def _write(self, scores, new_frame=False):
        if self.rank:
            return
        pictures = self.draw()
        packed = {name: deflate(picture) for name, (picture, _) in pictures.items()}
        if new_frame:
            self._add_frame(packed["samples"])
        self.save()
        write_file(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.history))
        images = {name: (png(picture.shape, packed[name]), caption) for name, (picture, caption) in pictures.items()}
        animation = png(pictures["samples"][0].shape, *map(raw_bytes, self.frames))
        images["training"] = animation, "The same samples before training and after each epoch."
        for name, (image, _) in images.items():
            write_file(self.folder / f"{name}.png", image)
        title = f"{self.method} on {self.data.name}, epoch {self.epoch}"
        write_file(self.folder / "index.html", report(title, self.about, self.history, scores, images))


def defined(scores):
    """Nested scores with None for what came out NaN or infinite, such as an error over that of data that never vary: JSON has no NaN."""
    if isinstance(scores, dict):
        return {k: defined(v) for k, v in scores.items()}
    if isinstance(scores, list):
        return [defined(v) for v in scores]
    return scores if not isinstance(scores, float) or math.isfinite(scores) else None


def brief(scores):
    return "  ".join(f"{k} {v:.4g}" for k, v in scores.items() if isinstance(v, float))


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
                raise InputError(f"--out {out} exists already; choose another folder, or go on with it: --resume {out}") from None
        except OSError as error:
            raise InputError(f"--out {folder} cannot be made: {error.strerror}; choose another folder") from None


def processes():
    """(rank, number) of the processes that torchrun started; (0, 1) without it."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def average_gradients(optimizer, *_):
    """Replace each gradient by its mean over the processes, in one message."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients]) / dist.get_world_size()
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(mean.view_as(gradient))


def optimizer(parameters, rate, kind="adam"):
    """torch.optim's Adam (betas 0.5 and 0.999) or RMSprop (`rmsprop`, alpha 0.99) over a list of parameters, fit for a CUDA graph."""
    on_cuda = parameters[0].is_cuda
    if kind == "rmsprop":
        return torch.optim.RMSprop(parameters, rate, alpha=0.99, capturable=on_cuda)
    return torch.optim.Adam(parameters, rate, betas=(0.5, 0.999), fused=True, capturable=on_cuda)


class Captured:
    """A training step, batch -> losses, that on CUDA becomes one graph: networks this small wait for kernel launches otherwise.

    The first steps run as they are, on a stream of their own, as capture wants; then one is recorded, and replayed from there on.
    """
    WARM_UP = 3

    def __init__(self, step):
        self.step, self.calls, self.graph = step, 0, None

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
            self.real, self.graph = real.clone(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.losses = self.step(self.real)
        self.real.copy_(real)
        self.graph.replay()
        return self.losses


def start(config):
    """What every training begins with: device, data set on that device, seed. Sets config.data and .precision to what is used."""
    device = pick_device(config.device)
    if "LOCAL_RANK" in os.environ and not dist.is_initialized():                # torchrun
        if device.type == "cuda":
            torch.cuda.set_device(device := torch.device("cuda", int(os.environ["LOCAL_RANK"])))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, number = processes()
    if config.batch_size % number:
        raise InputError(f"--batch-size {config.batch_size} cannot be split over {number} processes; expected a multiple of {number}")
    if rank:
        sys.stdout = open(os.devnull, "w")
        dist.barrier()                                                          # the first process downloads
    config.precision = pick_precision(config.precision, device)
    data = load_data(config.data, config.data_root)
    if number > 1 and not rank:
        dist.barrier()
    config.data = str(Path(config.data).resolve()) if config.data.endswith(".pt") else data.name
    if data.labels is None:
        print(f"{data.name} has no labels: the scores that need them are left out")
    torch.manual_seed(config.seed)
    return device, data.to(device)


# ---------------------------------------------------------------- studies: many seeds, one record

def study(path, extra=()):
    """Fill in a study, results/NAME.json, and summarise it: it goes on where it stopped; delete a run to have it made again.

    The file is what was asked and what came out: `arms`, name -> command line; `seeds`, a list for all arms or arm -> list; and
    optionally `jobs` (runs at a time, on a thread each; 1 leaves all threads to one run), `reach` (score -> value, for the training
    seconds until it was first seen at an epoch's end), `history` (scores to keep of every epoch) and `pictures` (of each arm's first
    seed, to keep beside the file); `runs`, arm -> seed -> the last line of metrics.jsonl, or `failed` and why; `summary`, arm ->
    score -> [n, mean, standard deviation, least, greatest]; `compared`, arm -> score -> p, see `permutation_test`, between the first
    arm's runs and this one's.
    `extra` flags, such as --data-root, are added to every command.
    """
    path, lock = Path(path), threading.Lock()
    try:
        record = json.loads(path.read_text())
        arms, seeds, jobs = record["arms"], record["seeds"], record.get("jobs", 1)
        seeds = {arm: [str(s) for s in (seeds[arm] if isinstance(seeds, dict) else seeds)] for arm in arms}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is no study ({error!r}); expected JSON with `arms` and `seeds`") from None

    def run(arm, seed):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, *shlex.split(arms[arm]), "--seed", seed, "--out", f"{folder}/run", *extra]
            done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent,
                                  env=os.environ | ({"OMP_NUM_THREADS": "1"} if jobs > 1 else {}))
            if done.returncode < 0 or done.returncode == 130:      # stopped from outside: not a result
                return
            lines = [json.loads(line) for line in Path(folder, "run/metrics.jsonl").read_text().splitlines()] if not done.returncode else []
            result = lines[-1] | {"seconds": sum(line["seconds"] for line in lines)} if lines else {"failed": done.stderr.strip()[-300:]}
            for key, value in record.get("reach", {}).items():
                seen = [i for i, line in enumerate(lines) if line.get(key, 0) >= value]
                result[f"seconds_to_{key}_{value:g}"] = sum(line["seconds"] for line in lines[:seen[0] + 1]) if seen else None
            if lines and "history" in record:
                result["history"] = {key: [line[key] for line in lines] for key in record["history"]}
            if lines and seed == seeds[arm][0]:
                for picture in [p for p in Path(folder, "run").glob("*.png") if p.stem in record.get("pictures", [])]:
                    write_file(path.with_name(f"{path.stem}-{arm}-{picture.name}"), picture.read_bytes())
        with lock:
            runs = record.setdefault("runs", {})
            runs.setdefault(arm, {})[seed] = result
            scores = {arm: flat_scores(runs[arm].values()) for arm in arms if arm in runs}
            record["summary"] = {arm: {name: summary(v) for name, v in found.items()} for arm, found in scores.items()}
            first = scores.get(next(iter(arms)), {})
            record["compared"] = {arm: {name: permutation_test(first[name], v) for name, v in found.items() if len(first.get(name, [])) > 1 < len(v)}
                                  for arm, found in scores.items() if found is not first}
            write_file(path, json.dumps(record, indent=1) + "\n")
            print(f"{arm}, seed {seed}: {brief(result)}{result.get('failed', '')}", flush=True)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        rounds = itertools.zip_longest(*([(arm, seed) for seed in seeds[arm]] for arm in arms))
        todo = [task for task in itertools.chain(*rounds) if task and task[1] not in record.get("runs", {}).get(task[0], {})]
        for result in [pool.submit(run, *task) for task in todo]:
            result.result()
    for arm, scores in record.get("summary", {}).items():
        print(arm, *(f"{k}: {m:.4g} +- {s:.2g} (n {n}, {low:.4g} to {high:.4g})" for k, (n, m, s, low, high) in scores.items()), sep="\n    ")


def flat_scores(runs):
    """score -> its values, one a run; those of a list or dict of numbers one by one, as effect.c2.slant.0."""
    flat = lambda v, name: ([(name, float(v))] if type(v) is float else [pair for k, x in (v.items() if isinstance(v, dict) else enumerate(v))
                            for pair in flat(x, f"{name}.{k}" if name else k)] if isinstance(v, (dict, list)) else [])
    values = {}
    for result in runs:
        for name, value in flat(result, ""):
            values.setdefault(name, []).append(value)
    return values


def summary(values):
    """[n, mean, standard deviation, least, greatest]"""
    return [len(values), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, min(values), max(values)]


def permutation_test(a, b):
    """p, two-sided and exact: the share of all ways to split the values into groups of these sizes whose means differ as much or more.

    The least p that 5 runs against 5 can give is 2 / 252 = 0.008; 3 against 3 give 0.1 at best.
    """
    total = sum(a + b)
    gap = lambda part: abs(sum(part) / len(a) - (total - sum(part)) / len(b))
    gaps, seen = [gap(part) for part in itertools.combinations(a + b, len(a))], gap(a) * (1 - 1e-9)
    return sum(g >= seen for g in gaps) / len(gaps)


if __name__ == "__main__":
    try:
        study(*sys.argv[1:2], sys.argv[2:])
    except (InputError, TypeError) as error:
        print(f"common.py: {error if isinstance(error, InputError) else 'expected a study: python common.py results/NAME.json'}", file=sys.stderr)
        raise SystemExit(2) from None
