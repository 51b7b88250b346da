"""Trains a GPT on text, pruned by snipkern before training; beside a dense one, if asked.

    python examples/train_gpt.py                                      5 % of the weights, Python's own library as text
    python examples/train_gpt.py --compare                            a dense model in turns with it, step by step
    python examples/train_gpt.py --text 'books/*.txt' --model medium --steps 20000 --save-every 500 --resume
    torchrun --nproc-per-node 2 examples/train_gpt.py                 replicas (DDP)
    torchrun --nproc-per-node 2 examples/train_gpt.py --fsdp          shards (FSDP2)

Tokens are bytes. A checkpoint holds everything that a killed run needs to go on as if it had not been killed.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gpt_checkpoint
import gpt_report
import gpt_text
import torch
from gpt_build import Plan, build
from gpt_checkpoint import Checkpoint, CheckpointError
from gpt_model import SIZES
from gpt_options import parse
from gpt_parallel import Parallel, ParallelError
from gpt_text import Text, TextError, Windows
from gpt_training import Learner, Recipe, TrainingError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import snipkern as sk

# What may change when a run goes on from a checkpoint: everything else must be as it was.
FREE = {"out", "resume", "save_every", "text", "threads", "validate_every"}
TIMED_STEPS = 10
CHECKPOINTS = "checkpoints"


@dataclass
class Run:
    """What the learners of a run share."""

    args: argparse.Namespace
    parallel: Parallel
    windows: Windows
    console: Console

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that a resumed run must agree on, the text included."""
        chosen = {key: value for key, value in vars(self.args).items() if key not in FREE}
        return {**chosen, "text": self.windows.text.digest}

    def learner(self, plan: Plan, saved: Checkpoint | None) -> Learner:
        """A model built as planned, ready to train; as a checkpoint left it, if given."""
        args = self.args
        recipe = Recipe(
            args.steps, args.warm_up, args.lr, args.weight_decay, args.clip, args.accumulate, args.validation_batches
        )
        began = time.perf_counter()
        model = build(plan, self.windows, self.parallel, saved)
        learner = Learner(plan.name, model, recipe, self.windows, self.parallel, args.bf16)
        if saved is not None:
            gpt_checkpoint.restore_(learner, saved)
        elif plan.keep is not None:
            masks = sk.masks(model).values()
            kept, total = sum(mask.count() for mask in masks), sum(mask.numel for mask in masks)
            self.console.print(
                f"{plan.name}: kept {kept:,} of {total:,} weights, in {time.perf_counter() - began:.1f} s"
                f" with drawing them; engines {engines(model)}",
                soft_wrap=True,
            )
        return learner


def engines(model: torch.nn.Module) -> str:
    """How many layers compute in which way."""
    found: dict[str, int] = {}
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            sparse = isinstance(module, sk.nn.SparseLinear)
            name = "masked" if not sparse else "csr" if module.block is None else "bsr"
            found[name] = found.get(name, 0) + 1
    return ", ".join(f"{name} {count}" for name, count in found.items())


def plans(args: argparse.Namespace) -> list[Plan]:
    """What to train, side by side."""
    dense = Plan("dense", SIZES[args.model], args.context, args.seed)
    sparse = replace(dense, name="sparse", keep=args.keep, score_batches=args.score_batches)
    sparse = replace(sparse, memory=args.memory, engine=args.engine)
    if args.dense:
        return [dense]
    found = [dense, sparse] if args.compare else []
    if args.block is not None:
        height, width = args.block
        engine = "bsr" if args.fsdp else "auto"
        found.append(replace(sparse, name=f"sparse {height}x{width}", block=(height, width), engine=engine))
    return found or [sparse]


def fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is worth timing there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def in_bf16(learner: Learner) -> Learner:
    """A copy of a learner that computes in bfloat16, to be timed."""
    fresh = (learner.name + ", bf16", copy.deepcopy(learner.model), learner.recipe, learner.windows, learner.parallel)
    return Learner(*fresh, bf16=True)


def train(run: Run, learners: list[Learner], start: int) -> list[Learner]:
    """Trains the learners in turns from a step on; returns those that were only timed beside them for some steps."""
    args, parallel, console = run.args, run.parallel, run.console
    timed: list[Learner] = []
    if args.compare and not args.bf16 and not parallel.started and fast_bf16(parallel.device):
        timed = [in_bf16(learner) for learner in learners]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    silent = not console.is_terminal or not parallel.first
    with Progress(*columns, console=console, transient=True, disable=silent) as bar:
        task = bar.add_task("training", total=args.steps, completed=start)
        for step in range(start, args.steps):
            turn = learners + (timed if step - start < TIMED_STEPS else [])
            # Who goes second finds the batch in the cache: take turns at that too.
            for learner in turn if step % 2 else reversed(turn):
                learner.step(step)
            done = step + 1
            if done % args.validate_every == 0 or done == args.steps:
                for learner in learners:
                    learner.validate(done)
                console.print(f"step {done}/{args.steps}  " + "; ".join(map(progress, learners)), soft_wrap=True)
            if args.save_every and (done % args.save_every == 0 or done == args.steps):
                gpt_checkpoint.save(args.out / CHECKPOINTS, done, run.settings, learners, parallel)
            losses = ", ".join(f"{learner.name} {learner.losses[-1]:.3f}" for learner in learners)
            bar.update(task, completed=done, description=f"loss {losses}")
    return [learner for learner in timed if learner.seconds]


