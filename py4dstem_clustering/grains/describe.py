"""Write the methods paragraph of a paper from the settings of clusters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..scan.axes import unit_sign

REFERENCES = {
    "lee": "S. Lee et al., Unsupervised segmentation and clustering workflow for efficient "
    "processing of 4D-STEM and 5D-STEM data (2026), arXiv:2601.17262",
    "py4dstem": "B. H. Savitzky et al., Microscopy and Microanalysis 27, 712 (2021), "
    "doi:10.1017/S1431927621000477",
    "mumford": "D. Mumford and J. Shah, Communications on Pure and Applied Mathematics 42, 577 "
    "(1989), doi:10.1002/cpa.3160420503",
    "koepfler": "G. Koepfler et al., SIAM Journal on Numerical Analysis 31, 282 (1994), "
    "doi:10.1137/0731015",
}


class _Text:
    """Sentences, and references that are numbered in the order of their citation."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self._cited: list[str] = []

    def cite(self, *keys: str) -> str:
        """Numbers of references in brackets."""
        for key in keys:
            if key not in self._cited:
                self._cited.append(key)
        return f"[{', '.join(str(self._cited.index(key) + 1) for key in keys)}]"

    def add(self, sentence: str) -> None:
        """Add a sentence."""
        self.sentences.append(sentence)

    def __str__(self) -> str:
        lines = [f"[{n}] {REFERENCES[key]}" for n, key in enumerate(self._cited, 1)]
        return " ".join(self.sentences) + "\n\n" + "\n".join(lines)


def describe_clusters(clusters: Any) -> str:
    """Text of `Clusters.describe`."""
    settings = clusters.settings
    text = _Text()
    rx, ry = clusters.shape
    scan = f"{rx} x {ry} scan positions"
    if clusters.pixel_units != "pixels":
        scan += f" ({clusters.pixel_size:.4g} {unit_sign(clusters.pixel_units)} apart)"
    shape = settings.get("shape")
    if shape is not None:
        scan += f", recorded with {int(shape[2])} x {int(shape[3])} detector pixels,"
    version = settings.get("py4dstem_clustering_version", "of unknown version")
    n = clusters.n_clusters
    sizes = ""
    if n:
        low, middle, high = np.percentile(clusters.sizes, (0, 50, 100))
        sizes = f" of {low:.0f} to {high:.0f} scan positions (median {middle:.0f})"
    method = settings.get("method")
    # Files of version 0.1.0 do not name the method, which was growth.
    grown = method == "grow" or (method is None and "threshold" in settings)
    how = "by merging regions, using" if method == "merge" else "using"
    if grown:
        how = f"by growing regions of similar neighbours {text.cite('lee')}, using"
    text.add(
        f"The diffraction patterns of {scan} were grouped into {n} cluster{'s' * (n != 1)}{sizes} "
        f"{how} py4dstem_clustering {version} and py4DSTEM "
        f"{settings.get('py4DSTEM_version', 'of unknown version')} {text.cite('py4dstem')}."
    )
    if method == "merge":
        _describe_merging(settings, text)
    elif grown:
        _describe_growth(clusters, text)
    r_mask = settings.get("r_mask")
    if r_mask is not None:
        if isinstance(r_mask, str):
            rule = (
                f"positions whose mean similarity to their neighbours exceeded the {r_mask} "
                "threshold"
            )
        elif np.ndim(r_mask):
            rule = f"{int(r_mask.sum())} selected positions"
        else:
            rule = f"positions whose mean similarity to their neighbours exceeded {r_mask:g}"
        text.add(f"Only {rule} were considered.")
    lost = settings.get("n_lost")
    if lost:
        frames = "1 frame was" if lost == 1 else f"{lost} frames were"
        text.add(f"{frames} lost (one value in all pixels, or none) and in no cluster.")
    if (settings.get("min_size") or 1) > 1:
        text.add(f"Clusters of fewer than {settings['min_size']} positions were discarded.")
    edits = settings.get("edits", ())
    if edits:
        short = (edit if len(edit) <= MAX_EDIT else f"{edit[: MAX_EDIT - 4]}...)" for edit in edits)
        text.add(f"The clusters were then edited manually: {', '.join(short)}.")
    if "fingerprint" in settings:
        text.add(
            f"(Data set {settings['source']!r}, SHA-256 of a sample of it "
            f"{settings['fingerprint']}; processed {settings['created']} in "
            f"{settings['seconds']:.3g} s.)"
        )
    doubts = find_doubts(clusters)
    return str(text) + (f"\n\nTo check: {' '.join(doubts)}" if doubts else "")


MAX_EDIT = 60
"""Most letters of an edit in the text; strokes of a brush are longer."""

WHOLE_SHARE = 0.9
"""Share of the scan from which on a cluster counts as the whole field of view. With a smaller one,
more large grains are called so."""

SURROUNDING_SHARE = 0.25
"""Smallest share of the scan of a cluster that may surround the grains. With a smaller one, more
grains that reach all borders are called so."""


