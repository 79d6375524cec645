"""Federated analysis of medical data across institutions: a site's records never leave it."""

__version__ = "0.1.0"
