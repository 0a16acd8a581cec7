"""Runs of many jobs: order, isolation of failures, outcomes."""
