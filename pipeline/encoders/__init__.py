"""Frozen networks that embed images, and what runs them."""
