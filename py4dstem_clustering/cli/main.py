"""Run a command; a mistake of the user gives a message of one line and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .parser import make_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0 on success, 2 after a mistake of the user, 130 after Ctrl-C.

    `arguments` are by default those of the command line, ``sys.argv[1:]``.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    options.typed = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("interrupted; no file is left half-written", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, MemoryError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"{parser.prog}: error: {text}", file=sys.stderr)
        return 2
    return 0
