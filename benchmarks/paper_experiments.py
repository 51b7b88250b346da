"""What each of the paper's tables and figures needs: the networks to train, in the order of their seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import models
from paper_classes import OneClass
from paper_methods import AFTER, AT_START, METHODS, available
from paper_runs import Run
from paper_training import DENSE_RECIPES, FAITHFUL, RECIPES, Recipe
from weights import INITIALISATIONS

__all__ = ["EXPERIMENTS", "Scale", "planned"]

MNIST, CIFAR10 = "mnist", "cifar10"
#: Networks of Table 1 with the sparsities of its SNIP rows, and those of other methods' rows that we have.
TABLE_1 = {"lenet-300-100": (0.05, 0.02), "lenet-5": (0.02, 0.01)}
TABLE_1_AFTER = (("magnitude-after", 0.083), ("obd-after", 0.08))
RECURRENT = ("lstm-s", "gru-s", "lstm-b", "gru-b")
#: Balance beside plain SNIP, which leaves the gates of recurrent nets hardly any recurrent weights.
RECURRENT_METHODS = ("snip", "snip-balanced", "dense")
#: Table 2's networks for CIFAR-10, and what they keep.
CIFAR = {
    "alexnet-s": 0.1,
    "alexnet-b": 0.1,
    "vgg-c": 0.05,
    "vgg-d": 0.05,
    "vgg-like": 0.03,
    "wrn-16-8": 0.05,
    "wrn-16-10": 0.05,
    "wrn-22-8": 0.05,
}
TABLE_3 = ("lenet-300-100", "lenet-5", "lstm-s", "gru-s")
TABLE_3_RATE = 1e-3
KEEP_10 = 0.1
ONE_CLASS = (0.9, 0.7, 0.5, 0.3, 0.1)
BATCHES = (1, 10, 100, 1000, 10_000)
#: Fig. 4's curves: method, share kept, labels.
RANDOM_LABELS = (("dense", 1.0, "random"), ("snip", 0.01, "random"), ("snip", 0.01, "true"))
CURVES = (0.2, 0.1, 0.05, 0.02, 0.01)


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        seeds: How many, from 0.
        dataset: Of the digits' experiments.
        epochs: In place of each recipe's own.
        faithful: The published recipes of the LeNets instead of ours, in all tables.
        iterations: Of faithful training, instead of 100,000.
        few: Fewer sparsities and methods, small sets: everything in minutes.
        networks, methods: Only these.
    """

    seeds: int = 3
    dataset: str = MNIST
    epochs: int | None = None
    faithful: bool = False
    iterations: int | None = None
    few: bool = False
    networks: tuple[str, ...] = tuple(models.NETWORKS)
    methods: tuple[str, ...] = METHODS

    def recipe(self, network: str, method: str = "snip") -> Recipe:
        """The recipe of a network, with what was asked for in its place."""
        if self.faithful and network.startswith("lenet"):
            epochs = FAITHFUL.epochs if self.iterations is None else max(1, round(self.iterations / 540))
            return replace(FAITHFUL, epochs=epochs)
        recipes = {**RECIPES, **DENSE_RECIPES} if method == "dense" else RECIPES
        recipe = next(recipes[name] for name in recipes if network.startswith(name))
        if self.few:
            recipe = replace(recipe, epochs=min(recipe.epochs, 3), warm_up=min(recipe.warm_up, 40))
        return replace(recipe, epochs=self.epochs or recipe.epochs)

    def run(self, network: str, method: str, keep: float, seed: int, **others: Any) -> Run:
        dataset = CIFAR10 if network in CIFAR else self.dataset
        recipe = others.pop("recipe", self.recipe(network, method))
        scored = others.pop("scored", 100 if recipe.faithful else 1000)
        if method == "dense":
            keep, scored = 1.0, 0
        return Run(network, dataset, method, keep, seed, recipe, scored, **others)


def _table_1(scale: Scale, seed: int) -> list[Run]:
    runs = []
    for network, keeps in TABLE_1.items():
        runs += [scale.run(network, "snip", keep, seed) for keep in keeps]
        runs.append(scale.run(network, "dense", 1.0, seed))
    return runs


def _table_1_after(scale: Scale, seed: int) -> list[Run]:
    return [
        scale.run(network, method, keep, seed)
        for network in TABLE_1
        for method, keep in TABLE_1_AFTER
        if available(method)
    ]


def _recurrent(scale: Scale, seed: int) -> list[Run]:
    networks = RECURRENT[:2] if scale.few else RECURRENT
    return [scale.run(n, method, 0.05, seed) for n in networks for method in RECURRENT_METHODS]


def _cifar(scale: Scale, seed: int) -> list[Run]:
    return [scale.run(n, method, keep, seed) for n, keep in CIFAR.items() for method in ("dense", "snip")]


def _table_3(scale: Scale, seed: int) -> list[Run]:
    runs = []
    for network in (TABLE_3[0], TABLE_3[3]) if scale.few else TABLE_3:
        recipe = scale.recipe(network)
        # The paper trains all of this table by Adam; 1e-3 is its usual rate.
        recipe = replace(recipe, optimizer="adam", lr=TABLE_3_RATE, faithful=False)
        for init in INITIALISATIONS:
            if init != "vs":
                runs.append(scale.run(network, "snip", KEEP_10, seed, recipe=recipe, init=init))
    return runs


def _fig_2(scale: Scale, seed: int) -> list[OneClass]:
    return [OneClass(scale.dataset, keep, seed) for keep in ONE_CLASS]


def _fig_3(scale: Scale, seed: int) -> list[Run]:
    sizes = BATCHES[:4] if scale.few else BATCHES
    return [scale.run("lenet-300-100", "snip", KEEP_10, seed, scored=size) for size in sizes]


def _fig_4(scale: Scale, seed: int) -> list[Run]:
    images, epochs = (500, 30) if scale.few else (5000, 80)
    recipe = Recipe("adam", 1e-3, scale.epochs or epochs, weight_decay=0.0)
    return [
        scale.run("lenet-5", method, keep, seed, labels=labels, images=images, recipe=recipe)
        for method, keep, labels in RANDOM_LABELS
    ]


def _curves(scale: Scale, seed: int) -> list[Run]:
    keeps = (0.05, 0.02) if scale.few else CURVES
    methods = [name for name in (*AT_START, *AFTER) if available(name)]
    dense = scale.run("lenet-300-100", "dense", 1.0, seed)
    return [dense, *(scale.run("lenet-300-100", method, keep, seed) for method in methods for keep in keeps)]


#: By the names that --only takes.
EXPERIMENTS: dict[str, Callable[[Scale, int], Sequence[Any]]] = {
    "table1": _table_1,
    "table1-after": _table_1_after,
    "table2-rnn": _recurrent,
    "table3": _table_3,
    "fig2": _fig_2,
    "fig3": _fig_3,
    "fig4": _fig_4,
    "curves": _curves,
    "cifar": _cifar,
}


def planned(names: Sequence[str], scale: Scale) -> list[Any]:
    """All runs of the experiments, a seed at a time, so that an interrupted experiment has whole seeds."""
    return [
        run
        for name in names
        for seed in range(scale.seeds)
        for run in EXPERIMENTS[name](scale, seed)
        if isinstance(run, OneClass) or (run.model in scale.networks and run.method in scale.methods)
    ]
