"""Entry point of the ``kvflow`` command: runs it and turns errors into one clear message."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from kvflow.errors import InvalidInputError, KVFlowError

__all__ = ["main"]

USAGE_EXIT_STATUS = 2
FAILURE_EXIT_STATUS = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``kvflow`` and return its exit status: 0, 1 for a failure, 2 for a wrong usage.

    An error KVFlow raises on purpose is printed as a message; with ``--debug`` in front of the
    command's name also its traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        from kvflow.cli.app import run
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package == "kvflow":
            raise
        return _complain(
            f"the kvflow command needs the package {package}, which is not installed",
            "pip install 'kvflow[cli]'",
        )
    try:
        return run(arguments)
    except InvalidInputError as error:
        return _report(error, arguments, USAGE_EXIT_STATUS)
    except KVFlowError as error:
        return _report(error, arguments, FAILURE_EXIT_STATUS)
    except KeyboardInterrupt:
        return 130


def _report(error: KVFlowError, arguments: Sequence[str], status: int) -> int:
    if arguments and arguments[0] == "--debug":
        traceback.print_exception(error)
    print(f"kvflow: {error}", file=sys.stderr)
    return status


def _complain(problem: str, remedy: str) -> int:
    print(f"kvflow: {problem}\n  what to do: {remedy}", file=sys.stderr)
    return FAILURE_EXIT_STATUS


if __name__ == "__main__":
    sys.exit(main())
