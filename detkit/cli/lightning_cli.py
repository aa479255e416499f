"""fit, validate, test and predict: LightningCLI with detkit's classes, defaults, messages and run folders.

LightningCLI is used without its subcommands (``run=False``): it makes the parser, sets the seed and builds data set,
model and trainer; `DetkitCLI.run_command` then calls the trainer.
"""

from __future__ import annotations

import shutil
from argparse import SUPPRESS, ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from detkit.classes import find_class, import_modules, known_classes
from detkit.cli.arguments import Arguments, with_nulls
from detkit.cli.help import OPTIONS, describe
from detkit.cli.imports import restrict_imports
from detkit.cli.messages import explain, own_cause
from detkit.cli.reports import (
    check_outputs,
    describe_data,
    differences_text,
    report_finished,
    report_fit,
    report_metrics,
    report_test,
)
from detkit.cli.resume import TILED, Difference, Start, check_state, find_differences, position_of, prepare, read_start
from detkit.cli.signatures import names_of
from detkit.cli.trainer import SaveConfig, complete, make_run_folder, remove_started, with_absolute_paths
from detkit.deploy.description import is_exported
from detkit.detectors.base import Detector
from detkit.detectors.inference import OptimizeForInference
from detkit.detectors.tiles import TileSettings
from detkit.engine.callbacks import BestCheckpoint, LastCheckpoint
from detkit.engine.checkpoints import INITIAL_WEIGHTS, hyper_parameters
from detkit.engine.precision import check_precision
from detkit.engine.prediction_writer import PredictionWriter
from detkit.engine.predictions import PredictionFiles
from detkit.errors import CheckpointError, ConfigError, DataError
from detkit.evaluation.tables import find_baseline, read_baseline
from detkit.settings import check_groups
from detkit.signals import SIGNALS, Stopped
from detkit.system import keep_freed_memory
from detkit.tools.evaluate import REPORT_FILES, read_resampled
from detkit.torch_files import check_fits

if TYPE_CHECKING:
    from detkit.evaluation.bootstrap import Resamples

REPORT_OPTIONS: tuple[tuple[str, type, str], ...] = (
    ("output", str, "Folder of the report; `report` in the run by default."),
    ("baseline", str, "metrics.json of another report, to compare with."),
    ("score_threshold", float, "Least score of what the report shows and counts, in 0..1; by default of the best F1."),
)
TILE_OPTIONS: tuple[tuple[str, type, str], ...] = (
    ("tiles", int, "Cut larger images into tiles of this many pixels a side; by default no image is cut."),
    ("overlap", float, "Of neighbouring tiles, as a share of their sides, 0 to 0.9; by default 0.2."),
)
TRAINER_DEFAULTS = {"num_sanity_val_steps": 0, "log_every_n_steps": 10, "enable_model_summary": False}


def base_classes() -> tuple[type[LightningModule], type[LightningDataModule]]:
    """Bases of the classes that `--model` and `--data` choose from; importing these makes their short names known."""
    from detkit import classification, data, detectors
    from detkit.data.datamodule import DataModule
    from detkit.engine.module import TrainableModule

    for package in (data, detectors, classification):
        for name in package.__all__:
            getattr(package, name)
    return TrainableModule, DataModule


def run(command: str, args: Sequence[str]) -> DetkitCLI:
    """Run fit, validate, test or predict with the arguments after it; see `execute` for the errors."""
    return execute(command, *prepare(command, args))


def execute(command: str, arguments: Arguments, start: Start) -> DetkitCLI:
    """Run fit, validate, test or predict, whose arguments are read.

    Raises:
        DetkitError: whatever the user can mend, in a few lines.
        KeyboardInterrupt: the run was stopped; its message says how to go on.
    """
    import_modules(arguments.modules)
    if start.checkpoint is not None and is_exported(start.checkpoint.path):
        import detkit.deploy.module  # noqa: F401  its class becomes one that can be named
    model, data = base_classes()
    restrict_imports()
    try:
        cli = DetkitCLI(command, arguments, start, model, data)
        try:
            cli.run_command()
        except BaseException:
            cli.remove_failed_start()
            raise
    except ArgumentError as error:
        classes = known_classes(model) | known_classes(data)
        raise explain(str(error), command, arguments, names_of(classes.values())) from error
    except (MisconfigurationException, NotImplementedError) as error:  # the latter: of a base class
        raise ConfigError(str(error)) from error
    except (ValueError, TypeError) as error:
        own = own_cause(error)
        if own is None and str(error).startswith("Does not validate against"):  # jsonargparse's own
            own = explain(str(error), command, arguments, ())
        if own is None:
            raise
        raise own from None
    return cli


