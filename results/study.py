"""The laboratory: many seeds of a method, one record, and what only it measures.

    python results/study.py results/infogan.json [--data-root DIR]   fill in a study, summarise it
    python results/study.py runs/infogan-1                           the measures of one run folder
    python results/study.py runs/a runs/b ...                        two judges over several runs
    python results/study.py compare runs/a runs/b ...                one page of several runs
    python results/study.py plot results/ogan-paper.json std_real    a score over the training, SVG
    python results/study.py dots results/infogan.json accuracy       a score of each run
    python results/study.py dots results/ogan-prior.json frechet rho  one against the other

With --arms ARM .. behind it a plot has those arms alone, in that order. A study file says what to
run and holds what came out:

    arms      name -> command line of infogan.py, ogan.py, results/introvae.py or .../shadow.py
    seeds     a list for all arms, or arm -> list
    jobs      runs at a time, on a thread each; 1, the default, leaves all threads to one run
    reach     score -> value: the training seconds until an epoch ended with it (optional)
    history   scores of which every epoch's value is kept (optional)
    pictures  pictures of each arm's first seed to keep beside the file (optional)
    commit    the code that made the runs, where it is not today's (optional)
    others    name -> score -> values measured elsewhere, as circles in plots (optional)
    runs      arm -> seed -> the last line of metrics.jsonl and the `measures`; or `failed` and why
    summary   arm -> score -> [n, mean, standard deviation, least, greatest]
    compared  arm -> score -> p of `permutation_test` against the first arm

It goes on where it stopped; delete a run in the file to have it made again. Flags behind the file's
name go to every run.
"""

import concurrent.futures
import html
import itertools
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common
import infogan
import introvae
import ogan
import torch
import torch.nn.functional as F
from common import InputError

SCRIPTS = {"infogan.py", "ogan.py", "results/introvae.py", "results/shadow.py"}
MODELS = {cls.METHOD: cls for cls in (infogan.InfoGAN, ogan.OGAN, introvae.IntroVAE)}

# ---------------------------------------------------------------- measures


def measures(folder, base=Path()):
    """What the codes of a finished InfoGAN run do, for JSON; of O-GAN and IntroVAE the Frechet
    distance of samples of N(0, I). The run's data folder is looked for from `base`."""
    config = json.loads(Path(folder, "config.json").read_text())
    if config["method"] not in MODELS:
        return {}
    data = common.load_data(config["data"], Path(base, config["data_root"]))
    data.limit(config.get("limit", 0))
    n = min(config["samples"], len(data.images))
    model = MODELS[config["method"]].load(folder)
    latent = model.sample_latent(n, rng=torch.Generator(model.device).manual_seed(0))
    if config["method"] != "infogan":
        found = common.Judge.for_data(data).scores(data, model, latent)
        return common.defined({"frechet_prior": found["frechet"]})
    result = {}
    if model.continuous:
        judge = common.Judge.for_data(data)
        doubled = latent.clone()
        doubled[:, -model.continuous:] *= 2
        features = common.in_batches(judge.features, model.decode(doubled))
        test = common.in_batches(judge.features, data.test_images)
        most = min(len(features), len(test))
        distance = common.frechet_distance(features[:most], test[:most])
        result |= common.defined({"frechet_doubled": distance})
    if data.shape[0] == 1:
        first = len(model.categorical) + 1
        result["effect"] = {f"c{first + j}": effect(model, latent[:500], j, data.test_images)
                            for j in range(model.continuous)}
        result["carried"] = carried(model, latent, model.decode(latent))
    if data.test_factors:
        codes = model.encode(data.test_images)
        categories = [probabilities.argmax(1) for probabilities in codes.categorical]
        factors = {"class": data.test_labels, **data.test_factors}
        result |= mutual_information_gap(categories + list(codes.mean.T), factors)
    return result


