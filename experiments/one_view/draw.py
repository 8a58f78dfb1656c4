"""The weight that each objective puts on each token of one small batch: what differs between them, and nothing else.

What it does: computes `gradient_weights` of SFT, DPO, GRPO and PPO on the same eight tokens of one pair, and as curves
over the log-ratio of a single token, and writes weights.png beside this file. What it leaves out: no model is involved;
the log-probabilities are made up.
"""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import matplotlib
import numpy as np

from grpo_jax.core import Objective, PpoClip, grpo, policy_loss, sft, token_mean
from grpo_jax.core.preference import Dpo, preference_loss
from grpo_jax.core.unified import gradient_weights

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PPO = Objective(surrogate=PpoClip(), aggregate=token_mean)
DPO = Dpo(beta=0.5)
LOG_RATIO = jnp.array([[0.05, 0.40, -0.10, 0.15, -0.35, 0.02], [0.10, -0.45, 0.30, -0.05, 0.0, 0.0]])
"""log pi / pi_old of a good completion of six tokens and a bad one of four."""
DRIFT = jnp.array([[0.6, 0.2, -0.3, 0.9, -0.7, 0.1], [-0.2, 0.8, -0.9, 0.4, 0.0, 0.0]])
"""log pi / pi_ref."""
MASK = jnp.array([[True] * 6, [True] * 4 + [False] * 2])
ADVANTAGE = jnp.where(MASK, jnp.array([[1.0], [-1.0]]), 0.0)
GOOD, BAD = "#2166ac", "#b2182b"


def on_policy_terms(objective: Objective, log_ratio, drift, mask, advantage):
    """Returns the weights under a policy loss, at log pi = -1 throughout."""
    logp = jnp.full(log_ratio.shape, -1.0)
    tokens = {"old_logp": logp - log_ratio, "ref_logp": logp - drift, "mask": mask, "advantage": advantage}
    return gradient_weights(lambda x: policy_loss(objective, logp=x, **tokens)[0], logp)


def on_pairs(drift, mask):
    """Returns the weights under DPO, chosen first."""
    logp = jnp.full(drift.shape, -1.0)
    return gradient_weights(lambda x: preference_loss(DPO, logp=x, ref_logp=logp - drift, mask=mask), logp)


def batch() -> dict[str, np.ndarray]:
    """Returns the weights [2, 6] of each objective; SFT reads the good completion only."""
    shown = MASK.at[1].set(False)
    weights = {
        "SFT": on_policy_terms(sft(), LOG_RATIO, DRIFT, shown, jnp.ones((2, 6))),
        "DPO": on_pairs(DRIFT, MASK),
        "GRPO": on_policy_terms(grpo(), LOG_RATIO, DRIFT, MASK, ADVANTAGE),
        "PPO": on_policy_terms(PPO, LOG_RATIO, DRIFT, MASK, ADVANTAGE),
    }
    return {name: np.asarray(w) for name, w in weights.items()}


def curves(x: np.ndarray) -> dict[str, tuple[str, np.ndarray, np.ndarray]]:
    """Returns, for each objective, the label of its axis and the weight of one good and one bad token along it.

    DPO is drawn over margins eight times as large; for GRPO the reference lies 1.5 times as far as the old policy.
    """
    column, one = jnp.asarray(x)[:, None], jnp.ones((len(x), 1), bool)
    scale = len(x)  # each row is a batch of one: the mean over rows is undone

    def policy(objective, sign, drift):
        return scale * np.asarray(on_policy_terms(objective, column, drift, one, sign * jnp.ones((len(x), 1))))[:, 0]

    pairs = jnp.stack([8 * column, jnp.zeros_like(column)], axis=1)
    dpo = scale * np.asarray(on_pairs(pairs, jnp.ones(pairs.shape, bool)))[..., 0]
    return {
        "SFT": (r"$\log\,\pi/\pi_{\rm old}$", policy(sft(), 1.0, 0 * column), np.zeros(len(x))),
        "DPO": ("margin $h$", dpo[:, 0], dpo[:, 1]),
        "GRPO": (r"$\log\,\pi/\pi_{\rm old}$", policy(grpo(), 1.0, 1.5 * column), policy(grpo(), -1.0, 1.5 * column)),
        "PPO": (r"$\log\,\pi/\pi_{\rm old}$", policy(PPO, 1.0, 0 * column), policy(PPO, -1.0, 0 * column)),
    }


def shown(value: float) -> str:
    """Returns a weight as text, with a digit more where two would print zero."""
    return "0" if value == 0 else f"{value:+.3f}" if abs(value) < 0.005 else f"{value:+.2f}"


def main() -> None:
    figure, axes = plt.subplots(2, 4, figsize=(13, 5.6), height_ratios=[1, 1.9], layout="constrained")
    weights, ratios = batch(), np.linspace(-1.5, 1.5, 601, dtype=np.float32)
    margins = 8 * ratios
    limit = max(np.abs(w).max() for w in weights.values())
    for axis, (name, w) in zip(axes[0], weights.items(), strict=True):
        unseen = np.asarray(~MASK) | ((np.arange(2) == 1)[:, None] & (name == "SFT"))
        image = axis.imshow(np.where(unseen, np.nan, w), cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
        axis.set_facecolor("#eeeeee")
        for (row, column), value in np.ndenumerate(w):
            if not unseen[row, column]:
                colour = "white" if abs(value) > 0.6 * limit else "black"
                axis.text(column, row, shown(value), ha="center", va="center", color=colour, size=8)
        axis.set_title(name, fontweight="bold")
        axis.set_yticks([0, 1], ["good", "bad"] if name == "SFT" else ["", ""])
        axis.set_xticks(range(6), range(1, 7))
        axis.set_xlabel("token")
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes[0], pad=0.01, label="weight $w_t$")

    for axis, (name, (label, good, bad)) in zip(axes[1], curves(ratios).items(), strict=True):
        axis.axhline(0, color="#999999", linewidth=0.8)
        x = margins if name == "DPO" else ratios
        axis.plot(x, good, color=GOOD, linewidth=2.2, label="chosen" if name == "DPO" else "A = +1")
        if name != "SFT":
            axis.plot(x, bad, color=BAD, linewidth=2.2, label="rejected" if name == "DPO" else "A = -1")
        if name in ("GRPO", "PPO"):
            for bound in np.log([0.8, 1.2]):
                axis.axvline(bound, color="#bbbbbb", linewidth=0.8, linestyle=":")
        axis.set(xlabel=label, xlim=(x[0], x[-1]), ylim=(-2.6, 2.6))
        if name == "DPO":
            axis.set_ylim(-0.6, 0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, loc="upper right" if name == "DPO" else "lower left")
    axes[1, 0].set_ylabel("weight of one token, before averaging")
    figure.savefig(Path(__file__).parent / "weights.png", dpi=150)


if __name__ == "__main__":
    main()
