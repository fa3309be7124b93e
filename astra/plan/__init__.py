"""Plans: find pending rows, freeze them into pages, and choose the sizes of pages."""
