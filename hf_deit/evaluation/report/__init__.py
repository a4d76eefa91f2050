"""How a report is written: as Markdown, as one page, and as JSON."""
