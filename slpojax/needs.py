"""What an objective or a selector may ask for by the name of a parameter: one table.

Knows names, axes and where each of them comes from; knows nobody who computes one. The contract of objectives, what
their examples look like, refusals of data and of frozen models, and OBJECTIVES.md are read off this table: a new need
is one entry here and somebody who provides it.
"""

import textwrap
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from slpojax.base import Batch, Logps


class Need(NamedTuple):
    """One thing that may be asked for.

    Attributes:
        short: what it is in two or three words, for a table.
        axes: of one example: K candidates, T response tokens, P prompt tokens, N layers, C degrees. "state" for a tree
            that the objective itself chooses.
        source: who provides it: "batch", a column of the data; "frozen", log-probs of a frozen model; "policy", what
            every pass of the policy gives; "head", more from the pass over the vocabulary; "reader", what is read off
            hidden states; "score", what a score head gives; "step", the step itself.
        says: what it is, in words that a sentence can end with.
        form: "array", "logps", "key" or "state".
        gradient: whether a gradient flows through it, to the policy or to a reader's parameters.
        weights_of_reference: whether it takes the reference's weights, not only its log-probs.
        selectors: whether selectors may ask for it, too.
        column: the field of `Batch` that holds it; "" where none does.
    """

    short: str
    axes: str
    source: str
    says: str
    form: str = "array"
    gradient: bool = False
    weights_of_reference: bool = False
    selectors: bool = False
    column: str = ""

    @property
    def of(self) -> str:
        """Whose it is: "candidate" (and picked with it), "prompt", "example", or the whole "batch"."""
        if self.form == "state":
            return "batch"
        return {"K": "candidate", "P": "prompt"}.get(self.axes[:1], "example")


# By the name of the parameter, in the order in which documents list them.
NEEDS: Mapping[str, Need] = {
    "policy": Need(
        "policy",
        "K T",
        "policy",
        "log-probs of the candidates' tokens; candidate 0 is the preferred one",
        form="logps",
        gradient=True,
        selectors=True,
    ),
    "ref": Need(
        "reference",
        "K T",
        "frozen",
        "the same responses' log-probs under the reference; where nothing asks for a reference, a run has none",
        form="logps",
        selectors=True,
        column="ref",
    ),
    "previous": Need(
        "second frozen model",
        "K T",
        "frozen",
        "the same responses' log-probs under a second frozen model: the iterate that an iterative method starts from",
        form="logps",
        column="previous",
    ),
    "prompt": Need(
        "prompt",
        "P",
        "policy",
        "log-probs of the prompt's own tokens, each given those before it, so that the first one has none; where "
        "nothing asks for them only responses meet the vocabulary",
        form="logps",
        gradient=True,
    ),
    "score": Need("scores", "K", "batch", "scores of the candidates, higher is better", selectors=True, column="score"),
    "probability": Need(
        "scores that are probabilities",
        "K",
        "batch",
        "scores of the candidates that are probabilities to win, from 0 to 1",
        column="score",
    ),
    "label": Need(
        "label",
        "",
        "batch",
        "1 where candidate 0 is desirable, 0 where it is not, in data that is not paired",
        column="label",
    ),
    "weight": Need(
        "weight",
        "",
        "batch",
        "weight of the example in the loss: 1, or what makes the prompts of undesirable responses as frequent as among "
        "the desirable ones (data.match_prompts)",
        column="weight",
    ),
    "collision": Need(
        "whole distribution (collision)",
        "K T",
        "head",
        "log sum_v p(v)^2 of the policy's distribution at each response token",
        gradient=True,
    ),
    "entropy": Need(
        "whole distribution (entropy)",
        "K T",
        "head",
        "- sum_v p(v) log p(v) of the policy's distribution at each response token, in nats",
        gradient=True,
    ),
    "kl": Need(
        "whole distribution (kl)",
        "K T",
        "head",
        "KL(reference || policy) of the whole distributions at each response token, in nats",
        gradient=True,
        weights_of_reference=True,
    ),
    "activity": Need(
        "whole distribution (activity)",
        "K T",
        "head",
        "the mean over the vocabulary of the reference's logits at each response token",
        weights_of_reference=True,
    ),
    "layer_activity": Need(
        "the reference's layers",
        "K T N",
        "reader",
        "the mean over its width of what each of the reference's N layers puts out at each response token",
        weights_of_reference=True,
    ),
    "reward_mask": Need(
        "learned mask (reward_mask)",
        "K T",
        "reader",
        "a learned mask on the response tokens' log-ratios, numbers from 0 on, read off the reference's layers by "
        "weights that are trained beside the policy",
        gradient=True,
        weights_of_reference=True,
    ),
    "kl_mask": Need(
        "learned mask (kl_mask)",
        "K T",
        "reader",
        "a learned mask on the response tokens' divergences, as reward_mask",
        gradient=True,
        weights_of_reference=True,
    ),
    "degree": Need(
        "copies with content removed",
        "K T C",
        "reader",
        "logits of how much of a response's key content was removed, read off the policy's last states by a network "
        "beside it, for data that has such copies (data.degrade)",
        gradient=True,
    ),
    "reward": Need(
        "score head",
        "K T",
        "score",
        "what a score head in the place of the unembedding (model.head=score) gives at each response token's own "
        "state, of the text up to it; the last token's is the response's. The log-probs of such a model are zeros",
        gradient=True,
    ),
    "key": Need("random key", "", "step", "a random key for this example alone", form="key", selectors=True),
    "state": Need(
        "running state",
        "state",
        "step",
        "running statistics over the steps; the parameter's default is their initial value, any tree of numbers",
        form="state",
    ),
}


