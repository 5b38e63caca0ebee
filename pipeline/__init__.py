"""Data, cluster, harness, evaluation, results, comparison; knows no Prefect."""
