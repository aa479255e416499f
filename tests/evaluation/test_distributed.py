"""Two and three processes over gloo: what they compute together is what one computes alone, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import detkit.evaluation

HERE = Path(__file__).parent


def some_images(count: int, seed: int = 0) -> list[tuple[dict, dict]]:
    """Images with ids of both kinds, equal scores, and some without detections or objects."""
    generator = torch.Generator().manual_seed(seed)

    def boxes(number: int) -> torch.Tensor:
        corner = torch.randint(0, 30, (number, 2), generator=generator).float()
        return torch.cat((corner, corner + torch.randint(5, 90, (number, 2), generator=generator)), dim=1)

    images = []
    for image in range(count):
        truths, others = image % 3, (image + 1) % 4
        objects = boxes(truths)
        near = objects.repeat(2, 1) + torch.randint(-3, 4, (2 * truths, 4), generator=generator)
        found = torch.cat((near, boxes(others)))
        labels = torch.randint(1, 4, (truths,), generator=generator)
        other_labels = torch.randint(1, 4, (others,), generator=generator)
        detections = {
            "boxes": found,
            "scores": torch.randint(1, 5, (len(found),), generator=generator) / 4,
            "labels": torch.cat((labels.repeat(2), other_labels)),
        }
        image_id = image if image % 2 else f"{image:03}"
        target = {"boxes": objects, "labels": labels, "image_id": image_id}
        target |= {name: torch.rand(truths, generator=generator) < 0.2 for name in ("difficult", "crowd")}
        images.append((detections, target))
    return images


IMAGES = some_images(11)
SHARDINGS = {
    # A sampler repeats the first image to make both equally long.
    "padded": (IMAGES[0::2], [*IMAGES[1::2], IMAGES[0]]),
    "uneven": (IMAGES[:9], IMAGES[9:]),
    "one of two has none": ([], IMAGES),
    "nobody has any": ([], []),
    "three": (IMAGES[:7], IMAGES[7:8], IMAGES[8:]),
    "one of three has none": (IMAGES[4:], [], IMAGES[:6]),
    "only the last of three has some": ([], [], IMAGES),
}
METRICS: list[tuple[str, dict[str, Any]]] = [
    ("MeanAveragePrecision", {"protocol": "coco", "class_names": ["cat", "dog", "cow"]}),
    ("MeanAveragePrecision", {"protocol": "voc07", "class_names": ["cat", "dog", "cow"]}),
    ("ProposalRecall", {"counts": [1, 3, 100]}),
]
WORLD_SIZE = 3
Rank = list[tuple[dict[str, Any], int] | None]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Rank]:
    """What each of three processes computed in each case; cases of two shards leave the third out."""
    folder = tmp_path_factory.mktemp("ranks")
    cases = [(name, options, shards) for name, options in METRICS for shards in SHARDINGS.values()]
    torch.save(cases, folder / "cases.pt")
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, str(HERE / "one_rank.py"), str(rank), str(WORLD_SIZE)),
                *(str(folder / name) for name in ("meeting", "cases.pt", f"{rank}.pt")),
            ],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD_SIZE)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD_SIZE)]


@pytest.mark.parametrize("sharding", range(len(SHARDINGS)), ids=list(SHARDINGS))
@pytest.mark.parametrize("metric", range(len(METRICS)), ids=["coco", "voc07", "recall"])
def test_ranks_together_equal_one_process(ranks: list[Rank], metric: int, sharding: int) -> None:
    (name, options), shards = METRICS[metric], list(SHARDINGS.values())[sharding]
    together = [rank[metric * len(SHARDINGS) + sharding] for rank in ranks[: len(shards)]]
    alone = getattr(detkit.evaluation, name)(**options)
    everything = IMAGES if any(shards) else []
    alone.update(*([pair[part] for pair in everything] for part in range(2)))
    expected = alone.compute()
    if everything:
        assert 0 < expected["map" if "map" in expected else "average_recall"].reshape(-1)[-1] < 1
    for (result, kept), shard in zip(together, shards, strict=True):
        assert as_bits(result) == as_bits(expected)
        assert kept == len(shard)  # afterwards each rank has its own again


def as_bits(result: dict[str, Any]) -> dict[str, Any]:
    """Numbers whose NaNs are equal too."""
    tensors = {key: value.numpy().tobytes() for key, value in result.items() if isinstance(value, torch.Tensor)}
    return {key: repr(value) for key, value in result.items()} | tensors
