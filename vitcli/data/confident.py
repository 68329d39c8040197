"""Confident learning: which labels are probably wrong, by probabilities of a model that has not seen them.

The rule of Northcutt, Jiang and Chuang 2021 ("Confident Learning", J. Artif. Intell. Res. 70, section 3), as cleanlab
2.9 has it with `filter_by="confident_learning"`. In NumPy; knows no models.

Legend: K classes, N images.
"""

import numpy as np
import numpy.typing as npt

Probabilities = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

ROUNDING = 1e-6  # by which probabilities may miss a threshold or one another
NEVER = 2.0  # a threshold that no probability reaches


def thresholds(probabilities: Probabilities, labels: Labels) -> Probabilities:
    """How probable each class is, on average, for the images labelled with it, (K,); `NEVER` for one without images."""
    k = probabilities.shape[1]
    n = np.bincount(labels, minlength=k)
    sums = np.bincount(labels, probabilities[np.arange(len(labels)), labels], k)
    means = np.where(n > 0, sums / np.maximum(n, 1), NEVER)
    return np.maximum(means, 2 * ROUNDING)


def probably_wrong(probabilities: Probabilities, labels: Labels) -> Mask:
    """The images (N,) that are confidently of another class than their label, by `probabilities` (N, K).

    An image is confidently of a class whose threshold it reaches, of several the most probable. Where its label is as
    probable as any other class it stands.
    """
    confident = probabilities >= thresholds(probabilities, labels) - ROUNDING  # (N, K)
    several = confident.sum(axis=1) > 1
    guess = np.where(several, probabilities.argmax(axis=1), confident.argmax(axis=1))
    own = probabilities[np.arange(len(labels)), labels]
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -1.0
    stands = own + ROUNDING > others.max(axis=1)
    return np.asarray(confident.any(axis=1) & (guess != labels) & ~stands)
