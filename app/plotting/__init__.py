"""Plots: a thin layer of our own over pyqtgraph, and the colours of data. Importing this package imports neither Qt nor
pyqtgraph; `app.plotting.plot` does when the first plot is made."""
