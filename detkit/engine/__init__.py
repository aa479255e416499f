"""What any LightningModule of detkit needs: base module, optimizer, checkpoints, callbacks, progress."""