def progress(learner: Learner) -> str:
    held_out = list(learner.validation.values())[-1]
    return f"{learner.name}: loss {learner.losses[-1]:.4f}, held out {held_out:.4f}, {learner.milliseconds():.0f} ms"


def resumed(run: Run) -> Checkpoint | None:
    """The checkpoint to go on from, if there is one; checked to be of this run."""
    folder = run.args.out / CHECKPOINTS
    if not run.args.resume:
        if gpt_checkpoint.finished(folder) and run.args.save_every:
            raise CheckpointError(f"checkpoint: {folder} holds another run's; --resume it, or choose another --out")
        return None
    saved, damaged = gpt_checkpoint.newest(folder)
    for message in damaged:
        run.console.print(f"left out: {message}", soft_wrap=True)
    if saved is None:
        run.console.print(f"no checkpoint in {folder} yet: starting from the beginning", soft_wrap=True)
        return None
    settings = json.loads(json.dumps(run.settings))
    for key, value in settings.items():
        if saved.run["settings"].get(key) != value:
            name = "the bytes of --text" if key == "text" else "--" + key.replace("_", "-")
            raise CheckpointError(
                f"checkpoint: {name} must be as in {saved.folder}, {saved.run['settings'].get(key)} (got {value})"
            )
    run.console.print(f"going on from {saved.folder}", soft_wrap=True)
    return saved


def carry_out(args: argparse.Namespace, parallel: Parallel, text: Text, console: Console) -> None:
    """Trains as the options say and writes the results."""
    parts = parallel.world * args.accumulate
    if args.batch % parts:
        raise ParallelError(
            f"--batch must be a multiple of processes times --accumulate, {parallel.world} x {args.accumulate} (got"
            f" {args.batch})"
        )
    run = Run(args, parallel, Windows(text, args.batch, args.context, args.seed), console)
    size = SIZES[args.model]
    console.print(
        f"GPT {args.model}: {size.parameters(args.context):,} parameters, {size.weights():,} of them prunable;"
        f" {args.steps} steps of {args.batch} x {args.context} tokens; {parallel}, threads {torch.get_num_threads()}",
        soft_wrap=True,
    )
    console.print(f"{text.name}: {len(text.train):,} bytes, {len(text.held_out):,} more held out", soft_wrap=True)
    saved = resumed(run)
    args.out.mkdir(parents=True, exist_ok=True)  # fails now rather than after the training
    learners = [run.learner(plan, saved) for plan in plans(args)]
    began = time.perf_counter()
    timed = train(run, learners, 0 if saved is None else saved.step)
    results = {learner.name: gpt_report.summary(learner) for learner in [*learners, *timed]}
    peak = gpt_report.peak_bytes(parallel.device)
    if not parallel.first:
        return
    title = f"GPT {args.model}, {args.steps} steps, " + ("dense" if args.dense else f"{args.keep:.3g} kept")
    console.print(gpt_report.comparison(results, title))
    if timed:
        console.print(gpt_report.speeds(results))
    whose = "tensors on the GPU" if parallel.device.type == "cuda" else "the process"
    console.print(f"{time.perf_counter() - began:.0f} s; peak memory of {whose} {peak / 2**20:,.0f} MiB")
    write(args.out, results, console, settings=run.settings, text=text.name, peak_bytes=peak, world=parallel.world)


def write(folder: Path, results: dict[str, Any], console: Console, **about: Any) -> None:
    """Writes report.json, and losses.png where matplotlib is."""
    report = {**about, "threads": torch.get_num_threads(), "torch": torch.__version__, "learners": results}
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    console.print(f"wrote {folder / 'report.json'}", soft_wrap=True)
    if gpt_report.draw_losses(results, folder / "losses.png"):
        console.print(f"wrote {folder / 'losses.png'}", soft_wrap=True)
    else:
        console.print("no picture of the losses: matplotlib is not installed")


def main(argv: list[str] | None = None) -> int:
    """Trains; returns the exit status: 0, or 1 after an error that is printed."""
    args = parse(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    parallel = None
    try:
        parallel = Parallel(args.fsdp, args.device)
        console = Console(quiet=not parallel.first)
        torch.manual_seed(args.seed)
        carry_out(args, parallel, gpt_text.load(args.text), console)
    except (CheckpointError, ParallelError, TextError, TrainingError, OSError, RuntimeError, ValueError) as error:
        print(f"train_gpt.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        further = "--resume goes on from the last checkpoint" if args.save_every else "nothing was saved: --save-every"
        print(f"train_gpt.py: interrupted; {further}", file=sys.stderr)
        return 130
    finally:
        if parallel is not None:
            parallel.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
