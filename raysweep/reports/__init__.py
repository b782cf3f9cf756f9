"""Reports: pure functions of the records.

material    everything that a page shows, read from records and store
html        the page, made of its sections: results, figures, internals, verdicts, tuning,
            pictures, costs, failures, provenance
tables      aggregation over seeds       html_elements  the few elements of the page
formats     CSV, JSON, Markdown, LaTeX   logs           of failed stages, for trials
"""