def judges(folders):
    """The Frechet distance of each run's samples in the features of the judge that learns classes
    and of the one that learns orientation, and the rank correlation of the two over the runs.

    All on the data set, with labels, of the first run.
    """
    configs = [json.loads(Path(folder, "config.json").read_text()) for folder in folders]
    data = common.load_data(configs[0]["data"], configs[0]["data_root"])
    distances = {}
    n = min(10_000, len(data.test_images))            # as many samples as test images
    for task in ("classes", "orientation"):
        judge = common.Judge.for_data(data, task)
        test = common.in_batches(judge.features, data.test_images[:n])
        distances[task] = []
        for folder, config in zip(folders, configs):
            model = MODELS[config["method"]].load(folder)
            samples = model.sample(n, rng=torch.Generator().manual_seed(0))
            features = common.in_batches(judge.features, samples)
            distances[task].append(common.frechet_distance(features, test))
    found = torch.tensor(list(distances.values()))
    ranks = float(rank_correlation(*found)) if found.isfinite().all() else math.nan
    return common.defined(distances | {"rank_correlation": ranks})


def effect(model, latent, j, test_images):
    """What continuous code j does to `measure_strokes`: latents (N, .) are decoded with it at
    9 values over twice its range.

    For each measure, [rank correlation of code and measure over one latent's 9 images, mean over
    latents; its mean change from end to end, in standard deviations of the measure over the test
    images; the same over the range itself].
    """
    sweep = torch.linspace(-2, 2, 9) * model.code_range
    swept = latent.repeat_interleave(9, 0)
    swept[:, j - model.continuous] = sweep.repeat(len(latent))
    usual = measure_strokes(test_images.float() / 255)
    result = {}
    for name, values in measure_strokes(model.decode(swept)).items():
        values = values.view(-1, 9)
        correlation = rank_correlation(values, sweep.expand_as(values)).mean()
        whole = (values[:, 8] - values[:, 0]).mean() / usual[name].std()
        within = (values[:, 6] - values[:, 2]).mean() / usual[name].std()
        result[name] = [float(correlation), float(whole), float(within)]
    return result


def carried(model, latent, samples):
    """The fraction of the variance of each of `measure_strokes` over `samples` that each code of
    their latents accounts for: the correlation ratio. A continuous code counts as ten categories,
    tenths of its range."""
    target = model.split_latent(latent)
    codes = [onehot.argmax(1) for onehot in target.categorical]
    tenths = ((target.continuous / model.code_range + 1) * 5).long().clamp(0, 9)
    codes += tenths.T
    strokes = measure_strokes(samples)
    result = {}
    for i, code in enumerate(codes, 1):
        ratios = {name: correlation_ratio(code, values) for name, values in strokes.items()}
        result[f"c{i}"] = ratios
    return result


def measure_strokes(images):
    """Slant, stroke width and breadth of bright strokes on black, each (N,), of images (N, C, H, W)
    in [0, 1].

    Slant is minus the covariance of x and y over the variance of y, as a mass distribution (y
    points down, so a lean to the right is positive). Width, in pixels, is twice the area over the
    perimeter, the perimeter being the total variation. Breadth, in pixels, is the deviation of x
    about the leaning axis: a digit's own, whatever its slant.
    """
    ink = images.mean(1)                                                        # (N, H, W)
    mass = ink.sum((1, 2)).clamp(min=1e-6)
    y, x = (torch.arange(side, dtype=ink.dtype, device=ink.device) for side in ink.shape[1:])
    mean_x = (ink.sum(1) @ x) / mass
    mean_y = (ink.sum(2) @ y) / mass
    dx = x - mean_x[:, None]                                                    # (N, W)
    dy = y - mean_y[:, None]                                                    # (N, H)
    covariance = torch.einsum("nhw,nh,nw->n", ink, dy, dx)
    variance = torch.einsum("nhw,nh->n", ink, dy**2).clamp(min=1e-6)
    about_axis = torch.einsum("nhw,nw->n", ink, dx**2) - covariance**2 / variance
    padded = F.pad(ink, (1, 1, 1, 1))
    corner, left, above = padded[:, 1:, 1:], padded[:, 1:, :-1], padded[:, :-1, 1:]
    edge = ((corner - left) ** 2 + (corner - above) ** 2).sqrt().sum((1, 2))
    return {"slant": -covariance / variance, "width": 2 * mass / edge.clamp(min=1e-6),
            "breadth": (about_axis.clamp(min=0) / mass).sqrt()}


