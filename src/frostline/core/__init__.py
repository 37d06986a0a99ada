"""Errors, the registry, seeds, atomic files, cache folders. Imports no other room of frostline, and no torch."""
