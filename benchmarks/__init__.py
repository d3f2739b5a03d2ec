"""Figures: each file prints what it measures and says how; `make bench` runs those that need no data."""
