"""Numbers and devices on the command line: each function reads one, or says to argparse what it must be."""

from __future__ import annotations

import argparse
import math

import torch

__all__ = ["count", "device", "not_negative", "positive_float", "positive_int", "share"]


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1 (got {text})")
    return value


def count(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 2**63 (got {text})")
    return value


def positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0 (got {text})")
    return value


def not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be at least 0 (got {text})")
    return value


def device(text: str) -> str:
    try:
        found = torch.empty(0, device=text).device
    except (AssertionError, RuntimeError) as error:
        raise argparse.ArgumentTypeError(f"must be a device of this machine (got {text}: {error})") from None
    if found.type == "meta":
        raise argparse.ArgumentTypeError(f"must be a device that computes (got {text})")
    return text


def share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1 (got {text})")
    return value
