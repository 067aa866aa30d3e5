"""What one would take instead of an InfoGAN to find classes without labels, on the same terms.

    pip install scikit-learn==1.9.1 umap-learn==0.5.12
    python results/clusterers.py FILE.pt [SEED ..]

k-means on 50 principal components, with as many clusters as classes, and HDBSCAN on a UMAP of two
dimensions, which finds the number by itself; what it calls noise is one cluster more. Both are
fitted to the training images of FILE.pt, as for --data, whose labels only score the test images.
UMAP uses all threads, and then takes no seed. Prints a line of JSON for each method and seed.
"""

import json
import sys
import time
from pathlib import Path

import torch
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.decomposition import PCA
from umap import UMAP

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common


def k_means(train, test, classes, seed):
    """The clusters (N,) of test images, both sets (N, pixels) in [0, 1]."""
    pca = PCA(50, random_state=seed).fit(train)
    found = KMeans(classes, n_init=10, random_state=seed).fit(pca.transform(train))
    return found.predict(pca.transform(test))


def umap_hdbscan(train, test, classes, seed):
    """The same by density in the plane, whatever classes and seed; -1 is noise."""
    plane = UMAP(n_neighbors=30, min_dist=0.0).fit(train)
    places = [torch.from_numpy(part) for part in (plane.embedding_, plane.transform(test))]
    clusterer = HDBSCAN(min_cluster_size=500, min_samples=10, copy=True)      # umap-learn's advice
    found = clusterer.fit_predict(torch.cat(places).numpy())
    return found[len(train):]


def main(argv):
    if not argv:
        raise common.InputError("expected: FILE.pt [SEED ..]")
    file, *seeds = argv
    data = common.load_data(file)
    if data.labels is None:
        raise common.InputError(f"{file} has no labels to score by")
    train, test = (common.floats(images).flatten(1).numpy()
                   for images in (data.images, data.test_images))
    classes = int(data.labels.max()) + 1
    for seed in map(int, seeds or (0,)):
        for method in (k_means, umap_hdbscan):
            began = time.perf_counter()
            clusters = torch.from_numpy(method(train, test, classes, seed)).long()
            seconds = time.perf_counter() - began
            noise = clusters < 0
            scores = common.clustering_scores(clusters - clusters.min(), data.test_labels)
            print(json.dumps({"method": method.__name__, "seed": seed, "seconds": seconds,
                              "clusters": len(clusters[~noise].unique()),
                              "noise": float(noise.float().mean()),
                              **{key: scores[key] for key in ("accuracy", "nmi", "ari")}}))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except common.InputError as error:
        print(f"clusterers.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
