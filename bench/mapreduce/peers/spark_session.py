"""How Spark is started: on two threads of this machine, with memory enough for all."""

from pyspark.sql import SparkSession

import contest

MEMORY = "8g"


def start():
    session = (
        SparkSession.builder.master(f"local[{contest.THREADS}]")
        .appName("flotilla-bench")
        .config("spark.driver.memory", MEMORY)
        .config("spark.driver.maxResultSize", "1g")
        .config("spark.ui.enabled", "false")
        # As many partitions as the others have files of results, instead of 200.
        .config("spark.sql.shuffle.partitions", "8")
        .config("spark.default.parallelism", "8")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    return session
