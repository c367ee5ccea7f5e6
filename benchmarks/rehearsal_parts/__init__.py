"""What a large run would be, part by part: its steps, its data, its restarts. `benchmarks/rehearsal.py` puts them together."""
