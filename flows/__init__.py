"""Prefect flows and the ``ndcao`` command line: thin wiring over ``pipeline``."""

from flows.environment import apply_prefect_defaults

apply_prefect_defaults()
