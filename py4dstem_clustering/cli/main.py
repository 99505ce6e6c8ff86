"""Run a command; mistakes of the user become one line and exit code 2."""

from __future__ import annotations

import sys

from .parser import make_parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 when it is done, 2 after an error of the user, 130 after Ctrl-C."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("interrupted; nothing half-written is left", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, MemoryError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"{parser.prog}: error: {text}", file=sys.stderr)
        return 2
    return 0
