"""The diffusion of `redge` in Triton, one program a row; needs triton, and is imported where `fused` finds it.

In `X_t = x_t / t` and `v_t = (1 - t) / t`, with the levels `1 = t_1 > ... > t_n` counted as they are walked,

    D_k = softmax(l + v_k X_k),    X_1 = z,    X_{k+1} = X_k + (v_{k+1} - v_k) D_k,    v_1 = 0.

With `m = max(l)` and the masses `S_k = sum exp(l - m + v_k X_k)` of the steps before, every D_k at a category follows
from l and z there, so that nothing as large as the logits is stored: a draw reads a row n times, a gradient twice.
`v_n <= 4` keeps all exponentials within float32, since |z| < 7 and 0 <= D <= 1.

Random numbers are Philox's (Salmon et al., SC 2011; 7 rounds pass BigCrush), keyed by the seed and counted by the
category, the row and the stream; z does not depend on the size of a block.
"""

import triton
import triton.language as tl

_ROUNDS = tl.constexpr(7)
_LOG2_E = tl.constexpr(1.4426950408889634)
_LOWEST = tl.constexpr(-3.4028234663852886e38)  # the least finite float32: its differences are never NaN
_NOISE, _LANE, _TILE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # streams


@triton.jit
def _v(t1, step: tl.constexpr, STEPS: tl.constexpr):
    """`(1 - t) / t` at the level of this step, from 0 for step 0 to `(1 - t1) / t1` for the last."""
    gap = (1.0 - t1) * (step / (STEPS - 1))
    return gap / (1.0 - gap)


_COMPILED = tl.constexpr(isinstance(_v, triton.JITFunction))  # not interpreted in Python, which reads no PTX


@triton.jit
def _log2(x):
    """By the instruction of the device, as `tl.exp2`: to 2^-22, where CUDA's own function takes twenty."""
    if _COMPILED:
        result = tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        result = tl.log2(x)
    return result


@triton.jit
def _bits(seed, count, row, STREAM: tl.constexpr):
    """Four blocks of uint32 for a block of counts."""
    count = count.to(tl.uint32)
    zero = count * 0
    return tl.philox(seed, count, zero + row.to(tl.uint32), zero + STREAM, zero, _ROUNDS)


@triton.jit
def _uniform(bits):
    """In (0, 1], fine near 0."""
    return bits.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10


@triton.jit
def _normals(bits, angle_bits):
    """Two standard normals, `sqrt(-2 log u) (cos, sin)` (Box-Muller), the angle uniform in one half of the circle.

    The last bit decides the half. Sine and cosine are their series up to the 11th and the 12th power.
    """
    r = tl.sqrt(tl.maximum(_log2(_uniform(bits)) * -1.3862943611198906, 0.0))
    r = tl.where((angle_bits & 1) == 0, r, -r)
    y = angle_bits.to(tl.int32, bitcast=True).to(tl.float32) * 7.314590396335798e-10  # pi / 2^32
    q = y * y
    sine = 2.7557319e-6 - q * 2.5052108e-8
    sine = ((((q * sine - 1.9841270e-4) * q + 8.3333333e-3) * q - 1.6666667e-1) * q + 1.0) * y
    cosine = 2.4801587e-5 + q * (q * 2.0876757e-9 - 2.7557319e-7)
    cosine = (((q * cosine - 1.3888889e-3) * q + 4.1666667e-2) * q - 0.5) * q + 1.0
    return r * cosine, r * sine


@triton.jit
def _exponential(bits):
    """`-log(1 - u)`, exponential of mean 1; by its series where u is small, which is where a race is decided."""
    u = _uniform(bits)
    series = u * (1.0 + u * (0.5 + u * 0.33333333))
    return tl.where(u < 0.01, series, -tl.log(1.0 - tl.minimum(u, 0.99999994)))


@triton.jit
def _race(weights, seed, row, STREAM: tl.constexpr, SIZE: tl.constexpr):
    """An index drawn in proportion to `weights` `(SIZE,)`: the first to arrive at rates `weights`."""
    bits, _, _, _ = _bits(seed, tl.arange(0, SIZE), row, STREAM)
    return tl.argmax(weights / _exponential(bits), 0)


@triton.jit
def _noise(noise_ptr, seed, row, start, K: tl.constexpr, STORED: tl.constexpr, BLOCK: tl.constexpr):
    """z at the columns from `start`: four for one call of Philox, or what is stored."""
    if STORED:
        columns = start + tl.arange(0, BLOCK)
        z = tl.load(noise_ptr + row * K + columns, mask=columns < K, other=0.0).to(tl.float32)
    else:
        b0, b1, b2, b3 = _bits(seed, start // 4 + tl.arange(0, BLOCK // 4), row, _NOISE)
        z0, z1 = _normals(b0, b1)
        z2, z3 = _normals(b2, b3)
        z = tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), (BLOCK,))
    return z


