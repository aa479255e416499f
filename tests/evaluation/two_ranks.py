"""One rank of test_distributed.py: python two_ranks.py RANK MEETING_FILE SHARDS_FILE RESULT_FILE."""

from __future__ import annotations

import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from detkit.evaluation import MeanAveragePrecision


def main(rank: int, meeting: str, shards: str, result: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    results = []
    for protocol, ranks in torch.load(shards):
        metric = MeanAveragePrecision(protocol, ["cat", "dog"])
        for detections, sample in ranks[rank]:
            metric.update([detections], [sample])
        computed = metric.compute()
        results.append((computed, len(metric.images)))
    torch.save(results, result)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
