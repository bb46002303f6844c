r"""Objectives that train a reward model: what a score head gives for each response, held against the preferences.

The model has a score head in the place of the unembedding (`model.head=score`), a linear map without bias of the final
hidden state to one number, and :math:`r_k` is that number at the last token of candidate k: the state *at* the token,
which has seen all of the response, as transformers' `...ForSequenceClassification` reads it. No log-prob is computed.

Rewards are log-odds of being preferred, in nats. The data fixes their differences alone; `centre` holds their level.

Metrics, without gradient: rewards/chosen of candidate 0, rewards/rejected the mean of the others, rewards/margins their
difference, rewards/accuracies the share of the others that candidate 0 beats (a tie counts one half).
"""

import jax
import jax.numpy as jnp

from slpojax.base import Array, Bool, Float, Logps, Scalar
from slpojax.objectives import require
from slpojax.objectives.listwise import against_the_rest, mean_of_others
from slpojax.objectives.pairs import score_gap
from slpojax.sequence import first

OVER_ALL = ("plackett_luce",)


def last(values: Float[Array, "K T"], length: Array) -> Float[Array, " K"]:
    """Return the values at the last token of each candidate, 0 where a candidate is absent.

    Example:
        >>> last(jnp.float32([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), jnp.int32([3, 1, 0])).tolist()
        [3.0, 4.0, 0.0]
    """
    place = jnp.maximum(jnp.asarray(length) - 1, 0)
    here = jnp.take_along_axis(values, place[:, None], axis=1)[:, 0]
    return jnp.where(jnp.asarray(length) > 0, here, 0.0)


def _metrics(reward: Float[Array, " K"], here: Bool[Array, " K"]) -> dict[str, Array]:
    reward = jax.lax.stop_gradient(reward)
    rejected = mean_of_others(reward, here)
    wins = mean_of_others((1 + jnp.sign(reward[0] - reward)) / 2, here)
    return {
        "rewards/chosen": reward[0],
        "rewards/rejected": rejected,
        "rewards/margins": reward[0] - rejected,
        "rewards/accuracies": jnp.where(jnp.any(here[1:]), wins, 0.5),
    }


def _pair(policy: Logps, reward: Float[Array, "K T"], margin: Scalar, centre: Scalar) -> tuple[Array, dict[str, Array]]:
    """Return the loss of a pair that is to differ by a margin, and the metrics."""
    require(centre >= 0, "centre", centre, "a number from 0")
    length = first(policy, 2).length
    r = last(reward[:2], length)
    return jax.nn.softplus(margin - (r[0] - r[1])) + centre * (r[0] + r[1]) ** 2, _metrics(r, length > 0)


def bradley_terry(
    policy: Logps, reward: Float[Array, "K T"], *, centre: Scalar = 0.0
) -> tuple[Array, dict[str, Array]]:
    r"""The Bradley-Terry model of preferences, fitted by its likelihood: how reward models are trained.

    .. math:: L = -\log \sigma(r_w - r_l) + c (r_w + r_l)^2

    Args:
        policy: [K, T] whose lengths alone are read; candidate 0 is preferred to candidate 1.
        reward: [K, T] what the score head gives at each token.
        centre: c, from 0: pulls the mean of a pair's rewards to 0, so that their level means the same for all prompts.
            TRL's `center_rewards_coefficient`, for which 0.01 is recommended.

    Returns:
        The loss in nats (log 2 where both are scored alike), and the metrics listed above.

    Example:
        >>> none, length = jnp.zeros((2, 2)), jnp.int32([2, 1])
        >>> r = jnp.float32([[0.3, 1.0], [-0.5, 0.0]])
        >>> print(f"{bradley_terry(Logps(none, none, length), r, centre=0.01)[0]:.6f}")
        0.203913

    Verified:
        TRL 1.16's RewardTrainer (whole runs) and the formula in float64.

    Reference:
        Long Ouyang and others, Training language models to follow instructions with human feedback, 2022,
        arXiv:2203.02155, equation 1; the model is of Ralph Bradley and Milton Terry, 1952. The pull to 0 is of Jacob
        Eisenstein and others, Helping or Herding? Reward Model Ensembles Mitigate but do not Eliminate Reward Hacking,
        2023, arXiv:2312.09244, section 2.
    """
    return _pair(policy, reward, 0.0, centre)


