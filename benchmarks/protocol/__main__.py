"""`python -m benchmarks.protocol`: everything, or one part of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.protocol.places import DATA


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the first argument says."""
    options = _parser().parse_args(arguments)
    return {"run": _run, "report": _report, "tune": _tune, "train": _train, "cost": _cost, "prompts": _prompts,
            "all": _all}[options.what](options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.protocol", description=__doc__)
    parser.add_argument("what", nargs="?", default="all", help="all: run, prompts, then report",
                        choices=("all", "run", "report", "tune", "train", "cost", "prompts"))
    parser.add_argument("name", nargs="?", help="train: all, universeg, unet:headneck_ct, ... (see learned.py)")
    parser.add_argument("--minutes", type=float, default=30, help="train: CPU minutes, in addition to earlier ones")
    parser.add_argument("--rounds", type=int, default=1, help="train all: how often")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    parser.add_argument("--list", default="test", choices=("test", "validation"), dest="split")
    parser.add_argument("--limit", type=int, help="only so many subjects of each data set")
    parser.add_argument("--draws", type=int, help="at most so many examples for each subject")
    parser.add_argument("--rows", nargs="+", help="only these rows")
    parser.add_argument("--questions", nargs="+", help="only questions whose name holds one of these texts")
    return parser


def _run(options: argparse.Namespace) -> int:
    from benchmarks.protocol.execute import ask_all
    from benchmarks.protocol.questions import all_questions
    from benchmarks.protocol.rows import all_rows

    rows, questions = all_rows(), all_questions()
    unknown = sorted(set(options.rows or ()) - set(rows))
    if unknown:
        print(f"no row {unknown[0]!r}: choose among {', '.join(rows)}", file=sys.stderr)
        return 2
    asked = [question for name, question in questions.items()
             if not options.questions or any(text in name for text in options.questions)]
    failed = 0
    for question, row, found in ask_all(asked, (rows[name] for name in options.rows or rows), options.data,
                                        options.split, limit=options.limit, draws=options.draws):
        print(found.line(question, row), flush=True)
        failed += len(found.failures)
    return 1 if failed else 0


def _report(options: argparse.Namespace) -> int:
    from benchmarks.protocol.report import write_report

    write_report(options.split, options.data)
    return 0


def _tune(options: argparse.Namespace) -> int:
    from benchmarks.protocol.tune import tune

    tune(options.data, options.limit, options.questions)
    return 0


def _train(options: argparse.Namespace) -> int:
    from benchmarks.protocol.learned import train, train_all

    if options.name in (None, "all"):
        train_all(options.minutes, options.rounds, options.data)
    else:
        print(train(options.name, options.minutes, options.data))
    return 0


def _cost(options: argparse.Namespace) -> int:
    from benchmarks.protocol.cost import write

    write()
    return 0


def _prompts(options: argparse.Namespace) -> int:
    from benchmarks.protocol.prompt_use import write

    write(options.data, options.split, options.limit)
    return 0


def _all(options: argparse.Namespace) -> int:
    failed = _run(options)
    if failed == 2:
        return failed
    return max(failed, _prompts(options), _report(options))


if __name__ == "__main__":
    sys.exit(main())
