"""Whole farms of real processes, and what happens to them."""
