"""Controllers of coefficients."""

from __future__ import annotations


def adaptive_kl(coef, kl, samples, *, target, horizon, limit=0.2):
    """Returns the next KL coefficient (Ziegler et al., arXiv:1909.08593, section 2.2).

    >>> round(adaptive_kl(0.2, 60.0, 100, target=6.0, horizon=1000.0), 4)
    0.204
    """
    error = (kl - target) / target
    error = limit if error > limit else -limit if error < -limit else error
    return coef + coef * error * samples / horizon


def adaptive_entropy(coef, entropy, *, target, step, highest):
    """Returns the next entropy coefficient (Skywork-OR1, arXiv:2505.22312).

    >>> round(adaptive_entropy(0.01, 0.1, target=0.2, step=0.005, highest=1.0), 4)
    0.015
    """
    moved = coef + step if entropy < target else coef - step
    return max(0.0, min(moved, highest))
