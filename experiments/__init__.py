"""Shipped experiments: one YAML file each, found by name (``ndcao experiment list``).

A package only so that the files are installed beside ``pipeline``.
"""
