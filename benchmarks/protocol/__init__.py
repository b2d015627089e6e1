"""The benchmark: every method answers the same questions on the same subjects, and is scored by the same code.

    python -m benchmarks.protocol run [--list validation] [--limit 3] [--rows engine_balanced copy]
    python -m benchmarks.protocol report

A *question* (`questions`) says what is asked of a data set, a *row* (`rows`) is a method that answers. Every answer is
kept in a small file of its own below runs/benchmark (see `keeping`), so a run that was stopped goes on where it was,
and a row is computed again only when its code, its settings or its weights have changed.
"""
