"""Muon against what defines it: orthogonalised updates for matrices, torch's AdamW for the rest."""

import pytest
import torch
from torch import nn

from vitcli.training.optimizer import Muon, orthogonalise, orthogonalised, parameter_groups


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8)])
def test_orthogonalise_keeps_directions_and_levels_sizes(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    result = orthogonalise(matrix)
    assert result.shape == matrix.shape
    sizes = torch.linalg.svdvals(result)
    assert 0.6 < sizes.min() < sizes.max() < 1.3  # the quintic's bounds, Jordan 2024
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    core = u.T @ result @ v.T  # in the matrix's own singular directions nothing but a diagonal is left
    torch.testing.assert_close(core, core.diagonal().diag(), atol=1e-3, rtol=0)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"qkv": nn.Linear(4, 12), "proj": nn.Linear(4, 4)})])
        self.head = nn.Linear(4, 2)


def test_everything_but_the_encoders_matrices_is_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = Tiny(), Tiny()
    theirs.load_state_dict(ours.state_dict())
    decayed = [p for p in theirs.parameters() if p.ndim > 1]
    plain = [p for p in theirs.parameters() if p.ndim == 1]
    adamw = torch.optim.AdamW([{"params": decayed}, {"params": plain, "weight_decay": 0.0}], lr=0.1, weight_decay=0.3)
    muon = Muon(parameter_groups(ours, weight_decay=0.3, orthogonal=True), lr=0.1)
    for _ in range(3):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        muon.step()
        adamw.step()
    torch.testing.assert_close(ours.head.weight, theirs.head.weight)
    torch.testing.assert_close(ours.head.bias, theirs.head.bias)
    torch.testing.assert_close(ours.blocks[0]["qkv"].bias, theirs.blocks[0]["qkv"].bias)
    assert not torch.allclose(ours.blocks[0]["qkv"].weight, theirs.blocks[0]["qkv"].weight)


def test_an_update_of_a_matrix_has_the_size_of_adamws() -> None:
    """Root mean square 0.2 of lr for a square matrix, whatever the gradient's size (arXiv 2502.16982)."""
    for size in (1e-3, 1e3):
        model = Tiny()
        before = model.blocks[0]["proj"].weight.detach().clone()
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) * size
        Muon(parameter_groups(model, weight_decay=0.0, orthogonal=True), lr=1.0).step()
        change = model.blocks[0]["proj"].weight.detach() - before
        assert 0.2 * 0.6 < change.square().mean().sqrt() < 0.2 * 1.3


def test_qkv_are_three_matrices() -> None:
    """A huge gradient of v leaves the update of q and k at full size."""
    model = Tiny()
    before = model.blocks[0]["qkv"].weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    model.blocks[0]["qkv"].weight.grad[8:] *= 1e6
    Muon(parameter_groups(model, weight_decay=0.0, orthogonal=True), lr=1.0).step()
    change = (model.blocks[0]["qkv"].weight.detach() - before)[:8]
    assert change.square().mean().sqrt() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_of_one_shape_are_orthogonalised_together(dtype: torch.dtype) -> None:
    """In their own order, as each alone; bfloat16, 8 bits through five steps, to a tenth of the largest entry."""
    torch.manual_seed(0)
    for shape, parts in (((8, 24), 1), ((24, 8), 3), ((24, 8), 1), ((8, 2, 3, 3), 1)):
        matrices = [torch.randn(shape) for _ in range(3)]
        for matrix, result in zip(matrices, orthogonalised(matrices, parts, dtype), strict=True):
            alone = torch.cat([orthogonalise(part) for part in matrix.flatten(1).chunk(parts)])
            tolerance = 1e-5 if dtype == torch.float32 else 0.1 * float(alone.abs().max())
            assert result.dtype == torch.float32
            torch.testing.assert_close(result, alone, atol=tolerance, rtol=0)
