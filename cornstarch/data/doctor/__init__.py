"""Checks of data before training. Files stand in the order of the flow: kinds -> findings -> scan -> report."""
