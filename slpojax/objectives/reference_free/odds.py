"""ORPO: the likelihood of the chosen, and the ratio of the odds; see `slpojax.objectives.reference_free`."""

import jax
import jax.numpy as jnp

from slpojax.base import ABSENT, Array, Logps, Scalar
from slpojax.numerics import log1mexp
from slpojax.objectives import likelihood, require
from slpojax.sequence import first, mean, preference_metrics


def orpo(policy: Logps, *, beta: Scalar = 0.1, nll: str = "token_mean") -> tuple[Array, dict[str, Array]]:
    r"""ORPO: the likelihood of the chosen, and the ratio of the two odds per token.

    .. math:: L = NLL(y_w) - \beta \log \sigma\Big(\log \frac{o(y_w)}{o(y_l)}\Big),
        \quad \log o(y) = \bar L(y) - \log(1 - e^{\bar L(y)})

    This is the paper's form, whose likelihood is that of the chosen given the prompt; the authors' code and TRL have
    `orpo_with_prompt`, which trains on the prompts as well. Nothing is clamped but the odds of a response whose tokens
    are all certain: from a mean log-prob of zero up they are held at e^87 in float32 (see `numerics.log1mexp`).

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        beta: the paper's lambda, weight of the odds ratio; TRL's name.
        nll: "token_mean", "sequence_mean" or "sequence_sum".

    Returns:
        The loss in nats, and the metrics, with the reward beta times the mean log-prob, and as in TRL log_odds_chosen,
        the log of the odds ratio, and log_odds_ratio, its log-sigmoid.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> print(f"{orpo(policy, beta=0.1, nll='sequence_mean')[0]:.6f}")
        0.254350

    Verified:
        TRL 1.16's ORPOTrainer (the odds term, rewards, gradients; float32, as it computes), and the paper's formula in
        120 digits.

    Reference:
        Jiwoo Hong, Noah Lee, James Thorne, ORPO: Monolithic Preference Optimization without Reference Model, 2024,
        arXiv:2403.07691, equations 6 and 7.
    """
    return _odds_ratio(policy, policy, beta, nll)


def orpo_with_prompt(
    policy: Logps, prompt: Logps, *, beta: Scalar = 0.1, nll: str = "token_mean"
) -> tuple[Array, dict[str, Array]]:
    r"""ORPO as its authors' code and TRL train it: the likelihood is that of the prompt and the chosen together.

    .. math:: L = NLL(x, y_w) - \beta \log \sigma\Big(\log \frac{o(y_w)}{o(y_l)}\Big),
        \quad \log o(y) = \bar L(y) - \log(1 - e^{\bar L(y)})

    Beside `orpo`, the prompt's own likelihood comes to the loss and its length to the mean's divisor: where prompts are
    long, the chosen's tokens weigh little against them, and less than the odds. The odds are those of the responses
    given the prompt in both. The prompt's first token, which nothing predicts, counts nowhere. TRL and the authors take
    the mean over the tokens of each micro-batch of each device, here it is over those of the global batch.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        prompt: [P] log-probs of the prompt's tokens; they count where the chosen is there.
        beta: the paper's lambda, weight of the odds ratio; TRL's name.
        nll: "token_mean" as in TRL and the authors' code, "sequence_mean" or "sequence_sum", over prompt and chosen.

    Returns:
        The loss in nats, and the metrics of `orpo`.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> prompt = Logps(jnp.float32([-1.0]), jnp.float32([-0.46]), jnp.int32(1))
        >>> print(f"{orpo_with_prompt(policy, prompt, beta=0.1, nll='sequence_mean')[0]:.5f}")
        0.62935

    Verified:
        TRL 1.16's ORPOTrainer (whole runs, float32: losses, likelihoods, odds, gradient norms, weights), and the
        formula in float64 with its gradient by both.

    Reference:
        Jiwoo Hong, Noah Lee, James Thorne, ORPO: Monolithic Preference Optimization without Reference Model, 2024,
        arXiv:2403.07691, equations 6 and 7, with the likelihood of github.com/xfactlab/orpo.
    """
    chosen = first(policy, 1)
    there = chosen.length[0] > 0
    before = Logps(*(jnp.where(there, x, none) for x, none in zip(prompt, (0.0, ABSENT, 0), strict=True)))
    token, other = (jnp.concatenate([a[None], b], axis=-1) for a, b in zip(before[:2], chosen[:2], strict=True))
    return _odds_ratio(policy, Logps(token, other, before.length + chosen.length), beta, nll)


def _odds_ratio(policy: Logps, likely: Logps, beta: Scalar, nll: str) -> tuple[Array, dict[str, Array]]:
    """Return ORPO with the likelihood of candidate 0 of `likely`."""
    require(beta > 0, "beta", beta, "a number above 0")
    logp = mean(first(policy, 2))
    odds = logp - log1mexp(logp)
    ratio = -jax.nn.softplus(odds[1] - odds[0])
    metrics = jax.lax.stop_gradient({"log_odds_chosen": odds[0] - odds[1], "log_odds_ratio": ratio})
    return likelihood.add(-beta * ratio, preference_metrics(policy, beta * logp) | metrics, likely, "nll", 1.0, nll)
