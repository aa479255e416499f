"""fit, validate, test and predict: LightningCLI with detkit's classes, defaults, messages and run folders."""

from __future__ import annotations

import importlib
import inspect
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from detkit.cli.arguments import Arguments, read_arguments
from detkit.cli.help import arrange
from detkit.cli.messages import own_cause, shorten
from detkit.cli.reports import Reports
from detkit.cli.results import print_differences
from detkit.cli.resume import Plan, how_far, plan
from detkit.cli.run_folder import new_version
from detkit.cli.trainer import SaveConfig, complete
from detkit.engine.callbacks import BestCheckpoint
from detkit.engine.checkpoints import check_fits, hyper_parameters
from detkit.engine.predictions import PredictionWriter
from detkit.errors import CheckpointError, ConfigError
from detkit.evaluation.tables import read_baseline
from detkit.system import keep_freed_memory

CLASS_NAMES = "model.init_args.class_names"
TRAINER_DEFAULTS = {"num_sanity_val_steps": 0, "log_every_n_steps": 10, "enable_model_summary": False}


def base_classes() -> tuple[type[LightningModule], type[LightningDataModule]]:
    """Bases of the classes that `--model` and `--data` choose from; importing these makes their short names known."""
    from detkit import classification, data, detectors
    from detkit.data.datamodule import DataModule
    from detkit.engine.module import TrainableModule

    for room in (data, detectors, classification):
        for name in room.__all__:
            getattr(room, name)
    return TrainableModule, DataModule


def run(command: str, args: Sequence[str]) -> DetkitCLI:
    """Runs fit, validate, test or predict.

    Raises:
        DetkitError: whatever the user can mend, in a few lines.
        KeyboardInterrupt: the run was stopped; its message says how to go on.
    """
    arguments = read_arguments(args)
    model, data = base_classes()
    try:
        return DetkitCLI(command, arguments, model, data)
    except ArgumentError as error:
        known = [n for base in (model, data) for n in _known(base)]
        raise ConfigError(shorten(str(error), command, arguments, known)) from error
    except MisconfigurationException as error:
        raise ConfigError(str(error)) from error


