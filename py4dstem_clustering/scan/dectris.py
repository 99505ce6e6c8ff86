"""Scans left on disk: Dectris Arina and Eiger master files with their chunk files, plain HDF5.

What is read is taken as it was counted: nothing is cast to fewer bits, and a fault of a file is an
error that names the file and the frame, never a frame of zeros.

Layout of the files (DECTRIS, "Header documentation: NeXus"): ``*_master.h5`` holds
``entry/data/data_000001`` and so on, each a link to a dataset (frames, Qx, Qy) in a file of its
own, and what the detector knows in ``entry/instrument/detector``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import emdfile
import h5py
import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_choice, check_integer, check_name, check_path
from ..emd import untrusted
from .array import Piece, ScanArray

if TYPE_CHECKING:
    from py4DSTEM import DataCube

NAME = "arina"
"""Name of the Metadata that `open_scan` adds."""

BAD_PIXELS = ("fill", "missing", "keep")

SATURATED = ("raise", "missing", "keep")

DETECTOR = "entry/instrument/detector"

PIXEL_MASKS = (f"{DETECTOR}/detectorSpecific/pixel_mask", f"{DETECTOR}/pixel_mask")

# What is copied into the metadata where a file has it, under its own name.
_FACTS = (
    "entry/instrument/beam/incident_energy",
    "entry/instrument/beam/incident_wavelength",
    *(
        f"{DETECTOR}/{name}"
        for name in (
            "bit_depth_image",
            "bit_depth_readout",
            "count_time",
            "countrate_correction_applied",
            "description",
            "detector_distance",
            "detector_number",
            "flatfield_correction_applied",
            "frame_time",
            "pixel_mask_applied",
            "saturation_value",
            "sensor_material",
            "sensor_thickness",
            "threshold_energy",
            "x_pixel_size",
            "y_pixel_size",
        )
    ),
    *(
        f"{DETECTOR}/detectorSpecific/{name}"
        for name in (
            "countrate_correction_count_cutoff",
            "data_collection_date",
            "nimages",
            "ntrigger",
            "pixel_mask_applied",
            "saturation_value",
            "software_version",
        )
    ),
)

# Bits of the pixel mask that make a pixel worthless; those above tell of special pixels whose
# counts are good (NeXus, NXdetector).
_BAD_BITS = 0xFFFF


# --- files and links --------------------------------------------------------------------------


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file to read; what h5py has to say about it as a line with its name."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; check the path")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        if h5py.is_hdf5(path):
            what = f"is damaged, cut short or still written ({error}); copy it again"
        else:
            what = f"is no HDF5 file ({error}); give a *_master.h5 file, or another HDF5 file"
        raise OSError(f"{path} {what}") from error
    try:
        with file:
            yield file
    except (KeyError, RuntimeError) as error:  # h5py, where a group is damaged (3.16)
        raise OSError(f"{path} is damaged ({error}); copy it again") from error


def _walk(file: h5py.File, path: str, hops: int = 8) -> Any:
    """The object at a path, an ExternalLink where the path leaves the file, None where it ends.

    h5py would follow a link to any file of the computer; here no other file is opened.
    """
    node: Any = file
    parts = [part for part in path.split("/") if part not in ("", ".")]
    for i, part in enumerate(parts):
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        rest = parts[i + 1 :]
        if link is None:
            return None
        if isinstance(link, h5py.ExternalLink):
            return h5py.ExternalLink(link.filename, "/".join([link.path, *rest]))
        if isinstance(link, h5py.SoftLink):
            target = link.path if link.path.startswith("/") else f"{node.name}/{link.path}"
            return _walk(file, "/".join([target, *rest]), hops - 1) if hops else None
        try:
            node = node[part]
        except (KeyError, OSError, RuntimeError) as error:
            raise OSError(
                f"{file.filename} is damaged: {path} cannot be opened ({error}); copy it again"
            ) from error
    return node


def _value(file: h5py.File, path: str) -> Any:
    """A dataset of one value as plain Python; None where there is none in this file."""
    item = _walk(file, path)
    if not isinstance(item, h5py.Dataset) or item.size != 1 or item.dtype.kind not in "buifSO":
        return None
    if item.external or item.is_virtual:
        return None
    value = np.asarray(item[()]).reshape(-1)[0]
    if isinstance(value, (bytes, str)):
        return _text(value)
    return value.item() if isinstance(value, np.generic) else None


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace")


def _beside(master: Path, filename: str, sibling: Path | None) -> Path:
    """The file that a link in `master` means: inside its folder, or `sibling`, nothing else."""
    folder = master.parent
    name, inside = untrusted.linked_name(filename)
    candidates = [folder.joinpath(*name.parts)] if inside else []
    candidates += [folder / name.name] if name.name else []
    candidates += [sibling] if sibling is not None else []
    for path in candidates:
        if path.is_file():
            return path
    if inside:
        raise FileNotFoundError(
            f"{candidates[0]} is missing, {master.name} links to it; copy all chunk files of the "
            "scan into the folder of the master file"
        )
    raise OSError(
        f"{master} links to {filename!r} outside its folder, which is not followed; copy that file "
        "into the folder of the master file"
    )


def _find(path: Path, name: str, sibling: Path | None = None, hops: int = 4) -> list[Piece]:
    """The frames of a dataset, through links into files beside `path`; the dataset is whole."""
    with _open(path) as file:
        item = _walk(file, name)
        if isinstance(item, h5py.Dataset):
            return _pieces(path, item)
    if item is None:
        raise ValueError(f"{path} holds no {name!r}; {_suggest(path)}")
    if not isinstance(item, h5py.ExternalLink):
        raise ValueError(f"{name!r} of {path} is no dataset; {_suggest(path)}")
    if not hops:
        raise OSError(f"{name!r} of {path} is a chain of links without end; name a dataset")
    return _find(_beside(path, item.filename, sibling), item.path, hops=hops - 1)


def _suggest(path: Path) -> str:
    """What a file holds that could be a scan."""
    found: list[str] = []

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim in (3, 4) and len(found) < 5:
            found.append(f"dataset={name!r}")

    with _open(path) as file:
        file.visititems(note)  # does not follow links
    return f"give {' or '.join(found)}" if found else "there is no 3D or 4D dataset in it"


def _pieces(path: Path, dataset: h5py.Dataset) -> list[Piece]:
    where, shape, dtype = f"{dataset.name!r} of {path}", dataset.shape, dataset.dtype
    if dataset.ndim not in (3, 4):
        raise ValueError(
            f"{where} of shape {shape} is no scan: it must be (frames, Qx, Qy) or "
            f"(Rx, Ry, Qx, Qy); {_suggest(path)}"
        )
    if dtype.kind not in "buif":
        raise TypeError(f"{where} of type {dtype} is no scan: it must hold real numbers")
    if 0 in shape:
        raise ValueError(f"{where} of shape {shape} is empty")
    if dataset.external or dataset.is_virtual:
        # Both name other files, and HDF5 reads zeros where those are missing.
        raise OSError(
            f"{where} takes its values from other files, which is not followed; open the file that "
            "holds them, or copy the values (h5repack)"
        )
    untrusted.check_filters(dataset, where)
    _check_written(dataset, where)
    rows = range(shape[0]) if dataset.ndim == 4 else [None]
    return [Piece(path, dataset.name, row, shape, dtype.newbyteorder("=")) for row in rows]


def _check_written(dataset: h5py.Dataset, where: str) -> None:
    """HDF5 reads zeros where nothing was ever written."""
    if dataset.chunks is None:
        if dataset.id.get_storage_size() >= dataset.size * dataset.dtype.itemsize:
            return
        missing: Any = 0
    else:
        grid = [-(-n // size) for n, size in zip(dataset.shape, dataset.chunks, strict=True)]
        if dataset.id.get_num_chunks() == int(np.prod(grid, dtype=object)):
            return
        corners = (np.multiply(place, dataset.chunks) for place in np.ndindex(*grid))
        chunk = (dataset.id.get_chunk_info_by_coord(tuple(map(int, at))) for at in corners)
        missing = next(i for i, info in enumerate(chunk) if info.byte_offset is None)
        missing = int(np.unravel_index(missing, grid)[0]) * dataset.chunks[0]
    raise OSError(
        f"{where} was not written to its end: the first frame that is missing is {missing} of "
        f"{len(dataset)}; copy the file again, or, if the scan was stopped, the frames before into "
        "a file of their own"
    )


# --- opening ----------------------------------------------------------------------------------


def open_scan(
    path: str | PathLike,
    *,
    scan_shape: tuple[int, int] | None = None,
    skip_frames: int | tuple[int, int] = 0,
    flyback: int = 0,
    dataset: str | None = None,
    bad_pixels: str = "fill",
    saturated: str = "raise",
    name: str | None = None,
) -> DataCube:
    """Open a scan that stays on disk: Dectris Arina and Eiger, or plain HDF5.

    Where ``py4DSTEM.import_file(..., filetype="arina")`` reads the whole scan into memory and cuts
    32-bit counts to 16 bits, this reads a frame when it is asked for, as it was counted.

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
        What becomes of the pixels that the detector's own mask marks as bad (any of the lower 16
        bits). "fill" gives them the median of the good pixels in the smallest square around them
        that holds three; the scan keeps its type, and whatever looks for Bragg disks works.
        "missing" makes them NaN and the scan floating point. "keep" leaves what was recorded, often
        the largest value of the type.
    saturated : "raise", "missing" or "keep"
        What becomes of counts, in other than bad pixels, that are no counts: the largest value of
        an integer type, which the detector writes where it has none, and values above the
        saturation that the file states. "raise" stops at the first one with its position, when it
        is read; ``datacube.get_dp_max()`` looks through the whole scan. "missing" makes
        them NaN and the scan floating point, so choose it after "raise" found some. "keep"
        leaves them, as for patterns that were rescaled to the full range of their type.
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

    facts, mask = _read_facts(path, bad_pixels)
    pieces = _master_pieces(path, prefix) if dataset is None else _find(path, dataset)
    _check_alike(pieces)
    n_frames = sum(piece.n_frames for piece in pieces)
    shape = _scan_shape(n_frames, pieces[0], scan_shape, skip, flyback, facts)
    starts = skip[0] + (shape[1] + flyback) * np.arange(shape[0])
    index = starts[:, None] + np.arange(shape[1])

    bad = _bad_map(mask, pieces[0].shape[-2:], facts, bad_pixels, path)
    data = ScanArray(
        pieces,
        index,
        path=path,
        bad=bad,
        limit=_largest_good(pieces[0].dtype, facts),
        bad_pixels=bad_pixels,
        saturated=saturated,
    )

    cube = DataCube(data=data, name=name)
    if mask is not None:
        facts |= {"pixel_mask": mask, "bad_pixels": bad}
    settings = {"path": str(path), "dataset": dataset, "skip_frames": skip, "flyback": flyback}
    settings |= {"bad_pixels": bad_pixels, "saturated": saturated}
    cube.metadata = emdfile.Metadata(NAME, {**facts, "opened": settings})
    step = _pixel_size(path.with_name(f"{prefix}.h5"))
    if step is not None:
        cube.calibration.set_R_pixel_size(step)
        cube.calibration.set_R_pixel_units("A")
    return cube


