"""Model (and images) → measurements: what a ViT has learnt, in numbers (paper, section 4.5, figures 6 and 7).

`look.inspect` measures what is asked for. An aspect is a file: its measurement, its exhibit (table, sentences, all the
numbers) and its figure. `distance`, `heads`, `tokens`, `lens` and `maps` are instruments that watch while `observe`
runs a model once; `filters` and `positions` read parameters only; `equivariance` and `locality` take any model's
features.
`folder` writes exhibits as files; `overview` and `weights` tell what a checkpoint is, without torch.
"""
