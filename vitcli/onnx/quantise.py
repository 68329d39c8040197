"""Weights of a linear layer as 8-bit integers with one scale per output channel. NumPy only."""

from typing import Any, NamedTuple

import numpy as np

from vitcli.model.shapes import Array


class Quantised(NamedTuple):
    weight: "np.ndarray[Any, np.dtype[np.int8]]"  # (in, out)
    scale: Array  # (out,): weight · scale ≈ the weight in float32


def quantise(weight: Array) -> Quantised:
    """`weight` (out, in) rounded symmetrically, as finely as every processor multiplies exactly.

    Processors without VNNI add the products of two neighbouring inputs in 16 bits, and 8-bit activations times two
    weights near ±127 of one sign are too large for that: ONNX Runtime then clips silently, and other processors give
    other results. Where a pair's sum stays within ±128 nothing is clipped. So the scale is set by the largest weight
    or the largest sum of a pair, whichever is more; it costs less precision than 7-bit weights everywhere.
    """
    inputs = weight.shape[1] // 2 * 2
    pairs = np.abs(weight[:, 0:inputs:2] + weight[:, 1:inputs:2]).max(axis=1, initial=0)
    largest = np.maximum(np.abs(weight).max(axis=1), pairs)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return Quantised(np.ascontiguousarray(np.rint(weight / scale[:, None]).astype(np.int8).T), scale)
