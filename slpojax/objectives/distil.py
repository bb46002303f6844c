r"""Objectives that draw the policy to a teacher, which is the reference: a frozen model of the same vocabulary.

A teacher of another size or family is `reference.path`. They need one response, candidate 0, and no preference; joined
to another loss by name they hold it to the reference, `dpo.sigmoid + 0.1 * distil.forward_kl`. Where policy and teacher
agree there is no gradient, so that the reference must not be the model that training starts from.

Metrics, without gradient: kl, the divergence summed over the response, in nats, and logps/response.
"""

import jax
import jax.numpy as jnp

from slpojax.base import Array, Float, Logps
from slpojax.objectives import games
from slpojax.sequence import first, size, total


def forward_kl(policy: Logps, kl: Float[Array, "K T"]) -> tuple[Array, dict[str, Array]]:
    r"""Distillation by the forward divergence: at every token the teacher's whole distribution is the target.

    .. math:: L = \frac{1}{|y|} \sum_t KL(\pi_{ref}(\cdot | y_{<t}) \,\|\, \pi(\cdot | y_{<t}))

    On given responses, a teacher's or a data set's, it is supervised distillation; on the policy's own samples it is
    GKD's on-policy form, in which no gradient flows through the sampling. The policy spreads to all that the teacher
    may say.

    Args:
        policy: [K, T] log-probs; candidate 0 is the response, the others are not read.
        kl: [K, T] KL(reference || policy) at each token, in nats; 0 where there is none.

    Returns:
        The loss in nats per token, and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25, -2.0]]), jnp.float32([[-1.5, -0.15]]), jnp.int32([2]))
        >>> print(forward_kl(policy, jnp.float32([[0.5, 0.25]]))[0])
        0.375

    Verified:
        The formula, on full distributions in NumPy with the gradient by the policy's logits. That a response's tokens
        are averaged is from memory of the paper; a library's page has their sum.

    Reference:
        Rishabh Agarwal, Nino Vieillard, Yongchao Zhou, Piotr Stanczyk, Sabela Ramos, Matthieu Geist, Olivier Bachem,
        On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes, 2023, arXiv:2306.13649.
    """
    y, divergence = first(policy, 1), jnp.sum(kl[0])
    metrics = {"kl": divergence, "logps/response": total(y)[0]}
    return divergence / size(y)[0], jax.lax.stop_gradient(metrics)


def reverse_kl(policy: Logps, ref: Logps) -> tuple[Array, dict[str, Array]]:
    r"""Distillation by the reverse divergence, on samples of the policy: it says nothing that the teacher would not.

    .. math:: L = \sum_t sg\Big[\sum_{s \ge t} \rho_s\Big] \log \pi(y_t | y_{<t}), \quad
        \rho_s = \log \frac{\pi(y_s | y_{<s})}{\pi_{ref}(y_s | y_{<s})}

    y is a sample that the policy has just drawn. The gradient is that of :math:`KL(\pi || \pi_{ref})` of whole
    responses, without bias, from the drawn tokens' log-probs alone: `games.nash_md` without a game. The loss itself
    means nothing; look at kl, whose mean is the divergence.

    Args:
        policy: [K, T] log-probs; candidate 0 is the policy's sample, the others are not read.
        ref: the same response under the teacher.

    Returns:
        The surrogate loss, and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25, -2.0]]), jnp.float32([[-1.5, -0.15]]), jnp.int32([2]))
        >>> ref = Logps(jnp.float32([[-1.0, -1.0]]), jnp.float32([[-0.46, -0.46]]), jnp.int32([2]))
        >>> loss, metrics = reverse_kl(policy, ref)
        >>> print(f"{loss:.4f} {metrics['kl']:.2f}")
        2.0625 -0.25

    Verified:
        Its expectation by enumeration of all sequences of a small model equals the gradient of the divergence. The
        paper's own remedies against the noise, a teacher's share in the sampling among them, are not here.

    Reference:
        Yuxian Gu, Li Dong, Furu Wei, Minlie Huang, MiniLLM: Knowledge Distillation of Large Language Models, 2023,
        arXiv:2306.08543.
    """
    even = jnp.full(policy.token.shape[:1], 0.5, policy.token.dtype)
    loss, metrics = games.nash_md(policy, ref, even, beta=1.0)
    return loss, {"kl": metrics["kl"], "logps/response": metrics["logps/policy_sample"]}
