"""Models, on one device."""
