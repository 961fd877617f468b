"""The quickstart: the whole platform on one machine, through the entry points that a cluster uses."""
