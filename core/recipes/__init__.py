"""Who gets what: rules, presets, and how they resolve."""
