"""`prefopt referee NAME`: checks another library's losses against the conformance vectors."""

from __future__ import annotations

import dataclasses

from prefopt.cli.arguments import Parser
from prefopt.common.json_output import print_json


def main(argv: list[str]) -> int:
    """Print the verdict on every loss.

    Raises:
        UserError: an unknown library, or one that is not installed.
    """
    parser = Parser(prog="prefopt referee", description="Check another library's losses.")
    parser.add_argument("name", metavar="NAME", help="the library, such as trl")
    parser.add_argument("--json", action="store_true", help="print loss: {verdict, convention, max_error, detail}")
    args = parser.parse_args(argv)
    import torch

    from prefopt.testing.peers import load_peer
    from prefopt.testing.referee import judge_all
    from prefopt.testing.vectors import vectors

    peer = load_peer(args.name)
    torch.set_num_threads(1)  # tensors of a few numbers
    rulings = judge_all(peer.PEER, vectors)
    if args.json:
        print_json({name: dataclasses.asdict(ruling) for name, ruling in rulings.items()}, indent=2)
        return 0
    print(peer.version())
    for name, ruling in rulings.items():
        if ruling.verdict != "absent":
            print(f"{name:16} {ruling.verdict:8} {ruling.convention or ''}  {ruling.detail or ''}".rstrip())
    return 0
