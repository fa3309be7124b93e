"""Nights: lists of tasks that are planned, submitted, resumed and closed without supervision."""
