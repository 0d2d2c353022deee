"""Evaluation of trained models on tasks."""
