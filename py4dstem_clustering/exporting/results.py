"""Write the results of a scan as files that other programs read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..base.checks import check_flag, check_path
from ..diffraction.orientation import orientation_from_node
from ..diffraction.phases import KIND as PHASES_KIND
from ..diffraction.phases import PhaseMap
from ..emd import nodes, untrusted
from ..grains.clusters import Clusters
from ..grains.node import CLUSTERS_KIND
from ..scan.calibration import copy_calibration
from ..scan.hyperspy import describe_axes
from ..scan.rosetta import has_rosettasciio
from .ang import write_ang
from .files import write_table, write_tiff
from .indexed import index_map
from .outlines import write_geojson, write_svg
from .series import series_of, series_work


def export(
    source: Any, folder: str | PathLike[str], *, crystal: Any = None, overwrite: bool = False
) -> list[Path]:
    """Write clusters, averages and orientations of a scan as files of other programs.

    Parameters
    ----------
    source : path, DataCube, Clusters or ClusterSeries
        An EMD file with clusters or a series, such as the commands ``cluster`` and ``series`` and
        ``py4DSTEM.save`` write; a DataCube with clusters in its tree, a scan or averages; clusters;
        or a series.
    folder : path
        Folder for the files; it is made if it does not exist.
    crystal : py4DSTEM.process.diffraction.Crystal, or a dictionary of names and Crystals, optional
        The crystal of the orientations, for symmetry and lattice constants in ``.ang``; without it
        the symmetry there is none. For phases, a dictionary of all crystals.
    overwrite : bool
        Whether files of these names may be replaced.

    Returns
    -------
    list of Path
        The files that were written. For each clustering, with its name in place of ``clusters``:

        ``clusters.tif``, label + 1 of each position, 0 outside clusters, as ImageJ reads it, with
        the scan step; ``clusters.npz``, ``labels`` (-1 outside clusters), ``scan_step`` and
        ``scan_step_unit``; ``clusters.csv``, the table of `Clusters.properties`;
        ``clusters.geojson`` and ``clusters.svg``, contours.

        ``averages.hspy``, the averages of the newest clusters, if they are in the file and
        RosettaSciIO is installed. ``<name>.ang`` for each orientation map and each map of phases
        in the tree; positions without cluster or lattice are not indexed there.

        Of a series: ``tracks.csv`` and ``events.csv``, the tables of `Tracks`, and ``tracks.tif``,
        track + 1 of each position in each frame.

    Raises
    ------
    TypeError, ValueError, OSError
        If there are no clusters in `source`, or a file exists. Nothing is written then.

    Examples
    --------
    >>> clusters = datacube.cluster(progress_bar=False)
    >>> sorted(path.name for path in export(clusters, folder / "results"))[:3]
    ['clusters.csv', 'clusters.geojson', 'clusters.npz']
    """
    target = check_path("folder", folder)
    check_flag("overwrite", overwrite)
    if target.exists() and not target.is_dir():
        raise ValueError(f"folder={str(target)!r} is a file; give the name of a folder")
    series = series_of(source)
    work = _work(source, crystal) if series is None else series_work(series)
    taken = [name for name in work if (target / name).exists()]
    if taken and not overwrite:
        raise ValueError(f"{target / taken[0]} exists; give another folder, or overwrite=True")
    target.mkdir(parents=True, exist_ok=True)
    for name, write in work.items():
        write(target / name)
    return [target / name for name in work]


def _work(source: Any, crystal: Any) -> dict[str, Callable[[Path], None]]:
    """Functions that write the results of one scan, by the names of the files."""
    found, averages, orientations = _results(source)
    work: dict[str, Callable[[Path], None]] = {}
    for clusters in found:
        for ending, write in _WRITERS.items():
            work[f"{clusters.name}{ending}"] = partial(write, clusters=clusters)
    if averages is not None and has_rosettasciio():
        work["averages.hspy"] = partial(_write_hspy, averages=averages)
    newest = found[-1]
    step = newest.pixel_size, newest.pixel_units
    phased = [one for one in orientations.values() if isinstance(one, PhaseMap)]
    for name, orientation in orientations.items():
        if not isinstance(orientation, PhaseMap):
            if phased and isinstance(crystal, Mapping) and len(crystal) > 1:
                continue  # which of the crystals it belongs to is not known
            if orientation.matrix.shape[:2] == (newest.n_clusters, 1):
                orientation = newest.expand_orientation_map(orientation)
            if orientation.matrix.shape[:2] != newest.shape:
                continue
        indexed = index_map(orientation, crystal)
        work[f"{name}.ang"] = partial(write_ang, indexed=indexed, step=step)
    return work


def _results(source: Any) -> tuple[list[Clusters], Any, dict[str, Any]]:
    """Clusters, averages of the newest as a DataCube, and maps of orientations and phases."""
    from py4DSTEM import DataCube

    if isinstance(source, Clusters):
        return [source], None, {}
    cube = source if isinstance(source, DataCube) else _read(check_path("source", source))
    kept = nodes.children(cube, CLUSTERS_KIND)
    if not kept:
        raise ValueError(
            f"{cube.name!r} holds no clusters; cluster it first: datacube.cluster(), or the "
            "command cluster"
        )
    found = [Clusters.from_node(node) for node in kept.values()]
    newest = list(kept.values())[-1]
    averages = None
    if cube.data.shape[:2] == (found[-1].n_clusters, 1) and found[-1].shape != cube.data.shape[:2]:
        averages = cube
    else:
        stored = nodes.read_arrays(newest).get("averages")
        if stored is not None and len(stored):
            averages = DataCube(
                stored[:, None], name="averages", calibration=copy_calibration(cube.calibration)
            )
            averages.attach(found[-1].to_node())
    maps = nodes.children(cube, "orientation_map")
    orientations = {name: orientation_from_node(node) for name, node in maps.items()}
    for name, node in nodes.children(cube, PHASES_KIND).items():
        orientations[name] = PhaseMap.from_node(node)
    return found, averages, orientations


def _read(path: Path) -> Any:
    """The DataCube of an EMD file, with its tree; its patterns are read only if they are needed."""
    from ..scan.opening import open_scan

    with untrusted.name_in_errors(path):
        return open_scan(path)


def _write_tiff(path: Path, clusters: Clusters) -> None:
    write_tiff(path, clusters.labels, (clusters.pixel_size, clusters.pixel_units))


def _write_npz(path: Path, clusters: Clusters) -> None:
    np.savez_compressed(
        path,
        labels=clusters.labels,
        scan_step=clusters.pixel_size,
        scan_step_unit=clusters.pixel_units,
    )


def _write_csv(path: Path, clusters: Clusters) -> None:
    table = clusters.table()
    write_table(path, table.rows, table.units)


def _write_hspy(path: Path, averages: Any) -> None:
    """The averages as a file of HyperSpy, with the calibration of the detector."""
    from rsciio.hspy import file_writer

    axes = [
        axis | {"_type": "UniformDataAxis", "is_binned": False} for axis in describe_axes(averages)
    ]
    data = np.asarray(averages.data)[:, 0]
    axes = [axes[0], *axes[2:]]
    for number, axis in enumerate(axes):
        axis["index_in_array"] = number
    signal = {
        "data": data,
        "axes": axes,
        "metadata": {
            "General": {"title": averages.name},
            "Signal": {"signal_type": ""},
            "_HyperSpy": {},
        },
        "original_metadata": {},
        "attributes": {"_lazy": False, "ragged": False},
        "learning_results": {},
        "models": {},
        "package_info": {"package": "py4dstem_clustering", "package_version": ""},
        "tmp_parameters": {},
    }
    path.unlink(missing_ok=True)
    file_writer(str(path), signal)


_WRITERS: dict[str, Callable[..., None]] = {
    ".tif": _write_tiff,
    ".npz": _write_npz,
    ".csv": _write_csv,
    ".geojson": write_geojson,
    ".svg": write_svg,
}
"""What is written of clusters, by the ending of the file."""