PIECE_OF_NOISE = 8
"""Mean size of clusters of a line scan below which they may be noise. Pieces of noise alone have 4
to 5 positions (1 x 60 and 1 x 200 positions, 0.05 to 5 counts a pixel). With a larger number, more
small grains are called so."""


def find_doubts(clusters: Any) -> list[str]:
    """What speaks against clusters being grains; a sentence or two for each reason."""
    found = []
    labels, sizes = clusters.labels, clusters.sizes
    dropped = clusters.settings.get("drop_background") is True
    if not len(sizes):
        remedy = "see drop_background=False" if dropped else "lower threshold or min_size"
        found.append(f"No cluster was found; {remedy}.")
    elif dropped and (labels < 0).sum() <= clusters.settings.get("n_lost", 0) and len(sizes) > 1:
        found.append(
            "No background was found: every scan position is in a cluster. Where liquid, vacuum or "
            "film is in view, some of these clusters are that and no grains."
        )
    if min(labels.shape) == 1 and len(sizes) * PIECE_OF_NOISE > labels.size:
        found.append(
            "Noise alone on a line scan falls into pieces of about 5 positions, like these "
            "clusters: they may be noise."
        )
    borders = [set(side.tolist()) for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1])]
    for label in set.intersection(*borders) - {-1, *clusters.background}:
        share = sizes[label] / labels.size
        if share >= WHOLE_SHARE:
            found.append(
                f"Cluster {label} fills the field of view ({share:.0%} of the scan): its size, "
                "shape and growth are those of the scan, whatever the sample is."
            )
        elif share >= SURROUNDING_SHARE:
            found.append(
                f"Cluster {label} ({share:.0%} of the scan) reaches all four borders; perhaps it "
                "is what surrounds the grains (liquid, film) and no grain."
            )
    return found


def _describe_merging(settings: Mapping[str, Any], text: _Text) -> None:
    """Add sentences about merging."""
    mask = settings.get("q_mask")
    where = (
        "" if mask is None else f" Only the {int(mask.sum())} detector pixels of a mask were used."
    )
    rank = int(settings["rank"])
    text.add(
        f"Each pattern was reduced to {rank} feature{'s' * (rank != 1)} above the noise level, "
        "obtained from the covariance between patterns at diagonally neighbouring "
        f"positions.{where}"
    )
    cite = text.cite("mumford", "koepfler")
    level = settings.get("level", 1)
    text.add(
        "Starting from single positions, neighbouring regions were merged as long as the increase "
        "of the squared deviation per length of the border removed stayed below a limit set by the "
        f"noise and by the variation expected within a grain {cite}"
        + _describe_level(level, settings.get("automatic_level", 1))
    )
    if settings.get("drop_background") and settings.get("n_background"):
        n = settings["n_background"]
        are = "were" if n != 1 else "was"
        number = {1: "One", 2: "Two", 3: "Three", 4: "Four", 5: "Five"}.get(n, n)
        text.add(
            f"{number} region{'s' * (n != 1)} without Bragg peaks {are} treated as background."
        )
    gain = settings.get("gain")
    if gain is not None and np.isfinite(gain):
        text.add(
            f"The noise corresponded to {gain:.3g} recorded counts per electron and an offset of "
            f"{settings['offset']:.3g}."
        )
    if settings.get("lag_share"):
        known = "estimated" if settings.get("lag") == "auto" else "given"
        text.add(
            f"A camera lag was undone, by which a share of {settings['lag_share']:.2g} of each "
            f"pattern is left in the next one along {settings['lag_axis']} ({known})."
        )


def _describe_level(level: float, automatic: float) -> str:
    """End of the sentence about merging, and what joined to crystals."""
    if automatic == 1:  # files from before crystals had a level
        return (
            "; the level was determined automatically."
            if level == 1
            else f", up to level {level:.4g}."
        )
    if level < 1:
        return f", up to level {level:.4g}."
    if level == 1:
        return "."
    joined = (
        ". Neighbouring regions were then joined into crystals if their Bragg disks lay at the "
    )
    joined += "same positions and their patterns changed as gradually across the border as on "
    joined += "either side of it"
    return joined + ("." if level == automatic else f", up to level {level:.4g}.")


def _describe_growth(clusters: Any, text: _Text) -> None:
    """Add sentences about growth."""
    settings = clusters.settings
    made = {} if clusters.similarity is None else clusters.similarity.settings
    blurred = made.get("sigma")
    mask = made.get("q_mask")
    parts = ["after subtraction of their means"] if made.get("subtract_mean") else []
    if blurred:
        parts.append(f"after blurring by {blurred:g} pixel{'s' * (blurred != 1)}")
    if mask is not None:
        parts.append(f"within {int(mask.sum())} detector pixels")
    if made.get("noise_correct"):
        parts.append("corrected for counting noise")
    level = settings.get("level", settings.get("threshold"))
    if level is None or isinstance(level, str):
        rule = "at the levels of similarity at which the clusters were most stable"
    else:
        rule = f"where their similarity was at least {level:.4g}"
    text.add(
        f"Neighbouring positions were joined {rule}. The similarity was the cosine of the angle "
        "between their patterns" + (f", {', '.join(parts)}." if parts else ".")
    )
