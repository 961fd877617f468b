"""Evaluation: mteb tasks over the inference engine, spread over Ray actors."""