class DetkitCLI(Reports, LightningCLI):
    """LightningCLI for detectors and classifiers; see `run`.

    Args:
        command: fit, validate, test or predict.
        arguments: what the user gave.
        model: base class of the models.
        data: base class of the data sets.
    """

    def __init__(
        self, command: str, arguments: Arguments, model: type[LightningModule], data: type[LightningDataModule]
    ) -> None:
        self.command, self.arguments = command, arguments
        self.plan: Plan
        self.folder: Path | None = None
        self.baseline: dict[str, Any] | None = None
        raising = {name: {"exit_on_error": False} for name in self.subcommands()}
        super().__init__(
            model,
            data,
            save_config_callback=SaveConfig if command == "fit" else None,
            seed_everything_default=0,
            parser_kwargs={"prog": "detkit", "exit_on_error": False, **raising},
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=[command, *arguments.options],
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # -- the parser ----------------------------------------------------------------------------

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The commands, and which arguments of the trainer's methods are not the user's to give."""
        ours = {"model", "datamodule", "weights_only"}
        return {
            "fit": ours | {"train_dataloaders", "val_dataloaders"},
            "validate": ours | {"dataloaders", "verbose"},
            "test": ours | {"dataloaders", "verbose"},
            "predict": ours | {"dataloaders", "return_predictions"},
        }

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        # Only the command that runs: building four parsers takes four times as long.
        commands = self.subcommands()
        self.subcommands = lambda: {self.command: commands[self.command]}  # type: ignore[method-assign]
        super()._add_subcommands(parser, **kwargs)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        arrange(parser, subcommand)
        return parser

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The trainer's, the model's and the data set's options; what a checkpoint supplies need not be given."""
        required = self.command == "fit"
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
        parser.add_lightning_class_args(self.model_class, "model", subclass_mode=True, required=required)
        parser.add_lightning_class_args(self.datamodule_class, "data", subclass_mode=True, required=required)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links the classes to the data set in a fit, and adds the options of what detkit writes."""
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        if self.command == "fit":
            parser.link_arguments("data.class_names", CLASS_NAMES, apply_on="instantiate")
            parser.link_arguments("data.category_ids", "model.init_args.category_ids", apply_on="instantiate")
        else:
            parser.callback_keys.remove("checkpoint")
        if self.command == "predict":
            parser.add_lightning_class_args(PredictionWriter, "predictions")
        if self.command == "test":
            add = parser.add_argument
            add("--output", type=str | None, default=None, help="Folder of the report; `report` in the run by default.")
            add("--baseline", type=str | None, default=None, help="metrics.json of another report, to compare with.")
            add(
                "--score_threshold",
                type=float | None,
                default=None,
                help="Least score of what the report shows and counts, in 0..1; that of the best F1 by default.",
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses what the user gave together with what the checkpoint supplies."""

        def parse_model(given: list[str]) -> dict[str, Any]:
            model = parser.parse_args([self.command, *given])[self.command].get("model")
            return dict(model.get("init_args", {})) if model else {}

        if any(a in ("--help", "-h") or a.startswith(("--model.help", "--data.help")) for a in self.arguments.options):
            parser.parse_args([self.command, *self.arguments.options])
        self.plan = plan(self.command, self.arguments, parse_model)
        self.config = parser.parse_args([self.command, *self.plan.args])
        self._monitor_by_default()
        self.config[self.command].trainer.default_root_dir = str(self.plan.root)
        threshold = self.config[self.command].get("score_threshold")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ConfigError(f"--score_threshold {threshold:g}: scores go from 0 to 1")
        if baseline := self.config[self.command].get("baseline"):
            self.baseline = read_baseline(baseline)  # what is wrong with it is told before the test, not after

    def _monitor_by_default(self) -> None:
        """Lets the model say what its best checkpoint is the best by, where the user does not."""
        config = self.config[self.command]
        if self.command == "fit" and self.arguments.setting("monitor", "checkpoint") is None:
            module, _, name = config.model.class_path.rpartition(".")
            best_by = getattr(getattr(importlib.import_module(module), name), "best_by", None)
            if best_by is not None:
                config.checkpoint.monitor, config.checkpoint.mode = best_by

    def _parse_ckpt_path(self) -> None:
        # Lightning would let the checkpoint win without a word; `parse_arguments` has done it with one.
        pass

    # -- the run -------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """Says which checkpoint is used, and what is contradicted."""
        if rank_zero_only.rank == 0 and self.plan.checkpoint is not None:
            print(f"checkpoint: {self.plan.checkpoint}", flush=True)
            if self.plan.differences:
                print_differences(self.plan.differences)

    def instantiate_classes(self) -> None:
        """Builds data set, model and trainer; an error of ours comes through as it is."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            own = own_cause(error)
            if own is None:
                raise
            raise own from None

    def after_instantiate_classes(self) -> None:
        """Holds the checkpoint's weights against the model before anything runs."""
        if self.plan.checkpoint is not None:
            if self.command == "fit" and self.plan.classes != list(self.datamodule.class_names):
                raise CheckpointError(
                    f"{self.plan.checkpoint.path} was trained on the classes {self.plan.classes}, the data set has "
                    f"{list(self.datamodule.class_names)}: a run goes on with the same classes in the same order."
                )
            self.model.restore_parts(self.plan.content)
            check_fits(self.plan.content["state_dict"], self.model.state_dict(), self.plan.checkpoint.path)
            if self.command == "fit" and "weights" in self.model.hparams:
                self.model.hparams["weights"] = hyper_parameters(self.plan.content).get("weights")
            if self.plan.overrides:
                self.model.apply_overrides(self.plan.overrides, fit=self.command == "fit")
            if self.command == "fit" and rank_zero_only.rank == 0:
                stage = self.model.finished_stage(self.plan.content)
                print(f"goes on {how_far(self.plan.content, stage)}", flush=True)
            self.plan.content = {}
        if self.command != "fit" and list(self.datamodule.class_names) != list(self.model.class_names):
            raise CheckpointError(
                f"{self.plan.checkpoint.path} knows the classes {list(self.model.class_names)}, "
                f"the data set has {list(self.datamodule.class_names)}."
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with detkit's default loggers and callbacks; see `detkit.cli.trainer`."""
        config = self._get(self.config_init, "trainer")
        if self.command == "fit" and not config.get("fast_dev_run"):
            self.folder = new_version(self.plan.root, rank_zero_only.rank)
            self.save_config_kwargs = {"folder": self.folder}
        callbacks = [self._get(self.config_init, key) for key in self._parser(self.command).callback_keys]
        for callback in callbacks:
            if isinstance(callback, PredictionWriter):
                callback.use_run(self.plan.checkpoint.path)
                self.writer = callback
        config, callbacks = complete({**config, **kwargs}, callbacks, self.command, self.folder)
        return self._instantiate_trainer(config, callbacks)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        fixed = {"validate": {"verbose": False}, "test": {"verbose": False}, "predict": {"return_predictions": False}}
        return kwargs | fixed.get(subcommand, {}) | {"weights_only": True}

    def _run_subcommand(self, subcommand: str) -> None:
        if self.folder is not None and self.trainer.is_global_zero:
            print(f"run: {self.folder}", flush=True)
        if isinstance(self.trainer.accelerator, CPUAccelerator):
            keep_freed_memory()
        try:
            super()._run_subcommand(subcommand)
        except SystemExit:
            # What Lightning makes of Ctrl-C; `detkit.cli.main` ends with 130.
            if not self.trainer.interrupted:
                raise
            raise KeyboardInterrupt(self._how_to_go_on()) from None

    def _how_to_go_on(self) -> str:
        if self.folder is None:
            return ""
        ended = self.model.progress_unit
        if (self.folder / "checkpoints" / "last.ckpt").is_file():
            return f"Go on from the last {ended} that ended with: detkit fit --ckpt_path {self.folder}"
        if self.plan.checkpoint is not None:  # the file, since this run's own folder has no more than a copied best
            same = ", and this run's --model options again" if self.plan.overrides else ""
            path = self.plan.checkpoint.path
            return f"No {ended} of this run had ended; go on where it began: detkit fit --ckpt_path {path}{same}"
        return "No epoch had ended, so there is no checkpoint to go on from."


def _known(base: type) -> list[str]:
    classes = [base]
    for cls in classes:
        classes.extend(cls.__subclasses__())
    return [n for cls in classes for n in (cls.__name__, *inspect.signature(cls).parameters)]
