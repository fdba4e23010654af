"""What the eye sees: histograms, outliers, error, comparison."""
