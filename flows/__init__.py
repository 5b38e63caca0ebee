"""Prefect flows and the ``ndcao`` command line: thin wiring over ``pipeline``."""

from flows.environment import apply_prefect_defaults
from flows.proxies import reach_loopback_directly

apply_prefect_defaults()
reach_loopback_directly()
