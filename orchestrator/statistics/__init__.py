"""From speedups to answers: floats in, floats out; no rows, no files, no clock.

``means`` has the geometric means and their variants, ``intervals`` how sure they are, ``differences`` the comparison of two
runs and ``changepoints`` the comparison of many. A speedup is a positive, finite ratio of eager time to compiled time; all averaging
happens on its logarithm.
"""
