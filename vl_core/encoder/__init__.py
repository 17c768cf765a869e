"""Qwen3-VL: reading its folder, its forward pass, and the words it writes.

What becomes of its states is not decided here.
"""
