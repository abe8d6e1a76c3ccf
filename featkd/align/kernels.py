"""Triton kernels of the distillation head: forward KL and cross-entropy of many tokens, with their gradient.

    loss     = T^2 * sum p log(p / q) - ce_weight * log q'_target     of each token, nats
    gradient = T * (q - p) + ce_weight * (q' - onehot)                by the logits over T, times T

p and q at temperature T, q' at 1. PyTorch's operations would read and write the logits a dozen times. Here the products
that make them (`_logits`) leave, of each tile of TILE tokens of the vocabulary, the largest logit, the sum of the
exponentials below it and sum exp(u) (u - z), in float32 from float32 logits (online softmax, arXiv 1805.02867); and the
distances of its logits from the largest as float16, which is exact to 1/2048 of them, where bf16 logits as they are
spoil gradients by a percent. `_losses` puts the sums together and writes the gradient in the place of the distances.

Needs Triton: accelerator.py asks for this module where it is installed.
"""

import torch
import triton
import triton.language as tl

from featkd.align.output import Head

TILE, TOKENS, WIDTH, WARPS, STAGES = 128, 128, 64, 8, 3
LANES = 4096
SUMS = 7  # per token and tile: of the student, the teacher, their cross sum and the student at temperature 1
LEAST = tl.constexpr(-1e30)


