"""The report as a page: outputs/report/index.html, one file that needs no network."""
