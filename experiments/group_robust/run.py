"""Two groups who disagree, one policy: robust, importance-weighted and plain DPO and IPO on the synthetic problem.

What it does: draws a two-group bandit after that of Group Robust Preference Optimization (arXiv:2405.20304) for 20
seeds, trains a log-linear policy with each method, and writes table.md and worst_group.png beside this file. All seeds
of a method train at once (vmap over seeds, scan over steps). What it leaves out: nothing is tuned per method or seed;
labels are without noise, and there is one imbalance.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.core.preference import Dpo, Ipo, pair_losses
from grpo_jax.core.robust import GroupRobust, group_losses, robust_loss

SEEDS, STEPS, REPORTS, ACTIONS, GROUPS = 20, 1000, 50, 8, 2
TRAIN, HELD_OUT, MINORITY = 300, 1000, 0.2
REWARD = np.array([[1.0, 3.0, 1.0, 3.0], [3.0, 1.0, 3.0, 1.0]])
"""What each group values: the parameters of its linear reward."""

KINDS = ("swapped", "flipped", "same")
METHODS = ("plain", "importance", "robust")
PREFIX = {"plain": "", "importance": "IS-", "robust": "GR-"}
LOSSES = {
    "DPO": {"loss": Dpo(beta=1.0), "learning_rate": 2.0, "control": GroupRobust(groups=GROUPS, step=0.5)},
    "IPO": {"loss": Ipo(beta=0.1), "learning_rate": 0.2, "control": GroupRobust(groups=GROUPS, step=0.01)},
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pairs:
    """Labelled comparisons of two actions in a state, by members of two groups."""

    features: jax.Array
    """phi(state, action, group), [N, 8, 4]."""
    actions: jax.Array
    """The chosen and the rejected action, [N, 2]."""
    group: jax.Array
    """[N]."""


def features(state: jax.Array, group: jax.Array, kind: str) -> jax.Array:
    """Returns phi [N, 8, 4]: per coordinate s of the state one feature that grows and one that falls with the action.

    Group 0 has the pair (1 + a/8) cos(pi s), sin(pi s) / (1 + a/8). For group 1 the two are exchanged ("swapped"),
    sine and cosine are exchanged ("flipped"), or nothing is ("same").
    """
    scale = (1.0 + jnp.arange(ACTIONS) / ACTIONS)[:, None]
    cos, sin = jnp.cos(jnp.pi * state)[:, None], jnp.sin(jnp.pi * state)[:, None]
    here = jnp.stack([cos * scale, sin / scale], axis=-1)
    there = {"swapped": here[..., ::-1], "flipped": jnp.stack([sin * scale, cos / scale], axis=-1), "same": here}[kind]
    return jnp.where((group == 1)[:, None, None, None], there, here).reshape(len(state), ACTIONS, 4)


def reward(pairs: Pairs) -> jax.Array:
    """Returns the reward [N, 8] of each action for the group of each row."""
    return jnp.einsum("nad,nd->na", pairs.features, jnp.asarray(REWARD)[pairs.group])


def draw(key: jax.Array, sizes: tuple[int, ...], kind: str) -> Pairs:
    """Returns pairs of two different actions at random; who labels them always prefers the higher reward."""
    for_state, for_action, for_gap = jax.random.split(key, 3)
    number = sum(sizes)
    group = jnp.repeat(jnp.arange(GROUPS), jnp.array(sizes), total_repeat_length=number)
    first = jax.random.randint(for_action, (number,), 0, ACTIONS)
    second = (first + jax.random.randint(for_gap, (number,), 1, ACTIONS)) % ACTIONS
    state = jax.random.uniform(for_state, (number, 2))
    pairs = Pairs(features(state, group, kind), jnp.stack([first, second], axis=1), group)
    value = jnp.take_along_axis(reward(pairs), pairs.actions, axis=1)
    ordered = jnp.where((value[:, 0] >= value[:, 1])[:, None], pairs.actions, pairs.actions[:, ::-1])
    return dataclasses.replace(pairs, actions=ordered)


def losses(theta: jax.Array, pairs: Pairs, loss) -> jax.Array:
    """Returns the loss of each pair under the log-linear policy; the reference is uniform."""
    logits = jax.nn.log_softmax(pairs.features @ theta)
    logp = jnp.take_along_axis(logits, pairs.actions, axis=1)[..., None]
    mask = jnp.ones(logp.shape, bool)
    return pair_losses(loss, logp=logp, ref_logp=jnp.full(logp.shape, -jnp.log(ACTIONS)), mask=mask)


def evaluate(theta: jax.Array, pairs: Pairs, loss) -> dict[str, jax.Array]:
    """Returns the loss of each group, and how far its reward falls short of the best action's, both [2]."""
    scored = jnp.ones(len(pairs.group), bool)
    value = reward(pairs)
    best = jnp.max(value, axis=1)
    got = jnp.take_along_axis(value, jnp.argmax(pairs.features @ theta, axis=1)[:, None], axis=1)[:, 0]
    means = {
        name: group_losses(x, pairs.group, scored, groups=GROUPS).mean()
        for name, x in {"loss": losses(theta, pairs, loss), "got": got, "best": best}.items()
    }
    return {"loss": means["loss"], "reward_error": (means["best"] - means["got"]) / means["best"]}


