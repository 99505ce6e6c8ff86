"""A window in which sliders cut a cluster tree, and clicks show patterns and edit clusters.

It needs only matplotlib, and works in a script and in a notebook (``%matplotlib widget``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from threading import RLock
from typing import Any, Literal

from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..base.checks import check_choice, check_integer, check_number
from ..emd.settings import Settings
from ..grains.clusters import Clusters
from ..grains.edits import edit_clusters
from ..grains.options import METHODS, Method, check_cut
from ..grains.tree import ClusterTree, level_for
from .coloring import COLORINGS
from .drawing import alone
from .history import History, State
from .screen import Screen
from .source import Annulus, Source


class ClusterExplorer:
    """A window in which a cluster tree is cut by sliders, and clusters are edited by hand.

    Made by ``datacube.explore_clusters()``, which explains the window. The window reacts as long
    as this object, or its figure, exists.

    Attributes
    ----------
    clusters : Clusters
        Clusters on the screen, called "explored"; `keep` puts them into the tree of the datacube.
    edits : tuple of str
        What was done by hand to the cut on the screen; actions of `edit_clusters`.
    settings : dict
        What repeats the clusters on the screen without the window.
    trees : dict
        The `ClusterTree` of each method that was used last.
    method : "merge" or "grow"
        Method on the screen.
    min_size : int
        Clusters of fewer positions are not shown.
    position : (int, int) or None
        Scan position that was clicked.
    pattern, average : ndarray (Qx, Qy) or None
        Pattern of this position, and mean pattern of its cluster.
    """

    def __init__(
        self,
        source: Source,
        trees: Mapping[str, ClusterTree],
        *,
        method: Method,
        image: NDArray[Any],
        power: float = 0.25,
    ) -> None:
        self.lock = RLock()
        self._source = source
        self.trees = dict(trees)
        self.position: tuple[int, int] | None = None
        self.pattern: NDArray[Any] | None = None
        self.average: NDArray[Any] | None = None
        self._first_image = image
        self._disk: tuple[tuple[float, float], float] | None = None
        self._counts: dict[tuple[ClusterTree, int], NDArray[Any]] = {}
        self._history = History(State(self.trees[method], source.options[method].min_size))
        self._clusters = self._made(self._history.now)
        self._screen = Screen(self, source, image, power)
        self._screen.show()

    def __repr__(self) -> str:
        return f"ClusterExplorer({self._source.name!r}, {self.method!r}, {self.clusters!r})"

    # --- what is on the screen ---------------------------------------------------------------

    @property
    def figure(self) -> Figure:
        """The matplotlib figure."""
        return self._screen.figure

    @property
    @alone
    def clusters(self) -> Clusters:
        """Clusters on the screen."""
        self._screen.settle()
        return self._clusters

    @property
    def tree(self) -> ClusterTree:
        """The tree of the method on the screen."""
        return self._history.now.tree

    @property
    def method(self) -> Method:
        """Method on the screen."""
        return self._history.now.method

    @property
    def min_size(self) -> int:
        """Clusters of fewer positions are not shown."""
        return self._history.now.min_size

    @property
    def edits(self) -> tuple[str, ...]:
        """What was done by hand, as actions of `edit_clusters`."""
        return self._history.now.edits

    @property
    def settings(self) -> dict[str, Any]:
        """What repeats the clusters on the screen without the window.

        ``method`` and ``q_mask`` are options of `get_cluster_tree`; ``threshold``, ``n_clusters``,
        ``min_size`` and ``drop_background`` of `ClusterTree.cut`; ``edits`` of `edit_clusters`.
        ``disk`` is the ``geometry`` of ``datacube.get_virtual_image("circular", ...)``, None for
        the first image, and ``color`` what the colours show.
        """
        made = self.clusters.settings
        names = ("method", "q_mask", "threshold", "n_clusters", "min_size", "drop_background")
        return {
            **{name: made.get(name) for name in names},
            "edits": self.edits,
            "disk": self._disk,
            "color": self._screen.coloring,
        }

    # --- cuts --------------------------------------------------------------------------------

    def _made(self, state: State) -> Clusters:
        """The clusters of a state."""
        level, n = state.cut.get("threshold"), state.cut.get("n_clusters")
        if n is not None:
            # This does the same as `cut`, but counts the clusters at all levels only once.
            level = level_for(state.tree, self._count(state), n)
        options = replace(
            self._source.options[state.method],
            threshold=level,
            n_clusters=None,
            min_size=state.min_size,
        )
        found = state.tree._cut_with(options, "explored")
        if n is not None:
            asked = {"threshold": None, "n_clusters": n}
            found = replace(found, settings={**Settings(found.settings).everything, **asked})
        return edit_clusters(found, state.edits, tree=state.tree) if state.edits else found

    def _count(self, state: State) -> NDArray[Any]:
        """Number of clusters at each level of the tree."""
        key = state.tree, state.min_size
        if key not in self._counts:
            self._counts[key] = state.tree.n_clusters(
                min_size=state.min_size,
                drop_background=self._source.options[state.method].drop_background,
            )
        return self._counts[key]

    @property
    def counts(self) -> NDArray[Any]:
        """Number of clusters at each level of the tree on the screen."""
        return self._count(self._history.now)

    @alone
    def set(
        self,
        *,
        method: Method | None = None,
        threshold: float | Literal["auto"] | None = None,
        n_clusters: int | None = None,
        min_size: int | None = None,
    ) -> Clusters:
        """Show another cut; any value is possible, not only the steps of the sliders.

        Edits that were made by hand belong to the cut before, and go with it; `undo` brings both
        back.

        Parameters
        ----------
        method : "merge" or "grow", optional
            By default as on the screen. The tree of the other method is measured when it is first
            needed.
        threshold : float or "auto", optional
            See `ClusterTree.cut`; by default as on the screen.
        n_clusters : int, optional
            See `ClusterTree.cut`.
        min_size : int, optional
            By default as on the screen.

        Returns
        -------
        Clusters
            The clusters that are then on the screen.

        Raises
        ------
        ValueError, TypeError
            Before any work, if an argument breaks its rule.
        """
        self._screen.settle()
        now = self._history.now
        chosen: Method = self.method if method is None else method
        check_choice("method", chosen, METHODS)
        size = self.min_size if min_size is None else min_size
        asked = check_cut(chosen, threshold, n_clusters, size, None)
        cut: Mapping[str, Any] = {}
        if n_clusters is not None:
            cut = {"n_clusters": asked["n_clusters"]}
        elif threshold is not None:
            cut = {} if threshold == "auto" else {"threshold": asked["threshold"]}
        elif chosen == self.method and "n_clusters" in now.cut:
            cut = {"threshold": self._clusters.settings["level"]}
        elif chosen == self.method:
            cut = now.cut
        if chosen not in self.trees:
            self.trees[chosen] = self._source.measure(chosen)
        self._go(State(self.trees[chosen], asked["min_size"], cut))
        if now.edits:
            self._screen.say(
                "Another cut: the edits of the last one are gone; undo brings both back."
            )
        return self._clusters

    def _go(self, state: State, clusters: Clusters | None = None) -> None:
        """Go on to a state; nothing changes if its clusters cannot be had."""
        self._clusters = self._made(state) if clusters is None else clusters
        self._history.push(state)
        self._screen.show()

    @alone
    def grow_in(self, annulus: Annulus) -> None:
        """Show growth that compares only a ring of the detector.

        Parameters
        ----------
        annulus : ((float, float), (float, float))
            Centre (qx, qy), and inner and outer radius, detector pixels.
        """
        self.trees["grow"] = self._source.measure("grow", annulus)
        self.set(method="grow", threshold="auto")

    # --- edits -------------------------------------------------------------------------------

    @alone
    def edit(self, action: str | Mapping[str, Any]) -> Clusters:
        """Edit the clusters on the screen, as a tool of the window does.

        Parameters
        ----------
        action : str or mapping
            One action of `edit_clusters`, such as ``"join(at=[[3, 4], [7, 8]])"``.

        Returns
        -------
        Clusters
            The clusters that are then on the screen.

        Raises
        ------
        ValueError, TypeError
            If the action cannot be done; nothing changes then.
        """
        clusters = edit_clusters(self.clusters, [action], tree=self.tree)
        now = self._history.now
        done = clusters.settings["edits"][-1]
        self._go(replace(now, edits=(*now.edits, done)), clusters)
        return self._clusters

    def undo(self) -> Clusters:
        """Go back by one edit or cut; nothing happens if there is none."""
        return self._step(-1)

    def redo(self) -> Clusters:
        """Do again what `undo` took back; nothing happens if there is none."""
        return self._step(1)

    @alone
    def _step(self, by: int) -> Clusters:
        self._screen.settle()
        if self._history.step(by):
            self._clusters = self._made(self._history.now)
            self.trees[self.method] = self.tree
            self._screen.show()
        return self._clusters

    def keep(self, name: str = "clusters") -> Clusters:
        """Put the clusters on the screen into the tree of a datacube, like ``datacube.cluster()``.

        Parameters
        ----------
        name : str
            Name in the tree; other clusters of this name are replaced.

        Returns
        -------
        Clusters
            The same clusters with this name.

        Raises
        ------
        ValueError, TypeError
            If the name cannot be stored, or another object in the tree has it.
        """
        return self._source.keep(self.clusters, name)

    # --- looking -----------------------------------------------------------------------------

    @alone
    def color_by(self, what: str) -> None:
        """Colour the clusters by something else.

        Parameters
        ----------
        what : "cluster", "size", "phase", "orientation" or "purity"
            "phase" and "orientation" need the maps that were given to `explore_clusters`; "purity"
            reads the scan.

        Raises
        ------
        ValueError
            If the map was not given.
        """
        check_choice("color", what, COLORINGS)
        if what in ("phase", "orientation") and what not in self._source.colors:
            needs = {"phase": "phase=", "orientation": "orientation= and crystal="}
            raise ValueError(f"the {what} is not known: give {needs[what]} to explore_clusters()")
        self._screen.color_by(what)

    @alone
    def pick(self, position: tuple[int, int]) -> None:
        """Show the pattern of a scan position (rx, ry) and the average of its cluster.

        Parameters
        ----------
        position : (int, int)
            The position to show, as after a click on it.

        Raises
        ------
        ValueError, TypeError
            If it does not lie in the scan.
        """
        rx, ry = (check_integer("position", k, 0) for k in position)
        if rx >= self._source.shape[0] or ry >= self._source.shape[1]:
            raise ValueError(
                f"position={(rx, ry)} must lie inside the scan of {self._source.shape}"
            )
        labels = self.clusters.labels
        self.pattern = self._source.pattern(rx, ry)
        self.position = rx, ry
        if labels[rx, ry] >= 0:
            self._source.read_average(labels == labels[rx, ry])
        self._screen.show_patterns()

    @alone
    def show_disk(self, center: tuple[float, float] | None, radius: float = 3) -> None:
        """Show the virtual image of a disk of the pattern.

        Parameters
        ----------
        center : (float, float) or None
            Detector pixel (qx, qy); None goes back to the first image.
        radius : float
            Radius in detector pixels.

        Raises
        ------
        ValueError, TypeError
            If the centre does not lie on the detector, or the radius is below 0.5.
        """
        if center is None:
            self._disk = None
            self._screen.show_image(self._first_image, "virtual image", None)
        else:
            radius = check_number("radius", radius, 0.5)
            qx, qy = (
                check_number("center", k, 0, n - 1)
                for k, n in zip(center, self._source.detector, strict=True)
            )
            image = self._source.disk_image((qx, qy), radius)
            self._disk = (qx, qy), radius
            title = f"disk at {qx:.0f}, {qy:.0f}, radius {radius:g}"
            self._screen.show_image(image, title, self._disk)

    def disconnect(self) -> None:
        """End all reactions to mouse and keys; the figure and the clusters stay as they are."""
        self._screen.disconnect()
