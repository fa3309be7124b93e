"""Configuration: the settings, profiles, nights and retry rules of astra.toml."""
