"""Checkpoints in safetensors and JSON: no pickle, and never half written where a resume would look.

    checkpoints/step-00000200/run.json              settings, step, names of the parameters, validation losses
    checkpoints/step-00000200/rank-0.safetensors    weights, masks, optimiser state, losses, random state
    checkpoints/step-00000200/rank-1.safetensors    the next rank's shards, under FSDP

A checkpoint is written into a folder of another name, which is renamed when everything in it is on the disk. Shards
are pieces along the first dimension, so any number of ranks can read what any other number wrote.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gpt_model import like
from gpt_parallel import Parallel
from gpt_training import Learner
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = ["Checkpoint", "CheckpointError", "finished", "newest", "restore_", "save"]

FORMAT = 1
KEPT = 2
STEP = "step-"
PARTIAL = ".partial"


class CheckpointError(Exception):
    """There is no checkpoint to go on from, or it is of another run; the message says which."""


class Checkpoint:
    """One finished checkpoint on the disk, read a tensor at a time.

    Raises:
        CheckpointError: If a file of it is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.run: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            if self.run["format"] != FORMAT:
                raise CheckpointError(f"checkpoint: {folder} must have format {FORMAT} (got {self.run['format']})")
            self.step: int = self.run["step"]
            names = [folder / f"rank-{rank}.safetensors" for rank in range(self.run["files"])]
            self.files = [safe_open(name, framework="pt") for name in names]
            self.keys = [set(file.keys()) for file in self.files]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(f"checkpoint: {folder} cannot be read ({error})") from None
        self.folder = folder

    def tensor(self, key: str) -> Tensor:
        """A whole tensor, put together from its shards."""
        pieces = [file.get_tensor(key) for file, keys in zip(self.files, self.keys, strict=True) if key in keys]
        if not pieces:
            raise CheckpointError(f"checkpoint: {self.folder} must hold {key!r} (got none)")
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def parameter(self, learner: str, name: str) -> Tensor:
        """A whole parameter of a model."""
        return self.tensor(f"{learner}/model/{name}")

    def state_dict(self, learner: str, on_meta: bool = False) -> dict[str, Tensor]:
        """A model's state dict; with ``on_meta``, parameters have shapes only, and masks are real as ever."""
        shapes: Mapping[str, list[int]] = self.run["learners"][learner]["parameters"]
        prefix = f"{learner}/model/"
        names = [key.removeprefix(prefix) for key in self.keys[0] if key.startswith(prefix)]
        return {
            name: torch.empty(shapes[name], device="meta") if on_meta and name in shapes else self.tensor(prefix + name)
            for name in names
        }

    def optimizer_state(self, learner: str, name: str) -> dict[str, Tensor]:
        """What the optimiser remembers of a parameter."""
        prefix = f"{learner}/optimizer/{name}/"
        return {key.removeprefix(prefix): self.tensor(key) for key in self.keys[0] if key.startswith(prefix)}


def finished(folder: Path) -> list[Path]:
    """The folders of all checkpoints that were written to their end, the oldest first."""
    return sorted(folder.glob(f"{STEP}*[0-9]"))


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that can be read, and what is wrong with newer ones; None where there is none at all.

    Raises:
        CheckpointError: If there are checkpoints, and none can be read.
    """
    damaged: list[str] = []
    for path in reversed(finished(folder)):
        try:
            return Checkpoint(path), damaged
        except CheckpointError as error:
            damaged.append(str(error))
    if damaged:
        raise CheckpointError(damaged[0])
    return None, []


def save(folder: Path, step: int, settings: Mapping[str, Any], learners: list[Learner], parallel: Parallel) -> Path:
    """Writes a checkpoint after so many steps and removes all but the two newest; returns its folder.

    All ranks call it: each writes what it alone holds, the first one what all share.
    """
    path = folder / f"{STEP}{step:08}"
    partial = path.with_name(path.name + PARTIAL)
    if parallel.first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    parallel.barrier()
    if parallel.first or parallel.fsdp:
        tensors = {key: value for learner in learners for key, value in _tensors(learner, parallel).items()}
        tensors[f"random/{parallel.rank}"] = torch.get_rng_state()
        file = partial / f"rank-{parallel.rank}.safetensors"
        save_file(tensors, file)
        _flush(file)
    parallel.barrier()
    if parallel.first:
        run = {
            "format": FORMAT,
            "step": step,
            "files": parallel.world if parallel.fsdp else 1,
            "settings": dict(settings),
            "learners": {
                learner.name: {
                    "parameters": {name: list(p.shape) for name, p in learner.model.named_parameters()},
                    "validation": list(learner.validation.items()),
                }
                for learner in learners
            },
        }
        (partial / "run.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
        _flush(partial / "run.json")
        _flush(partial)
        shutil.rmtree(path, ignore_errors=True)  # a damaged one that the run did not go on from
        partial.rename(path)
        _flush(folder)
        for old in finished(folder)[:-KEPT]:
            shutil.rmtree(old)
    parallel.barrier()
    return path


def restore_(learner: Learner, saved: Checkpoint) -> None:
    """Gives a learner, whose model has been built from the checkpoint, its optimiser's state and its record back."""
    for name, parameter in learner.model.named_parameters():
        state = {key: like(value, parameter) for key, value in saved.optimizer_state(learner.name, name).items()}
        # A fused step counts on the device, any other on the CPU.
        fused = learner.optimizer.defaults["fused"]
        learner.optimizer.state[parameter] = {
            key: value.to(parameter.device) if fused or key != "step" else value for key, value in state.items()
        }
    learner.losses = saved.tensor(f"{learner.name}/losses").tolist()
    learner.seconds = saved.tensor(f"{learner.name}/seconds").tolist()
    learner.validation = {int(step): loss for step, loss in saved.run["learners"][learner.name]["validation"]}
    key = f"random/{learner.parallel.rank}"
    if any(key in keys for keys in saved.keys):
        torch.set_rng_state(saved.tensor(key))


def _tensors(learner: Learner, parallel: Parallel) -> dict[str, Tensor]:
    """What this rank writes of a learner: its shards, and, if it is the first, what is whole."""
    everything: dict[str, Tensor] = {f"model/{name}": value for name, value in learner.model.state_dict().items()}
    for name, parameter in learner.model.named_parameters():
        for key, value in learner.optimizer.state.get(parameter, {}).items():
            everything[f"optimizer/{name}/{key}"] = value
    everything["losses"] = torch.tensor(learner.losses, dtype=torch.float64)
    everything["seconds"] = torch.tensor(learner.seconds, dtype=torch.float64)
    return {
        f"{learner.name}/{key}": (value.to_local() if isinstance(value, DTensor) else value).detach().contiguous()
        for key, value in everything.items()
        if parallel.first or isinstance(value, DTensor)
    }


def _flush(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
