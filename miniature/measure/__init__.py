"""Measuring ways to steer on the miniature."""
