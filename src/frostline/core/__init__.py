"""Errors, the registry, seeds, whole-or-absent files. Imports nothing of frostline and no torch."""
