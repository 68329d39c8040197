"""tokens → logits: the Vision Transformer itself. Knows tensors only: no files, no network, no terminal."""
