"""How full the rows of a run are, by the order of its batches and the length of its rows.

    python benchmarks/packing.py PAIRS.jsonl.gz TOKENIZER_FOLDER [--rows 0:2000] [--batch 16,32,64] [--groups 1,8]

One table: "unpacked" gives every example a row of its own, "by length" also batches similar ones in rows of up to four
lengths; "packed" takes the shuffled order, "balanced" the one that lets batches trade examples, "balanced, chosen" also
picks the length of the rows. Groups are devices times micro-batches. Fill is the share of the cells that hold a token,
scored the share of the G x S scored positions that are used. Host times are of one batch laid out, the
median with its spread from the first to the third quartile, and of the order and plan of the whole run. With --count
the lengths are drawn anew, so many as given, from those of the data, and only planned.
"""

import argparse
import statistics
import time

import numpy as np
from common import header

from slpojax import data
from slpojax.data.examples import Example

TRIED = (
    ("unpacked", "shuffled", False, 1024),
    ("unpacked, by length", "by_length", False, 0),
    ("packed", "shuffled", True, 1024),
    ("balanced", "balanced", True, 1024),
    ("balanced, chosen", "balanced", True, 0),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pairs")
    parser.add_argument("tokenizer")
    parser.add_argument("--rows", default="0:2000")
    parser.add_argument("--batch", default="16,32,64")
    parser.add_argument("--groups", default="1,8")
    parser.add_argument("--format", default="hh")
    parser.add_argument("--candidates", type=int, default=2)
    parser.add_argument("--chat_template", default="")
    parser.add_argument("--count", type=int, default=0)
    args = parser.parse_args()
    print(header(args), flush=True)
    chosen = data.settings({name: getattr(args, name) for name in ("format", "candidates", "chat_template")})
    source = data.Source(args.pairs, rows=args.rows)
    examples, report = data.load(source, chosen, tokenizer=data.load_tokenizer(args.tokenizer))
    if args.count:
        examples = drawn(examples, args.count)
    print(f"{len(examples):,} examples of {examples.lengths.prompt.mean():.0f} + ", end="")
    print(" + ".join(f"{n:.0f}" for n in examples.lengths.response.mean(axis=0)), "tokens\n")
    print("| B | G | rows | R x L | fill | S | scored | ms a batch | order and plan, s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for batch_size in map(int, args.batch.split(",")):
        for groups in map(int, args.groups.split(",")):
            for name, kind, *how in TRIED:
                line = row(examples, report, batch_size, groups, kind, *how, lay_out=not args.count)
                print(f"| {batch_size} | {groups} | {name} | {line} |")


def row(
    examples: data.Examples,
    report: data.Report,
    batch_size: int,
    groups: int,
    kind: str,
    pack: bool,
    row_length: int,
    *,
    lay_out: bool,
) -> str:
    """Plan a pass and lay out its batches; return a line of the table."""
    begin = time.perf_counter()
    order = data.order(examples.lengths, batch_size, seed=0, steps=len(examples) // batch_size, kind=kind)
    shapes = data.plan(examples, order, row_length=row_length, pack=pack, multiple_of=groups)
    planned = time.perf_counter() - begin
    packing = data.with_packing(report, examples, order, shapes).packing
    lengths = ", ".join(map(str, packing.lengths))
    line = f"{shapes.rows} x {lengths} | {1 - packing.padding:.1%} | {shapes.scored} | {1 - packing.unscored:.1%}"
    if not lay_out:
        return f"{line} | | {planned:.2f}"
    seconds = []
    for index in order:
        listed = [examples[int(i)] for i in index]
        begin = time.perf_counter()
        data.pack(listed, shapes)
        seconds.append(1e3 * (time.perf_counter() - begin))
    first, middle, third = statistics.quantiles(seconds, n=4)
    return f"{line} | {middle:.1f} ({first:.1f}-{third:.1f}) | {planned:.2f}"


def drawn(examples: data.Examples, count: int) -> data.Examples:
    """Return `count` examples of as many empty tokens as random ones of `examples` have."""
    index = np.random.default_rng(0).integers(0, len(examples), count)
    lengths = zip(examples.lengths.prompt[index].tolist(), examples.lengths.response[index].tolist(), strict=True)
    scores = (0.0,) * examples.candidates
    blank = np.zeros(max(examples.lengths.prompt.max(), examples.lengths.response.max()), np.int32)
    made = (
        Example(blank[:prompt], tuple(blank[:n] for n in responses), scores, i)
        for i, (prompt, responses) in enumerate(lengths)
    )
    return data.build(made, candidates=examples.candidates)


if __name__ == "__main__":
    main()
