"""Vision Transformers of other projects become checkpoints of ours: `vit convert`."""
