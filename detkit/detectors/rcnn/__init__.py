"""R-CNN: model, stages after fine-tuning, features on disk, ablation."""
