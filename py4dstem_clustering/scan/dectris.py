"""Scans left on disk: Dectris Arina and Eiger master files with their chunk files, plain HDF5.

Counts keep the type that they have in the file, and a damaged frame is an error that names the file
and the frame, never a frame of zeros.

Layout of the files (DECTRIS, "Header documentation: NeXus"): ``*_master.h5`` holds
``entry/data/data_000001`` and so on, each a link to a dataset (frames, Qx, Qy) in a file of its
own, and the settings of the detector in ``entry/instrument/detector``.
"""

from __future__ import annotations

from contextlib import suppress
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import emdfile
import numpy as np

from ..base.checks import check_choice, check_integer, check_name, check_path
from .array import ScanArray
from .detector import bad_map, largest_good_count, read_facts, scan_step_of_microscope
from .pieces import check_alike, find_pieces, master_pieces
from .scan_shape import find_scan_shape

if TYPE_CHECKING:
    from py4DSTEM import DataCube

NAME = "arina"
"""Name of the Metadata that `open_scan` adds."""

BAD_PIXELS = ("fill", "missing", "keep")

SATURATED = ("raise", "missing", "keep")


def open_scan(
    path: str | PathLike[str],
    *,
    scan_shape: tuple[int, int] | None = None,
    skip_frames: int | tuple[int, int] = 0,
    flyback: int = 0,
    dataset: str | None = None,
    bad_pixels: Literal["fill", "missing", "keep"] = "fill",
    saturated: Literal["raise", "missing", "keep"] = "raise",
    name: str | None = None,
) -> DataCube:
    """Open a scan that stays on disk: Dectris Arina and Eiger, or plain HDF5.

    Where ``py4DSTEM.import_file(..., filetype="arina")`` reads the whole scan into memory and cuts
    32-bit counts to 16 bits, this reads a frame when it is asked for, with the counts of the file.

    Parameters
    ----------
    path : path
        The ``*_master.h5`` file, with its chunk files beside it; or, with `dataset`, another HDF5
        file.
    scan_shape : (Rx, Ry), optional
        Rows and columns of the scan, without flyback. By default what the file says (a 4D dataset,
        or several triggers of several frames each), else a square.
    skip_frames : int or (int, int)
        Frames before the first row that are dropped; a pair also drops frames after the last row.
    flyback : int
        Frames at the end of each row that are dropped: the beam on its way back. The last row may
        lack them.
    dataset : str, optional
        Name of a dataset in the file, (frames, Qx, Qy) or (Rx, Ry, Qx, Qy); by default the chunks
        of a master file.
    bad_pixels : "fill", "missing" or "keep"
        What becomes of pixels that the detector's own mask marks as bad (any of the lower 16
        bits). "fill" gives them the median of the good pixels in the smallest square around them
        that holds three; the scan keeps its type, and whatever looks for Bragg disks works.
        "missing" makes them NaN and the scan floating point. "keep" leaves what was recorded, often
        the largest value of the type.
    saturated : "raise", "missing" or "keep"
        What becomes of saturated values in good pixels: the largest value of an integer type, which
        the detector writes where it has no count, and values above the saturation that the file
        states. "raise" stops when the first one is read, and names its position;
        ``datacube.get_dp_max()`` reads the whole scan. "missing" makes them NaN and the scan
        floating point, so choose it after "raise" found some. "keep" leaves them, as for patterns
        that were rescaled to the full range of their type.
    name : str, optional
        Name of the datacube; by default that of the file, without ``_master``.

    Returns
    -------
    DataCube
        Its `data` are a `ScanArray`, (Rx, Ry, Qx, Qy), where Qx and Qy are the axes of the frames
        in the file, slow and fast. All methods of this package read it in blocks, and py4DSTEM's
        that go from pattern to pattern read one at a time. ``numpy.asarray(datacube.data)`` and
        ``py4DSTEM.save(path, datacube)`` read all of it into memory. The files stay open;
        ``datacube.data.close()`` closes them until something is read again.

        ``datacube.metadata["arina"]`` holds what the file says of the detector, in the file's own
        names and units, and ``"bad_pixels"``, a boolean map (Qx, Qy) where there is a mask:
        ``q_mask & ~datacube.metadata["arina"]["bad_pixels"]`` leaves bad pixels out. The pixel size
        of the scan is set where the file ``<name>.h5`` of the microscope states it, as py4DSTEM
        does; nothing else is calibrated.

    Raises
    ------
    ValueError, TypeError
        If an argument breaks its rule, frames do not make up the scan, or, on reading, counts are
        saturated.
    OSError
        If a file is missing, damaged, cut short, compressed in a way that is not installed, or
        leads to another file outside its folder; on reading, also if it shrank or a frame of it
        cannot be decompressed. The error names the file and the frame.

    Notes
    -----
    Links are followed to files in the folder of the master file only, by their name where the path
    is another; ``<name>_data_000001.h5`` stands in for a chunk file that was renamed with the
    master file. Bitshuffle/LZ4 has no checksum: a flipped bit that still decompresses is not seen.

    Examples
    --------
    >>> raw = open_scan("scan_master.h5", scan_shape=(512, 256), flyback=2)  # doctest: +SKIP
    >>> clusters = raw.cluster(threshold=0.9)  # doctest: +SKIP

    Any HDF5 file:

    >>> import h5py, numpy, os, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "counts.h5")
    >>> with h5py.File(path, "w") as file:
    ...     file["frames"] = numpy.ones((12, 8, 6), dtype="uint16")
    >>> raw = open_scan(path, dataset="frames", scan_shape=(3, 4))
    >>> raw.shape
    (3, 4, 8, 6)
    >>> int(raw.data[1, 2].sum())
    48
    >>> raw.data.close(), folder.cleanup()
    (None, None)
    """
    from py4DSTEM import DataCube

    _load_filters()
    path = check_path("path", path).absolute()
    skip = _check_skip(skip_frames)
    flyback = check_integer("flyback", flyback, 0)
    check_choice("bad_pixels", bad_pixels, BAD_PIXELS)
    check_choice("saturated", saturated, SATURATED)
    if dataset is not None and not isinstance(dataset, str):
        raise TypeError(f"dataset={dataset!r} must be a string, the name of a dataset")
    prefix = path.stem.removesuffix("_master")
    name = _default_name(prefix) if name is None else check_name(name)

    facts, mask = read_facts(path, bad_pixels)
    pieces = master_pieces(path, prefix) if dataset is None else find_pieces(path, dataset)
    check_alike(pieces)
    n_frames = sum(piece.n_frames for piece in pieces)
    shape = find_scan_shape(n_frames, pieces[0], scan_shape, skip, flyback, facts)
    starts = skip[0] + (shape[1] + flyback) * np.arange(shape[0])
    index = starts[:, None] + np.arange(shape[1])

    bad = bad_map(mask, pieces[0].shape[-2:], facts, bad_pixels, path)
    data = ScanArray(
        pieces,
        index,
        path=path,
        bad=bad,
        limit=largest_good_count(pieces[0].dtype, facts),
        bad_pixels=bad_pixels,
        saturated=saturated,
    )

    cube = DataCube(data=data, name=name)
    if mask is not None:
        facts |= {"pixel_mask": mask, "bad_pixels": bad}
    settings = {"path": str(path), "dataset": dataset, "skip_frames": skip, "flyback": flyback}
    settings |= {"bad_pixels": bad_pixels, "saturated": saturated}
    cube.metadata = emdfile.Metadata(NAME, {**facts, "opened": settings})
    step = scan_step_of_microscope(path.with_name(f"{prefix}.h5"))
    if step is not None:
        cube.calibration.set_R_pixel_size(step)
        cube.calibration.set_R_pixel_units("A")
    return cube


def _load_filters() -> None:
    """Make bitshuffle and LZ4 known to HDF5, where hdf5plugin is installed."""
    with suppress(ImportError):
        import hdf5plugin  # noqa: F401


def _check_skip(skip_frames: Any) -> tuple[int, int]:
    """Frames that are dropped before the first row and after the last."""
    pair = skip_frames if isinstance(skip_frames, (tuple, list)) else (skip_frames, 0)
    if len(pair) != 2:
        raise ValueError(
            f"skip_frames={skip_frames!r} must be a number, or two: before the first row and after "
            "the last"
        )
    first, last = (check_integer("skip_frames", n, 0) for n in pair)
    return first, last


def _default_name(prefix: str) -> str:
    """The name of the file, where a datacube can have it."""
    try:
        return check_name(prefix)
    except ValueError:
        return "scan"
