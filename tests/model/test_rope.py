"""Rotary tables and their application, against the formulas in double precision."""

import pytest
import torch

from goan_cli.model.rope import Rope, apply_rope, joined, pad_to_multiple, rope_table
from tests.helpers import SMALL


def _table(frames: list[int], rows: int, columns: int) -> torch.Tensor:
    """Angles `(frames x rows x columns, head_dim / 2)` in float64, written out token by token."""
    angles = []
    for frame in frames:
        for row in range(rows):
            for column in range(columns):
                token = [
                    position * SMALL.rope_theta ** (-2 * pair / size)
                    for position, size in zip((frame, row, column), SMALL.rope_axes_dim, strict=True)
                    for pair in range(size // 2)
                ]
                angles.append(token)
    return torch.tensor(angles, dtype=torch.float64)


def test_full_resolution_table() -> None:
    """Each token has the angles of its frame index, row and column, in that order."""
    rope = rope_table(SMALL, torch.tensor([3, 40]), 2, 3)
    angles = _table([3, 40], 2, 3)
    assert len(rope) == 2 * 2 * 3
    torch.testing.assert_close(rope.cos.double(), angles.cos(), rtol=0, atol=1e-5)
    torch.testing.assert_close(rope.sin.double(), angles.sin(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pool", [2, 4])
def test_pooled_table(pool: int) -> None:
    """Farther history gets the mean of the cosines and sines of the tokens it stands for, borders repeated."""
    frames, rows, columns = [5, 6, 8], 3, 5
    rope = rope_table(SMALL, torch.tensor(frames), rows, columns, pool)

    def means(values: torch.Tensor) -> torch.Tensor:
        grid = values.view(len(frames), rows, columns, -1)
        pooled = []
        for frame in range(0, len(frames), pool):
            for row in range(0, rows, pool):
                for column in range(0, columns, pool):
                    cells = [
                        grid[min(frame + a, len(frames) - 1), min(row + b, rows - 1), min(column + c, columns - 1)]
                        for a in range(pool)
                        for b in range(pool)
                        for c in range(pool)
                    ]
                    pooled.append(torch.stack(cells).mean(dim=0))
        return torch.stack(pooled)

    angles = _table(frames, rows, columns)
    torch.testing.assert_close(rope.cos.double(), means(angles.cos()), rtol=0, atol=1e-5)
    torch.testing.assert_close(rope.sin.double(), means(angles.sin()), rtol=0, atol=1e-5)


def test_rotation_of_pairs() -> None:
    """Neighbouring values are real and imaginary part, and turn by the token's angle."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((1, 3, 2, 8), generator=generator)
    angles = torch.rand((3, 4), generator=generator)
    turned = apply_rope(x, Rope(table=torch.stack((angles.cos(), angles.sin()), dim=-1)))
    expected = torch.view_as_complex(x.view(1, 3, 2, 4, 2)) * torch.polar(torch.ones_like(angles), angles)[:, None]
    torch.testing.assert_close(turned, torch.view_as_real(expected).flatten(-2), rtol=1e-6, atol=1e-6)


def test_text_is_not_rotated() -> None:
    """The rows added for text leave their tokens as they are, to the last bit."""
    rope = rope_table(SMALL, torch.tensor([7]), 1, 2).with_text(3)
    x = torch.randn((1, 5, 2, 16), generator=torch.Generator().manual_seed(0))
    turned = apply_rope(x, rope)
    assert len(rope) == 5
    assert torch.equal(turned[:, 2:], x[:, 2:])
    assert not torch.equal(turned[:, :2], x[:, :2])


def test_rotation_is_computed_in_float32() -> None:
    """A bfloat16 input is rotated in float32 and rounded once."""
    rope = rope_table(SMALL, torch.tensor([23]), 2, 2)
    x = torch.randn((1, 4, 2, 16), generator=torch.Generator().manual_seed(0)).bfloat16()
    turned = apply_rope(x, rope)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, apply_rope(x.float(), rope).bfloat16())


def test_joined_tables() -> None:
    """Joined tables follow one another in the order given."""
    first, second = rope_table(SMALL, torch.tensor([1]), 2, 2), rope_table(SMALL, torch.tensor([2, 3]), 2, 2)
    both = joined([first, second])
    assert torch.equal(both.cos, torch.cat((first.cos, second.cos)))
    assert torch.equal(both.sin, torch.cat((first.sin, second.sin)))


@pytest.mark.parametrize(
    ("size", "kernel", "padded"),
    [
        ((2, 4, 4), (2, 4, 4), (2, 4, 4)),
        ((1, 4, 4), (2, 4, 4), (2, 4, 4)),
        ((16, 9, 7), (4, 8, 8), (16, 16, 8)),
        ((3, 1, 1), (4, 4, 4), (4, 4, 4)),
    ],
)
def test_pad_to_multiple(
    size: tuple[int, int, int], kernel: tuple[int, int, int], padded: tuple[int, int, int]
) -> None:
    """Sizes grow to the next multiple and no further; what was there stays in front."""
    x = torch.randn((1, 2, *size), generator=torch.Generator().manual_seed(0))
    out = pad_to_multiple(x, kernel)
    assert out.shape == (1, 2, *padded)
    assert torch.equal(out[:, :, : size[0], : size[1], : size[2]], x)