_ADDED: dict[str, Need] = {}  # by readers outside the package; documents list those of the package alone


def add(name: str, need: Need) -> None:
    """Add a need: what a reader outside the package gives.

    Raises:
        ValueError: there is another one of this name.
    """
    if known().get(name, need) != need:
        raise ValueError(f"there is a need {name!r} already: {describe(name)} Give the reader's score another name")
    if name not in NEEDS:
        _ADDED[name] = need


def known() -> dict[str, Need]:
    """Return all needs by name: the package's, then those that were added."""
    return {**NEEDS, **_ADDED}


def where(**fields: Any) -> tuple[str, ...]:
    """Return the names of the needs that have these values in `Need`.

    Example:
        >>> where(source="reader", weights_of_reference=True, gradient=True)
        ('reward_mask', 'kl_mask')
        >>> where(selectors=True)
        ('policy', 'ref', 'score', 'key')
    """
    return tuple(
        name for name, need in known().items() if all(getattr(need, key) == value for key, value in fields.items())
    )


def of_source(*sources: str) -> tuple[str, ...]:
    """Return the names of the needs that come from these sources.

    Example:
        >>> of_source("head")
        ('collision', 'entropy', 'kl', 'activity')
    """
    return tuple(name for name, need in known().items() if need.source in sources)


def beside_log_probs(names: Collection[str]) -> list[str]:
    """Return which of these needs a pass of the models gives beside the tokens' log-probs: the heads' and the readers'.

    Example:
        >>> beside_log_probs({"policy", "ref", "kl", "degree", "state"})
        ['degree', 'kl']
    """
    return sorted(set(names) & set(of_source("head", "reader", "score")))


def takes_reference_weights(names: Collection[str]) -> tuple[str, ...]:
    """Return which of these needs take the reference's weights; true where there are any.

    Example:
        >>> takes_reference_weights({"policy", "ref", "kl"})
        ('kl',)
    """
    return tuple(name for name in where(weights_of_reference=True) if name in names)


def takes_reference(names: Collection[str]) -> tuple[str, ...]:
    """Return which of these needs take a reference at all, its log-probs or its weights; true where there are any.

    Example:
        >>> takes_reference({"policy", "kl"}), takes_reference({"policy", "ref"}), takes_reference({"policy"})
        (('kl',), ('ref',), ())
    """
    return tuple(
        name for name, need in known().items() if name in names and (need.weights_of_reference or name == "ref")
    )


def like(name: str, candidates: int, response: int) -> Any:
    """Return the shapes of one example: a tree of `jax.ShapeDtypeStruct`; of "state" nothing is known.

    Args:
        name: of the need.
        candidates: K.
        response: T. Axes that nothing here says the size of, P and N, are as long.

    Example:
        >>> like("degree", 6, 4).shape
        (6, 4, 3)
    """
    need = known()[name]
    if need.form == "state":
        return None
    if need.form == "key":
        return jax.eval_shape(lambda: jax.random.key(0))
    sizes = {"K": candidates, "T": response, "P": response, "N": response, "C": -(-candidates // 2)}
    shape = tuple(sizes[axis] for axis in need.axes.split())
    array: Any = jax.ShapeDtypeStruct(shape, jnp.result_type(float))
    length: Any = jax.ShapeDtypeStruct(shape[:-1], jnp.int32)
    return Logps(array, array, length) if need.form == "logps" else array


def columns(batch: Batch) -> dict[str, Any]:
    """Return by name what a batch itself holds of what may be asked for; None where it lacks a column."""
    return {name: getattr(batch, need.column) for name, need in known().items() if need.column}


def asked(askers: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Return who asks for each need: the first that does.

    Args:
        askers: what errors call them, and what each asks for.

    Example:
        >>> who = asked({"objective reference_free.simpo": {"policy"}, "selector likeliest": {"policy", "ref"}})
        >>> who["ref"]
        'selector likeliest'
    """
    return {name: who for who, names in reversed(list(askers.items())) for name in names}


def describe(name: str) -> str:
    """Return all that the table says of a need, on one line.

    Example:
        >>> describe("score")
        '[K] scores of the candidates, higher is better.'
    """
    need = known()[name]
    axes = f"[{', '.join(need.axes.split())}] " if need.axes and need.form in ("array", "logps") else ""
    text = f"{'`Logps` ' if need.form == 'logps' else ''}{axes}{need.says}."
    if need.gradient:
        text += " The gradient flows through it."
    if need.weights_of_reference:
        text += " It takes the reference's weights (reference.mode online, moving or bema)."
    return text


def prose(names: Iterable[str]) -> str:
    """Return a paragraph a need, as the docstrings of objectives and of selectors have them."""
    return "\n".join(
        textwrap.fill(f"{name}  {describe(name)}", 120, initial_indent=" " * 4, subsequent_indent=" " * 12)
        for name in names
    )
