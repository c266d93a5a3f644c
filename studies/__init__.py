"""Studies: many runs of ``train.py``, on this machine or a cluster, and tables of what they gave."""
