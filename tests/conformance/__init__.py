"""One contract of concurrent.futures executors, run against the standard library's and zfarm's alike.

Numbers in brackets, as in "(12)", are the points of the contract; the README of this folder lists them.
"""
