"""Spark's DataFrame: `spark_dataframe.py wc|sort|grep INPUT OUTPUT [PATTERN]`."""

from pyspark.sql import functions

import contest
import spark_session


def lines(session, source):
    return session.read.text(source)


def count(session, source, target):
    words = (
        lines(session, source)
        .select(functions.explode(functions.split("value", "[^A-Za-z]+")).alias("word"))
        .where("word <> ''")
        .groupBy("word")
        .count()
    )
    words.select(functions.concat_ws("\t", "word", "count")).write.text(target)


def sort(session, source, target):
    lines(session, source).orderBy(functions.substring("value", 1, 10)).write.text(target)


def grep(session, source, target, pattern):
    found = functions.col("value").contains(pattern)
    lines(session, source).where(found).write.text(target)


contest.main(spark_session.start, {"wc": count, "sort": sort, "grep": grep})
