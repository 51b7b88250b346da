"""Pruning in several steps: schedules, prune-retrain, gradual pruning, rewinding."""

from snipkern.schedule.densities import SCHEDULES, densities
from snipkern.schedule.gradual import Gradual
from snipkern.schedule.snapshot import Snapshot
from snipkern.schedule.stages import PruneRetrain, Stage, prune_retrain

__all__ = ["SCHEDULES", "Gradual", "PruneRetrain", "Snapshot", "Stage", "densities", "prune_retrain"]
