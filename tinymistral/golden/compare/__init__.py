"""Comparing a candidate, the dump of a program, with a suite."""