def _load_filters() -> None:
    """Bitshuffle and LZ4 for HDF5, which py4DSTEM depends on; a file may do without."""
    with suppress(ImportError):
        import hdf5plugin  # noqa: F401


def _check_skip(skip_frames: Any) -> tuple[int, int]:
    pair = skip_frames if isinstance(skip_frames, (tuple, list)) else (skip_frames, 0)
    if len(pair) != 2:
        raise ValueError(
            f"skip_frames={skip_frames!r} must be a number, or two: before the first row and after "
            "the last"
        )
    first, last = (check_integer("skip_frames", n, 0) for n in pair)
    return first, last


def _default_name(prefix: str) -> str:
    try:
        return check_name(prefix)
    except ValueError:
        return "scan"


def _master_pieces(path: Path, prefix: str) -> list[Piece]:
    """The chunks of a master file, in their order, none missing."""
    if re.search(r"_data_\d+$", path.stem):
        master = re.sub(r"_data_\d+$", "_master.h5", path.stem)
        raise ValueError(
            f"{path} is one chunk file of a scan; give the master file, {master}, or this one with "
            "dataset='entry/data/data'"
        )
    with _open(path) as file:
        group = _walk(file, "entry/data")
        names = list(group) if isinstance(group, h5py.Group) else None
    if names is None:
        raise ValueError(
            f"{path} is no master file of Dectris: it holds no 'entry/data'; {_suggest(path)}"
        )

    siblings = {}
    for sibling in path.parent.glob("*.h5"):
        number = sibling.stem.removeprefix(f"{prefix}_data_")
        if number != sibling.stem and number.isdecimal():
            siblings[int(number)] = sibling
    chunks = {int(n[5:]): n for n in names if n.startswith("data_") and n[5:].isdecimal()}
    if not chunks and "data" in names:
        return _find(path, "entry/data/data")
    numbers = sorted(chunks or siblings)
    if not numbers:
        raise FileNotFoundError(
            f"{path} has no chunks: 'entry/data' holds no 'data_000001', and no file "
            f"{prefix}_data_000001.h5 lies beside it; copy the chunk files there"
        )
    # Files are numbered from 1, old firmware started at 0.
    missing = sorted(set(range(min(numbers[0], 1), numbers[-1])) - set(numbers))
    if missing:
        raise FileNotFoundError(
            f"{path} has no chunk data_{missing[0]:06d}, but data_{numbers[-1]:06d}; copy all "
            "chunk files of the scan into its folder"
        )
    pieces = []
    for number in numbers:
        if chunks:
            pieces += _find(path, f"entry/data/{chunks[number]}", siblings.get(number))
        else:
            pieces += _find(siblings[number], "entry/data/data")
    return pieces


