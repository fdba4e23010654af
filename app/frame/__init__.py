"""The parts of the window around the panels: toolbar, notice bar, command palette, empty page, list of problems."""
