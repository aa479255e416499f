"""The paper's 4-step training on Shapes: what learns when, what is shared, and going on after a stop."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

import detkit
from detkit.cli.main import main
from detkit.data import Shapes
from detkit.detectors.alternating import AlternatingSchedule, bounds, repeated, step_at
from detkit.errors import ConfigError
from detkit.settings import construct

from .conftest import OPTIONS

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{text}")
    for text in (
        "overridden `transfer_batch_to_device`",
        "when using `ckpt_path`, callbacks",
        "in eval mode at the start",
    )
]

STEPS = 12
ENDS = [4, 6, 10, 12]
LEARNS = [{"rpn_backbone", "rpn"}, {"backbone", "roi_heads"}, {"rpn"}, {"roi_heads"}]
PARTS = {"rpn_backbone", "backbone", "rpn", "roi_heads"}

State = dict[str, Tensor]


def small(**options: Any) -> detkit.FasterRCNN:
    torch.manual_seed(0)
    return construct(detkit.FasterRCNN, OPTIONS | {"training_scheme": "alternating"} | options)


class Watch(L.Callback):
    """Copies of the model's state before the first step and after each."""

    def __init__(self) -> None:
        self.states: list[State] = []
        self.rates: list[float] = []

    def on_train_start(self, trainer: L.Trainer, model: L.LightningModule) -> None:
        self.states.append(copy(model))

    def on_train_batch_start(self, trainer: L.Trainer, model: L.LightningModule, batch: Any, index: int) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: L.Trainer, model: L.LightningModule, *_: Any) -> None:
        self.states.append(copy(model))


