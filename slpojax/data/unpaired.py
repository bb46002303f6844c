"""Examples for objectives that read one labelled response: pairs taken apart, and responses that answer another prompt.

Knows token ids; knows no text and no row of a batch. What is made of one record stays together as a group.
"""

from collections.abc import Iterable, Iterator, Sequence

from slpojax.data.chain import Group, Transform, each
from slpojax.data.examples import Example, of_candidates, which, with_candidates
from slpojax.data.options import Setup
from slpojax.data.report import Tally

_UNPAIRED = "taken apart into labelled responses"
_MISMATCHED_CUT = "mismatched response cut (no EOS)"
_MISMATCHED_GONE = "mismatched response left out, as no token that counts by data.turns is left of it"


def unpair(setup: Setup) -> Transform | None:
    """Take every example apart into labelled ones, where `data.unpair` asks for it.

    Raises:
        ValueError: `data.unpair` with a single candidate.
    """
    if not setup.candidates.unpair:
        return None
    if setup.candidates.candidates < 2:
        raise ValueError(
            f"data.unpair takes pairs apart; got data.candidates={setup.candidates.candidates}, expected 2 or more"
        )

    def one(group: Group) -> Group:
        made = tuple(single for example in group.examples for single in take_apart(example))
        return group._replace(examples=made, labelled=True, notes=(*group.notes, _UNPAIRED))

    return each(one)


def mismatch(setup: Setup) -> Transform | None:
    """Add a response to another prompt to every example, where `data.mismatched` asks for it; see `add_mismatched`.

    Raises:
        ValueError: later, where there is no other record.
    """
    if not setup.candidates.mismatched:
        return None

    def transform(items: Iterable[Group], tally: Tally) -> Iterator[Group]:
        groups = list(items)
        yield from add_mismatched(groups, setup.encoding.max_length) if groups else ()

    return transform


def take_apart(example: Example) -> list[Example]:
    """Return an example for each candidate that is not absent: the first one is desirable, every other is not.

    (Ethayarajh et al., KTO: Model Alignment as Prospect Theoretic Optimization, 2024, arXiv 2402.01306.)
    """
    return [
        of_candidates(example, [k])._replace(label=float(k == 0))
        for k, response in enumerate(example.responses)
        if len(response)
    ]


def add_mismatched(groups: Sequence[Group], max_length: int) -> Iterator[Group]:
    """Add to every example, as its last candidate, the first response of the next group's example.

    Groups stand in a ring: the last one takes from the first. Within a group the first takes from the first, the second
    from the second, so what pairs are taken apart into gets as many rejected responses as chosen ones, and none that
    answers the prompt of its example. The responses are the ones whose mean log-ratio is KTO's reference point.

    Args:
        groups: in the order of the source.
        max_length: tokens of prompt plus one response; the response is cut to it, and then has no EOS.

    Yields:
        The groups, with a note for every added response that was cut.

    Raises:
        ValueError: there is no other group.
    """
    if len(groups) < 2:
        raise ValueError(
            f"data.mismatched takes the response of another record, but there are {len(groups)}; expected 2 or more"
        )
    for group, other in zip(groups, [*groups[1:], groups[0]], strict=True):
        made: list[Example] = []
        notes = group.notes
        for place, example in enumerate(group.examples):
            of_other = other.examples[min(place, len(other.examples) - 1)]
            response, counted = of_other.responses[0], which(of_other)[0]
            room = max_length - len(example.prompt)
            notes += (_MISMATCHED_CUT,) * (len(response) > room)
            if not counted[:room].any():
                notes += (_MISMATCHED_GONE,)
                room = 0
            some = None if of_other.counted is None else [counted[:room]]
            made.append(with_candidates(example, [response[:room]], [0.0], some))
        yield group._replace(examples=tuple(made), added=(*group.added, "mismatched"), notes=notes)
