"""What tools/results_table.py reads from the folders of runs, and its tables of generalisation."""
