"""Sheets, plots and tables made from what was measured."""
