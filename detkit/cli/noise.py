"""Filters for messages of libraries that no user of detkit can act on: advertisements, deprecations, hints.

Every filter is as narrow as the message allows; all other messages are shown.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import warnings

from detkit.files import WRITE_ERRORS

WARNINGS = (
    # Lightning 2.6 calls functions that torch and jsonargparse have deprecated.
    r".*LeafSpec.*is deprecated",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*(add_instantiator|instantiate_classes|skip_none).*deprecated",
    r"(?s).*JsonargparseDeprecationWarning.*",
    # Samples are lists, loaders choose their workers, and short runs log rarely: nothing to act on.
    r".*Trying to infer the `batch_size` from an ambiguous collection.*",
    r".*does not have many workers which may be a bottleneck.*",
    r".*Consider setting `persistent_workers=True`.*",
    r".*The number of training batches \(\d+\) is smaller than the logging interval.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*The `srun` command is available on your system.*",
    r".*was configured.*so validation loop will run.*",
    # Detectors move their batches (lists of samples) themselves.
    r".*You have overridden `transfer_batch_to_device` in `LightningModule`.*",
    # Without a validation there is no best checkpoint; said at the end of the fit.
    r".*`ModelCheckpoint\(monitor=.*\)` could not find the monitored key.*",
    # The metric synchronises itself: every rank logs the same number.
    r".*It is recommended to use `self\.log\('(val|test)/ma[pr].*sync_dist=True.*",
    # Testing and predicting need no checkpoint callbacks.
    r".*callbacks used to create the checkpoint need to be provided.*",
    # Proposals that are all there already.
    r".*Total length of `list` across ranks is zero.*",
    # The CPU of a machine without a GPU: chosen by `accelerator: auto`, reported by Lightning's own line.
    r".*'pin_memory' argument is set as true but no accelerator is found.*",
)

LOG_LINES = re.compile(
    r"(?i)💡|\btip:|litmodels|litlogger|tensorboardX|lightning\.ai"
    r"|`weights_only` was not set|Loaded model weights from|Loading .*`train_dataloader`"
    r"|^Initializing distributed: |distributed_backend=|^\[rank: \d+\] Seed set"
    r"|^(TPU|HPU|IPU) available|^GPU available: False|^Seed set to|^Restored all states from|^Restoring states from"
    r"|`Trainer\.fit` stopped:|Detected KeyboardInterrupt|Received SIG"
)


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not LOG_LINES.search(record.getMessage())


def _report_thread(args: threading.ExceptHookArgs) -> None:
    """Leave out what TensorBoard's thread says of a full disk, which ends the command with a message of its own."""
    if not (isinstance(args.exc_value, OSError) and args.exc_value.errno in WRITE_ERRORS):
        threading.__excepthook__(args)


def quiet() -> None:
    """Set the filters; call it before torch and lightning are imported."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for pattern in WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    threading.excepthook = _report_thread
    # jsonargparse writes thousands of records, which take time, to a logger that keeps none.
    logging.getLogger("jsonargparse_null_logger").setLevel(logging.CRITICAL)
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
        "lightning.fabric.utilities.distributed",
        "lightning.fabric.utilities.seed",
        "lightning.pytorch.trainer.connectors.checkpoint_connector",
        "lightning.pytorch.trainer.connectors.signal_connector",
    ):
        logger = logging.getLogger(name)
        if not any(isinstance(f, _Filter) for f in logger.filters):
            logger.addFilter(_Filter())
