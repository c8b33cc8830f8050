"""Spark's RDDs with Python functions: `spark_rdd.py wc|sort|grep INPUT OUTPUT [PATTERN]`."""

from operator import add

import contest
import spark_session

# What is no letter becomes a space; splitting at spaces is several times as fast as a regular
# expression.
SPACES = {code: " " for code in range(128) if not chr(code).isalpha()}


def lines(session, source):
    return session.sparkContext.textFile(source)


def count(session, source, target):
    (
        lines(session, source)
        .flatMap(lambda line: line.translate(SPACES).split())
        .map(lambda word: (word, 1))
        .reduceByKey(add)
        .map(lambda counted: f"{counted[0]}\t{counted[1]}")
        .saveAsTextFile(target)
    )


def sort(session, source, target):
    lines(session, source).sortBy(lambda line: line[:10]).saveAsTextFile(target)


def grep(session, source, target, pattern):
    lines(session, source).filter(lambda line: pattern in line).saveAsTextFile(target)


contest.main(spark_session.start, {"wc": count, "sort": sort, "grep": grep})
