"""Polars: `polars_run.py wc|sort|grep INPUT OUTPUT [PATTERN]`.

Its streaming engine, which was never slower. Words are counted as for DuckDB: what is between spaces
first, and letters within that only once for each distinct piece. For 256 MiB that took half the time
of extracting all words by a regular expression.
"""

import os

import contest

# Polars reads it when it is loaded.
os.environ["POLARS_MAX_THREADS"] = str(contest.THREADS)

import polars  # noqa: E402


def start():
    return polars


def lines(source):
    """A table of lines: there is no separator, no quote and no header in them."""
    return polars.scan_csv(
        contest.files_of(source),
        has_header=False,
        schema={"line": polars.String},
        separator="\x01",
        quote_char=None,
    )


def write(table, target):
    os.mkdir(target)
    path = os.path.join(target, "part-00000")
    table.sink_csv(
        path, include_header=False, separator="\t", quote_style="never", engine="streaming"
    )


def count(_, source, target):
    pieces = (
        lines(source)
        .select(polars.col("line").str.split(" ").list.explode().alias("piece"))
        .group_by("piece")
        .agg(polars.len().alias("times"))
    )
    words = (
        pieces.select(polars.col("piece").str.extract_all("[A-Za-z]+").alias("word"), "times")
        .explode("word")
        .drop_nulls()
        .group_by("word")
        .agg(polars.col("times").sum())
    )
    write(words, target)


def sort(_, source, target):
    write(lines(source).sort("line"), target)


def grep(_, source, target, pattern):
    found = polars.col("line").str.contains(pattern, literal=True)
    write(lines(source).filter(found), target)


contest.main(start, {"wc": count, "sort": sort, "grep": grep})
