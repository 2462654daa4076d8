"""The report of prepared data: one HTML file that shows what will be trained, in numbers and in real blocks."""