def copy(model: torch.nn.Module) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def fit(
    model: detkit.FasterRCNN, shapes: Path, folder: Path | None = None, resume: Path | None = None, **options: Any
) -> tuple[L.Trainer, Watch]:
    watch = Watch()
    callbacks: list[L.Callback] = [watch]
    if folder is not None:
        callbacks.append(
            ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1, auto_insert_metric_name=False)
        )
    trainer = L.Trainer(
        **({"max_steps": STEPS} | options),
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=folder is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    data = Shapes(str(shapes), 8, 1, 2, 64, batch_size=2, num_workers=0)
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
    return trainer, watch


class Run(NamedTuple):
    """An uninterrupted run of 12 steps, its states (one more than steps) and the folder of its checkpoints."""

    model: detkit.FasterRCNN
    watch: Watch
    folder: Path
    shapes: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("alternating")
    model = small()
    _, watch = fit(model, root / "shapes", root / "checkpoints")
    return Run(model, watch, root / "checkpoints", root / "shapes")


@pytest.mark.parametrize(
    ("total", "ends"), [(12, [4, 6, 10, 12]), (240_000, [80_000, 120_000, 200_000, 240_000]), (7, [2, 4, 6, 7])]
)
def test_the_steps_share_a_run_as_the_authors_do(total: int, ends: list[int]) -> None:
    assert bounds(total) == ends
    assert [step_at(end - 1, total) for end in ends] == [0, 1, 2, 3]
    assert [step_at(end, total) for end in ends] == [1, 2, 3, 3]


def test_the_schedule_runs_anew_in_each_step() -> None:
    def falling(steps: int) -> Callable[[int], float]:
        return lambda step: 1 - step / steps

    factor = repeated(falling, 12)
    rates = [factor(step) for step in range(12)]
    assert rates == [1.0, 0.75, 0.5, 0.25, 1.0, 0.5, 1.0, 0.75, 0.5, 0.25, 1.0, 0.5]


def test_the_warm_up_is_the_same_at_the_start_of_each_step(run: Run) -> None:
    rates = run.watch.rates
    assert len(rates) == STEPS
    assert rates[0] < rates[1] < rates[2]
    for start in ENDS[:-1]:
        assert rates[start : start + 2] == pytest.approx(rates[:2])


@pytest.mark.parametrize("step", range(4))
def test_exactly_the_parts_whose_turn_it_is_change(run: Run, step: int) -> None:
    first, last = ([0, *ENDS][step], ENDS[step])
    before, after = run.watch.states[first], run.watch.states[last]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # Parameters, and the statistics and counts of batch norms.
    assert changed == {name for name in before if name.split(".")[0] in LEARNS[step]}
    assert {name.split(".")[0] for name in before} >= PARTS


def test_what_the_transfer_policy_fixes_stays_fixed(run: Run) -> None:
    model = small(features__transfer="partial", features__trainable_stages=1)
    _, watch = fit(model, run.shapes)
    before, after = watch.states[0], watch.states[-1]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    for part in ("backbone", "rpn_backbone"):
        stages = {name.split(".")[2] for name in changed if name.startswith(f"{part}.")}
        everything = {name.split(".")[2] for name in before if name.startswith(f"{part}.")}
        assert stages == {max(everything)}
        assert len(everything) > 1


def test_batch_norms_that_do_not_learn_keep_their_statistics(run: Run) -> None:
    # ResNet's conv5 as the head of each region holds batch norms that learn with the head.
    model = small(backbone="resnet18", roi__head="top", image__min_size=64, features__freeze_batch_norm=False)
    _, watch = fit(model, run.shapes)
    statistics = [name for name in watch.states[0] if name.startswith("roi_heads.") and "running_mean" in name]
    assert statistics
    for step, (first, last) in enumerate(itertools.pairwise([0, *ENDS])):
        moved = [not torch.equal(watch.states[first][name], watch.states[last][name]) for name in statistics]
        assert all(moved) if "roi_heads" in LEARNS[step] else not any(moved)


def test_training_mode_is_back_once_it_is_a_parts_turn(run: Run) -> None:
    norms = {
        part: [m for m in run.model.get_submodule(part).modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for part in ("backbone", "rpn_backbone")
    }
    run.model.train()
    for step, training_step in enumerate([0, *ENDS[:-1]]):
        run.model.alternation.step = step
        trainer = SimpleNamespace(estimated_stepping_batches=STEPS, global_step=training_step, optimizers=[])
        run.model.alternation.on_train_batch_start(trainer, run.model, [], 0)
        for part, found in norms.items():
            assert found
            assert all(norm.training == (part in LEARNS[step]) for norm in found)
            assert all(p.requires_grad == (part in LEARNS[step]) for p in run.model.get_submodule(part).parameters())


@pytest.mark.parametrize("step", range(4))
def test_the_rpn_reads_its_own_backbone_until_the_third_step(run: Run, step: int) -> None:
    model = small().eval()
    model.alternation.step = step
    batch = [{"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)}]
    with torch.no_grad():
        before = model.encode(batch)
        for parameter in model.rpn_backbone.parameters():
            parameter.add_(0.1)
        after = model.encode(batch)
    same = step >= 2
    assert torch.equal(before.rpn.logits, after.rpn.logits) == same
    assert torch.equal(before.features[0], after.features[0])


@pytest.mark.parametrize("stop", [5, 11])
def test_resumed_inside_a_step_equals_uninterrupted(run: Run, stop: int) -> None:
    model = small()
    with torch.no_grad():  # everything comes from the checkpoint
        for parameter in model.parameters():
            parameter.zero_()
    trainer, watch = fit(model, run.shapes, resume=run.folder / f"{stop}.ckpt")
    assert trainer.global_step == STEPS
    assert watch.rates == run.watch.rates[stop:]
    own = {name: value for name, value in copy(model).items() if stop < ENDS[1] or not name.startswith("rpn_backbone.")}
    for name, value in own.items():
        assert torch.equal(value, run.watch.states[-1][name]), name


def test_a_resumed_run_with_a_later_end_does_not_go_back(run: Run) -> None:
    assert step_at(11, 2 * STEPS) == 1
    _, watch = fit(small(), run.shapes, resume=run.folder / "11.ckpt", max_steps=2 * STEPS)
    before, after = watch.states[0], watch.states[-1]
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"roi_heads"}


def test_a_second_fit_begins_with_the_first_step(run: Run) -> None:
    model = small()
    fit(model, run.shapes, max_steps=STEPS)
    _, watch = fit(model, run.shapes, max_steps=STEPS)
    before, after = watch.states[0], watch.states[ENDS[0]]
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == LEARNS[0]


@pytest.mark.parametrize("stop", [3, 5, 9, 12])
def test_a_checkpoint_of_any_step_is_loaded_and_detects_the_same(run: Run, stop: int) -> None:
    file = run.folder / f"{stop}.ckpt"
    content = torch.load(file, weights_only=True)
    held = {name.split(".")[0] for name in content["state_dict"]}
    assert ("rpn_backbone" in held) == (stop <= ENDS[1])
    loaded = detkit.load(file)
    reference = small().eval()
    reference.alternation.step = step_at(stop - 1, STEPS)
    reference.load_state_dict(run.watch.states[stop])
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    found, wanted = loaded.predict(image), reference.predict(image)
    assert len(wanted["scores"])
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


CONFIG = """
model:
  class_path: FasterRCNN
  init_args:
    {backbone: tiny, features: {fpn: false}, image: {min_size: 64, max_size: 64}, anchors: {sizes: [[16, 32]]},
     rpn: {post_nms: [20, 20]}, roi: {pool_size: 3, head_channels: 16}, training_scheme: alternating}
data:
  class_path: Shapes
  init_args: {path: shapes, num_train: 4, num_val: 1, num_test: 2, image_size: 64, num_workers: 0}
trainer: {accelerator: cpu, max_epochs: 5}
"""


def test_the_command_line_tests_and_goes_on_with_what_it_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("four.yaml").write_text(CONFIG)
    for arguments in (
        ["fit", "--config", "four.yaml"],
        ["test", "--ckpt_path", "runs/four/version_0/checkpoints/last.ckpt"],
        ["fit", "--config", "four.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "6"],
    ):
        assert main(arguments) == 0, capsys.readouterr().err
    content = torch.load("runs/four/version_1/checkpoints/last.ckpt", weights_only=True)
    assert content["callbacks"]["AlternatingSchedule"] == {"step": 3}
    assert content["global_step"] == 12


def test_a_run_without_an_end_is_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"max_epochs or trainer\.max_steps"):
        fit(small(), run.shapes, max_steps=-1, max_epochs=-1)


@pytest.mark.parametrize(
    ("processes", "options", "works"), [(2, {}, False), (1, {}, True), (2, {"find_unused_parameters": True}, True)]
)
def test_several_processes_need_a_strategy_that_allows_it(
    processes: int, options: dict[str, bool], works: bool
) -> None:
    trainer = SimpleNamespace(strategy=DDPStrategy(**options), world_size=processes)
    if works:
        AlternatingSchedule().on_fit_start(trainer, small())
    else:
        with pytest.raises(ConfigError, match="ddp_find_unused_parameters_true"):
            AlternatingSchedule().on_fit_start(trainer, small())