class DetkitCLI(LightningCLI):
    """LightningCLI for detectors and classifiers; model and data are the base classes that are chosen from."""

    def __init__(
        self,
        command: str,
        arguments: Arguments,
        start: Start,
        model: type[LightningModule],
        data: type[LightningDataModule],
    ) -> None:
        self.command = command
        self.arguments = arguments
        self.start = start
        self.overrides: dict[str, Any] = {}
        self.differences: list[Difference] = []
        self.folder: Path | None = None
        self.first_step: int | None = None  # of a fit that goes on
        self.ckpt_path = None if start.checkpoint is None else start.checkpoint.path
        self.baseline: dict[str, Any] | None = None
        self.resampled: Resamples | None = None  # of the baseline
        self.tiles: TileSettings | None = None
        self.exit_code = 0
        try:
            super().__init__(
                model,
                data,
                save_config_callback=None,
                seed_everything_default=0,
                parser_kwargs={"prog": f"detkit {command}", "exit_on_error": False, **describe(command)},
                subclass_mode_model=True,
                subclass_mode_data=True,
                args=arguments.options,
                run=False,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )
        except BaseException:
            self.remove_failed_start()
            raise

    # -- the parser -----------------------------------------------------------------------------

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the checkpoint and the seed."""
        super().add_default_arguments_to_parser(parser)
        group = parser.add_argument_group("the checkpoint")
        group.add_argument("--ckpt_path", type=str | None, default=None, help=self._help("ckpt_path"))

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add model, data set and trainer in the order in which the help shows them."""
        classes = {"model": self.model_class, "data": self.datamodule_class}
        for name, title in (("model", "the model"), ("data", "the data set")):
            parser.add_subclass_arguments(classes[name], name, fail_untyped=False, help=self._help(name))
            parser.groups[name].title = title
        if self.command == "predict":
            parser.add_class_arguments(PredictionFiles, "predictions")
            parser.groups["predictions"].title = "what is written"
        if self.command == "test":
            group = parser.add_argument_group("the report")
            for name, kind, text in REPORT_OPTIONS:
                group.add_argument(f"--{name}", type=kind | None, default=None, help=text)
        if self.command in TILED:
            group = parser.add_argument_group("large images")
            for name, kind, text in TILE_OPTIONS:
                group.add_argument(f"--{name}", type=kind | None, default=None, help=text)
        if self.command == "fit":
            parser.add_class_arguments(BestCheckpoint, "checkpoint")
            parser.groups["checkpoint"].title = "the best checkpoint"
        else:  # so that a fit's config may be used for a test
            parser.add_argument("--checkpoint", type=dict[str, Any] | None, help=SUPPRESS)
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.groups["trainer"].title = "the trainer, with all options of Lightning's"
        parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
        if self.command == "fit":
            for name in ("class_names", "category_ids"):
                parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def _help(self, option: str) -> str:
        return OPTIONS[option][self.command != "fit"]

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse what the user gave together with what the checkpoint supplies."""

        def parse(given: Sequence[str]) -> Any:
            config = parser.parse_args(with_nulls(given))
            for name, base in (("model", self.model_class), ("data", self.datamodule_class)):
                if part := config.get(name):
                    check_groups(find_class(part.class_path, base), part.get("init_args") or {}, f"{name}.")
            if self.command == "fit" and config.get("model"):
                with_absolute_paths(config.model)  # the checkpoint keeps them
            return config

        if self.arguments.ask_for_help:
            parser.parse_args(self.arguments.options)  # prints, and ends the program
        given = read_start(self.command, self.start, self.arguments, self.model_class)
        self.config = parse(given)
        if self.start.checkpoint is not None:
            self.differences, self.overrides = find_differences(
                self.start, self.arguments, self.config.model.init_args, lambda g: parse(g).model.init_args, given
            )
        if self.start.source is not None and "weights" in self.config.model.init_args:
            self.config.model.init_args.weights = None  # not read, nor downloaded
        if self.command == "fit" and self.arguments.setting("checkpoint.monitor") is None:
            best_by = find_class(self.config.model.class_path, self.model_class).best_by
            self.config.checkpoint.monitor, self.config.checkpoint.mode = best_by
        self.config.trainer.default_root_dir = str(self.start.root)
        threshold = self.config.get("score_threshold")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ConfigError(f"--score_threshold {threshold:g}: scores go from 0 to 1")
        if (tiles := self.config.get("tiles")) is not None:
            overlap = self.config.get("overlap")
            self.tiles = TileSettings(tiles) if overlap is None else TileSettings(tiles, overlap)
        elif self.config.get("overlap") is not None:
            raise ConfigError("--overlap is of the tiles that --tiles cuts an image into; give that, too")
        if baseline := self.config.get("baseline"):
            self.baseline = read_baseline(baseline)  # a wrong one is told before the test, not after it
            self.resampled = read_resampled(baseline)

    # -- the run --------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """Say which data and which checkpoint are used, and in which options the user's arguments differ from it."""
        if rank_zero_only.rank == 0 and self.arguments.notes:
            print(*self.arguments.notes, sep="\n", flush=True)
        if rank_zero_only.rank == 0 and self.start.checkpoint is not None:
            print(f"checkpoint: {self.start.checkpoint}", flush=True)
            if self.differences:
                print(differences_text(self.differences))

    def after_instantiate_classes(self) -> None:
        """Compare the checkpoint's weights and classes with the model and the data set, before anything runs."""
        checkpoint, content = self.start.checkpoint, self.start.content
        classes = list(self.datamodule.class_names)
        if self.start.source is not None:
            self.model.load_source(self.start.source)
            self.start.source = None  # its memory is needed
        if checkpoint is None:
            return
        if self.command == "fit" and self.start.class_names != classes:
            raise CheckpointError(
                f"{checkpoint.path} was trained on the classes {self.start.class_names}, the data set has {classes}: "
                "a run goes on with the same classes in the same order."
            )
        if self.command == "fit":
            check_state(content, self.trainer.fit_loop.state_dict(), checkpoint.path)
        self.model.restore_parts(content)
        check_fits(content["state_dict"], self.model.state_dict(), checkpoint.path)
        if self.overrides:
            self.model.apply_overrides(self.overrides, fit=self.command == "fit")
        if self.command != "fit" and classes != list(self.model.class_names):
            raise CheckpointError(
                f"{checkpoint.path} knows the classes {list(self.model.class_names)}, the data set has {classes}."
            )
        if self.command == "fit":
            self.first_step = content["global_step"]
            kept = hyper_parameters(content)
            self.model.hparams.update({name: kept[name] for name in INITIAL_WEIGHTS if name in kept})
            if rank_zero_only.rank == 0:
                print(f"goes on {position_of(content, self.model.finished_stage(content))}", flush=True)
        if content["detkit"].keys() & {"torchvision", "exported"}:  # no file that Lightning reads
            self.model.load_state_dict(content["state_dict"])
            self.ckpt_path = None
        self.start.content = {}  # its memory is needed
        if self.tiles is not None:
            if not isinstance(self.model, Detector):
                raise ConfigError(f"--tiles is for detectors, not for a {type(self.model).__name__}")
            self.model.tiles = self.tiles

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with detkit's default loggers and callbacks; see `detkit.cli.trainer`."""
        config = {**self.config_init.trainer, **kwargs}
        callbacks: list[Callback] = []
        if self.command == "fit" and not config.get("fast_dev_run"):
            self.folder = make_run_folder(self.start.root, rank_zero_only.rank)
            callbacks = [self.config_init.checkpoint, SaveConfig(self.parser, self.config, self.folder)]
        if self.command == "predict":
            self.config_init.predictions.use_folder(self.start.checkpoint.folder)
            callbacks += [PredictionWriter(self.config_init.predictions), OptimizeForInference()]
        options = complete(config, callbacks, self.command, self.folder)
        try:
            trainer = Trainer(**options)
        except (ValueError, TypeError) as error:
            raise own_cause(error) or ConfigError(f"trainer: {error}") from error
        check_precision(config.get("precision"), trainer.strategy.root_device)
        return trainer

    def remove_failed_start(self) -> None:
        """Delete the run's folder after an error if the run has written nothing that is worth keeping."""
        if self.folder is not None and rank_zero_only.rank == 0:
            remove_started(self.folder)

    def run_command(self) -> None:
        """Run the command, and say what came of it, also of an interrupt."""
        if self.folder is not None and self.trainer.is_global_zero:
            print(f"run: {self.folder}", flush=True)
        if isinstance(self.trainer.accelerator, CPUAccelerator):
            keep_freed_memory()
        quiet = {"validate": "verbose", "test": "verbose", "predict": "return_predictions"}
        options = {quiet[self.command]: False} if self.command in quiet else {}
        method = getattr(self.trainer, self.command)
        path = None if self.start.checkpoint is None else self.start.checkpoint.path
        if self.command == "test":
            read = [path, self.config.baseline and find_baseline(self.config.baseline)]
            check_outputs([self._report_folder / name for name in REPORT_FILES], self.config.data, read, "--output")
        if self.command == "predict":
            check_outputs(self.config_init.predictions.paths, self.config.data, [path], "--predictions.output")
        try:
            method(self.model, datamodule=self.datamodule, ckpt_path=self.ckpt_path, weights_only=True, **options)
            if self.trainer.is_global_zero:
                self._report()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._how_to_go_on()) from None
        except SystemExit as end:
            # What Lightning makes of a KeyboardInterrupt.
            if not self.trainer.interrupted:
                raise
            raise KeyboardInterrupt(self._how_to_go_on(isinstance(end.__context__, Stopped))) from None
        except DataError as error:
            kept = self._how_to_go_on() if self.command == "predict" else ""
            raise DataError(f"{error}{chr(10) if kept else ''}{kept}") from error
        except CheckpointError as error:  # while Lightning restores it
            raise CheckpointError(f"{path}: {error}") from error
        except OSError as error:
            if SIGNALS.received is not None:  # of a logger that was stopped while it was closed
                raise KeyboardInterrupt(self._how_to_go_on()) from None
            error.filename = error.filename or self.folder  # a logger's has none
            raise
        finally:
            SIGNALS.waits = False

    @property
    def _report_folder(self) -> Path:
        output = self.config.output
        return Path(output) if output else self.start.checkpoint.folder / "report"

    def _report(self) -> None:
        data = describe_data(self.config.data)
        if self.command == "fit":
            if self._was_finished():
                shutil.rmtree(self.folder)  # it holds no more than a copied best checkpoint and what was drawn of it
                report_finished(self.trainer, self.model, self.start.checkpoint, self.folder)
            else:
                report_fit(self.trainer, self.model, self.folder)
        elif self.command == "validate":
            report_metrics(self.model, f"validation: {data}")
        elif self.command == "test":
            earlier = (self.baseline, self.resampled)
            target = (self._report_folder, self.config.score_threshold)
            report_test(self.model, self.datamodule, data, self.start.checkpoint, *earlier, *target)
        else:
            if self.arguments.option("data") is None and self.arguments.class_of("data")[0] is None:
                print(f"images: the test set of {data}")  # neither INPUT nor another data set was given
            print(self.config_init.predictions.report(self.trainer.world_size), flush=True)
            self.exit_code = self.config_init.predictions.exit_code

    def _was_finished(self) -> bool:
        """Whether a fit has gone on from a checkpoint after which nothing was left to do."""
        last = [callback.path for callback in self.trainer.callbacks if isinstance(callback, LastCheckpoint)]
        return self.trainer.global_step == self.first_step and bool(last) and not last[0].is_file()

    def _how_to_go_on(self, in_epoch: bool = False) -> str:
        """How to go on; ``in_epoch``: the last checkpoint is of the step at which the fit was stopped."""
        if self.command == "predict":
            return self.config_init.predictions.how_to_go_on()
        if self.folder is None:
            return ""
        unit = self.model.progress_unit
        if (self.folder / "checkpoints" / "last.ckpt").is_file():
            position = f"step {self.trainer.global_step}" if in_epoch else f"the last {unit} that ended"
            return f"Go on from {position} with: detkit fit --ckpt_path {self.folder}"
        if self.start.checkpoint is not None:  # the file: this run's own folder has no more than a copied best
            same = ", and this run's --model options again" if self.overrides else ""
            path = self.start.checkpoint.path
            return f"No {unit} of this run had ended; go on where it began: detkit fit --ckpt_path {path}{same}"
        return "No epoch had ended, so there is no checkpoint to go on from."
