"""What helps where no record is usable: one piece of advice for every reason.

Knows reasons by how they begin, and settings by their names; knows no record.
"""

from collections.abc import Mapping

from slpojax.data.formats import FORMATS
from slpojax.data.report import Count

# How a reason begins -> what to do. `tests/test_data_advice.py` holds that every reason has one.
ADVICE = {
    "EOS inside the text": "give messages (data.format=conversational): a chat template writes the special tokens",
    "EOS inside the sampled ids": "make the file anew: an answer ends at its first EOS",
    "a function call that cannot be read": "give tool_calls as a list of {'function': {'name', 'arguments'}}",
    "a message of the unknown role": "rename it: system, developer, user, assistant or tool",
    "a message whose content is no text": "leave out images and other parts; slpojax trains on text",
    "a message with": "give every message a role and a content",
    "a record apart from the others of its": "sort the records, so that those of one prompt stand together",
    "a private character": "take it out of the text: it stands for special tokens here",
    "a prompt that ends with": "let it end with the user's turn",
    "a rank that is no number": "give ranks as numbers, 0 for the best",
    "a response that begins with a turn of": "let the prompt end with the user's turn, and responses hold what follows",
    "a reward that is no number": "give finite numbers as rewards",
    "a score that is no number": "give finite numbers as scores",
    "all candidates ranked equal": "set data.ties=keep for an objective that reads scores, or take other data",
    "preference variance below": "lower data.least_variance; it is at most 0.25",
    "prompt that leaves less": "raise data.max_length, or lower generate.max_new_tokens",
    "prompt that an earlier": "every prompt is asked once; look at the first of them",
    "ranks and scores contradict": "look at whether a higher score is the better one, and rank 0 the best",
    "ref_rewards is empty": "give the rewards of the reference's own samples, the more the finer the quantiles",
    "samples are all alike": "raise generate.temperature, or ask for more samples: generate.samples",
    "scores nearer to each other": "lower data.least_gap, which is in the unit of the scores",
    "scores against the order": "look at whether a higher score is the better one, and rank 0 the best",
    "empty prompt": "give every record a prompt",
    "empty response": "look at which field holds the response: data.format says what is read",
    "fewer responses than data.candidates": "set data.candidates=1 for single responses, or take another data.format",
    "half a character": "write the text anew: it was cut inside a character",
    "identical responses": "look at which fields hold the two responses: data.format says what is read",
    "longer than data.max_length": "raise data.max_length, or cut by data.too_long=cut_response",
    "messages as lists": "give every message a role and a content",
    "no blank that ends a prompt": "give the prompt in a field of its own (data.format=pairs), or write a parser",
    "no sample of the policy": "sample answers to the prompts of these data, through the same template: data.samples",
    "no shared prompt": "take the format that the records have: data.format",
    "skipped by the judge": "look at what the judge's program said; its file has the number of every prompt",
    "the chat template fails": "mend the template, or name another one: data.chat_template",
    "the chat template refuses": "leave out what it refuses, or name another template: data.chat_template",
    "the chat template writes the prompt differently": "name a template that writes turns alike wherever they stand: "
    "data.chat_template",
    "the last message is not the assistant's": "let every dialogue end with the assistant's turn",
    "the chat template changes what stands within": "mend the template's generation tags, or set data.turns=all",
    "the chat template writes earlier turns": "set data.turns=all, or name a template that writes turns alike wherever "
    "they stand, or has generation marks: data.chat_template",
    "no token of a response counts": "look at the template's generation marks, or set data.turns=all",
    "no token of a response that counts": "raise data.max_length, or set data.turns=all",
    "tools that are no list": "give tools as a list of JSON schemas, or leave them out",
}


def why_none(dropped: Mapping[str, Count], read: int) -> str:
    """Return in a line why none of the records is usable, the commonest reason first, and what helps with that."""
    reasons = sorted(dropped.items(), key=lambda item: -item[1].times)
    told = [f"{count.times:,} {reason} (rows {', '.join(map(str, count.rows[:5]))})" for reason, count in reasons[:5]]
    told += [f"and {len(reasons) - 5} other reasons"] * (len(reasons) > 5)
    return f"no usable record of {read:,}: {'; '.join(told)}. {of(reasons[0][0]) if reasons else ''}".strip()


def of(reason: str) -> str:
    """Return what helps with a reason."""
    words = next((advice for begins, advice in ADVICE.items() if reason.startswith(begins)), "")
    words = words or (
        "give a text there" if reason.endswith(" is null") else f"take another data.format ({', '.join(FORMATS)})"
    )
    return f"{words[0].upper()}{words[1:]}"
