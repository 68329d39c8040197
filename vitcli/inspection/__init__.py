"""Model (and images) → measurements: what a ViT has learnt, in numbers (paper, section 4.5, figures 6 and 7).

`observe` runs a model once while instruments watch; each instrument is a file of its own (`distance`, `heads`, `maps`,
`tokens`, `lens`). `filters` and `positions` read parameters only, `overview` and `weights` only files, without torch.
Nothing is drawn or printed here.
"""