def rank_correlation(a, b):
    """Spearman's rank correlation along the last dimension, ties sharing their mean rank; 0 where
    one side is constant."""
    def ranks(v):
        below = (v[..., :, None] > v[..., None, :]).float().sum(-1)
        alike = (v[..., :, None] == v[..., None, :]).float().sum(-1)
        rank = below + alike / 2
        return rank - rank.mean(-1, keepdim=True)
    a, b = ranks(a), ranks(b)
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp(min=1e-9)


def correlation_ratio(groups, values):
    """eta^2 (Pearson 1905) in [0, 1]: the fraction of the variance of values (N,) that lies between
    groups (N,), whole numbers."""
    centred = values.double() - values.double().mean()
    members = groups.bincount().clamp(min=1)
    sums = centred.new_zeros(len(members)).index_add_(0, groups, centred)
    between = (sums**2 / members).sum()
    return float(between / (centred**2).sum().clamp(min=1e-12))


def mutual_information_gap(codes, factors, bins=20):
    """MIG (Chen et al. 2018, Equation 6): for each factor the lead, in information, of the code
    that tells most of it over the next one, as a fraction of the factor's entropy; mean, and each.

    codes: a list, factors: a dict of (N,) tensors; floats are put into `bins` bins by rank.
    """
    def binned(v):
        return v.argsort().argsort() * bins // len(v) if v.is_floating_point() else v

    gaps = {}
    for name, factor in factors.items():
        factor = binned(factor)
        found = []
        for code in codes:
            table = common.contingency(binned(code), factor)
            found.append(float(common.discrete_information(table)))
        best, second = sorted(found + [0.0], reverse=True)[:2]
        entropy = common.discrete_information(common.contingency(factor, factor))
        gaps[name] = (best - second) / float(entropy)
    return {"mig": sum(gaps.values()) / len(gaps), "mig_factors": gaps}


# ---------------------------------------------------------------- studies


def study(path, flags=()):
    """Fill in the study in `path` and print its summary; InputError if it is none."""
    path = Path(path)
    record, seeds = read_study(path)
    arms, runs = record["arms"], record.setdefault("runs", {})
    jobs = record.get("jobs", 1)
    todo = []
    for i in range(max(map(len, seeds.values()))):                # seed by seed over all arms
        for arm in arms:
            if i < len(seeds[arm]) and seeds[arm][i] not in runs.get(arm, {}):
                todo.append((arm, seeds[arm][i]))
    if jobs > 1:
        torch.set_num_threads(1)                                  # as the runs, for the measures
    lock = threading.Lock()

    def make(arm, seed):
        pictures = record.get("pictures", []) if seed == seeds[arm][0] else []
        start = f"{path.stem}-{arm.replace(' ', '-')}"
        keep = [(name, path.with_name(f"{start}-{name}.png")) for name in pictures]
        result = run(shlex.split(arms[arm]), seed, flags, jobs, record, keep)
        if result is None:
            return
        with lock:
            runs.setdefault(arm, {})[seed] = result
            summarise(record)
            common.write_file(path, json.dumps(record, indent=1) + "\n")
            failed = result.get("failed", "")
            print(f"{arm}, seed {seed}: {common.brief(result)}{failed}", flush=True)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(make, *task) for task in todo]:
            done.result()
    for arm, scores in record.get("summary", {}).items():
        print(arm)
        for name, (n, mean, deviation, least, most) in scores.items():
            if name.startswith("history."):
                continue
            print(f"    {name}: {mean:.4g} +- {deviation:.2g} (n {n}, {least:.4g} to {most:.4g})")
    failed = sum("failed" in result for results in runs.values() for result in results.values())
    if failed:
        print(f"study.py: {failed} runs failed; they are tried again once they are out of {path}",
              file=sys.stderr)
        raise SystemExit(1)


def read_study(path):
    """The record in a study file, its seeds as arm -> list of strings; InputError if it is none."""
    try:
        record = json.loads(path.read_text())
        arms, seeds = record["arms"], record["seeds"]
        if isinstance(seeds, list):
            seeds = dict.fromkeys(arms, seeds)
        seeds = {arm: [str(seed) for seed in seeds[arm]] for arm in arms}
        scripts = {shlex.split(command)[0] for command in arms.values()}
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no study ({error!r}); expected JSON with `arms` and "
                         "`seeds`") from None
    foreign = sorted(scripts - SCRIPTS)
    if foreign or not arms:
        raise InputError(f"{path} would run {foreign}; expected arms that begin with one of "
                         f"{', '.join(sorted(SCRIPTS))}")
    return record, seeds


