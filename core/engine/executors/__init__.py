"""Who does the units: threads of this process, or the workers of a Dask cluster. Both yield results as they come, in
any order; the pipeline keeps the journal and the tally."""
