"""The entry point of `clipseq` and `python -m clipseq`."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line, or exit with the names of the packages that it lacks."""
    missing = [name for name in ("typer", "rich") if find_spec(name) is None]
    if missing:
        sys.exit(
            f"the command line needs {' and '.join(missing)}: pip install 'clipseq[train]' "
            "(the library itself works without them)"
        )
    from clipseq.cli.app import run

    run()


if __name__ == "__main__":
    main()