def run(command, seed, flags, jobs, record, keep):
    """One run: its last line of metrics with what `record` asks for, `failed` and why, or None if
    it was stopped from outside. `keep` is a list of (picture's name, path to keep it under)."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "run")
        script, *options = command
        command = [sys.executable, ROOT / script, *options, "--seed", seed, "--out", folder, *flags]
        environment = dict(os.environ)
        if jobs > 1:
            environment["OMP_NUM_THREADS"] = "1"
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode < 0 or done.returncode == 130:
            return None
        if done.returncode:
            return {"failed": done.stderr.strip()[-300:]}
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        result = lines[-1] | measures(folder, ROOT)
        result["seconds"] = sum(line.get("seconds", 0) for line in lines)
        for name, value in record.get("reach", {}).items():
            result[f"seconds_to_{name}_{value:g}"] = seconds_to(lines, name, value)
        for name in record.get("history", []):
            result.setdefault("history", {})[name] = [line.get(name) for line in lines]
        for name, path in keep:
            if (folder / f"{name}.png").exists():
                common.write_file(path, (folder / f"{name}.png").read_bytes())
        return result


def seconds_to(lines, name, value):
    """Training seconds until an epoch ended with score `name` at `value` or more; None if never."""
    seconds = 0.0
    for line in lines:
        seconds += line.get("seconds", 0)
        if line.get(name, 0) >= value:
            return seconds
    return None


def summarise(record):
    """Bring `summary` and `compared` up to date with `runs`, in the order of `arms`."""
    record["summary"], record["compared"] = {}, {}
    first = None
    for arm in record["arms"]:
        if arm not in record["runs"]:
            continue
        values = {}                                               # score -> its values, one a run
        for result in record["runs"][arm].values():
            for name, value in flatten(result):
                values.setdefault(name, []).append(value)
        record["summary"][arm] = {name: summary(found) for name, found in values.items()}
        if arm == next(iter(record["arms"])):
            first = values
        elif first is not None:
            compared = {}
            for name, found in values.items():
                if len(found) > 1 and len(first.get(name, [])) > 1:
                    compared[name] = permutation_test(first[name], found)
            record["compared"][arm] = compared


def flatten(value, name=""):
    """(name, number) of the floats in nested dicts and lists, as ("effect.c2.slant.0", 0.97)."""
    if type(value) is float:
        yield name, value
        return
    items = []
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, part in items:
        yield from flatten(part, f"{name}.{key}" if name else str(key))


def summary(values):
    """[n, mean, standard deviation, least, greatest]"""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return [len(values), statistics.fmean(values), deviation, min(values), max(values)]


def permutation_test(a, b):
    """p, two-sided and exact: the fraction of all ways to split the values into groups of these
    sizes whose means differ as much or more.

    The least p that 5 runs against 5 can give is 2 / 252 = 0.008; 3 against 3 give 0.1 at best.
    """
    total = sum(a + b)

    def gap(group):
        return abs(sum(group) / len(a) - (total - sum(group)) / len(b))

    seen = gap(a) * (1 - 1e-9)
    gaps = [gap(group) for group in itertools.combinations(a + b, len(a))]
    return sum(g >= seen for g in gaps) / len(gaps)


def chosen(path, arms):
    """What a study has of those arms, or of all: arm -> its runs' results; and what it has from
    elsewhere, name -> score -> values. InputError for an arm without runs."""
    record, _ = read_study(Path(path))
    runs = record.get("runs", {})
    for arm in arms:
        if arm not in runs:
            raise InputError(f"{path} has no runs of {arm!r}; it has some of {', '.join(runs)}")
    found = {arm: list(runs[arm].values()) for arm in arms or record["arms"] if arm in runs}
    return found, record.get("others", {})


def plot(path, score, across=None, arms=()):
    """Write STUDY-SCORE-training.svg beside a study: a score in its `history` over the training, a
    thin line a run, a thick one the mean of an arm; or STUDY-SCORE-seconds.svg, over the sum so far
    of that history. InputError if the study has no such history."""
    lines = {}                                                    # arm -> its runs' points
    results, others = chosen(path, arms)
    for arm, runs in results.items():
        lines[arm] = []
        for history in (result.get("history", {}) for result in runs):
            values = history.get(score, [])
            steps = history.get(across, []) if across else [1 / max(1, len(values))] * len(values)
            points = list(zip(itertools.accumulate(steps), values))
            lines[arm].append([(x, y) for x, y in points if y is not None])
    name = f"{score}-{across or 'training'}"
    circles = {other: pairs(scores, across, score) for other, scores in others.items() if across}
    draw(path, name, lines, across or "fraction of the training", score, circles)


def dots(path, across, up=None, arms=()):
    """Write STUDY-ACROSS.svg beside a study, a dot a run, in a row an arm; or one score against a
    second, STUDY-ACROSS-UP.svg. InfoGAN's scores in lists are named as accuracy and
    mi_continuous.0 are. InputError if no run has them."""
    found = {}                                                    # arm -> runs of one point
    results, others = chosen(path, arms)
    for row, (arm, runs) in enumerate(results.items()):
        scores = [dict(flatten(result)) for result in runs]
        points = [(run.get(across), run.get(up) if up else -row) for run in scores]
        found[arm] = [[point] for point in points if None not in point]
    if up:
        circles = {other: pairs(scores, across, up) for other, scores in others.items()}
    else:
        circles = {arm: [(x, -row) for x in others.get(arm, {}).get(across, ())]
                   for row, arm in enumerate(found)}
    draw(path, f"{across}-{up}" if up else across, found, across, up, circles)


def pairs(scores, across, up):
    """Points of two of the scores, name -> values."""
    return list(zip(scores.get(across, ()), scores.get(up, ())))


def draw(path, name, arms, across, up, circles):
    """Write STUDY-NAME.svg: arm -> its runs, each a list of points (x, y), drawn as a dot if it is
    one and else as a line, beside the mean of the arm's lines; `circles`, arm or another name ->
    points, are hollow. Without `up` the ys have no scale: they are rows, from 0 down."""
    points = list(itertools.chain(*itertools.chain(*arms.values())))
    arms = arms | {other: [] for other in circles if other not in arms}
    points += itertools.chain(*circles.values())
    if not points:
        raise InputError(f"{path} has no run with {name}")
    bottom = 250 if up else 30 + 24 * len(arms)
    x_ticks, y_ticks = (ticks([point[axis] for point in points]) for axis in (0, 1))

    def place(point):
        x = 70 + 380 * (point[0] - x_ticks[0]) / (x_ticks[2] - x_ticks[0] or 1)
        if up is None:
            return x, 38 - 24 * point[1]
        return x, bottom - 10 - (bottom - 50) * (point[1] - y_ticks[0]) / (
            y_ticks[2] - y_ticks[0] or 1)

    across, up = (common.MEANINGS.get(axis, (axis,))[0] for axis in (across, up))
    parts = [f'<path d="M60 {bottom}H460{f"M60 30V{bottom}" if up else ""}" stroke="#888"/>',
             f'<text x="260" y="{bottom + 32}" text-anchor="middle">{across}</text>']
    for value in x_ticks:
        x, _ = place((value, y_ticks[0]))
        parts.append(f'<text x="{x:.0f}" y="{bottom + 16}" text-anchor="middle">{value:.3g}</text>')
    for value in y_ticks if up else ():
        _, y = place((x_ticks[0], value))
        parts.append(f'<text x="50" y="{y + 4:.0f}" text-anchor="end">{value:.3g}</text>')
    if up:
        parts.append(f'<text x="60" y="20">{up}</text>')
    for i, (arm, runs) in enumerate(arms.items()):
        colour = common.COLOURS[i % len(common.COLOURS)]
        lines = [run for run in runs if len(run) > 1]
        mean = [[statistics.fmean(values) for values in zip(*at)] for at in zip(*lines)]
        for line, width in [(line, 0.7) for line in lines] + [(mean, 3)] * (len(lines) > 0):
            corners = " ".join("{:.1f},{:.1f}".format(*place(point)) for point in line)
            parts.append(f'<polyline points="{corners}" fill="none" stroke="{colour}" '
                         f'stroke-width="{width}"/>')
        full = [(run[0], colour) for run in runs if len(run) == 1]
        hollow = [(point, "none") for point in circles.get(arm, ())]
        for point, fill in full + hollow:
            x, y = place(point)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" '
                         f'fill-opacity="0.7" stroke="{colour}"/>')
        parts.append(f'<text x="475" y="{42 + 24 * i}" fill="{colour}">{html.escape(arm)}</text>')
    height = max(bottom, 42 + 24 * len(arms)) + 44
    frame = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" font-size="13" '
             f'font-family="sans-serif"><rect width="760" height="{height}" fill="white"/>')
    target = Path(path).with_name(f"{Path(path).stem}-{name}.svg")
    common.write_file(target, "\n".join([frame, *parts, "</svg>"]) + "\n")
    print(f"wrote {target}")


def ticks(values):
    """The least, the middle and the greatest."""
    return min(values), (min(values) + max(values)) / 2, max(values)


def compare(folders):
    """Write compare.html: the scores of several runs in columns, their curves over each other and
    their samples side by side. InputError for a folder without scores."""
    histories, drawn = {}, ""
    if not folders:
        raise InputError("expected: compare RUN RUN ..")
    for folder in folders:
        try:
            lines = Path(folder, "metrics.jsonl").read_text().splitlines()
            histories[str(folder)] = [json.loads(line) for line in lines]
            samples = Path(folder, "samples.png").read_bytes()
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} is no run with scores ({error})") from None
        drawn += common.shown("samples", samples, common.Figure(None, html.escape(str(folder))))
    last = {name: history[-1] if history else {} for name, history in histories.items()}
    rows = "<tr><th>" + "".join(f"<td><b>{html.escape(name)}</b>" for name in last)
    for key in dict.fromkeys([*common.MEANINGS, *itertools.chain(*last.values())]):
        values = [scores.get(key) for scores in last.values()]
        if any(isinstance(value, (int, float, str)) for value in values):
            name = common.MEANINGS.get(key, (key,))[0]
            rows += f'<tr title="{key}"><th>{name}'
            for value in values:
                text = f"{value:.4g}" if isinstance(value, float) else str(value)
                rows += f"<td>{'' if value is None else html.escape(text)}"
    curves = ""
    for key in dict.fromkeys(itertools.chain(*itertools.chain(*histories.values()))):
        courses = {name: common.course(history, key) for name, history in histories.items()}
        lines = {name: points for name, points in courses.items() if points}
        if lines and key not in ("seconds", "images_per_second"):
            curves += f"<figure>{common.chart(lines)}<figcaption>{key}</figcaption></figure>"
    common.write_file("compare.html", common.PAGE.format(
        title="runs side by side", scores=f"<table>{rows}</table>", figures=drawn, curves=curves,
        numbers="", configuration="", script=""))
    print("wrote compare.html")


def main(argv):
    try:
        if not argv:
            raise InputError("expected a study, as results/infogan.json, or a run folder")
        if argv[0] in ("-h", "--help"):
            return print(__doc__)
        if argv[0] == "compare":
            return compare(argv[1:])
        if argv[0] in ("plot", "dots"):
            end = argv.index("--arms") if "--arms" in argv else len(argv)
            if end not in (3, 4):
                raise InputError(f"expected: {argv[0]} STUDY.json SCORE [SCORE] [--arms ARM ..]")
            make = plot if argv[0] == "plot" else dots
            return make(*argv[1:end], arms=argv[end + 1:])
        if not Path(argv[0]).is_dir():
            return study(argv[0], argv[1:])
        if not all(Path(name).is_dir() for name in argv):
            raise InputError(f"{' '.join(argv)}: expected folders of runs alone")
        if len(argv) > 1:
            with common.blaming(" ".join(argv), "folders of finished runs"):
                found = judges(argv)
        else:
            with common.blaming(argv[0], "the folder of a run that has scores"):
                lines = Path(argv[0], "metrics.jsonl").read_text().splitlines()
                found = json.loads(lines[-1]) | measures(argv[0])
        print(json.dumps(found, indent=1))
    except InputError as error:
        print(f"study.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main(sys.argv[1:])
