"""Losses: pure tensor functions that know neither model nor data."""
