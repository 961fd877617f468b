"""Inference: one engine for mining, evaluation, bulk embedding and serving."""
