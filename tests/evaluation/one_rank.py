"""One rank of test_distributed.py: python one_rank.py RANK WORLD_SIZE MEETING_FILE CASES_FILE RESULT_FILE."""

from __future__ import annotations

import sys
from datetime import timedelta

import torch
import torch.distributed as dist

import detkit.evaluation


def main(rank: int, world_size: int, meeting: str, cases: str, result: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
    )
    results = []
    for name, options, shards in torch.load(cases):
        group = dist.new_group(range(len(shards)))  # as many ranks as there are shards; all have to make it
        if rank >= len(shards):
            results.append(None)
            continue
        metric = getattr(detkit.evaluation, name)(**options, process_group=group)
        for detections, sample in shards[rank]:
            metric.update([detections], [sample])
        computed = metric.compute()
        results.append((computed, sum(map(len, metric.parts))))
    torch.save(results, result)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
