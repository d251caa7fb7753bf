"""The inference-cost formulas a second time, in exact rationals: the oracle of the cost tests.

Written from the formulas' description term by term, sharing no code and no names with
`parcontrol.analysis.cost`. Input and output are plain numbers; floats enter as decimal fractions.
"""

from __future__ import annotations

from fractions import Fraction


def exact_cost(
    *, h, f, L=36, a=16, g=2, V=151936, P=1, K=48, B=1, n_in=64, n_out=64,
    tflops="312", bandwidth="2039", e_f="0.7", e_b="0.9",
) -> tuple[Fraction, Fraction]:  # fmt: skip
    """Total bytes and total seconds."""
    F = Fraction(tflops) * 10**12 * Fraction(e_f)
    W = Fraction(bandwidth) * 10**9 * Fraction(e_b)
    d = Fraction(h, a)
    if P == 1:
        K = 0
    b, S, T = B * P, n_in + K, n_in + n_out
    p_A = 2 * h**2 + 2 * h * g * d
    p_M = 3 * h * f

    m_weights = 2 * (L * (p_A + p_M + 2 * h) + V * h + h)
    m_kv = 2 * 2 * b * (S + n_out) * d * g * L
    q = P * h * (h + 1) if P > 1 else 0

    def x_attention(r, s):
        return 2 * r * s * max(3 * h, 2 * h + 4 * a)

    def x_mlp(r, s):
        return 2 * r * s * max(h, f)

    m_activation = max(x_attention(b, S), x_mlp(b, S), 2 * B * S * V)
    memory = m_weights + m_kv + 2 * q + m_activation

    def t_attention(r, s):
        flops = 4 * r * s * h**2 + 4 * r * s * h * g * d + 4 * r * s**2 * h
        return max(flops / F, (2 * p_A + x_attention(r, s)) / W)

    def t_mlp(r, s):
        return max(6 * r * s * h * f / F, (2 * p_M + x_mlp(r, s)) / W)

    def t_norm(r, s):
        return max(5 * r * s * h / F, 4 * r * s * h / W)

    def t_logits(r, s):
        return 2 * r * s * V * h / F

    def one_pass(r, s):
        layers = L * (t_attention(r, s) + t_mlp(r, s) + 2 * t_norm(r, s))
        return layers + 2 * V * h / W + t_logits(r, s)

    generation = one_pass(b, S) + n_out * (one_pass(b, 1) + 2 * m_kv / W)
    aggregation = Fraction(q, p_M) * t_mlp(B, T)
    correction = t_logits(B, T) - t_logits(b, T)
    return Fraction(memory), generation + aggregation + correction
