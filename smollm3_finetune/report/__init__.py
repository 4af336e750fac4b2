"""`report.html`: one page for a run, or for several runs beside each other."""
