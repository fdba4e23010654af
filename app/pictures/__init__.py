"""Every picture of the documentation, made anew with one command: `python -m app.pictures`. Scenes are one
function each, in modules by subject that scenes.py lists; what they are taken with is app/screenshot.py."""