def _check_alike(pieces: list[Piece]) -> None:
    first = pieces[0]
    for piece in pieces[1:]:
        if piece.shape[-2:] != first.shape[-2:] or piece.dtype != first.dtype:
            raise ValueError(
                f"{piece.dataset!r} of {piece.file} holds frames of {piece.shape[-2:]} "
                f"{piece.dtype}, that of {first.file} {first.shape[-2:]} {first.dtype}; these are "
                "not chunks of one scan, copy its files into a folder of their own"
            )


def _read_facts(path: Path, bad_pixels: str) -> tuple[dict[str, Any], NDArray[Any] | None]:
    """What a file says of the detector, in its own names and units, and its pixel mask."""
    facts = {}
    with _open(path) as file:
        for place in _FACTS:
            value = _value(file, place)
            if value is not None:
                name = place.rpartition("/")[2]
                facts[name] = value
                units = _walk(file, place).attrs.get("units")
                if isinstance(units, (str, bytes)):
                    facts[f"{name}_units"] = _text(units)
        for place in PIXEL_MASKS:
            item = _walk(file, place)
            if item is None:
                continue
            if isinstance(item, h5py.ExternalLink) and bad_pixels == "keep":
                continue
            if not isinstance(item, h5py.Dataset) or item.external or item.is_virtual:
                raise OSError(
                    f"{place!r} of {path} leads to another file, which is not followed; copy the "
                    "pixel mask into the master file, or do without, bad_pixels='keep'"
                )
            if item.ndim != 2 or item.dtype.kind not in "bui":
                raise ValueError(
                    f"{place!r} of {path}, {item.dtype} of shape {item.shape}, is no pixel mask: "
                    "it must be whole numbers (Qx, Qy)"
                )
            untrusted.check_filters(item, f"{place!r} of {path}")
            try:
                return facts, item[...]
            except (OSError, RuntimeError) as error:
                raise OSError(
                    f"{place!r} of {path} cannot be read ({error}); copy the file again"
                ) from error
    return facts, None


