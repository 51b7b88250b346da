"""Options of train_gpt.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from arguments import count, device, not_negative, positive_float, positive_int, share
from gpt_model import SIZES

__all__ = ["parse"]

EPILOG = """sizes (parameters with their own context):
""" + "\n".join(
    f"  {name:8}{size.layers} layers of {size.width}, {size.heads} heads, context {size.context}:"
    f" {size.parameters() / 1e6:,.1f} million"
    for name, size in SIZES.items()
)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, with those that depend on the model's size filled in."""
    parser = argparse.ArgumentParser(
        prog="train_gpt.py",
        description="Trains a byte-level GPT, pruned to --keep before training; under torchrun on several processes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_argument_group("model and pruning")
    model.add_argument("--model", choices=SIZES, default="small", help="size, see below (default: small)")
    model.add_argument("--context", type=positive_int, help="tokens, which are bytes, in a sequence (default: by size)")
    model.add_argument("--keep", type=share, default=0.05, help="share of the weights to keep (default: 0.05)")
    model.add_argument("--block", type=positive_int, nargs=2, metavar=("H", "W"), help="keep whole blocks of this size")
    model.add_argument("--score-batches", type=positive_int, help="that score connections (default: 4; stream: 1)")
    model.add_argument(
        "--memory", choices=("plain", "stream"), default="plain", help="stream: score with one gradient alive at a time"
    )
    model.add_argument(
        "--engine",
        choices=("auto", "csr", "masked"),
        help="of pruned layers (default: auto; under --fsdp csr, or bsr with --block)",
    )
    which = model.add_mutually_exclusive_group()
    which.add_argument("--dense", action="store_true", help="train without pruning")
    which.add_argument(
        "--compare",
        action="store_true",
        help="train dense and pruned from the same weights on the same batches, in turns within every step; with"
        " --block both for single weights and for blocks",
    )

    data = parser.add_argument_group("text")
    data.add_argument(
        "--text", nargs="+", metavar="FILE", help="files or glob patterns (default: Python's standard library)"
    )

    training = parser.add_argument_group("training")
    training.add_argument("--steps", type=positive_int, default=300, help="length of the training (default: 300)")
    training.add_argument("--batch", type=positive_int, help="sequences a step, over all processes (default: by size)")
    training.add_argument(
        "--accumulate", type=positive_int, default=1, help="parts to cut each process's share into (default: 1)"
    )
    training.add_argument("--lr", type=positive_float, default=1e-3, help="peak learning rate (default: 1e-3)")
    training.add_argument("--warm-up", type=count, help="steps to the peak (default: a 20th of all)")
    training.add_argument("--weight-decay", type=not_negative, default=0.1, help="of weights (default: 0.1)")
    training.add_argument("--clip", type=positive_float, default=1.0, help="largest gradient norm (default: 1)")
    training.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    training.add_argument("--seed", type=count, default=0, help="of weights and batches (default: 0)")
    training.add_argument("--validate-every", type=positive_int, help="steps (default: a 5th of all)")
    training.add_argument(
        "--validation-batches", type=positive_int, default=10, help="of held-out text, spread evenly (default: 10)"
    )

    machine = parser.add_argument_group("machine and files")
    machine.add_argument("--fsdp", action="store_true", help="shard the model over torchrun's processes")
    machine.add_argument(
        "--device",
        type=device,
        default="cpu",
        help="cpu or cuda; each of torchrun's processes has its own (default: cpu)",
    )
    machine.add_argument("--threads", type=positive_int, help="CPU threads of a process (default: torch's choice)")
    machine.add_argument(
        "--out",
        type=Path,
        default=Path("out/gpt"),
        metavar="DIR",
        help="for all that is written (default: out/gpt)",
    )
    machine.add_argument(
        "--save-every",
        type=count,
        default=0,
        metavar="STEPS",
        help="between checkpoints (default: write none)",
    )
    machine.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint in --out, if there is one"
    )
    args = parser.parse_args(argv)
    if args.fsdp and args.engine == "masked":
        parser.error(f"--fsdp needs sparse layers: --engine csr (got {args.engine})")
    if args.block and args.engine not in (None, "auto"):
        parser.error(f"--block chooses engines itself: --engine auto (got {args.engine})")
    if args.memory == "stream" and args.score_batches not in (None, 1):
        parser.error(f"--memory stream scores one batch: --score-batches 1 (got {args.score_batches})")
    if args.memory == "stream" and args.block:
        parser.error("--block needs --memory plain (got stream)")
    args.score_batches = args.score_batches or (1 if args.memory == "stream" else 4)
    size = SIZES[args.model]
    # Under FSDP every rank computes with sparse layers, whatever they gain: masked ones would hold dense shards.
    args.engine = "csr" if args.fsdp else args.engine or "auto"
    args.context = args.context or size.context
    args.batch = args.batch or size.batch
    args.warm_up = args.steps // 20 if args.warm_up is None else args.warm_up
    args.validate_every = args.validate_every or max(1, args.steps // 5)
    return args
