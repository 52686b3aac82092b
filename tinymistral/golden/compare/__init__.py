"""Holding a candidate against a suite: reading its dump, comparing, telling."""