def _bad_map(
    mask: NDArray[Any] | None,
    detector: tuple[int, ...],
    facts: dict[str, Any],
    bad_pixels: str,
    path: Path,
) -> NDArray[Any]:
    """Pixels without counts, (Qx, Qy)."""
    if mask is None:
        return np.zeros(detector, dtype=bool)
    if mask.shape != detector:
        raise ValueError(
            f"the pixel mask of {path}, {mask.shape}, does not fit its frames, {detector}; "
            "copy the frames into a file of their own, without the mask"
        )
    # A detector that applies its mask marks every pixel with any bit (EIGER2 manual, 11.1).
    bad = mask != 0 if facts.get("pixel_mask_applied") else (mask & _BAD_BITS) != 0
    if bad.all() and bad_pixels != "keep":
        raise ValueError(
            f"the pixel mask of {path} marks every pixel as bad; bad_pixels='keep' takes them as "
            "they are"
        )
    return bad


def _largest_good(dtype: np.dtype, facts: dict[str, Any]) -> int | float | None:
    """The largest value that can be a count; None for floating point and boolean data."""
    if dtype.kind not in "iu":
        return None
    largest = int(np.iinfo(dtype).max)
    bits = facts.get("bit_depth_image")
    if isinstance(bits, int) and 1 < bits < 8 * dtype.itemsize:
        largest = 2**bits - 1
    limits = [largest - 1]
    for name in ("saturation_value", "countrate_correction_count_cutoff"):
        value = facts.get(name)
        if isinstance(value, (int, float)) and value > 0:
            limits.append(value)
            break
    return min(limits)


