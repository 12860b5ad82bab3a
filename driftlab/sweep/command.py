"""The command `driftlab`: `driftlab merge FOLDER ... --out=FOLDER`."""

import argparse
import sys
from collections.abc import Sequence

from driftlab.sweep.folder import FolderError
from driftlab.sweep.launch import merge


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
      arguments: the command line; `sys.argv` by default.
    """
    parser = argparse.ArgumentParser(prog="driftlab", description="Tools for runs of driftlab.")
    commands = parser.add_subparsers(required=True)
    merging = commands.add_parser(
        "merge",
        help="join the shards of a sweep",
        description="Joins the finished shards of one sweep (runs with --shard=k/n) into one run; "
        "names the shards that are missing or unfinished.",
    )
    merging.add_argument(
        "folders", nargs="+", help="shards' folders, or a folder that holds shard-k-of-n folders"
    )
    merging.add_argument("--out", required=True, help="the folder of the joined run")
    parsed = parser.parse_args(arguments)
    try:
        dataset = merge(parsed.folders, parsed.out)
    except (FolderError, OSError) as error:
        sys.exit(f"driftlab merge: {error}")
    sizes = ", ".join(f"{name} {size}" for name, size in dataset.sizes.items())
    print(f"merged into {parsed.out}: {sizes}")


if __name__ == "__main__":
    main()