def bradley_terry_margin(
    policy: Logps, reward: Float[Array, "K T"], score: Float[Array, " K"], *, alpha: Scalar = 1.0, centre: Scalar = 0.0
) -> tuple[Array, dict[str, Array]]:
    r"""Bradley-Terry with a margin: the clearer the preference, the further the rewards are to lie apart.

    .. math:: L = -\log \sigma(r_w - r_l - m) + c (r_w + r_l)^2, \quad m = \alpha (s_w - s_l)

    Args:
        policy: [K, T] whose lengths alone are read; candidate 0 is preferred to candidate 1.
        reward: [K, T] what the score head gives at each token.
        score: [K] scores of the candidates; their difference is how clear the preference is.
        alpha: scale of the margin, from 0 (`bradley_terry`). With 1 and scores that differ by it, m is TRL's `margin`.
        centre: c, from 0; as in `bradley_terry`.

    Returns:
        The loss in nats, and the metrics listed above.

    Example:
        >>> none, length = jnp.zeros((2, 2)), jnp.int32([2, 1])
        >>> r = jnp.float32([[0.3, 1.0], [-0.5, 0.0]])
        >>> print(f"{bradley_terry_margin(Logps(none, none, length), r, jnp.float32([3.0, 1.0]), alpha=0.5)[0]:.6f}")
        0.474077

    Verified:
        TRL 1.16's RewardTrainer (whole runs) and the formula in float64.

    Reference:
        Hugo Touvron and others, Llama 2: Open Foundation and Fine-Tuned Chat Models, 2023, arXiv:2307.09288, equation
        2, with m of four steps.
    """
    require(alpha >= 0, "alpha", alpha, "a number from 0")
    return _pair(policy, reward, alpha * score_gap(score), centre)


def plackett_luce(
    policy: Logps, reward: Float[Array, "K T"], *, centre: Scalar = 0.0
) -> tuple[Array, dict[str, Array]]:
    r"""The Plackett-Luce model of rankings: the best against all, then the second against those behind it, and so on.

    .. math:: L = -\sum_{k < K - 1} \log \frac{e^{r_k}}{\sum_{j \ge k} e^{r_j}} + c (2 \bar{r})^2

    Two candidates are `bradley_terry`. Candidates that are absent have no part in it, and a single one has no loss.

    Args:
        policy: [K, T] whose lengths alone are read; the candidates are ranked, best first.
        reward: [K, T] what the score head gives at each token.
        centre: c, from 0: pulls the mean reward of an example's candidates to 0.

    Returns:
        The loss in nats (log K! where all are scored alike), and the metrics listed above.

    Example:
        >>> none, length = jnp.zeros((3, 2)), jnp.int32([2, 1, 2])
        >>> r = jnp.float32([[0.3, 1.0], [0.5, 0.0], [2.0, -1.0]])
        >>> print(f"{plackett_luce(Logps(none, none, length), r)[0]:.6f}")
        0.756370

    Verified: the formula in float64, as the probability of the ranking by drawing without replacement.

    Reference:
        Robin Plackett, The Analysis of Permutations, 1975, doi:10.2307/2346567; for reward models Banghua Zhu, Jiantao
        Jiao, Michael Jordan, Principled Reinforcement Learning with Human Feedback from Pairwise or K-wise Comparisons,
        2023, arXiv:2301.11270.
    """
    require(centre >= 0, "centre", centre, "a number from 0")
    length = jnp.asarray(policy.length)
    first(policy, 2)  # refuses data of one candidate
    here, r = length > 0, last(reward, length)
    mean = jnp.sum(r) / jnp.maximum(jnp.sum(here), 1)
    level = jnp.where(jnp.sum(here) > 1, centre * (2 * mean) ** 2, 0.0)
    return jnp.sum(against_the_rest(r, here)) + level, _metrics(r, here)