def _scan_shape(
    n_frames: int,
    piece: Piece,
    scan_shape: Any,
    skip: tuple[int, int],
    flyback: int,
    facts: dict[str, Any],
) -> tuple[int, int]:
    """Rows and columns that the frames make up."""
    kept = n_frames - sum(skip)
    what = f"{n_frames} frames"
    if skip != (0, 0):
        what = f"the {kept} of {what} that skip_frames={skip} leaves"
    if kept < 1:
        raise ValueError(f"skip_frames={skip} leaves none of {n_frames} frames; skip fewer")

    if scan_shape is not None:
        try:
            rows, columns = scan_shape
        except (TypeError, ValueError):
            raise TypeError(
                f"scan_shape={scan_shape!r} must be two whole numbers, (rows, columns)"
            ) from None
        rows, columns = (check_integer("scan_shape", n, 1) for n in (rows, columns))
        needed = rows * (columns + flyback)
        if kept not in (needed, needed - flyback):
            over = kept - needed
            remedy = f"it can be {_shapes(kept, flyback)}"
            if over > 0:
                remedy += f", or skip_frames={(skip[0], skip[1] + over)} drops the last {over}"
            raise ValueError(
                f"scan_shape={(rows, columns)} with flyback={flyback} needs {needed} frames and "
                f"does not fit {what}; {remedy}"
            )
        return rows, columns

    if piece.row is not None and skip == (0, 0) and piece.shape[1] > flyback:
        return piece.shape[0], piece.shape[1] - flyback
    triggers, each = facts.get("ntrigger"), facts.get("nimages")
    if isinstance(triggers, int) and isinstance(each, int):
        if triggers * each != n_frames:
            raise ValueError(
                f"there are {n_frames} frames, but the file announces {triggers * each}; copy all "
                f"chunk files, or give scan_shape if the scan was stopped: {_shapes(kept, flyback)}"
            )
        if skip == (0, 0) and min(triggers, each - flyback) > 1:
            return triggers, each - flyback
    for frames in {kept, kept + flyback}:
        columns = round((np.sqrt(flyback**2 + 4 * frames) - flyback) / 2)
        if columns > 0 and columns * (columns + flyback) == frames:
            return columns, columns
    raise ValueError(
        f"{what} with flyback={flyback} make no square; give scan_shape: {_shapes(kept, flyback)}"
    )


def _shapes(frames: int, flyback: int) -> str:
    """The scans that so many frames can be, those nearest to a square."""
    found = {
        (rows, total // rows - flyback)
        for total in {frames, frames + flyback}
        for rows in _divisors(total)
        if total // rows > flyback
    }
    nearest = sorted(found, key=lambda shape: abs(np.log(shape[0] / shape[1])))[:6]
    return " or ".join(map(str, sorted(nearest)))


def _divisors(n: int) -> list[int]:
    small = [i for i in range(1, int(np.sqrt(n)) + 1) if n % i == 0]
    return small + [n // i for i in small]


def _pixel_size(path: Path) -> float | None:
    """Distance of scan positions in Å, where the microscope wrote it beside the master file."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return None
    with _open(path) as file:
        group = _walk(file, "STEM Metadata")
        if not isinstance(group, h5py.Group) or "Pixel Size" not in group.attrs:
            return None
        size = np.ravel(group.attrs["Pixel Size"])
    if size.size == 0 or size.dtype.kind not in "iuf" or not (np.isfinite(size[0]) and size[0] > 0):
        return None
    return 10 * float(size[0])  # it is in nm
