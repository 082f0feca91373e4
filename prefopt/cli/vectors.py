"""`prefopt vectors`: writes the conformance vectors of losses as JSON, for checking any library."""

from __future__ import annotations

from pathlib import Path

from prefopt.cli.arguments import Parser
from prefopt.losses import MENU


def main(argv: list[str]) -> int:
    """Write one file a loss.

    Raises:
        UserError: a name that is not on the menu.
    """
    parser = Parser(prog="prefopt vectors", description="Write conformance vectors, one file a loss.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="losses (default: all built-in ones)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write to")
    args = parser.parse_args(argv)
    import torch

    from prefopt.losses.registry import loss_class
    from prefopt.testing.vectors import dumps, vectors

    torch.set_num_threads(1)  # tensors of a few numbers
    names = args.names or sorted(MENU)
    for name in names:
        loss_class(name)  # an unknown name fails before anything is written
    args.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        (args.out / f"{name}.json").write_text(dumps(vectors(name)))
    print(f"{len(names)} files in {args.out}")
    return 0
