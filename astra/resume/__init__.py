"""Resume, cancel, pause and throttle plans."""
