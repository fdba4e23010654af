"""The workbench window over the engine in core/. Nothing in core imports this package."""
