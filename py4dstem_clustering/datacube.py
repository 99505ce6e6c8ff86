"""Add the methods of this package to py4DSTEM's DataCube."""

from __future__ import annotations

import inspect

from py4DSTEM import DataCube

from .diffraction.validation import cross_validate_orientation
from .explore.start import explore_clusters
from .grains.averages import clusters, get_clustered_datacube, get_clusters
from .grains.clustering import cluster, get_cluster_tree
from .patterns.filtering import filter_correlative
from .patterns.lowrank import filter_lowrank
from .patterns.similarity import get_similarity

_ATTRIBUTES = {
    "filter_correlative": filter_correlative,
    "filter_lowrank": filter_lowrank,
    "get_similarity": get_similarity,
    "get_cluster_tree": get_cluster_tree,
    "cluster": cluster,
    "get_clustered_datacube": get_clustered_datacube,
    "explore_clusters": explore_clusters,
    "cross_validate_orientation": cross_validate_orientation,
    "get_clusters": get_clusters,
    "clusters": property(clusters),
}


def register(cls: type = DataCube) -> None:
    """Add the methods to DataCube; done by ``import py4dstem_clustering``.

    Parameters
    ----------
    cls : type
        The class that receives them.

    Raises
    ------
    AttributeError
        If another package has already added one of these names; then nothing is added.
    """
    package = __name__.partition(".")[0]
    for name in _ATTRIBUTES:
        held = inspect.getattr_static(cls, name, None)
        held = held.fget if isinstance(held, property) else held
        holder = getattr(held, "__module__", type(held).__module__)
        if held is not None and str(holder).partition(".")[0] != package:
            raise AttributeError(
                f"{cls.__name__}.{name} exists already and belongs to {holder}; {package} does not "
                f"overwrite it. Remove it (del {cls.__name__}.{name}) or the package that made it"
            )
    for name, attribute in _ATTRIBUTES.items():
        setattr(cls, name, attribute)