class Workspace:
    """What `forward_kl` writes to for no more than so many tokens."""

    def __init__(self, tokens: int, vocabulary: int, taught: bool, dtype: torch.dtype, device: torch.device):
        width, tiles = -(-vocabulary // TILE) * TILE, -(-vocabulary // TILE)
        self.distances = torch.empty(1 + taught, tokens, width, dtype=torch.float16, device=device)
        self.gradient = self.distances[0].view(dtype)[:, :vocabulary]
        self.sums = torch.empty(SUMS, tokens, tiles, dtype=torch.float32, device=device)

    @staticmethod
    def bytes_per_token(vocabulary: int, taught: bool) -> int:
        return -(-vocabulary // TILE) * (TILE * 2 * (1 + taught) + 4 * SUMS)


def forward_kl(
    states: torch.Tensor,
    head: Head,
    teacher: tuple[torch.Tensor, Head] | None,
    targets: torch.Tensor,
    temperature: float,
    ce_weight: float,
    work: Workspace,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses, float32 [tokens], and the gradient [tokens, vocabulary] in the type of the weight, within `work`.

    states [tokens, hidden] and the head's weight are of one type of 16 bits; so are the teacher's. None:
    cross-entropy alone.
    """
    taught, tokens = teacher is not None, len(states)
    its_states, its_head = teacher or (states, head)
    vocabulary, tiles = len(head.weight), work.sums.shape[2]
    losses, of_target = (torch.zeros(tokens, dtype=torch.float32, device=states.device) for _ in range(2))
    biases = [losses if one.bias is None else one.bias.float() for one in (head, its_head)]
    options = {
        "TAUGHT": taught, "HARD": ce_weight != 0, "HOT": ce_weight != 0 and temperature != 1, "TILE": TILE,
    }  # fmt: skip
    _logits[(triton.cdiv(tokens, TOKENS) * tiles,)](
        states, head.weight, its_states, its_head.weight, *biases, targets, work.distances, work.sums, of_target,
        tokens, vocabulary, tiles, states.shape[1], its_states.shape[1],
        *(tensor.stride(0) for tensor in (states, head.weight, its_states, its_head.weight)),
        *work.distances.stride()[:2], *work.sums.stride()[:2],
        head.scale / temperature, its_head.scale / temperature, float(temperature),
        **options, Z_BIAS=head.bias is not None, U_BIAS=taught and its_head.bias is not None,
        TOKENS=TOKENS, WIDTH=WIDTH, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    _losses[(tokens,)](
        targets, work.distances, work.gradient, work.sums, of_target, losses, tiles,
        *work.distances.stride()[:2], *work.sums.stride()[:2], float(temperature), float(ce_weight),
        **options, TILES=triton.next_power_of_2(tiles), LANES=LANES, num_warps=WARPS,
    )  # fmt: skip
    return losses, work.gradient[:tokens]


@triton.jit
def _product(
    a, b, rows, columns, a_stride, b_stride, width,
    TOKENS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """a[rows] b[columns]^T, float32 [TOKENS, TILE]."""
    part = tl.arange(0, WIDTH)
    a_at = a + rows[:, None].to(tl.int64) * a_stride + part[None, :]
    b_at = b + columns[None, :].to(tl.int64) * b_stride + part[:, None]
    total = tl.zeros((TOKENS, TILE), tl.float32)
    for start in range(0, width, WIDTH):
        inside = part < width - start
        total = tl.dot(
            tl.load(a_at, mask=inside[None, :], other=0.0), tl.load(b_at, mask=inside[:, None], other=0.0), total
        )
        a_at += WIDTH
        b_at += WIDTH
    return total


@triton.jit
def _logits(
    x, x_weight, y, y_weight, z_bias, u_bias, targets, distances, sums, of_target,
    tokens, vocabulary, tiles, x_width, y_width, x_stride, x_weight_stride, y_stride, y_weight_stride,
    side_stride, row_stride, kind_stride, sums_stride, z_factor, u_factor, temperature,
    TAUGHT: tl.constexpr, HARD: tl.constexpr, HOT: tl.constexpr, TILE: tl.constexpr, Z_BIAS: tl.constexpr,
    U_BIAS: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(tokens, TOKENS)
    block, tile = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    rows, columns = block * TOKENS + tl.arange(0, TOKENS), tile * TILE + tl.arange(0, TILE)
    row, column = tl.minimum(rows, tokens - 1), tl.minimum(columns, vocabulary - 1)
    real, inside = rows < tokens, (columns < vocabulary)[None, :]
    at = rows[:, None] * row_stride + columns[None, :]
    sums_at = sums + rows.to(tl.int64) * sums_stride + tile

    z = _product(x, x_weight, row, column, x_stride, x_weight_stride, x_width, TOKENS, TILE, WIDTH)
    if Z_BIAS:
        z += tl.load(z_bias + column)[None, :]
    z = tl.where(inside, z * z_factor, LEAST)
    top = tl.max(z, 1)
    tl.store(sums_at, top, mask=real)
    tl.store(sums_at + kind_stride, tl.sum(tl.exp(z - top[:, None]), 1), mask=real)
    tl.store(distances + at, (z - top[:, None]).to(tl.float16), mask=real[:, None])
    if HARD:
        target = tl.load(targets + row)
        own = tl.sum(tl.where(columns[None, :] == target[:, None], z, 0.0), 1)
        tl.store(of_target + rows, own * temperature, mask=real & (target // TILE == tile))
    if HOT:
        tl.store(sums_at + 5 * kind_stride, top * temperature, mask=real)
        tl.store(sums_at + 6 * kind_stride, tl.sum(tl.exp((z - top[:, None]) * temperature), 1), mask=real)
    if TAUGHT:
        u = _product(y, y_weight, row, column, y_stride, y_weight_stride, y_width, TOKENS, TILE, WIDTH)
        if U_BIAS:
            u += tl.load(u_bias + column)[None, :]
        u = tl.where(inside, u * u_factor, LEAST)
        top = tl.max(u, 1)
        below = u - top[:, None]
        likely = tl.exp(below)
        tl.store(sums_at + 2 * kind_stride, top, mask=real)
        tl.store(sums_at + 3 * kind_stride, tl.sum(likely, 1), mask=real)
        tl.store(sums_at + 4 * kind_stride, tl.sum(likely * (u - z), 1), mask=real)
        tl.store(distances + side_stride + at, below.to(tl.float16), mask=real[:, None])


@triton.jit
def _log_sum(top, total):
    highest = tl.max(top, 0)
    return highest + tl.log(tl.sum(total * tl.exp(top - highest), 0))


@triton.jit
def _losses(
    targets, distances, gradients, sums, of_target, losses, tiles,
    side_stride, row_stride, kind_stride, sums_stride, temperature, ce_weight,
    TAUGHT: tl.constexpr, HARD: tl.constexpr, HOT: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    its_sums, row = sums + token * sums_stride, token * row_stride
    each = tl.arange(0, TILES)
    there = each < tiles
    z_log = _log_sum(
        tl.load(its_sums + each, mask=there, other=LEAST), tl.load(its_sums + kind_stride + each, mask=there, other=0.0)
    )
    u_log, hard_log, loss = 0.0, z_log, 0.0
    if TAUGHT:
        u_top = tl.load(its_sums + 2 * kind_stride + each, mask=there, other=LEAST)
        u_log = _log_sum(u_top, tl.load(its_sums + 3 * kind_stride + each, mask=there, other=0.0))
        cross = tl.load(its_sums + 4 * kind_stride + each, mask=there, other=0.0)
        loss = (tl.sum(cross * tl.exp(u_top - u_log), 0) + z_log - u_log) * temperature * temperature
    if HOT:
        hard_top = tl.load(its_sums + 5 * kind_stride + each, mask=there, other=LEAST)
        hard_log = _log_sum(hard_top, tl.load(its_sums + 6 * kind_stride + each, mask=there, other=0.0))
    target = tl.load(targets + token)
    if HARD:
        loss += ce_weight * (hard_log - tl.load(of_target + token))
    tl.store(losses + token, loss)

    width = tiles * TILE  # beyond the vocabulary, where nothing is likely, to the end of the row: it stores faster
    for start in range(0, width, LANES):
        at = start + tl.arange(0, LANES)
        inside, tile = at < width, at // TILE
        top = tl.load(its_sums + tile, mask=inside, other=0.0)
        z = tl.load(distances + row + at, mask=inside, other=0.0).to(tl.float32) + top
        gradient = z * 0.0
        if TAUGHT:
            top = tl.load(its_sums + 2 * kind_stride + tile, mask=inside, other=0.0)
            u = tl.load(distances + side_stride + row + at, mask=inside, other=0.0).to(tl.float32) + top
            gradient = (tl.exp(z - z_log) - tl.exp(u - u_log)) * temperature
        if HARD:
            hard = tl.exp((z * temperature if HOT else z) - hard_log)
            gradient += ce_weight * (hard - tl.where(at == target, 1.0, 0.0))
        tl.store(gradients + row + at, gradient, mask=inside)
