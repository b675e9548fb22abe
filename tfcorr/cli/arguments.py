"""Arguments that commands share, and their types: a text in, a value out, or one clear sentence for argparse
to print."""

from __future__ import annotations

import argparse
import math
import re

__all__ = ["add_config", "byte_count", "output_size", "positive_int", "scale_factor"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds what `tfcorr.config.load_config` takes: `config`, and `overrides` that may be none."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of one that ships")
    parser.add_argument(
        "overrides", metavar="KEY=VALUE", nargs="*", help="values that replace those of the file, keys dotted"
    )


def byte_count(text: str) -> int:
    """Returns the bytes that a text like `2GB`, `1.5G`, `800MB` or `2GiB` stands for.

    Raises:
        argparse.ArgumentTypeError: not a positive number with one of these units.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]?i?)b?\s*", text, flags=re.IGNORECASE)
    unit = {**_UNITS, **_BINARY_UNITS}.get(match[2].lower()) if match else None
    value = int(float(match[1]) * unit) if match and unit else 0
    if value <= 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no amount of memory (expected for example 2GB or 800MB)"
        )
    return value


def scale_factor(text: str) -> float:
    """Returns a scale from 1 to 8.

    Raises:
        argparse.ArgumentTypeError: no number, or outside that range.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 <= value <= 8:
        raise argparse.ArgumentTypeError(f"{text!r} is no scale (expected a number from 1 to 8)")
    return value


def output_size(text: str) -> tuple[int, int]:
    """Returns the (width, height) in pixels that a text like `1920x1080` names.

    Raises:
        argparse.ArgumentTypeError: not of this form, or a side of 0 or of more than 65535.
    """
    match = re.fullmatch(r"(\d{1,6})[xX×](\d{1,6})", text.strip())
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(1 <= side <= 65535 for side in size):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size (expected WIDTHxHEIGHT, for example 1920x1080)"
        )
    return size


def positive_int(text: str) -> int:
    """Returns a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)
