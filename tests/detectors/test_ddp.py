"""Two processes over gloo: one model, and each image counted once although the samplers pad."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest

import detkit
from detkit.data import Shapes

pytestmark = pytest.mark.filterwarnings("ignore:.*overridden `transfer_batch_to_device`")
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[dict[str, Any]]]:
    """The data, the folder of results, and what each rank told."""
    shapes, results = tmp_path_factory.mktemp("ddp") / "shapes", tmp_path_factory.mktemp("results")
    Shapes(str(shapes), 7, 5, 3, 64).prepare_data()
    inherited = {k: v for k, v in os.environ.items() if k not in ("PL_GLOBAL_SEED", "LOCAL_RANK", "MASTER_PORT")}
    environment = inherited | {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "ddp_script.py"), str(shapes), str(results)]
    done = subprocess.run(command, env=environment, cwd=results, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    return shapes, results, [json.loads((results / f"{rank}.json").read_text()) for rank in range(2)]


def test_each_image_is_counted_once(ranks: tuple[Path, Path, list[dict[str, Any]]]) -> None:
    val, test = ([f"{split}_{i:05d}" for i in range(count)] for split, count in (("val", 5), ("test", 3)))
    for told in ranks[2]:
        # Two epochs of the fit, the validation, the test.
        assert [sorted(ids) for ids in told["counted"]] == [val, val, val, test]


def test_the_ranks_share_the_training_images(ranks: tuple[Path, Path, list[dict[str, Any]]]) -> None:
    first, second = (told["seen"] for told in ranks[2])
    assert len(first) == len(second) == 2 * 4  # 7 images and one again, in each epoch
    for epoch in range(2):
        both = first[epoch * 4 : epoch * 4 + 4] + second[epoch * 4 : epoch * 4 + 4]
        assert len(set(both)) == 7


def test_the_ranks_have_the_same_metrics_and_weights(ranks: tuple[Path, Path, list[dict[str, Any]]]) -> None:
    first, second = ranks[2]
    # NaN is no number equal to itself: JSON's text is compared.
    fits = [{k: v for k, v in told["metrics"][0].items() if not k.startswith("train/")} for told in (first, second)]
    assert {"val/map", "val/loss", "val/loss_classifier"} <= set(fits[0])
    assert json.dumps(fits[0], sort_keys=True) == json.dumps(fits[1], sort_keys=True)
    assert json.dumps(first["metrics"][1:]) == json.dumps(second["metrics"][1:])
    assert first["weights"] == second["weights"] and len(first["weights"]) > 20


def test_one_process_finds_the_same(ranks: tuple[Path, Path, list[dict[str, Any]]]) -> None:
    shapes, results, told = ranks
    model = detkit.load(results / "end.ckpt")
    data = Shapes(str(shapes), 7, 5, 3, 64, num_workers=0)
    trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    for run, expected in ((trainer.validate, told[0]["metrics"][1]), (trainer.test, told[0]["metrics"][2])):
        run(model, datamodule=data, verbose=False)
        alone = {k: v for k, v in model.last_metrics.items() if k.startswith("ma")}
        assert alone.keys() == expected.keys()
        for name, value in alone.items():
            assert value == pytest.approx(expected[name], abs=1e-5, nan_ok=True), name
    assert told[0]["metrics"][1]["map"] > 0  # something was found at all