@triton.jit
def _noise_at(noise_ptr, seed, row, columns, K: tl.constexpr, STORED: tl.constexpr):
    """z at any columns."""
    if STORED:
        z = tl.load(noise_ptr + row * K + columns, mask=columns < K, other=0.0).to(tl.float32)
    else:
        b0, b1, b2, b3 = _bits(seed, columns // 4, row, _NOISE)
        z0, z1 = _normals(b0, b1)
        z2, z3 = _normals(b2, b3)
        z = tl.where((columns & 2) == 0, tl.where((columns & 1) == 0, z0, z1), tl.where((columns & 1) == 0, z2, z3))
    return z


@triton.jit
def _read(ptr, columns, K: tl.constexpr, other):
    return tl.load(ptr + columns, mask=columns < K, other=other).to(tl.float32)


@triton.jit
def _denoised(shifted, z, t1, scales, COUNT: tl.constexpr, STEPS: tl.constexpr):
    """`(D_1, ..., D_COUNT)` from `shifted` `(l - m) log2(e)` and `scales` `1 / S_k`."""
    x = z
    d = tl.exp2(shifted) * scales[0]
    outputs = (d,)
    for step in tl.static_range(1, COUNT):
        v = _v(t1, step, STEPS)
        x += (v - _v(t1, step - 1, STEPS)) * d
        d = tl.exp2(shifted + (v * _LOG2_E) * x) * scales[step]
        outputs = outputs + (d,)
    return outputs


@triton.jit
def draw(
    logits_ptr, noise_ptr, seed_ptr, state_ptr, drawn_ptr, soft_ptr, t1,
    K: tl.constexpr, STEPS: tl.constexpr, HARD: tl.constexpr, STORED: tl.constexpr, BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """Writes the state `(m, S_1, ..., S_n)` of a row, and a category drawn from D_n, or D_n itself.

    Lane i of a block sees the columns i, i + BLOCK, ...: the draw takes a lane in proportion to its mass, then one of
    its columns. A column beyond K, as a logit of -inf, has mass 0.
    """
    row = tl.program_id(0).to(tl.int64)
    seed = tl.load(seed_ptr)
    logits_ptr += row * K
    state_ptr += row * (STEPS + 1)
    lanes = tl.arange(0, BLOCK)

    best = tl.full((BLOCK,), _LOWEST, tl.float32)
    mass = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, K, BLOCK):
        logits = _read(logits_ptr, start + lanes, K, float("-inf"))
        higher = tl.maximum(best, logits)
        mass = mass * tl.exp2((best - higher) * _LOG2_E) + tl.exp2((logits - higher) * _LOG2_E)
        best = higher
    highest = tl.max(best, 0)
    total = tl.sum(mass * tl.exp2((best - highest) * _LOG2_E), 0)
    tl.store(state_ptr, highest)
    tl.store(state_ptr + 1, total)
    scales, one = (1.0 / total,), tl.full((), 1.0, tl.float32)

    for step in tl.static_range(1, STEPS):
        mass = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, K, BLOCK):
            shifted = (_read(logits_ptr, start + lanes, K, float("-inf")) - highest) * _LOG2_E
            z = _noise(noise_ptr, seed, row, start, K, STORED, BLOCK)
            mass += _denoised(shifted, z, t1, scales + (one,), step + 1, STEPS)[step]
        total = tl.sum(mass, 0)
        tl.store(state_ptr + 1 + step, total)
        scales = scales + (1.0 / total,)

    if HARD:
        lane = _race(mass, seed, row, _LANE, BLOCK)
        columns = lane + tl.arange(0, TILES) * BLOCK
        shifted = (_read(logits_ptr, columns, K, float("-inf")) - highest) * _LOG2_E
        z = _noise_at(noise_ptr, seed, row, columns, K, STORED)
        weights = _denoised(shifted, z, t1, scales, STEPS, STEPS)[STEPS - 1]
        column = lane + _race(weights, seed, row, _TILE, TILES) * BLOCK
        tl.store(drawn_ptr + row, tl.minimum(column, K - 1).to(tl.int64))
    else:
        for start in range(0, K, BLOCK):
            columns = start + lanes
            shifted = (_read(logits_ptr, columns, K, float("-inf")) - highest) * _LOG2_E
            z = _noise(noise_ptr, seed, row, start, K, STORED, BLOCK)
            d = _denoised(shifted, z, t1, scales, STEPS, STEPS)[STEPS - 1]
            tl.store(soft_ptr + row * K + columns, d.to(soft_ptr.dtype.element_ty), mask=columns < K)


