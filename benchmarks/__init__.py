"""What is measured, a script a topic: `python -m benchmarks.same_work`; all of it and a page of it: `make bench`."""
