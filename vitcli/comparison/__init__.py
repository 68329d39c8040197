"""Several models × several amounts of data → table and curves (paper, section 4.3, figures 3 and 4).

`compare` begins a study or goes on with one. `study` says what is to be done and with which models, `cells` with which
data, `queue` who does it, `work` how, `results` what came out, `tables` in words, `report` in files.

What is compared unless told otherwise stands here, where it imports nothing: `vit --help` shows it.
"""

MODELS = ("vit-small", "vit", "hybrid", "resnet-small")
SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)  # of each class's training images
SEEDS = 3
MOST_EPOCHS = 100.0
FINETUNE_SCALE = 1.5  # of the image size, after pre-training
