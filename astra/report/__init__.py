"""Reports: figures of plans and nights, rendered as HTML pages."""