@triton.jit
def _add_moments(sums, outputs, grad, t1, STEPS: tl.constexpr):
    """What a block adds to the moments that `_means` needs, walking the chain backwards.

    `G_k = c_k sum_{j>k} v_j U_j` is linear in the gradient and in the means of the steps behind: it is
    `c_k [q_n (g - i_n) - sum_{k<j<n} q_j i_j]`. With U_k each q_j is multiplied by `1 + v_k c_k D_k`, and
    `q_k = v_k D_k` joins them. The moments are `<D_n, g>`, then for k = n-1, ..., 1 `<c_k D_k q_n, g>` and all
    `<c_k D_k, q_j>`.
    """
    d = outputs[STEPS - 1]
    v = _v(t1, STEPS - 1, STEPS)
    added = (sums[0] + d * grad,)
    q = (v * d,)
    for i in tl.static_range(1, STEPS):
        d = outputs[STEPS - 1 - i]
        behind = v
        v = _v(t1, STEPS - 1 - i, STEPS)
        weight = (behind - v) * d
        added = added + (sums[i * (i + 1) // 2] + weight * q[0] * grad,)
        grown = (q[0] * (1.0 + v * weight),)
        added = added + (sums[i * (i + 1) // 2 + 1] + weight * q[0],)
        for j in tl.static_range(1, i):
            added = added + (sums[i * (i + 1) // 2 + 1 + j] + weight * q[j],)
            grown = grown + (q[j] * (1.0 + v * weight),)
        q = grown + (v * d,)
    return added


@triton.jit
def _means(sums, STEPS: tl.constexpr):
    """`i_k = <D_k, G_k>` for k = n, ..., 1 from the moments, by substitution."""
    means = (tl.sum(sums[0], 0),)
    for i in tl.static_range(1, STEPS):
        mean = tl.sum(sums[i * (i + 1) // 2], 0)
        for j in tl.static_range(i):
            mean -= tl.sum(sums[i * (i + 1) // 2 + 1 + j], 0) * means[j]
        means = means + (mean,)
    return means


@triton.jit
def differentiate(
    logits_ptr, noise_ptr, seed_ptr, state_ptr, drawn_ptr, grad_ptr, result_ptr, t1,
    K: tl.constexpr, STEPS: tl.constexpr, REINMAX: tl.constexpr, STORED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient `sum_k U_k` of `<g, D_n>` with respect to a row of logits.

    With `G_n = g`, `G_k = c_k sum_{j>k} v_j U_j` and `c_k = v_{k+1} - v_k`, the softmax of step k sends
    `U_k = D_k (G_k - i_k)`, `i_k = <D_k, G_k>`, to the logits. All i_k come from one reading of the row. With REINMAX
    U_n goes to the logits as `1/2 [D (g - i) + (d - D) <d - D, g>]`, d the drawn one-hot.
    """
    row = tl.program_id(0).to(tl.int64)
    seed = tl.load(seed_ptr)
    logits_ptr += row * K
    grad_ptr += row * K
    state_ptr += row * (STEPS + 1)
    lanes = tl.arange(0, BLOCK)
    highest = tl.load(state_ptr)
    scales = (1.0 / tl.load(state_ptr + 1),)
    for step in tl.static_range(1, STEPS):
        scales = scales + (1.0 / tl.load(state_ptr + 1 + step),)

    sums = (tl.zeros((BLOCK,), tl.float32),)
    for _ in tl.static_range(1, STEPS * (STEPS + 1) // 2):
        sums = sums + (tl.zeros((BLOCK,), tl.float32),)
    for start in range(0, K, BLOCK):
        shifted = (_read(logits_ptr, start + lanes, K, float("-inf")) - highest) * _LOG2_E
        grad = _read(grad_ptr, start + lanes, K, 0.0)
        z = _noise(noise_ptr, seed, row, start, K, STORED, BLOCK)
        sums = _add_moments(sums, _denoised(shifted, z, t1, scales, STEPS, STEPS), grad, t1, STEPS)
    means = _means(sums, STEPS)

    if REINMAX:
        drawn = tl.load(drawn_ptr + row)
        surprise = tl.load(grad_ptr + drawn).to(tl.float32) - means[0]
    for start in range(0, K, BLOCK):
        columns = start + lanes
        shifted = (_read(logits_ptr, columns, K, float("-inf")) - highest) * _LOG2_E
        grad = _read(grad_ptr, columns, K, 0.0)
        z = _noise(noise_ptr, seed, row, start, K, STORED, BLOCK)
        outputs = _denoised(shifted, z, t1, scales, STEPS, STEPS)
        v = _v(t1, STEPS - 1, STEPS)
        u = outputs[STEPS - 1] * (grad - means[0])
        result = u
        if REINMAX:
            at_drawn = tl.where(columns == drawn, surprise, 0.0)
            result = 0.5 * (u - outputs[STEPS - 1] * surprise + at_drawn)
        behind = v * u
        for i in tl.static_range(1, STEPS):
            before = _v(t1, STEPS - 1 - i, STEPS)
            u = outputs[STEPS - 1 - i] * ((v - before) * behind - means[i])
            result += u
            behind += before * u
            v = before
        tl.store(result_ptr + row * K + columns, result.to(result_ptr.dtype.element_ty), mask=columns < K)
