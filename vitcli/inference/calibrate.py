"""One number that makes a model's probabilities mean what they say: the temperature (Guo et al. 2017, section 4.2).

Fitted on one split, kept by `vitcli.checkpoint.write.store_temperature`, read by `engines.temperature_of`.
Dividing by it changes no prediction, only how sure it is.
"""

import numpy as np

from vitcli.errors import DataError
from vitcli.inference.engines import probabilities
from vitcli.metrics import Labels
from vitcli.model.shapes import Array

COLDEST, HOTTEST = 1e-2, 1e2
HALVINGS = 30  # of the interval between them, in its logarithm: to 1e-8


def fit_temperature(logits: Array, labels: Labels) -> float:
    """The temperature with the least negative log-likelihood for `logits` (N, K) and `labels` (N,).

    The likelihood is concave in 1/T; its slope Σ (E_p[z] − z_label) changes sign once, and that place is found by
    bisection, to six digits. Raises DataError when there is none in [0.01, 100]: every image predicted rightly, or no
    better than chance.
    """
    chosen = logits[np.arange(len(labels)), labels].astype(np.float64)

    def too_cold(temperature: float) -> bool:
        expected = np.einsum("nk,nk->n", probabilities(logits, temperature), logits)
        return float((expected - chosen).sum()) > 0

    if not too_cold(COLDEST):
        raise DataError(
            f"no temperature fits these {len(labels)} images: surer would always be better, as when all are predicted "
            "rightly; calibrate on more images, which the model was not trained on"
        )
    if too_cold(HOTTEST):
        raise DataError(f"no temperature fits: on these {len(labels)} images the model is no better than chance")
    low, high = np.log(COLDEST), np.log(HOTTEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if too_cold(float(np.exp(middle))) else (low, middle)
    return float(f"{np.exp((low + high) / 2):.6g}")  # as it is stored
