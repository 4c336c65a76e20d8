"""Instruments by room; one file a method, found by walking this tree."""
