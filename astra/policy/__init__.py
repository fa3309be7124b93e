"""The retry policy: decide which pages are submitted again, and with which limits."""
