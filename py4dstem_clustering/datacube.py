"""Add the methods of this package to py4DSTEM's DataCube."""

from __future__ import annotations

from typing import Any

from py4DSTEM import DataCube

from .base.progress import warn_user
from .explore.start import explore_clusters
from .grains.averages import clusters, get_clustered_datacube, get_clusters
from .grains.clustering import cluster, get_cluster_tree
from .grains.overlaps import find_overlaps
from .grains.validation import cross_validate_orientation
from .patterns.filtering import filter_correlative
from .patterns.lowrank import filter_lowrank
from .patterns.similarity import get_similarity


class NewestClusters:
    """The newest clusters in the tree of a datacube: ``datacube.clusters``.

    Unlike a property it lets a class of datacubes keep an attribute of the same name.
    """

    __doc__ = clusters.__doc__

    def __get__(self, datacube: Any, cls: type | None = None) -> Any:
        return self if datacube is None else clusters(datacube)


_ATTRIBUTES = {
    "filter_correlative": filter_correlative,
    "filter_lowrank": filter_lowrank,
    "get_similarity": get_similarity,
    "get_cluster_tree": get_cluster_tree,
    "cluster": cluster,
    "find_overlaps": find_overlaps,
    "get_clustered_datacube": get_clustered_datacube,
    "explore_clusters": explore_clusters,
    "cross_validate_orientation": cross_validate_orientation,
    "get_clusters": get_clusters,
    "clusters": NewestClusters(),
}


def register(cls: type = DataCube) -> None:
    """Add the methods to DataCube; done by ``import py4dstem_clustering``.

    A name that py4DSTEM or another package has taken stays with them, with a warning. The method is
    then called as a function: ``py4dstem_clustering.cluster(datacube)``.

    Parameters
    ----------
    cls : type
        The class that receives them.
    """
    package = __name__.partition(".")[0]
    for name, attribute in _ATTRIBUTES.items():
        owner = next((base for base in cls.__mro__ if name in vars(base)), None)
        if owner is not None and not _is_of(vars(owner)[name], package):
            function = "get_clusters" if name == "clusters" else name
            warn_user(
                f"{cls.__name__}.{name} exists already, in {owner.__module__}."
                f"{owner.__qualname__}, and stays as it is; call {package}.{function}(datacube, "
                "...) instead"
            )
            continue
        setattr(cls, name, attribute)


def _is_of(attribute: Any, package: str) -> bool:
    """Whether an attribute of a class was made by a package."""
    module = getattr(attribute, "__module__", None) or type(attribute).__module__
    return str(module).partition(".")[0] == package
