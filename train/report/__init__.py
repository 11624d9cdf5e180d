"""`report.html`: what a run can do and where it fails, in one file that opens offline."""
