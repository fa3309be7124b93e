"""The tests, with tasks that elements import: hence a package."""
