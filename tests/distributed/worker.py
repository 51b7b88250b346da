"""One rank of a test: runs all checks for its number of ranks and writes down what came of each.

python worker.py RANK RANKS FOLDER [CHECK ...]
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from checks_criteria import (
    a_criterion_that_fails_on_one_rank_fails_on_all,
    every_criterion_finds_the_masks_of_one_process,
    fsdp_scores_magnitudes_and_chance,
    updates_are_the_same_on_all_ranks,
)
from checks_curvature import comparisons_are_the_same_on_all_ranks, curvature_is_averaged_over_ranks
from checks_failing import (
    a_bad_gradient_in_one_shard_fails_everywhere,
    a_part_of_the_ranks_prunes_by_itself,
    a_rank_that_dies_fails_the_others,
    a_rank_that_fails_among_shared_out_layers_fails_all,
    a_rank_that_hangs_times_out,
    a_sharded_loss_that_raises_everywhere_leaves_shards,
    ranks_must_agree_on_what_they_prune,
    what_fails_on_one_rank_fails_on_all,
)
from checks_recurrent import recurrent_modules_train_replicated, recurrent_modules_train_sharded
from checks_replicated import (
    blocks_and_chance_are_the_same_on_all_ranks,
    ddp_after_pruning_trains_like_one_process,
    ddp_before_pruning_trains_like_one_process,
    ddp_is_pruned_again_and_rewound_like_one_process,
    ddp_moves_its_optimizer_and_keeps_its_hooks,
    engines_are_rank_zeros,
    fresh_draws_are_the_same_on_all_ranks,
    gradients_are_averaged_before_scores,
    shared_gradients_give_the_masks_of_one_process,
)
from checks_sharded import (
    fsdp_after_pruning_trains_like_one_process,
    fsdp_finds_the_masks_of_one_process,
    fsdp_masked_in_place_trains_like_one_process,
    fsdp_refuses_gradients_that_are_not_reduced,
    fsdp_refuses_what_it_cannot_convert,
    fsdp_shares_out_like_one_process,
    fsdp_sparse_rebuilt_trains_like_one_process,
    replicated_shards_find_the_masks_of_one_process,
    tensor_parallel_finds_the_masks_of_one_process,
    tensor_parallel_shares_out_like_one_process,
    two_dimensional_shards_find_the_masks_of_one_process,
)
from models_of_ranks import (
    PATIENCE,
)

FOR_ALL = (
    shared_gradients_give_the_masks_of_one_process,
    gradients_are_averaged_before_scores,
    ddp_before_pruning_trains_like_one_process,
    fsdp_finds_the_masks_of_one_process,
    fsdp_sparse_rebuilt_trains_like_one_process,
    tensor_parallel_finds_the_masks_of_one_process,
)
FOR_TWO = (
    blocks_and_chance_are_the_same_on_all_ranks,
    fresh_draws_are_the_same_on_all_ranks,
    engines_are_rank_zeros,
    ddp_after_pruning_trains_like_one_process,
    ddp_moves_its_optimizer_and_keeps_its_hooks,
    ddp_is_pruned_again_and_rewound_like_one_process,
    fsdp_shares_out_like_one_process,
    tensor_parallel_shares_out_like_one_process,
    fsdp_masked_in_place_trains_like_one_process,
    fsdp_after_pruning_trains_like_one_process,
    fsdp_refuses_what_it_cannot_convert,
    fsdp_refuses_gradients_that_are_not_reduced,
    curvature_is_averaged_over_ranks,
    comparisons_are_the_same_on_all_ranks,
    every_criterion_finds_the_masks_of_one_process,
    updates_are_the_same_on_all_ranks,
    fsdp_scores_magnitudes_and_chance,
    recurrent_modules_train_replicated,
    recurrent_modules_train_sharded,
    a_rank_that_fails_among_shared_out_layers_fails_all,
    a_sharded_loss_that_raises_everywhere_leaves_shards,
    a_criterion_that_fails_on_one_rank_fails_on_all,
)
FOR_SEVERAL = (
    what_fails_on_one_rank_fails_on_all,
    ranks_must_agree_on_what_they_prune,
    a_bad_gradient_in_one_shard_fails_everywhere,
)
FOR_FOUR = (
    two_dimensional_shards_find_the_masks_of_one_process,
    replicated_shards_find_the_masks_of_one_process,
    a_part_of_the_ranks_prunes_by_itself,
)
# Ranks are lost by these, so that they come last.
LAST = (a_rank_that_hangs_times_out, a_rank_that_dies_fails_the_others)
CHECKS = {1: FOR_ALL, 2: FOR_ALL + FOR_TWO + FOR_SEVERAL + LAST, 4: FOR_ALL + FOR_SEVERAL + FOR_FOUR}


def main(rank: int, ranks: int, place: str, *chosen: str) -> None:
    folder = Path(place)
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=PATIENCE)
    results: dict[str, str] = {}
    for check in CHECKS[ranks]:
        if chosen and check.__name__ not in chosen:
            continue
        started, used = time.monotonic(), time.process_time()
        try:
            check()
            results[check.__name__] = "ok"
            print(f"{check.__name__}: {time.monotonic() - started:.1f} s, {time.process_time() - used:.1f} s of a core")
        except Exception:
            results[check.__name__] = traceback.format_exc()
        (folder / f"rank{rank}.json").write_text(json.dumps(results))
    if CHECKS[ranks][-1] in LAST:
        os._exit(0)  # the group has lost a rank
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