def train(train_pairs: Pairs, held_out: Pairs, *, method: str, loss, learning_rate: float, control: GroupRobust):
    """Returns the held-out figures and the groups' weights along the training of one seed."""
    scored = jnp.ones(len(train_pairs.group), bool)
    counts = jnp.bincount(train_pairs.group, length=GROUPS)

    def step(carry, _):
        theta, alpha = carry
        if method == "robust":
            now = group_losses(losses(theta, train_pairs, loss), train_pairs.group, scored, groups=GROUPS)
            alpha = control.update(alpha, now)

        def objective(theta):
            each = losses(theta, train_pairs, loss)
            return robust_loss(each, train_pairs.group, scored, weights=alpha, counts=counts).mean()

        return (theta - learning_rate * jax.grad(objective)(theta), alpha), None

    def report(carry, _):
        carry, _ = jax.lax.scan(step, carry, length=STEPS // REPORTS)
        return carry, evaluate(carry[0], held_out, loss) | {"weights": carry[1]}

    # The plain loss is the one whose weights are the shares of the data: every pair then weighs 1.
    alpha = counts / jnp.sum(counts) if method == "plain" else control.initial_weights()
    return jax.lax.scan(report, (jnp.zeros(4), alpha), length=REPORTS)[1]


def data(kind: str) -> tuple[Pairs, Pairs]:
    """Returns the training pairs (0.2 : 0.8) and the held-out pairs (half and half) of all seeds, stacked."""
    sizes = round(MINORITY * TRAIN), TRAIN - round(MINORITY * TRAIN)
    keys = jax.vmap(jax.random.split)(jax.vmap(jax.random.key)(jnp.arange(SEEDS)))
    seen = jax.vmap(lambda key: draw(key, sizes, kind))(keys[:, 0])
    return seen, jax.vmap(lambda key: draw(key, (HELD_OUT,) * GROUPS, kind))(keys[:, 1])


def results(kind: str) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """Returns the held-out curves [seed, report, group] of each loss and method, and the weights alpha."""
    pairs = data(kind)
    return {
        (name, method): jax.tree.map(
            np.asarray, jax.jit(jax.vmap(functools.partial(train, method=method, **setting)))(*pairs)
        )
        for name, setting in LOSSES.items()
        for method in METHODS
    }


def worst(curves: dict[str, np.ndarray], what: str) -> np.ndarray:
    """Returns the figure of the worse group at the end of training, [seed]."""
    return curves[what][:, -1].max(axis=-1)


def table(kind: str, found: dict) -> list[str]:
    """Returns the Markdown rows of one feature map."""
    rows = []
    for name, method in found:
        cells = [kind, f"{PREFIX[method]}{name}"]
        for what, digits in (("loss", 3), ("reward_error", 4)):
            own, robust = worst(found[name, method], what), worst(found[name, "robust"], what)
            better, equal = int((robust < own).sum()), int((robust == own).sum())
            cells.append(f"{own.mean():.{digits}f} ± {own.std(ddof=1) / SEEDS**0.5:.{digits}f}")
            cells.append("" if method == "robust" else f"{better}" + (f" (+ {equal} equal)" if equal else ""))
        rows.append("| " + " | ".join([*cells, f"{found[name, method]['weights'][:, -1, 0].mean():.2f}"]) + " |")
    return rows


def draw_figure(found: dict, path: Path) -> None:
    """Draws the worse group's loss along training, and its reward error at the end, seed by seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = {"plain": "#7f7f7f", "importance": "#e08214", "robust": "#2166ac"}
    figure, axes = plt.subplots(len(LOSSES), 3, figsize=(12, 6.6), width_ratios=[1.5, 1, 1], layout="constrained")
    steps = np.arange(1, REPORTS + 1) * STEPS // REPORTS
    for row, name in zip(axes, LOSSES, strict=True):
        for method in METHODS:
            curve = found[name, method]["loss"].max(axis=-1)
            mean, error = curve.mean(axis=0), curve.std(axis=0, ddof=1) / SEEDS**0.5
            row[0].plot(steps, mean, color=colours[method], label=f"{PREFIX[method]}{name}", linewidth=2)
            row[0].fill_between(steps, mean - error, mean + error, color=colours[method], alpha=0.25, linewidth=0)
        row[0].set(xlabel="step", ylabel="loss of the worse group", xlim=(0, STEPS))
        row[0].legend(frameon=False)
        for axis, what, label in zip(row[1:], ("loss", "reward_error"), ("loss", "reward error"), strict=True):
            ends = np.stack([worst(found[name, method], what) for method in METHODS])
            axis.plot(range(3), ends, color="#d0d0d0", linewidth=0.8, zorder=1)
            for x, method in enumerate(METHODS):
                axis.scatter([x] * SEEDS, ends[x], s=14, color=colours[method], alpha=0.7, linewidths=0, zorder=2)
                axis.hlines(ends[x].mean(), x - 0.28, x + 0.28, color=colours[method], linewidth=2.5, zorder=3)
            axis.set_xticks(range(3), [f"{PREFIX[method]}{name}" for method in METHODS])
            axis.set(ylabel=f"{label} of the worse group", xlim=(-0.5, 2.5), ylim=(0, None))
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#ececec", zorder=0)
        axis.set_axisbelow(True)
    axes[0, 0].set_title("Held-out, mean of 20 seeds and its standard error", fontsize=10)
    axes[0, 1].set_title("At the end, each seed; bar: mean", fontsize=10)
    axes[0, 2].set_title("At the end, each seed; bar: mean", fontsize=10)
    figure.savefig(path, dpi=150)


def main() -> None:
    here = Path(__file__).parent
    lines = [
        "| features | method | loss | robust is lower in | reward error | robust is lower in | alpha of the minority |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind in KINDS:
        found = results(kind)
        lines += table(kind, found)
        if kind == KINDS[0]:
            draw_figure(found, here / "worst_group.png")
    (here / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
