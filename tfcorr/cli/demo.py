"""`tfcorr demo`: the web page, on this machine."""

from __future__ import annotations

import argparse

from tfcorr.cli.arguments import positive_int
from tfcorr.cli.messages import start_tensorflow
from tfcorr.errors import UsageError

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Serves a web page that upscales images dropped on it, shows the result beside the input, where its detail came
from, and how sure that is; a second tab matches pictures of different things of one kind. Nothing is loaded
from the network and nothing is sent there. Needs the extra `demo`: pip install 'tfcorr[demo]'.
"""

_EPILOG = """\
examples:
  tfcorr demo --open
  tfcorr demo --port 8080 --model runs/restorer/model
  tfcorr demo --host 0.0.0.0 --max-pixels 100000     let other machines in; there is no password
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Registers the subcommand."""
    parser = subparsers.add_parser(
        "demo",
        help="the web page",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=positive_int, default=7860, help="port to listen at (default: 7860)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at (default: 127.0.0.1, this machine only)",
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="a model of `tfcorr models` or a model folder (default: the default model)",
    )
    parser.add_argument(
        "--semantic-model", metavar="MODEL", help="likewise, for the tab of semantic matching"
    )
    parser.add_argument(
        "--max-pixels",
        type=positive_int,
        metavar="N",
        help="pixels of the largest image that is upscaled (default: 250000)",
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def run(args: argparse.Namespace) -> int:
    """Serves the page until it is interrupted."""
    from tfcorr.serving.demo import MAX_PIXELS, serve

    if args.port > 65535:
        raise UsageError(f"--port {args.port}: expected a number up to 65535")
    start_tensorflow()
    serve(
        host=args.host,
        port=args.port,
        model=args.model,
        semantic_model=args.semantic_model,
        max_pixels=args.max_pixels or MAX_PIXELS,
        open_browser=args.open,
    )
    return 0
