"""Functions that benchmarks on simulated scans share: checks of options, tables."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..base.checks import check_integer, check_number


def check_seeds(first: int, number: int, tuning: range) -> range:
    """Return `number` seeds from `first` on; seeds on which settings were tuned are refused."""
    number = check_integer("--seeds", number, 1)
    first = check_integer("--first-seed", first, 0)
    seeds = range(first, first + number)
    if set(seeds) & set(tuning):
        raise ValueError(
            f"seeds {first} to {seeds[-1]} include some of {tuning[0]} to {tuning[-1]},"
            " on which settings were tuned; choose others with --first-seed and --seeds"
        )
    return seeds


def check_doses(electrons: Iterable[float]) -> list[float]:
    """Return the doses, electrons a pattern, in rising order, each once."""
    return sorted({check_number("--electrons", value, 1, 1e9) for value in electrons})


def check_names(option: str, names: Iterable[str], known: Collection[str]) -> tuple[str, ...]:
    """Return the names that were given to an option, each once, in the order of `known`."""
    wanted = {name.lower() for name in names}
    unknown = sorted(wanted - set(known))
    if unknown:
        raise ValueError(f"{option} {' '.join(unknown)} is not known; there are {', '.join(known)}")
    return tuple(name for name in known if name in wanted)


def doses_of(rows: Iterable[Any]) -> list[float]:
    """Return the doses of the rows of a benchmark, in rising order, each once."""
    return sorted({row.electrons for row in rows})


def write_csv(path: Path, rows: Sequence[Any]) -> None:
    """Write a line for each row, under the names of its fields; None becomes an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0]._fields)
        for row in rows:
            writer.writerow([f"{x:.6g}" if isinstance(x, float) else x for x in row])


def markdown_table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], texts: Collection[int] = ()
) -> str:
    """Return a table in Markdown; columns are aligned to the right, except those in `texts`."""
    rules = ["---" if i in texts else "---:" for i in range(len(heads))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, rules, *rows))


def mean_and_worst(quality: Sequence[float]) -> str:
    """Mean of qualities, and the worst in brackets, for a table."""
    return f"{np.mean(quality):.2f} ({min(quality):.2f})"
