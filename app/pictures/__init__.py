"""Every picture of the documentation, made anew with one command: `python -m app.pictures`. Scenes are in scenes.py,
one function each; what they are taken with is app/screenshot.py."""
